"""The worker loop: claim a slot, run its trial, record how it ended."""

import contextlib
import logging
import os
import time
from collections.abc import Callable
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
WAIT, LONGEST_WAIT = 0.25, 5.0
ROUND_WAITS = 0.05, 0.5  # the same in rounds: there are few workers, which often wait briefly
NO_POINT = "space.where: no configuration was found that satisfies it; loosen it"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a training has ended: with a value, pruned, or failed.

    Args:
        value: None unless the trial is complete.
        failure: why it has failed; None if it has not.
        broken_by: which error has left this process unable to use its GPU; None if none has.
    """

    state: TrialState
    value: float | None = None
    failure: failures.Failure | None = None
    broken_by: str | None = None

    @classmethod
    def failed(cls, error: BaseException) -> "Outcome":
        """Explains a training that an error has ended."""
        return cls(
            TrialState.FAIL,
            failure=explain(error),
            broken_by=broken_by(error),
        )


@dataclass(frozen=True)
class Worker:
    """Works on a stage in this process, one slot after the other.

    Args:
        checkpoints: the folder for the states of running trials; None for none.
        interval: the least seconds between two states of a trial that neither pauses nor stops.
        pausing: returns whether to release the trial and to claim none for now.
    """

    stage: Stage
    data: TrainingData
    stopping: Stopping
    checkpoints: Path | None
    limits: failures.Limits = field(default_factory=failures.Limits)
    watch: Stopwatch = field(default_factory=Stopwatch)
    on_claim: Callable[[], None] = lambda: None
    pausing: Callable[[], bool] = lambda: False
    on_end: Callable[[FrozenTrial], None] = lambda trial: None
    interval: float = 0.0

    @property
    def stored(self) -> StoredStudy:
        return self.stage.stored

    @property
    def files(self) -> TrialFiles:
        return TrialFiles(self.stage, self.checkpoints)

    def run(self) -> None:
        """Works on the slots of the stage until all are done or a stop is requested.

        Once the search has ended by its bounds, only the trials that have begun are left to do.
        Waits while others hold slots, because their leases may end.

        Raises:
            Halted: the study's trials all fail for the same reason.
            BrokenProcess: a trial has left this process unable to use its GPU, and has ended.
            LaunchError: the sampler or pruner keeps state, and another process is at work.
            StorageLost: the database failed, or stayed away for longer than its deadline.
        """
        stage, ledger, lease = self.stage, self.stored.ledger, self.limits.lease
        begins = bool(stage.strategy.keeps_state)
        self.stored.optuna.pruner = stage.strategy.pruner()
        slots = SlotQueue(stage, worker_id(os.getpid()), self.limits.max_failures)
        first, longest = ROUND_WAITS if slots.in_rounds else (WAIT, LONGEST_WAIT)
        wait = first
        while not self.stopping():
            with self.watch("storage"):
                self.stored.check_halted()
                ended = stage.has_ended()
                claim = None if self.pausing() else slots.claim(lease, ended=ended)
            if claim is not None:
                self.on_claim()
                if begins:
                    slots.begin_state(claim, lease)
                    begins = False
                self.finish_claim(claim, slots)
                wait = first
            elif ledger.todo(stage.trials, begun=ended):
                slots.halt()
                self.idle(wait)
                wait = min(1.5 * wait, longest)
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

    def finish_claim(self, claim: Claim, slots: SlotQueue) -> None:
        """Runs the trial of a claimed slot to its end or rung, or releases it to stop."""
        ledger = self.stored.ledger
        try:
            with contextlib.suppress(Paused):
                self.run_trial(claim, slots)
        except (Stopped, Interrupted) as stop:
            ledger.release(claim)
            if isinstance(stop, Interrupted):
                raise
        except ClaimLost as lost:
            words = str(lost) or "silent too long: another worker resumed the trial"
            log.warning("slot %d: %s", claim.slot, words)
            # Releases the slot if another program ended or deleted the trial; the next claim of the
            # slot handles it.
            ledger.release(claim)
        finally:
            self.stored.storage.clear()

    def run_trial(self, claim: Claim, slots: SlotQueue) -> None:
        """Runs the trial of a claim from its present state to its end, or to a rung (Paused)."""
        assert claim.trial_id is not None
        with self.watch("storage"):
            frozen = self.stored.storage.load(self.stored.ledger.study_id, claim.trial_id)
        if frozen.state.is_finished():  # by a worker that died before it ended its claim
            self.stored.ledger.finish(claim)
            return
        with self.watch("sampling"):
            trial = slots.begin_trial(frozen, claim)
        held = HeldTrial(
            self.stored,
            trial,
            claim,
            self.limits,
            self.watch,
            self.on_end,
            is_search=self.stage.is_search,
            in_rounds=slots.in_rounds,
        )
        if claim.ends_pruned or claim.fatal or claim.deaths >= self.limits.max_attempts:
            self.end_untrained(frozen, held)
            return
        if (point := slots.draw(held)) is None:
            held.fail(failures.Failure(failures.ERROR, NO_POINT))
            return
        try:
            broken_by = self.train(point, frozen, held, slots)
        except Stopped:
            # A trial that ends its own process would come back for ever; one that others end, such
            # as a daemon that wants memory back, has mostly got further each time.
            if self.stopping.alone is not None and not held.progress:
                death = f"the worker got {self.stopping.alone}"
                self.stored.ledger.record_death(slots.owner, death)
            raise
        self.files.remove(frozen.number, point)
        if broken_by is not None:  # every further trial of this process would fail like this one
            self.stored.check_halted()
            raise BrokenProcess(
                f"trial {frozen.number} has left this process unable to use its GPU: {broken_by}"
            )

    def end_untrained(self, frozen: FrozenTrial, held: HeldTrial) -> None:
        """Ends a trial that no worker will resume.

        It fails if it has crashed too many workers. If it was paused and can no longer be promoted,
        it is pruned at its last report.
        """
        claim, point = held.claim, None
        with contextlib.suppress(KeyError):  # they died before all parameters were suggested
            point = self.stage.source.space.make_point(frozen.params)
            if not claim.ends_pruned:
                self.describe(held, point)
                held.store(None)
        if claim.ends_pruned:
            held.tell(None, TrialState.PRUNED)
        elif claim.fatal:
            held.fail(failures.Failure(failures.TIMEOUT, str(claim.death)))
        else:
            words = f"{claim.deaths} workers crashed in this trial; the last: {claim.death}"
            held.fail(failures.Failure(failures.CRASHED, words))
        if point is not None:
            self.files.remove(frozen.number, point)

    def train(
        self, point: Point, frozen: FrozenTrial, held: HeldTrial, slots: SlotQueue
    ) -> str | None:
        """Evaluates a configuration, and records its value, or why it has no value.

        Returns:
            Which error has left this process unable to use its GPU; None if none has.

        Raises:
            Stopped: the worker is to release the trial; so is Interrupted, by a second signal.
            Paused: the trial waits at a rung, and is released.
            ClaimLost: another worker has the trial.
            StorageLost: the database stays away.
        """
        suggests = point.trial is not None
        objective: Objective | None = None
        try:
            if not suggests:  # else once the hyperparameters are known
                self.describe(held, point)
            held.constrain(self.stage.source.measure_costs(point, self.data))
            checkpoint = self.files.checkpoint(frozen.number, point)
            folder = None if checkpoint is None else self.files.folder_of(checkpoint)
            attempt = Attempt(held.claim.token, self.stage.title, folder, pauses=slots.pauses)
            objective = self.stage.source.make_objective(point, frozen.number, self.data, attempt)
            # With several objectives no pruner of Optuna's is used, because those compare one
            # value; trials are paused all the same.
            prunable = slots.may_stop(frozen)
            reporter = Reporter(
                held,
                objective,
                checkpoint,
                frozen.last_step,
                releasing=lambda: self.stopping() or self.pausing(),
                comparable=prunable and len(self.stored.objectives) == 1,
                slots=slots if prunable else None,
                interval=self.interval,
            )
            value = reporter.run(self.stopping)
            with self.watch("checkpoints"):
                self.files.keep_weights(held.trial, objective)
            outcome = Outcome(TrialState.COMPLETE, value)
        except ReportRejected as rejected:
            assert objective is not None
            outcome = self.end_by_report(rejected.cause, held, objective)
        except (Stopped, Interrupted):
            raise
        except optuna.TrialPruned as pruned:
            outcome = Outcome(TrialState.PRUNED, broken_by=broken_by(pruned))
        except BaseException as error:  # whatever the user's code raises costs only this trial
            outcome = Outcome.failed(error)
        if suggests:
            self.describe(held, self.stage.source.space.make_point(held.trial.params))
        held.store(objective)
        if outcome.failure is not None:
            held.fail(outcome.failure)
        else:
            held.tell(outcome.value, outcome.state)
        return outcome.broken_by

    def end_by_report(
        self, cause: BaseException, held: HeldTrial, objective: Objective
    ) -> "Outcome":
        """Returns how a report has ended a trial; raises its cause if another worker continues.

        Args:
            cause: the exception that the report raised.
        """
        match cause:
            case Paused():
                held.pause()
                raise cause from None
            case Stopped() | Interrupted() | ClaimLost() | StorageLost():
                raise cause from None
            case optuna.TrialPruned():
                # Later epochs ran while the database was away.
                objective.cut(cause.args[0].number)
                return Outcome(TrialState.PRUNED)
            case StorageError():  # the database cannot hold what was reported
                self.stored.storage.mark_written()
        return Outcome.failed(cause)

    def describe(self, held: HeldTrial, point: Point) -> None:
        """Sets the record from which the trial can be trained again, if this is the search."""
        source, number = self.stage.source, held.trial.number
        if (sections := source.provenance_sections(point)) is not None:
            device = source.trains_on(self.data)
            held.provenance = Provenance(
                config=sections,
                seed=derive(source.seed, number),
                study_seed=source.seed,
                data=self.data.digest,
                device=device.type,
                claims=held.claim.token,
                environment=current_environment(device),
            )
