"""A training's state in a file that survives crashes, is checked when read, and never executed.

A *state* is a dict of tensors and plain values: what a training needs to resume. A checkpoint file
holds a state and the *identity* of the training that it belongs to.
"""

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
from typing import IO, Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from studyloom.files import is_abandoned, naming_file, sync_folder, temporary_name, write_with

State = dict[str, Any]

# Plain values of a state, which also holds tensors, mappings, lists, tuples and sets.
PLAIN_NUMBERS = (bool, int, float, complex)
PLAIN_TYPES = (*PLAIN_NUMBERS, str, bytes, type(None), torch.Size, torch.dtype, torch.device)
# In earlier versions `weights_only` can be tricked into executing code, CVE-2026-24747.
IS_LOADING_SAFE = torch.__version__ >= "2.10"
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

    def save(self, state: State) -> None:
        """Saves a state that torch.load(weights_only=True) reads, and that survives a power cut.

        Raises:
            OSError: the file, which it names, cannot be written; the states saved before stay.
        """
        buffer = io.BytesIO()
        torch.save({"identity": self.identity, "study": self.study, "state": state}, buffer)
        payload = buffer.getvalue()
        new_file = temporary_name(self.path, "new")
        second_name = temporary_name(self.path, "old")  # of the current file while it is replaced
        try:
            with naming_file(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                _remove(path for path in self._temporary_files() if is_abandoned(path))
                with open(new_file, "wb") as file:
                    file.write(_header(payload) + b"\n")
                    file.write(payload)
                    file.flush()
                    os.fsync(file.fileno())
                self._replace_files(new_file, second_name)
        finally:
            with suppress(OSError):
                _remove((new_file, second_name))

    def _replace_files(self, new_file: Path, second_name: Path) -> None:
        """Makes the new file the current one, and the current file the previous one.

        The previous file is replaced last, so that at every moment one of the two is whole, even if
        the current one is damaged. Until then the current file is kept under a second name.

        Args:
            new_file: a temporary file, which is complete.
            second_name: a temporary name for the current file, which no file has yet.
        """
        # 1. The current file, C, gets a second name.
        with suppress(FileNotFoundError):  # the first save finds no current file
            try:
                os.link(self.path, second_name)
            except OSError:
                # The disk cannot give a file two names. So the current file becomes the previous
                # one already now, and for a moment there is no current file.
                os.replace(self.path, self.previous)
        # 2. The new file becomes the current one. C now has only its second name, and `previous` is
        # still the file before C.
        os.replace(new_file, self.path)
        # 3. C becomes `previous`.
        with suppress(FileNotFoundError):  # there was no current file, or no second name for it
            os.replace(second_name, self.previous)
        sync_folder(self.path.parent)

    def load(self) -> State | None:
        """Reads the newest valid state of this training to the CPU; None if no file has one.

        A line is logged for each file that is damaged or belongs to another training.
        """
        for path in (self.path, self.previous):
            try:
                return self._read(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                problem = f"cannot be read: {error.strerror}"
            except ValueError as error:
                problem = str(error)
            next_try = "the start"
            if path == self.path and os.path.exists(self.previous):
                next_try = "the one before"
            log.warning("checkpoint %s %s; resuming from %s", path, problem, next_try)
        return None

    def is_of_another_training(self) -> bool:
        """Returns whether the newest file can be read and belongs to another training."""
        try:
            _header_line, _, payload = self.path.read_bytes().partition(b"\n")
            content = _unpack(io.BytesIO(payload))
        except Exception:  # it does not exist, or is damaged
            return False
        return self._find_own_state(content) is None

    def remove(self) -> None:
        """Removes all files, if there are any.

        The newest goes last: a crash halfway must not leave an older state to resume from.
        """
        _remove((*self._temporary_files(), self.previous, self.path))

    def _temporary_files(self) -> list[Path]:
        return list(self.path.parent.glob(f"{glob.escape(self.path.name)}.*.tmp"))

    def _read(self, path: Path) -> State:
        """Reads the state in a file.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is damaged, or belongs to another training.
        """
        header, _, payload = path.read_bytes().partition(b"\n")
        if header != _header(payload):  # it holds the digest of the payload that was saved
            raise ValueError("is damaged: its content differs from what was saved")
        try:
            content = _unpack(io.BytesIO(payload))
        except Exception as error:  # its message is left out: it advises to do without weights_only
            raise ValueError(
                f"cannot be read as tensors and plain values ({type(error).__name__})"
            ) from error
        state = self._find_own_state(content)
        if state is None:
            raise ValueError(f"belongs to another training, not to {self.identity}")
        return state

    def _find_own_state(self, content: Any) -> State | None:
        """Returns the state in the content of a file; None if it is of another training."""
        if not isinstance(content, dict) or content.get("identity") != self.identity:
            return None
        study = content.get("study", "")  # empty in a file of an earlier version
        is_of_this_study = study in ("", self.study)
        state = content.get("state")
        if is_of_this_study and isinstance(state, dict):
            return state
        return None


def copy_state(value: object, where: str) -> Any:
    """Copies a state to the CPU.

    Args:
        where: names the state in an error.

    Raises:
        TypeError: the state holds something other than tensors and plain values.
    """
    return _rebuild(value, _copy_value, where)


def _copy_value(value: object, where: str) -> object:
    """Copies a tensor to the CPU, and returns plain values unchanged; see `copy_state`."""
    if isinstance(value, Tensor):
        # A tensor on the CPU is copied too. One on a GPU is copied once, and not on the GPU first.
        return value.detach().to("cpu", copy=True)
    if isinstance(value, np.generic):  # a number of NumPy
        return value.item()
    # An instance of a subclass with attributes, such as a str of a library, is no plain value.
    if isinstance(value, PLAIN_TYPES) and not hasattr(value, "__dict__"):
        return value
    raise TypeError(
        f"{where}: the state must hold tensors and plain values, since a checkpoint is never "
        f"executed; got {type(value).__name__}"
    )


def _rebuild(value: object, convert: Callable[[object, str], object], where: str = "") -> object:
    """Rebuilds mappings, lists, tuples and sets at any depth from converted values.

    Args:
        convert: is called with each value that is none of these, and where it is.
        where: the path to the value, such as "optimizer['state'][0]".
    """
    if isinstance(value, Mapping):
        return _rebuild_mapping(value, convert, where)
    # Not an instance of a subclass, such as a named tuple: its class may not take an iterable.
    if isinstance(value, list | tuple | set) and type(value) in (list, tuple, set):
        return type(value)(_rebuild(item, convert, where) for item in value)
    return convert(value, where)


def _rebuild_mapping(
    mapping: Mapping[Any, object], convert: Callable[[object, str], object], where: str
) -> dict[Any, object]:
    """Rebuilds a mapping from converted keys and values; see `_rebuild`."""
    rebuilt: dict[Any, object] = {}
    if isinstance(mapping, OrderedDict):
        rebuilt = OrderedDict()
    for key, value in mapping.items():
        rebuilt[_rebuild(key, convert, where)] = _rebuild(value, convert, f"{where}[{key!r}]")
    if isinstance(rebuilt, OrderedDict) and hasattr(mapping, "_metadata"):
        # The state dict of a network has an attribute with the versions of its modules' states.
        versions = _rebuild(mapping._metadata, convert, where)
        rebuilt._metadata = versions  # type: ignore[attr-defined]
    return rebuilt


def save_weights(path: Path, weights: Mapping[str, Any]) -> None:
    """Writes a state dict, or several by name, for torch.load: whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_with(path, lambda file: file.write(pack_weights(weights)), durable=True)


def pack_weights(weights: Mapping[str, Any]) -> bytes:
    """Returns the bytes that `save_weights` writes."""
    cpu_weights = {name: _rebuild(value, _move_to_cpu) for name, value in weights.items()}
    buffer = io.BytesIO()
    torch.save(cpu_weights, buffer)
    return buffer.getvalue()


def _move_to_cpu(value: object, where: str) -> object:
    if isinstance(value, Tensor):
        return value.cpu()
    return value


def load_weights(path: Path, *, untrusted: bool = False) -> dict[str, Any]:
    """Reads a file of `save_weights`, to the CPU; nothing in the file is executed.

    Args:
        untrusted: whether others may have written it.

    Raises:
        OSError: the file cannot be read.
        ValueError: its content is something else, or unsafe; the message names it.
    """
    if untrusted and not IS_LOADING_SAFE:
        raise ValueError(
            f"{path}: no command of yours has run in this folder, and PyTorch {torch.__version__} "
            "may execute what its weights hold (CVE-2026-24747): pip install 'torch>=2.10'"
        )
    try:
        with open(path, "rb") as file:
            content = _unpack(file)
    except OSError:
        raise
    except Exception as error:  # its message is left out: it advises to do without weights_only
        raise ValueError(f"{path}: cannot be read as weights ({type(error).__name__})") from error
    if not _are_weights(content):
        raise ValueError(f"{path}: must hold weights, a dict of tensors; got something else")
    return content


def _are_weights(content: object) -> TypeGuard[dict[str, Any]]:
    """Returns whether the content of a file is a state dict, or several by name."""
    if not isinstance(content, dict):
        return False
    return all(isinstance(value, Tensor | dict) for value in content.values())


def hash_files(path: Path, *, durable: bool = False) -> str:
    """Returns the digest of a file, or of all files in a folder with their names.

    Args:
        durable: whether to write the files from memory to the disk too, so that they survive a
            power cut.
    """
    file_paths = [path]
    if path.is_dir():
        file_paths = sorted(entry for entry in path.rglob("*") if entry.is_file())
    digest = hashlib.sha256()
    for file_path in file_paths:
        with open(file_path, "rb") as file:
            content_digest = hashlib.file_digest(file, "sha256").hexdigest()
            if durable:
                os.fsync(file.fileno())
        name = file_path.relative_to(path.parent).as_posix()
        digest.update(f"{name} {content_digest}\n".encode())
    if durable:
        folders = {path.parent}
        folders.update(file_path.parent for file_path in file_paths)
        for folder in folders:
            sync_folder(folder)
    return digest.hexdigest()


def _unpack(file: IO[bytes]) -> Any:
    """Reads a file of torch.save, on the CPU, and executes nothing."""
    # A pickle writes b"" as a call of bytes, which torch.load refuses unless it is allowed here.
    torch.serialization.add_safe_globals([(_make_empty_bytes, "builtins.bytes")])
    return torch.load(file, weights_only=True, map_location="cpu")


def _make_empty_bytes() -> bytes:
    return b""


def _header(payload: bytes) -> bytes:
    """Returns the first line of a checkpoint file: the digest of the payload that follows.

    It is in one file with the payload, so that no crash can separate them.
    """
    return f"studyloom checkpoint 1 sha256 {hashlib.sha256(payload).hexdigest()}".encode()


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
