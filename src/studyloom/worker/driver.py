"""The driver of a study, with which every command, call and worker runs it from config to end.

They differ in their `Command`, in their `Reporting`, and in the `Stages` that they know: a call of
the kernel knows only the search. The launcher of the study gets a `Task`, and works on it with
workers in this process or in others.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
    """Reports on a study that is run. The base class reports nothing.

    Attributes:
        study: the study, once it is open.
    """

    study: OpenStudy | None = None

    def show_dry_run(self, definition: Definition) -> None:
        """Shows the search that a dry run does not begin."""

    def make_callbacks(self, config: StudyConfig) -> Sequence[TrialCallback]:
        """Makes the callbacks that get each trial of the search that ends.

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
            follow: a line to print if workers continue without this process; else None.

        Raises:
            NoWinner: a training that the result needs, or the test, has failed.
        """
        return 0

    def continues(self, open_trials: int) -> bool:
        """Returns whether to train trials that were opened meanwhile, as by `studyloom redo`.

        Args:
            open_trials: the number of these trials.
        """
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
        task = make_task(study, stages, command)
        if not command.is_worker:
            reopen(stages.find_begun(study))
        launcher = study.prepared.launcher
        if command.begins:
            check_connections(study.prepared.url, launcher.count(task.todo()))
        with reporting.attached(study):
            while True:
                follow = None  # a line to print if workers continue without this process
                while follow is None and not stop() and task.todo():
                    with reporting.watch(task, stop):
                        follow = launcher.launch(task, stop)
                    if not command.is_worker and not stop():
                        reconcile(stages.find_begun(study))
                code = reporting.finish(stop, follow)
                if follow is not None or stop():
                    return code
                for stage in stages.find_begun(study):
                    stage.stored.check_halted()
                # `studyloom redo` may have opened trials while the result was made.
                open_trials = task.todo()
                if not open_trials or not reporting.continues(open_trials):
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
    limits = Limits(
        lease=settings.lease,
        trial_timeout=settings.trial_timeout,
        max_attempts=settings.max_attempts,
        max_failures=settings.max_failures,
        allow_repeats=settings.allow_repeats,
    )

    def work(stop: Stop) -> None:
        stopwatch = Stopwatch.since(command.age())
        with ExitStack() as thread_count:
            if settings.deterministic:
                # The number of threads decides the last bits of a sum. With one thread, they do not
                # depend on how many workers share the cores.
                thread_count.enter_context(on_threads(1))
            while not stop():
                stage = stages.find_next(study)
                if stage is None:
                    return
                with make_worker(study, stage, stop, limits, stopwatch, command) as worker:
                    worker.run()

    def halted() -> bool:
        stage = stages.find_next(study)
        return stage is not None and stage.stored.halted() is not None

    def todo() -> int:
        stage = stages.find_next(study)
        if stage is None or stage.stored.halted() is not None:
            return 0
        return stage.todo() + stage.following

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
