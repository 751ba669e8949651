"""The life of a trial in a worker, in order: claim, draw, train, report, end.

`Worker.run` is the loop of a worker process. It *claims* a slot, which gives it a trial for as long
as it renews the lease (`SlotQueue.claim`). The sampler *draws* a configuration, unless the trial
has one already (`SlotQueue.draw`). The worker *trains*: it runs the objective, which *reports*
after each step (`Reporter`). A report may end the trial or pause it at a rung. Last, the trial
*ends* together with its claim (`HeldTrial.end`), or it is released, and another worker resumes it.
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
from studyloom.seeds import derive
from studyloom.space.tree import Point
from studyloom.storage import failures
from studyloom.storage.ledger import Claim
from studyloom.storage.stored_study import StoredStudy
from studyloom.worker.failure_causes import broken_by, explain
from studyloom.worker.held_trial import HeldTrial
from studyloom.worker.provenance import Provenance, current_environment
from studyloom.worker.reporter import Reporter, ReportRejected
from studyloom.worker.slots import SlotQueue
from studyloom.worker.stage import Stage, TrialFiles

# Seconds between looks at slots that others hold. Each is half as long again as the one before: at
# the end of a search 1,000 workers that looked twice a second would keep their server busy.
WAIT = 0.25
LONGEST_WAIT = 5.0
# In rounds there are few workers, which often wait briefly.
WAIT_IN_ROUNDS = 0.05
LONGEST_WAIT_IN_ROUNDS = 0.5
NO_POINT = "space.where: no configuration was found that satisfies it; loosen it"
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
        broken_by: The error that has left this process unable to use its GPU; None if none has.
    """

    state: TrialState
    value: float | None = None
    failure: failures.Failure | None = None
    broken_by: str | None = None

    @classmethod
    def failed(cls, error: BaseException) -> "Outcome":
        """Explains a training that an error has ended."""
        return cls(TrialState.FAIL, failure=explain(error), broken_by=broken_by(error))


@dataclass(frozen=True)
class BegunTrial:
    """A trial that a worker trains.

    Args:
        frozen: The trial as it was when the worker claimed it.
        point: Its configuration.
    """

    held: HeldTrial
    frozen: FrozenTrial
    point: Point


@dataclass(frozen=True)
class Worker:
    """Works on a stage in this process, one slot after the other.

    Attributes:
        stage: The search, or trainings that follow it.
        data: The data to train on.
        stopping: Whether to release the trial and to end.
        checkpoints: The folder for the states of running trials; None for none.
        limits: The limits of a trial and of the study.
        watch: Counts where the time of the worker goes.
        on_claim: Called after each claim of a slot.
        pausing: Whether to release the trial, and to claim none for now.
        interval: The least seconds between two states of a trial that neither pauses nor stops.
    """

    stage: Stage
    data: TrainingData
    stopping: Stopping
    checkpoints: Path | None
    limits: failures.Limits = field(default_factory=failures.Limits)
    watch: Stopwatch = field(default_factory=Stopwatch)
    on_claim: Callable[[], None] = do_nothing
    pausing: Callable[[], bool] = never
    interval: float = 0.0

    @property
    def stored(self) -> StoredStudy:
        return self.stage.stored

    @property
    def files(self) -> TrialFiles:
        return TrialFiles(self.stage, self.checkpoints)

    # Claim

    def run(self) -> None:
        """Works on the slots of the stage until all are done or a stop is requested.

        Once the search has ended by its bounds, only the trials that have begun are left to do.
        Waits while others hold slots, because their leases may end.

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
        must_begin_state = bool(stage.strategy.keeps_state)
        if slots.in_rounds:
            first_wait = WAIT_IN_ROUNDS
            longest_wait = LONGEST_WAIT_IN_ROUNDS
        else:
            first_wait = WAIT
            longest_wait = LONGEST_WAIT
        wait = first_wait  # seconds until the next look, while others hold all slots
        while not self.stopping():
            claim = None
            with self.watch("storage"):
                self.stored.check_halted()
                ended = stage.has_ended()
                if not self.pausing():
                    claim = slots.claim(self.limits.lease, ended=ended)
            if claim is not None:
                self.on_claim()
                if must_begin_state:
                    slots.begin_state(claim, self.limits.lease)
                    must_begin_state = False
                with self.holding(claim):
                    begun = self.begin_trial(claim, slots)
                    if begun is not None:
                        with self.recording_lone_signal(begun.held, slots):
                            gpu_error = self.train(begun, slots)
                        self.finish_trial(begun, gpu_error)
                wait = first_wait
            elif ledger.count_open(stage.trials, only_with_trial=ended):
                slots.halt()
                self.idle(wait)
                wait = min(1.5 * wait, longest_wait)
                ledger.record_gone()
            else:
                self.files.remove_left()
                return

    def idle(self, seconds: float) -> None:
        """Waits, unless a stop is requested."""
        with self.watch("idle"):
            while seconds > 0 and not self.stopping():
                time.sleep(min(seconds, WAIT))
                seconds -= WAIT

    @contextlib.contextmanager
    def holding(self, claim: Claim) -> Iterator[None]:
        """Holds a claimed slot while the body runs its trial, and releases it if that must stop."""
        ledger = self.stored.ledger
        try:
            yield
        except Paused:  # the slot was released with the trial
            pass
        except Stopped:
            ledger.release(claim)
        except Interrupted:
            ledger.release(claim)
            raise
        except ClaimLost as lost:
            reason = str(lost) or "silent too long: another worker resumed the trial"
            log.warning("slot %d: %s", claim.slot, reason)
            # If another program has ended or deleted the trial, the claim still holds. The slot is
            # released, and its next claim handles the change.
            ledger.release(claim)
        finally:
            self.stored.storage.clear()

    # Draw

    def begin_trial(self, claim: Claim, slots: SlotQueue) -> BegunTrial | None:
        """Begins or resumes the trial of a claim; returns None if it ends without training."""
        assert claim.trial_id is not None
        with self.watch("storage"):
            frozen = self.stored.storage.load(self.stored.ledger.study_id, claim.trial_id)
        if frozen.state.is_finished():  # by a worker that died before it ended its claim
            self.stored.ledger.finish(claim)
            return None
        with self.watch("sampling"):
            trial = slots.begin_trial(frozen, claim)
        held = HeldTrial(
            self.stored,
            trial,
            claim,
            self.limits,
            self.watch,
            self.stage.callbacks,
            is_search=self.stage.is_search,
            in_rounds=slots.in_rounds,
        )
        if claim.ends_pruned or claim.fatal or claim.deaths >= self.limits.max_attempts:
            self.end_untrained(frozen, held)
            return None
        point = slots.draw(held)
        if point is None:
            held.fail(failures.Failure(failures.ERROR, NO_POINT))
            return None
        return BegunTrial(held, frozen, point)

    def end_untrained(self, frozen: FrozenTrial, held: HeldTrial) -> None:
        """Ends a trial that no worker will resume.

        If it was paused and can no longer be promoted, it is pruned at its last report. Otherwise
        it fails, since it took too long or has crashed too many workers.
        """
        claim = held.claim
        point = None
        # Its workers may have died before all hyperparameters were suggested.
        with contextlib.suppress(KeyError):
            point = self.stage.source.space.make_point(frozen.params)
        if claim.ends_pruned:  # its provenance was stored when it was paused
            held.end(None, TrialState.PRUNED)
        else:
            if point is not None:
                self.describe(held, point)
                held.store(None)
            held.fail(self._failure_of_deaths(claim))
        if point is not None:
            self.files.remove(frozen.number, point)

    def _failure_of_deaths(self, claim: Claim) -> failures.Failure:
        """Returns why a trial has failed whose earlier workers have died."""
        if claim.fatal:
            return failures.Failure(failures.TIMEOUT, str(claim.death))
        reason = f"{claim.deaths} workers crashed in this trial; the last: {claim.death}"
        return failures.Failure(failures.CRASHED, reason)

    # Train and report

    @contextlib.contextmanager
    def recording_lone_signal(self, held: HeldTrial, slots: SlotQueue) -> Iterator[None]:
        """Counts a signal to this process only as a death, if the trial got no further before it.

        Otherwise a trial that ends its own process would come back forever. A trial whose process
        others end, such as a daemon that frees memory, has mostly got further each time.
        """
        try:
            yield
        except Stopped:
            if self.stopping.lone_signal is not None and not held.progress:
                death = f"the worker got {self.stopping.lone_signal}"
                self.stored.ledger.record_death(slots.owner, death)
            raise

    def train(self, begun: BegunTrial, slots: SlotQueue) -> str | None:
        """Evaluates a configuration, and ends its trial with the value, or the reason for none.

        Returns:
            The error that has left this process unable to use its GPU; None if none has.

        Raises:
            Stopped: The worker is to release the trial; so is Interrupted, by a second signal.
            Paused: The trial waits at a rung, and is released.
            ClaimLost: Another worker has the trial.
            StorageLost: The database stays away.
        """
        held = begun.held
        frozen = begun.frozen
        point = begun.point
        # An objective that draws its hyperparameters itself is described once it has done so.
        draws_itself = point.trial is not None
        objective: Objective | None = None
        try:
            if not draws_itself:
                self.describe(held, point)
            held.constrain(self.stage.source.measure_costs(point, self.data))
            attempt = self._make_attempt(begun, slots)
            objective = self.stage.source.make_objective(point, frozen.number, self.data, attempt)
            reporter = self._make_reporter(begun, objective, slots)
            value = reporter.run(self.stopping)
            with self.watch("checkpoints"):
                self.files.keep_weights(held.trial, objective)
            outcome = Outcome(TrialState.COMPLETE, value)
        except ReportRejected as rejected:
            assert objective is not None
            outcome = self._outcome_of_report(rejected.cause, held, objective)
        except (Stopped, Interrupted):
            raise
        except optuna.TrialPruned as pruned:
            outcome = Outcome(TrialState.PRUNED, broken_by=broken_by(pruned))
        except BaseException as error:  # whatever the user's code raises costs only this trial
            outcome = Outcome.failed(error)
        if draws_itself:
            self.describe(held, self.stage.source.space.make_point(held.trial.params))
        self._end(held, objective, outcome)
        return outcome.broken_by

    def _make_attempt(self, begun: BegunTrial, slots: SlotQueue) -> Attempt:
        """Describes this worker's attempt at a trial to the objective."""
        checkpoint = self.files.checkpoint(begun.frozen.number, begun.point)
        folder = None
        if checkpoint is not None:
            folder = self.files.folder_of(checkpoint)
        return Attempt(begun.held.claim.token, self.stage.title, folder, pauses=slots.pauses)

    def _make_reporter(self, begun: BegunTrial, objective: Objective, slots: SlotQueue) -> Reporter:
        """Makes the reporter of a trial; that of the baseline neither prunes nor pauses it."""
        may_stop = slots.may_stop(begun.frozen)
        pausing_slots = None
        if may_stop:
            pausing_slots = slots
        # With several objectives no pruner of Optuna's is used, because those compare one value;
        # trials are paused all the same.
        has_one_objective = len(self.stored.objectives) == 1
        return Reporter(
            begun.held,
            objective,
            self.files.checkpoint(begun.frozen.number, begun.point),
            reported=begun.frozen.last_step,
            releasing=self._must_release,
            comparable=may_stop and has_one_objective,
            slots=pausing_slots,
            interval=self.interval,
        )

    def finish_trial(self, begun: BegunTrial, gpu_error: str | None) -> None:
        """Removes the files of an ended trial.

        Args:
            gpu_error: The error that has left this process unable to use its GPU, if one has.

        Raises:
            BrokenProcess: There was one; every further trial of this process would fail like it.
        """
        number = begun.frozen.number
        self.files.remove(number, begun.point)
        if gpu_error is not None:
            self.stored.check_halted()
            raise BrokenProcess(
                f"trial {number} has left this process unable to use its GPU: {gpu_error}"
            )

    def _must_release(self) -> bool:
        return self.stopping() or self.pausing()

    def _outcome_of_report(
        self, cause: BaseException, held: HeldTrial, objective: Objective
    ) -> Outcome:
        """Returns how a report has ended a trial; raises its cause if another worker continues.

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
                # The database cannot hold what was reported, so it is not written again.
                self.stored.storage.mark_written()
        return Outcome.failed(cause)

    # End

    def _end(self, held: HeldTrial, objective: Objective | None, outcome: Outcome) -> None:
        """Stores what is known of a training, and ends its trial and claim."""
        held.store(objective)
        if outcome.failure is not None:
            held.fail(outcome.failure)
        else:
            held.end(outcome.value, outcome.state)

    def describe(self, held: HeldTrial, point: Point) -> None:
        """Sets the record from which the trial can be trained again, if this is the search."""
        source = self.stage.source
        sections = source.provenance_sections(point)
        if sections is None:
            return
        device = source.trains_on(self.data)
        held.provenance = Provenance(
            config=sections,
            seed=derive(source.seed, held.trial.number),
            study_seed=source.seed,
            data=self.data.digest,
            device=device.type,
            claims=held.claim.token,
            environment=current_environment(device),
        )
