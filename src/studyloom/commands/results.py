"""`studyloom report`, `winner` and `compare`: what studies have found."""

import argparse
import sys
from pathlib import Path

from studyloom.commands.options import (
    Entry,
    add_code,
    add_consent,
    add_json,
    add_run_dir,
    open_run,
    print_json,
)
from studyloom.text import printable

PAGE = "compare.html"
# In this process, whatever the command had started.
JUDGED = ("winner.enabled=true", "launcher=join")


def add_report(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `studyloom report`."""
    add_run_dir(command)
    add_json(command)


def report(arguments: argparse.Namespace) -> None:
    """Writes the report of a study and prints its path."""
    from studyloom.views.report import write_report

    path = write_report(open_run(arguments), arguments.run_dir)
    if arguments.json:
        print_json({"report": str(path)})
    else:
        print(printable(str(path)))


def add_compare(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `studyloom compare`."""
    about = "where a study runs; two to seven of them"
    command.add_argument("run_dirs", metavar="RUN_DIR", type=Path, nargs="+", help=about)
    add_consent(command)
    about = f"where to write the page (default: {PAGE} in the first RUN_DIR; none with --json)"
    command.add_argument("--page", metavar="FILE", type=Path, help=about)
    add_json(command)


def compare(arguments: argparse.Namespace) -> None:
    """Prints studies side by side, writes the page that shows them, and prints its path."""
    from studyloom.views.comparison import document, print_comparison, read_studies, write_page
    from studyloom.views.terminal import make_console

    found = []
    for run_dir in arguments.run_dirs:
        arguments.run_dir = run_dir
        found.append((run_dir, open_run(arguments)))
    studies = read_studies(found)
    if arguments.json:
        print_json(document(studies))
        return
    console = make_console()
    print_comparison(studies, console)
    path = arguments.page or arguments.run_dirs[0] / PAGE
    write_page(studies, path)
    print(f"\n{printable(str(path))}")


def add_winner(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `studyloom winner`."""
    add_run_dir(command)
    add_code(command)
    add_json(command)


def winner(arguments: argparse.Namespace) -> None:
    """Chooses and tests the winner again; stored trainings are reused."""
    from studyloom.commands.answer import judge
    from studyloom.config.runs import recompose
    from studyloom.config.trust import code_of_study
    from studyloom.views.terminal import make_console

    with (
        code_of_study(arguments.run_dir, arguments.code),
        recompose(arguments.run_dir, *JUDGED, trusted=arguments.trust_config) as cfg,
    ):
        out = sys.stderr if arguments.json else sys.stdout
        study, answer = judge(cfg, make_console(out))
        if arguments.json:
            print_json({"study": study, "run_dir": str(arguments.run_dir), "answer": answer})


COMMANDS = (
    Entry(
        "report",
        "write report.html, one page with all results",
        report,
        add_report,
        "Writes report.html into RUN_DIR, one page with all results so far, and prints its path.",
        ("studyloom report runs/mnist",),
    ),
    Entry(
        "compare",
        "studies side by side: what differs, the best, the cost",
        compare,
        add_compare,
        "Prints studies side by side: what each found and what it cost, and what differs between "
        "them. Writes a page with their curves over trials and time, and prints its path.",
        ("studyloom compare runs/mnist runs/mnist-random",),
    ),
    Entry(
        "winner",
        "choose and test the winner of a finished search again",
        winner,
        add_winner,
        "Chooses the winner of a search that has ended, trains it, and tests it. Trainings that "
        "are stored are reused.",
        ("studyloom winner runs/mnist",),
    ),
)
