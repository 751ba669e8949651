"""What a trial was made from, and with what: its configuration, seeds, data and environment.

That is enough to train it again, and to explain why the result may differ.
"""

import functools
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import torch.distributed as dist

from studyloom._version import __version__
from studyloom.storage.attributes import MADE


@dataclass(frozen=True)
class Provenance:
    """What a trial stores about its making, as one JSON object of about 1.2 kB.

    Args:
        config: the resolved sections, without data.root.
        seed: of the trial.
        study_seed: of the study; it decides the folds.
        data: the digest of the training data.
        in_turn: whether the jobs were trained one after the other.
        device: cpu or cuda.
        claims: how many workers claimed the trial.
        environment: of the last of these workers.
    """

    config: dict[str, Any]
    seed: int
    study_seed: int
    data: str
    in_turn: bool
    device: str
    claims: int
    environment: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Returns plain values; a value that JSON does not know, such as a path, becomes text."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return plain

    def on_threads(self, count: int) -> "Provenance":
        """Returns the provenance of a training that used so many threads."""
        return replace(self, environment={**self.environment, "threads": count})

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> "Provenance":
        """Reads a provenance from a database, which anybody may have written.

        Args:
            stored: what `as_json` returned.

        Raises:
            ValueError: a field is missing or has the wrong type.
        """
        names = [field.name for field in fields(cls)]
        kinds = {"config": dict, "data": str, "device": str, "environment": dict}
        wrong = [name for name in names if not isinstance(stored.get(name), kinds.get(name, int))]
        if wrong:
            raise ValueError(
                f"its attribute `{MADE}` must have all fields; no usable {', '.join(wrong)}"
            )
        return cls(**{name: stored[name] for name in names})


def current_environment(device: torch.device) -> dict[str, Any]:
    """Returns versions, device, threads and commit: if one differs, so may a trial's result.

    If several processes train a trial together, it has their number as `ranks` too.

    Args:
        device: on which networks are trained.
    """
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "optuna": optuna.__version__,
        "studyloom": __version__,
        "device": processor() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        **({"ranks": ranks} if ranks > 1 else {}),
    }


@functools.cache
def processor() -> str:
    """Returns the CPU, and the set of its instructions that PyTorch's kernels use."""
    try:
        cpu_info = Path("/proc/cpuinfo").read_text()
    except OSError:
        cpu_info = ""
    match = re.search(r"^model name\s*:\s*(.+)$", cpu_info, re.MULTILINE)
    name = match[1] if match else platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


@functools.cache
def commit() -> str | None:
    """Returns the commit of the working directory, with -dirty if tracked files differ from it.

    None without git, outside a repository, and before the first commit.
    """
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    env = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # writes nothing
    try:
        done = subprocess.run(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
