"""The sections of the search: its Pareto front, history, learning curves and outlook."""

from collections.abc import Iterator
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.study.stored_study import StoredStudy
from studyloom.views.figures import curves, pareto
from studyloom.views.figures.axes import Axis
from studyloom.views.figures.chart import Table
from studyloom.views.figures.history import history
from studyloom.views.figures.outlook import outlook
from studyloom.views.report.blocks import Block, Section, drawn, get
from studyloom.views.snapshot import Snapshot, front_rows, why_no_best

FRONT = (
    "A trial is on the front if no other trial is at least as good in both and better in one: "
    "to gain more of one, you pay with the other. "
    "The winner, chosen on fresh seeds, may lie off the front."
)
HISTORY = (
    "Each point is a complete trial, in the order in which they began; the marks at the bottom are "
    "trials that ended otherwise. Values are measured on the validation part."
)
STRETCHED = {
    "unit": " The axis is stretched towards 1: equal steps divide the error by equal factors.",
    "factors": " The axis is logarithmic: equal steps are equal factors.",
    "plain": "",
}
CURVES = (
    "The value after each epoch; a square marks where a trial ended early or is paused, a dotted "
    f"line a rung where trials wait for their promotion. Of more than {curves.MOST_BEST} + "
    f"{curves.MOST_LATEST} trials, the best and the latest are drawn."
)


def search_sections(
    stored: StoredStudy, snapshot: Snapshot, winner: dict[str, Any] | None, axis: Axis
) -> Iterator[Section]:
    """Renders the Pareto front, the history of the search, and the learning curves.

    Args:
        stored: the study.
        snapshot: the same at this moment.
        winner: what winner.json holds, None if there is none; any key may be missing.
        axis: the axis of the values.
    """
    trials, best, baseline = stored.trials(), snapshot.best, snapshot.baseline
    chosen = get(winner, "winner", "trial")
    won = next((trial for trial in trials if trial.number == chosen), None)
    if snapshot.costs:
        yield front_section(stored, snapshot, won, axis)
    figure = history(trials, best, baseline, axis)
    better = "Higher" if axis.sign > 0 else "Lower"
    caption = f"{HISTORY}{STRETCHED[axis.scale]} {better} is better."
    yield Section("search", "Search", [drawn(figure)], caption)
    figure = curves.curves(trials, best, baseline, axis)
    yield Section("curves", "Learning curves", [drawn(figure)], CURVES)
    which = ""
    if (shown := won or best) is not None:
        which = f"Trial {shown.number}, the {'best' if won is None else 'winner'}. "
    title, caption = curves.beside(shown, which)
    figure = f"{why_no_best(snapshot)}." if shown is None else curves.losses(shown)
    yield Section("losses", title, [drawn(figure)], caption)


def outlook_section(stored: StoredStudy, snapshot: Snapshot) -> Section:
    """Renders what further trials may gain.

    Args:
        stored: the study, with all of its trials.
        snapshot: the same at this moment.
    """
    title, caption, figure = outlook(stored, snapshot.outlook)
    return Section("outlook", title, [drawn(figure)], caption)


def front_section(
    stored: StoredStudy, snapshot: Snapshot, won: FrozenTrial | None, axis: Axis
) -> Section:
    """Renders the Pareto front as a figure and a table.

    Args:
        stored: a study with two objectives.
        snapshot: the same at this moment.
        won: the trial of the winner, if there is one.
        axis: the axis of the values.
    """
    marked = {"baseline": snapshot.baseline, "best": snapshot.best, "winner": won}
    blocks: list[Block] = [drawn(pareto.front(stored, marked, axis))]
    if snapshot.front:
        heads, *rows = front_rows(snapshot)
        blocks.append(Table(heads, rows, words=(len(heads) - 1,)))
    caption = f"{FRONT} The best is chosen by {snapshot.rule}."
    return Section("front", "The Pareto front", blocks, caption)
