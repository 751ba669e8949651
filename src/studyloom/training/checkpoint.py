"""A training's state in a file that survives crashes, is checked when read, and never executed."""

import glob
import hashlib
import io
import logging
import os
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from studyloom.files import is_abandoned, sync_folder, temporary_name, write_with

FORMAT = 1
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device)
# The end of an archive, and its entries in the central directory: the fields that say how large
# what they hold is. PKWARE's APPNOTE 6.3.10, 4.3.12 to 4.3.16.
ZIP_END, ZIP64_LOCATOR, ZIP64_END, ZIP_ENTRY = (
    struct.Struct("<" + fields) for fields in ("4s6xHIIH", "4s4xQ4x", "4s28xQQQ", "4s6xH8xIIHHH12x")
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The newest state of a training in one file, and the state before it in <name>.previous.

    At most one process saves at a time; any may be killed at any moment.

    Args:
        path: the file of the newest state.
        identity: what the state belongs to; a file with another identity is foreign.
    """

    path: Path
    identity: str

    @property
    def previous(self) -> Path:
        return self.path.with_name(f"{self.path.name}.previous")

    def save(self, state: dict[str, Any]) -> None:
        """Saves a state, durably: once this returns, it survives a power cut.

        Args:
            state: whatever torch.load(weights_only=True) reads: tensors, numbers, strings, None,
                and lists, tuples and dicts of them.

        Raises:
            OSError: the file, which it names, cannot be written; the states saved before stay.
        """
        buffer = io.BytesIO()
        torch.save({"identity": self.identity, "state": state}, buffer)
        payload = buffer.getvalue()
        new, old = (temporary_name(self.path, kind) for kind in ("new", "old"))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _remove(path for path in self._temporary() if is_abandoned(path))
            with open(new, "wb") as file:
                file.write(_header(payload) + b"\n")
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            # The previous file is replaced last, so that at every moment one of the two is whole,
            # even if the current one is damaged.
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
        except OSError as error:
            # The error of a failed write does not name the file.
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        finally:
            with suppress(OSError):
                _remove((new, old))

    def load(self) -> dict[str, Any] | None:
        """Reads the newest state that is whole and belongs here; logs a line for each that is not.

        Returns:
            the state, its tensors on the CPU; None if there is none.
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
                log.warning("checkpoint %s %s; going on from %s", path, wrong, instead)
        return None

    def is_foreign(self) -> bool:
        """Whether the newest file can be read and belongs to something else."""
        try:
            content = _unpack(io.BytesIO(self.path.read_bytes().partition(b"\n")[2]))
        except Exception:  # there is none, or it is damaged
            return False
        return not isinstance(content, dict) or content.get("identity") != self.identity

    def remove(self) -> None:
        """Removes all files, if there are any.

        The newest goes last: a crash halfway must not leave an older state to resume from.
        """
        _remove((*self._temporary(), self.previous, self.path))

    def _temporary(self) -> list[Path]:
        return list(self.path.parent.glob(f"{glob.escape(self.path.name)}.*.tmp"))

    def _read(self, path: Path) -> dict[str, Any]:
        """Reads one file.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read.
            ValueError: it is damaged or foreign; the message says how.
        """
        header, _, payload = path.read_bytes().partition(b"\n")
        if header != _header(payload):
            number = re.match(rb"studyloom checkpoint (\d+) ", header)
            if number is None:
                raise ValueError("does not begin as a checkpoint does" if header else "is empty")
            if int(number[1]) != FORMAT:
                raise ValueError(f"has format {int(number[1])} and not {FORMAT}")
            raise ValueError("is damaged: its content is another than was saved")
        try:
            content = _unpack(io.BytesIO(payload))
        except _Inflated as error:
            raise ValueError(f"cannot be read: {error}") from None
        # torch's own message advises to do without weights_only.
        except Exception as error:
            raise ValueError(
                f"cannot be read as tensors and plain values ({type(error).__name__})"
            ) from error
        match content:
            case {"identity": self.identity, "state": dict(state)}:
                return state
        raise ValueError(f"is foreign: it does not belong to {self.identity}")


def snapshot(value: Any, where: str) -> Any:
    """Copies a state of tensors and plain values; the tensors are on the CPU.

    Args:
        value: the state.
        where: it is, for the error.

    Raises:
        TypeError: it holds something else, which a checkpoint would have to execute to read.
    """
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
    """Rebuilds mappings, lists, tuples and sets of what a function makes of all else.

    Args:
        value: the state.
        leaf: gets a value and where it is.
        where: the state is.
    """
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
    """Writes what is kept of a training for torch.load, whole or not at all.

    Args:
        path: the file; its folder is made if it does not exist.
        weights: a state dict on any device, or several by name.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_with(path, lambda file: _pack(weights, file), durable=True)


def pack_weights(weights: Mapping[str, Any]) -> bytes:
    """Returns what `save_weights` writes."""
    buffer = io.BytesIO()
    _pack(weights, buffer)
    return buffer.getvalue()


def digest_of(path: Path, *, durable: bool = False) -> str:
    """Returns a digest of a file, or of the names and contents of all files of a folder.

    Args:
        path: the file or folder.
        durable: whether they are to survive a power cut once this returns.

    Raises:
        OSError: a file cannot be read or made durable.
    """
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


def _pack(weights: Mapping[str, Any], file: IO[bytes]) -> None:
    torch.save({name: _rebuilt(value, _on_cpu) for name, value in weights.items()}, file)


def _on_cpu(value: Any, where: str) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def load_weights(path: Path) -> dict[str, Any]:
    """Reads what is kept of a training; nothing in the file is executed.

    Returns:
        a state dict of a network, or the states of a loop by name, on the CPU.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else; the message names it.
    """
    try:
        with open(path, "rb") as file:
            weights = _unpack(file)
    except OSError:
        raise
    except _Inflated as error:
        raise ValueError(f"{path}: cannot be read as weights: {error}") from None
    # torch's own message advises to do without weights_only.
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as weights ({type(error).__name__})") from error
    if not isinstance(weights, dict) or not all(
        isinstance(tensor, Tensor | dict) for tensor in weights.values()
    ):
        raise ValueError(f"{path}: must hold weights, a dict of tensors; got something else")
    return weights


class _Inflated(ValueError):
    """A file says that it holds more than it has; the message says how."""


def _unpack(file: IO[bytes]) -> Any:
    """Reads what torch.save has written, on the CPU, and executes nothing.

    Raises:
        _Inflated: it would take more memory than the file has bytes.
        Exception: whatever torch raises for what is damaged or would have to be executed.
    """
    if file.read(4) == b"PK\3\4":  # torch takes any other file for one of before version 1.6
        _check_archive(file)
    file.seek(0)
    # pickle writes b"" as a call of bytes, which is not among what torch allows.
    torch.serialization.add_safe_globals([(_no_bytes, "builtins.bytes")])
    return torch.load(file, weights_only=True, map_location="cpu")


def _no_bytes() -> bytes:  # of no length that a file could say
    return b""


def _check_archive(file: IO[bytes]) -> None:
    """Checks that all entries of an archive fit into it side by side, as torch.save writes them.

    We read the directory ourselves, and only where torch.save puts it: at the very end. The reader
    of torch and `zipfile` look for it in other places too, and not in the same ones, so that one
    can be shown another directory than the other. 200 MB of zeros deflate to 195 KB.

    Raises:
        _Inflated: they do not.
    """
    refused = _Inflated("it is damaged, or no archive as torch.save writes it; copy it anew")
    size = file.seek(0, os.SEEK_END)
    whole, end = 0, max(0, size - ZIP_END.size)
    try:
        file.seek(end)
        mark, count, length, start, comment = ZIP_END.unpack(file.read(ZIP_END.size))
        file.seek(max(0, end - ZIP64_LOCATOR.size))
        if (locator := ZIP64_LOCATOR.unpack(file.read(ZIP64_LOCATOR.size)))[0] == b"PK\6\7":
            end = max(0, end - ZIP64_LOCATOR.size - ZIP64_END.size)
            file.seek(end)
            wide, count, length, start = ZIP64_END.unpack(file.read(ZIP64_END.size))
            if (wide, locator[1]) != (b"PK\6\6", end):
                raise refused
        if (mark, start + length, comment) != (b"PK\5\6", end, 0):
            raise refused
        file.seek(start)
        for _ in range(count):
            entry = ZIP_ENTRY.unpack(file.read(ZIP_ENTRY.size))
            mark, method, packed, unpacked, *lengths = entry
            name = file.read(lengths[0]).decode(errors="replace")
            file.seek(sum(lengths[1:]), os.SEEK_CUR)
            if mark != b"PK\1\2" or file.tell() > end:
                raise refused
            if method:
                raise _Inflated(
                    f"its entry {name!r} is compressed, and may hold far more than the file; "
                    "torch.save compresses nothing, so save its content with torch.save"
                )
            whole += max(packed, unpacked)  # 2³² − 1 for all that are larger
    except (struct.error, OverflowError):
        raise refused from None
    if whole > size:
        raise _Inflated(
            f"its entries say that they hold {whole} bytes, and the file has {size}; save its "
            "content with torch.save"
        )


def _header(payload: bytes) -> bytes:
    """Returns the first line of a checkpoint. It is in one file with the payload that it describes,
    so that no crash can separate them."""
    return f"studyloom checkpoint {FORMAT} sha256 {hashlib.sha256(payload).hexdigest()}".encode()


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
