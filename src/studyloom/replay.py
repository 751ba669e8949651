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
from rich.console import Console
from rich.table import Table
from rich.text import Text

from studyloom import config, data, failures, objective, parts, trust
from studyloom.data import Split
from studyloom.failures import FAILURE, REASON, Failure
from studyloom.metrics import shown
from studyloom.objective import JOBS
from studyloom.origin import MADE, Origin, environment
from studyloom.record import Record, differences
from studyloom.rehearsal import Folds
from studyloom.schema import ConfigError, ObjectiveSection, TrainSection
from studyloom.seeds import derive
from studyloom.study import EPOCHS
from studyloom.train import Epoch, Training

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
class Stored:
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
    stored: Any
    now: Any

    def __str__(self) -> str:
        return f"epoch {self.epoch}, {self.quantity}: stored {self.stored}, now {self.now}"


@dataclass(frozen=True)
class Tolerance:
    """How far apart two trainings may be and still be the same: losses relatively, accuracies by `off` of `examples`.

    Values of other metrics relatively too.
    """

    loss: float
    off: int
    examples: int
    metric: str = "accuracy"

    def holds(self, quantity: str, stored: float, now: float) -> bool:
        if quantity == "value" and self.metric == "accuracy":
            return abs(now - stored) * self.examples <= self.off + 1e-6  # a mean over folds is no whole number of them
        return math.isclose(stored, now, rel_tol=self.loss, abs_tol=1e-6)

    def __str__(self) -> str:
        if self.metric != "accuracy":
            return f"losses and {self.metric} within {self.loss:.0%}"
        return f"losses within {self.loss:.0%}, accuracies within {self.off} of {self.examples} validation examples"


def replay(record: Record, run_dir: Path, number: int, trusted: Sequence[str], console: Console) -> int:
    """Trains a trial again and tells how it compares; the exit code, 0 where it is equal or within tolerance, else 1.

    Raises:
        ValueError: no such trial, one that stored too little, code that is not trusted, or other data.
    """
    trial = find(record.trials(), number)
    try:
        origin, stored = Origin.read(trial.user_attrs[MADE]), read(trial, record.metric)
        if origin.in_turn and EPOCHS not in trial.user_attrs:
            raise ValueError("its workers died, and of jobs in turn had reported only how each ended")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"trial {number} cannot be replayed: {error}") from None
    cfg = rebuild(origin, trusted)
    split, folds = load(cfg, origin, run_dir)
    ends = stored.failure is not None and stored.failure.kind not in OUTSIDE
    until = (sum(stored.jobs) if origin.in_turn else stored.epochs) + ends
    if not until:
        raise ValueError(f"trial {number} cannot be replayed: it ended before its first epoch did")
    how = f"failed: {stored.failure.reason}" if stored.failure else trial.state.name.lower()
    console.print(Text(f"trial {number} of {record.name}, {how}; epochs stored: {stored.epochs}"))

    def say(epoch: Epoch) -> None:
        said = f"{record.metric} {shown(epoch.value)}"
        console.print(Text(f"epoch {epoch.number}/{until}  {said}  {epoch.seconds:.1f} s"))

    with threads(origin.environment.get("threads")):
        now, failure = train(cfg, origin, split, folds, until, say)
        here = environment(split.inputs.device)
    console.print(table(stored, now))
    return judge(origin, stored, now, failure, here, len(folds[0][1]), console)


def find(trials: Sequence[FrozenTrial], number: int) -> FrozenTrial:
    """The trial of that number.

    Raises:
        ValueError: there is none, or it stored nothing to replay it from; names those that did.
    """
    able = [trial.number for trial in trials if MADE in trial.user_attrs]
    there = f"those that can be replayed: {ranges(able) or 'none'}"
    for trial in trials:
        if trial.number == number:
            if number in able:
                return trial
            state = trial.state.name.lower()
            raise ValueError(f"trial {number} ({state}) stored nothing that it could be replayed from; {there}")
    raise ValueError(f"--trial {number}: there is no such trial; {there}")


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers for people: 0-3, 5, 7-8."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def read(trial: FrozenTrial, metric: str = "accuracy") -> Stored:
    """How a trial went; of one whose worker died, what it had reported by then.

    Raises:
        ValueError: a curve whose quantities are not as many, or no numbers.
    """
    curve = {name: trial.user_attrs.get(EPOCHS, {}).get(name, []) for name in QUANTITIES}
    if EPOCHS not in trial.user_attrs:
        curve["value"] = [value for _, value in sorted(trial.intermediate_values.items())]
        del curve["train_loss"], curve["valid_loss"]
    values = [value for quantity in curve.values() for value in quantity]
    if len({len(quantity) for quantity in curve.values()}) > 1 or not all(type(v) in (int, float) for v in values):
        raise ValueError(f"its attribute `{EPOCHS}` is no learning curve")
    kind, reason = trial.user_attrs.get(FAILURE), str(trial.user_attrs.get(REASON))
    jobs = trial.user_attrs.get(EPOCHS, {}).get(JOBS, [1] * len(curve["value"]))
    if len(jobs) != len(curve["value"]) or not all(type(count) is int and count > 0 for count in jobs):
        raise ValueError(f"in its attribute `{EPOCHS}`, `{JOBS}` is no list of numbers of jobs")
    return Stored(curve, None if kind is None else Failure(str(kind), reason), jobs, metric)


def rebuild(origin: Origin, trusted: Sequence[str]) -> DictConfig:
    """The configuration of a trial, once all that it names may be called.

    Raises:
        ConfigError: something is not trusted, or no configuration of ours.
    """
    trust.check(origin.config, trusted)
    sections = {"train": OmegaConf.structured(TrainSection), "objective": OmegaConf.structured(ObjectiveSection)}
    try:
        cfg = OmegaConf.merge(sections, origin.config)
    except OmegaConfBaseException as error:
        raise ConfigError([f"the configuration that the trial stored: {config.words(error)}"]) from None
    assert isinstance(cfg, DictConfig)
    if (function := cfg.objective["_target_"]) is not None:
        raise ConfigError([f"the trial called a function, {function}; what is trained again is a network"])
    if absent := [name for name in ("data", "model", "optimizer", "scheduler") if name not in cfg]:
        raise ConfigError([f"the configuration that the trial stored has no {', '.join(absent)}"])
    return cfg


def load(cfg: DictConfig, origin: Origin, run_dir: Path) -> tuple[Split, Folds]:
    """The data and folds of the run, on its kind of device if there is one here.

    Raises:
        ValueError: it is not the data that the trial was trained on.
    """
    run = OmegaConf.load(run_dir / ".hydra" / "config.yaml")
    root = OmegaConf.select(run, "data.root")
    if root is not None:
        OmegaConf.update(cfg, "data.root", root)
    source = config.build(cfg.data)
    split: Split = source.train()
    if split.digest != origin.data:
        raise ValueError(
            f"the trial was trained on data with the digest {origin.data}, and that of the data here is "
            f"{split.digest}; put the same files where data.root or STUDYLOOM_DATA says"
        )
    folds = data.folds(
        split.targets, cfg.objective.folds, source.validation, derive(origin.study_seed), ordered=split.ordered
    )
    cuda = origin.device == "cuda" and torch.cuda.is_available()
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


def train(
    cfg: DictConfig, origin: Origin, split: Split, folds: Folds, until: int, say: Callable[[Epoch], None]
) -> tuple[list[Epoch], Failure | None]:
    """The first `until` epochs of a trial, in turn those of each of its jobs, and how it failed if it did."""
    said: list[list[Epoch]] = []
    failure = None
    try:
        for epochs in Training(parts.build_jobs(cfg, folds, origin.seed), split, in_turn=origin.in_turn):
            said.append(epochs)
            say(objective.means(said)[-1])
            if len(said) == until:
                break
    except ConfigError:
        raise
    except Exception as error:  # as in the trial
        failure = failures.explain(error)
    return [objective.mean(epochs) for epochs in objective.by_epoch(said)], failure


def judge(
    origin: Origin,
    stored: Stored,
    now: Sequence[Epoch],
    failure: Failure | None,
    here: Mapping[str, Any],
    examples: int,
    console: Console,
) -> int:
    """Prints the verdict: equal bit for bit, within tolerance, or where it differs first; the exit code.

    There is a tolerance where something adds in another order. Where nothing does, the same bits are wanted.
    """
    found = compare(stored, now, failure, None)
    if not found:
        again = "" if stored.failure is None or failure is None else ", and the same failure"
        epochs = f"{stored.epochs} epoch{'' if stored.epochs == 1 else 's'}"
        console.print(
            Text(
                f"equal bit for bit: {epochs} of {', '.join(map(stored.called, stored.curve))}{again}",
                style="bold green",
            )
        )
        return 0
    reordered = any(origin.environment.get(name) != here[name] for name in REORDERING)
    reasons = differences(origin.environment, here)
    if origin.device == "cuda":
        reasons.append("a GPU may add in another order each time")
    if origin.claims > 1:
        reasons.append(f"{origin.claims} workers had a part in the trial; its environment is that of the last")
    tolerance = None
    if reordered or origin.device == "cuda" or origin.claims > 1:
        tolerance = Tolerance(LOSS, max(1, math.ceil(COUNTED * examples)), examples, stored.metric)
        if not (found := compare(stored, now, failure, tolerance)):
            console.print(Text(f"equal within tolerance: {tolerance}", style="bold green"))
            tell(reasons, console)
            return 0
    allowed = f" (beyond the tolerance: {tolerance})" if tolerance is not None else ""
    console.print(Text(f"different from {found[0]}{allowed}", style="bold red"))
    tell(reasons or ["nothing differs in versions, device, threads and commit"], console)
    return 1


def tell(reasons: Sequence[str], console: Console) -> None:
    for reason in reasons:
        console.print(Text(f"  {reason}"))


def compare(
    stored: Stored, now: Sequence[Epoch], failure: Failure | None, tolerance: Tolerance | None
) -> list[Difference]:
    """All differences, by epoch; without a tolerance, all that is not the same number."""
    found = []
    for place, epoch in enumerate(now[: stored.epochs]):
        for quantity, values in stored.curve.items():
            was, value = values[place], getattr(epoch, quantity)
            if was != value and not (tolerance is not None and tolerance.holds(quantity, was, value)):
                found.append(Difference(epoch.number, stored.called(quantity), was, value))
    was_failure = None if stored.failure is None or stored.failure.kind in OUTSIDE else stored.failure
    words = [_failure(f, exactly=tolerance is None) for f in (was_failure, failure)]
    if words[0] != words[1]:
        found.append(Difference(len(now) + (failure is not None), "failure", *words))
    return sorted(found, key=lambda difference: difference.epoch)


def _failure(failure: Failure | None, *, exactly: bool) -> str:
    if failure is None:
        return "none"
    return f"{failure.kind} ({failure.reason})" if exactly else failure.kind


def table(stored: Stored, now: Sequence[Epoch]) -> Table:
    """A line per epoch: what was stored, and what is added to it now; = where that is the same number."""
    lines = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    lines.add_column("epoch", justify="right")
    for name in stored.curve:
        lines.add_column(stored.called(name).replace("_", " "), justify="right")
    for place in range(stored.epochs):
        cells = []
        for quantity, values in stored.curve.items():
            was = values[place]
            cell = f"{was:.5f}" if abs(was) < 100 else f"{was:.1e}"  # on the way to divergence a loss has 30 digits
            if place >= len(now):
                cells.append(f"{cell} –")
            else:
                delta = getattr(now[place], quantity) - was
                cells.append(f"{cell} {f'{delta:+.1e}' if delta else '='}")
        lines.add_row(str(place + 1), *cells)
    return lines
