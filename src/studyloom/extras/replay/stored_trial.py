"""What a trial stored: its configuration, checked before any code is called, and its data."""

import functools
import operator
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.trial import FrozenTrial

from studyloom.config import trust
from studyloom.config.runs import read_written
from studyloom.config.schema import SCHEMA, TrainSection
from studyloom.config.values import describe_error, value_at
from studyloom.data.datasets import location_keys
from studyloom.data.training_data import TrainingData
from studyloom.definition.prepare import build_source, names_data
from studyloom.errors import ConfigError
from studyloom.seeds import derive
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import format_ranges
from studyloom.worker.provenance import Provenance


def find_trial(trials: Sequence[FrozenTrial], number: int) -> FrozenTrial:
    """Returns a trial; raises ValueError with those that can be replayed if it cannot."""
    replayable = {trial.number: trial for trial in trials if TrialRecord(trial).provenance}
    if number in replayable:
        return replayable[number]
    known = number in (trial.number for trial in trials)
    why = "has not stored how it was made" if known else "does not exist"
    numbers = format_ranges([*replayable]) or "none"
    raise ValueError(f"--trial: trial {number} {why}; those that can be replayed: {numbers}")


def _trusted_in(run_dir: Path, named: Sequence[str]) -> Sequence[str] | None:
    """Returns what a stored trial may name; None for all.

    That is all in a run directory of the user's commands, if the database is there too. In one
    that others write to it is `named`, and what the user's command named.
    """
    if trust.consent(run_dir, named) is not None:
        return named
    if any((run_dir / name).exists() for name in ("study.db", "postgres")):
        return None
    config = OmegaConf.to_container(read_written(run_dir, "config.yaml"), resolve=False)
    return [*named, *trust.packages_to_trust(config)]


def rebuild(provenance: Provenance, run_dir: Path, trusted: Sequence[str]) -> DictConfig:
    """Returns the configuration of a trial, after checking that all it names may be called."""
    trust.check_targets(provenance.config, _trusted_in(run_dir, trusted))
    sections = {"train": OmegaConf.structured(TrainSection), "objective": SCHEMA.objective.copy()}
    try:
        cfg = OmegaConf.merge(sections, provenance.config)
    except OmegaConfBaseException as error:
        words = f"the configuration that the trial stored: {describe_error(error)}"
        raise ConfigError([words]) from None
    assert isinstance(cfg, DictConfig)
    return cfg


def is_loop(cfg: DictConfig) -> bool:
    """Whether the trial of a configuration called a custom training loop."""
    return cfg.objective["_target_"] is not None


def load_data(cfg: DictConfig, provenance: Provenance, run_dir: Path) -> TrainingData:
    """Loads the data of a run, and makes its folds; where they lie is set in the configuration.

    Returns:
        The data, on a GPU if the trial used one and there is one here; empty if they are a loop's
        own.
    """
    if is_loop(cfg) and not names_data(cfg):
        return TrainingData()
    written = value_at(read_written(run_dir, "config.yaml"), "data")
    for path in location_keys(written) if isinstance(written, dict) else ():
        value = functools.reduce(operator.getitem, path, written)
        if isinstance(value, str | int):  # not a section, which could name untrusted code
            OmegaConf.update(cfg, ".".join(("data", *path)), value, force_add=True)
    source = build_source(cfg.data)
    split = source.train()
    if split.digest != provenance.data:
        raise ValueError(
            f"the trial was trained on data with the digest {provenance.data}, and the data here "
            f"has {split.digest}; point data.root or STUDYLOOM_DATA at the same files"
        )
    folds = split.folds(cfg.objective.folds, source.validation, derive(provenance.study_seed))
    backends = {"cuda": torch.cuda, "mps": torch.backends.mps}
    backend = None if is_loop(cfg) else backends.get(provenance.device)
    on_gpu = backend is not None and backend.is_available()
    data = TrainingData(source, split, folds)
    return data.to(torch.device(provenance.device, 0) if on_gpu else torch.device("cpu"))
