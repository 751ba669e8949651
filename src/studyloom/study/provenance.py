"""What a trial was made of and with: enough to train it again, and to say why it may come out otherwise."""

import functools
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch

from studyloom import __version__
from studyloom.storage.attributes import MADE


@dataclass(frozen=True)
class Provenance:
    """What a trial stores of itself, as one JSON object of about 1.2 kB.

    config: its resolved sections, without data.root. seed: of the trial; study_seed decides the folds. data: the digest
    of what it was trained on. in_turn: whether its jobs were trained one after the other. device: cpu or cuda. claims:
    workers that had a part in it; environment: of the last.
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
        """As plain values; what JSON has no word for, such as a path, as its text."""
        made: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return made

    @classmethod
    def read(cls, made: Mapping[str, Any]) -> "Provenance":
        """The same from a database, which anybody may have written.

        Raises:
            ValueError: a part is missing or of another kind.
        """
        wanted = {field.name: field.type for field in fields(cls)}
        kinds = {"config": dict, "data": str, "device": str, "environment": dict}
        wrong = [name for name in wanted if not isinstance(made.get(name), kinds.get(name, int))]
        if wrong:
            raise ValueError(f"in its attribute `{MADE}` there is no usable {', '.join(wrong)}")
        return cls(**{name: made[name] for name in wanted})


def current_environment(device: torch.device) -> dict[str, Any]:
    """Versions, device, threads and commit: where one of them differs, the same trial may come out otherwise."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "optuna": optuna.__version__,
        "studyloom": __version__,
        "device": processor() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "commit": commit(),
    }


@functools.cache
def processor() -> str:
    """The CPU, and the instructions that PyTorch's kernels use of it."""
    try:
        found = re.search(
            r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        )
    except OSError:
        found = None
    return (
        f"{found[1] if found else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
    )


@functools.cache
def commit() -> str | None:
    """The commit of the working directory's git repository, with -dirty where tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    env = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # looks only
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
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit in it
        return None
    return done.stdout.strip()
