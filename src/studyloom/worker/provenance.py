"""The provenance of a trial: the record from which it can be trained again.

A trial gives the same numbers again with the same configuration, seeds and data, on the same
hardware and versions.
"""

import functools
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec
import numpy as np
import optuna
import torch

from studyloom._version import __version__
from studyloom.processes import read_cpu_name
from studyloom.seeds import derive
from studyloom.storage.attributes import PROVENANCE


@dataclass(frozen=True)
class Provenance:
    """The record of how a trial was made, as one JSON object of about 1.2 kB.

    Attributes:
        config: The resolved sections, without data.root.
        seed: The seed of the trial.
        study_seed: The seed of the study, which decides the folds.
        data: The digest of the training data.
        device: The type of the device, such as cuda.
        claims: How many workers have claimed the trial so far.
        environment: Versions, device, threads and commit.
    """

    config: dict[str, Any]
    seed: int
    study_seed: int
    data: str
    device: str
    claims: int
    environment: dict[str, Any]

    @classmethod
    def of_trial(
        cls,
        number: int,
        *,
        config: dict[str, Any],
        study_seed: int,
        data: str,
        device: torch.device,
        claims: int,
    ) -> "Provenance":
        """Records a trial that is trained in this process, by its number in the study."""
        return cls(
            config=config,
            seed=derive(study_seed, number),
            study_seed=study_seed,
            data=data,
            device=device.type,
            claims=claims,
            environment=current_environment(device),
        )

    def as_json(self) -> dict[str, Any]:
        """Returns JSON values; a value that JSON does not know, such as a path, becomes text."""
        text = json.dumps(asdict(self), default=str)
        document: dict[str, Any] = json.loads(text)
        return document

    def on_threads(self, count: int) -> "Provenance":
        """Returns the provenance of a training that used a number of threads."""
        return replace(self, environment={**self.environment, "threads": count})

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> "Provenance":
        """Reads a provenance; raises ValueError if a field is missing or has the wrong type."""
        try:
            return msgspec.convert(stored, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"its attribute `{PROVENANCE}` cannot be used: {error}") from None


def current_environment(device: torch.device) -> dict[str, Any]:
    """Returns versions, device, threads and commit: a trial depends on each in its last bits."""
    if device.type == "cuda":
        device_name = torch.cuda.get_device_name(device)
    else:
        device_name = describe_processor()
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "optuna": optuna.__version__,
        "studyloom": __version__,
        "device": device_name,
        "threads": torch.get_num_threads(),
        "commit": read_commit(),
    }


@functools.cache
def describe_processor() -> str:
    """Returns the CPU, and the set of its instructions that PyTorch's kernels use."""
    return f"{read_cpu_name()} ({torch.backends.cpu.get_cpu_capability()})"


@functools.cache
def read_commit() -> str | None:
    """Returns the commit of the working directory, with -dirty if tracked files differ from it.

    Returns None without git, outside a repository, and before the first commit.
    """
    # Without tags, which --exclude leaves out, `describe` names the full hash of the commit.
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # so that git writes nothing
    try:
        process = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()
