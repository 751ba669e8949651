"""The record of a running command, for views that have no config: its settings and how far it is.

The study stores it next to the study definition: what the last command has to do, when it began and
ended, which studies have the trainings of its later stages, and its result in short.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from studyloom.errors import Halted, NoWinner, StorageLost, UserError
from studyloom.storage.attributes import COMMAND, RESULT, STAGES, parse
from studyloom.storage.stored_study import StageName, StoredStudy


@dataclass(frozen=True)
class CommandRecord:
    """The settings of a command that the study definition does not have.

    Attributes:
        trials: The budget of the search.
        reevaluated: Whether re-evaluation with new seeds chooses the winner.
        tested: Whether final training and test of winner and baseline follow.
        top: How many trials are re-evaluated with the baseline.
        seeds: With how many seeds each is trained.
        per_hour: The price of an hour of a GPU, or of a processor core where no GPU is used.
        began: When the command began, in UTC, as ISO 8601.
        ended: The exit code with which nothing was left to do; None while something is.
        at: When it ended, in UTC, as ISO 8601.
        is_call: Whether the user called a function from Python instead.
    """

    trials: int
    reevaluated: bool = False
    tested: bool = False
    top: int = 0
    seeds: int = 0
    per_hour: float | None = None
    began: str | None = None
    ended: int | None = None
    at: str | None = None
    is_call: bool = False

    def stage_of(self, name: str, title: str) -> str:
        """Returns the start of the name of a later stage's study."""
        return str(StageName(name, title, self.trials, self.top, self.seeds))


@dataclass(frozen=True)
class StoredCommand:
    """The parts of a study that its last command has stored.

    Attributes:
        record: Its settings; None if no command has begun.
        stages: The studies of its later stages, by title.
        result: A summary, from `Result.in_short`; None before there is a result.
    """

    record: CommandRecord | None
    stages: dict[str, str]
    result: dict[str, Any] | None

    @classmethod
    def read(cls, stored: StoredStudy) -> "StoredCommand":
        """Reads what the last command has stored with its study."""
        record, stages, result = stored.attributes(COMMAND, STAGES, RESULT)
        stage_names = {title: str(name) for title, name in (stages or {}).items()}
        return cls(parse(record, CommandRecord), stage_names, result)


def begin_command(stored: StoredStudy, record: CommandRecord, age: float) -> None:
    """Stores the record of a command that began `age` seconds ago."""
    began = datetime.now(UTC) - timedelta(seconds=age)
    begun_record = replace(record, began=began.isoformat(timespec="seconds"))
    stored.optuna.set_user_attr(COMMAND, asdict(begun_record))


def end_command(stored: StoredStudy, exit_code: int) -> None:
    """Stores that the command has ended, and with which exit code; an earlier end stays."""
    record = StoredCommand.read(stored).record
    if record is not None and record.ended is None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        ended_record = replace(record, ended=exit_code, at=now)
        stored.optuna.set_user_attr(COMMAND, asdict(ended_record))


def reopen_command(stored: StoredStudy) -> None:
    """Stores that there is work again for a command that has ended; when it ended is kept."""
    record = StoredCommand.read(stored).record
    if record is not None and record.ended is not None:
        open_record = replace(record, ended=None)
        stored.optuna.set_user_attr(COMMAND, asdict(open_record))


@contextmanager
def recording_end(stored: StoredStudy) -> Iterator[None]:
    """Stores that the command has ended if the body raises an error that ends it.

    After other errors, such as an interruption, there is still work to do.
    """
    try:
        yield
    except StorageLost:
        raise  # it is a UserError too, but nothing can be stored
    except (Halted, NoWinner, UserError) as error:
        end_command(stored, error.exit_code)
        raise


def store_stage(stored: StoredStudy, title: str, name: str) -> None:
    """Stores the name of the study that has the trainings of a later stage."""
    names_by_title = StoredCommand.read(stored).stages
    if names_by_title.get(title) != name:
        stored.optuna.set_user_attr(STAGES, {**names_by_title, title: name})


def store_result(stored: StoredStudy, summary: Mapping[str, Any]) -> None:
    """Stores `Result.in_short`, for views that have the database but no run directory."""
    if StoredCommand.read(stored).result != summary:
        stored.optuna.set_user_attr(RESULT, summary)
