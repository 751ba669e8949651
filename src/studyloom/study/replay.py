"""A trial trained again from what it stored of itself, and compared with its learning curve, epoch by epoch.

Where a run's conf/ files stand today does not matter. What the trial names is checked before any of it is called: a
database can come from somebody else.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.trial import FrozenTrial

from studyloom.config import trust
from studyloom.config.build import build
from studyloom.config.schema import ObjectiveSection, TrainSection
from studyloom.config.values import describe_error
from studyloom.data.folds import Folds, make_folds
from studyloom.data.split import Split
from studyloom.errors import ConfigError
from studyloom.question.jobs import build_jobs
from studyloom.question.objective import group_by_epoch, mean_epoch, mean_epochs
from studyloom.seeds import derive
from studyloom.storage.attributes import EPOCHS, FAILURE, JOBS, MADE, REASON
from studyloom.study import failures
from studyloom.study.failures import Failure
from studyloom.study.provenance import Provenance
from studyloom.text import format_ranges
from studyloom.training.job import Epoch
from studyloom.training.trainer import Training

QUANTITIES = ("value", "train_loss", "valid_loss")
# Another number of threads, processor or release adds in another order. Between one and two threads, six epochs on
# MNIST-5k came out at most 0.9 % apart in their losses and by 1 of 800 images. Near divergence the same rounding is
# amplified without bound (150 images at a rate of 0.3): that is called different, as no tolerance would mean anything.
LOSS = 0.05  # relative
COUNTED = 0.01  # of the validation examples, and one at least
REORDERING = ("torch", "device", "threads")  # what of an environment adds in another order
MOST_THREADS = 1024  # that are taken from a database
OUTSIDE = (failures.TIMEOUT, failures.CRASHED)  # how trials fail for what is not in them


@dataclass(frozen=True)
class ExpectedTrial:
    """What a trial stored of how it went: a list per quantity, of epochs from 1, and how it failed, if it did.

    jobs: of how many jobs each epoch is the mean. metric: what the value is called.
    """

    curve: Mapping[str, Sequence[float]]
    failure: Failure | None
    jobs: Sequence[int]
    metric: str = "accuracy"

    @property
    def epochs(self) -> int:
        return len(self.curve["value"])

    def called(self, quantity: str) -> str:
        return self.metric if quantity == "value" else quantity


@dataclass(frozen=True)
class Difference:
    epoch: int
    quantity: str
    expected: Any
    now: Any

    def __str__(self) -> str:
        return f"epoch {self.epoch}, {self.quantity}: stored {self.expected}, now {self.now}"


@dataclass(frozen=True)
class Tolerance:
    """How far apart two trainings may be and still be the same: losses relatively, accuracies by `off` of `examples`.

    Values of other metrics relatively too.
    """

    loss: float
    off: int
    examples: int
    metric: str = "accuracy"

    def holds(self, quantity: str, expected: float, now: float) -> bool:
        if quantity == "value" and self.metric == "accuracy":
            return (
                abs(now - expected) * self.examples <= self.off + 1e-6
            )  # a mean over folds is no whole number of them
        return math.isclose(expected, now, rel_tol=self.loss, abs_tol=1e-6)

    def __str__(self) -> str:
        if self.metric != "accuracy":
            return f"losses and {self.metric} within {self.loss:.0%}"
        return f"losses within {self.loss:.0%}, accuracies within {self.off} of {self.examples} validation examples"


def find_trial(trials: Sequence[FrozenTrial], number: int) -> FrozenTrial:
    """The trial of that number.

    Raises:
        ValueError: there is none, or it stored nothing to replay it from; names those that did.
    """
    able = [trial.number for trial in trials if MADE in trial.user_attrs]
    there = f"those that can be replayed: {format_ranges(able) or 'none'}"
    for trial in trials:
        if trial.number == number:
            if number in able:
                return trial
            state = trial.state.name.lower()
            raise ValueError(
                f"trial {number} ({state}) stored nothing that it could be replayed from; {there}"
            )
    raise ValueError(f"--trial {number}: there is no such trial; {there}")


def read_trial(trial: FrozenTrial, metric: str = "accuracy") -> ExpectedTrial:
    """How a trial went; of one whose worker died, what it had reported by then.

    Raises:
        ValueError: a curve whose quantities are not as many, or no numbers.
    """
    curve = {name: trial.user_attrs.get(EPOCHS, {}).get(name, []) for name in QUANTITIES}
    if EPOCHS not in trial.user_attrs:
        curve["value"] = [value for _, value in sorted(trial.intermediate_values.items())]
        del curve["train_loss"], curve["valid_loss"]
    values = [value for quantity in curve.values() for value in quantity]
    if len({len(quantity) for quantity in curve.values()}) > 1 or not all(
        type(v) in (int, float) for v in values
    ):
        raise ValueError(f"its attribute `{EPOCHS}` is no learning curve")
    kind, reason = trial.user_attrs.get(FAILURE), str(trial.user_attrs.get(REASON))
    jobs = trial.user_attrs.get(EPOCHS, {}).get(JOBS, [1] * len(curve["value"]))
    if len(jobs) != len(curve["value"]) or not all(
        type(count) is int and count > 0 for count in jobs
    ):
        raise ValueError(f"in its attribute `{EPOCHS}`, `{JOBS}` is no list of numbers of jobs")
    return ExpectedTrial(curve, None if kind is None else Failure(str(kind), reason), jobs, metric)


def rebuild(provenance: Provenance, trusted: Sequence[str]) -> DictConfig:
    """The configuration of a trial, once all that it names may be called.

    Raises:
        ConfigError: something is not trusted, or no configuration of ours.
    """
    trust.check_targets(provenance.config, trusted)
    sections = {
        "train": OmegaConf.structured(TrainSection),
        "objective": OmegaConf.structured(ObjectiveSection),
    }
    try:
        cfg = OmegaConf.merge(sections, provenance.config)
    except OmegaConfBaseException as error:
        raise ConfigError(
            [f"the configuration that the trial stored: {describe_error(error)}"]
        ) from None
    assert isinstance(cfg, DictConfig)
    if (function := cfg.objective["_target_"]) is not None:
        raise ConfigError(
            [f"the trial called a function, {function}; what is trained again is a network"]
        )
    if absent := [name for name in ("data", "model", "optimizer", "scheduler") if name not in cfg]:
        raise ConfigError([f"the configuration that the trial stored has no {', '.join(absent)}"])
    return cfg


def load_data(cfg: DictConfig, provenance: Provenance, run_dir: Path) -> tuple[Split, Folds]:
    """The data and folds of the run, on its kind of device if there is one here.

    Raises:
        ValueError: it is not the data that the trial was trained on.
    """
    run = OmegaConf.load(run_dir / ".hydra" / "config.yaml")
    root = OmegaConf.select(run, "data.root")
    if root is not None:
        OmegaConf.update(cfg, "data.root", root)
    source = build(cfg.data)
    split: Split = source.train()
    if split.digest != provenance.data:
        raise ValueError(
            f"the trial was trained on data with the digest {provenance.data}, and that of the data here is "
            f"{split.digest}; put the same files where data.root or STUDYLOOM_DATA says"
        )
    folds = make_folds(
        split.targets,
        cfg.objective.folds,
        source.validation,
        derive(provenance.study_seed),
        ordered=split.ordered,
    )
    cuda = provenance.device == "cuda" and torch.cuda.is_available()
    return split.to(torch.device("cuda", 0) if cuda else torch.device("cpu")), folds


@contextlib.contextmanager
def threads(count: Any) -> Iterator[None]:
    """As many threads as the trial had, where that is a number of threads."""
    before = torch.get_num_threads()
    try:
        if type(count) is int and 1 <= count <= MOST_THREADS:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def train_again(
    cfg: DictConfig,
    provenance: Provenance,
    split: Split,
    folds: Folds,
    until: int,
    say: Callable[[Epoch], None],
) -> tuple[list[Epoch], Failure | None]:
    """The first `until` epochs of a trial, in turn those of each of its jobs, and how it failed if it did."""
    said: list[list[Epoch]] = []
    failure = None
    try:
        for epochs in Training(
            build_jobs(cfg, folds, provenance.seed), split, in_turn=provenance.in_turn
        ):
            said.append(epochs)
            say(mean_epochs(said)[-1])
            if len(said) == until:
                break
    except ConfigError:
        raise
    except Exception as error:  # as in the trial
        failure = failures.explain(error)
    return [mean_epoch(epochs) for epochs in group_by_epoch(said)], failure


def compare(
    expected: ExpectedTrial,
    now: Sequence[Epoch],
    failure: Failure | None,
    tolerance: Tolerance | None,
) -> list[Difference]:
    """All differences, by epoch; without a tolerance, all that is not the same number."""
    found = []
    for place, epoch in enumerate(now[: expected.epochs]):
        for quantity, values in expected.curve.items():
            was, value = values[place], getattr(epoch, quantity)
            if was != value and not (
                tolerance is not None and tolerance.holds(quantity, was, value)
            ):
                found.append(Difference(epoch.number, expected.called(quantity), was, value))
    was_failure = (
        None if expected.failure is None or expected.failure.kind in OUTSIDE else expected.failure
    )
    words = [_failure(f, exactly=tolerance is None) for f in (was_failure, failure)]
    if words[0] != words[1]:
        found.append(Difference(len(now) + (failure is not None), "failure", *words))
    return sorted(found, key=lambda difference: difference.epoch)


def _failure(failure: Failure | None, *, exactly: bool) -> str:
    if failure is None:
        return "none"
    return f"{failure.kind} ({failure.reason})" if exactly else failure.kind
