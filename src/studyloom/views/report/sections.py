"""Which sections a report has, in the order in which they are read."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from studyloom.study.stored_study import StoredStudy
from studyloom.views.figures.axes import Axis
from studyloom.views.progress.job import Progress
from studyloom.views.report.answer import Head, head
from studyloom.views.report.blocks import Section, get
from studyloom.views.report.environment import environment_section
from studyloom.views.report.explained import explained_sections
from studyloom.views.report.parameters import parameter_sections
from studyloom.views.report.parts import parts_section, read_parts
from studyloom.views.report.search import outlook_section, search_sections
from studyloom.views.report.trials import trials_section
from studyloom.views.report.winner import winner_sections
from studyloom.views.report.workers import running_sections, worker_sections
from studyloom.views.sample import sample
from studyloom.views.snapshot import Snapshot, take_snapshot


def read_report(
    stored: StoredStudy,
    winner: dict[str, Any] | None,
    config_text: str,
    progress: Progress | None = None,
) -> tuple[Head, Iterator[Section]]:
    """Reads a study, and returns the beginning of its report and the sections below it.

    Args:
        stored: the study.
        winner: what winner.json holds, None if there is none; any key may be missing.
        config_text: the configurations to show, as text.
        progress: of the whole job, whose stages after the search are then shown while they run;
            None shows the search.
    """
    snapshot = take_snapshot(stored) if progress is None else progress.search
    parts = read_parts(stored)

    def sections() -> Iterator[Section]:
        if progress is None:
            yield from running_sections(snapshot, stored.trials())
        else:
            yield from running_sections(progress.current, progress.trials.get(progress.title, ()))
        yield from all_sections(stored, snapshot, winner)
        yield parts_section(parts)
        yield environment_section(winner, config_text)

    return head(stored, snapshot, winner, parts), sections()


def all_sections(
    stored: StoredStudy, snapshot: Snapshot, winner: dict[str, Any] | None
) -> Iterator[Section]:
    """Yields the sections of a study: what decided, the search, who worked.

    Args:
        stored: the study.
        snapshot: the same at this moment.
        winner: what winner.json holds, None if there is none; any key may be missing.
    """
    axis, won = Axis.of(stored.metric, stored.sign), get(winner, "winner", "trial")
    if winner is not None:
        yield from winner_sections(winner)
        yield from explained_sections(winner)
    shown, note = sample(stored, snapshot, won)
    yield from noted(search_sections(shown, snapshot, winner, axis), note)
    yield outlook_section(stored, snapshot)
    yield from noted([trials_section(shown, snapshot, won)], note)
    yield from noted(parameter_sections(shown, snapshot.best, axis), note)
    yield from worker_sections(stored)
    if winner is None:
        yield from winner_sections(winner)


def noted(sections: Iterable[Section], note: str) -> Iterator[Section]:
    """Adds a note to the captions of some sections."""
    for section in sections:
        yield replace(section, caption=f"{section.caption} {note}".strip())
