"""The schema of studyloom's own sections: an unknown key or a wrong type is an error at start."""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf, open_dict

from studyloom.text import no_such_key, printable

STOPS = ("regret",)  # what study.stop may be
LONGEST_NAME = 200  # leaves room for suffixes below the 255 bytes that file systems give a name


@dataclass
class StudySection:
    """The study and its budget; `from`, another study to begin with, is added below."""

    name: str = MISSING
    trials: int = 40  # the budget of the study, over all workers, commands and crashes
    timeout: float | None = None  # seconds that one command searches
    # What ends the search before its trials are spent: null, or regret, once all further trials
    # together are expected to gain less than study.regret.
    stop: str | None = None
    regret: float | None = None  # in units of the metric, such as 0.005
    epochs: int | None = None  # no trial begins once all together have reported so many
    seed: int = 0
    baseline: bool = True  # trial 0 is the configuration as composed
    redo_baseline: bool = False  # train the baseline again if it has failed
    trial_timeout: float | None = None  # seconds after which a trial fails
    max_attempts: int = 3  # a trial fails after so many of its workers have died
    max_failures: int = 5  # the study stops after so many failures in a row for one reason
    lease: float = 60.0  # seconds that a silent worker keeps its trial
    enqueue: Any = field(default_factory=list)  # points to begin with, mappings of parameters
    top: int = 5  # how many trials of earlier studies to begin with, those that `from` names
    accept_code_change: bool = False  # go on although your own code is not what it was
    dry_run: bool = False  # show the space and stop; also --dry-run


@dataclass
class ObjectiveSection:
    """What a trial is measured by; its `_target_` may have arguments beside these keys."""

    folds: int = 1  # 1: a single hold-out part of data.validation examples
    seeds: int = 1
    # The user's own loop, (config, run) -> value, in place of training networks.
    _target_: str | None = None
    # The user's own function that tests the winner of such a loop, (config, run, part) -> values.
    test: Any = None
    # A name in metrics.METRICS, or the user's own _target_; or several, [accuracy, parameters].
    metric: Any = "accuracy"
    # Limits of parameters, flops and latency_ms, such as {parameters: "<= 100_000"}.
    constraints: Any = None
    # maximize or minimize, or one for each metric; required if the metric does not define it.
    direction: Any = None


@dataclass
class TrainSection:
    """How a network is trained."""

    epochs: int = 10
    batch_size: int = 64
    loss: Any = "${oc.select:loss,null}"  # what the group `loss` composed
    l1: float = 0.0  # L2 is the optimizer's weight_decay
    clip: float | None = None  # the largest norm of the gradient
    precision: str = "fp32"  # bf16, or fp16 with scaled gradients
    samples_per_epoch: int | None = None  # drawn anew in each epoch; null: all examples
    # Functions of the user's own, (network, batch) -> loss or (loss, outputs, targets).
    step: Any = None
    evaluate: Any = None
    accumulate: int = 1  # batches whose gradients make one step of the optimizer
    drop_last: bool = False  # leave out the last batch of an epoch if it is smaller
    ema: float | None = None  # the decay of an average of the weights, kept in their place
    patience: int | None = None  # epochs in a row without a better value, after which training ends
    keep: str = "last"  # or best: the epoch with the best value
    until: int | None = None  # the epoch after which training ends, on the schedule of all epochs


# Later than the first stored studies: at their defaults, these are no part of what a study asks.
LATER = ("step", "evaluate", "accumulate", "drop_last", "ema", "patience", "keep", "until")


@dataclass
class StorageSection:
    """The database of the study."""

    url: str | None = None
    file: str | None = None  # a file that holds the URL, readable only by its owner
    deadline: float = 300.0  # seconds of retries while the database is away


@dataclass
class CheckpointsSection:
    """Where trials save their state."""

    # On a disk that all hosts share, or each host resumes only its own trials; null: none.
    dir: str | None = "${run_dir}/checkpoints"


@dataclass
class WinnerSection:
    """How the winner is chosen."""

    # Choose the winner on fresh seeds, test it, and write the report when the search has ended.
    enabled: bool = True
    top: int = 3  # how many of the best trials are evaluated again, beside the baseline
    seeds: int = 5
    # As many trainings at most, but more candidates begin, and those leave that fall behind.
    race: bool = False
    rule: str | None = None  # which is best, such as "max accuracy where parameters < 50_000"
    committee: bool = False  # also average several of the trained networks, beside the winner


@dataclass
class CostSection:
    """What computing costs; it is no part of the question."""

    per_hour: float | None = None  # an hour of a GPU, or of a core where no GPU is used


@dataclass
class Config:
    """The sections of studyloom, and the groups that a study fills."""

    run_dir: str = "runs/${study.name}"
    study: StudySection = field(default_factory=StudySection)
    objective: ObjectiveSection = field(default_factory=ObjectiveSection)
    train: TrainSection = field(default_factory=TrainSection)
    storage: StorageSection = field(default_factory=StorageSection)
    checkpoints: CheckpointsSection = field(default_factory=CheckpointsSection)
    winner: WinnerSection = field(default_factory=WinnerSection)
    cost: CostSection = field(default_factory=CostSection)
    # Packages that a config from elsewhere may name; only on command lines.
    trust: list[str] = field(default_factory=list)
    # The trackers that are told how the study goes, by names of the user's own. No part of a study.
    track: Any = None
    # The winner made small after its test: true, or settings such as {margin: 0.01}. No part of a
    # study; the keys are in compress/settings.py.
    compress: Any = None
    params: Any = None  # the arguments of the user's own function
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
        default_factory=lambda: {"run": {"dir": "${studyloom.run_dir:${study.name},${run_dir}}"}}
    )


def _make_schema() -> DictConfig:
    schema: DictConfig = OmegaConf.structured(Config)
    with open_dict(schema.study):
        # A run directory, a URL, a list of these, or auto: finished studies of the same database
        # and of sibling run directories. Added here, since `from` is a keyword of Python.
        schema.study["from"] = None
    OmegaConf.set_struct(schema.objective, False)  # for the arguments of its target
    return schema


SCHEMA = _make_schema()


def check_name(name: str) -> str | None:
    """Explains why a study's name cannot be a folder name; None if it can."""
    if not name or name in (".", "..") or any(part in name for part in ("/", "\\", "..", "\0")):
        return (
            f"study.name must be a folder name, not {name!r}: it cannot be empty, or contain '/', "
            "'\\', '..' or NUL"
        )
    if printable(name) != name or "\n" in name:
        return (
            f"study.name must be a folder name, not {name!r}: it cannot contain control characters"
        )
    if (size := len(name.encode())) > LONGEST_NAME:
        return (
            f"study.name must be a folder name, not {name[:20]!r}…, which is {size} bytes long; "
            f"at most {LONGEST_NAME} are possible"
        )
    return None


def unknown_keys(config: DictConfig) -> list[str]:
    """Finds keys in studyloom's own sections that the schema lacks.

    Hydra itself accepts `+study.trails=9`. An objective with a `_target_` may have further keys:
    arguments, which are checked when it is built.

    Returns:
        One line a mistake.
    """
    if OmegaConf.get_type(config) is not Config:
        return [
            "defaults must be a list that begins with `studyloom`, which adds the sections of "
            "studyloom to a primary config"
        ]
    mistakes: list[str] = []
    for section in fields(Config):
        kind: Any = section.default_factory
        if is_dataclass(kind):
            known = [str(name) for name in SCHEMA[section.name]]
            unknown = [str(name) for name in config[section.name] if name not in known]
            if section.name == "objective" and config.objective["_target_"] is not None:
                continue
            mistakes += [no_such_key(f"{section.name}.{name}", known) for name in unknown]
    return mistakes
