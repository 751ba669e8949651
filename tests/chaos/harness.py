"""Workers as real processes that die where a test wants them to, and what must hold afterwards.

The processes come from a fork server that has imported the libraries, so that one starts in
milliseconds.
"""

import os
import signal
from pathlib import Path

import sqlalchemy
import torch
from commands import FORKS
from optuna.trial import FrozenTrial, TrialState
from toys import Never, ask, toy_folds, toy_split

from studyloom.data.training_data import TrainingData
from studyloom.decisions.strategy import Strategy
from studyloom.space.tree import Space
from studyloom.storage.failures import Limits
from studyloom.storage.ledger import Ledger
from studyloom.storage.opening import create_study, open_study
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_buffer import TrialBuffer
from studyloom.training import checkpoint
from studyloom.training.checkpoint import Checkpoint
from studyloom.worker.stage import Stage
from studyloom.worker.worker import Worker

NAME = "chaos"
LEASE = 1.0  # seconds; an epoch takes some milliseconds
EPOCHS = 4
# A space without branches: a worker composes one configuration, which takes 0.1 s.
SMALL = (
    "model.hidden=[16]",
    "model.dropout=0.2",
    f"train.epochs={EPOCHS}",
    "train.samples_per_epoch=64",
    "train.batch_size=32",
    "space=lr",
    "+space.train.batch_size.choice=[16,32,64]",
    "sampler=random",
    "pruner=none",
)

PHASES = (
    "before claim",
    "after claim",
    "after suggest",
    "before report",
    "between report and prune",
    "during checkpoint",
    "after checkpoint",
    "before tell",
    "inside tell",
    "after tell",
)


def definition(seed: int = 0, *overrides: str):
    return ask(*SMALL, f"study.seed={seed}", *overrides)


def prepare(url: str, trials: int, seed: int = 0, *overrides: str) -> StoredStudy:
    return create_study(url, NAME, definition(seed, *overrides).identity("toy"), trials)


# A phase, how often the worker passes it before, and the signal that it then sends to itself.
Strike = tuple[str, int, int]


def work(
    url: str, trials: int, folder: str, seed: int, strike: Strike | None, overrides: tuple[str, ...]
) -> None:
    """Runs a worker, which strikes itself if a test says so, on a question with such overrides."""
    torch.set_num_threads(1)
    if strike is not None:
        arm(*strike)
    split = toy_split()
    data = TrainingData(None, split, toy_folds(split))
    limits = Limits(lease=LEASE, max_attempts=99)  # a storm may meet a trial again and again
    stored = open_study(url, NAME, deadline=30.0)
    where = (data, Never(), Path(folder), limits)
    asked = definition(seed, *overrides)
    Worker(Stage("search", stored, asked, Strategy(asked), trials), *where).run()


def arm(phase: str, passes: int, number: int) -> None:
    """Has a signal end or stop this process in a phase, after passing it `passes` times."""
    left = [passes]

    def come(at: str) -> None:
        if at != phase:
            return
        left[0] -= 1
        if left[0] >= 0:
            return
        left[0] = 1_000_000
        os.kill(os.getpid(), number)

    def around(owner: object, name: str, before: str = "", after: str = "") -> None:
        inner = getattr(owner, name)

        def call(*args, **kwargs):
            come(before)
            result = inner(*args, **kwargs)
            come(after)
            return result

        setattr(owner, name, call)

    around(Ledger, "claim", "before claim", "after claim")
    around(Space, "suggest", after="after suggest")
    # Not yet in the database.
    around(TrialBuffer, "set_trial_intermediate_value", after="before report")
    around(Ledger, "renew", after="between report and prune")
    around(Ledger, "release", "before pause", "after pause")
    around(Ledger, "standings", "at a rung")
    around(checkpoint.os, "replace", before="during checkpoint")
    around(Checkpoint, "save", after="after checkpoint")
    telling = []
    finish = Ledger.finish

    def finish_armed(*args, **kwargs):
        come("before tell")
        telling.append(True)
        result = finish(*args, **kwargs)
        telling.clear()
        come("after tell")
        return result

    Ledger.finish = finish_armed
    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", lambda _: telling and come("inside tell"))


def start(
    url: str,
    trials: int,
    folder: Path,
    seed: int = 0,
    strike: Strike | None = None,
    overrides: tuple[str, ...] = (),
):
    arguments = (url, trials, str(folder), seed, strike, overrides)
    process = FORKS.Process(target=work, args=arguments)
    process.start()
    return process


def run(
    url: str, trials: int, folder: Path, seed: int = 0, overrides: tuple[str, ...] = ()
) -> None:
    """Runs an undisturbed worker to its end; it ends with 0 only if all trials are done."""
    process = start(url, trials, folder, seed, overrides=overrides)
    process.join(180)
    assert process.exitcode == 0
    stored = open_study(url, NAME, deadline=30.0)
    assert stored.ledger.counts()["done"] >= trials, "I9"
    stored.close()


def kill_at(phase: str, url: str, trials: int, folder: Path, overrides: tuple[str, ...] = ()):
    """Runs a worker that SIGKILL ends when it comes to a phase for the second time."""
    victim = start(url, trials, folder, strike=(phase, 1, signal.SIGKILL), overrides=overrides)
    victim.join(180)
    assert victim.exitcode == -signal.SIGKILL, phase


def outcomes(stored: StoredStudy) -> set:
    return outcomes_of(stored.trials())


def outcomes_of(trials: list[FrozenTrial]) -> set:
    return {(trial.number, tuple(sorted(trial.params.items())), trial.value) for trial in trials}


def check(stored: StoredStudy, trials: int, clean: set | None = None, epochs: int = EPOCHS) -> None:
    """Checks the invariants I1, I2, I3 and I5 of a study that has ended."""
    ended = stored.trials()
    assert [trial.number for trial in ended] == list(range(trials)), "I2: exactly N"
    assert all(trial.state.is_finished() for trial in ended), "I1"
    slots = [trial.user_attrs["slot"] for trial in ended]
    assert sorted(slots) == list(range(trials)), "I2: no slot twice"
    assert stored.ledger.counts() == {"free": 0, "held": 0, "done": trials}, "I1"
    for trial in ended:
        steps = sorted(trial.intermediate_values)
        assert steps == [*range(1, len(steps) + 1)], f"I3: {trial.number} has reported {steps}"
        if trial.state == TrialState.COMPLETE:
            assert trial.value == trial.intermediate_values[epochs], "I3"
    if clean is not None:
        assert outcomes(stored) == clean, f"I5: {outcomes(stored) ^ clean}"
