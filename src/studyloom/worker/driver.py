"""The driver of a study, with which every command, call and worker runs it from config to end.

They differ in their `Command`, in their `Reporting`, and in the `Stages` that they know: a call of
the kernel knows only the search. The launcher of the study gets a `Task`, and works on it with
workers in this process or in others.

A *stage* is the search, or the trainings that follow it, such as the re-evaluation. An *open trial*
is one of the budget that has not ended yet.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from studyloom.config.study_config import StudyConfig
from studyloom.definition.definition import Definition
from studyloom.environment import RECYCLE
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
    """Reports on a study that is run. The base class reports nothing, as for a call of the kernel.

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

    def finish(self, stop: Stop, detached_notice: str | None) -> int:
        """Reports how a study has ended, or why it was stopped, and returns the exit code.

        A command makes the result here: it tests the winner, and writes and prints what was found.

        Args:
            detached_notice: a line to print if workers continue without this process; else None.

        Raises:
            Halted: all trials of a stage fail for the same reason; the result is reported before.
            NoWinner: a training that the result needs, or the test, has failed.
        """
        return 0

    def continues(self, open_trials: int) -> bool:
        """Returns whether to train a number of trials that were opened meanwhile.

        `studyloom redo` opens trials again, maybe while this process makes the result.
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
    if config.study.dry_run:  # so far only a warm start has read the database
        reporting.show_dry_run(prepared.definition)
        return 0
    reporting.prepare(prepared)
    launcher = prepared.launcher
    may_begin = command.begins and launcher.begins
    with (
        open_search(prepared, stop, create=may_begin) as study,
        obeying_requests(study, command, stop),
    ):
        if not launcher.begins:
            study.check_definition()  # the config may have changed since the study began
            if not command.is_worker:  # such as a task of SLURM
                study.check_budget()
        task = make_task(study, stages, command)
        if launcher.begins and not command.is_worker:
            reopen(stages.find_begun(study))  # a stage that has halted gets another chance
        if command.begins:
            workers = launcher.count_workers(task.count_open_trials())
            check_connections(study.prepared.url, workers)  # raises ConfigError if too few are left
        with reporting.attached(study):
            while True:
                # Run the open trials. Another program may have deleted or opened some once the
                # workers have ended.
                detached_notice = None  # a line to print if workers continue without this process
                while detached_notice is None and not stop() and task.count_open_trials() > 0:
                    with reporting.watch(task, stop):
                        detached_notice = launcher.launch(task, stop)
                    # After a stop, the next command repairs the tables as it opens the study.
                    if not command.is_worker and not stop():
                        reconcile(stages.find_begun(study))

                # Report the result.
                code = reporting.finish(stop, detached_notice)
                if detached_notice is not None or stop():
                    return code
                # The `finish` of a command that prints the end of its run raises Halted too.
                for stage in stages.find_begun(study):
                    stage.stored.check_halted()

                # Begin again if `studyloom redo` has opened trials while the result was made.
                open_trials = task.count_open_trials()
                if open_trials == 0 or not reporting.continues(open_trials):
                    return code


@contextmanager
def obeying_requests(study: OpenStudy, command: Command, stop: Stop) -> Iterator[None]:
    """Obeys `studyloom stop` and `pause` while the body runs, if this process runs trials.

    A worker with a line to its launcher obeys only `pause`: its launcher obeys `stop`, and then
    stops it. The tasks of a SLURM array have no line: they are commands of their own, and obey
    both.
    """
    runs_trials = command.begins or command.is_worker
    if not runs_trials:  # such as `studyloom winner`
        yield
        return
    has_launcher = command.line.is_connected  # by the line from a worker to its launcher
    with following_requests(study.stored, stop, obeys_stop=not has_launcher):
        yield


def reopen(stages: Iterable[Stage]) -> None:
    """Prepares stages to be run again by a command.

    Trials whose workers on this host have died are free at once, so that they resume before others
    begin. A stage that has halted, since its trainings failed, gets another chance. The search
    itself has got one in `open_search`, if the command may begin it.
    """
    for stage in stages:
        stage.stored.ledger.record_gone()
        if not stage.is_search:
            stage.stored.reconcile(stage.trials)
            forget_halt(stage.stored)


def reconcile(stages: Iterable[Stage]) -> None:
    """Repairs the budget tables of stages after another program has changed their trials.

    Raises:
        StorageError: a person must decide how.
    """
    for stage in stages:
        stored = stage.stored
        has_changed = stored.reconcile(stage.trials)
        if has_changed:
            stored.storage.forget(stored.ledger.study_id)  # the trials are read again


def make_task(study: OpenStudy, stages: Stages, command: Command) -> Task:
    """Makes the task of a launcher: to run the open trials of one stage after the other.

    The next stage is read from the database each time, because other workers run trials too.
    """
    settings = study.definition.config.study
    limits = Limits(
        lease=settings.lease,
        trial_timeout=settings.trial_timeout,
        max_attempts=settings.max_attempts,
        max_failures=settings.max_failures,
        allow_repeats=settings.allow_repeats,
    )

    claim_limit = RECYCLE.take()  # of this process; a study in a trial does not inherit it
    claims_ended = itertools.count(1)

    def work(stop: Stop) -> None:
        """Runs open trials in this process until there are none or a stop is requested."""

        def count_claim() -> None:
            """Ends this worker after `launcher.recycle` claims; its launcher starts another.

            Each claim counts, also one that resumes a trial, or that ends it without training.
            """
            if claim_limit is not None and next(claims_ended) == int(claim_limit):
                command.line.send("recycled")
                stop.request(f"launcher.recycle={claim_limit}")

        # It measures where the time goes, and limits nothing. The time so far counts as start-up.
        stopwatch = Stopwatch.since(command.age())
        with ExitStack() as cleanup:
            if settings.deterministic:
                # The number of threads decides the last bits of a sum. With one thread, they do not
                # depend on how many workers share the cores.
                cleanup.enter_context(on_threads(1))
            while not stop():
                stage = stages.find_next(study)
                if stage is None:
                    return
                # A worker runs one stage until none of its trials is open. The same stage comes
                # again if trials were opened meanwhile.
                with make_worker(
                    study, stage, stop, limits, stopwatch, command, count_claim
                ) as worker:
                    worker.run()

    def is_halted() -> bool:
        """Returns whether the trials of the next stage all fail, so that it has stopped itself."""
        stage = stages.find_next(study)
        return stage is not None and stage.stored.halted() is not None

    def count_open_trials() -> int:
        """Counts the open trials of the next stage, and those of later ones, at most."""
        stage = stages.find_next(study)
        if stage is None or stage.stored.halted() is not None:
            return 0
        return stage.count_open_trials() + stage.later_trials

    return Task(
        work=work,
        count_open_trials=count_open_trials,
        ledger=study.stored.ledger,
        run_dir=study.run_dir,
        limits=limits,
        name=study.stored.name,
        command=command,
        is_halted=is_halted,
    )


@contextmanager
def make_worker(
    study: OpenStudy,
    stage: Stage,
    stop: Stop,
    limits: Limits,
    stopwatch: Stopwatch,
    command: Command,
    on_claim_end: Callable[[], None],
) -> Iterator[Worker]:
    """Makes a worker that runs the trials of a stage in this process.

    After the body, the callbacks of the stage complete what they have begun, such as the upload of
    a curve.

    Args:
        on_claim_end: called after each claim, however the trial went: to its end, to a rung,
            released, or ended without training.
    """
    settings = study.definition.config.checkpoints
    checkpoint_folder = None
    if settings.dir is not None:
        checkpoint_folder = Path(settings.dir)
        if not stage.is_search:
            checkpoint_folder /= stage.title
        checkpoint_folder.mkdir(parents=True, exist_ok=True)
    try:
        yield Worker(
            stage=stage,
            data=study.data,
            must_stop=stop,
            checkpoint_folder=checkpoint_folder,
            limits=limits,
            stopwatch=stopwatch,
            # tells the launcher, once, that this worker has claimed a slot
            on_claim=command.line.send_claimed,
            on_claim_end=on_claim_end,
            # while `studyloom pause` holds: the worker releases its trial, and waits
            must_pause=lambda: stop.paused,
            checkpoint_interval=settings.interval,
        )
    finally:
        for callback in stage.callbacks:
            callback.close()
