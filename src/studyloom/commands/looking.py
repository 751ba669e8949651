"""Commands that show studies, and those that stop, pause or resume one from another terminal.

Proposals are made by `extras.proposals`, and for agents by `extras.mcp`.
"""

import argparse
import contextlib
import copy
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studyloom.commands.options import (
    CONSENT,
    JSON,
    RUN_DIR,
    argument,
    command,
    either,
    flag,
    locate_study,
    open_run,
    print_json,
    text_stream,
)
from studyloom.commands.plugins import load_plugin
from studyloom.environment import STORAGE
from studyloom.error_display import print_errors
from studyloom.errors import PredictError
from studyloom.processes import collect_garbage_as_usual
from studyloom.text import format_ranges, one_line, printable

if TYPE_CHECKING:
    from studyloom.storage.stored_study import StoredStudy
    from studyloom.views.progress import Progress
    from studyloom.views.progress_reader import ProgressReader
    from studyloom.views.report_requests import ProposeChanged
    from studyloom.worker.stopping import Request

PAGE = "compare.html"  # the default file of `studyloom compare`
ADOPTED = "adopt.html"  # the default file of `studyloom adopt`
STATUS_DEADLINE = 2.0  # seconds that `studyloom status` waits for a busy database
DEADLINE = 10.0  # seconds that a command waits for a database that is busy or away
POLL_INTERVAL = 0.5  # seconds between two readings of the workers
RELEASE_DEADLINE = 300.0  # seconds in which the workers come to the end of their epochs
# The exit codes of `studyloom status --check`.
OK = 0
FAILED = 1
NO_WORKER = 3
STOPPED_OR_PAUSED = 4


@command(
    "show trials by state, the best, workers, time left",
    RUN_DIR,
    *CONSENT,
    flag(
        "--watch", "refresh until the study ends: search, re-evaluation, final training; or Ctrl-C"
    ),
    flag("--json", "print one JSON object; with --watch, a line for each change"),
    flag("--check", "for cron: exit code 1: failed, 3: no worker runs, 4: stopped or paused"),
    examples=["studyloom status runs/mnist --watch", "studyloom status runs/mnist --json"],
)
def status(arguments: argparse.Namespace) -> int:
    """Shows the progress of a study: trials by state, the best trial, the workers, the most
    important hyperparameters, and the time left. Runs at any time, in any terminal.
    """
    from studyloom.storage.opening import open_study
    from studyloom.views import halted_study, live_display, run_details, terminal_lines
    from studyloom.views.consoles import make_console
    from studyloom.views.progress_reader import ProgressReader
    from studyloom.views.terminal import render_status

    # A shell makes commands that it starts with & ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Waiting for a busy database is not worth a warning here.
    logging.getLogger("studyloom").setLevel(logging.ERROR)
    url, name = locate_study(arguments)
    reader = ProgressReader(open_study(url, name, deadline=STATUS_DEADLINE))
    console = make_console()
    if arguments.watch and arguments.json:
        live_display.watch_json(reader, lambda text: print(text, end="", flush=True))
    elif arguments.watch:
        live_display.watch(reader, console)
    elif arguments.json:
        print(reader.status().as_json())
    else:
        status = reader.status()
        console.print(render_status(status, console.width))
        failed = status.progress.search.outcomes.get("failed", 0)
        if failed > 0 and reader.stored.is_studylooms:
            suggestion = halted_study.suggest_repetition(failed, arguments.run_dir, "command")
            terminal_lines.say(console, suggestion)
        print_unusable_result(arguments.run_dir)
        run_details.print_run_details(reader.stored, url, arguments.run_dir, console)
    if arguments.check:
        return status_exit_code(reader.read(), reader.stored)
    return 0


def print_unusable_result(run_dir: Path) -> None:
    """Prints why a winner.json cannot be read, if so: the command then shows only the search."""
    from studyloom.winner.result import Result

    if not (run_dir / "winner.json").exists():
        return
    try:
        Result.load(run_dir)
    except (OSError, PredictError) as error:
        print_errors(error)


def status_exit_code(progress: "Progress", stored: "StoredStudy") -> int:
    """Returns an exit code that says whether a study needs attention.

    It is OK if the study has succeeded, workers run it, or a command tests its winner.
    """
    if progress.halted is not None or progress.exit_code:
        return FAILED
    if progress.has_ended:
        return OK
    if progress.control is not None:  # another terminal has stopped or paused it
        return STOPPED_OR_PAUSED
    if any(worker.is_alive for worker in progress.current.workers):
        return OK
    if any(testing.is_live for testing in stored.ledger.testing_commands()):
        return OK
    return NO_WORKER


@command(
    "list every trial: state, value, hyperparameters; or show one",
    RUN_DIR,
    argument(
        *("number", "NUMBER"),
        "show only this trial, next to the baseline",
        type=int,
        nargs="?",
    ),
    *CONSENT,
    either(
        flag("--csv", "print all columns as CSV"),
        flag("--json", "print a JSON list with an object for each trial"),
    ),
    flag("--curves", "with --csv: a row for each epoch of each trial"),
    examples=[
        "studyloom trials runs/mnist",
        "studyloom trials runs/mnist 39",
        "studyloom trials runs/mnist --csv > trials.csv",
    ],
)
def trials(arguments: argparse.Namespace) -> None:
    """Lists every trial of a study: its number, state, value, time and hyperparameters.

    The best trial comes first; with --csv and --json, the trials are in the order of their numbers.

    With a number, shows how that trial ended, its values, and its hyperparameters next to those of
    the baseline.
    """
    from studyloom.storage.trial_tables import as_csv, as_json, curve_rows, trial_rows
    from studyloom.views.consoles import make_console
    from studyloom.views.one_trial import print_trial
    from studyloom.views.terminal import print_trials

    if arguments.number is not None and (arguments.csv or arguments.json):
        raise ValueError("NUMBER shows one trial; --csv and --json list all: leave out one of them")
    if arguments.curves and not arguments.csv:
        raise ValueError("--curves needs --csv")
    stored = open_run(arguments)
    if arguments.csv or arguments.json:
        make_rows = trial_rows
        if arguments.curves:
            make_rows = curve_rows
        rows = make_rows(stored)
        if arguments.csv:
            text = as_csv(rows)
        else:
            text = as_json(rows)
        if sys.stdout.isatty():  # a program gets every stored value unchanged
            text = printable(text)
        sys.stdout.write(text)
    elif arguments.number is not None:
        print_trial(stored, arguments.number, make_console())
    else:
        print_trials(stored, make_console())


@command(
    "write report.html with all results",
    *(RUN_DIR, *CONSENT, JSON),
    flag("--png", "also write report.png, the top of the report as an image to share"),
    examples=["studyloom report runs/mnist", "studyloom report runs/mnist --png"],
)
def report(arguments: argparse.Namespace) -> None:
    """Writes report.html with all results so far into RUN_DIR, and prints its path. With --png it
    also writes report.png, of 1,200 × 630 pixels."""
    from studyloom.views.report import write_report

    draw_png = None
    if arguments.png:
        draw_png = load_plugin("draw_png")  # a function of an extra package, which may be missing
    path = write_report(open_run(arguments), arguments.run_dir, draw_png=draw_png)
    print_unusable_result(arguments.run_dir)
    if arguments.json:
        print_json({"report": str(path)})
    else:
        print(printable(str(path)))
        if arguments.png:
            print(printable(str(path.with_suffix(".png"))))


@command(
    "compare studies: definitions, best values, costs",
    argument("run_dirs", "RUN_DIR", "the folders of up to seven studies", type=Path, nargs="+"),
    *CONSENT,
    either(
        argument(
            *("--page", "FILE"),
            f"the HTML file to write (default: {PAGE} in the first RUN_DIR; none with --json)",
            type=Path,
        ),
        JSON,
    ),
    examples=["studyloom compare runs/mnist runs/mnist-random"],
)
def compare(arguments: argparse.Namespace) -> None:
    """Prints studies side by side: their results, costs and differences. Writes an HTML file with
    their curves over trials and time, and prints its path.
    """
    from studyloom.views.comparison import (
        make_document,
        print_comparison,
        read_studies,
        write_page,
    )
    from studyloom.views.consoles import make_console
    from studyloom.views.page import check_page

    path = arguments.page or arguments.run_dirs[0] / PAGE
    if arguments.page is not None:
        check_page(path)  # before the studies are read, which may take long
    folders_and_studies = []
    for run_dir in arguments.run_dirs:
        arguments.run_dir = run_dir  # which `open_run` reads
        folders_and_studies.append((run_dir, open_run(arguments)))
    studies = read_studies(folders_and_studies)
    if arguments.json:
        print_json(make_document(studies))
        return
    print_comparison(studies, make_console())
    write_page(studies, path)
    print(f"\n{printable(str(path))}")


@command(
    "show what a study of Optuna, W&B or MLflow holds, and continue it",
    argument(
        "source",
        "SOURCE",
        "a database URL, a SQLite file of Optuna or MLflow, the folder wandb, or a .csv file",
    ),
    argument("--study", "NAME", "the study, project or experiment, if there are several"),
    argument("--trials", "N", "how many trials were requested", type=int),
    either(
        argument("--maximize", "METRIC", "of W&B, MLflow or a .csv file, if more is better"),
        argument("--minimize", "METRIC", "the same, if less is better"),
    ),
    argument("--params", "NAMES", "the hyperparameters of such a source, with commas between"),
    argument(
        *("--rename", "OLD=NEW", "the key of a config for a hyperparameter; may be repeated"),
        action="append",
        default=[],
    ),
    argument("--page", "FILE", f"the HTML file (default: {ADOPTED})", type=Path, default=ADOPTED),
    JSON,
    examples=["studyloom adopt study.db --trials 100 --rename lr=optimizer.lr"],
)
def adopt(arguments: argparse.Namespace) -> None:
    """Reads a study of another program, and changes nothing. Prints stale, surplus, repeated and
    failed trials, how likely the best value is luck, the epochs that ASHA would have spent, and two
    commands that continue the study; writes an HTML file with figures.
    """
    load_plugin("adopt")(arguments)


OPTIONAL_RUN_DIR = argument("run_dir", "RUN_DIR", "the folder of the study", type=Path, nargs="?")


@command(
    "check database, disks and machine for a study",
    either(
        OPTIONAL_RUN_DIR,
        argument("--storage", "URL", "a database, such as postgresql://user@host/name"),
        flag("--gpu", "check the GPUs here for minutes; print a table to paste into an issue"),
        required=True,
    ),
    *CONSENT,
    flag("--repair", "show where budget and trials contradict each other; fix it once you agree"),
    flag("--yes", "with --repair: fix without asking, as where there is no terminal"),
    JSON,
    examples=["studyloom doctor runs/mnist", "studyloom doctor --repair runs/mnist"],
)
def doctor(arguments: argparse.Namespace) -> int:
    """Checks the database, disks and machine for a study. The exit code is 2 if something must be
    fixed before a study can run, and 1 if a check of --gpu has failed.
    """
    from studyloom.views.doctor import repair, show

    if (arguments.gpu and arguments.repair) or (arguments.yes and not arguments.repair):
        raise ValueError("--gpu and --repair cannot be combined, and --yes needs --repair")
    url = arguments.storage
    name = None  # of the study; None for all studies of the database
    if arguments.run_dir is not None:
        url, name = locate_study(arguments)

    def confirm() -> bool:
        if arguments.yes:
            return True
        if arguments.json or not sys.stdin.isatty():  # a program cannot answer
            return False
        return input("fix this? [y/N] ").strip().lower() in ("y", "yes")

    checks: list[dict[str, Any]] = []
    differences: list[str] = []
    is_repaired = None
    if arguments.gpu:
        check_gpus = load_plugin("gpu_checks")
        checks = check_gpus(quiet=arguments.json)
    elif arguments.repair:
        with contextlib.redirect_stdout(text_stream(arguments)):
            result = repair(url, name, confirm)
        differences += result.differences
        is_repaired = result.is_done
    else:
        checks = show(url, arguments.run_dir, quiet=arguments.json)

    states = [check["state"] for check in checks]
    code = 0
    if "to do" in states or (differences and not is_repaired):
        code = 2
    elif "failed" in states:
        code = 1
    if arguments.json:
        document = {
            "checks": checks,
            "differences": differences,
            "repaired": is_repaired,
            "exit_code": code,
        }
        print_json(document)
    return code


@command(
    "show a study in the browser while it runs",
    either(
        argument(
            *("run_dir", "RUN_DIR"),
            "the folder of the study, or a folder with several, such as runs",
            type=Path,
            nargs="?",
        ),
        argument("--storage", "URL", "a database (default: that of STUDYLOOM_STORAGE)"),
    ),
    *CONSENT,
    argument("--study", "NAME", "the name of the study, if the database holds several"),
    argument("--port", None, "the first port to try (default: 8080)", type=int, default=8080),
    JSON,
    examples=[
        "studyloom dashboard runs/mnist",
        "studyloom dashboard runs",
        "studyloom dashboard --study mnist",
    ],
)
def dashboard(arguments: argparse.Namespace) -> None:
    """Serves a live report of a study, with a link to optuna-dashboard, to browsers on this
    machine; other machines reach it through an SSH tunnel. The report of your own RUN_DIR has
    buttons to pause, resume and stop the study, to stop a trial, and to try its configuration with
    changes. A folder with several run directories gives a list of their headlines, each with a
    link to its report.
    """
    from studyloom.storage.opening import open_only_study
    from studyloom.views.consoles import make_console
    from studyloom.views.dashboard import DEADLINE, application, serve
    from studyloom.views.overview import find_runs, is_run
    from studyloom.views.progress_reader import ProgressReader

    def propose_changed(stored: "StoredStudy", number: int, changes: Mapping[str, Any]) -> int:
        by = os.environ.get("USER", "somebody")
        trial: int = load_plugin("propose_changed")(stored, number, changes, by)
        return trial

    folder = arguments.run_dir
    if folder is not None and not is_run(folder) and find_runs(folder):
        serve_several(arguments, propose_changed)
        return
    name = arguments.study
    if arguments.run_dir is None:
        url = arguments.storage or STORAGE.get()
    else:
        url, name_of_run = locate_study(arguments)
        name = name or name_of_run
    if not url:
        raise ValueError("name a RUN_DIR, or a database with --storage or STUDYLOOM_STORAGE")
    # A command collects garbage rarely while it imports modules. This one then runs for hours.
    collect_garbage_as_usual()
    stored = open_only_study(url, name, DEADLINE, message="--study must name the study to show")
    title = ProgressReader(stored).read().line

    def print_address(address: str) -> None:
        console = make_console(text_stream(arguments))
        console.print(f"{title}\n{address}  (Ctrl-C ends it)", soft_wrap=True)
        if arguments.json:
            print_json({"study": stored.name, "url": address})

    app = application(stored, arguments.run_dir, propose_changed)
    serve(app, arguments.port, print_address)


def serve_several(arguments: argparse.Namespace, propose_changed: "ProposeChanged") -> None:
    """Serves the list of the studies in a folder, with their live reports."""
    from studyloom.views.consoles import make_console
    from studyloom.views.dashboard import serve
    from studyloom.views.overview import count_studies, find_runs, overview_application

    folder = arguments.run_dir

    def open_study_of(run_dir: Path) -> "StoredStudy":
        options = copy.copy(arguments)
        options.run_dir = run_dir
        return open_run(options, STATUS_DEADLINE)

    def print_address(address: str) -> None:
        console = make_console(text_stream(arguments))
        studies = count_studies(len(find_runs(folder)))
        console.print(f"{studies} in {folder}\n{address}  (Ctrl-C ends it)", soft_wrap=True)
        if arguments.json:
            print_json({"study": None, "url": address})

    collect_garbage_as_usual()
    app = overview_application(folder, open_study_of, propose_changed)
    serve(app, arguments.port, print_address)


# stop, pause and resume


def control(arguments: argparse.Namespace, request: "Request | None") -> int:
    """Stores a request to stop or pause a study, or to resume it, and prints what comes of it.

    Waits until the workers have released their trials.

    Args:
        request: stop or pause; None to resume.

    Returns:
        The exit code: 0, or 1 if workers still hold trials after some minutes.
    """
    from studyloom.views.progress_reader import ProgressReader
    from studyloom.worker.stopping import read_control, set_control

    stored = open_run(arguments, DEADLINE)
    reader = ProgressReader(stored)
    earlier_request = read_control(stored)
    progress = reader.read()
    request_in_force = request
    if request is not None and progress.has_ended:
        outcome = f"has ended already; there is nothing to {request}"
        request_in_force = earlier_request
    else:
        is_stored = set_control(stored, request)
        if not is_stored:
            # The study is being stopped, which only a command that runs it again withdraws.
            earlier_request = "stop"
            request_in_force = "stop"
        if request_in_force is not None:
            outcome = wait_for_release(reader, request_in_force, prints=not arguments.json)
        elif earlier_request:
            outcome = "continues"
        else:
            outcome = "was neither stopped nor paused"

    workers: list[str] = []
    if request_in_force is not None:
        workers = find_workers(reader.read())
    if arguments.json:
        document = {
            "study": stored.name,
            "control_before": earlier_request,
            "control": request_in_force,
            "was_running": bool(find_workers(progress)),
            "workers": workers,
        }
        print_json(document)
    else:
        print(f"{one_line(stored.name)} {outcome}")
    if workers and not progress.has_ended:
        return 1
    return 0


def wait_for_release(reader: "ProgressReader", request: "Request", *, prints: bool) -> str:
    """Waits until the workers have released their trials, or some minutes have passed.

    Args:
        prints: whether to print that it waits.

    Returns:
        The outcome, such as "is stopped; the command that runs it resumes it".
    """
    if request == "pause":
        outcome = "is paused"
        resumption = "studyloom resume resumes it"
    else:
        outcome = "is stopped"
        resumption = "the command that runs it resumes it"
    end = time.monotonic() + RELEASE_DEADLINE
    workers = find_workers(reader.read())
    if workers and prints:
        trials = "a trial is"
        if len(workers) > 1:
            trials = f"{len(workers)} trials are"
        print(f"{trials} released at the end of the epoch", flush=True)
    while workers:
        if time.monotonic() > end:
            names = [one_line(worker) for worker in workers]
            return f"{outcome}, but {', '.join(names)} still train"
        time.sleep(POLL_INTERVAL)
        workers = find_workers(reader.read())
    return f"{outcome}; {resumption}"


def find_workers(progress: "Progress") -> list[str]:
    """Returns the ids of the workers that hold trials of a study now."""
    worker_ids = []
    for stage in progress.stages:
        for worker in stage.workers:
            if worker.is_alive:
                worker_ids.append(worker.owner)
    return worker_ids


@command(
    "stop a study that runs, on all hosts, or one of its trials",
    RUN_DIR,
    argument("--trial", "N", "end only this trial, as pruned at its next report", type=int),
    *(*CONSENT, JSON),
    examples=["studyloom stop runs/mnist", "studyloom stop runs/mnist --trial 7"],
)
def stop(arguments: argparse.Namespace) -> int:
    """Stops a running study: its workers on all hosts release their trials at the last epoch, and
    its commands end with exit code 3. The same command resumes it later. With --trial, that trial
    ends at its next report, as pruned, or at once if no worker trains it; the others continue. It
    still counts toward the budget.
    """
    if arguments.trial is not None:
        return stop_one_trial(arguments)
    return control(arguments, "stop")


def stop_one_trial(arguments: argparse.Namespace) -> int:
    """Stops a trial, waits until its worker has ended it, and prints how it ended.

    Returns:
        The exit code: 0, or 1 if the trial still runs after some minutes.
    """
    from studyloom.storage.trial_record import TrialRecord
    from studyloom.views.trial_details import describe_end
    from studyloom.worker.stop_trial import read_trial, stop_trial

    number = arguments.trial
    stored = open_run(arguments, DEADLINE)
    outcome = stop_trial(stored, number)
    if outcome == "requested" and not arguments.json:
        print(f"trial {number} ends at its next report", flush=True)
    end = time.monotonic() + RELEASE_DEADLINE
    trial = read_trial(stored, number)
    while not trial.state.is_finished() and time.monotonic() < end:
        time.sleep(POLL_INTERVAL)
        trial = read_trial(stored, number)
    if arguments.json:
        document = {"study": stored.name, "trial": number, "state": TrialRecord(trial).outcome}
        print_json(document)
    else:
        print(f"trial {number} of {one_line(stored.name)}: {one_line(describe_end(trial))}")
    if not trial.state.is_finished():
        return 1
    return 0


@command(
    "let the workers of a study wait until it is resumed",
    *(RUN_DIR, *CONSENT, JSON),
    examples=["studyloom pause runs/mnist"],
)
def pause(arguments: argparse.Namespace) -> int:
    """Pauses a running study: its workers on all hosts release their trials at the last epoch and
    wait. They keep their memory, but leave the GPU or core to other work.
    """
    return control(arguments, "pause")


@command(
    "continue a study that is paused",
    *(RUN_DIR, *CONSENT, JSON),
    examples=["studyloom resume runs/mnist"],
)
def resume(arguments: argparse.Namespace) -> int:
    """Lets the workers of a paused study continue."""
    return control(arguments, None)


@command(
    "let failed trials be trained again",
    RUN_DIR,
    either(flag("--failed", "all failed trials, each in its slot of the budget"), required=True),
    *(*CONSENT, JSON),
    examples=["studyloom redo runs/mnist --failed"],
)
def redo(arguments: argparse.Namespace) -> None:
    """Opens the slots of failed trials, once the cause is fixed: the command that runs the study
    trains their configurations again. The failed trials are kept, but no longer counted.
    """
    from studyloom.storage.redo import redo_failed

    stored = open_run(arguments, DEADLINE)
    numbers = redo_failed(stored)
    if arguments.json:
        print_json({"study": stored.name, "trials": numbers})
    elif numbers:
        outcome = f"{len(numbers)} failed trials are open again: {format_ranges(numbers)}"
        print(f"{one_line(stored.name)}: {outcome}; the command that runs it trains them")
    else:
        print(f"{one_line(stored.name)}: no trial has failed")


# proposals


@command(
    "show what a proposer needs: definition, search space, trials",
    *(RUN_DIR, *CONSENT, JSON),
    examples=["studyloom ask runs/mnist --json"],
)
def ask(arguments: argparse.Namespace) -> None:
    """Shows what proposers need: the study definition, the search space (with --json as JSON
    Schema), and how many configurations may still be proposed. With --json it also shows the
    trials with their learning curves, and where the best ones are. It shows no results on the test
    set.
    """
    load_plugin("ask")(arguments)


BY = argument("--by", "NAME", "who proposes it", default=os.environ.get("USER", "somebody"))


@command(
    "propose a configuration for the next free trial",
    RUN_DIR,
    argument(
        "configuration", "CONFIGURATION", "in JSON; hyperparameters left out have their defaults"
    ),
    BY,
    argument("--why", "TEXT", "a line that is stored with it", default=""),
    *(*CONSENT, JSON),
    examples=["studyloom propose runs/mnist '{\"optimizer.lr\":0.01}' --why larger"],
)
def propose(arguments: argparse.Namespace) -> None:
    """Queues a configuration as the next free trial of a search. It counts toward the budget; at
    most study.proposal_share trials may be proposed. No configuration is trained twice.
    """
    load_plugin("propose")(arguments)


@command(
    "let an agent look at a study and propose configurations",
    argument("run_dirs", "RUN_DIR", "the folder of the study, then others", type=Path, nargs="+"),
    *(BY, *CONSENT),
    examples=["studyloom mcp runs/mnist --by claude"],
)
def mcp(arguments: argparse.Namespace) -> None:
    """Serves ask, propose, compare, status and report of a study over the Model Context Protocol,
    on standard input and output. Results on the test set are not sent before the search has ended.
    """
    load_plugin("mcp")(arguments)
