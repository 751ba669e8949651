"""The worker loop: claim a slot, run its trial, record how it ended."""

import contextlib
import copy
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import optuna
import torch
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from studyloom.data.training_data import TrainingData
from studyloom.definition.definition import KEEPS_STATE
from studyloom.definition.objective import Attempt, Objective, Stopping
from studyloom.definition.rule import Cost
from studyloom.errors import (
    ClaimLost,
    Interrupted,
    LaunchError,
    Paused,
    Stopped,
    StorageError,
    StorageLost,
)
from studyloom.processes import Stopwatch, worker_id
from studyloom.seeds import derive
from studyloom.space.samplers import any_point, identify
from studyloom.space.tree import Point, Space
from studyloom.storage.attributes import BASELINE, KEPT, PAUSED, SLOT, WORKER
from studyloom.storage.database import Connection
from studyloom.storage.ledger import Claim
from studyloom.study import failures
from studyloom.study.early_end import ending
from studyloom.study.promotion import Promotion, PromotionOrder
from studyloom.study.provenance import Provenance, current_environment
from studyloom.study.reporter import Reporter
from studyloom.study.stored_study import StoredStudy
from studyloom.training.checkpoint import Checkpoint, save_weights


@dataclass(frozen=True)
class TrialFiles:
    """The files of the trials of one study; in no folder, none is saved."""

    folder: Path | None
    study: str
    seed: int

    def checkpoint(self, number: int, point: Point) -> Checkpoint | None:
        """Returns where the state of trial `number` is saved; None if it is not saved."""
        if self.folder is None:
            return None
        parts = [self.study, number, self.seed, point.params]
        return Checkpoint(self.folder / f"trial-{number}.pt", json.dumps(parts, default=str))

    @staticmethod
    def folder_of(checkpoint: Checkpoint) -> Path:
        """Returns the folder for what the objective of a trial writes itself.

        Its name has a digest of the identity of the checkpoint, so that a trial of another study
        does not go on from its files.
        """
        digest = hashlib.sha256(checkpoint.identity.encode()).hexdigest()[:12]
        return checkpoint.path.with_name(f"{checkpoint.path.stem}-{digest}")

    def remove(self, checkpoint: Checkpoint | None) -> None:
        """Removes what a trial that has ended has left for another attempt, if anything."""
        if checkpoint is not None:
            with contextlib.suppress(OSError):
                checkpoint.remove()
            shutil.rmtree(self.folder_of(checkpoint), ignore_errors=True)

    def remove_left(self, read: Callable[[], Sequence[FrozenTrial]], space: Space) -> None:
        """Removes what ended trials have left, whose worker died before it had removed it."""
        if self.folder is None or not self.folder.is_dir():
            return
        found = (re.match(r"trial-(\d+)[.-]", path.name) for path in self.folder.iterdir())
        numbers = {int(match[1]) for match in found if match}
        for trial in read() if numbers else ():
            if trial.number in numbers and trial.state.is_finished():
                with contextlib.suppress(KeyError):
                    checkpoint = self.checkpoint(trial.number, space.at(trial.params))
                    # Another study may have its files in the same folder.
                    if checkpoint is not None and not checkpoint.is_foreign():
                        self.remove(checkpoint)


# Seconds between looks at slots that others hold. Each is half as long again as the one before: at
# the end of a search 1 000 workers that looked twice a second would keep their server busy.
WAIT, LONGEST_WAIT = 0.25, 5.0
REDRAWS = 10  # by the sampler, of a point that is not accepted, before chance decides
NO_POINT = "space.where: no point was found that keeps to it; loosen it"
log = logging.getLogger(__name__)


class TrialSource(Protocol):
    """A source of trials: a Question, or the trainings of a later stage."""

    @property
    def space(self) -> Space: ...
    @property
    def baseline(self) -> Point | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def in_turn(self) -> bool: ...
    @property
    def keeps_state(self) -> tuple[str, ...]: ...
    def provenance_sections(self, point: Point) -> dict[str, Any] | None: ...
    def trains_on(self, data: TrainingData) -> torch.device: ...
    def measure_costs(self, point: Point, data: TrainingData) -> list[Cost]: ...
    def make_objective(
        self, point: Point, number: int, data: TrainingData, attempt: Attempt
    ) -> Objective: ...
    def sampler(self, number: int) -> BaseSampler: ...
    def pruner(self) -> BasePruner: ...


@dataclass(frozen=True)
class Worker:
    """Works on a study in this process, one slot after the other.

    Args:
        checkpoints: the folder for the states of trials under way; None for none.
        weights: the folder for the network of each complete trial; None to keep none.
        pausing: returns whether to release the trial and to claim none for now.
    """

    definition: TrialSource
    stored: StoredStudy
    data: TrainingData
    stopping: Stopping
    checkpoints: Path | None
    limits: failures.Limits = field(default_factory=failures.Limits)
    weights: Path | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)
    on_claim: Callable[[], None] = lambda: None
    stage: str = "search"
    pausing: Callable[[], bool] = lambda: False
    on_end: Callable[[FrozenTrial], None] = lambda trial: None

    def run(self, trials: int) -> None:
        """Works on the first `trials` slots until all are done or the worker is asked to stop.

        Once the search has ended by its bounds, only the trials that have begun are left to do.
        Waits while others hold slots, because their leases may end.

        Raises:
            Halted: the study's trials all fail for the same reason.
            LaunchError: the sampler or pruner keeps state, and another process is at work.
            StorageLost: the database failed, or stayed away for longer than its deadline.
        """
        ledger, owner = self.stored.ledger, worker_id(os.getpid())
        kept = self.definition.keeps_state
        self.stored.optuna.pruner = pruner = self.definition.pruner()
        order = pruner.order(self.stored.goals) if isinstance(pruner, Promotion) else None

        def make(connection: Connection, slot: int) -> int:
            first = {BASELINE: True} if slot == 0 and self.definition.baseline is not None else {}
            attributes = {SLOT: slot, WORKER: owner, **first}
            return self.stored.storage.make(connection, ledger.study_id, attributes)

        wait = WAIT
        while not self.stopping():
            with self.watch("storage"):
                self.stored.check_halted()
                ended = ending(self.stored, trials) is not None
                claim = None
                if not self.pausing():
                    lease = self.limits.lease
                    claim = ledger.claim(owner, trials, lease, make, begun=ended, order=order)
            if claim is not None:
                self.on_claim()
                if kept:
                    self.begin_state(claim, kept)
                    kept = ()
                self.finish_claim(claim, order, trials)
                wait = WAIT
            elif ledger.todo(trials, begun=ended):
                self.idle(wait)
                wait = min(1.5 * wait, LONGEST_WAIT)
                ledger.record_gone()
            else:
                self.files.remove_left(self.stored.trials, self.definition.space)
                return

    def idle(self, seconds: float) -> None:
        """Waits, unless the worker is asked to stop."""
        with self.watch("idle"):
            while seconds > 0 and not self.stopping():
                time.sleep(min(seconds, WAIT))
                seconds -= WAIT

    def begin_state(self, claim: Claim, kept: Sequence[str]) -> None:
        """Checks that no other process works on a study whose sampler or pruner keeps state.

        Of two processes that begin together, each has its claim before it looks, so that both do
        not go on. The sampler is made here, once for all trials of this process.

        Raises:
            LaunchError: another process works on the study; the claim was released.
        """
        ledger, parts = self.stored.ledger, " and ".join(kept)
        ledger.record_gone()
        others = [held.owner for held in ledger.held() if held.owner != worker_id(os.getpid())]
        if others:
            ledger.release(claim)
            raise LaunchError(
                f"{parts}: keeps its state in one process ({KEEPS_STATE}), and {others[0]} works "
                f"on the study already; end that one; if it died, wait {self.limits.lease:.0f} s"
            )
        number = self.stored.storage.get_trial(claim.trial_id or 0).number
        begun = [trial for trial in self.stored.trials() if trial.datetime_start is not None]
        if any(trial.number != number for trial in begun):
            log.warning(
                "%s: keeps its state in one process, and what it kept in an earlier one is gone; "
                "it begins anew with trial %d, knowing the stored trials alone",
                parts,
                number,
            )
        if "sampler" in kept:
            self.stored.optuna.sampler = self.definition.sampler(number)

    def finish_claim(self, claim: Claim, order: PromotionOrder | None, trials: int) -> None:
        """Runs the trial of a claimed slot to its end or rung, or releases it if asked to stop."""
        ledger = self.stored.ledger
        try:
            with contextlib.suppress(Paused):
                self.run_trial(claim, order, trials)
        except (Stopped, Interrupted) as stop:
            ledger.release(claim)
            if isinstance(stop, Interrupted):
                raise
        except ClaimLost as lost:
            words = str(lost) or "silent too long: another worker went on with the trial"
            log.warning("slot %d: %s", claim.slot, words)
            # Has an effect only if another program ended or deleted the trial; then the next claim
            # of the slot meets that.
            ledger.release(claim)
        finally:
            self.stored.storage.clear()

    def run_trial(self, claim: Claim, order: PromotionOrder | None, trials: int) -> None:
        """Runs the trial of a claim from its present state to its end, or to a rung (Paused)."""
        assert claim.trial_id is not None
        with self.watch("storage"):
            frozen = self.stored.storage.load(self.stored.ledger.study_id, claim.trial_id)
        if frozen.state.is_finished():  # by a worker that died before it ended its claim
            self.stored.ledger.finish(claim)
            return
        with self.watch("sampling"):
            trial = self.begin(frozen)
        # The baseline is neither pruned nor paused, because all trials are compared with it. With
        # several objectives no pruner of Optuna's is asked, because those compare one value; trials
        # are paused all the same.
        prunable = self.definition.baseline is None or BASELINE not in trial.user_attrs
        comparable = prunable and len(self.stored.goals) == 1
        reporter = Reporter(
            stored=self.stored,
            trial=trial,
            claim=claim,
            owner=worker_id(os.getpid()),
            limits=self.limits,
            releasing=lambda: self.stopping() or self.pausing(),
            watch=self.watch,
            on_end=self.on_end,
            comparable=comparable,
            order=order if prunable else None,
            trials=trials,
        )
        if claim.ends_pruned or claim.fatal or claim.deaths >= self.limits.max_attempts:
            self.end_untrained(frozen, reporter)
            return
        if (point := self.draw(reporter)) is None:
            reporter.fail(failures.Failure(failures.ERROR, NO_POINT))
            return
        checkpoint = self.files.checkpoint(frozen.number, point)
        try:
            self.train(point, frozen, reporter, checkpoint)
        except Stopped:
            # A trial that ends its own process would come back for ever; one that others end, such
            # as a daemon that wants memory back, has mostly got further each time.
            if self.stopping.alone is not None and not reporter.progress:
                death = f"the worker got {self.stopping.alone}"
                self.stored.ledger.record_death(worker_id(os.getpid()), death)
            raise
        self.files.remove(checkpoint)

    def draw(self, reporter: Reporter) -> Point | None:
        """Draws the point of a trial and stores it; one that is given or stored already stays.

        The sampler draws again, with other seeds, what breaks a relation, or has been drawn where
        `limits.repeats` is false; then chance decides. Returns None if that finds nothing.
        """
        definition, buffer, number = self.definition, self.stored.storage, reporter.trial.number
        given, again = bool(reporter.trial.params), 0
        new = not given and not self.limits.repeats
        # Who has trial 0 may not have stored its point yet.
        taken = {identify(each) for each in (definition.baseline,) if new and each is not None}

        def write(connection: Connection) -> None:
            others = self.stored.lock_trials(connection) if new else []
            taken.update(identify(each) for each in others if each.number != number)
            if identify(point) not in taken:
                buffer.write(connection)

        while True:
            with self.watch("sampling"):
                point = definition.space.suggest(reporter.trial)
            if given or definition.space.breach(point.params) is None:
                with self.watch("storage"):
                    if not self.stored.ledger.renew(reporter.claim, self.limits.lease, write):
                        raise ClaimLost
                if identify(point) not in taken:
                    buffer.mark_written()
                    return point
            buffer.load(self.stored.ledger.study_id, reporter.trial._trial_id)  # without the point
            again += 1
            with self.watch("sampling"):
                if again > REDRAWS:
                    seed = derive(definition.seed, number, 1, again)
                    if (found := any_point(definition.space, seed, taken)) is None:
                        return None
                    self.give(reporter.trial._trial_id, found)
                reporter.trial = self.ask(reporter.trial._trial_id, derive(number, again))

    def ask(self, trial_id: int, number: int) -> optuna.Trial:
        """Returns the Optuna trial of the trial in the buffer, with a sampler that is seeded so."""
        if "sampler" not in self.definition.keeps_state:
            self.stored.optuna.sampler = self.definition.sampler(number)
        # A copy of the study looks at the trials anew: Optuna's keeps what the last sampler saw of
        # them until a trial is told how it ended, and one that is paused is not told.
        return optuna.Trial(copy.copy(self.stored.optuna), trial_id)

    def give(self, trial_id: int, point: Point) -> None:
        """Gives the trial in the buffer the parameters of a point."""
        for name, value in point.params.items():
            distribution = point.distributions[name]
            internal = distribution.to_internal_repr(value)
            self.stored.storage.set_trial_param(trial_id, name, internal, distribution)

    def begin(self, frozen: FrozenTrial) -> optuna.Trial:
        """Turns the trial in the buffer into an Optuna trial, and sets the sampler for it."""
        baseline, buffer, trial_id = self.definition.baseline, self.stored.storage, frozen._trial_id
        if frozen.state == TrialState.WAITING:
            buffer.set_trial_user_attr(trial_id, WORKER, worker_id(os.getpid()))
            buffer.set_trial_state_values(trial_id, TrialState.RUNNING)
        if frozen.user_attrs.get(PAUSED) is not None:
            buffer.set_trial_user_attr(trial_id, PAUSED, None)
        if BASELINE in frozen.user_attrs and baseline is not None and not frozen.params:
            self.give(trial_id, baseline)
        return self.ask(trial_id, frozen.number)

    def end_untrained(self, frozen: FrozenTrial, reporter: Reporter) -> None:
        """Ends a trial that no one goes on with.

        One of which too many workers died fails. One that was paused, and is not to be promoted, is
        pruned at its last report.
        """
        claim, checkpoint = reporter.claim, None
        with contextlib.suppress(KeyError):  # they died before all parameters were suggested
            point = self.definition.space.at(frozen.params)
            checkpoint = self.files.checkpoint(frozen.number, point)
            if not claim.ends_pruned:
                reporter.provenance = self.provenance(claim, point, frozen.number)
                reporter.store(None)
        if claim.ends_pruned:
            reporter.tell(None, TrialState.PRUNED)
        elif claim.fatal:
            reporter.fail(failures.Failure(failures.TIMEOUT, str(claim.death)))
        else:
            words = f"{claim.deaths} workers died of this trial, the last so: {claim.death}"
            reporter.fail(failures.Failure(failures.CRASHED, words))
        self.files.remove(checkpoint)

    def train(
        self, point: Point, frozen: FrozenTrial, reporter: Reporter, checkpoint: Checkpoint | None
    ) -> None:
        """Evaluates a point, and records its value, or why there is none."""
        number, state = frozen.number, TrialState.COMPLETE
        value: float | None = None
        failure: failures.Failure | None = None
        objective: Objective | None = None
        try:
            reporter.provenance = self.provenance(reporter.claim, point, number)
            reporter.constrain(self.definition.measure_costs(point, self.data))
            folder = None if checkpoint is None else TrialFiles.folder_of(checkpoint)
            attempt = Attempt(reporter.claim.token, self.stage, folder)
            objective = self.definition.make_objective(point, number, self.data, attempt)
            value = self.evaluate(objective, reporter, checkpoint, frozen.last_step)
        except BaseException as caught:  # whatever the user's code raises costs this trial alone
            error = reporter.raised or caught
            ours = error is reporter.raised
            if ours and isinstance(error, Paused):
                reporter.pause()
            theirs = isinstance(error, Stopped | Interrupted)
            if theirs or (ours and isinstance(error, StorageLost | ClaimLost | Paused)):
                raise error from None
            if not isinstance(error, optuna.TrialPruned):
                failure = failures.explain(error)
                if ours and isinstance(error, StorageError):  # what the database cannot hold
                    self.stored.storage.mark_written()
            else:
                state = TrialState.PRUNED
                if objective is not None and ours:
                    # Later epochs ran while the database was away.
                    objective.cut(error.args[0].number)
        if reporter.provenance is not None and point.trial is not None:
            suggested = self.definition.space.at(reporter.trial.params)
            reporter.provenance = self.provenance(reporter.claim, suggested, number)
        reporter.store(objective)
        if failure is not None:
            reporter.fail(failure)
        else:
            reporter.tell(value, state)

    def evaluate(
        self,
        objective: Objective,
        reporter: Reporter,
        checkpoint: Checkpoint | None,
        reported: int | None,
    ) -> float:
        """Runs an objective from its last checkpoint on, and returns its value."""
        number = reporter.trial.number
        with self.watch("checkpoints"):
            state = None if checkpoint is None else checkpoint.load()
        if state is not None:
            try:
                objective.restore(state)
            except ValueError as error:
                path = checkpoint and checkpoint.path
                log.warning("%s: %s; the trial starts again from the beginning", path, error)
        elif reported is not None:
            lacks = f"its reports up to step {reported} have no checkpoint in {self.checkpoints}"
            log.warning("trial %d: %s; it starts again from the beginning", number, lacks)
        last = -1 if reported is None else reported
        value = reporter.run(objective, checkpoint, last, self.stopping)
        weights = objective.weights() if self.weights is not None else None
        if self.weights is not None and weights is not None:
            with self.watch("checkpoints"):
                save_weights(self.weights / f"trial-{number}.pt", weights)
            reporter.trial.set_user_attr(KEPT, True)
        return value

    @property
    def files(self) -> TrialFiles:
        return TrialFiles(self.checkpoints, self.stored.name, self.definition.seed)

    def provenance(self, claim: Claim, point: Point, number: int) -> Provenance | None:
        """Returns the record that trains trial `number` again; None if there is none."""
        sections = self.definition.provenance_sections(point)
        if sections is None:
            return None
        seed, device = self.definition.seed, self.definition.trains_on(self.data)
        return Provenance(
            config=sections,
            seed=derive(seed, number),
            study_seed=seed,
            data=self.data.digest,
            in_turn=self.definition.in_turn,
            device=device.type,
            claims=claim.token,
            environment=current_environment(device),
        )
