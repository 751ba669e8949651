"""The schema of studyloom's own sections: an unknown key or a wrong type is an error at start."""

import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any, NamedTuple

from omegaconf import MISSING, DictConfig, OmegaConf

from studyloom.text import describe_unknown_key, printable

LONGEST_NAME = 200  # file systems allow 255 bytes; the rest is for suffixes


def key(default: object, meaning: str) -> Any:
    """Returns the field of a key, with its meaning as `studyloom keys` prints it."""
    metadata = {"meaning": meaning}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class StudySection:
    """The study and its budget."""

    name: str = key(MISSING, "names the study in its database; a name is tied to one definition")
    trials: int = key(
        40, "the budget: the number of trials, over all workers, commands and crashes"
    )
    seed: int = key(0, "seeds each trial, with its number")
    timeout: float | None = key(None, "seconds that one command may run; then it may be resumed")
    trial_timeout: float | None = key(None, "seconds after which a trial has failed")
    stop: str | None = key(
        None,
        "`improvement`: the search ends when further trials would gain less than "
        "study.min_improvement",
    )
    min_improvement: float | None = key(
        None, "the least gain worth a search, in units of the metric"
    )
    target: float | None = key(
        None, "the search ends when a complete trial has this value, or a better one"
    )
    epochs: int | None = key(None, "a budget of epochs, over all trials")
    baseline: bool = key(True, "trial 0 is the default configuration")
    max_attempts: int = key(3, "attempts of a trial whose workers die, before it counts as failed")
    max_failures: int = key(5, "trials in a row that may fail for one reason before the study ends")
    allow_repeats: bool = key(
        True, "false: no configuration of a finite search space is trained twice"
    )
    deterministic: bool = key(
        False, "true: the same trials with any number of workers, and through kills"
    )
    round_size: int = key(
        4, "segments of trainings, each to a rung, in a round of study.deterministic"
    )
    lease: float = key(60.0, "seconds after which a silent worker loses its trial")
    enqueue: Any = key(
        [],
        "configurations to try first, such as `[{model:cnn,model.cnn.channels:16}]`; of an Optuna "
        "objective the first is the baseline",
    )
    warm_start: Any = key(
        None,
        "earlier studies whose best configurations are tried first, as run directories or "
        "`URL#NAME`, such as `[runs/a,runs/b]`",
    )
    warm_start_top: int = key(5, "how many configurations of study.warm_start are tried")
    proposal_share: float = key(0.3, "the share of the budget that `studyloom propose` may take")
    accept_code_change: bool = key(False, "true: continues after an edit of your code")
    dry_run: bool = key(False, "as `--dry-run`")


@dataclass
class ObjectiveSection:
    """The objective of a trial; its `_target_` may have arguments in addition to these keys."""

    folds: int = key(1, "1: data.validation examples are held out; 5: cross-validation")
    seeds: int = key(1, "trainings per fold; a trial's value is the mean")
    metric: Any = key("accuracy", "a name, a `_target_`, or a list such as `[accuracy,parameters]`")
    direction: Any = key(None, "`maximize` or `minimize`, if the metric does not say it")
    constraints: Any = key(None, 'limits: `{parameters: "<= 100_000", flops: "<= 1e9"}`')
    _target_: str | None = key(
        None, "your own loop, `(config, run)` or `(run, **params)`, or Optuna's `(trial)`"
    )
    network: Any = key(None, "makes a loop's network of its params, for predictions")
    test: Any = key(None, "tests the winner of a loop, `(config, run, dataset) -> values`")


@dataclass
class TrainSection:
    """How a network is trained."""

    epochs: int = key(10, "epochs of a training")
    batch_size: int = key(64, "examples of a batch; an epoch with fewer is one batch")
    loss: Any = key("${oc.select:loss,null}", "the section `loss`")
    l1: float = key(0.0, "L1 penalty; L2 is the optimizer's weight_decay")
    clip_norm: float | None = key(None, "the largest norm of the gradient")
    precision: str = key("fp32", "or `bf16`, or `fp16` with scaled gradients")
    samples_per_epoch: int | None = key(None, "examples drawn for each epoch; null: all")
    step: Any = key(None, "your own `(network, batch)` -> loss, or (loss, outputs, targets)")
    evaluate: Any = key(None, "your own `(network, batch)` -> (loss, outputs, targets)")
    accumulate: int = key(1, "batches whose gradients make one step of the optimizer")
    drop_last: bool = key(False, "true: leaves out a smaller last batch")
    ema: float | None = key(None, "decay of the moving average that replaces the weights")
    patience: int | None = key(None, "epochs without a better value that end a training")
    weights: str = key("last", "or `best`: value and weights of that epoch")
    until: int | None = key(None, "the epoch that ends a training; the schedule stays")


@dataclass
class StorageSection:
    """The database of the study."""

    url: str | None = key(None, "the URL of the database")
    file: str | None = key(None, "a file with the URL, readable only by you")
    deadline: float = key(300.0, "seconds of retries while the database is away")


@dataclass
class CheckpointsSection:
    """Where trials save their state."""

    dir: str | None = key("${run_dir}/checkpoints", "on a disk that all hosts share; null: none")
    interval: float = key(1.0, "least seconds between two of a trial; 0: one after each epoch")


@dataclass
class WinnerSection:
    """How the winner is chosen."""

    enabled: bool = key(True, "false: the run ends with the search")
    top: int = key(3, "how many of the best trials are re-evaluated beside the baseline")
    seeds: int = key(3, "number of new seeds in re-evaluation and final training")
    rule: str | None = key(None, 'the best, such as "max accuracy where parameters < 50_000"')
    margin: float | None = key(None, "the gain over the baseline that wins; null: beyond chance")
    retrain: bool = key(True, "false: tests the re-evaluated networks of loops and data.valid")
    ablation: bool = key(False, "true: trains the winner without each of its changes, see `ablate`")
    simple_margin: float | None = key(None, "the loss winner.simple.yaml may have; null: its error")


@dataclass
class CostSection:
    """The price of computing, which is not part of the study definition."""

    per_hour: float | None = key(None, "price of an hour of a GPU; without GPUs, of a core")
    limit: float | None = key(None, "the search ends once its trials have cost so much")


@dataclass
class Config:
    """studyloom's sections, and the groups that a study provides."""

    run_dir: str = key("runs/${study.name}", "the folder of all that a run writes")
    study: StudySection = field(default_factory=StudySection)
    objective: ObjectiveSection = field(default_factory=ObjectiveSection)
    train: TrainSection = field(default_factory=TrainSection)
    storage: StorageSection = field(default_factory=StorageSection)
    checkpoints: CheckpointsSection = field(default_factory=CheckpointsSection)
    winner: WinnerSection = field(default_factory=WinnerSection)
    cost: CostSection = field(default_factory=CostSection)
    trust: list[str] = key([], "packages that an untrusted config may name; their code is executed")
    track: Any = key(None, "trackers, such as `[tensorboard,mlflow]`")
    params: Any = key(None, "arguments of your custom training loop")
    data: Any = MISSING
    model: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    loss: Any = MISSING
    space: Any = MISSING
    sampler: Any = MISSING
    pruner: Any = MISSING
    launcher: Any = MISSING
    hydra: Any = field(
        default_factory=lambda: {
            "run": {"dir": "${studyloom.run_dir:${study.name},${run_dir},${study.dry_run}}"},
            "output_subdir": None,  # `compose.note_run` writes there, later
        }
    )


class Key(NamedTuple):
    """A key of the schema.

    Attributes:
        name: with its section, such as study.trials.
        default: in the syntax of the command line; empty if it has none.
        meaning: as `studyloom keys` prints it.
    """

    name: str
    default: str
    meaning: str


def describe_keys() -> list[Key]:
    """Returns the keys of all sections, and those that belong to no section, such as `run_dir`.

    Sections without fixed keys, such as `model`, have no metadata and are left out.
    """
    keys = []
    for config_field in fields(Config):
        section_class: object = config_field.default_factory
        if is_dataclass(section_class):
            for key_field in fields(section_class):
                keys.append(_describe_key(f"{config_field.name}.{key_field.name}", key_field))
        elif config_field.metadata:
            keys.append(_describe_key(config_field.name, config_field))
    return keys


def _describe_key(name: str, key_field: "Field[object]") -> Key:
    """Returns the description of a key: its whole name, its default as text, and its meaning."""
    default = key_field.default
    if callable(key_field.default_factory):
        default = key_field.default_factory()
    default_text = ""
    if default != MISSING:
        default_text = json.dumps(default).strip('"')
    return Key(name, default_text, key_field.metadata["meaning"])


@dataclass(frozen=True)
class Range:
    """The numbers that a key may have, which are finite.

    Attributes:
        text: the range in words.
    """

    text: str
    least: float
    greatest: float = math.inf

    def has(self, value: float) -> bool:
        """Returns whether a value lies in the range."""
        return self.least <= value <= self.greatest and value < math.inf


# The keys that have a range.
RANGES: dict[Range, tuple[str, ...]] = {
    Range("at least 1", 1): (
        "study.trials",
        "study.epochs",
        "study.warm_start_top",
        "study.max_attempts",
        "study.max_failures",
        "study.round_size",
        "objective.folds",
        "objective.seeds",
        "winner.top",
        "winner.seeds",
        "study.lease",  # which is renewed four times in that time, by a write each
    ),
    Range("at least 0", 0): (
        "study.seed",
        "storage.deadline",
        "cost.per_hour",
        "checkpoints.interval",
        "winner.margin",
    ),
    Range("from 0 to 1", 0, 1): ("study.proposal_share",),
    Range("a finite number", -sys.float_info.max): ("study.target",),
    Range("a positive number", math.ulp(0.0)): (
        "study.timeout",
        "study.trial_timeout",
        "study.min_improvement",
        "cost.limit",
        "winner.simple_margin",
    ),
}


SCHEMA: DictConfig = OmegaConf.structured(Config)
OmegaConf.set_struct(SCHEMA.objective, False)  # for the arguments of its target


def find_out_of_range(config: Mapping[str, Any]) -> Iterator[str]:
    """Yields an error for each value of a config outside the range of its key; null is allowed."""
    for allowed_range, keys in RANGES.items():
        for key_name in keys:
            section, _, name = key_name.partition(".")
            value = config[section].get(name)
            if value is None or allowed_range.has(value):
                continue
            range_text = allowed_range.text
            is_null_by_default = OmegaConf.select(SCHEMA, key_name) is None
            if is_null_by_default:
                range_text += ", or null"
            yield f"{key_name} must be {range_text}; got {value}"


def check_name(name: str) -> str | None:
    """Explains why a study's name cannot be a folder name; None if it can."""
    has_forbidden_part = any(part in name for part in ("/", "\\", "..", "\0"))
    if name in ("", ".") or has_forbidden_part:
        reason = "cannot be empty, or contain '/', '\\', '..' or NUL"
        return f"study.name must be a folder name, not {name!r}: it {reason}"
    has_control_character = printable(name) != name or "\n" in name
    if has_control_character:
        reason = "cannot contain control characters"
        return f"study.name must be a folder name, not {name!r}: it {reason}"
    size = len(name.encode())  # bytes
    if size > LONGEST_NAME:
        reason = f"is {size} bytes long; at most {LONGEST_NAME} are possible"
        return f"study.name must be a folder name, not {name[:20]!r}…: it {reason}"
    return None


def find_unknown_keys(config: DictConfig) -> list[str]:
    """Returns an error for each key in studyloom's own sections that the schema lacks.

    Hydra itself accepts `+study.trails=9`. An objective with a `_target_` is not checked here: its
    further keys are arguments, which are checked when it is built.
    """
    if OmegaConf.get_type(config) is not Config:
        return [
            "defaults must be a list that begins with `studyloom`, which adds the sections of "
            "studyloom to a primary config"
        ]
    errors = []
    for section_field in fields(Config):
        section = section_field.name
        has_fixed_keys = is_dataclass(section_field.default_factory)
        if not has_fixed_keys:
            continue
        if section == "objective" and config.objective["_target_"] is not None:
            continue
        known_names = [str(name) for name in SCHEMA[section]]
        for name in config[section]:
            if name not in known_names:
                errors.append(describe_unknown_key(f"{section}.{name}", known_names))
    return errors
