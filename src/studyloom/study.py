"""A study in its database: opened by what it asks, and worked on, slot by slot."""

import logging
import os
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import optuna
import torch
from optuna.storages import BaseStorage, get_storage
from optuna.trial import FrozenTrial, TrialState

from studyloom import objective
from studyloom.data import Split
from studyloom.ledger import Claim, Ledger
from studyloom.question import Folds, Question
from studyloom.storage import StorageError, connect, exclusive
from studyloom.train import Diverged, Epoch

QUESTION = "question"  # user attribute of the study: what it asks, by key
SLOT = "slot"  # user attributes of a trial
WORKER = "worker"
BASELINE = "baseline"
EPOCHS = "epochs"
FAILURE = "failure"  # diverged, out_of_memory, error
REASON = "reason"

log = logging.getLogger(__name__)


class QuestionError(ValueError):
    """The study of that name asks something else; says what."""


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


def open_record(url: str, name: str) -> Record:
    """A study that exists.

    Raises:
        StorageError: no such database, or no study of that name in it.
    """
    backend = connect(url)
    storage = get_storage(backend)
    try:
        study_id = storage.get_study_id_from_name(name)
    except KeyError:
        names = ", ".join(study.study_name for study in storage.get_all_studies()) or "none"
        raise StorageError(f"study.name: the database holds no study {name!r}; it holds {names}") from None
    study = optuna.load_study(study_name=name, storage=storage)
    return Record(name, storage, study, Ledger(backend, study_id))


def create_record(url: str, name: str, question: Mapping[str, Any], trials: int) -> Record:
    """Opens the study, making database, tables and study where they are missing, with a budget of at least `trials`.

    Raises:
        QuestionError: the study exists and asks something else.
        StorageError: the database cannot be used.
    """
    with exclusive(url):
        backend = connect(url, create=True)
        storage = get_storage(backend)
        if name not in {study.study_name for study in storage.get_all_studies()}:
            study = optuna.create_study(study_name=name, storage=storage, direction="maximize")
            Ledger(backend, storage.get_study_id_from_name(name)).create()
            study.set_user_attr(QUESTION, dict(question))
        record = open_record(url, name)
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
class Worker:
    """Works on a study in this process, one slot after the other, until none is free or it is asked to stop."""

    question: Question
    record: Record
    split: Split
    folds: Folds
    stopping: Callable[[], bool]

    def run(self, trials: int) -> None:
        """Works on the first `trials` slots."""
        ledger, owner = self.record.ledger, owner_of(os.getpid())
        self.record.study.pruner = self.question.pruner()
        while not self.stopping() and (claim := ledger.claim(owner, trials)) is not None:
            try:
                self.settle(claim, owner)
            except objective.Stopped:
                ledger.release(claim)
                return
            except KeyboardInterrupt:
                ledger.release(claim)
                raise
            ledger.finish(claim)

    def settle(self, claim: Claim, owner: str) -> None:
        """Brings the trial of a claimed slot to its end."""
        frozen = self.begin(claim, owner)
        if frozen.state.is_finished():  # told, and then its worker died before it said so in the ledger
            return
        trial = optuna.Trial(self.record.study, frozen._trial_id)
        point = self.question.space.suggest(trial)
        prunable = self.question.baseline is None or trial.number > 0  # all is compared with the baseline
        state, value, curve = TrialState.FAIL, None, []
        try:
            curve = objective.measure(
                trial,
                self.question.jobs(point, self.folds, trial.number),
                self.split,
                prunable=prunable,
                reported=frozen.last_step or 0,
                stopping=self.stopping,
            )
            state, value = TrialState.COMPLETE, curve[-1].accuracy
        except optuna.TrialPruned as pruned:
            state, curve = TrialState.PRUNED, pruned.args[0]
        except Exception as error:
            if isinstance(error, objective.Stopped | optuna.exceptions.StorageInternalError):
                raise
            self.explain(trial, error)
        self.keep(trial, curve)
        self.record.study.tell(trial, value, state if value is None else None)
        log.info("trial %d: %s%s", trial.number, state.name.lower(), "" if value is None else f" {value:.4f}")

    def begin(self, claim: Claim, owner: str) -> FrozenTrial:
        """The trial of a slot, made if need be, with the study's sampler set for it."""
        storage, ledger = self.record.storage, self.record.ledger
        trial_id = claim.trial_id
        if trial_id is None and claim.token > 1:  # an earlier holder may have died before it attached its trial
            of_slot = [t for t in self.record.trials() if t.user_attrs.get(SLOT) == claim.slot]
            trial_id = of_slot[0]._trial_id if of_slot else None
        if trial_id is None:
            template = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs={SLOT: claim.slot, WORKER: owner})
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

    @staticmethod
    def explain(trial: optuna.Trial, error: Exception) -> None:
        """Stores why a trial failed, where the dashboard shows it."""
        if isinstance(error, Diverged):
            kind = "diverged"
        elif isinstance(error, MemoryError | torch.OutOfMemoryError):
            kind = "out_of_memory"
        else:
            kind = "error"
            log.error("trial %d: %s", trial.number, "".join(traceback.format_exception(error)))
        trial.set_user_attr(FAILURE, kind)
        trial.set_user_attr(REASON, f"{type(error).__name__}: {error}")

    @staticmethod
    def keep(trial: optuna.Trial, curve: Sequence[Epoch]) -> None:
        """Stores the learning curve: a list for each of an epoch's fields."""
        if curve:
            rows = [asdict(epoch) for epoch in curve]
            trial.set_user_attr(EPOCHS, {name: [round(row[name], 6) for row in rows] for name in rows[0]})
