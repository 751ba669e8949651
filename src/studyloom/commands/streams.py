"""The standard streams of a command, which may be closed, full, or without a reader."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


def prepare_streams() -> None:
    """Makes the standard streams fit to be written to, whatever a command was started with.

    A stream that is closed becomes the null device: else the database would be the first file to
    be opened, get its number, and get what is printed. What an encoding lacks is written as `?`.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a test or an embedding program has its own
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def discard_output(stream: TextIO | None = None) -> None:
    """Discards what is written to a stream, by default standard output, and what it still holds."""
    stream = sys.stdout if stream is None else stream
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()


class LastingOutput:
    """Standard output or error that may fail: a study outlasts a full disk, and a pipe's reader.

    From then on it discards what is written. If it is standard output, a line on standard error
    says so, once.

    Args:
        stream: where to write; None for standard output.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._discarding():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._discarding():
            self._stream.flush()

    @contextlib.contextmanager
    def _discarding(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            discard_output(self._stream)
            if not isinstance(error, BrokenPipeError) and self._stream is not sys.stderr:
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.write(
                        f"standard output: {error.strerror}; the study goes on without it\n"
                    )
