"""The `studyloom` command: begins a study, and asks of those that are there. They are run by their own pages."""

import argparse
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from studyloom import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command of `studyloom`; 0, 1 where a replay comes out differently, or 2 with a line on what is wrong."""
    parser = argparse.ArgumentParser(
        prog="studyloom",
        description="Begins studies and looks at them. A study is run by its page: python -m studies.mnist",
    )
    parser.add_argument("--version", action="version", version=f"studyloom {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    command = commands.add_parser("new", help="write a study of your own, which runs as it is")
    command.add_argument("name", metavar="NAME", help="of the study and its page, as in python -m studies.NAME")
    command.add_argument("folder", metavar="FOLDER", type=Path, nargs="?", default=Path(), help="else the current one")
    command.set_defaults(act=new)
    command = commands.add_parser("status", help="trials by state, best, workers, what matters, time left")
    command.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="where the study runs, such as runs/mnist")
    command.add_argument("--watch", action="store_true", help="go on, until the budget is spent or Ctrl-C")
    command.add_argument("--json", action="store_true", help="one JSON object; with --watch a line for each change")
    command.set_defaults(act=status)
    command = commands.add_parser("report", help="write report.html, one page with all that was found")
    command.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="where the study runs, such as runs/mnist")
    command.set_defaults(act=report)
    command = commands.add_parser("winner", help="choose and test the winner of a search that has ended, once more")
    command.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="where the study runs, such as runs/mnist")
    command.set_defaults(act=winner)
    command = commands.add_parser("predict", help="what the winner says of pictures, arrays or lines of numbers")
    command.add_argument(
        "run_dir", metavar="RUN_DIR", type=Path, help="where winner.json, winner.yaml and winner.pt lie"
    )
    about = "a picture or an IDX file; a .npy file; else a CSV file with a line for each input"
    command.add_argument("files", metavar="FILE", type=Path, nargs="+", help=about)
    trust = "a package that its winner.yaml may name; what it names there is executed"
    command.add_argument("--trust", metavar="PACKAGE", action="append", default=[], help=trust)
    command.set_defaults(act=predict)
    command = commands.add_parser("replay", help="train a trial again, and compare it epoch by epoch")
    command.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="where the study runs, such as runs/mnist")
    command.add_argument("--trial", metavar="NUMBER", type=int, required=True)
    command.add_argument(
        "--trust", metavar="PACKAGE", action="append", default=[], help="also call what the trial names of your own"
    )
    command.set_defaults(act=replay)
    command = commands.add_parser("doctor", help="whether database, disks and machine are fit for a study")
    place = command.add_mutually_exclusive_group(required=True)
    place.add_argument(
        "run_dir", metavar="RUN_DIR", type=Path, nargs="?", help="where a study runs, such as runs/mnist"
    )
    place.add_argument("--storage", metavar="URL", help="a database, such as postgresql://user@host/name")
    command.set_defaults(act=doctor)
    command = commands.add_parser("dashboard", help="optuna-dashboard on a study, in the browser")
    place = command.add_mutually_exclusive_group()
    place.add_argument("run_dir", metavar="RUN_DIR", type=Path, nargs="?", help="where the study runs")
    place.add_argument("--storage", metavar="URL", help="a database; without it, that of STUDYLOOM_STORAGE")
    command.add_argument("--study", metavar="NAME", help="a study there, if it holds several")
    command.add_argument("--host", default="127.0.0.1", help="the name of this machine for others; needs a token")
    command.add_argument("--port", type=int, default=8080, help="or the next free one (default: 8080)")
    command.add_argument("--token", help="what to ask of browsers; else STUDYLOOM_DASHBOARD_TOKEN, which `ps` hides")
    command.set_defaults(act=dashboard)
    arguments = parser.parse_args(argv)
    try:
        return arguments.act(arguments) or 0
    except KeyboardInterrupt:
        return 0 if getattr(arguments, "watch", False) else 130
    except BrokenPipeError:  # whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def new(arguments: argparse.Namespace) -> None:
    """Writes a study and prints what was written."""
    from studyloom.scaffold import write

    written = write(arguments.name, arguments.folder)
    width = max(len(str(path)) for path in written)
    for path, about in written.items():
        print(f"{path!s:{width}}  {about}")
    begin = "" if arguments.folder == Path() else f"cd {shlex.quote(str(arguments.folder))} && "
    print(f"\nnext  {begin}python -m studies.{arguments.name}")


def study_of(run_dir: Path) -> tuple[str, str]:
    """The storage URL and the name of the study that runs in a folder; a server that it has there runs as long as this
    process."""
    from studyloom.config import read_run
    from studyloom.server import serve

    url, name = read_run(run_dir)
    return serve(url), name


def status(arguments: argparse.Namespace) -> None:
    """Prints where a study stands."""
    # Torch, Optuna and Hydra take two seconds to import, which `--help` need not wait for.
    from studyloom import progress, status
    from studyloom.record import open_record

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has Ctrl-C ignored for what it starts with &
    url, name = study_of(arguments.run_dir)
    logging.getLogger("studyloom").setLevel(logging.ERROR)  # a look that waits for the database is no outage
    record, console = open_record(url, name, deadline=status.PATIENCE), progress.console()

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    match arguments.watch, arguments.json:
        case False, False:
            status.show(status.look(record), console)
        case False, True:
            write(f"{status.as_json(status.look(record))}\n")
        case True, False:
            status.watch(record, console)
        case True, True:
            status.watch_json(record, write)


def report(arguments: argparse.Namespace) -> None:
    """Writes the report of a study and prints where."""
    from studyloom.record import open_record
    from studyloom.report import write

    url, name = study_of(arguments.run_dir)
    print(write(open_record(url, name, deadline=0.0), arguments.run_dir))


def winner(arguments: argparse.Namespace) -> None:
    """Judges, trains and tests; what is stored of it is not done again, but the test."""
    from studyloom.config import again
    from studyloom.run import judge

    with again(arguments.run_dir, "winner.enabled=true", "launcher=join") as cfg:
        judge(cfg)


def predict(arguments: argparse.Namespace) -> None:
    """Prints the class of each input and how sure the network is, or the numbers that it tells."""
    from studyloom.predict import load, predict

    for answer in predict(load(arguments.run_dir, arguments.trust), arguments.files):
        print(answer)


def replay(arguments: argparse.Namespace) -> int:
    """Trains a trial again; 0 where it comes out the same, 1 where not."""
    from studyloom import progress
    from studyloom.record import open_record
    from studyloom.replay import replay

    url, name = study_of(arguments.run_dir)
    if arguments.trust:  # `python -m studies.mine` finds packages here too; last, so that nothing here hides others
        sys.path.append(os.getcwd())
    record = open_record(url, name, deadline=0.0)
    return replay(record, arguments.run_dir, arguments.trial, arguments.trust, progress.console())


def doctor(arguments: argparse.Namespace) -> int:
    """Prints what is fit for a study and what is not."""
    from studyloom.doctor import show

    url = arguments.storage or study_of(arguments.run_dir)[0]
    return show(url, arguments.run_dir)


def dashboard(arguments: argparse.Namespace) -> None:
    """Serves optuna-dashboard on a study."""
    from studyloom import progress
    from studyloom.dashboard import open_one, serve

    url, name = arguments.storage or os.environ.get("STUDYLOOM_STORAGE"), arguments.study
    if arguments.run_dir is not None:
        url, name = study_of(arguments.run_dir)
    if not url:
        raise ValueError("which study is not said: name a RUN_DIR, or a database with --storage or STUDYLOOM_STORAGE")
    token = arguments.token if arguments.token is not None else os.environ.get("STUDYLOOM_DASHBOARD_TOKEN")
    record = open_one(url, name)
    headline = progress.headline(progress.take(record))
    serve(record, arguments.run_dir, headline, arguments.host, arguments.port, token, progress.console())
