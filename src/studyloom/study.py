"""A study in its database: opened by what it asks, and worked on, slot by slot."""

import contextlib
import json
import logging
import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, get_storage
from optuna.trial import FrozenTrial, TrialState

from studyloom import config, failures, objective
from studyloom.checkpoint import Checkpoint
from studyloom.data import Split
from studyloom.failures import FAILURE, REASON, Failure, TimedOut
from studyloom.ledger import Claim, Ledger
from studyloom.objective import Stopped, Stopping
from studyloom.origin import MADE, Origin, environment
from studyloom.outbox import Outbox
from studyloom.question import SECTIONS, Folds, Question
from studyloom.seeds import derive
from studyloom.space import Point
from studyloom.storage import StorageError, StorageLost, connect, exclusive
from studyloom.train import Epoch, Training

QUESTION = "question"  # user attributes of the study: what it asks, by key
HALTED = "halted"  # why nobody is to go on, or null
SLOT = "slot"  # user attributes of a trial
TOKEN = "token"
WORKER = "worker"
BASELINE = "baseline"
EPOCHS = "epochs"
TIMES = "times"
TRACEBACK = "traceback"

WAIT = 0.5  # seconds between looks at slots that others hold
# A lease outlasts any epoch of the trial so far by this factor: an epoch that takes long is no sign of death.
LEASE_EPOCHS = 4

log = logging.getLogger(__name__)


class QuestionError(ValueError):
    """The study of that name asks something else; says what."""


class Halted(RuntimeError):
    """The study was stopped because its trials fail for one reason; says which."""


class Lost(Exception):
    """The slot is another worker's by now."""


@dataclass(frozen=True)
class Record:
    """A study as it is stored: Optuna's tables and the ledger beside them."""

    name: str
    storage: BaseStorage
    study: optuna.Study
    ledger: Ledger

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number; not to be changed."""
        return self.study.get_trials(deepcopy=False)

    def halted(self) -> str | None:
        reason: str | None = self.study.user_attrs.get(HALTED)
        return reason


def open_record(url: str, name: str, deadline: float = 300.0) -> Record:
    """A study that exists.

    Raises:
        StorageError: no such database, or no study of that name in it.
    """
    backend = connect(url, deadline=deadline)
    storage = get_storage(backend)
    try:
        study_id = storage.get_study_id_from_name(name)
    except KeyError:
        names = ", ".join(study.study_name for study in storage.get_all_studies()) or "none"
        raise StorageError(f"study.name: the database holds no study {name!r}; it holds {names}") from None
    study = optuna.load_study(study_name=name, storage=storage)
    return Record(name, storage, study, Ledger(backend, study_id))


def create_record(url: str, name: str, question: Mapping[str, Any], trials: int, deadline: float = 300.0) -> Record:
    """Opens the study, making database, tables and study where they are missing, with a budget of at least `trials`.

    Raises:
        QuestionError: the study exists and asks something else.
        StorageError: the database cannot be used.
    """
    with exclusive(url):
        backend = connect(url, create=True, deadline=deadline)
        storage = get_storage(backend)
        if name not in {study.study_name for study in storage.get_all_studies()}:
            study = optuna.create_study(study_name=name, storage=storage, direction="maximize")
            Ledger(backend, storage.get_study_id_from_name(name)).create()
            study.set_user_attr(QUESTION, dict(question))
        record = open_record(url, name, deadline)
        asked = record.study.user_attrs.get(QUESTION)
        if asked is None:  # its maker died between the two commits above
            record.ledger.create()
            record.study.set_user_attr(QUESTION, dict(question))
        elif changes := differences(asked, question):
            raise QuestionError(
                f"study.name: the study {name!r} asks another question, so its trials cannot be compared:\n"
                + "".join(f"  {change}\n" for change in changes)
                + "go back to that question, or give this one another name: study.name=…"
            )
        record.ledger.extend(trials)
        if record.halted() is not None:  # whoever starts it again has mended the reason
            record.study.set_user_attr(HALTED, None)
    return record


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key: was → is` for each key whose value differs."""
    return [
        f"{key}: {was.get(key, '(absent)')} → {now.get(key, '(absent)')}"
        for key in sorted({*was, *now})
        if was.get(key, "(absent)") != now.get(key, "(absent)")
    ]


def owner_of(pid: int) -> str:
    """The name of a worker in the ledger."""
    return f"{socket.gethostname()}:{pid}"


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
    """Works on a study in this process, one slot after the other, until all are done or it is asked to stop."""

    question: Question
    record: Record
    split: Split
    folds: Folds
    stopping: Stopping
    checkpoints: Path
    limits: Limits = field(default_factory=Limits)

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
        watch, curve = Stopwatch(), list[Epoch]()
        with watch("storage"):
            frozen = self.begin(claim, owner)
        if frozen.state.is_finished():  # told, and then its worker died before it said so in the ledger
            return
        trial = optuna.Trial(self.record.study, frozen._trial_id)
        if claim.fatal or claim.deaths >= self.limits.max_attempts:
            with contextlib.suppress(KeyError):  # they died before all was asked
                point = self.question.space.walk(lambda parameter: frozen.params[parameter.name])
                trial.set_user_attr(MADE, self.origin(claim, point, trial.number).stored())
            self.fail(trial, self.obituary(claim))
            return
        with watch("sampling"):
            point = self.question.space.suggest(trial)
        checkpoint = self.checkpoint(frozen.number, point)
        failure, state, origin = None, TrialState.COMPLETE, None
        try:
            origin = self.origin(claim, point, trial.number)
            self.train(trial, claim, point, checkpoint, frozen.last_step or 0, watch, curve)
        except optuna.TrialPruned as pruned:
            del curve[pruned.args[0].number :]  # epochs that were trained while the database was away
            state = TrialState.PRUNED
        except (StorageLost, UpdateFinishedTrialError, Lost):
            raise
        except Exception as error:
            failure = failures.explain(error)
        self.keep(trial, curve, origin, watch)
        if failure is not None:
            self.fail(trial, failure)
        else:
            self.tell(trial, curve[-1].accuracy if state == TrialState.COMPLETE else None, state)
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
        self.record.study.sampler = self.question.sampler(frozen.number)
        if frozen.number == 0 and self.question.baseline is not None:
            storage.set_trial_user_attr(trial_id, BASELINE, True)
            for name, value in self.question.baseline.params.items():
                if name not in frozen.params:
                    distribution = self.question.baseline.distributions[name]
                    storage.set_trial_param(trial_id, name, distribution.to_internal_repr(value), distribution)
        return frozen

    def checkpoint(self, number: int, point: Point) -> Checkpoint:
        identity = json.dumps([self.record.name, number, self.question.config.study.seed, point.params], default=str)
        return Checkpoint(self.checkpoints / f"trial-{number}.pt", identity)

    def origin(self, claim: Claim, point: Point, number: int) -> Origin:
        """What trial `number` is made of and with, for whoever wants to train it again."""
        sections = config.plain(self.question.at(point), *(name for name in SECTIONS if name not in ("space", "loss")))
        sections["data"].pop("root", None)  # where it lies on this machine
        seed, device = self.question.config.study.seed, self.split.images.device
        return Origin(
            config=sections,
            seed=derive(seed, number),
            study_seed=seed,
            data=self.split.digest,
            device=device.type,
            claims=claim.token,
            environment=environment(device),
        )

    def train(
        self,
        trial: optuna.Trial,
        claim: Claim,
        point: Point,
        checkpoint: Checkpoint,
        reported: int,
        watch: Stopwatch,
        curve: list[Epoch],
    ) -> None:
        """Trains a trial from its last checkpoint; `curve` takes its epochs, those before the checkpoint included."""
        started = time.monotonic()
        training = Training(self.question.jobs(point, self.folds, trial.number), self.split)
        with watch("checkpoints"):
            state = checkpoint.load()
        if state is not None:
            try:
                training.restore(state)
            except ValueError as error:
                log.warning("%s: %s; the trial starts anew", checkpoint.path, error)
        curve += [objective.mean(said) for said in training.said]
        with Outbox(self.post(trial, claim, training.epochs, reported), self.record.ledger.storage.is_away) as outbox:
            with watch("storage"):
                for epoch in curve[reported:]:  # saved while the database was away, and then the worker died
                    outbox.send(epoch)
            for epoch in objective.measure(training, self.stopping):
                curve.append(epoch)
                with watch("storage"):
                    outbox.send(epoch)
                last = epoch.number == training.epochs
                if not last:
                    with watch("checkpoints"):
                        self.save(checkpoint, training)
                if self.stopping() and not last:
                    raise Stopped
                limit = self.limits.trial_timeout
                if limit is not None and time.monotonic() - started > limit:
                    raise TimedOut(f"the trial took longer than study.trial_timeout={limit:g} seconds")
            ended = time.perf_counter()
        watch.seconds["storage"] += time.perf_counter() - ended

    def post(self, trial: optuna.Trial, claim: Claim, epochs: int, reported: int) -> Callable[[Epoch], None]:
        """What is done in the database after each epoch: report, perhaps prune, renew the lease."""
        comparable = self.question.baseline is None or trial.number > 0  # all is compared with the baseline
        longest = 0.0

        def post(epoch: Epoch) -> None:
            nonlocal longest
            prunable = comparable and epoch.number < epochs  # the last epoch is the value
            objective.report(trial, epoch, prunable=prunable, reported=reported)
            longest = max(longest, epoch.seconds)
            if not self.record.ledger.renew(claim, max(self.limits.lease, LEASE_EPOCHS * longest)):
                raise Lost

        return post

    @staticmethod
    def save(checkpoint: Checkpoint, training: Training) -> None:
        """Saves a checkpoint if the disk lets it: a trial is worth more than a way to go on with it."""
        try:
            checkpoint.save(training.state())
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
        if failure.kind == failures.ERROR and self.is_hopeless(trial.number, failure.reason):
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
        log.info("trial %d: %s%s", trial.number, state.name.lower(), "" if value is None else f" {value:.4f}")

    @staticmethod
    def keep(trial: optuna.Trial, curve: list[Epoch], origin: Origin | None, watch: Stopwatch) -> None:
        """Stores the learning curve, a list for each of an epoch's fields, its origin, and where the time went.

        The curve to its last digit: whoever trains the trial again can say whether it comes out the same.
        """
        if curve:
            rows = [asdict(epoch) for epoch in curve]
            trial.set_user_attr(EPOCHS, {name: [row[name] for row in rows] for name in rows[0]})
            watch.seconds["training"] = sum(epoch.seconds for epoch in curve)
        if origin is not None:
            trial.set_user_attr(MADE, origin.stored())
        trial.set_user_attr(TIMES, {kind: round(seconds, 4) for kind, seconds in watch.seconds.items()})
