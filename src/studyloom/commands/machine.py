"""`studyloom doctor` and `studyloom dashboard`: what a study needs of a machine, and its server."""

import argparse
import contextlib
import os
import sys
from pathlib import Path

from studyloom.commands.options import Entry, add_consent, add_json, locate_study, print_json
from studyloom.processes import collect_as_usual


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
    add_json(command)


def doctor(arguments: argparse.Namespace) -> int:
    """Checks what a study needs.

    Returns:
        The exit code: 0, or 2 if something must be done before a study can run, or was not mended.
    """
    from studyloom.views.doctor import repair, show

    url, name = (arguments.storage, None)
    if arguments.run_dir is not None:
        url, name = locate_study(arguments)
    if arguments.json:
        return print_findings(url, name, arguments)
    if not arguments.repair:
        return show(url, arguments.run_dir)

    def confirm() -> bool:
        if arguments.yes or not sys.stdin.isatty():
            return bool(arguments.yes)
        return input("mend this? [y/N] ").strip().lower() in ("y", "yes")

    return repair(url, name, confirm)


def print_findings(url: str, name: str | None, arguments: argparse.Namespace) -> int:
    """Prints what was checked, or mended, as JSON. Returns the exit code, as `doctor` does."""
    from studyloom.views.doctor import disagreements, examine, repair

    checks, differences, mended = [], list[str](), None
    if arguments.repair:
        differences = [f"{study}: {it.words}" for study, _, it in disagreements(url, name)]
        with contextlib.redirect_stdout(sys.stderr):
            code = repair(url, name, lambda: bool(arguments.yes))
        mended = bool(differences) and code == 0
    else:
        checks = [
            {"name": check, "state": str(finding.state), "words": finding.words}
            for check, finding in examine(url, arguments.run_dir)
        ]
        code = 2 if any(check["state"] == "to do" for check in checks) else 0
    print_json({"checks": checks, "differences": differences, "mended": mended, "exit_code": code})
    return code


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
    add_json(command)


def dashboard(arguments: argparse.Namespace) -> None:
    """Serves a study's own page, and optuna-dashboard behind it."""
    from studyloom.views.dashboard import open_only_study, serve
    from studyloom.views.progress import JobReader, working_words
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
    progress = JobReader(stored).read()
    title = "; ".join(filter(None, (headline(progress.search), working_words(progress))))
    host, port = arguments.host, arguments.port

    def tell(address: str) -> None:
        print_json({"study": stored.name, "url": address})
        sys.stdout.flush()

    console = make_console(sys.stderr if arguments.json else sys.stdout)
    said = tell if arguments.json else None
    serve(stored, arguments.run_dir, title, host, port, token, console, said)


COMMANDS = (
    Entry(
        "doctor",
        "check database, disks and machine for a study",
        doctor,
        add_doctor,
        "Checks the database, disks and machine for a study. The exit code is 2 if something must "
        "be done before a study can run.",
        ("studyloom doctor runs/mnist", "studyloom doctor --repair runs/mnist"),
    ),
    Entry(
        "dashboard",
        "a study in the browser, as it goes on",
        dashboard,
        add_dashboard,
        "Serves the page of a study, which follows it, and optuna-dashboard behind it, to the "
        "browsers of this machine, or to others that know a token.",
        ("studyloom dashboard runs/mnist", "studyloom dashboard --study mnist"),
    ),
)
