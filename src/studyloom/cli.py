"""The `studyloom` command: writes a new study, and shows those that exist.

It does not run a study; the study's own page does: `python -m studies.mnist`.
"""

import argparse
import json
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
from studyloom.files import ASSETS
from studyloom.processes import (
    collect_as_usual,
    collect_rarely,
    discard_output,
    prepare_streams,
)
from studyloom.text import PrintableFormatter, indented, printable

if TYPE_CHECKING:
    from studyloom.study.stored_study import StoredStudy

# In this process, whatever the command had started.
JUDGED = ("winner.enabled=true", "launcher=join")

# The functions import what they need: torch, Optuna and Hydra take two seconds, for which `--help`
# should not wait.


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command of `studyloom`.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit code: 0; 1 if a replay differs; 2 after an error, with a line that says what is
        wrong; 130 after Ctrl-C.
    """
    prepare_streams()
    collect_rarely()
    last_resort = logging.lastResort  # writes what no handler takes
    if last_resort is not None:
        last_resort.setFormatter(PrintableFormatter())
    arguments = make_parser().parse_args(argv)
    try:
        code = arguments.act(arguments) or 0
        sys.stdout.flush()  # here, where a full disk can be told
        return code
    except KeyboardInterrupt:
        return 0 if getattr(arguments, "watch", False) else 130
    except BrokenPipeError:  # the reader of the pipe has gone
        discard_output()
        return 0
    except (ValueError, OSError) as error:
        discard_output()  # the error may be that it cannot be written
        print_errors(error)
        return 2
    finally:
        collect_as_usual()


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line.

    It sets `act` of the parsed arguments to the function of the command.
    """
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
        add_consent(command)

    add_new(add("new", new, "write a study of your own that runs as it is"))
    add_run(add("run", run, "run a study by its page or its primary config"))
    command = add("status", status, "trials by state, best, workers, what matters, time left")
    add_run_dir(command)
    about = "go on until the budget is spent, or Ctrl-C"
    command.add_argument("--watch", action="store_true", help=about)
    about = "one JSON object; with --watch a line for each change"
    command.add_argument("--json", action="store_true", help=about)
    command = add("trials", trials, "every trial: state, value, parameters")
    add_run_dir(command)
    add_formats(command)
    add_run_dir(add("report", report, "write report.html, one page with all results"))
    command = add("winner", winner, "choose and test the winner of a finished search again")
    add_run_dir(command)
    add_code(command)
    add_compress(add("compress", compress, "the winner made small, as winner.onnx"))
    add_predict(add("predict", predict, "what the winner predicts for pictures, arrays or numbers"))
    command = add("replay", replay, "train a trial again, and compare it epoch by epoch")
    add_run_dir(command)
    about = "the number of the trial"
    command.add_argument("--trial", metavar="NUMBER", type=int, required=True, help=about)
    add_trust(command, "a package of your own that the trial may name; its code is executed")
    add_doctor(add("doctor", doctor, "check database, disks and machine for a study"))
    add_dashboard(add("dashboard", dashboard, "optuna-dashboard on a study, in the browser"))
    return parser


def add_new(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `studyloom new`, and a line for each kind of training to its help."""
    kinds = json.loads((ASSETS / "new" / "kinds.json").read_text(encoding="utf-8"))
    about = "of the study and its page, as in python -m studies.NAME"
    command.add_argument("name", metavar="NAME", help=about)
    about = "where to write it (default: the current folder)"
    command.add_argument(
        "folder", metavar="FOLDER", type=Path, nargs="?", default=Path(), help=about
    )
    about = "how it is trained; one of the kinds below (default: tensors)"
    command.add_argument("--kind", metavar="KIND", choices=kinds, default="tensors", help=about)
    width = max(map(len, kinds))
    lines = [f"  {name:{width}}  {kind['about']}" for name, kind in kinds.items()]
    command.epilog = "\n".join(["kinds:", *lines])
    command.formatter_class = argparse.RawDescriptionHelpFormatter


def add_run(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `studyloom run`."""
    about = "such as studies/mine.py or conf/mine.yaml; your own, since it is run as code is"
    command.add_argument("source", metavar="FILE", help=about)
    about = "of Hydra, such as study.trials=50 or --dry-run"
    command.add_argument("overrides", metavar="OVERRIDE", nargs=argparse.REMAINDER, help=about)


def add_formats(command: argparse.ArgumentParser) -> None:
    """Adds the formats of `studyloom trials`."""
    formats = command.add_mutually_exclusive_group()
    formats.add_argument("--csv", action="store_true", help="with all columns, as in a DataFrame")
    formats.add_argument("--json", action="store_true", help="a list with an object for each trial")


def add_consent(command: argparse.ArgumentParser) -> None:
    """Adds `--trust-server` and `--trust-config`: a run directory from elsewhere is data."""
    about = "the PostgreSQL server in RUN_DIR is yours: it runs what its folder says"
    command.add_argument("--trust-server", action="store_true", help=about)
    about = "the command and the database that RUN_DIR names are yours"
    command.add_argument("--trust-config", action="store_true", help=about)


def add_trust(command: argparse.ArgumentParser, about: str) -> None:
    """Adds `--trust PACKAGE`, which may be repeated."""
    command.add_argument("--trust", metavar="PACKAGE", action="append", default=[], help=about)


def add_predict(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `studyloom predict`."""
    about = "the folder with winner.json, winner.yaml and winner.pt"
    command.add_argument("run_dir", metavar="RUN_DIR", type=Path, help=about)
    about = (
        "a picture of any size, an IDX file, a .npy file, or a CSV file of a line for each input"
    )
    command.add_argument("files", metavar="FILE", type=Path, nargs="+", help=about)
    about = "ask the committee of winner.committee=true in place of the winner"
    command.add_argument("--committee", action="store_true", help=about)
    add_trust(command, "a package that the winner may name; its code is executed")
    add_code(command)


def add_compress(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `studyloom compress`."""
    about = "where the study ran, such as runs/mnist"
    command.add_argument("run_dir", metavar="RUN_DIR", type=Path, help=about)
    about = "such as margin=0.01 ratios=[0.5] 'rule=min latency_ms where bytes < 50_000'"
    command.add_argument("settings", metavar="KEY=VALUE", nargs="*", help=about)
    add_consent(command)
    add_code(command)


def add_code(command: argparse.ArgumentParser) -> None:
    """Adds `--code FOLDER`."""
    about = "where the study was run: its own code is executed (default: here, if it was run here)"
    command.add_argument("--code", metavar="FOLDER", type=Path, help=about)


def add_doctor(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `studyloom doctor`."""
    location = command.add_mutually_exclusive_group(required=True)
    about = "where a study runs, such as runs/mnist"
    location.add_argument("run_dir", metavar="RUN_DIR", type=Path, nargs="?", help=about)
    about = "a database, such as postgresql://user@host/name"
    location.add_argument("--storage", metavar="URL", help=about)
    add_consent(command)
    about = "show how the ledger differs from the trials, and mend it once you agree"
    command.add_argument("--repair", action="store_true", help=about)
    about = "with --repair: mend without a question, as where there is no terminal"
    command.add_argument("--yes", action="store_true", help=about)


def add_dashboard(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `studyloom dashboard`."""
    location = command.add_mutually_exclusive_group()
    about = "where the study runs"
    location.add_argument("run_dir", metavar="RUN_DIR", type=Path, nargs="?", help=about)
    about = "a database (default: that of STUDYLOOM_STORAGE)"
    location.add_argument("--storage", metavar="URL", help=about)
    add_consent(command)
    about = "the study to show, if the database holds several"
    command.add_argument("--study", metavar="NAME", help=about)
    about = "the name by which others reach this machine; a token is then required"
    command.add_argument("--host", default="127.0.0.1", help=about)
    about = "the port, or the next free one (default: 8080)"
    command.add_argument("--port", type=int, default=8080, help=about)
    about = "what browsers must know (default: STUDYLOOM_DASHBOARD_TOKEN, which `ps` does not show)"
    command.add_argument("--token", help=about)


def new(arguments: argparse.Namespace) -> None:
    """Writes a new study and prints its files."""
    from studyloom.config.scaffold import write_study

    files = write_study(arguments.name, arguments.folder, arguments.kind)
    width = max(len(str(path)) for path in files)
    for path, about in files.items():
        print(f"{path!s:{width}}  {about}")
    folder = arguments.folder
    begin = "" if folder == Path() else f"cd {shlex.quote(str(folder))} && "
    print(f"\nnext  {begin}python -m studies.{arguments.name}")


def run(arguments: argparse.Namespace) -> None:
    """Runs a study, as `python -m studies.NAME` does; ends the process."""
    from studyloom.run import run_source

    sys.path.insert(0, os.getcwd())  # as `python -m` does
    run_source(arguments.source, arguments.overrides)


def locate_study(arguments: argparse.Namespace) -> tuple[str, str]:
    """Returns the storage URL and the name of the study that runs in a folder.

    If the study has an embedded server, it runs for as long as this process.

    Args:
        arguments: with `run_dir`, `trust_server` and `trust_config`.

    Raises:
        ValueError: no study has run there, or its server does not start.
    """
    from studyloom.config.runs import read_run
    from studyloom.storage.embedded_server import serve, trust_server

    url, name = read_run(arguments.run_dir, trusted=arguments.trust_config)
    if arguments.trust_server:
        trust_server(url)
    return serve(url), name


def open_run(arguments: argparse.Namespace, deadline: float = 0.0) -> "StoredStudy":
    """Opens the study that runs in a folder.

    Args:
        arguments: as for `locate_study`.
        deadline: the seconds to wait for a database that is busy or away.

    Raises:
        ValueError: no study has run there, or its database cannot be used.
    """
    from studyloom.study.stored_study import open_study

    url, name = locate_study(arguments)
    return open_study(url, name, deadline=deadline)


def status(arguments: argparse.Namespace) -> None:
    """Prints the status of a study."""
    from studyloom.views import status
    from studyloom.views.terminal import make_console

    # A shell makes commands that it starts with & ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A look that waits for a busy database is not worth a warning.
    logging.getLogger("studyloom").setLevel(logging.ERROR)
    stored, console = open_run(arguments, status.DATABASE_DEADLINE), make_console()

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


def trials(arguments: argparse.Namespace) -> None:
    """Prints every trial of a study."""
    from studyloom.study.trials.rows import as_csv, as_json, trial_rows
    from studyloom.views.terminal import make_console, print_trials

    stored = open_run(arguments)
    if arguments.csv or arguments.json:
        text = (as_csv if arguments.csv else as_json)(trial_rows(stored))
        # For a program, all is as it is stored.
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    else:
        print_trials(stored, make_console())


def report(arguments: argparse.Namespace) -> None:
    """Writes the report of a study and prints its path."""
    from studyloom.views.report import write_report

    print(printable(str(write_report(open_run(arguments), arguments.run_dir))))


def winner(arguments: argparse.Namespace) -> None:
    """Chooses and tests the winner again; stored trainings are reused."""
    from studyloom.config.runs import recompose
    from studyloom.config.trust import code_of_study
    from studyloom.run import judge

    with (
        code_of_study(arguments.run_dir, arguments.code),
        recompose(arguments.run_dir, *JUDGED, trusted=arguments.trust_config) as cfg,
    ):
        judge(cfg)


def compress(arguments: argparse.Namespace) -> None:
    """Makes the winner small, and prints the variants and which of them was chosen."""
    from studyloom.compress.compression import compress
    from studyloom.compress.settings import parse_settings
    from studyloom.config.runs import recompose
    from studyloom.config.trust import code_of_study
    from studyloom.run import open_ended
    from studyloom.study.stopping import Stop
    from studyloom.views.report import write_report
    from studyloom.views.terminal import make_console, print_compressed

    settings, console = parse_settings(arguments.settings), make_console()
    if arguments.trust_server:
        locate_study(arguments)
    with (
        code_of_study(arguments.run_dir, arguments.code),
        recompose(arguments.run_dir, *JUDGED, trusted=arguments.trust_config) as cfg,
    ):
        with Stop() as stop:  # afterwards Ctrl-C ends it at once: there is nothing to hand over
            prepared, plan = open_ended(cfg, stop)
        try:
            record = compress(plan, settings, prepared.data.test, console.print)
            write_report(plan.search.stored, plan.run_dir)
        finally:
            plan.close()
    print_compressed(record, console)


def predict(arguments: argparse.Namespace) -> None:
    """Prints the class of each input and how sure the network is, or the predicted numbers.

    What was done to an input, and in what it is unlike the training data, follows in its line.
    """
    from studyloom.config.trust import code_of_study
    from studyloom.winner.prediction import load_network, predict

    collect_as_usual()
    with code_of_study(arguments.run_dir, arguments.code, wanted=bool(arguments.trust)):
        network = load_network(arguments.run_dir, arguments.trust, committee=arguments.committee)
    for answer in predict(network, arguments.files):
        print(indented(str(answer)))


def replay(arguments: argparse.Namespace) -> int:
    """Trains a trial again.

    Returns:
        The exit code: 0 if the result is equal or within tolerance, else 1.
    """
    from studyloom.views.replay import replay
    from studyloom.views.terminal import make_console

    stored = open_run(arguments)
    if arguments.trust:
        # As `python -m studies.mine` does; last, so that this folder hides no other package.
        sys.path.append(os.getcwd())
    collect_as_usual()
    return replay(stored, arguments.run_dir, arguments.trial, arguments.trust, make_console())


def doctor(arguments: argparse.Namespace) -> int:
    """Checks what a study needs.

    Returns:
        The exit code: 0, or 2 if something must be done before a study can run, or was not mended.
    """
    from studyloom.views.doctor import repair, show

    url, name = (arguments.storage, None)
    if arguments.run_dir is not None:
        url, name = locate_study(arguments)
    if not arguments.repair:
        return show(url, arguments.run_dir)

    def confirm() -> bool:
        if arguments.yes or not sys.stdin.isatty():
            return bool(arguments.yes)
        return input("mend this? [y/N] ").strip().lower() in ("y", "yes")

    return repair(url, name, confirm)


def dashboard(arguments: argparse.Namespace) -> None:
    """Serves optuna-dashboard on a study."""
    from studyloom.views.dashboard import open_only_study, serve
    from studyloom.views.snapshot import take_snapshot
    from studyloom.views.terminal import headline, make_console

    url = arguments.storage or os.environ.get("STUDYLOOM_STORAGE")
    name = arguments.study
    if arguments.run_dir is not None:
        url, name = locate_study(arguments)
    if not url:
        raise ValueError(
            "the dashboard needs a study: name a RUN_DIR, or a database with --storage or "
            "STUDYLOOM_STORAGE"
        )
    collect_as_usual()
    token = arguments.token
    if token is None:
        token = os.environ.get("STUDYLOOM_DASHBOARD_TOKEN")
    stored = open_only_study(url, name)
    title = headline(take_snapshot(stored))
    host, port = arguments.host, arguments.port
    serve(stored, arguments.run_dir, title, host, port, token, make_console())
