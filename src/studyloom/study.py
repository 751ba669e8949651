"""A study that is worked on, slot by slot."""

import contextlib
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection

from studyloom import failures, objective, rows
from studyloom.checkpoint import Checkpoint, save_weights
from studyloom.constraints import Infeasible, Measured
from studyloom.data import Split
from studyloom.failures import FAILURE, REASON, Failure, TimedOut
from studyloom.ledger import Claim
from studyloom.metrics import shown
from studyloom.objective import STANDARD_ERROR as STANDARD_ERROR
from studyloom.objective import Effort, Step, Stopped, Stopping
from studyloom.origin import MADE, Origin, environment
from studyloom.outbox import Outbox
from studyloom.owners import owner_of
from studyloom.record import BASELINE as BASELINE
from studyloom.record import HALTED, Record
from studyloom.rehearsal import Folds
from studyloom.seeds import derive
from studyloom.space import Point, Space
from studyloom.storage import StorageLost

SLOT = "slot"  # user attributes of a trial
WORKER = "worker"
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
    def measure(self, point: Point, split: Split | None, folds: Folds) -> list[Measured]: ...
    def effort(self, point: Point, number: int, split: Split | None, folds: Folds) -> Effort: ...
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
    """Where a worker's time goes, in seconds by kind."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    taken: float = field(default_factory=time.perf_counter)

    @classmethod
    def since(cls, start_up: float) -> "Stopwatch":
        """One that has run for so many seconds, in which a process was started up."""
        return cls(defaultdict(float, {"start-up": start_up}), time.perf_counter() - start_up)

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(kind, time.perf_counter() - start)

    def add(self, kind: str, seconds: float) -> None:
        self.seconds[kind] += seconds

    def take(self) -> dict[str, float]:
        """All the time since it was taken before; what was not measured is `other`."""
        now = time.perf_counter()
        taken = {"other": max(0.0, now - self.taken - sum(self.seconds.values()))} | self.seconds
        self.taken = now
        self.seconds.clear()
        return taken


@dataclass(frozen=True)
class Worker:
    """Works on a study in this process, one slot after the other, until all are done or it is asked to stop.

    checkpoints: the folder for those of trials under way; None for none. weights: the folder for the network of each
    trial that is complete, if they are wanted. watch: measures what it does, from its start to the end of each trial.
    """

    question: Asked
    record: Record
    split: Split | None
    folds: Folds
    stopping: Stopping
    checkpoints: Path | None
    limits: Limits = field(default_factory=Limits)
    weights: Path | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)

    def run(self, trials: int) -> None:
        """Works on the first `trials` slots; waits for those that others hold, should their leases end.

        Raises:
            Halted: the study's trials fail for one reason.
            StorageLost: the database is away for longer than its deadline, or for good.
        """
        ledger, owner = self.record.ledger, owner_of(os.getpid())
        self.record.study.pruner = self.question.pruner()

        def make(connection: Connection, slot: int) -> int:
            return rows.add(connection, ledger.study_id, {SLOT: slot, WORKER: owner})

        while not self.stopping():
            with self.watch("storage"):
                if (reason := self.record.halted()) is not None:
                    raise Halted(reason)
                claim = ledger.claim(owner, trials, self.limits.lease, make)
            if claim is not None:
                self.settle(claim)
            elif ledger.todo(trials):
                with self.watch("idle"):
                    time.sleep(WAIT)
                ledger.bury_gone()
            else:
                return

    def settle(self, claim: Claim) -> None:
        """Brings the trial of a claimed slot to its end, or hands it back, or finds that it is another's by now."""
        desk, ledger = self.record.storage, self.record.ledger
        try:
            self.work(claim)
        except (Stopped, KeyboardInterrupt) as stop:
            ledger.release(claim)
            if isinstance(stop, KeyboardInterrupt):
                raise
        except (Lost, UpdateFinishedTrialError):
            log.warning("slot %d: the lease ended and another worker went on with the trial", claim.slot)
            ledger.finish(claim)  # in effect only where somebody else told the trial and took no slot
        finally:
            desk.clear()

    def work(self, claim: Claim) -> None:
        assert claim.trial_id is not None
        with self.watch("storage"):
            frozen = self.record.storage.take(self.record.ledger.study_id, claim.trial_id)
        if frozen.state.is_finished():  # told, and then its worker died before it said so in the ledger
            self.record.ledger.finish(claim)
            return
        with self.watch("sampling"):
            trial = self.begin(frozen)
        if claim.fatal or claim.deaths >= self.limits.max_attempts:
            with contextlib.suppress(KeyError):  # they died before all was asked
                point = self.question.space.walk(lambda parameter: frozen.params[parameter.name])
                self.keep(trial, None, self.origin(claim, point, trial.number))
            self.fail(trial, self.obituary(claim), claim)
            return
        with self.watch("sampling"):
            point = self.question.space.suggest(trial)
        with self.watch("storage"):
            self.write(claim, self.limits.lease)
        checkpoint = self.checkpoint(frozen.number, point)
        value, failure, state = None, None, TrialState.COMPLETE
        origin: Origin | None = None
        effort: Effort | None = None
        try:
            origin = self.origin(claim, point, trial.number)
            self.constrain(trial, self.question.measure(point, self.split, self.folds))
            effort = self.question.effort(point, trial.number, self.split, self.folds)
            value = self.strive(effort, trial, claim, checkpoint, frozen.last_step)
        except optuna.TrialPruned as pruned:
            assert effort is not None
            effort.cut(pruned.args[0].number)  # what was done while the database was away
            state = TrialState.PRUNED
        except (StorageLost, UpdateFinishedTrialError, Lost):
            raise
        except Exception as error:
            failure = failures.explain(error)
        self.keep(trial, effort, origin)
        if failure is not None:
            self.fail(trial, failure, claim)
        else:
            self.tell(trial, value, state, claim)
        if checkpoint is not None:
            with contextlib.suppress(OSError):
                checkpoint.remove()

    def begin(self, frozen: FrozenTrial) -> optuna.Trial:
        """The trial that lies on the desk as Optuna knows one, with the study's sampler set for it."""
        self.record.study.sampler = self.question.sampler(frozen.number)
        baseline, desk, trial_id = self.question.baseline, self.record.storage, frozen._trial_id
        if frozen.state == TrialState.WAITING:
            desk.set_trial_user_attr(trial_id, WORKER, owner_of(os.getpid()))
            desk.set_trial_state_values(trial_id, TrialState.RUNNING)
        if frozen.number == 0 and baseline is not None:
            desk.set_trial_user_attr(trial_id, BASELINE, True)
            for name, value in baseline.params.items():
                if name not in frozen.params:
                    distribution = baseline.distributions[name]
                    desk.set_trial_param(trial_id, name, distribution.to_internal_repr(value), distribution)
        return optuna.Trial(self.record.study, trial_id)

    def write(self, claim: Claim, lease: float) -> None:
        """Writes what is new of the trial, and renews its lease, in one transaction; Lost if it is another's by now."""
        if not self.record.ledger.renew(claim, lease, self.record.storage.write):
            raise Lost
        self.record.storage.wrote()

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
        seed, split = self.question.seed, self.split
        device = torch.device("cpu") if split is None else split.inputs.device
        return Origin(
            config=sections,
            seed=derive(seed, number),
            study_seed=seed,
            data="" if split is None else split.digest,
            in_turn=self.question.in_turn,
            device=device.type,
            claims=claim.token,
            environment=environment(device),
        )

    @staticmethod
    def constrain(trial: optuna.Trial, measured: Sequence[Measured]) -> None:
        """Stores what a network costs, and how far that is from its limits, from which samplers learn too.

        Raises:
            Infeasible: it is more than it may.
        """
        for found in measured:
            trial.set_user_attr(found.quantity, found.value)
            if found.limit is not None:
                trial.set_constraint(found.quantity, found.excess)
        if beyond := [str(found) for found in measured if found.excess > 0]:
            raise Infeasible("; ".join(beyond))

    def strive(
        self,
        effort: Effort,
        trial: optuna.Trial,
        claim: Claim,
        checkpoint: Checkpoint | None,
        reported: int | None,
    ) -> float:
        """Brings an effort to its value, from its last checkpoint on; what it says is posted step by step."""
        started = time.monotonic()
        with self.watch("checkpoints"):
            state = None if checkpoint is None else checkpoint.load()
        if state is not None:
            try:
                effort.restore(state)
            except ValueError as error:
                log.warning("%s: %s; the trial starts anew", checkpoint and checkpoint.path, error)
        elif reported:
            where = f"of its {reported} epochs so far no checkpoint is in {self.checkpoints}"
            log.warning("trial %d: %s; it starts anew", trial.number, where)
        last_told = -1 if reported is None else reported
        with Outbox(self.post(trial, claim, effort, last_told), self.record.ledger.storage.is_away) as outbox:
            with self.watch("storage"):
                # Saved while the database was away, and then the worker died.
                for epoch in effort.steps():
                    if epoch.number > last_told * effort.stride:
                        outbox.send(epoch)

            evaluated = effort.evaluating

            def say(epoch: Step) -> None:
                nonlocal evaluated
                evaluation, evaluated = effort.evaluating - evaluated, effort.evaluating
                self.watch.add("training", epoch.seconds - evaluation)
                self.watch.add("evaluation", evaluation)
                with self.watch("storage"):
                    outbox.send(epoch)
                last = epoch.number == effort.epochs
                if not last and checkpoint is not None:
                    with self.watch("checkpoints"):
                        self.save(checkpoint, effort)
                if self.stopping() and not last:
                    raise Stopped
                limit = self.limits.trial_timeout
                if limit is not None and time.monotonic() - started > limit:
                    raise TimedOut(f"the trial took longer than study.trial_timeout={limit:g} seconds")

            value = effort.run(say, self.stopping)
            ended = time.perf_counter()
        self.watch.add("storage", time.perf_counter() - ended)
        weights = effort.weights() if self.weights is not None else None
        if self.weights is not None and weights is not None:
            with self.watch("checkpoints"):
                save_weights(self.weights / f"trial-{trial.number}.pt", weights)
        return value

    def post(self, trial: optuna.Trial, claim: Claim, effort: Effort, reported: int) -> Callable[[Step], None]:
        """What is done in the database after each step: report and renew the lease in one commit, perhaps prune."""
        # All is compared with the baseline; trials of two values cannot be compared before they have both.
        comparable = len(self.record.aims) == 1 and (self.question.baseline is None or trial.number > 0)
        longest = 0.0

        def post(epoch: Step) -> None:
            nonlocal longest
            longest = max(longest, epoch.seconds)
            prunable = comparable and epoch.number != effort.epochs  # the last step is the value

            def write() -> None:
                self.write(claim, max(self.limits.lease, LEASE_EPOCHS * longest))
                if prunable and not isinstance(self.record.study.pruner, NopPruner):
                    # One read of the others, however much the pruner wants to know of them.
                    self.record.storage.look(self.record.ledger.study_id)

            objective.report(trial, epoch, stride=effort.stride, prunable=prunable, reported=reported, write=write)

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

    def fail(self, trial: optuna.Trial, failure: Failure, claim: Claim) -> None:
        """Ends a trial that came to nothing, and stops the study if that is all that its trials do."""
        trial.set_user_attr(FAILURE, failure.kind)
        trial.set_user_attr(REASON, failure.reason)
        if failure.details:
            trial.set_user_attr(TRACEBACK, failure.details)
            log.error("trial %d: %s", trial.number, failure.details)
        if failure.kind in failures.TEACHES:
            trial.set_constraint(failure.kind, 1.0)
            self.tell(trial, None, TrialState.PRUNED, claim)
        else:
            self.tell(trial, None, TrialState.FAIL, claim)
        if failure.kind in failures.MISTAKES and self.is_hopeless(trial.number, failure.reason):
            self.record.study.set_user_attr(HALTED, failure.reason)

    def is_hopeless(self, number: int, reason: str) -> bool:
        """Whether the first trial failed, or the last `max_failures` all did so for this reason."""
        ended = [trial for trial in self.record.trials() if trial.datetime_complete is not None]
        ended.sort(key=lambda trial: trial.datetime_complete or datetime.min)
        last = ended[-self.limits.max_failures :]
        same = [trial for trial in last if trial.user_attrs.get(REASON) == reason]
        return number == 0 or len(same) == self.limits.max_failures

    def tell(self, trial: optuna.Trial, value: float | None, state: TrialState, claim: Claim) -> None:
        """Ends a trial and its claim in one transaction; Lost if it is another's by now."""
        costs = [trial.user_attrs[aim.name] for aim in self.record.aims[1:]] if value is not None else []
        self.record.study.tell(trial, None if value is None else [value, *costs], state)
        with self.watch("storage"):
            if not self.record.ledger.finish(claim, self.record.storage.write):
                raise Lost
            self.record.storage.clear()
        log.info("trial %d: %s%s", trial.number, state.name.lower(), "" if value is None else f" {shown(value)}")

    def keep(self, trial: optuna.Trial, effort: Effort | None, origin: Origin | None) -> None:
        """Stores what an effort said of each step, its origin, and where the time went."""
        if effort is not None and (columns := effort.curves()):
            if (error := effort.standard_error()) is not None:
                trial.set_user_attr(STANDARD_ERROR, error)
            trial.set_user_attr(EPOCHS, columns)
        if origin is not None:
            trial.set_user_attr(MADE, origin.stored())
        trial.set_user_attr(TIMES, {kind: round(seconds, 4) for kind, seconds in self.watch.take().items()})
