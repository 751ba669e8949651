"""A study from its config to its answer. A page in `studies/` calls `run`."""

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import optuna
from omegaconf import DictConfig
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.text import Text

from studyloom import make_callable
from studyloom.config import hydra_main
from studyloom.config.invocation import invocation_of, module_path
from studyloom.config.schema import WinnerSection
from studyloom.config.values import plain_sections, without_transform, write_yaml
from studyloom.errors import (
    ConfigError,
    Halted,
    Interrupted,
    LaunchError,
    NoWinner,
    StorageLost,
    exit_with,
)
from studyloom.files import is_newer
from studyloom.launch.command import WORKER_VARIABLE, Command
from studyloom.launch.fork_server import ForkServer
from studyloom.launch.line import Line
from studyloom.launch.prepare import (
    Prepared,
    check_connections,
    open_or_create,
    prepare,
    prepare_to_join,
)
from studyloom.launch.ranks import start_ranks
from studyloom.launch.task import Task, follow_parent
from studyloom.launch.watch import Death, watch
from studyloom.processes import LastingOutput, collect_as_usual, prepare_streams, worker_id
from studyloom.question.question import SECTIONS
from studyloom.storage.connections import exclusive
from studyloom.storage.embedded_server import serve
from studyloom.study.identity import check_question
from studyloom.study.stopping import Stop
from studyloom.study.trials.files import TrialFiles
from studyloom.study.trials.reporter import Limits
from studyloom.study.trials.stopwatch import Stopwatch
from studyloom.study.worker import Worker
from studyloom.text import PrintableFormatter, format_duration
from studyloom.views.dry_run import print_dry_run
from studyloom.views.live import Display
from studyloom.views.snapshot import Snapshot, take_snapshot
from studyloom.views.terminal import (
    answers_table,
    front_table,
    headline,
    make_console,
    print_code_changes,
    print_failures,
    print_next_steps,
    winner_lines,
)
from studyloom.winner.answer import belongs_to, is_answer_of, move_aside, read_answer
from studyloom.winner.committee import remove_others
from studyloom.winner.evaluation import evaluate_winner
from studyloom.winner.stages import Plan, Stage

log = logging.getLogger(__name__)


def run(cfg: DictConfig, command: Command | None = None) -> None:
    """Runs the study that a config describes, or resumes it, and prints the answer.

    Ends the process: with 0 if all is done; with 2 if nothing was started, for a mistake in the
    configuration or a database or file that cannot be used; with 1 if it could not finish; with 130
    or 143 if it was stopped by Ctrl-C or SIGTERM. `HYDRA_FULL_ERROR=1` shows tracebacks.

    Args:
        cfg: the config as composed, inside `hydra_main`.
        command: starts the workers; None for the command of this process.
    """
    prepare_streams()
    command = command or Command.of_this_process()
    began = time.monotonic() - command.age()  # a fork is younger than the command
    command = replace(command, age=lambda: time.monotonic() - began)
    if WORKER_VARIABLE in os.environ:
        run_here(cfg, command, Line.of_launcher())
    watch(lambda line, death: run_command(cfg, command, line, death))


def run_command(cfg: DictConfig, command: Command, line: Line, death: Death | None) -> NoReturn:
    """Runs a command in this process, with a fork server for its workers.

    Args:
        cfg: the config as composed.
        command: starts the workers.
        line: to the process that watches this one.
        death: of the process in whose place this one goes on.
    """
    launcher = cfg.launcher if isinstance(cfg.launcher, DictConfig) else {}
    forks = launcher.get("_target_") == "studyloom.launch.Local" and not cfg.study.dry_run
    fork_server = ForkServer.open(lambda line: run_here(cfg, command, line)) if forks else None
    try:
        run_here(cfg, command, line, fork_server, death)
    finally:
        if fork_server is not None:
            fork_server.close()


def run_source(source: str, arguments: Sequence[str]) -> None:
    """Runs the study of a page or of a primary config as a command; ends the process as `run` does.

    Args:
        source: a page, such as studies/mine.py, or a primary config, such as conf/mine.yaml.
        arguments: Hydra's overrides and options.

    Raises:
        ConfigError: there is no such study.
    """
    invocation = invocation_of(source)
    sys.argv[1:] = arguments

    def task(cfg: DictConfig) -> None:
        # The arguments as hydra_main left them: without passwords.
        run(cfg, Command(("-m", "studyloom", "run", source), tuple(sys.argv[1:])))

    with module_path(invocation.root):
        hydra_main(str(invocation.config_dir), invocation.config_name)(task)()


def run_here(
    cfg: DictConfig,
    command: Command,
    line: Line,
    fork_server: ForkServer | None = None,
    death: Death | None = None,
) -> NoReturn:
    """Does the same in this process, which may be that of a worker that a launcher started."""
    worker, code = WORKER_VARIABLE in os.environ, 0
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(asctime)s %(message)s"))
    logging.basicConfig(level=logging.INFO if worker else logging.WARNING, handlers=[handler])
    logging.captureWarnings(True)
    peers = start_ranks(cfg, command, line)
    if worker:
        follow_parent(line)
    line.follow()
    with line.saying_end(), peers, Stop(cfg.study.timeout, line.is_asked) as stop:
        try:
            prepared = (prepare_to_join if worker else prepare)(cfg, peers.connect())
            if cfg.study.dry_run:
                print_dry_run(prepared.question, make_console(LastingOutput()))
                sys.exit()
            prepared, plan = open_plan(prepared, stop, worker=worker)
        except (ValueError, OSError) as error:
            exit_with(error, 2)
        except Interrupted:  # the second signal; no trial is held yet
            sys.exit(128 + (stop.signal or 2))
        task = task_of(prepared, plan, command, line, fork_server)
        try:
            if death is not None:
                task.ledger.record_death(worker_id(death.pid), death.words)
            if worker:
                prepared.launcher.launch(task, stop)
            else:
                console = make_console(LastingOutput())
                code = search_and_report(prepared, plan, task, stop, console)
                remove_left(plan, prepared)
        except Interrupted:
            pass  # the second signal; the trials have been released
        except Halted as error:
            exit_with(error, error.exit_code)
        except (LaunchError, NoWinner, StorageLost, OSError) as error:
            exit_with(error, 1 if stop.signal is None else 128 + stop.signal)
        except BaseException as error:
            if isinstance(error, Exception):
                raise
            exit_with(LaunchError(f"the user's code has ended the command: {error!r}"), 1)
        finally:
            plan.close()
        if stop.alone is not None:
            line.say_released()
        sys.exit(code if stop.signal is None else 128 + stop.signal)


def open_plan(prepared: Prepared, stop: Stop, *, worker: bool) -> tuple[Prepared, Plan]:
    """Opens the study, made if it is missing unless for a worker, and plans what is to be done.

    Returns:
        What was prepared, with the URL of a server that runs; and the plan, to be closed.

    Raises:
        ValueError: the database cannot be used, or its study asks another question.
        OSError: the run directory cannot be made.
    """
    prepared = replace(prepared, url=serve(prepared.url, own=True))
    stored, trials = open_or_create(prepared, create=not worker)
    stored.wait_less(stop)
    plan = plan_of(prepared, Stage("search", stored, prepared.question, trials))
    try:
        if not worker:
            check_connections(prepared.url, prepared.launcher.count(plan.todo()))
    except BaseException:
        plan.close()
        raise
    collect_as_usual()  # trials come next
    return prepared, plan


def plan_of(prepared: Prepared, search: Stage) -> Plan:
    config = prepared.question.config
    settings = WinnerSection(**config.winner)
    return Plan(search, prepared.question, prepared.data, prepared.url, prepared.run_dir, settings)


def task_of(
    prepared: Prepared,
    plan: Plan,
    command: Command,
    line: Line | None = None,
    fork_server: ForkServer | None = None,
) -> Task:
    study = prepared.question.config.study
    limits = Limits(**{name: study[name] for name in Limits.__dataclass_fields__})
    stored = plan.search.stored
    work = _work(prepared, plan, limits, command, line or Line(None))
    ledger, where, name = stored.ledger, prepared.run_dir, stored.name

    def halted() -> bool:
        return plan.current.stored.halted() is not None

    return Task(work, plan.todo, ledger, where, limits, name, fork_server, command, halted)


def _work(
    prepared: Prepared, plan: Plan, limits: Limits, command: Command, line: Line
) -> Callable[[Stop], None]:
    def work(stop: Stop) -> None:
        stopwatch = Stopwatch.since(command.age())
        folder = prepared.question.config.checkpoints.dir
        for stage in plan:
            checkpoints = None
            if folder is not None:
                checkpoints = Path(folder) / ("" if stage is plan.search else stage.title)
                checkpoints.mkdir(parents=True, exist_ok=True)
            where = (prepared.data, stop, checkpoints, limits, stage.weights, stopwatch)
            worker = Worker(stage.asked, stage.stored, *where, line.say_claimed, stage.title)
            worker.run(stage.trials)
            if stop():
                return

    return work


def search_and_report(
    prepared: Prepared, plan: Plan, task: Task, stop: Stop, console: Console
) -> int:
    """Has the open slots worked on, shows the progress, and prints the answer.

    Returns:
        The exit code of a command: 1 if there is no result, although it was not stopped.
    """
    started, began = time.monotonic(), datetime.now()
    stored, trials = plan.search.stored, plan.search.trials
    print_code_changes(stored, console)
    move_foreign_answer(plan, prepared, console)
    if todo := task.todo():
        for note in prepared.starts.notes:
            console.print(Text(note), soft_wrap=True)
        verb = "goes on" if any(trial.datetime_start for trial in stored.trials()) else "begins"
        open_ = plan.search.todo()
        many = (
            f"{open_} trial{'' if open_ == 1 else 's'} to do"
            if open_
            else f"{plan.current.title} to do"
        )
        console.print(f"{stored.name} {verb}: {many}, logs in {task.logs}", soft_wrap=True)
        follow = launch(prepared, plan, task, stop, console)
        if stop.alone is not None:  # another process goes on
            return 0
        if follow is not None:  # the work goes on without this command
            console.print(Text(follow), soft_wrap=True)
            return 0
    snapshot = take_snapshot(stored)
    if snapshot.best is not None:
        write_best(prepared, snapshot.best)
    took = f", {format_duration(time.monotonic() - started)}" if todo else ""
    console.print(f"\n{headline(snapshot)}{took}", soft_wrap=True)
    console.print(answers_table(snapshot, console.width))
    if snapshot.rule is not None:
        console.print(front_table(snapshot, console.width))
    if plan.is_done():
        print_winner(plan, prepared, task.command, console)
    for stage in plan:
        print_failures(stage.stored, console)
    print_next_steps(prepared, plan, task.command, snapshot, console, began)
    for stage in plan:
        stage.stored.check_halted("the study has stopped, since its trials fail with this: ")
    if stop():
        why = "the time is up" if stop.signal is None else "stopped"
        console.print(f"{why}; the same command goes on from here")
    elif words := end_of_search(snapshot, trials, todo):
        console.print(Text(words), soft_wrap=True)
    if trials < snapshot.budget:
        line = f"the study has {snapshot.budget} trials; the winner is one of the first {trials}"
        console.print(f"{line}, as study.trials={trials} says", soft_wrap=True)
    return 0 if snapshot.best is not None or stop() else 1


def end_of_search(snapshot: Snapshot, trials: int, todo: int) -> str:
    """Returns why there is nothing left to do, if the counts of the trials do not say it.

    Args:
        snapshot: of the search, which has ended.
        trials: its budget.
        todo: how many trials the command had to do.
    """
    if snapshot.best is None and snapshot.rule is not None:
        return f"no trial keeps to winner.rule: {snapshot.rule}; loosen it, or raise study.trials"
    if snapshot.outlook.ending is not None:
        return f"the search {snapshot.outlook.ending.words}"
    return "" if todo else f"the budget of {trials} trials is spent"


def remove_left(plan: Plan, prepared: Prepared) -> None:
    """Removes the checkpoints of trials whose worker died after their end."""
    folder, stored = prepared.question.config.checkpoints.dir, plan.search.stored
    if folder is not None:
        files = TrialFiles(Path(folder), stored.name, prepared.question.seed)
        files.remove_left(stored.trials(), prepared.question.space)


def launch(prepared: Prepared, plan: Plan, task: Task, stop: Stop, console: Console) -> str | None:
    """Has the open slots worked on, again if another program has deleted trials or slots.

    Returns:
        What to print, if the work goes on without this command; else None.
    """
    while True:
        with Display(lambda: plan.current.stored, console):
            follow = prepared.launcher.launch(task, stop)
        if follow is not None or not plan.reconcile() or stop():
            return follow


def move_foreign_answer(plan: Plan, prepared: Prepared, console: Console) -> None:
    """Moves the answer of another study aside, such as one of the same name in another database."""

    def is_foreign() -> bool:
        answer = read_answer(plan.run_dir)
        return answer is not None and not belongs_to(answer, plan.search.stored)

    if not is_foreign():  # no lock, which may mean a connection, for what nearly always holds
        return
    with exclusive(prepared.url, deadline=float(prepared.question.config.storage.deadline)):
        if not is_foreign():  # another command was quicker
            return
        folder = move_aside(plan.run_dir)
    line = f"the answer in {plan.run_dir} is that of another study; it was moved to {folder}"
    console.print(Text(line), soft_wrap=True)


def print_winner(plan: Plan, prepared: Prepared, command: Command, console: Console) -> None:
    """Prints the winner on the test part.

    The test part is opened for it now, unless winner.json has the answer already.
    """
    from studyloom.views.report import write_report  # here: no search waits for plotly

    # Of commands that finish together, one opens the test part; the others read its answer.
    with exclusive(prepared.url, deadline=float(prepared.question.config.storage.deadline)):
        answer = read_answer(plan.run_dir)
        if answer is None or not is_answer_of(answer, plan):
            answer = evaluate_winner(plan, prepared.data.test, command.page)
        remove_others(plan, answer)
        if not is_newer(plan.run_dir / "report.html", plan.run_dir / "winner.json"):
            write_report(plan.search.stored, plan.run_dir)  # unless the command was killed here
    console.print(Text("\n".join(winner_lines(answer))), soft_wrap=True)


def judge(cfg: DictConfig) -> None:
    """Chooses and tests the winner of a search that has ended, in this process.

    It does so also if it was done before.

    Raises:
        ValueError: the search has not ended, or the config or the database cannot be used.
        OSError: a file cannot be read or written.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with Stop() as stop:
        prepared, plan = open_ended(cfg, stop)
        command = Command.of_this_process()
        task = task_of(prepared, plan, command)
        with Display(lambda: plan.current.stored, console := make_console()):
            prepared.launcher.launch(task, stop)
        if plan.is_done():
            before = read_answer(plan.run_dir) or {}
            anew = bool(before) and is_answer_of(before, plan)
            page = before.get("command", command.page)
            evaluate_winner(plan, prepared.data.test, page, anew=anew)
            print_winner(plan, prepared, command, console)


def open_ended(cfg: DictConfig, stop: Stop) -> tuple[Prepared, Plan]:
    """Opens a study whose search has ended, and which asks what the config does.

    Raises:
        ValueError: it has not, or the config or the database cannot be used.
    """
    prepared, plan = open_plan(prepare_to_join(cfg), stop, worker=True)
    check_question(
        plan.search.stored.name,
        plan.search.stored.question(),
        prepared.question.identity(prepared.data.digest),
    )
    trials = plan.search.trials
    if left := plan.search.todo():
        ways = "run the study on, or with a smaller study.trials"
        raise ConfigError([f"{plan.run_dir}: {left} of {trials} trials are open; {ways}"])
    return prepared, plan


def write_best(prepared: Prepared, best: FrozenTrial) -> None:
    """Writes the best configuration so far to `best.yaml`."""
    question = prepared.question
    point = question.space.walk(lambda parameter: best.params[parameter.name])
    names = (name for name in SECTIONS if name != "space")
    sections = without_transform(plain_sections(question.at(point), *names))
    sections["train"].pop("loss")
    values = ", ".join(
        f"{goal.name} {value}" for goal, value in zip(question.goals, best.values, strict=True)
    )
    header = f"# {question.config.study.name}, trial {best.number}: validation {values}\n"
    write_yaml(prepared.run_dir / "best.yaml", sections, header)


# `studyloom.run(…)` is the API; `from studyloom.run import run`, which pages do, needs the module.
make_callable(__name__)
