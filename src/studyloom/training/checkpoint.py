"""A training's state in a file that survives crashes, is checked when read, and never executed."""

import glob
import hashlib
import io
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from studyloom.files import is_abandoned, naming, sync_folder, temporary_name, write_with

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device)
# In earlier ones `weights_only` can be tricked into executing code, CVE-2026-24747.
SAFE = torch.__version__ >= "2.10"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The newest state of a training in one file, and the state before it in <name>.previous.

    At most one process saves at a time; any may be killed at any moment. A file with another
    identity, or of another study, belongs to another training, and is not read.

    Args:
        study: the study's uuid; another study of the same name has another. A file without one is
            read: an earlier version wrote it.
    """

    path: Path
    identity: str
    study: str = ""

    @property
    def previous(self) -> Path:
        return self.path.with_name(f"{self.path.name}.previous")

    def save(self, state: dict[str, Any]) -> None:
        """Saves a state that torch.load(weights_only=True) reads, and that survives a power cut.

        Raises:
            OSError: the file, which it names, cannot be written; the states saved before stay.
        """
        buffer = io.BytesIO()
        torch.save({"identity": self.identity, "study": self.study, "state": state}, buffer)
        payload = buffer.getvalue()
        new, old = (temporary_name(self.path, kind) for kind in ("new", "old"))
        try:
            with naming(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                _remove(path for path in self._temporary() if is_abandoned(path))
                with open(new, "wb") as file:
                    file.write(_header(payload) + b"\n")
                    file.write(payload)
                    file.flush()
                    os.fsync(file.fileno())
                # The previous file is replaced last, so that at every moment one of the two is
                # whole, even if the current one is damaged.
                with suppress(FileNotFoundError):
                    try:
                        os.link(self.path, old)
                    except OSError:
                        # Without hard links there is only the previous file for a moment.
                        os.replace(self.path, self.previous)
                os.replace(new, self.path)
                with suppress(FileNotFoundError):
                    os.replace(old, self.previous)
                sync_folder(self.path.parent)
        finally:
            with suppress(OSError):
                _remove((new, old))

    def load(self) -> dict[str, Any] | None:
        """Reads the newest valid state of this training to the CPU; None if no file has one.

        A line is logged for each file that is damaged or belongs to another training.
        """
        for path, older in ((self.path, self.previous), (self.previous, None)):
            try:
                return self._read(path)
            except FileNotFoundError:
                pass
            except (OSError, ValueError) as error:
                wrong = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else error
                instead = (
                    "the one before" if older is not None and os.path.exists(older) else "the start"
                )
                log.warning("checkpoint %s %s; resuming from %s", path, wrong, instead)
        return None

    def is_foreign(self) -> bool:
        """Whether the newest file can be read and belongs to something else."""
        try:
            content = _unpack(io.BytesIO(self.path.read_bytes().partition(b"\n")[2]))
        except Exception:  # it does not exist, or is damaged
            return False
        return self._own_state(content) is None

    def remove(self) -> None:
        """Removes all files, if there are any.

        The newest goes last: a crash halfway must not leave an older state to resume from.
        """
        _remove((*self._temporary(), self.previous, self.path))

    def _temporary(self) -> list[Path]:
        return list(self.path.parent.glob(f"{glob.escape(self.path.name)}.*.tmp"))

    def _read(self, path: Path) -> dict[str, Any]:
        header, _, payload = path.read_bytes().partition(b"\n")
        if header != _header(payload):
            raise ValueError("is damaged: its content differs from what was saved")
        try:
            content = _unpack(io.BytesIO(payload))
        # torch's own message advises to do without weights_only.
        except Exception as error:
            raise ValueError(
                f"cannot be read as tensors and plain values ({type(error).__name__})"
            ) from error
        if (state := self._own_state(content)) is None:
            raise ValueError(f"belongs to another training, not to {self.identity}")
        return state

    def _own_state(self, content: Any) -> dict[str, Any] | None:
        """Returns the state in the content of a file; None if it is of another training."""
        match content:
            case {"identity": self.identity, "state": dict(state)}:
                return state if content.get("study", "") in ("", self.study) else None
        return None


def snapshot(value: Any, where: str) -> Any:
    """Copies a state to the CPU; raises TypeError unless it holds tensors and plain values."""
    return _rebuilt(value, _copied, where)


def _copied(value: Any, where: str) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)  # no second copy on a GPU
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, PLAIN) and not hasattr(value, "__dict__"):
        return value
    raise TypeError(
        f"{where}: the state must hold tensors and plain values, since a checkpoint is never "
        f"executed; got {type(value).__name__}"
    )


def _rebuilt(value: Any, leaf: Callable[[Any, str], Any], where: str = "") -> Any:
    """Rebuilds mappings, lists, tuples and sets; `leaf` gets any other value, and where it is."""
    if isinstance(value, Mapping):
        rebuilt: dict[Any, Any] = OrderedDict() if isinstance(value, OrderedDict) else {}
        for key, inner in value.items():
            rebuilt[_rebuilt(key, leaf, where)] = _rebuilt(inner, leaf, f"{where}[{key!r}]")
        if isinstance(rebuilt, OrderedDict) and hasattr(value, "_metadata"):  # of a module
            versions = _rebuilt(value._metadata, leaf, where)
            rebuilt._metadata = versions  # type: ignore[attr-defined]
        return rebuilt
    if type(value) in (list, tuple, set):
        return type(value)(_rebuilt(inner, leaf, where) for inner in value)
    return leaf(value, where)


def save_weights(path: Path, weights: Mapping[str, Any]) -> None:
    """Writes a state dict, or several by name, for torch.load: whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_with(path, lambda file: file.write(pack_weights(weights)), durable=True)


def pack_weights(weights: Mapping[str, Any]) -> bytes:
    """Returns the bytes that `save_weights` writes."""

    def on_cpu(value: Any, where: str) -> Any:
        return value.cpu() if isinstance(value, Tensor) else value

    buffer = io.BytesIO()
    torch.save({name: _rebuilt(value, on_cpu) for name, value in weights.items()}, buffer)
    return buffer.getvalue()


def load_weights(path: Path, *, untrusted: bool = False) -> dict[str, Any]:
    """Reads a file of `save_weights`, to the CPU; nothing in the file is executed.

    Args:
        untrusted: whether others may have written it.

    Raises:
        OSError: the file cannot be read.
        ValueError: its content is something else, or unsafe; the message names it.
    """
    if untrusted and not SAFE:
        raise ValueError(
            f"{path}: no command of yours has run in this folder, and PyTorch {torch.__version__} "
            "may execute what its weights hold (CVE-2026-24747): pip install 'torch>=2.10'"
        )
    try:
        with open(path, "rb") as file:
            weights = _unpack(file)
    except OSError:
        raise
    # torch's own message advises to do without weights_only.
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as weights ({type(error).__name__})") from error
    if not isinstance(weights, dict) or not all(
        isinstance(tensor, Tensor | dict) for tensor in weights.values()
    ):
        raise ValueError(f"{path}: must hold weights, a dict of tensors; got something else")
    return weights


def digest_of(path: Path, *, durable: bool = False) -> str:
    """Returns the digest of a file or folder; `durable` also makes it survive a power cut."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        with open(file, "rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
            if durable:
                os.fsync(opened.fileno())
        digest.update(f"{file.relative_to(path.parent).as_posix()} {content}\n".encode())
    if durable:
        for folder in {path.parent, *(file.parent for file in files)}:
            sync_folder(folder)
    return digest.hexdigest()


def _unpack(file: IO[bytes]) -> Any:
    """Reads a file of torch.save, on the CPU, and executes nothing."""
    # pickle writes b"" as a call of bytes, which is not among what torch allows.
    torch.serialization.add_safe_globals([(_no_bytes, "builtins.bytes")])
    return torch.load(file, weights_only=True, map_location="cpu")


def _no_bytes() -> bytes:
    return b""


def _header(payload: bytes) -> bytes:
    """Returns the first line of a checkpoint. It is in one file with the payload that it describes,
    so that no crash can separate them."""
    return f"studyloom checkpoint 1 sha256 {hashlib.sha256(payload).hexdigest()}".encode()


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
