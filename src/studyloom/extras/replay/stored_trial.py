"""The stored configuration of a trial, checked before any code is called, and its data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from optuna.trial import FrozenTrial

from studyloom.config import trust
from studyloom.config.runs import read_written
from studyloom.config.study_config import StudyConfig
from studyloom.config.values import value_at, written_values
from studyloom.data.datasets import find_location_keys
from studyloom.data.training_data import TrainingData
from studyloom.definition.prepare import build_source, names_data
from studyloom.files import is_trusted
from studyloom.seeds import derive
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import format_ranges
from studyloom.worker.provenance import Provenance


def find_trial(trials: Sequence[FrozenTrial], number: int) -> FrozenTrial:
    """Returns the trial of a number; raises ValueError if there is none, or it cannot be replayed.

    A trial can be replayed if it stored its provenance: its configuration, seed and environment.
    """
    replayable_numbers = []
    reason = "does not exist"
    for trial in trials:
        if TrialRecord(trial).provenance:
            if trial.number == number:
                return trial
            replayable_numbers.append(trial.number)
        elif trial.number == number:
            reason = "has not stored how it was made"
    numbers = format_ranges(replayable_numbers) or "none"
    raise ValueError(f"--trial: trial {number} {reason}; those that can be replayed: {numbers}")


def _choose_trusted_packages(run_dir: Path, packages: Sequence[str]) -> Sequence[str] | None:
    """Returns the packages that a stored trial may name; None if it may name all.

    In a run directory that others can write to, these are only the packages that the user trusts.
    If only the user can write there and the database is in it, only the user has written the trial.
    Others may write to a database elsewhere; then the packages in the config of the user's command
    are trusted too.

    Args:
        packages: the packages that the user trusts on the command line.
    """
    others_may_write_here = not is_trusted(run_dir)
    if others_may_write_here:
        return packages
    database_is_here = any((run_dir / name).exists() for name in ("study.db", "postgres"))
    if database_is_here:
        return None
    config = written_values(read_written(run_dir, "config.yaml"))
    return [*packages, *trust.packages_to_trust(config)]


def rebuild(provenance: Provenance, run_dir: Path, trusted: Sequence[str]) -> StudyConfig:
    """Returns the configuration of a trial, after checking that all code it names is trusted."""
    trust.check_targets(provenance.config, _choose_trusted_packages(run_dir, trusted))
    return StudyConfig.of_trial(provenance.config)


def is_loop(config: StudyConfig) -> bool:
    """Returns True if a trial of the configuration calls a custom training loop."""
    return config.objective._target_ is not None


def load_data(config: StudyConfig, provenance: Provenance, run_dir: Path) -> TrainingData:
    """Loads the data of a trial, and makes its folds.

    The files are where the configuration of the run directory says now: they may have been moved
    since the trial.

    Returns:
        The data, on a GPU if the trial used one and there is one here; empty if a loop loads its
        data itself.

    Raises:
        ValueError: the data is not the same as that of the trial.
    """
    if is_loop(config) and not names_data(config):
        return TrainingData()
    config_with_locations = config.with_values(_read_locations(run_dir))
    source = build_source(config_with_locations["data"])
    split = source.train()
    if split.digest != provenance.data:
        raise ValueError(
            f"the trial was trained on data with the digest {provenance.data}, and the data here "
            f"has {split.digest}; point data.root or STUDYLOOM_DATA at the same files"
        )
    folds = split.folds(config.objective.folds, source.validation, derive(provenance.study_seed))
    device = torch.device("cpu")
    backends = {"cuda": torch.cuda, "mps": torch.backends.mps}
    backend = backends.get(provenance.device)  # None for the CPU
    if not is_loop(config) and backend is not None and backend.is_available():
        device = torch.device(provenance.device, 0)
    return TrainingData(source, split, folds).to(device)


def _read_locations(run_dir: Path) -> dict[str, str | int]:
    """Returns where the files of a run's data are, by key, such as `data.root`."""
    section: Any = value_at(read_written(run_dir, "config.yaml"), "data")
    locations: dict[str, str | int] = {}
    if not isinstance(section, dict):
        return locations
    for path in find_location_keys(section):  # such as ("train", "root")
        value: Any = section
        for key in path:
            value = value[key]
        if isinstance(value, str | int):  # not a section, which could name untrusted code
            locations[".".join(("data", *path))] = value
    return locations
