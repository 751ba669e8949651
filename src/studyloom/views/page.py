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
from studyloom.views.advice import Advice
from studyloom.views.charts import Block
from studyloom.views.words import Fact

IMAGE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
FOLDER = ASSETS / "report"
SECTIONS = tomllib.loads((FOLDER / "sections.toml").read_text("utf-8"))
TRIAL_NUMBERS = re.compile(r"\b[Tt]rial \d+(, \d+)*\b")  # such as "trial 7, 8"
PAGE_BEGIN = b"<!DOCTYPE html>"
FAINT = 0.2  # of the strongest word of a text; weaker ones are not shaded
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Absent(Block):
    """A sentence instead of something that is missing.

    Args:
        is_error: whether it is missing since it could not be drawn.
    """

    why: str
    is_error: bool = False


@dataclass(frozen=True)
class Paragraph(Block):
    """A paragraph of text.

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


@dataclass(frozen=True)
class Code(Block):
    """A command or a piece of Python, with a button that copies it."""

    text: str


class Facts(ItemsBlock[tuple[str, object]]):
    """Names with their values, a row each."""


@dataclass(frozen=True)
class Folded(Block):
    """A long text, folded below its title.

    Args:
        is_open: whether the page shows it unfolded at first.
    """

    title: str
    text: str
    is_open: bool = False


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
    def largest_correct(self) -> int:
        """The largest count on the diagonal, and at least 1."""
        return self._find_largest(on_diagonal=True)

    @cached_property
    def largest_wrong(self) -> int:
        """The largest count off the diagonal, and at least 1."""
        return self._find_largest(on_diagonal=False)

    def _find_largest(self, *, on_diagonal: bool) -> int:
        largest = 1
        for row, counts in enumerate(self.rows):
            for column, count in enumerate(counts):
                if (row == column) is on_diagonal:
                    largest = max(largest, count)
        return largest

    def shade(self, row: int, column: int) -> float:
        """Returns the shade of a cell, 0 to 1, relative to the others on or off the diagonal."""
        count = self.rows[row][column]
        if row == column:
            return count / self.largest_correct
        return count / self.largest_wrong


@dataclass(frozen=True)
class CaptionedImage:
    """An image with its caption below it.

    Args:
        source: a `data:` URL of a PNG file, which `is_embedded` has approved.
        label: the alternative text.
        strong: bold text after the caption.
        remark: quiet text after the bold one.
    """

    source: str
    label: str
    caption: str = ""
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
        for is_weak, weights in itertools.groupby(self.words, _is_weak):
            if is_weak:
                joined = " ".join(word for word, _ in weights)
                runs.append((joined, 0.0))
            else:
                runs += weights
        return runs


def _is_weak(weight_of_word: tuple[str, float]) -> bool:
    _, weight = weight_of_word
    return abs(weight) < FAINT


@dataclass(frozen=True)
class Cell:
    """A cell of the table of the trials: its text, and the value to sort by."""

    text: str
    value: object = None


@dataclass(frozen=True)
class Row:
    """A row of the table of the trials.

    Args:
        mark: `best`, `baseline` or `winner`, or several.
        more: further facts, from `trial_details`.
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
        is_text: whether it holds texts, not numbers.
        parameter: the full name of a hyperparameter, which the title may shorten; else "".
        order: `ascending` or `descending` if the rows are sorted by it; else "".
    """

    title: str
    is_text: bool
    parameter: str = ""
    order: str = ""


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
        group: the link of the navigation that it belongs to; empty if it has a link of its own.
    """

    key: str
    title: str
    blocks: Sequence[Block]
    caption: str = ""
    group: str = ""

    @property
    def is_absent(self) -> bool:
        """Returns whether all blocks are sentences that say why something is missing."""
        return all(isinstance(block, Absent) for block in self.blocks)

    @property
    def has_error(self) -> bool:
        """Returns whether something is missing since it could not be drawn."""
        return any(isinstance(block, Absent) and block.is_error for block in self.blocks)


@dataclass(frozen=True)
class LinkGroup:
    """A link of the navigation, with the sections to which its menu leads."""

    title: str
    sections: Sequence[Section]


def group_links(sections: Iterable[tuple[Section, object]]) -> list[LinkGroup]:
    """Groups sections for the navigation, in the order of the first section of each group.

    Args:
        sections: the sections of a page, each with its HTML.
    """
    sections_by_title: dict[str, list[Section]] = {}
    for section, _ in sections:
        title = section.group or section.title
        sections_by_title.setdefault(title, []).append(section)
    return [LinkGroup(title, members) for title, members in sections_by_title.items()]


def make_section(name: str, blocks: Sequence[Block], **values: object) -> Section:
    """Makes a section of sections.toml.

    Args:
        values: what is filled into its title and caption, by the name of the place.
    """
    entry = SECTIONS[name]
    title = str(entry.get("title", "")).format(**values)
    caption = str(entry.get("caption", "")).format(**values)
    key = entry.get("key", name)
    return Section(key, title, blocks, caption, entry.get("group", ""))


def make_part(name: str, blocks: Sequence[Block], **values: object) -> Part:
    """Makes a part of a section from an entry of sections.toml, with its caption first."""
    section = make_section(name, blocks, **values)
    caption = Paragraph(section.caption, "caption")
    return Part(section.title, [caption, *blocks], key=section.key)


@dataclass(frozen=True)
class Head:
    """The top of a report: the result in a sentence, what stands out, and facts in short.

    Args:
        searched: the hyperparameters with their options and ranges, in short; may be empty.
        advice: what an expert would say.
        image: all of it with the first figure, as SVG, to share.
    """

    name: str
    sentence: str
    blocks: Sequence[Block]
    facts: Sequence[Fact] = ()
    searched: str = ""
    advice: Sequence[Advice] = ()
    image: str = ""


def describe_drawing_error(error: Exception) -> str:
    """Says why something cannot be drawn."""
    return f"It cannot be drawn: {name_error(error)}"


def draw_figure(draw: Callable[P, Block | str], *args: P.args, **kwargs: P.kwargs) -> Block:
    """Draws a figure, or returns a sentence in its place.

    A figure that fails, as with values of 1e308 and -1e308, must not cost the rest of the report.

    Args:
        draw: returns the figure, or the sentence if there is nothing to draw.
    """
    try:
        figure = draw(*args, **kwargs)
    except StudyloomError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        return Absent(describe_drawing_error(error), is_error=True)
    if isinstance(figure, str):
        return Absent(figure)
    return figure


def is_embedded(source: object) -> TypeGuard[str]:
    """Returns whether a text is an embedded PNG: no image from another address is shown."""
    return isinstance(source, str) and IMAGE.fullmatch(source) is not None


POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {scripts}; "
    "connect-src {connect}; base-uri 'none'; form-action 'none'"
)


def make_safe(value: object) -> object:
    """Makes values from a study safe to show, and masks passwords; templates escape them."""
    if isinstance(value, Markup):
        return value
    return mask_passwords(printable(str(value)))


@cache
def environment() -> Environment:
    """Returns the environment of the templates, which escapes all values.

    A template tests the class of a block by `block is of "Chart"`. It puts data into a script by
    the filter `safe_data`, since values within a list or mapping are not escaped one by one.
    """
    templates = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        finalize=make_safe,  # masks passwords in each value, before the value is escaped
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.tests["of"] = lambda block, name: type(block).__name__ == name
    templates.filters |= {
        "dotted": _break_after_dots,
        "linked": _link_trials,
        "grouped": group_links,
        "safe_data": _make_data_safe,
    }
    return templates


def _break_after_dots(name: object) -> Markup:
    """Returns a name that a line break may split after each dot."""
    return Markup(".<wbr>").join(str(make_safe(name)).split("."))


def _link_trials(text: object) -> Markup:
    """Returns a text in which the numbers of trials, as in "trial 7, 8", link to their rows."""

    def link_numbers(match: re.Match[str]) -> str:
        return re.sub(r"\d+", r'<a href="#trial-\g<0>">\g<0></a>', match[0])

    return Markup(TRIAL_NUMBERS.sub(link_numbers, str(escape(make_safe(text)))))


def _make_data_safe(value: object) -> object:
    """Makes all strings in the data of a script safe to show."""
    if isinstance(value, str):
        return str(make_safe(value))
    if isinstance(value, Mapping):
        return {str(make_safe(key)): _make_data_safe(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_make_data_safe(item) for item in value]
    return value


def fill_template(template: str, **values: Any) -> Markup:
    """Renders a template as safe HTML."""
    return Markup(environment().get_template(template).render(**values).strip())


@cache
def _asset(name: str) -> Markup:
    """Returns a bundled style sheet or script, unescaped."""
    return Markup((FOLDER / name).read_text("utf-8"))


def _hash(script: str) -> str:
    """Returns the hash by which the content security policy allows an embedded script."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def fill_standalone(template: str, **values: object) -> str:
    """Renders a page that has the style sheet of reports, and no script."""
    policy = POLICY.format(scripts="'none'", connect="'none'")
    return fill_template(
        template, style=_asset("page.css"), policy=policy, version=__version__, **values
    )


def render_section(section: Section) -> Markup:
    """Renders a section as HTML."""
    return fill_template("section.html", section=section)


def check_page(path: Path) -> None:
    """Checks the path of `--page`, where only an HTML file of studyloom may be replaced.

    Raises:
        FileError: it is in no folder, or something else is there.
    """
    option = f"--page {printable(str(path))}"
    if not path.parent.is_dir():
        raise FileError(f"{option}: there is no folder {printable(str(path.parent))}; create it")
    if path.exists() and not path.is_file():
        raise FileError(f"{option}: is not a file, and stays unchanged; name a new file")
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


def render_report(head: Head, sections: Iterable[Section], run_dir: Path | None = None) -> str:
    """Renders the report of a study as self-contained HTML."""
    rendered = [(section, render_section(section)) for section in sections]
    return render_page(head.name, fill_template("head.html", head=head), rendered, run_dir=run_dir)


def render_page(
    name: str,
    head: Markup,
    sections: Sequence[tuple[Section, Markup]],
    live: Mapping[str, str] | None = None,
    progress: str = "",
    run_dir: Path | None = None,
) -> str:
    """Renders a report around its parts.

    Args:
        name: the title of the report.
        head: the top of the report, as HTML.
        sections: the sections, each with its HTML.
        live: the settings of the live report's script, which polls for changes; None for a static
            report.
        progress: the progress of the study, as HTML.
        run_dir: where trials can be replayed, if known.
    """
    scripts = [_asset("page.js")]
    connect_source = "'none'"  # where scripts may connect to, by the Content-Security-Policy
    if live is not None:
        scripts.append(_asset("live.js"))
        connect_source = "'self'"
    replay = ""
    if run_dir is not None:
        replay = f"studyloom replay {shlex.quote(str(run_dir))} --trial"
    return fill_template(
        "page.html",
        name=name,
        head=head,
        sections=sections,
        live=live,
        progress=Markup(progress),
        replay=replay,
        scripts=scripts,
        style=_asset("page.css"),
        policy=POLICY.format(scripts=" ".join(map(_hash, scripts)), connect=connect_source),
        version=__version__,
    )
