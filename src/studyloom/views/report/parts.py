"""The parts of a study: its search, and the later stages, which are studies of their own."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from optuna.trial import FrozenTrial, TrialState

from studyloom.storage.attributes import REUSED, TIMES
from studyloom.study.stored_study import StoredStudy
from studyloom.text import format_duration
from studyloom.views.figures.chart import Table
from studyloom.views.report.blocks import Section

# As `winner.stages` names them: NAME/TITLE TRIALS-TOP-SEEDS, and what else sets a stage apart.
STAGE = re.compile(
    r"(?P<title>[\w-]+) (?P<trials>\d+)-(?P<top>\d+)-(?P<seeds>\d+)(?: (?P<rest>.*))?"
)
PLAIN = {
    "search": "the search",
    "re-evaluation": "the best, judged again",
    "retraining": "winner and baseline, trained on all data",
}
CAPTION = (
    "The search proposes, and what follows decides. The trainings of each part are stored as a "
    "study of their own, beside that of the search."
)


@dataclass(frozen=True)
class Stage:
    """A part of a study.

    Args:
        name: of its stored study.
        title: search, re-evaluation or retraining, or what else its name says.
        about: what sets it apart from others of its title, in words.
        trials: its trials.
    """

    name: str
    title: str
    about: str
    trials: Sequence[FrozenTrial]

    @property
    def plain(self) -> str:
        """What it is, in plain words."""
        return PLAIN.get(self.title, self.title)

    @property
    def span(self) -> tuple[datetime, datetime] | None:
        """When its first trial began and its last one ended; None if none has."""
        begun = [t.datetime_start for t in self.trials if t.datetime_start is not None]
        ended = [t.datetime_complete for t in self.trials if t.datetime_complete is not None]
        return (min(begun), max(ended)) if begun and ended else None


def read_parts(stored: StoredStudy) -> list[Stage]:
    """Returns the search and the later stages of a study, in the order in which they began.

    Args:
        stored: the study of the search.
    """
    prefix = f"{stored.name}/"
    found = [Stage(stored.name, "search", "", stored.trials())]
    for study in stored.storage.get_all_studies():
        if study.study_name.startswith(prefix):
            trials = stored.storage.get_all_trials(study._study_id, deepcopy=False)
            title, about = _words(study.study_name.removeprefix(prefix))
            found.append(Stage(study.study_name, title, about, trials))
    return [
        found[0],
        *sorted(found[1:], key=lambda part: part.span or (datetime.max, datetime.max)),
    ]


def _words(name: str) -> tuple[str, str]:
    """Returns the title of a stage, and what its name says of it."""
    if (match := STAGE.fullmatch(name)) is None:
        return name, ""
    about = f"of the first {match['trials']} trials, on {match['seeds']} fresh seeds each"
    return match["title"], f"{about}, {match['rest']}" if match["rest"] else about


def parts_section(parts: Sequence[Stage]) -> Section:
    """Renders the parts as a table: what each is, what it has done, and how long it took."""
    rows = []
    for part in parts:
        complete = sum(trial.state == TrialState.COMPLETE for trial in part.trials)
        reused = sum(REUSED in trial.user_attrs for trial in part.trials)
        done = f"{complete} of {len(part.trials)}" + (f", {reused} reused" if reused else "")
        span = part.span
        took = "–" if span is None else format_duration((span[1] - span[0]).total_seconds())
        rows.append((part.plain, part.about, done, took, part.name))
    head = ("part", "", "trainings complete", "took", "stored as")
    return Section(
        "parts", "The parts of this study", [Table(head, rows, words=(0, 1, 4))], CAPTION
    )


def wall_seconds(parts: Sequence[Stage]) -> float | None:
    """Returns the seconds from the first start to the last end of all parts; None without any."""
    spans = [part.span for part in parts if part.span is not None]
    if not spans:
        return None
    return (max(end for _, end in spans) - min(start for start, _ in spans)).total_seconds()


def worker_seconds(parts: Sequence[Stage]) -> float:
    """Returns the seconds that workers spent on the trainings of all parts, without start-up."""
    trials = [trial for part in parts for trial in part.trials if REUSED not in trial.user_attrs]
    return sum(
        float(seconds)
        for trial in trials
        for kind, seconds in (trial.user_attrs.get(TIMES) or {}).items()
        if kind != "start-up"
    )
