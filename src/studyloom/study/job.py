"""The job of a command: the search and what comes after it, as it is stored with the search.

Whoever looks at a study knows by it which stages are still to come, without the config and torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import optuna

from studyloom.storage import sql
from studyloom.storage.attributes import ANSWERED, JOB, STAGES, UUID
from studyloom.storage.database import read
from studyloom.storage.ledger import Ledger
from studyloom.study.stored_study import StoredStudy

SMALL = "compressed"  # in the answer in short: the winner made small
SEARCH, REEVALUATION, RETRAINING = "search", "re-evaluation", "retraining"


@dataclass(frozen=True)
class Job:
    """What a command does, beside the question of the study.

    Args:
        trials: the budget of the search.
        judged: whether the winner is chosen on fresh seeds afterwards.
        tested: whether winner and baseline are trained on all data, and tested.
        top: how many of the best trials are judged, beside the baseline.
        seeds: with how many seeds each.
        chosen_anew: whether there is a re-evaluation although there may be one candidate alone.
        compresses: whether the winner is made small at the end.
        per_hour: what an hour of a GPU costs, or of a processor core where no GPU is used.
        began: when the command began, in UTC, as ISO 8601.
        ended: the exit code with which nothing was left to do; None while something is.
        at: when that was.
    """

    trials: int
    judged: bool = False
    tested: bool = False
    top: int = 0
    seeds: int = 0
    chosen_anew: bool = False
    compresses: bool = False
    per_hour: float | None = None
    began: str | None = None
    ended: int | None = None
    at: str | None = None

    @classmethod
    def parse(cls, stored: Any) -> "Job | None":
        """Reads what a database holds, which anybody may have written; None if it is no job."""
        if not isinstance(stored, Mapping):
            return None
        kinds: dict[str, tuple[type, ...]] = {
            **dict.fromkeys(("trials", "top", "seeds"), (int,)),
            **dict.fromkeys(("judged", "tested", "chosen_anew", "compresses"), (bool,)),
            **dict.fromkeys(("began", "at"), (str, type(None))),
            "per_hour": (int, float, type(None)),
            "ended": (int, type(None)),
        }
        known = {field.name: stored[field.name] for field in fields(cls) if field.name in stored}
        if "trials" not in known or any(
            not isinstance(value, kinds[name]) for name, value in known.items()
        ):
            return None
        return cls(**known)

    def stage_of(self, name: str, title: str) -> str:
        """Returns how the name of the study of a later stage begins.

        Args:
            name: of the study.
            title: of the stage.
        """
        return f"{name}/{title} {self.trials}-{self.top}-{self.seeds}"


def now() -> str:
    """Returns the time in UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_job(stored: StoredStudy) -> tuple[Job | None, dict[str, str], dict[str, Any] | None]:
    """Returns the job of the last command, the studies of its later stages, and its answer.

    Args:
        stored: the study of the search.

    Raises:
        StorageLost: the database stays away.
    """
    ledger = stored.ledger
    job, stages, answered = read(
        ledger.storage, lambda c: sql.study_attrs(c, ledger.study_id, JOB, STAGES, ANSWERED)
    )
    names = stages if isinstance(stages, dict) else {}
    titles = {str(title): str(name) for title, name in names.items()}
    return Job.parse(job), titles, answered if isinstance(answered, dict) else None


def begin_job(stored: StoredStudy, job: Job, age: float) -> None:
    """Stores the job of a command that begins.

    Args:
        stored: the study of the search.
        job: of the command.
        age: the seconds for which the command has run already.
    """
    began = datetime.now(UTC) - timedelta(seconds=age)
    job = replace(job, began=began.isoformat(timespec="seconds"))
    stored.optuna.set_user_attr(JOB, asdict(job))


def end_job(stored: StoredStudy, code: int) -> None:
    """Stores that nothing is left to do of the job.

    Args:
        stored: the study of the search.
        code: the exit code of the command.
    """
    job, _, _ = read_job(stored)
    if job is not None and job.ended is None:
        stored.optuna.set_user_attr(JOB, asdict(replace(job, ended=code, at=now())))


def note_stage(stored: StoredStudy, title: str, name: str) -> None:
    """Stores which study has the trainings of a later stage.

    Args:
        stored: the study of the search.
        title: of the stage.
        name: of its study.
    """
    _, names, _ = read_job(stored)
    if names.get(title) != name:
        stored.optuna.set_user_attr(STAGES, {**names, title: name})


def note_answer(stored: StoredStudy, short: Mapping[str, Any]) -> None:
    """Stores an answer in short, for whoever has the database and not the run directory.

    Args:
        short: as `winner.answer.Answer.in_short` returns it.
    """
    _, _, before = read_job(stored)
    # Of the same winner, what is known of it made small stays.
    if {key: value for key, value in (before or {}).items() if key != SMALL} != short:
        stored.optuna.set_user_attr(ANSWERED, short)


def note_compressed(stored: StoredStudy, short: Mapping[str, Any]) -> None:
    """Stores in short, with the answer that is noted, that its winner was made small.

    Args:
        short: as `winner.answer.Compressed.in_short` returns it.
    """
    _, _, before = read_job(stored)
    if before is not None and before.get(SMALL) != short:
        stored.optuna.set_user_attr(ANSWERED, {**before, SMALL: short})


def open_beside(stored: StoredStudy, name: str) -> StoredStudy | None:
    """Opens another study of the same database, on its connections; None if there is none.

    Args:
        stored: a study.
        name: of the other one.
    """
    try:
        study_id = stored.storage.get_study_id_from_name(name)
    except KeyError:
        return None
    study = optuna.load_study(study_name=name, storage=stored.storage)
    ledger = Ledger(stored.ledger.storage, study_id, study.user_attrs.get(UUID))
    return StoredStudy(name, stored.storage, study, ledger)
