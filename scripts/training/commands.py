"""Commands that a bench runs, and the data that they need."""

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from studyloom.data.sources import IMAGE_SETS
from studyloom.storage.opening import open_study
from studyloom.storage.stored_study import StoredStudy

ROOT = Path(__file__).resolve().parent.parent.parent


def run(*command: str, cwd: Path = ROOT, **environment: str) -> tuple[float, str]:
    """Runs Python with some arguments; returns the seconds it took, and its output."""
    env = os.environ | environment
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=env, stdout=subprocess.PIPE, text=True, check=True
    )
    return time.monotonic() - began, done.stdout


@contextmanager
def unpacked(name: str) -> Iterator[str]:
    """Unpacks a data set into a folder in which torchvision finds it."""
    source = IMAGE_SETS[name]
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, source.torchvision, "raw")
        raw.mkdir(parents=True)
        for path in Path(os.environ["STUDYLOOM_DATA"], source.folder).iterdir():
            open_packed = gzip.open if path.suffix == ".gz" else open
            target = raw / path.name.removesuffix(".gz")
            with open_packed(path, "rb") as packed, open(target, "wb") as file:
                shutil.copyfileobj(packed, file)
        yield folder


def run_search(
    name: str, folder: str, *overrides: str, **environment: str
) -> tuple[float, StoredStudy]:
    """Runs a study module without its winner; returns the seconds it took, and the study."""
    path = Path(folder, "run")
    shutil.rmtree(path, ignore_errors=True)
    arguments = (f"run_dir={path}", "winner.enabled=false", *overrides)
    seconds, _ = run("-m", f"studies.{name}", *arguments, **environment)
    study = next((o.partition("=")[2] for o in overrides if o.startswith("study.name=")), name)
    return seconds, open_study(f"sqlite:///{path}/study.db", study)
