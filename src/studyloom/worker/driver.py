"""The driver of a study, with which every command, call and worker runs it from config to end.

They differ in their `Command` and their `Reporting`, and in the stages that they know.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from studyloom.config.study_config import StudyConfig
from studyloom.definition.definition import Definition
from studyloom.processes import Stopwatch
from studyloom.storage.failures import Limits
from studyloom.storage.opening import forget_halt
from studyloom.storage.reach import check_connections
from studyloom.training.steps import on_threads
from studyloom.worker.callbacks import TrialCallback
from studyloom.worker.open_study import OpenStudy, Prepared, Stages
from studyloom.worker.prepare_search import open_search, prepare
from studyloom.worker.stage import Stage
from studyloom.worker.stopping import Stop, following_requests
from studyloom.worker.task import Command, Task
from studyloom.worker.worker import Worker

SEARCH_ONLY = Stages()


class Reporting:
    """Reports on a study that is run: here nothing.

    Attributes:
        study: the study, once it is open.
    """

    study: OpenStudy | None = None

    def show_dry_run(self, definition: Definition) -> None:
        """Shows what a dry run would search."""

    def make_callbacks(self, config: StudyConfig) -> Sequence[TrialCallback]:
        """Makes what gets each trial of the search that ends.

        Raises:
            ConfigError: all errors in its part of the config.
        """
        return ()

    def prepare(self, prepared: Prepared) -> None:
        """Prepares for a study whose config is correct, before it is opened.

        Raises:
            ConfigError: it cannot be run.
        """

    @contextmanager
    def attached(self, study: OpenStudy) -> Iterator[None]:
        """Reports on an open study while the body runs.

        Raises:
            ConfigError: it cannot be run.
        """
        self.study = study
        yield

    @contextmanager
    def watch(self, task: Task, stop: Stop) -> Iterator[None]:
        """Shows the progress while workers run in the body."""
        yield

    def finish(self, stop: Stop, follow: str | None) -> int:
        """Reports how a study has ended, or why it was stopped, and returns the exit code.

        Args:
            follow: what to print if workers continue without this process; else None.

        Raises:
            NoWinner: a training that the result needs, or the test, has failed.
        """
        return 0

    def continues(self, left: int) -> bool:
        """Whether to train trials that were opened meanwhile, as by `studyloom redo`."""
        return True


def run_study(
    config: StudyConfig,
    command: Command,
    reporting: Reporting,
    stop: Stop,
    stages: Stages = SEARCH_ONLY,
) -> int:
    """Runs a study from its config to its end, or resumes it, and returns the exit code.

    Raises:
        ConfigError: all errors of the config.
        StorageError: the database cannot be used; StorageLost if it stays away.
        Halted: all trials fail for the same reason.
        LaunchError: workers die before they claim a trial.
        NoWinner: a training that the result needs, or the test, has failed.
    """
    prepared = prepare(config, joins=not command.begins, make_callbacks=reporting.make_callbacks)
    if config.study.dry_run:
        reporting.show_dry_run(prepared.definition)
        return 0
    reporting.prepare(prepared)
    with (
        open_search(prepared, stop, create=command.begins) as study,
        obeying_requests(study, command, stop),
    ):
        launcher = study.prepared.launcher
        task = make_task(study, stages, command)
        if not command.is_worker:
            reopen(stages.begun(study))
        if command.begins:
            check_connections(study.prepared.url, launcher.count(task.todo()))
        with reporting.attached(study):
            while True:
                follow = None
                while follow is None and not stop() and task.todo():
                    with reporting.watch(task, stop):
                        follow = launcher.launch(task, stop)
                    if not command.is_worker and not stop():
                        reconcile(stages.begun(study))
                code = reporting.finish(stop, follow)
                left = 0
                if follow is None and not stop():
                    left = task.todo()
                if not left or not reporting.continues(left):
                    return code


@contextmanager
def obeying_requests(study: OpenStudy, command: Command, stop: Stop) -> Iterator[None]:
    """Follows `studyloom stop` and `pause` while the body runs, in the command of a study.

    A launcher stops the workers that it has started itself.
    """
    if not command.begins and not command.is_worker:
        yield
        return
    with following_requests(study.stored, stop, stops=not command.line.is_connected):
        yield


def reopen(stages: Iterable[Stage]) -> None:
    """Repairs the stages after the search for a command; those that have halted may run again."""
    for stage in stages:
        if not stage.is_search:
            stage.stored.reconcile(stage.trials)
            forget_halt(stage.stored)


def reconcile(stages: Iterable[Stage]) -> None:
    """Corrects what another program changed in the ledgers or trials of stages.

    Raises:
        StorageError: a person must decide how.
    """
    for stage in stages:
        if stage.stored.reconcile(stage.trials):
            stage.stored.storage.forget(stage.stored.ledger.study_id)


def make_task(study: OpenStudy, stages: Stages, command: Command) -> Task:
    """Makes the task of a launcher: the open trials of all stages."""
    settings = study.definition.config.study
    limits = Limits(**{name: getattr(settings, name) for name in Limits.__dataclass_fields__})

    def work(stop: Stop) -> None:
        stopwatch = Stopwatch.since(command.age())
        # The number of threads, which decides the last bits, is that of any workers.
        with on_threads(1) if settings.deterministic else nullcontext():
            while not stop():
                stage = stages.next(study)
                if stage is None:
                    return
                with make_worker(study, stage, stop, limits, stopwatch, command) as worker:
                    worker.run()

    def todo() -> int:
        stage = stages.next(study)
        if stage is None:
            return 0
        return stage.todo() + stage.following

    def halted() -> bool:
        stage = stages.next(study)
        return stage is not None and stage.stored.halted() is not None

    return Task(
        work=work,
        todo=todo,
        ledger=study.stored.ledger,
        run_dir=study.run_dir,
        limits=limits,
        name=study.stored.name,
        command=command,
        halted=halted,
    )


@contextmanager
def make_worker(
    study: OpenStudy,
    stage: Stage,
    stop: Stop,
    limits: Limits,
    stopwatch: Stopwatch,
    command: Command,
) -> Iterator[Worker]:
    """Makes the worker of this process for a stage, and closes its callbacks."""
    settings = study.definition.config.checkpoints
    checkpoints = None
    if settings.dir is not None:
        checkpoints = Path(settings.dir)
        if not stage.is_search:
            checkpoints /= stage.title
        checkpoints.mkdir(parents=True, exist_ok=True)
    try:
        yield Worker(
            stage=stage,
            data=study.data,
            stopping=stop,
            checkpoints=checkpoints,
            limits=limits,
            watch=stopwatch,
            on_claim=command.line.send_claimed,
            pausing=lambda: stop.paused,
            interval=settings.interval,
        )
    finally:
        for callback in stage.callbacks:
            callback.close()
