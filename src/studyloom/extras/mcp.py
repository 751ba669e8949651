"""`studyloom mcp`: a study for agents, over the Model Context Protocol on standard streams.

Each tool is what the command of its name does, and only `propose` writes. No tool takes a path. As
long as the search runs, no tool returns a value of the test set: configurations chosen by it would
be tested on data that they were chosen by.
"""

import copy
import json
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from studyloom._version import __version__
from studyloom.commands.options import open_run
from studyloom.errors import ConfigError, StudyloomError
from studyloom.extras.proposals import asking, queue
from studyloom.installation import pip_install
from studyloom.storage.stored_study import StoredStudy
from studyloom.text import mask_passwords, one_line, printable, shorten_end
from studyloom.views import page
from studyloom.views.comparison import document, read_studies
from studyloom.views.figures import Block, Chart, Multiples, PageTable
from studyloom.views.progress import ProgressReader, to_json
from studyloom.views.report import read_report
from studyloom.views.terminal import aligned
from studyloom.winner.result import RunFiles

try:
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import ToolAnnotations
except ImportError as error:
    raise ConfigError(f"mcp: {error}; {pip_install('mcp')}") from None

ABOUT = """\
A hyperparameter search. `ask` returns the objective, the search space and the trials so far;
`propose` queues a configuration, which is trained as any other trial. Few of the trials may be
proposed, and none once the test set has been used. The winner is chosen on new seeds, and tested
once after the search."""
LONGEST = 100_000  # characters of a report
TEST_FIELDS = ("test", "std", "difference")  # what of a comparison is measured on the test set


def serve(arguments: Any) -> None:
    """Serves a study until standard input ends.

    Args:
        arguments: of `studyloom mcp`.

    Raises:
        ValueError: no study has run there, or its database cannot be used.
    """
    open_in(arguments.run_dirs[0], arguments).close()
    make_server(arguments).run("stdio")


def open_in(run_dir: Path, arguments: Any) -> StoredStudy:
    """Opens the study of a run directory, with the consent of the command line."""
    own = copy.copy(arguments)
    own.run_dir = run_dir
    return open_run(own, asking.DEADLINE)


def make_server(arguments: Any) -> MCPServer[Any]:
    """Makes the server of the study of the first run directory; `compare` reads the others too."""
    server = MCPServer[Any](
        "studyloom", instructions=ABOUT, version=__version__, log_level="WARNING"
    )
    reading, (own, *_) = ToolAnnotations(read_only_hint=True), arguments.run_dirs

    @contextmanager
    def opened(*run_dirs: Path) -> Iterator[list[StoredStudy]]:
        try:
            with ExitStack() as stack:
                yield [stack.enter_context(closing(open_in(each, arguments))) for each in run_dirs]
        except (StudyloomError, OSError, ValueError) as error:
            raise ToolError(mask_passwords(printable(str(error)))) from None

    @server.tool(annotations=reading)
    def ask(latest: int = 100) -> dict[str, Any]:
        """Returns the objective, the space as JSON Schema, how many proposals are left, and
        the latest trials.
        """
        with opened(own) as [stored]:
            asked = asking.ask(stored)
        return plain(asked | {"trials": asked["trials"][-max(1, latest) :]})

    @server.tool()
    def propose(point: dict[str, Any], why: str = "") -> dict[str, Any]:
        """Queues a configuration of the space as a trial, and returns the number of the trial.

        Hyperparameters that `point` leaves out have their defaults. `why` is stored with the trial.
        """
        with opened(own) as [stored]:
            return {"trial": queue.propose(stored, point, arguments.by, why)}

    @server.tool(annotations=reading)
    def status() -> dict[str, Any]:
        """Returns how far the search is: trials by state, the best one, workers, the time left."""
        with opened(own) as [stored]:
            shown = asdict(ProgressReader(stored).status().document())
            return plain(shown | ({"result": None} if hides_test(stored) else {}))

    @server.tool(annotations=reading)
    def compare() -> dict[str, Any]:
        """Compares this study with the others of the server's run directories: what each found,
        and at what cost. The server must have been started with two to seven of them.
        """
        if len(arguments.run_dirs) < 2:
            raise ToolError(
                "compare needs two run directories or more, and this server has one; start it as "
                "studyloom mcp RUN_DIR OTHER_RUN_DIR"
            )
        with opened(*arguments.run_dirs) as studies:
            compared = document(read_studies([*zip(arguments.run_dirs, studies, strict=True)]))
            for each in compared["studies"] if hides_test(studies[0]) else ():
                each |= dict.fromkeys(TEST_FIELDS)
            return plain(compared)

    @server.tool(annotations=reading)
    def report() -> str:
        """Returns the report as text: importances, the course of the search, proposals."""
        with opened(own) as [stored]:
            return shorten_end(str(page.shown("\n".join(report_lines(stored, own)))), LONGEST)

    return server


def plain(found: dict[str, Any]) -> dict[str, Any]:
    """Returns a document as `--json` prints it."""
    document: dict[str, Any] = json.loads(to_json(found))
    return document


def hides_test(stored: StoredStudy) -> bool:
    """Whether trials of the search are still to come, so that no test value may be shown."""
    return ProgressReader(stored).read().stages[0].left > 0


def report_lines(stored: StoredStudy, run_dir: Path) -> Iterator[str]:
    """Yields the report as lines of text, without the trials, which `ask` returns."""
    files = RunFiles() if hides_test(stored) else RunFiles.read(stored, run_dir)
    head, sections = read_report(stored, replace(files, configs=""))
    yield from (head.name, head.sentence, *map(str, head.facts))
    for block in head.blocks:
        yield from _lines(block)
    for section in (each for each in sections if each.key != "trials"):
        yield from ("", f"# {section.title}", section.caption)
        for block in section.blocks:
            yield from _lines(block)


def _lines(block: Block) -> Iterator[str]:
    """Yields a block of the report as lines of text, except images and the table of trials."""
    match block:
        case page.Absent(text) | page.Words(text):
            yield text
        case page.Lines(lines):
            yield from lines
        case page.Facts(rows):
            yield from (f"{name}: {value}" for name, value in rows)
        case page.Bars(shares):
            yield from (f"{name}: {share:.0%}" for name, share in shares)
        case page.Part(title, blocks, remark):
            yield f"{title} {remark}"
            for inner in blocks:
                yield from _lines(inner)
        case PageTable(head, rows, words):
            yield from aligned(
                [[one_line(str(cell)) for cell in row] for row in (head, *rows)], words
            )
        case Chart(label=label, table=table):
            yield label
            yield from _lines(table)
        case Multiples(charts):
            for chart in charts.values():
                yield from _lines(chart)
