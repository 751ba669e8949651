"""The schema of studyloom's own sections, so that an unknown or mistyped key is an error at start."""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf, open_dict

from studyloom.text import nearest

LONGEST_NAME = 200  # leaves room for suffixes below the 255 bytes that file systems give a name


@dataclass
class StudySection:
    name: str = MISSING
    trials: int = 40  # of the study, over all its workers, re-joins and crashes
    timeout: float | None = None  # seconds of one command
    seed: int = 0
    baseline: bool = True  # the configuration as composed is trial 0
    trial_timeout: float | None = None  # seconds of one trial, after which it has failed
    max_attempts: int = 3  # workers that may die of a trial, after which it has failed
    max_failures: int = 5  # in a row for one reason, after which the study stops
    lease: float = 60.0  # seconds that a worker which is not heard of keeps its trial
    enqueue: Any = field(default_factory=list)  # points to begin with, each a mapping of parameters
    top: int = 5  # how many of the best trials of another study, `from`, to begin with
    dry_run: bool = False  # show the space and stop; also --dry-run


@dataclass
class ObjectiveSection:
    folds: int = 1  # 1: one hold-out part of data.validation images
    seeds: int = 1
    _target_: str | None = (
        None  # a function of one's own, (config, report) -> value, instead of training networks
    )
    metric: Any = "accuracy"  # a name of metrics.METRICS, or a _target_ of one's own; [accuracy, parameters]: both
    constraints: Any = (
        None  # limits of parameters, flops, latency_ms, such as {parameters: "<= 100_000"}
    )
    direction: str | None = (
        None  # maximize or minimize; needed where a metric of one's own does not say it
    )


@dataclass
class TrainSection:
    epochs: int = 10
    batch_size: int = 64
    loss: Any = "${oc.select:loss,null}"  # what the group `loss` composed
    l1: float = 0.0  # L2 is the optimizer's weight_decay
    clip: float | None = None  # largest gradient norm
    precision: str = "fp32"  # or bf16
    samples_per_epoch: int | None = None  # drawn anew each epoch; null: all


@dataclass
class StorageSection:
    url: str | None = None
    file: str | None = None  # with the URL in it instead, readable by its owner alone
    deadline: float = 300.0  # seconds that the database may be away


@dataclass
class CheckpointsSection:
    dir: str | None = (
        "${run_dir}/checkpoints"  # on a disk that all hosts share, or each goes on with its own; null: none
    )


@dataclass
class WinnerSection:
    enabled: bool = True  # choose the winner on fresh seeds, test it, and write the report, when the search has ended
    top: int = 3  # trials that are judged again, beside the baseline
    seeds: int = 5
    rule: str | None = (
        None  # which of them is best, such as "max accuracy where parameters < 50_000"
    )


@dataclass
class Config:
    run_dir: str = "runs/${study.name}"
    study: StudySection = field(default_factory=StudySection)
    objective: ObjectiveSection = field(default_factory=ObjectiveSection)
    train: TrainSection = field(default_factory=TrainSection)
    storage: StorageSection = field(default_factory=StorageSection)
    checkpoints: CheckpointsSection = field(default_factory=CheckpointsSection)
    winner: WinnerSection = field(default_factory=WinnerSection)
    trust: list[str] = field(
        default_factory=list
    )  # packages that a config from elsewhere may name; on command lines
    params: Any = None  # what a function of one's own is to be told
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


def _whole() -> DictConfig:
    schema: DictConfig = OmegaConf.structured(Config)
    with open_dict(schema.study):
        schema.study["from"] = (
            None  # a run directory or a URL; no field of a class may be called so
        )
    return schema


SCHEMA = _whole()


def check_name(name: str) -> str | None:
    """Why a study name can be no folder name, or None."""
    if not name or name in (".", "..") or any(part in name for part in ("/", "\\", "..", "\0")):
        return f"study.name: {name!r} names a folder, so it is not empty and has no '/', '\\', '..' or NUL in it"
    if len(name.encode()) > LONGEST_NAME:
        return f"study.name: {name[:20]!r}… is {len(name.encode())} bytes long; at most {LONGEST_NAME} are possible"
    return None


def unknown_keys(config: DictConfig) -> list[str]:
    """The keys in studyloom's own sections that its schema does not have; Hydra lets `+study.trails=9` pass."""
    if OmegaConf.get_type(config) is not Config:
        return [
            "defaults: the list of a primary config begins with `studyloom`, which brings the sections of studyloom"
        ]
    found: list[str] = []
    for section in fields(Config):
        kind: Any = section.default_factory
        if is_dataclass(kind):
            known = [str(name) for name in SCHEMA[section.name]]
            unknown = [str(name) for name in config[section.name] if name not in known]
            found += [
                f"{section.name}.{name}: no such key; {section.name} has {', '.join(known)}{nearest(name, known)}"
                for name in unknown
            ]
    return found
