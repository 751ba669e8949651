"""`studyloom mcp`: a study for agents, over the Model Context Protocol on standard streams.

Each tool does what the command of its name does; only `propose` and `stop_trial`, which is
`studyloom stop --trial`, write. No tool takes a path.
As long as the search runs, no tool returns a value of the test set: an agent could choose
configurations by such a value, and they would be tested on the data that they were chosen by.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from studyloom._version import __version__
from studyloom.commands.options import open_run
from studyloom.errors import ConfigError, StudyloomError
from studyloom.extras.proposals import asking, queue
from studyloom.installation import pip_install
from studyloom.json_text import to_json
from studyloom.storage.stored_study import StoredStudy
from studyloom.text import mask_passwords, one_line, printable, shorten_end
from studyloom.views import charts, page
from studyloom.views.comparison import make_document, read_studies
from studyloom.views.progress_reader import ProgressReader
from studyloom.views.report import read_report
from studyloom.views.terminal_lines import align_rows
from studyloom.winner.result import Result
from studyloom.worker.stop_trial import stop_trial

try:
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import ToolAnnotations
except ImportError as error:
    raise ConfigError(f"mcp: {error}; {pip_install('mcp')}") from None

ABOUT = """\
A hyperparameter search. `ask` returns the objective, the search space and the trials so far;
`propose` queues a configuration, which is trained as any other trial; `stop_trial` ends one early.
Few of the trials may be proposed, and none once the test set has been used. The winner is chosen on
new seeds, and tested once after the search."""
MAX_REPORT_LENGTH = 100_000  # characters
Document = dict[str, Any]  # an object in JSON
# The columns of a comparison that are measured on the test set.
TEST_FIELDS = ("test", "std", "difference")


def serve(arguments: Any) -> None:
    """Serves a study until standard input ends.

    Args:
        arguments: those of `studyloom mcp`.

    Raises:
        ValueError: no study has run there, or its database cannot be used.
    """
    # Open the study once before serving, so that an error is printed where the command was typed.
    open_in(arguments.run_dirs[0], arguments).close()
    make_server(arguments).run("stdio")


def open_in(run_dir: Path, arguments: Any) -> StoredStudy:
    """Opens the study of a run directory, with the other options of the command line.

    They say whether an untrusted run directory may be opened.
    """
    options = copy.copy(arguments)
    options.run_dir = run_dir
    return open_run(options, asking.DEADLINE)


def make_server(arguments: Any) -> MCPServer[Any]:
    """Makes the server of the study of the first run directory; `compare` reads the others too.

    The docstring of each tool is sent to the agent, as the description of the tool.
    """
    server = MCPServer[Any](
        "studyloom", instructions=ABOUT, version=__version__, log_level="WARNING"
    )
    read_only = ToolAnnotations(read_only_hint=True)
    run_dir = arguments.run_dirs[0]

    @contextmanager
    def open_studies(run_dirs: Sequence[Path]) -> Iterator[list[StoredStudy]]:
        """Opens studies for one call of a tool; an error is sent to the agent as text."""
        try:
            with ExitStack() as stack:
                studies = []
                for folder in run_dirs:
                    study = open_in(folder, arguments)
                    studies.append(stack.enter_context(closing(study)))
                yield studies
        except (StudyloomError, OSError, ValueError) as error:
            raise ToolError(mask_passwords(printable(str(error)))) from None

    @server.tool(annotations=read_only)
    def ask(latest: int = 100) -> Document:
        """Returns the objective, the space as JSON Schema, how many proposals are left, and
        the latest trials.
        """
        with open_studies([run_dir]) as [stored]:
            context = asking.ask(stored)
        context["trials"] = context["trials"][-max(1, latest) :]
        return plain(context)

    @server.tool()
    def propose(configuration: Document, why: str = "") -> Document:
        """Queues a configuration of the space as a trial, and returns the number of the trial.

        Hyperparameters that `configuration` leaves out have their defaults. `why` is stored with
        the trial.
        """
        with open_studies([run_dir]) as [stored]:
            return {"trial": queue.propose(stored, configuration, arguments.by, why)}

    @server.tool(name="stop_trial")
    def stop(trial: int) -> Document:
        """Stops a trial that has not ended, such as one whose curve shows no promise. It ends as
        pruned: at its next report if a worker trains it (`requested`), else now (`ended`). It still
        counts toward the budget.
        """
        with open_studies([run_dir]) as [stored]:
            return {"trial": trial, "outcome": stop_trial(stored, trial)}

    @server.tool(annotations=read_only)
    def status() -> Document:
        """Returns how far the search is: trials by state, the best one, workers, the time left."""
        with open_studies([run_dir]) as [stored]:
            state = asdict(ProgressReader(stored).status().document())
            if hides_test(stored):
                state["result"] = None
            return plain(state)

    @server.tool(annotations=read_only)
    def compare() -> Document:
        """Compares this study with the others of the server's run directories: what each found,
        and at what cost. The server must have been started with two to seven of them.
        """
        if len(arguments.run_dirs) < 2:
            raise ToolError(
                "compare needs two run directories or more, and this server has one; start it as "
                "studyloom mcp RUN_DIR OTHER_RUN_DIR"
            )
        with open_studies(arguments.run_dirs) as studies:
            folders_and_studies = [*zip(arguments.run_dirs, studies, strict=True)]
            comparison = make_document(read_studies(folders_and_studies))
            served_study = studies[0]
            if hides_test(served_study):  # the agent may still propose trials of it
                for row in comparison["studies"]:
                    for name in TEST_FIELDS:
                        row[name] = None
            return plain(comparison)

    @server.tool(annotations=read_only)
    def report() -> str:
        """Returns the report as text: importances, the course of the search, proposals."""
        with open_studies([run_dir]) as [stored]:
            text = "\n".join(report_lines(stored, run_dir))
            return shorten_end(str(page.make_safe(text)), MAX_REPORT_LENGTH)

    return server


def plain(document: Document) -> Document:
    """Returns a document as `--json` prints it: of plain values, and numbers as JSON has them."""
    plain_document: Document = json.loads(to_json(document))
    return plain_document


def hides_test(stored: StoredStudy) -> bool:
    """Returns True while the search still has trials to run: no test value may be shown."""
    search = ProgressReader(stored).read().stages[0]
    return search.left > 0


def report_lines(stored: StoredStudy, run_dir: Path) -> Iterator[str]:
    """Yields the report as lines of text, without the trials, which `ask` returns."""
    result = None
    if not hides_test(stored):
        result = Result.read(run_dir, stored)
    report = read_report(stored, result)
    yield report.head.name
    yield report.head.sentence
    for fact in report.head.facts:
        yield str(fact)
    for block in report.head.blocks:
        yield from _list_lines(block)
    for section in report.sections:
        if section.key == "trials":
            continue
        yield ""
        yield f"# {section.title}"
        yield section.caption
        for block in section.blocks:
            yield from _list_lines(block)


def _list_lines(block: charts.Block) -> Iterator[str]:
    """Yields a block of the report as lines of text, except images and the table of trials."""
    match block:
        case page.Absent(text) | page.Paragraph(text):
            yield text
        case page.Lines(lines):
            yield from lines
        case page.Facts(rows):
            for name, value in rows:
                yield f"{name}: {value}"
        case page.Bars(shares):
            for name, share in shares:
                yield f"{name}: {share:.0%}"
        case page.Part(title, blocks, remark):
            yield f"{title} {remark}"
            for inner_block in blocks:
                yield from _list_lines(inner_block)
        case charts.PageTable(head, rows, text_columns):
            text_rows = []
            for row in (head, *rows):
                text_rows.append([one_line(str(cell)) for cell in row])
            yield from align_rows(text_rows, text_columns)
        case charts.Chart(label=label, table=table):
            yield label
            yield from _list_lines(table)
        case charts.Multiples(small_charts):
            for chart in small_charts.values():
                yield from _list_lines(chart)
