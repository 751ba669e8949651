"""The `studyloom` command: begins a study, and looks at those that exist. A study's page runs it."""

import argparse
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from studyloom import __version__
from studyloom.errors import print_errors

if TYPE_CHECKING:
    from studyloom.study.stored_study import StoredStudy

# Imports stand in the functions: torch, Optuna and Hydra take two seconds, which `--help` need not
# wait for.


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command of `studyloom`.

    Returns:
        The exit code: 0; 1 where a replay comes out differently; 2 with a line on what is wrong.
    """
    arguments = make_parser().parse_args(argv)
    try:
        return arguments.act(arguments) or 0
    except KeyboardInterrupt:
        return 0 if getattr(arguments, "watch", False) else 130
    except BrokenPipeError:  # whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print_errors(error)
        return 2


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line; `act` of what it gives is the function that does the work."""
    parser = argparse.ArgumentParser(
        prog="studyloom",
        description="Begins studies and looks at them. "
        "A study is run by its page: python -m studies.mnist",
    )
    parser.add_argument("--version", action="version", version=f"studyloom {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, act: Callable[..., int | None], about: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about)
        command.set_defaults(act=act)
        return command

    def add_run_dir(command: argparse.ArgumentParser) -> None:
        about = "where the study runs, such as runs/mnist"
        command.add_argument("run_dir", metavar="RUN_DIR", type=Path, help=about)

    def add_trust(command: argparse.ArgumentParser, about: str) -> None:
        command.add_argument("--trust", metavar="PACKAGE", action="append", default=[], help=about)

    command = add("new", new, "write a study of your own, which runs as it is")
    about = "of the study and its page, as in python -m studies.NAME"
    command.add_argument("name", metavar="NAME", help=about)
    about = "else the current one"
    command.add_argument(
        "folder", metavar="FOLDER", type=Path, nargs="?", default=Path(), help=about
    )
    command = add("status", status, "trials by state, best, workers, what matters, time left")
    add_run_dir(command)
    about = "go on, until the budget is spent or Ctrl-C"
    command.add_argument("--watch", action="store_true", help=about)
    about = "one JSON object; with --watch a line for each change"
    command.add_argument("--json", action="store_true", help=about)
    add_run_dir(add("report", report, "write report.html, one page with all that was found"))
    about = "choose and test the winner of a search that has ended, once more"
    add_run_dir(add("winner", winner, about))
    command = add("predict", predict, "what the winner says of pictures, arrays or numbers")
    about = "where winner.json, winner.yaml and winner.pt lie"
    command.add_argument("run_dir", metavar="RUN_DIR", type=Path, help=about)
    about = "a picture or an IDX file; a .npy file; else a CSV file with a line for each input"
    command.add_argument("files", metavar="FILE", type=Path, nargs="+", help=about)
    add_trust(command, "a package that its winner.yaml may name; what it names there is executed")
    command = add("replay", replay, "train a trial again, and compare it epoch by epoch")
    add_run_dir(command)
    command.add_argument("--trial", metavar="NUMBER", type=int, required=True)
    add_trust(command, "also call what the trial names of your own")
    command = add("doctor", doctor, "whether database, disks and machine are fit for a study")
    place = command.add_mutually_exclusive_group(required=True)
    about = "where a study runs, such as runs/mnist"
    place.add_argument("run_dir", metavar="RUN_DIR", type=Path, nargs="?", help=about)
    place.add_argument(
        "--storage", metavar="URL", help="a database, such as postgresql://user@host/name"
    )
    add_dashboard(add("dashboard", dashboard, "optuna-dashboard on a study, in the browser"))
    return parser


def add_dashboard(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `studyloom dashboard`."""
    place = command.add_mutually_exclusive_group()
    about = "where the study runs"
    place.add_argument("run_dir", metavar="RUN_DIR", type=Path, nargs="?", help=about)
    about = "a database; without it, that of STUDYLOOM_STORAGE"
    place.add_argument("--storage", metavar="URL", help=about)
    command.add_argument("--study", metavar="NAME", help="a study there, if it holds several")
    about = "the name of this machine for others; needs a token"
    command.add_argument("--host", default="127.0.0.1", help=about)
    about = "or the next free one (default: 8080)"
    command.add_argument("--port", type=int, default=8080, help=about)
    about = "what to ask of browsers; else STUDYLOOM_DASHBOARD_TOKEN, which `ps` hides"
    command.add_argument("--token", help=about)


def new(arguments: argparse.Namespace) -> None:
    """Writes a study and prints what was written."""
    from studyloom.config.scaffold import write_study

    written = write_study(arguments.name, arguments.folder)
    width = max(len(str(path)) for path in written)
    for path, about in written.items():
        print(f"{path!s:{width}}  {about}")
    folder = arguments.folder
    begin = "" if folder == Path() else f"cd {shlex.quote(str(folder))} && "
    print(f"\nnext  {begin}python -m studies.{arguments.name}")


def locate_study(run_dir: Path) -> tuple[str, str]:
    """The storage URL and the name of the study that runs in a folder.

    An embedded server that the study has there runs for as long as this process.
    """
    from studyloom.config.runs import read_run
    from studyloom.storage.embedded_server import serve

    url, name = read_run(run_dir)
    return serve(url), name


def open_run(run_dir: Path, deadline: float = 0.0) -> "StoredStudy":
    """The study that runs in a folder."""
    from studyloom.study.stored_study import open_study

    url, name = locate_study(run_dir)
    return open_study(url, name, deadline=deadline)


def status(arguments: argparse.Namespace) -> None:
    """Prints where a study stands."""
    from studyloom.views import status
    from studyloom.views.terminal import make_console

    # A shell has Ctrl-C ignored for what it starts with &.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A look that waits for the database is no outage.
    logging.getLogger("studyloom").setLevel(logging.ERROR)
    stored, console = open_run(arguments.run_dir, status.DATABASE_DEADLINE), make_console()

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    match arguments.watch, arguments.json:
        case False, False:
            status.print_status(status.read_status(stored), console)
        case False, True:
            write(f"{status.as_json(status.read_status(stored))}\n")
        case True, False:
            status.watch(stored, console)
        case True, True:
            status.watch_json(stored, write)


def report(arguments: argparse.Namespace) -> None:
    """Writes the report of a study and prints its path."""
    from studyloom.views.report import write_report

    print(write_report(open_run(arguments.run_dir), arguments.run_dir))


def winner(arguments: argparse.Namespace) -> None:
    """Chooses and tests the winner; stored trainings are reused, and the test is done again."""
    from studyloom.config.runs import recompose
    from studyloom.run import judge

    with recompose(arguments.run_dir, "winner.enabled=true", "launcher=join") as cfg:
        judge(cfg)


def predict(arguments: argparse.Namespace) -> None:
    """Prints the class of each input and how sure the network is, or the numbers it predicts."""
    from studyloom.winner.prediction import load_network, predict

    for answer in predict(load_network(arguments.run_dir, arguments.trust), arguments.files):
        print(answer)


def replay(arguments: argparse.Namespace) -> int:
    """Trains a trial again; 0 where it comes out the same, 1 where not."""
    from studyloom.views.replay import replay
    from studyloom.views.terminal import make_console

    stored = open_run(arguments.run_dir)
    if arguments.trust:
        # As `python -m studies.mine` does; last, so that nothing here hides other packages.
        sys.path.append(os.getcwd())
    return replay(stored, arguments.run_dir, arguments.trial, arguments.trust, make_console())


def doctor(arguments: argparse.Namespace) -> int:
    """Prints what is fit for a study and what is not."""
    from studyloom.views.doctor import show

    url = arguments.storage or locate_study(arguments.run_dir)[0]
    return show(url, arguments.run_dir)


def dashboard(arguments: argparse.Namespace) -> None:
    """Serves optuna-dashboard on a study."""
    from studyloom.views.dashboard import open_only_study, serve
    from studyloom.views.snapshot import take_snapshot
    from studyloom.views.terminal import headline, make_console

    url = arguments.storage or os.environ.get("STUDYLOOM_STORAGE")
    name = arguments.study
    if arguments.run_dir is not None:
        url, name = locate_study(arguments.run_dir)
    if not url:
        raise ValueError(
            "which study is not said: name a RUN_DIR, or a database with --storage or "
            "STUDYLOOM_STORAGE"
        )
    token = arguments.token
    if token is None:
        token = os.environ.get("STUDYLOOM_DASHBOARD_TOKEN")
    stored = open_only_study(url, name)
    title = headline(take_snapshot(stored))
    host, port = arguments.host, arguments.port
    serve(stored, arguments.run_dir, title, host, port, token, make_console())
