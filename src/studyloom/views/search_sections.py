"""The sections of a report about the search: the Pareto front, the history, and the curves."""

from collections.abc import Collection, Iterable, Iterator, Sequence

from optuna.trial import FrozenTrial

from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.views import page, words
from studyloom.views.axes import Axis
from studyloom.views.charts import PageTable
from studyloom.views.curve_figures import draw_curves, draw_losses, name_losses_section
from studyloom.views.drawn_trials import Marked, describe_selection
from studyloom.views.front_figure import draw_front
from studyloom.views.history_figure import draw_history
from studyloom.views.snapshot import Snapshot
from studyloom.views.trial_values import finite_curves
from studyloom.winner.result import Result

# Sentences about the axis of a figure, by the scale of the axis.
AXIS_NOTES = {
    "unit": " The axis is stretched toward 1: equal steps divide the error by equal factors.",
    "factors": " The axis is logarithmic: equal steps are equal factors.",
    "plain": "",
}


def render_search(
    stored: StoredStudy, snapshot: Snapshot, result: Result | None, axis: Axis
) -> Iterator[page.Section]:
    """Renders the Pareto front, the history of the search, and the learning curves."""
    trials = stored.trials()
    marked = {"baseline": snapshot.baseline, "best": snapshot.best}
    winner_trial = None
    if result is not None:
        winner_trial = _find_trial(trials, result.winner.trial)
    if snapshot.costs:
        head, *rows = words.list_front(snapshot)
        table = PageTable(head, rows, text_columns=(len(head) - 1,))
        marked_on_front = {"winner": winner_trial, **marked}
        figure = page.draw_figure(draw_front, stored, marked_on_front, axis, table)
        yield page.make_section("front", [figure], rule=snapshot.rule)
    yield render_history(trials, marked, axis, result, snapshot.live_trials)
    yield render_curves(trials, marked, axis, snapshot.live_trials)
    yield _render_losses(snapshot, winner_trial)


def render_history(
    trials: Sequence[FrozenTrial],
    marked: Marked,
    axis: Axis,
    result: Result | None = None,
    live_trials: Collection[int] | None = None,
    early_trials: Collection[int] = (),
) -> page.Section:
    """Renders the history of the search.

    Args:
        marked: the trials that are highlighted, by name.
        result: the result, whose winner has means on new seeds; None before there is one.
        live_trials: the numbers of the trials that living workers hold; None without leases.
        early_trials: the numbers of trials that ended too early to say how long the axis must be.
    """
    figure = page.draw_figure(
        draw_history,
        trials,
        marked,
        axis,
        winner=result,
        live_trials=live_trials,
        early_trials=early_trials,
    )
    winner = ""
    if result is not None and result.winner.reevaluation is not None:
        winner = " The winner's means on new seeds, with their standard errors, are at the right."
        if result.baseline_values_after_search(axis.metric):
            winner += " A short dotted line there is the baseline's mean on the same seeds."
    better = "Lower"
    if axis.sign > 0:
        better = "Higher"
    axis_note = AXIS_NOTES[axis.scale]
    return page.make_section("search", [figure], winner=winner, axis=axis_note, better=better)


def render_curves(
    trials: Sequence[FrozenTrial],
    marked: Marked,
    axis: Axis,
    live_trials: Collection[int] | None = None,
) -> page.Section:
    """Renders the learning curves.

    Args:
        marked: the trials that are highlighted, by name.
        live_trials: the numbers of the trials that living workers hold; None without leases.
    """
    figure = page.draw_figure(draw_curves, trials, marked, axis, live_trials=live_trials)
    rungs = ""
    if any(TrialRecord(trial).rungs for trial in trials):
        rungs = " A dotted line is a rung, at which trials wait for promotion."
    selection = describe_selection(len(finite_curves(trials)))
    return page.make_section("curves", [figure], rungs=rungs, selection=selection)


def _find_trial(trials: Iterable[FrozenTrial], number: int) -> FrozenTrial | None:
    """Returns the trial with a number; None if it is missing."""
    for trial in trials:
        if trial.number == number:
            return trial
    return None


def _render_losses(snapshot: Snapshot, winner_trial: FrozenTrial | None) -> page.Section:
    """Renders the losses of the winner in the search, or else of the best trial."""
    if winner_trial is not None:
        trial = winner_trial
        role = "winner"
    elif snapshot.best is not None:
        trial = snapshot.best
        role = "best"
    else:
        reason = words.begin_sentence(words.explain_no_best(snapshot))
        return page.make_section(name_losses_section(None), [page.Absent(f"{reason}.")], which="")
    figure = page.draw_figure(draw_losses, trial)
    which = f"Trial {trial.number}, the {role}. "
    return page.make_section(name_losses_section(trial), [figure], which=which)
