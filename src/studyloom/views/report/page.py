"""Pages from blocks: Jinja2's templates, which escape whatever they are given.

A page needs no other file and no network, and its own policy forbids both, as well as all scripts
but those that it holds.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from studyloom._version import __version__
from studyloom.files import ASSETS
from studyloom.text import mask_passwords, printable
from studyloom.views.figures.chart import LETTER, SIZE, Chart, Scale, Tick
from studyloom.views.report.answer import Head
from studyloom.views.report.blocks import Row, Section

NO_PROGRESS = Markup("")
FOLDER = ASSETS / "report"
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
    made.filters["scale"] = _scale
    made.filters["share"] = _share
    made.filters["gutter"] = gutter
    made.filters["mark"] = _is_read
    made.filters["edge"] = _edge
    made.filters["dotted"] = _dotted
    return made


def _scale(scale: Scale) -> Mapping[str, Any]:
    """Returns what the page's script needs to read values from a scale."""
    words = [shown(tick.label) for tick in scale.ticks] if scale.reads == "words" else []
    title = shown(scale.title)
    return {
        "low": scale.low,
        "high": scale.high,
        "title": title,
        "reads": scale.reads,
        "words": words,
    }


def _share(scale: Scale, at: float) -> str:
    """Returns where a coordinate is drawn, in percent."""
    return f"{100 * scale.place(at) / SIZE:.2f}"


def _edge(scale: Scale, tick: Tick) -> str:
    """Returns the class of a long label at an end of its axis, which must not stand out."""
    place = scale.place(tick.at) / SIZE
    if len(tick.label) < 7 or 0.04 < place < 0.96:
        return ""
    return " first" if place < 0.5 else " last"


def _dotted(name: Any) -> Markup:
    """Returns a name that may be broken after each dot."""
    return Markup(".<wbr>").join(str(shown(name)).split("."))


def _is_read(chart: Chart) -> list[tuple[Any, str, bool]]:
    """Returns each mark of a chart, its path, and whether the pointer reads its points."""
    return [
        (mark, chart.path(mark), bool(mark.trials) or not {"dotted", "stepped"} & {*mark.style})
        for mark in chart.marks
    ]


def gutter(chart: Chart) -> int:
    """Returns the pixels that the labels of a chart's vertical axis take."""
    longest = max((len(tick.label) for tick in chart.y.ticks), default=0)
    return round(LETTER * longest + 8) if longest else 2


@cache
def asset(name: str) -> Markup:
    """Returns a style sheet or script of ours, as it stands."""
    return Markup((FOLDER / name).read_text("utf-8"))


def policy(scripts: Iterable[str], connect: str = "'none'") -> str:
    """Returns the policy of a page: only these scripts, and a network as given.

    Args:
        scripts: the texts of the scripts that it holds.
        connect: what its scripts may connect to.
    """
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    return POLICY.format(scripts=hashes, connect=connect)


@dataclass(frozen=True)
class Rendered:
    """A section as HTML.

    Args:
        key: its id.
        title: its heading.
        html: all of it.
    """

    key: str
    title: str
    html: Markup


def report_page(head: Head, sections: Iterable[Section]) -> str:
    """Renders the page of a study, which needs no other file.

    Args:
        head: its beginning.
        sections: what is below.
    """
    return document(head.name, head_html(head), [render_section(section) for section in sections])


def document(
    name: str,
    head: Markup,
    sections: Sequence[Rendered],
    live: Mapping[str, str] | None = None,
    progress: Markup = NO_PROGRESS,
) -> str:
    """Renders a page around its parts.

    Args:
        name: its title.
        head: its beginning.
        sections: what is below.
        live: of a page that is served: what its script needs to follow the study, by the name of
            the attribute; None for a page that needs no other file.
        progress: how far the job has come, of a page that is served.
    """
    scripts = [asset("page.js")] + ([asset("live.js")] if live is not None else [])
    template = environment().get_template("page.html")
    return template.render(
        name=name,
        head=head,
        sections=sections,
        live=live,
        progress=progress,
        scripts=scripts,
        style=asset("page.css"),
        policy=policy(scripts, "'none'" if live is None else "'self'"),
        version=__version__,
    )


def head_html(head: Head) -> Markup:
    """Renders the beginning of a page alone."""
    return Markup(environment().get_template("head.html").render(head=head))


def section_html(section: Section) -> Markup:
    """Renders a section alone."""
    return Markup(environment().get_template("section.html").render(section=section).strip())


def render_section(section: Section) -> Rendered:
    """Renders a section, with the title by which the page's list names it."""
    return Rendered(section.key, section.title, section_html(section))


def row_html(row: Row, words: Sequence[int]) -> Markup:
    """Renders a row of the table of trials alone.

    Args:
        row: the row.
        words: the columns whose cells are words.
    """
    return Markup(environment().get_template("row.html").render(row=row, words=words).strip())


def progress_html(done: int, budget: int, words: Sequence[str]) -> Markup:
    """Renders how far a job has come.

    Args:
        done: trials of all stages that have ended.
        budget: trials of all stages.
        words: the stage, what has been spent and what is left.
    """
    template = environment().get_template("progress.html")
    return Markup(template.render(done=done, budget=budget, words=words).strip())


def nav_html(sections: Sequence[Rendered]) -> Markup:
    """Renders the list of a page's sections alone."""
    return Markup(environment().get_template("nav.html").render(sections=sections))
