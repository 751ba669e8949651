"""The plan of a run, opened in its database, and the task that its launcher gets."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from studyloom.config.schema import WinnerSection
from studyloom.config.values import value_at
from studyloom.errors import (
    ConfigError,
)
from studyloom.extras.export.checks import find_mistakes
from studyloom.extras.export.settings import SECTION, settings_of
from studyloom.launch.command import Command
from studyloom.launch.fork_server import ForkServer
from studyloom.launch.line import Line
from studyloom.launch.prepare import (
    Prepared,
    check_connections,
    open_or_create,
    prepare,
    prepare_to_join,
)
from studyloom.launch.task import Task
from studyloom.processes import collect_as_usual
from studyloom.storage.connections import closed_on_error
from studyloom.storage.embedded_server import serve
from studyloom.study.control import begin_again
from studyloom.study.identity import check_question
from studyloom.study.job import Job
from studyloom.study.limits import Limits
from studyloom.study.stopping import Stop
from studyloom.study.stopwatch import Stopwatch
from studyloom.study.worker import Worker
from studyloom.training.ranks import ALONE, Ranks
from studyloom.winner.stages import Plan, Stage


def prepare_command(cfg: DictConfig, ranks: Ranks = ALONE) -> Prepared:
    """Turns the config of a command into objects, and checks all that a command will do.

    Args:
        cfg: as composed.
        ranks: the processes that train each trial of this process.

    Raises:
        ConfigError: every mistake found.
    """
    return prepare(cfg, ranks, [find_mistakes])


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
    with closed_on_error(stored):
        stored.wait_less(stop)
        if not worker:
            begin_again(stored)
        plan = plan_of(prepared, Stage("search", stored, prepared.question, trials))
    with closed_on_error(plan):
        if not worker:
            check_connections(prepared.url, prepared.launcher.count(plan.todo()))
    collect_as_usual()  # trials come next
    return prepared, plan


def plan_of(prepared: Prepared, search: Stage) -> Plan:
    config = prepared.question.config
    settings = WinnerSection(**config.winner)
    return Plan(search, prepared.question, prepared.data, prepared.url, prepared.run_dir, settings)


def job_of(prepared: Prepared, plan: Plan) -> Job:
    """Returns what a command does, for whoever looks at the study without its config."""
    settings, question = plan.settings, plan.question
    per_hour = prepared.question.config.cost.per_hour
    return Job(
        trials=plan.search.trials,
        judged=settings.enabled,
        tested=bool(question.tested),
        top=settings.top,
        seeds=settings.seeds,
        chosen_anew=settings.committee,
        compresses=settings_of(value_at(question.config, SECTION)) is not None,
        per_hour=None if per_hour is None else float(per_hour),
    )


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
            last = (line.say_claimed, stage.title, lambda: stop.paused)
            with prepared.track(stage.title, stage.stored) as tracking:
                worker = Worker(stage.asked, stage.stored, *where, *last, tracking)
                worker.run(stage.trials)
            if stop():
                return

    return work
