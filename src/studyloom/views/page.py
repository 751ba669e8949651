"""Pages from sections of blocks, by templates of Jinja2.

Blocks hold text and numbers, never HTML: the templates escape whatever they are given. A page needs
no other file and no network, and its own policy forbids both, as well as all scripts but those that
it holds.
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
from studyloom.errors import StudyloomError
from studyloom.files import ASSETS
from studyloom.text import format_error, format_value, mask_passwords, name_error, printable
from studyloom.views.figures import Block
from studyloom.winner.result import Summary

PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
FOLDER = ASSETS / "report"
SECTIONS = tomllib.loads((FOLDER / "sections.toml").read_text("utf-8"))
NUMBERED = re.compile(r"\b[Tt]rial \d+(, \d+)*\b")
FAINT = 0.2  # of the strongest word of a text; weaker ones are not shaded
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Absent(Block):
    """A sentence in place of something that is missing."""

    why: str


@dataclass(frozen=True)
class Words(Block):
    """A paragraph; its kind is `bad`, `quiet` or `parameters`, or empty for plain words."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class ItemsBlock(Block, Generic[T]):
    """Several things of one kind, shown as the name of the class says."""

    items: Sequence[T]


class Lines(ItemsBlock[str]):
    """A list of short lines."""


class Facts(ItemsBlock[tuple[str, object]]):
    """Names with what belongs to them, a row each."""


@dataclass(frozen=True)
class Card:
    """A number that is read at a glance.

    Args:
        aside: what follows it in small print, such as ± its deviation.
        note: how it came about.
    """

    title: str
    value: str
    aside: str = ""
    note: str = ""


class NumberCards(ItemsBlock[Card]):
    """Cards side by side."""


@dataclass(frozen=True)
class Folded(Block):
    """A long text that is folded away below its title."""

    title: str
    text: str


@dataclass(frozen=True)
class Part(Block):
    """Blocks below a heading of their own, with a quiet remark beside it."""

    title: str
    blocks: Sequence[Block]
    remark: str = ""


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
        """The largest count on the diagonal, under True, and the largest beside it."""
        most = {True: 1, False: 1}
        for row, counts in enumerate(self.rows):
            for column, count in enumerate(counts):
                most[row == column] = max(most[row == column], count)
        return most

    def shade(self, row: int, column: int) -> float:
        """Returns how dark a cell is, from 0 to 1, beside the others on the diagonal, or off it."""
        return self.rows[row][column] / self.most[row == column]


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture with words below it.

    Args:
        source: a `data:` URL of a PNG file, which `is_embedded` has approved.
        label: what it is, for whoever does not see it.
        strong: what stands out behind the words.
    """

    source: str
    label: str
    words: str = ""
    strong: str = ""
    remark: str = ""


class Pictures(ItemsBlock[CaptionedPicture]):
    """Pictures side by side."""


@dataclass(frozen=True)
class Shaded(Block):
    """A text whose words are shaded by what they spoke for.

    Args:
        words: each with its weight, from -1 to 1: above 0 if it spoke for the answer, which was
            wrong, below 0 if for the right one.
    """

    words: Sequence[tuple[str, float]]

    @property
    def runs(self) -> list[tuple[str, float]]:
        """The words, where neighbours of next to no weight are joined into one of weight 0."""
        runs: list[tuple[str, float]] = []
        for strong, group in itertools.groupby(self.words, lambda pair: abs(pair[1]) >= FAINT):
            pairs = [*group]
            runs += pairs if strong else [(" ".join(word for word, _ in pairs), 0.0)]
        return runs


@dataclass(frozen=True)
class Cell:
    """A cell of the table of the trials: what is written there, and the value behind it."""

    shown: str
    value: Any = None


@dataclass(frozen=True)
class Row:
    """A row of the table of the trials.

    Args:
        mark: `best`, `baseline` or `winner`, or several.
        more: what `report.trial_details` tells beside the cells.
    """

    number: int
    state: str
    cells: Sequence[Cell]
    mark: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trials(Block):
    """The table of all trials, which can be sorted, filtered and saved as CSV.

    Args:
        words: the columns whose cells are words.
        parameters: the columns whose cells are parameters.
    """

    head: Sequence[str]
    words: Sequence[int]
    rows: Sequence[Row]
    parameters: Sequence[int] = ()


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Args:
        key: its id, which names it for good: letters and hyphens.
        caption: how to read it; left out if all of the section is absent.
    """

    key: str
    title: str
    blocks: Sequence[Block]
    caption: str = ""

    @property
    def is_absent(self) -> bool:
        """Whether there is nothing but sentences that say why."""
        return all(isinstance(block, Absent) for block in self.blocks)


def section(name: str, blocks: Sequence[Block], **words: object) -> Section:
    """Makes a section of sections.toml, whose title and caption have these words filled in."""
    known = SECTIONS[name]
    title, caption = (str(known.get(key, "")).format(**words) for key in ("title", "caption"))
    return Section(known.get("key", name), title, blocks, caption)


@dataclass(frozen=True)
class Head:
    """The beginning of a page: the answer in a sentence, and what it rests on."""

    name: str
    sentence: str
    blocks: list[Block]


def undrawn(error: Exception) -> str:
    """Words why something is not drawn."""
    return f"It cannot be drawn: {name_error(error)}"


def drawn(draw: Callable[P, Block | str], *args: P.args, **kwargs: P.kwargs) -> Block:
    """Draws a figure; what cannot be drawn, as of values of 1e308 and -1e308, is a sentence."""
    try:
        figure = draw(*args, **kwargs)
    except StudyloomError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        figure = undrawn(error)
    return Absent(figure) if isinstance(figure, str) else figure


def number(value: object, sign: str = "") -> str:
    """Formats a number for people, with a real minus; a dash for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–"
    return format_value(value, sign).replace("-", "−")


def spread(values: Summary | None) -> tuple[str, str]:
    """Formats a mean, and ± its standard deviation, "" where that is not known."""
    if values is None:
        return "–", ""
    mean = number(values.mean)
    known = values.std is not None and not values.same
    return mean, f"± {format_error(values.std or 0.0, mean)}" if known else ""


def is_embedded(source: object) -> TypeGuard[str]:
    """Whether a text is a PNG file that the page holds itself: no other address is shown."""
    return isinstance(source, str) and PICTURE.fullmatch(source) is not None


POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {scripts}; "
    "connect-src {connect}; base-uri 'none'; form-action 'none'"
)


def shown(value: Any) -> Any:
    """Makes whatever comes from a study safe to show, and masks passwords; templates escape it."""
    return value if isinstance(value, Markup) else mask_passwords(printable(str(value)))


@cache
def environment() -> Environment:
    """Returns the environment of the templates, in which escaping is on."""
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
    """Returns a name that may be broken after each dot."""
    return Markup(".<wbr>").join(str(shown(name)).split("."))


def _linked(words: Any) -> Markup:
    """Returns words in which the number of each trial leads to it."""

    def link(found: re.Match[str]) -> str:
        return re.sub(r"\d+", r'<a href="#trial-\g<0>">\g<0></a>', found[0])

    return Markup(NUMBERED.sub(link, str(escape(shown(words)))))


def _safe_data(value: Any) -> Any:
    """Makes all texts in what is given to the page's script safe to show."""
    match value:
        case str():
            return str(shown(value))
        case Mapping():
            return {str(shown(key)): _safe_data(each) for key, each in value.items()}
        case Sequence():
            return [_safe_data(each) for each in value]
    return value


def fill(template: str, **values: Any) -> Markup:
    """Fills a template in, and returns safe HTML."""
    return Markup(environment().get_template(template).render(**values).strip())


@cache
def _asset(name: str) -> Markup:
    """Returns a style sheet or script of ours, as it stands."""
    return Markup((FOLDER / name).read_text("utf-8"))


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def section_html(section: Section) -> Markup:
    return fill("section.html", section=section)


def report_page(head: Head, sections: Iterable[Section], run_dir: Path | None = None) -> str:
    """Renders the page of a study, which needs no other file."""
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
    """Renders a page around its parts.

    Args:
        live: what the script of a page that follows its study is told; None for one that stands.
        run_dir: in which a trial can be replayed, if one is known.
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
