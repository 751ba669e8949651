"""A study that is worked on, slot by slot."""

import contextlib
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from studyloom import failures, objective
from studyloom.checkpoint import Checkpoint, save_weights
from studyloom.data import Split
from studyloom.failures import FAILURE, REASON, Failure, TimedOut
from studyloom.ledger import Claim
from studyloom.metrics import shown
from studyloom.objective import STANDARD_ERROR as STANDARD_ERROR
from studyloom.objective import Effort, Stopped, Stopping
from studyloom.origin import MADE, Origin, environment
from studyloom.outbox import Outbox
from studyloom.owners import owner_of
from studyloom.record import HALTED, Record
from studyloom.rehearsal import Folds
from studyloom.seeds import derive
from studyloom.space import Point, Space
from studyloom.storage import StorageLost
from studyloom.train import Epoch

SLOT = "slot"  # user attributes of a trial
TOKEN = "token"
WORKER = "worker"
BASELINE = "baseline"
ENQUEUED = "enqueued"  # where the point of a trial is from that was made before any worker began it
EPOCHS = "epochs"
TIMES = "times"
TRACEBACK = "traceback"

WAIT = 0.5  # seconds between looks at slots that others hold
# A lease outlasts any epoch of the trial so far by this factor: an epoch that takes long is no sign of death.
LEASE_EPOCHS = 4

log = logging.getLogger(__name__)


class Asked(Protocol):
    """What a worker wants of whatever is to be tried: a Question, or the trainings of a later stage."""

    @property
    def space(self) -> Space: ...
    @property
    def baseline(self) -> Point | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def in_turn(self) -> bool: ...
    def made_of(self, point: Point) -> dict[str, Any] | None: ...
    def effort(self, point: Point, number: int, split: Split, folds: Folds) -> Effort: ...
    def sampler(self, number: int) -> BaseSampler: ...
    def pruner(self) -> BasePruner: ...


class Halted(RuntimeError):
    """The study was stopped because its trials fail for one reason; says which."""


class Lost(Exception):
    """The slot is another worker's by now."""


@dataclass(frozen=True)
class Limits:
    """How long a trial may take and a silent worker keeps it, in seconds; how often each may fail."""

    lease: float = 60.0
    trial_timeout: float | None = None
    max_attempts: int = 3
    max_failures: int = 5


@dataclass
class Stopwatch:
    """Where the time of a trial goes, in seconds by kind."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] += time.perf_counter() - start


@dataclass(frozen=True)
class Worker:
    """Works on a study in this process, one slot after the other, until all are done or it is asked to stop.

    checkpoints: the folder for those of trials under way; None for none. weights: the folder for the network of each
    trial that is complete, if they are wanted.
    """

    question: Asked
    record: Record
    split: Split
    folds: Folds
    stopping: Stopping
    checkpoints: Path | None
    limits: Limits = field(default_factory=Limits)
    weights: Path | None = None

    def run(self, trials: int) -> None:
        """Works on the first `trials` slots; waits for those that others hold, should their leases end.

        Raises:
            Halted: the study's trials fail for one reason.
            StorageLost: the database is away for longer than its deadline, or for good.
        """
        ledger, owner = self.record.ledger, owner_of(os.getpid())
        self.record.study.pruner = self.question.pruner()
        while not self.stopping():
            if (reason := self.record.halted()) is not None:
                raise Halted(reason)
            claim = ledger.claim(owner, trials, self.limits.lease)
            if claim is not None:
                self.settle(claim, owner)
            elif ledger.todo(trials):
                time.sleep(WAIT)
                ledger.bury_gone()
            else:
                return

    def settle(self, claim: Claim, owner: str) -> None:
        """Brings the trial of a claimed slot to its end, or hands it back, or finds that it is another's by now."""
        try:
            self.work(claim, owner)
        except (Stopped, KeyboardInterrupt) as stop:
            self.record.ledger.release(claim)
            if isinstance(stop, KeyboardInterrupt):
                raise
        except (Lost, UpdateFinishedTrialError):
            log.warning("slot %d: the lease ended and another worker went on with the trial", claim.slot)
            self.record.ledger.finish(claim)  # in effect only where somebody else told the trial and took no slot
        else:
            self.record.ledger.finish(claim)

    def work(self, claim: Claim, owner: str) -> None:
        watch = Stopwatch()
        with watch("storage"):
            frozen = self.begin(claim, owner)
        if frozen.state.is_finished():  # told, and then its worker died before it said so in the ledger
            return
        trial = optuna.Trial(self.record.study, frozen._trial_id)
        if claim.fatal or claim.deaths >= self.limits.max_attempts:
            with contextlib.suppress(KeyError):  # they died before all was asked
                point = self.question.space.walk(lambda parameter: frozen.params[parameter.name])
                self.keep(trial, None, self.origin(claim, point, trial.number), watch)
            self.fail(trial, self.obituary(claim))
            return
        with watch("sampling"):
            point = self.question.space.suggest(trial)
        checkpoint = self.checkpoint(frozen.number, point)
        value, failure, state = None, None, TrialState.COMPLETE
        origin: Origin | None = None
        effort: Effort | None = None
        try:
            origin = self.origin(claim, point, trial.number)
            effort = self.question.effort(point, trial.number, self.split, self.folds)
            value = self.strive(effort, trial, claim, checkpoint, frozen.last_step or 0, watch)
        except optuna.TrialPruned as pruned:
            assert effort is not None
            effort.cut(pruned.args[0].number)  # what was done while the database was away
            state = TrialState.PRUNED
        except (StorageLost, UpdateFinishedTrialError, Lost):
            raise
        except Exception as error:
            failure = failures.explain(error)
        self.keep(trial, effort, origin, watch)
        if failure is not None:
            self.fail(trial, failure)
        else:
            self.tell(trial, value, state)
        if checkpoint is not None:
            with contextlib.suppress(OSError):
                checkpoint.remove()

    def begin(self, claim: Claim, owner: str) -> FrozenTrial:
        """The trial of a slot, made if need be, with the study's sampler set for it."""
        storage, ledger = self.record.storage, self.record.ledger
        trial_id = claim.trial_id
        if trial_id is None and claim.token > 1:  # an earlier holder may have died before it attached its trial
            of_slot = [t for t in self.record.trials() if t.user_attrs.get(SLOT) == claim.slot]
            trial_id = of_slot[0]._trial_id if of_slot else None
        if trial_id is None:
            attributes = {SLOT: claim.slot, TOKEN: claim.token, WORKER: owner}
            template = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
            template.datetime_start = datetime.now()
            trial_id = storage.create_new_trial(ledger.study_id, template)
        if trial_id != claim.trial_id:
            ledger.attach(claim, trial_id)
        self.record.trials()  # Optuna's cache must know a trial before it takes parameters for it
        frozen = storage.get_trial(trial_id)
        if frozen.state.is_finished():
            return frozen
        if frozen.state == TrialState.WAITING:
            storage.set_trial_user_attr(trial_id, WORKER, owner)
            storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        self.record.study.sampler = self.question.sampler(frozen.number)
        if frozen.number == 0 and self.question.baseline is not None:
            storage.set_trial_user_attr(trial_id, BASELINE, True)
            for name, value in self.question.baseline.params.items():
                if name not in frozen.params:
                    distribution = self.question.baseline.distributions[name]
                    storage.set_trial_param(trial_id, name, distribution.to_internal_repr(value), distribution)
        return frozen

    def checkpoint(self, number: int, point: Point) -> Checkpoint | None:
        if self.checkpoints is None:
            return None
        identity = json.dumps([self.record.name, number, self.question.seed, point.params], default=str)
        return Checkpoint(self.checkpoints / f"trial-{number}.pt", identity)

    def origin(self, claim: Claim, point: Point, number: int) -> Origin | None:
        """What trial `number` is made of and with, for whoever wants to train it again."""
        sections = self.question.made_of(point)
        if sections is None:
            return None
        seed, device = self.question.seed, self.split.inputs.device
        return Origin(
            config=sections,
            seed=derive(seed, number),
            study_seed=seed,
            data=self.split.digest,
            in_turn=self.question.in_turn,
            device=device.type,
            claims=claim.token,
            environment=environment(device),
        )

    def strive(
        self,
        effort: Effort,
        trial: optuna.Trial,
        claim: Claim,
        checkpoint: Checkpoint | None,
        reported: int,
        watch: Stopwatch,
    ) -> float:
        """Brings an effort to its value, from its last checkpoint on; what it says is posted step by step."""
        started = time.monotonic()
        with watch("checkpoints"):
            state = None if checkpoint is None else checkpoint.load()
        if state is not None:
            try:
                effort.restore(state)
            except ValueError as error:
                log.warning("%s: %s; the trial starts anew", checkpoint and checkpoint.path, error)
        elif reported:
            where = f"of its {reported} epochs so far no checkpoint is in {self.checkpoints}"
            log.warning("trial %d: %s; it starts anew", trial.number, where)
        with Outbox(self.post(trial, claim, effort, reported), self.record.ledger.storage.is_away) as outbox:
            with watch("storage"):
                # Saved while the database was away, and then the worker died.
                for epoch in effort.steps()[reported * effort.stride :]:
                    outbox.send(epoch)

            def say(epoch: Epoch) -> None:
                with watch("storage"):
                    outbox.send(epoch)
                last = epoch.number == effort.epochs
                if not last and checkpoint is not None:
                    with watch("checkpoints"):
                        self.save(checkpoint, effort)
                if self.stopping() and not last:
                    raise Stopped
                limit = self.limits.trial_timeout
                if limit is not None and time.monotonic() - started > limit:
                    raise TimedOut(f"the trial took longer than study.trial_timeout={limit:g} seconds")

            value = effort.run(say, self.stopping)
            ended = time.perf_counter()
        watch.seconds["storage"] += time.perf_counter() - ended
        weights = effort.weights() if self.weights is not None else None
        if self.weights is not None and weights is not None:
            with watch("checkpoints"):
                save_weights(self.weights / f"trial-{trial.number}.pt", weights)
        return value

    def post(self, trial: optuna.Trial, claim: Claim, effort: Effort, reported: int) -> Callable[[Epoch], None]:
        """What is done in the database after each step: report, perhaps prune, renew the lease."""
        comparable = self.question.baseline is None or trial.number > 0  # all is compared with the baseline
        longest = 0.0

        def post(epoch: Epoch) -> None:
            nonlocal longest
            prunable = comparable and epoch.number != effort.epochs  # the last step is the value
            objective.report(trial, epoch, stride=effort.stride, prunable=prunable, reported=reported)
            longest = max(longest, epoch.seconds)
            if not self.record.ledger.renew(claim, max(self.limits.lease, LEASE_EPOCHS * longest)):
                raise Lost

        return post

    @staticmethod
    def save(checkpoint: Checkpoint, effort: Effort) -> None:
        """Saves a checkpoint if the disk lets it: a trial is worth more than a way to go on with it."""
        state = effort.state()
        if state is None:
            return
        try:
            checkpoint.save(state)
        except OSError as error:
            log.warning("%s; a crash would now cost this trial's epochs so far", error)

    def obituary(self, claim: Claim) -> Failure:
        if claim.fatal:
            return Failure(failures.TIMEOUT, str(claim.death))
        return Failure(failures.CRASHED, f"{claim.deaths} workers died of this trial, the last so: {claim.death}")

    def fail(self, trial: optuna.Trial, failure: Failure) -> None:
        """Ends a trial that came to nothing, and stops the study if that is all that its trials do."""
        trial.set_user_attr(FAILURE, failure.kind)
        trial.set_user_attr(REASON, failure.reason)
        if failure.details:
            trial.set_user_attr(TRACEBACK, failure.details)
            log.error("trial %d: %s", trial.number, failure.details)
        if failure.kind in failures.TEACHES:
            trial.set_constraint(failure.kind, 1.0)
            self.tell(trial, None, TrialState.PRUNED)
        else:
            self.tell(trial, None, TrialState.FAIL)
        if failure.kind in failures.MISTAKES and self.is_hopeless(trial.number, failure.reason):
            self.record.study.set_user_attr(HALTED, failure.reason)

    def is_hopeless(self, number: int, reason: str) -> bool:
        """Whether the first trial failed, or the last `max_failures` all did so for this reason."""
        ended = [trial for trial in self.record.trials() if trial.datetime_complete is not None]
        ended.sort(key=lambda trial: trial.datetime_complete or datetime.min)
        last = ended[-self.limits.max_failures :]
        same = [trial for trial in last if trial.user_attrs.get(REASON) == reason]
        return number == 0 or len(same) == self.limits.max_failures

    def tell(self, trial: optuna.Trial, value: float | None, state: TrialState) -> None:
        """Ends a trial; Lost if another worker has ended it."""
        try:
            self.record.study.tell(trial, value, state)
        except ValueError as error:
            raise Lost from error
        log.info("trial %d: %s%s", trial.number, state.name.lower(), "" if value is None else f" {shown(value)}")

    @staticmethod
    def keep(trial: optuna.Trial, effort: Effort | None, origin: Origin | None, watch: Stopwatch) -> None:
        """Stores what an effort said of each step, its origin, and where the time went."""
        if effort is not None and (columns := effort.curves()):
            if (error := effort.standard_error()) is not None:
                trial.set_user_attr(STANDARD_ERROR, error)
            trial.set_user_attr(EPOCHS, columns)
            watch.seconds["training"] = sum(columns["seconds"])
        if origin is not None:
            trial.set_user_attr(MADE, origin.stored())
        trial.set_user_attr(TIMES, {kind: round(seconds, 4) for kind, seconds in watch.seconds.items()})
