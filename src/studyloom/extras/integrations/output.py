"""What a command prints: the steps and values in it, its last lines, and the log of a trial."""

import codecs
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from studyloom.errors import CommandFailed
from studyloom.text import shorten

LAST_LINES = 12
LONGEST_LINE = 2**16  # characters; what is longer is read in pieces
LOOK = 0.02  # seconds between looks at what a command has printed
WIDEST = 300  # characters of a line that an error shows


def pattern_mistakes(key: str, pattern: Any, group: str) -> Iterator[str]:
    """Finds what is wrong with a pattern.

    Args:
        key: of the config.
        pattern: a regular expression with a group of that name, or with a single group.
        group: the name.
    """
    if not isinstance(pattern, str):
        yield f"{key} must be a regular expression; got {pattern!r}"
        return
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        yield f"{key}: {pattern} is no regular expression: {error}"
        return
    if group not in compiled.groupindex and compiled.groups != 1:
        yield (
            f"{key}: {pattern} must have a group (?P<{group}>…) for what is wanted, or a single "
            f"group (…); it has {compiled.groups or 'none'}"
        )


@dataclass
class Output:
    """Finds steps and values in lines, reports them, and remembers the last lines.

    Args:
        value: the pattern of a value.
        step: the pattern of a step; None if values are counted, from 1.
        report: called with each value and its step, if that is larger than the one before.

    Attributes:
        reported: the step and the value that were reported last.
        last: the last lines.
    """

    value: str
    step: str | None
    report: Callable[[float, int], None]
    reported: tuple[int, float] | None = None
    last: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    _step: int | None = None  # that was found last, or counted

    def take(self, line: str) -> None:
        """Reports what a line holds.

        A command that begins anew prints again what is known; then what was first there counts.
        """
        found = self.find(line)
        if found is not None and (self.reported is None or found[0] > self.reported[0]):
            self.reported = found
            self.report(found[1], found[0])

    def find(self, line: str) -> tuple[int, float] | None:
        """Returns the step and the value of a line; None without a value, or before a step.

        Raises:
            CommandFailed: what was found is no number.
        """
        if line.strip():
            self.last.append(shorten(line.rstrip(), WIDEST))
        if self.step is not None and (match := re.search(self.step, line)):
            self._step = int(self._number("step", match, int))
        if (match := re.search(self.value, line)) is None:
            return None
        number = self._number("value", match, float)
        if self.step is None:
            self._step = (self._step or 0) + 1
        return None if self._step is None else (self._step, number)

    def _number(self, group: str, match: re.Match[str], kind: type[int] | type[float]) -> Any:
        text = match[group] if group in match.re.groupindex else match[1]
        try:
            return kind(text)
        except (TypeError, ValueError):
            what = "whole number" if kind is int else "number"
            raise self.failed(
                f"objective.{group} found {text!r}, which is no {what}, with the pattern "
                f"{match.re.pattern}"
            ) from None

    def failed(self, why: str) -> CommandFailed:
        """Returns an error with the last lines, of which its message has three."""
        shown = " | ".join([*self.last][-3:])
        end = f"the last lines that the command printed: {shown}" if shown else "it printed nothing"
        return CommandFailed(f"{why}; {end}", "\n".join(self.last))


def earlier_lines(record: Path) -> Iterator[str]:
    """Yields what earlier attempts have printed, without a last line that was cut short.

    That is taken out of the file too, so that the next line does not continue it.
    """
    with suppress(FileNotFoundError):
        with record.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            while end > 0:
                begin = max(0, end - 2**16)
                file.seek(begin)
                if (found := file.read(end - begin).rfind(b"\n")) >= 0:
                    end = begin + found + 1
                    break
                end = begin
            file.truncate(end)
        yield from read_lines(record)


class Log:
    """The log of a trial, to which each attempt appends. A full disk does not end the trial.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> "Log":
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8", errors="replace", buffering=1)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            if self._file is not None:
                self._file.close()

    def write(self, line: str) -> None:
        with suppress(OSError, ValueError):
            if self._file is not None:
                self._file.write(f"{line}\n")


def read_lines(
    path: Path, start: int = 0, ended: Callable[[], bool] = lambda: True
) -> Iterator[str]:
    """Yields the lines of a file that may grow, in little memory.

    A carriage return ends a line too, as progress bars have it.

    Args:
        path: of the file.
        start: the position of the first byte to read.
        ended: whether the file grows no more.
    """
    decode, rest = codecs.getincrementaldecoder("utf-8")("replace").decode, ""
    with path.open("rb") as file:
        file.seek(start)
        while True:
            last = ended()  # before the read, which then has all
            if not (chunk := file.read(LONGEST_LINE)):
                if last:
                    break
                time.sleep(LOOK)
                continue
            *whole, rest = re.split(r"\r\n|\n|\r", rest + decode(chunk))
            yield from whole
            if len(rest) > LONGEST_LINE:
                yield rest
                rest = ""
    if rest:
        yield rest
