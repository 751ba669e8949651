"""Reads the runs in W&B's folder of a project, `wandb/`, whether they were offline or not.

Each run has a file `run-ID.wandb`. It is a log of LevelDB: blocks with pieces of records, each with
a checksum. A record is a message of Protocol Buffers. Its fields are read here by an allow list of
their numbers, with limits of size; all other records are skipped, and nothing is executed. A run
that was killed has an incomplete last record, where reading stops.
"""

import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, NamedTuple

from studyloom.errors import DataError
from studyloom.extras.adopt.tracked_runs import Run, check_metric, check_settings, choose_study
from studyloom.files import open_regular
from studyloom.text import one_line

MAX_RUNS = 20_000
MAX_FILE_BYTES = 1_000_000_000
MAX_RECORD_BYTES = 50_000_000
MAX_VALUES = 100_000  # of a metric in a run
MAX_NAMES = 1_000  # of metrics or settings in a run

# The log of LevelDB.
HEADER = struct.Struct("<4sHB")  # of the file: `:W&B`, a magic number, the version of the format
SIGNATURE = b":W&B"
BLOCK = 32_768  # bytes
PIECE = struct.Struct("<IHB")  # before a piece of a record: checksum, length, kind
WHOLE = 1  # kinds of pieces
FIRST = 2
MIDDLE = 3
LAST = 4

# Numbers of the fields in W&B's messages, from wandb/proto/wandb_internal.proto.
# The kind of a record's message:
HISTORY = 2
SUMMARY = 3
CONFIG = 5
RUN = 17
EXIT = 18
# An item of a history, summary or config, and its fields:
ITEM = 1
KEY = 1
NESTED_KEY = 2
VALUE_JSON = 16
# The fields of a run, and of its time of start:
RUN_ID = 1
PROJECT = 3
RUN_CONFIG = 4
DISPLAY_NAME = 8
START_TIME = 17
SECONDS = 1
# The fields of the exit; the runtime is in seconds:
EXIT_CODE = 1
RUNTIME = 2

# How a field is encoded.
VARINT = 0
FIXED_64 = 1
BYTES = 2
FIXED_32 = 5

STEP = "_step"
INTERNAL = "_"  # begins the names that W&B gives itself, such as `_step` and `_wandb`
NUMBERS_IN_QUOTES = ("NaN", "Infinity", "-Infinity")  # JSON has no such numbers


class Field(NamedTuple):
    """A field of a message: its number, and its value as an integer or as bytes."""

    number: int
    value: int | bytes


@dataclass
class RunRecord:
    """Holds what the file of a run says of it."""

    path: Path
    run_id: str = ""
    name: str = ""
    project: str = ""
    start: int | None = None  # seconds since 1970
    runtime: int | None = None  # seconds
    exit_code: int | None = None  # None while it runs, and if it was killed
    settings: dict[str, object] = field(default_factory=dict)
    summary: dict[str, float] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """The state of the run, as W&B calls it."""
        if self.exit_code is None:
            return "running"
        if self.exit_code == 0:
            return "finished"
        return f"exit code {self.exit_code}"

    def make_run(self, metric: str) -> Run:
        """Returns the run with its values of a metric; without any, that of the summary."""
        values = self.values.get(metric, [])
        if not values and metric in self.summary:
            values = [self.summary[metric]]
        start = _local_time(self.start)
        end = None
        if self.start is not None and self.runtime is not None:
            end = _local_time(self.start + self.runtime)
        return Run(self.name or self.run_id, self.state, self.settings, values, start, end)


@dataclass(frozen=True)
class WandbFolder:
    """Holds the runs of a folder."""

    path: Path
    records: Sequence[RunRecord]

    def error(self, problem: str) -> DataError:
        """Returns the error of the folder."""
        return DataError(f"{one_line(str(self.path))}: {problem}")

    def choose_runs(
        self, project: str | None, metric: str | None, names: Sequence[str]
    ) -> tuple[str, str, list[Run]]:
        """Returns the project and the metric that are read, and the runs in their order.

        Args:
            project: the name of the project; None for the only one.
            names: the settings that the user names as hyperparameters.

        Raises:
            ConfigError: no metric is named.
            DataError: there is no such project, metric or setting.
        """
        projects = {record.project for record in self.records}
        chosen_project = choose_study(self, project, projects, "project")
        records = [record for record in self.records if record.project == chosen_project]
        metrics = set[str]()
        for record in records:
            metrics.update(record.values, record.summary)
        chosen_metric = check_metric(self, metric, metrics)
        records.sort(key=lambda record: (record.start or 0, record.run_id))
        runs = [record.make_run(chosen_metric) for record in records]
        check_settings(self, names, runs)
        return chosen_project, chosen_metric, runs


def read_wandb_folder(path: Path) -> WandbFolder:
    """Reads all runs below a folder of W&B, or below the folder that holds it.

    Raises:
        DataError: it holds no run, or a file cannot be read as one.
    """
    files = _find_files(path)
    records = [_read_run(file) for file in files[:MAX_RUNS]]
    folder = WandbFolder(path, records)
    if not files:
        raise folder.error("no file *.wandb is below it; name the folder that W&B calls wandb")
    if len(files) > MAX_RUNS:
        raise folder.error(f"it holds more than {MAX_RUNS:,} runs; move some elsewhere")
    return folder


@dataclass(frozen=True)
class HistoryRow:
    """The numbers of one step in the history of a run, which `wandb.log` adds to.

    Attributes:
        step: as W&B counts them, from 0.
        numbers: by their names.
    """

    step: int
    numbers: Mapping[str, float]


def read_history(path: Path) -> list[HistoryRow]:
    """Reads the history in the file of a run, which may still be written: as far as it goes.

    Raises:
        ValueError: the file is no run of W&B, or its first bytes are not written yet.
        OSError: it cannot be read.
    """
    rows: list[HistoryRow] = []
    with open_regular(path) as file:
        for record in _read_records(file):
            for message in _read_messages(record, HISTORY):
                rows.append(HistoryRow(_read_step(message, len(rows)), _read_numbers(message)))
    return rows


def _read_step(message: bytes, default: int) -> int:
    """Returns the step of a history; the default without one."""
    for item in _read_messages(message, ITEM):
        names = [name.decode() for name in _read_messages(item, NESTED_KEY)]
        if names == [STEP] or _read_text(item, KEY) == STEP:
            return int(json.loads(_read_text(item, VALUE_JSON)))
    return default


def _find_files(path: Path) -> list[Path]:
    """Returns the files of runs; `latest-run`, a link to one of their folders, is skipped."""
    files = []
    for pattern in ("*.wandb", "*/*.wandb", "wandb/*/*.wandb"):
        for file in path.glob(pattern):
            if not file.parent.is_symlink():
                files.append(file)
    return sorted(files)


def _read_run(path: Path) -> RunRecord:
    """Reads the file of a run.

    Raises:
        DataError: it is no such file, or exceeds a limit.
    """
    run = RunRecord(path)
    place = one_line(str(path))
    try:
        with open_regular(path) as file:
            for record in _read_records(file):
                _add_record(run, record)
    except OSError as error:
        raise DataError(f"{place}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also a text that is not UTF-8, or no JSON
        reason = one_line(str(error)) or "it is nested too deeply"
        raise DataError(f"{place}: is no run of W&B: {reason}; move it elsewhere") from None
    return run


# The log of LevelDB


def _read_records(file: IO[bytes]) -> Iterator[bytes]:
    """Yields the records of a log, up to one that is incomplete or has a wrong checksum.

    Raises:
        ValueError: it is no log of W&B, or exceeds a limit.
    """
    header = file.read(HEADER.size)
    if len(header) < HEADER.size or not header.startswith(SIGNATURE):
        raise ValueError("it does not begin with :W&B")
    position = HEADER.size
    record: bytearray | None = None  # the pieces of a record that has not ended
    while True:
        room = BLOCK - position % BLOCK
        if room < PIECE.size:  # no piece begins there; zeros fill the block
            position += len(file.read(room))
        head = file.read(PIECE.size)
        if len(head) < PIECE.size:
            return
        checksum, length, kind = PIECE.unpack(head)
        data = file.read(length)
        position += PIECE.size + length
        if position > MAX_FILE_BYTES:
            raise ValueError(f"it has more than {MAX_FILE_BYTES // 10**9} GB")
        is_whole = len(data) == length and zlib.crc32(data, zlib.crc32(head[-1:])) == checksum
        if not is_whole or kind not in (WHOLE, FIRST, MIDDLE, LAST):
            return
        if kind in (WHOLE, FIRST):
            record = bytearray()
        if record is None:  # the piece continues no record
            continue
        record += data
        if len(record) > MAX_RECORD_BYTES:
            raise ValueError(f"a record has more than {MAX_RECORD_BYTES // 10**6} MB")
        if kind in (WHOLE, LAST):
            yield bytes(record)
            record = None


# Messages of Protocol Buffers


def _read_fields(message: bytes) -> Iterator[Field]:
    """Yields the fields of a message, in their order; a message within it is bytes.

    Raises:
        ValueError: it is no message.
    """
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        number = tag >> 3
        encoding = tag & 7
        value: int | bytes
        if encoding == VARINT:
            value, position = _read_varint(message, position)
        else:
            length = {FIXED_64: 8, FIXED_32: 4}.get(encoding, 0)
            if encoding == BYTES:
                length, position = _read_varint(message, position)
            elif not length:
                raise ValueError(f"a field has the unknown encoding {encoding}")
            if length > len(message) - position:
                raise ValueError("a field is longer than its message")
            value = message[position : position + length]
            position += length
        yield Field(number, value)


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """Returns an integer, which has seven bits in each byte, and the position after it."""
    result = 0
    for shift in range(0, 64, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise ValueError("an integer does not end")


def _read_messages(message: bytes, number: int) -> Iterator[bytes]:
    """Yields the values of a field that holds bytes: texts or messages."""
    for entry in _read_fields(message):
        if entry.number == number and isinstance(entry.value, bytes):
            yield entry.value


def _read_text(message: bytes, number: int) -> str:
    """Returns the text of a field; empty without one."""
    for value in _read_messages(message, number):
        return value.decode()
    return ""


def _read_integer(message: bytes, number: int) -> int | None:
    """Returns the integer of a field of 32 bits with a sign; None without one."""
    for entry in _read_fields(message):
        if entry.number == number and isinstance(entry.value, int):
            if entry.value >= 2**63:  # a negative integer
                return entry.value - 2**64
            return entry.value
    return None


# Records of a run


def _add_record(run: RunRecord, record: bytes) -> None:
    """Adds a record of the log to what is known of a run; records of other kinds are skipped."""
    for kind, message in _read_fields(record):
        if not isinstance(message, bytes):
            continue
        if kind == HISTORY:
            for name, value in _read_numbers(message).items():
                _append_value(run, name, value)
        elif kind == SUMMARY:
            run.summary |= _read_numbers(message)
        elif kind == CONFIG:
            _add_settings(run, message)
        elif kind == RUN:
            _add_description(run, message)
        elif kind == EXIT:
            run.exit_code = _read_integer(message, EXIT_CODE) or 0  # 0 is left out of a message
            run.runtime = _read_integer(message, RUNTIME) or 0


def _append_value(run: RunRecord, name: str, value: float) -> None:
    if name not in run.values and len(run.values) >= MAX_NAMES:
        raise ValueError(f"it has more than {MAX_NAMES:,} metrics")
    values = run.values.setdefault(name, [])
    if len(values) >= MAX_VALUES:
        raise ValueError(f"it has more than {MAX_VALUES:,} values of {name}")
    values.append(value)


def _add_description(run: RunRecord, message: bytes) -> None:
    """Adds the record that describes a run: its names, its time of start and its configuration."""
    run.run_id = _read_text(message, RUN_ID)
    run.project = _read_text(message, PROJECT)
    run.name = _read_text(message, DISPLAY_NAME)
    for time in _read_messages(message, START_TIME):
        run.start = _read_integer(time, SECONDS)
    for config in _read_messages(message, RUN_CONFIG):
        _add_settings(run, config)


def _add_settings(run: RunRecord, message: bytes) -> None:
    run.settings |= flatten(_read_items(message))
    if len(run.settings) > MAX_NAMES:
        raise ValueError(f"it has more than {MAX_NAMES:,} settings")


def _read_numbers(message: bytes) -> dict[str, float]:
    """Returns the numbers among the items of a message, by name."""
    numbers = {}
    for name, value in flatten(_read_items(message)).items():
        if isinstance(value, str) and value in NUMBERS_IN_QUOTES:
            numbers[name] = float(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[name] = _to_float(value)
    return numbers


def _to_float(value: float) -> float:
    """Returns a number as a float; an integer that is too large for one is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def _read_items(message: bytes) -> dict[str, object]:
    """Returns the items of a history, summary or config by name, without those of W&B itself."""
    items: dict[str, object] = {}
    for item in _read_messages(message, ITEM):
        names = [name.decode() for name in _read_messages(item, NESTED_KEY)]
        if not names:
            names = [_read_text(item, KEY)]
        name = ".".join(names)
        if not name.startswith(INTERNAL):
            items[name] = json.loads(_read_text(item, VALUE_JSON) or "null")
    return items


def flatten(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Returns nested settings by their names with dots, such as `model.width`."""
    flat: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _local_time(seconds: int | None) -> datetime | None:
    """Returns a time in local time, as Optuna stores it; None if it is out of range."""
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds)
    except (OverflowError, ValueError, OSError):
        return None
