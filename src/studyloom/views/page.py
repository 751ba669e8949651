"""Self-contained HTML from sections of blocks, by templates of Jinja2.

Blocks hold text and numbers, never HTML: the templates escape all values. The content security
policy forbids other files, the network, and all scripts except the embedded ones.
"""

import base64
import hashlib
import itertools
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeGuard, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from studyloom._version import __version__
from studyloom.errors import FileError, StudyloomError
from studyloom.files import ASSETS, check_output, write_whole
from studyloom.text import mask_passwords, name_error, printable
from studyloom.views.figures import Block
from studyloom.views.words import Fact

IMAGE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
FOLDER = ASSETS / "report"
SECTIONS = tomllib.loads((FOLDER / "sections.toml").read_text("utf-8"))
NUMBERED = re.compile(r"\b[Tt]rial \d+(, \d+)*\b")
PAGE_BEGIN = b"<!DOCTYPE html>"
FAINT = 0.2  # of the strongest word of a text; weaker ones are not shaded
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Absent(Block):
    """A sentence instead of something that is missing."""

    why: str


@dataclass(frozen=True)
class Words(Block):
    """A paragraph.

    Args:
        kind: `bad`, `caption`, `quiet` or `parameters`; empty for plain text.
    """

    text: str
    kind: str = ""


@dataclass(frozen=True)
class ItemsBlock(Block, Generic[T]):
    """Several items of one kind; the subclass determines how they are shown."""

    items: Sequence[T]


class Lines(ItemsBlock[str]):
    """A list of short lines."""


class Facts(ItemsBlock[tuple[str, object]]):
    """Names with their values, a row each."""


@dataclass(frozen=True)
class Folded(Block):
    """A long text, folded below its title."""

    title: str
    text: str


@dataclass(frozen=True)
class Part(Block):
    """Blocks below a subheading, with a quiet remark next to it.

    Args:
        key: its permanent id; empty without one.
    """

    title: str
    blocks: Sequence[Block]
    remark: str = ""
    key: str = ""


class Bars(ItemsBlock[tuple[str, float]]):
    """Names with their shares of 1, as bars."""


@dataclass(frozen=True)
class Heat(Block):
    """A table of counts in shades, such as a confusion matrix."""

    names: Sequence[object]
    rows: Sequence[Sequence[int]]
    label: str

    @cached_property
    def most(self) -> dict[bool, int]:
        """The largest count on the diagonal, under True, and the largest off it, under False."""
        most = {True: 1, False: 1}
        for row, counts in enumerate(self.rows):
            for column, count in enumerate(counts):
                most[row == column] = max(most[row == column], count)
        return most

    def shade(self, row: int, column: int) -> float:
        """Returns the shade of a cell, 0 to 1, relative to the others on or off the diagonal."""
        return self.rows[row][column] / self.most[row == column]


@dataclass(frozen=True)
class CaptionedImage:
    """An image with words below it.

    Args:
        source: a `data:` URL of a PNG file, which `is_embedded` has approved.
        label: the alternative text.
        strong: bold text after the words.
    """

    source: str
    label: str
    words: str = ""
    strong: str = ""
    remark: str = ""


class Images(ItemsBlock[CaptionedImage]):
    """Images side by side."""


@dataclass(frozen=True)
class Shaded(Block):
    """A misclassified text whose words are shaded by the class that they are evidence for.

    Args:
        words: each with its weight, from -1 to 1: above 0 as evidence for the wrong prediction,
            below 0 for the true class.
    """

    words: Sequence[tuple[str, float]]

    @property
    def runs(self) -> list[tuple[str, float]]:
        """The words, with adjacent ones of negligible weight joined into one of weight 0."""
        runs: list[tuple[str, float]] = []
        for strong, group in itertools.groupby(self.words, lambda pair: abs(pair[1]) >= FAINT):
            pairs = [*group]
            runs += pairs if strong else [(" ".join(word for word, _ in pairs), 0.0)]
        return runs


@dataclass(frozen=True)
class Cell:
    """A cell of the table of the trials: its text, and the value to sort by."""

    shown: str
    value: Any = None


@dataclass(frozen=True)
class Row:
    """A row of the table of the trials.

    Args:
        mark: `best`, `baseline` or `winner`, or several.
        more: further facts, from `report.trial_details`.
    """

    number: int
    state: str
    cells: Sequence[Cell]
    mark: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """A column of the table of the trials.

    Args:
        words: whether it holds words, not numbers.
        parameter: the full name of a hyperparameter, which the title may shorten; else "".
    """

    title: str
    words: bool
    parameter: str = ""


@dataclass(frozen=True)
class Trials(Block):
    """The table of all trials, which can be sorted, filtered and saved as CSV."""

    columns: Sequence[Column]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Section:
    """A section of a report.

    Args:
        key: its permanent id: letters and hyphens.
        caption: how to read it; left out if all of the section is absent.
    """

    key: str
    title: str
    blocks: Sequence[Block]
    caption: str = ""

    @property
    def is_absent(self) -> bool:
        """Whether all blocks are sentences that say why something is missing."""
        return all(isinstance(block, Absent) for block in self.blocks)


def section(name: str, blocks: Sequence[Block], **words: object) -> Section:
    """Makes a section of sections.toml, with these words filled into its title and caption."""
    known = SECTIONS[name]
    title, caption = (str(known.get(key, "")).format(**words) for key in ("title", "caption"))
    return Section(known.get("key", name), title, blocks, caption)


def part(name: str, blocks: Sequence[Block], **words: object) -> Part:
    """Makes a part of a section from an entry of sections.toml, with its caption first."""
    known = section(name, blocks, **words)
    return Part(known.title, [Words(known.caption, "caption"), *blocks], key=known.key)


@dataclass(frozen=True)
class Head:
    """The top of a report: the result in a sentence, what stands out, and facts in short.

    Args:
        image: all of it with the first figure, as SVG, to share.
    """

    name: str
    sentence: str
    blocks: Sequence[Block]
    facts: Sequence[Fact] = ()
    image: str = ""


def undrawn(error: Exception) -> str:
    """Says why something cannot be drawn."""
    return f"It cannot be drawn: {name_error(error)}"


def drawn(draw: Callable[P, Block | str], *args: P.args, **kwargs: P.kwargs) -> Block:
    """Draws a figure, or a sentence if it cannot be drawn, as with values of 1e308 and -1e308."""
    try:
        figure = draw(*args, **kwargs)
    except StudyloomError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        figure = undrawn(error)
    return Absent(figure) if isinstance(figure, str) else figure


def is_embedded(source: object) -> TypeGuard[str]:
    """Whether a text is an embedded PNG: no other address is shown."""
    return isinstance(source, str) and IMAGE.fullmatch(source) is not None


POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {scripts}; "
    "connect-src {connect}; base-uri 'none'; form-action 'none'"
)


def shown(value: Any) -> Any:
    """Makes values from a study safe to show, and masks passwords; templates escape them."""
    return value if isinstance(value, Markup) else mask_passwords(printable(str(value)))


@cache
def environment() -> Environment:
    """Returns the environment of the templates, with escaping on."""
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.tests["of"] = lambda block, name: type(block).__name__ == name
    made.filters |= {"dotted": _dotted, "linked": _linked, "safe_data": _safe_data}
    return made


def _dotted(name: Any) -> Markup:
    """Returns a name that a line break may split after each dot."""
    return Markup(".<wbr>").join(str(shown(name)).split("."))


def _linked(words: Any) -> Markup:
    """Returns words in which the number of each trial links to it."""

    def link(found: re.Match[str]) -> str:
        return re.sub(r"\d+", r'<a href="#trial-\g<0>">\g<0></a>', found[0])

    return Markup(NUMBERED.sub(link, str(escape(shown(words)))))


def _safe_data(value: Any) -> Any:
    """Makes all strings in the data of a script safe to show."""
    match value:
        case str():
            return str(shown(value))
        case Mapping():
            return {str(shown(key)): _safe_data(each) for key, each in value.items()}
        case Sequence():
            return [_safe_data(each) for each in value]
    return value


def fill(template: str, **values: Any) -> Markup:
    """Renders a template as safe HTML."""
    return Markup(environment().get_template(template).render(**values).strip())


@cache
def _asset(name: str) -> Markup:
    """Returns a bundled style sheet or script, unescaped."""
    return Markup((FOLDER / name).read_text("utf-8"))


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def section_html(section: Section) -> Markup:
    return fill("section.html", section=section)


def check_page(path: Path) -> None:
    """Checks the path of `--page`, where only an HTML file of studyloom may be replaced.

    Raises:
        FileError: it is in no folder, or something else is there.
    """
    shown = f"--page {printable(str(path))}"
    if not path.parent.is_dir():
        raise FileError(f"{shown}: there is no folder {printable(str(path.parent))}; create it")
    if path.exists() and not path.is_file():
        raise FileError(f"{shown}: is not a file, and stays unchanged; name a new file")
    check_output(path, "--page", PAGE_BEGIN)


def write_page(path: Path, html: str) -> None:
    """Writes an HTML file to the path of `--page`.

    Raises:
        FileError: it would replace something else.
        OSError: it cannot be written.
    """
    check_page(path)
    # The file that a link leads to is replaced, and not the link.
    write_whole(path.resolve(), html.encode(errors="replace"))


def report_page(head: Head, sections: Iterable[Section], run_dir: Path | None = None) -> str:
    """Renders the report of a study as self-contained HTML."""
    rendered = [(section, section_html(section)) for section in sections]
    return document(head.name, fill("head.html", head=head), rendered, run_dir=run_dir)


def document(
    name: str,
    head: Markup,
    sections: Sequence[tuple[Section, Markup]],
    live: Mapping[str, str] | None = None,
    progress: str = "",
    run_dir: Path | None = None,
) -> str:
    """Renders a report around its parts.

    Args:
        live: the settings of the script of a live report; None for a static one.
        run_dir: where trials can be replayed, if known.
    """
    scripts = [_asset("page.js")] + ([_asset("live.js")] if live is not None else [])
    connect = "'none'" if live is None else "'self'"
    return fill(
        "page.html",
        name=name,
        head=head,
        sections=sections,
        live=live,
        progress=Markup(progress),
        replay="" if run_dir is None else f"studyloom replay {shlex.quote(str(run_dir))} --trial",
        scripts=scripts,
        style=_asset("page.css"),
        policy=POLICY.format(scripts=" ".join(map(_hash, scripts)), connect=connect),
        version=__version__,
    )
