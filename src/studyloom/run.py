"""A study from its config to its answer: what a page in `studies/` calls."""

import logging
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import NoReturn

import optuna
from omegaconf import DictConfig
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.text import Text

from studyloom.config.schema import WinnerSection
from studyloom.config.values import plain_sections, write_yaml
from studyloom.errors import ConfigError, Halted, LaunchError, NoWinner, StorageLost, exit_with
from studyloom.launch.fork_server import ForkServer
from studyloom.launch.prepare import Prepared, check_connections, prepare
from studyloom.launch.task import (
    HALT,
    WORKER,
    Task,
    follow_parent,
    own_arguments,
    process_age,
    program,
)
from studyloom.question.question import SECTIONS
from studyloom.storage.attributes import EPOCHS
from studyloom.storage.connections import exclusive
from studyloom.storage.embedded_server import serve
from studyloom.storage.urls import parse_url, without_password
from studyloom.study.enqueue import enqueue
from studyloom.study.reporter import Limits
from studyloom.study.stopping import Stop
from studyloom.study.stopwatch import Stopwatch
from studyloom.study.stored_study import StoredStudy, create_study, open_study
from studyloom.study.worker import Worker
from studyloom.text import format_duration
from studyloom.views.dry_run import print_dry_run
from studyloom.views.live import Display
from studyloom.views.report import write_report
from studyloom.views.snapshot import Snapshot, take_snapshot
from studyloom.views.terminal import (
    answers_table,
    format_times,
    front_table,
    headline,
    make_console,
    print_failures,
    winner_lines,
)
from studyloom.winner.answer import is_answer_of, read_answer
from studyloom.winner.evaluation import evaluate_winner
from studyloom.winner.stages import Plan, Stage

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> None:
    """Runs the study that a config describes, or goes on with it, and prints the answer.

    Ends the process with 0 if all is done; with 2 if nothing was started, for a mistake in the configuration or a
    database or file that cannot be used; with 1 if it could not finish; with 130 or 143 if it was stopped by Ctrl-C or
    SIGTERM. `HYDRA_FULL_ERROR=1` shows tracebacks.
    """
    launcher = cfg.launcher if isinstance(cfg.launcher, DictConfig) else {}
    forks = (
        launcher.get("_target_") == "studyloom.launch.Local"
        and WORKER not in os.environ
        and not cfg.study.dry_run
    )
    fork_server = ForkServer.open(lambda: run_here(cfg)) if forks else None
    try:
        run_here(cfg, fork_server)
    finally:
        if fork_server is not None:
            fork_server.close()


def run_here(cfg: DictConfig, fork_server: ForkServer | None = None) -> NoReturn:
    """The same in this process, be it the command's or that of a worker which a launcher has started."""
    worker = WORKER in os.environ
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.basicConfig(
        format="%(asctime)s %(message)s", level=logging.INFO if worker else logging.WARNING
    )
    logging.captureWarnings(True)
    if worker:
        follow_parent()
    code = 0
    with Stop(cfg.study.timeout) as stop:
        try:
            prepared = prepare(cfg, worker=worker)
            if cfg.study.dry_run:
                print_dry_run(prepared.question, make_console())
                sys.exit()
            prepared = replace(prepared, url=serve(prepared.url))
            stored, trials = open_or_create(prepared, create=not worker)
            stored.wait_less(stop)
            plan = plan_of(prepared, Stage("search", stored, prepared.question, trials))
            if not worker:
                check_connections(prepared.url, prepared.launcher.count(plan.todo()))
        except (ValueError, OSError) as error:
            exit_with(error, 2)
        task = task_of(prepared, plan, fork_server)
        try:
            if worker:
                prepared.launcher.launch(task, stop)
            else:
                code = search_and_report(prepared, plan, task, stop)
        except KeyboardInterrupt:
            pass  # the second signal; what was held is handed back
        except Halted as error:
            exit_with(error, HALT if worker else error.exit_code)
        except (LaunchError, NoWinner, StorageLost, OSError) as error:
            exit_with(error, 1 if stop.signal is None else 128 + stop.signal)
        finally:
            plan.close()
    sys.exit(code if stop.signal is None else 128 + stop.signal)


def open_or_create(prepared: Prepared, *, create: bool) -> tuple[StoredStudy, int]:
    """The study in its database, made if it is not there, and the budget that the config gives it."""
    question, trials = prepared.question, prepared.question.trials()
    name = str(question.config.study.name)
    deadline = question.config.storage.deadline
    if not create:
        return open_study(prepared.url, name, deadline), trials
    prepared.run_dir.mkdir(parents=True, exist_ok=True)
    identity = question.identity(prepared.data.digest)
    stored = create_study(prepared.url, name, identity, trials, deadline, goals=question.goals)
    stored.state(question.rule)
    if left := enqueue(stored, prepared.starts, trials, prepared.url, baseline=question.baseline):
        log.warning(
            "%d points to begin with are left out: all %d trials have begun; raise study.trials",
            left,
            trials,
        )
    return stored, trials


def plan_of(prepared: Prepared, search: Stage) -> Plan:
    config = prepared.question.config
    settings = WinnerSection(**config.winner)
    return Plan(search, prepared.question, prepared.data, prepared.url, prepared.run_dir, settings)


def task_of(prepared: Prepared, plan: Plan, fork_server: ForkServer | None = None) -> Task:
    study = prepared.question.config.study
    limits = Limits(**{name: study[name] for name in Limits.__dataclass_fields__})
    stored = plan.search.stored
    work, where = _work(prepared, plan, limits), prepared.run_dir
    return Task(work, plan.todo, stored.ledger, where, limits, stored.name, fork_server)


def _work(prepared: Prepared, plan: Plan, limits: Limits) -> Callable[[Stop], None]:
    def work(stop: Stop) -> None:
        watch = Stopwatch.since(process_age())
        folder = prepared.question.config.checkpoints.dir
        for stage in plan:
            checkpoints = None
            if folder is not None:
                checkpoints = Path(folder) / ("" if stage is plan.search else stage.title)
                checkpoints.mkdir(parents=True, exist_ok=True)
            where = (prepared.data, stop, checkpoints, limits, stage.weights, watch)
            Worker(stage.asked, stage.stored, *where).run(stage.trials)
            if stop():
                return

    return work


def search_and_report(prepared: Prepared, plan: Plan, task: Task, stop: Stop) -> int:
    """Has the open slots worked on, shows how it goes, and tells what came of it; the exit code."""
    console = make_console()
    started, began = time.monotonic(), datetime.now()
    stored, trials = plan.search.stored, plan.search.trials
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
        with Display(lambda: plan.current.stored, console):
            follow = prepared.launcher.launch(task, stop)
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
        print_winner(plan, prepared, console)
    for stage in plan:
        print_failures(stage.stored, console)
    print_next_steps(prepared, plan, snapshot, console, began)
    for stage in plan:
        stage.stored.check_halted("the study has stopped, since its trials fail with this: ")
    if stop():
        why = "the time is up" if stop.signal is None else "stopped"
        console.print(f"{why}; the same command goes on from here")
    elif snapshot.best is None and snapshot.rule is not None:
        console.print(
            Text(
                f"no trial keeps to winner.rule: {snapshot.rule}; loosen it, or raise study.trials"
            ),
            soft_wrap=True,
        )
    elif not todo:
        console.print(f"the budget of {trials} trials is spent")
    return 0 if snapshot.best is not None or stop() else 1


def print_winner(plan: Plan, prepared: Prepared, console: Console) -> None:
    """The winner on the test part: opened for it now, or, where it was told before, read from winner.json."""
    # Of commands that come to the end together, one opens the test part; the others read what it has found.
    with exclusive(prepared.url, deadline=float(prepared.question.config.storage.deadline)):
        found = read_answer(plan.run_dir)
        if found is None or not is_answer_of(found, plan):
            found = evaluate_winner(plan, prepared.data.test, program())
            write_report(plan.search.stored, plan.run_dir)
    console.print(Text("\n".join(winner_lines(found))), soft_wrap=True)


def judge(cfg: DictConfig) -> None:
    """Chooses and tests the winner of a search that has ended, in this process, whether or not it was done before.

    Raises:
        ValueError: the search has not ended, or what `prepare` and the database have to say.
        OSError: a file cannot be read or written.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with Stop() as stop:
        prepared = prepare(cfg, worker=True)
        prepared = replace(prepared, url=serve(prepared.url))
        stored, trials = open_or_create(prepared, create=False)
        stored.wait_less(stop)
        plan = plan_of(prepared, Stage("search", stored, prepared.question, trials))
        if left := plan.search.todo():
            ways = "run the study on, or with a smaller study.trials"
            raise ConfigError([f"{plan.run_dir}: {left} of {trials} trials are open; {ways}"])
        task = task_of(prepared, plan)
        console = make_console()
        with Display(lambda: plan.current.stored, console):
            prepared.launcher.launch(task, stop)
        if plan.is_done():
            before = read_answer(plan.run_dir) or {}
            evaluate_winner(plan, prepared.data.test, before.get("command", program()))
            write_report(stored, plan.run_dir)
            print_winner(plan, prepared, console)


def write_best(prepared: Prepared, best: FrozenTrial) -> None:
    """Writes the best configuration so far to `best.yaml`."""
    question = prepared.question
    point = question.space.walk(lambda parameter: best.params[parameter.name])
    sections = plain_sections(question.at(point), *(name for name in SECTIONS if name != "space"))
    sections["train"].pop("loss")
    values = ", ".join(
        f"{goal.name} {value}" for goal, value in zip(question.goals, best.values, strict=True)
    )
    header = f"# {question.config.study.name}, trial {best.number}: validation {values}\n"
    write_yaml(prepared.run_dir / "best.yaml", sections, header)


def print_next_steps(
    prepared: Prepared, plan: Plan, snapshot: Snapshot, console: Console, began: datetime
) -> None:
    """Where things are, and what can be typed next."""
    stored = plan.search.stored
    times = [
        t for trial in stored.trials() for t in trial.user_attrs.get(EPOCHS, {}).get("seconds", [])
    ]
    if times:
        console.print(f"{median(times):.2f} s per epoch (median of {len(times)})")
    trials = [trial for stage in plan for trial in stage.stored.trials()]
    if told := format_times(trials, began):
        console.print(told)
    lines = [f"study  {without_password(parse_url(prepared.url))}"]
    files = {"best": "best.yaml", "winner": "winner.yaml", "report": "report.html"}
    lines += [
        f"{what:6} {prepared.run_dir / name}"
        for what, name in files.items()
        if (prepared.run_dir / name).exists()
    ]
    nexts = [f"studyloom {verb} {prepared.run_dir}" for verb in ("status", "dashboard")]
    spent = snapshot.done == snapshot.budget == prepared.question.config.study.trials
    if prepared.question.space.nodes and spent:
        more = [*program(), *own_arguments("study.trials"), f"study.trials={2 * snapshot.budget}"]
        nexts.insert(0, shlex.join(more))
    lines += [f"{'' if n else 'next':6} {command}" for n, command in enumerate(nexts)]
    console.print(Text("\n".join(lines)), soft_wrap=True)
