"""The life of a trial in a worker, in order: claim, draw, train, report, end.

`Worker.run` is the loop of a worker process. A *slot* is a row of the study's budget, one for each
trial. The worker *claims* a slot, which gives it a trial for as long as it renews the lease
(`SlotQueue.claim`). The sampler *draws* a configuration, unless the trial has one already
(`SlotQueue.draw`). The worker *trains*: it runs the objective, which *reports* after each step
(`Reporter`). A report may end the trial or pause it at a rung. Last, the trial *ends* together with
its claim (`HeldTrial.end`), or it is released, and another worker resumes it.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from studyloom.data.training_data import TrainingData
from studyloom.errors import (
    BrokenProcess,
    ClaimLost,
    Interrupted,
    Paused,
    Stopped,
    StorageError,
    StorageLost,
)
from studyloom.objectives.objective import Attempt, Objective, Stopping
from studyloom.processes import Stopwatch, worker_id
from studyloom.space.tree import Configuration
from studyloom.storage import failures
from studyloom.storage.ledger import Claim
from studyloom.storage.stored_study import StoredStudy
from studyloom.worker.clean_up import clean_up_after_trial
from studyloom.worker.failure_causes import explain, find_gpu_error
from studyloom.worker.held_trial import HeldTrial
from studyloom.worker.provenance import Provenance
from studyloom.worker.reporter import Reporter, ReportRejected
from studyloom.worker.slots import SlotQueue
from studyloom.worker.stage import Stage, TrialFiles

# Seconds between looks at slots that others hold. Each is longer than the one before: at the end of
# a search 1,000 workers that looked twice a second would keep their server busy.
WAIT = 0.25
LONGEST_WAIT = 5.0
WAIT_GROWTH = 1.5  # factor between one wait and the next
# In rounds there are few workers, which often wait briefly.
WAIT_IN_ROUNDS = 0.05
LONGEST_WAIT_IN_ROUNDS = 0.5
NO_CONFIGURATION = "space.where: no configuration was found that satisfies it; loosen it"
log = logging.getLogger(__name__)


def do_nothing() -> None:
    pass


def never() -> bool:
    return False


@dataclass(frozen=True)
class Outcome:
    """How a training has ended: with a value, pruned, or failed.

    Attributes:
        value: None unless the trial is complete.
        failure: Why it has failed; None if it has not.
        gpu_error: The error that has left this process unable to use its GPU; None if none has.
    """

    state: TrialState
    value: float | None = None
    failure: failures.Failure | None = None
    gpu_error: str | None = None

    @classmethod
    def failed(cls, error: BaseException) -> "Outcome":
        """Explains a training that an error has ended."""
        return cls(TrialState.FAIL, failure=explain(error), gpu_error=find_gpu_error(error))


@dataclass(frozen=True)
class BegunTrial:
    """A trial that a worker trains.

    Args:
        held: The trial, with the worker's claim on it.
        frozen: The trial as it was when the worker claimed it.
        configuration: Its hyperparameters.
    """

    held: HeldTrial
    frozen: FrozenTrial
    configuration: Configuration


@dataclass(frozen=True)
class Worker:
    """Runs the trials of a stage in this process, one after the other.

    Attributes:
        stage: The search, or trainings that follow it.
        data: The data to train on.
        must_stop: Whether to release the trial and to end.
        checkpoint_folder: The folder for the states of running trials; None for none.
        limits: The limits of a trial and of the study.
        stopwatch: Counts where the time of the worker goes.
        on_claim: Called after each claim of a slot.
        on_claim_end: Called after each claim, however the trial went: to its end, to a rung,
            released, or ended without training.
        must_pause: Whether to release the trial, and to claim none for now.
        checkpoint_interval: The least seconds between two states of a trial that neither pauses nor
            stops.
    """

    stage: Stage
    data: TrainingData
    must_stop: Stopping
    checkpoint_folder: Path | None
    limits: failures.Limits = field(default_factory=failures.Limits)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    on_claim: Callable[[], None] = do_nothing
    on_claim_end: Callable[[], None] = do_nothing
    must_pause: Callable[[], bool] = never
    checkpoint_interval: float = 0.0

    @property
    def stored(self) -> StoredStudy:
        return self.stage.stored

    @property
    def files(self) -> TrialFiles:
        return TrialFiles(self.stage, self.checkpoint_folder)

    # Claim

    def run(self) -> None:
        """Runs trials of the stage until none is open or a stop is requested.

        A worker claims a slot, a row of the study's budget, and so reserves its trial. Once the
        search has ended early, only the trials that have begun or are queued are run. While other
        workers hold all open slots, this one waits: if one of them dies, its slot can be claimed.

        Raises:
            Halted: The study's trials all fail for the same reason.
            BrokenProcess: A trial has left this process unable to use its GPU, and has ended.
            LaunchError: The sampler or pruner keeps state, and another process is at work.
            StorageLost: The database failed, or stayed away for longer than its deadline.
        """
        stage = self.stage
        ledger = self.stored.ledger
        self.stored.optuna.pruner = stage.strategy.pruner()
        slots = SlotQueue(stage, worker_id(os.getpid()), self.limits.max_failures)
        # A sampler that keeps its state in this process must be the only one at work.
        must_check_alone = bool(stage.strategy.keeps_state)
        if slots.in_rounds:
            first_wait = WAIT_IN_ROUNDS
            longest_wait = LONGEST_WAIT_IN_ROUNDS
        else:
            first_wait = WAIT
            longest_wait = LONGEST_WAIT
        wait = first_wait  # seconds until the next look, while others hold all slots
        while not self.must_stop():
            claim = None
            with self.stopwatch("storage"):
                self.stored.check_halted()
                slots.follow_decided_pruner()
                search_ended = stage.has_ended()
                if not self.must_pause():
                    claim = slots.claim(self.limits.lease, search_ended=search_ended)
            if claim is not None:
                self.on_claim()
                if must_check_alone:
                    slots.begin_alone(claim, self.limits.lease)
                    must_check_alone = False
                with self.releasing_on_stop(claim):
                    begun = self.begin_trial(claim, slots)
                    if begun is not None:  # None: the trial has ended without training
                        with self.counting_lone_signal(begun.held, slots):
                            gpu_error = self.train(begun, slots)
                        self.finish_trial(begun, gpu_error)
                clean_up_after_trial()
                self.on_claim_end()
                wait = first_wait
            elif ledger.count_open(stage.trials, only_with_trial=search_ended):
                self.wait_for_others(slots, wait)
                wait = min(WAIT_GROWTH * wait, longest_wait)
            else:  # all trials have ended
                self.files.remove_stale()
                return

    def wait_for_others(self, slots: SlotQueue, seconds: float) -> None:
        """Waits while other workers hold all open slots, or while the study is paused."""
        slots.halt_failed_rounds()  # if its trials fail, and no other worker can go on either
        self.idle(seconds)
        self.stored.ledger.record_gone()  # frees the slots of workers on this host that have died

    def idle(self, seconds: float) -> None:
        """Waits for some seconds, or until a stop is requested."""
        with self.stopwatch("idle"):
            remaining = seconds
            while remaining > 0 and not self.must_stop():
                time.sleep(min(remaining, WAIT))
                remaining -= WAIT

    @contextlib.contextmanager
    def releasing_on_stop(self, claim: Claim) -> Iterator[None]:
        """Releases a claimed slot for another worker, if its trial is stopped in the body.

        A request to stop ends only the trial: `run` then ends by itself. A second request, which
        raises Interrupted, ends this process at once.
        """
        ledger = self.stored.ledger
        trial_buffer = self.stored.storage
        try:
            yield
        except Paused:  # the trial was paused at a rung, and its slot released with it
            pass
        except Stopped:
            ledger.release(claim)
        except Interrupted:
            ledger.release(claim)
            raise
        except ClaimLost as lost:
            # Another worker has claimed the slot: then releasing it has no effect. Or another
            # program has ended or deleted the trial: then this worker still holds the slot, and the
            # next one to claim it handles the change.
            reason = str(lost) or "silent too long: another worker resumed the trial"
            log.warning("slot %d: %s", claim.slot, reason)
            ledger.release(claim)
        finally:
            trial_buffer.clear()  # of changes of the trial that were not written

    # Draw

    def begin_trial(self, claim: Claim, slots: SlotQueue) -> BegunTrial | None:
        """Begins or resumes the trial of a claimed slot.

        Returns:
            None if the trial ends without training.
        """
        assert claim.trial_id is not None
        with self.stopwatch("storage"):
            frozen = self.stored.storage.load(self.stored.ledger.study_id, claim.trial_id)
        if frozen.state.is_finished():  # its worker died before it ended the claim
            self.stored.ledger.finish(claim)
            return None
        ends_pruned = slots.ends_pruned(frozen, claim)
        took_too_long = claim.fatal  # its last worker was killed for study.trial_timeout
        has_crashed_too_often = claim.deaths >= self.limits.max_attempts
        ends_untrained = ends_pruned or took_too_long or has_crashed_too_often
        with self.stopwatch("sampling"):
            # The sampler may be what has crashed its workers.
            trial = slots.begin_trial(frozen, claim, draws=not ends_untrained)
        held = HeldTrial(
            stored=self.stored,
            trial=trial,
            claim=claim,
            limits=self.limits,
            stopwatch=self.stopwatch,
            callbacks=self.stage.callbacks,
            is_search=self.stage.is_search,
            in_rounds=slots.in_rounds,
        )
        if ends_untrained:
            self.end_untrained(frozen, held, ends_pruned=ends_pruned)
            return None
        configuration = slots.draw(held)
        if configuration is None:
            held.fail(failures.Failure(failures.ERROR, NO_CONFIGURATION))
            return None
        return BegunTrial(held, frozen, configuration)

    def end_untrained(self, frozen: FrozenTrial, held: HeldTrial, *, ends_pruned: bool) -> None:
        """Ends a trial that no worker will resume.

        Args:
            ends_pruned: Whether it is pruned at its last report. Otherwise it fails, since it took
                too long or has crashed too many workers.
        """
        claim = held.claim
        # The configuration is unknown if its workers died before they had suggested all of it.
        configuration = None
        with contextlib.suppress(KeyError):
            configuration = self.stage.source.space.make_configuration(frozen.params)
        # The provenance of a trial that waits at a rung was stored when it was paused.
        if configuration is not None and not claim.ends_pruned:
            self.set_provenance(held, configuration)
            held.store(objective=None)  # nothing is trained here
        if ends_pruned:
            held.end(value=None, state=TrialState.PRUNED)
        else:
            held.fail(self._explain_deaths(claim))
        if configuration is not None:
            self.files.remove(frozen.number, configuration)

    def _explain_deaths(self, claim: Claim) -> failures.Failure:
        """Returns the failure of a trial whose workers have died, or timed out with it."""
        if claim.fatal:  # the last worker was killed, since the trial took too long
            return failures.Failure(failures.TIMEOUT, str(claim.last_death))
        reason = f"{claim.deaths} workers crashed in this trial; the last: {claim.last_death}"
        return failures.Failure(failures.CRASHED, reason)

    # Train and report

    @contextlib.contextmanager
    def counting_lone_signal(self, held: HeldTrial, slots: SlotQueue) -> Iterator[None]:
        """Counts a lone signal, which came to this process only, as a death of the trial's worker.

        A trial that ends its own process would otherwise be resumed forever. The signal does not
        count if the trial has made progress: then another program has sent it, such as a daemon
        that frees memory.
        """
        try:
            yield
        except Stopped:
            signal_name = self.must_stop.lone_signal
            if signal_name is not None and not held.has_progressed:
                death = f"the worker got {signal_name}"
                self.stored.ledger.record_death(slots.owner, death)
            raise

    def train(self, begun: BegunTrial, slots: SlotQueue) -> str | None:
        """Trains a configuration, and ends its trial as complete, pruned or failed.

        An error of the user's code ends the trial as failed, and is not raised.

        Returns:
            The error that has left this process unable to use its GPU; None if none has.

        Raises:
            Stopped, Interrupted: The worker must stop, and releases the trial.
            Paused: The trial waits at a rung, an epoch that compares trials, and was released.
            ClaimLost: Another worker has the trial.
            StorageLost: The database stays away.
        """
        held = begun.held
        frozen = begun.frozen
        configuration = begun.configuration
        source = self.stage.source
        # An Optuna objective draws its hyperparameters while it runs; they are known afterwards.
        draws_in_training = configuration.trial is not None
        objective: Objective | None = None
        try:
            if not draws_in_training:
                self.set_provenance(held, configuration)
            held.check_limits(source.measure_costs(configuration, self.data))
            attempt = self._make_attempt(begun, slots)
            objective = source.make_objective(configuration, frozen.number, self.data, attempt)
            reporter = self._make_reporter(begun, objective, slots)
            value = reporter.run(self.must_stop)
            with self.stopwatch("checkpoints"):
                self.files.keep_weights(held.trial, objective)
            outcome = Outcome(TrialState.COMPLETE, value)
        except ReportRejected as rejected:  # a report has ended the trial, or this attempt
            assert objective is not None
            # Raises Stopped, Interrupted, Paused, ClaimLost or StorageLost if that is the cause.
            outcome = self._handle_rejection(rejected.cause, held, objective)
        except (Stopped, Interrupted):  # the training was interrupted between two reports
            raise
        except optuna.TrialPruned as pruned:
            outcome = Outcome(TrialState.PRUNED, gpu_error=find_gpu_error(pruned))
        except BaseException as error:  # an error of the user's code costs only this trial
            outcome = Outcome.failed(error)

        if outcome.failure is None:
            slots.decide_pruner(objective)
        if draws_in_training:
            self.set_provenance(held, source.space.make_configuration(held.trial.params))
        held.store(objective)
        if outcome.failure is not None:
            held.fail(outcome.failure)
        else:
            held.end(outcome.value, outcome.state)
        return outcome.gpu_error

    def _make_attempt(self, begun: BegunTrial, slots: SlotQueue) -> Attempt:
        """Describes this worker's attempt at a trial to the objective.

        Each attempt begins with a claim on the trial's slot, its row in the budget. A claim's token
        counts the claims on the slot, and so numbers the attempts.
        """
        claim = begun.held.claim
        checkpoint = self.files.checkpoint(begun.frozen.number, begun.configuration)
        folder = None
        if checkpoint is not None:
            folder = self.files.folder_of(checkpoint)
        return Attempt(
            number=claim.token,
            stage=self.stage.title,
            folder=folder,
            must_resume=slots.must_resume,
        )

    def _make_reporter(self, begun: BegunTrial, objective: Objective, slots: SlotQueue) -> Reporter:
        """Makes the reporter of a trial, which decides after each step whether it is ended early.

        The baseline, the default configuration, is neither pruned nor paused. With several
        objectives trials are only paused, because Optuna's pruners compare one value.
        """
        may_stop = slots.may_stop(begun.frozen)
        has_one_objective = len(self.stored.objectives) == 1
        pausing_slots = None
        if may_stop:
            pausing_slots = slots
        return Reporter(
            held=begun.held,
            objective=objective,
            checkpoint=self.files.checkpoint(begun.frozen.number, begun.configuration),
            last_stored_step=begun.frozen.last_step,
            must_release=self._must_release,
            may_be_pruned=may_stop and has_one_objective,
            slots=pausing_slots,
            checkpoint_interval=self.checkpoint_interval,
        )

    def finish_trial(self, begun: BegunTrial, gpu_error: str | None) -> None:
        """Removes the files of an ended trial, and ends this process if its GPU can't be used.

        Args:
            gpu_error: The error that has left this process unable to use its GPU, if one has.

        Raises:
            BrokenProcess: There was such an error; each further trial here would fail like this.
            Halted: The study's trials all fail for the same reason.
        """
        number = begun.frozen.number
        self.files.remove(number, begun.configuration)
        if gpu_error is not None:
            # If the study has halted, no other process needs to go on with it.
            self.stored.check_halted()
            raise BrokenProcess(
                f"trial {number} has left this process unable to use its GPU: {gpu_error}"
            )

    def _must_release(self) -> bool:
        return self.must_stop() or self.must_pause()

    def _handle_rejection(
        self, cause: BaseException, held: HeldTrial, objective: Objective
    ) -> Outcome:
        """Returns how a report has ended a trial, as by pruning it.

        If the trial has not ended, the cause is raised again. This worker's part in the trial has
        ended then: the trial is paused or released, another worker has it, or the database is away.

        Args:
            cause: The exception that the report raised.
        """
        match cause:
            case Paused():
                held.pause()
                raise cause from None
            case Stopped() | Interrupted() | ClaimLost() | StorageLost():
                raise cause from None
            case optuna.TrialPruned():
                # The training may have continued while the database was away; its learning curve
                # ends with the step at which it was pruned.
                pruned_step = cause.args[0]
                objective.forget_steps_after(pruned_step.number)
                return Outcome(TrialState.PRUNED)
            case StorageError():
                # The database cannot hold what was reported. The buffer drops it, as if it were
                # written, so that the end of the trial can be written without it.
                self.stored.storage.mark_written()
        return Outcome.failed(cause)

    def set_provenance(self, held: HeldTrial, configuration: Configuration) -> None:
        """Sets the record that is stored with a trial, from which it can be trained again.

        Trainings that follow the search have none: the trial of their candidate has it.
        """
        source = self.stage.source
        sections = source.provenance_sections(configuration)
        if sections is None:
            return
        held.provenance = Provenance.of_trial(
            held.trial.number,
            config=sections,
            study_seed=source.seed,
            data=self.data.digest,
            device=source.trains_on(self.data),
            claims=held.claim.token,  # the token counts the claims on the trial's slot
        )
