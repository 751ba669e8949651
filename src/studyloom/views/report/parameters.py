"""The sections of parameters: which matter, which choice was better, and how settings shape it."""

from collections.abc import Iterator, Sequence

from optuna.trial import FrozenTrial

from studyloom.study.stored_study import StoredStudy
from studyloom.views.figures.axes import Axis
from studyloom.views.figures.parameters import parallel, slices, together
from studyloom.views.figures.trials import (
    ENOUGH,
    NO_PARAMETERS,
    best_of,
    complete_trials,
    summary,
)
from studyloom.views.importances import Importance, importances, varied_parameters
from studyloom.views.report.blocks import Absent, Bars, Block, Part, Section, drawn

MOST_LINES = 150  # over parallel axes, of the best trials
MOST_SLICES = 24  # of the most important parameters
IMPORTANCES = (
    "How much of the differences between trials each parameter explains, over the whole space, "
    "told by a forest of trees on the ranks of complete and pruned trials; the shares add up to "
    "1. The line is a 90 % interval over resamples of the trials: where intervals overlap, the "
    "order is open. A choice of a group counts with all that it opens."
)
CHOICES = (
    "Each option of a group is a question of its own: how many trials chose it, and how the "
    "complete ones of them did. The search gives few trials to an option that did badly."
)
SLICES = (
    "Each point is a complete trial, at its setting and its value; later trials are bluer, and the "
    "ring is the best. The most important parameter comes first."
)
PARALLEL = (
    "Each line is a complete trial: from its value at the left across its parameters. Better "
    "trials are bluer, and the best is green. A – means that the trial lacks the parameter."
)
TOGETHER = (
    "The complete trials over the two most important parameters that occur together; better ones "
    "are bluer."
)


def parameter_sections(
    stored: StoredStudy, best: FrozenTrial | None, axis: Axis
) -> Iterator[Section]:
    """Renders which parameters matter, for each objective, and how they shape the value.

    Args:
        stored: the study.
        best: the trial to mark as the best.
        axis: the axis of the values.
    """
    trials = stored.trials()
    complete = complete_trials(trials)
    several = len(stored.goals) > 1
    names = varied_parameters(complete, ENOUGH)
    shares = importances(trials, names, stored.sign)
    why = "No two trials differ in rank, which would tell what matters." if names else NO_PARAMETERS
    title = f"What matters for {stored.metric}" if several else "Which parameters matter"
    yield Section("importances", title, [_bars(shares, why)], IMPORTANCES)
    for position, goal in enumerate(stored.goals[1:], 1):
        others = importances(trials, names, goal.sign, position)
        key = f"importances-{position}"
        yield Section(key, f"What matters for {goal.name}", [_bars(others, why)], IMPORTANCES)
    if choices := [*_choices(trials, complete, axis)]:
        yield Section("choices", "Which choice", choices, CHOICES)
    names = [share.name for share in shares] or names
    each = drawn(slices(complete, names[:MOST_SLICES], best, axis))
    yield Section("slices", "Parameter by parameter", [each], SLICES)
    lines = drawn(parallel(best_of(stored, MOST_LINES), names, axis))
    yield Section("parallel", "The best trials over all parameters", [lines], PARALLEL)
    two = drawn(together(complete, names, axis))
    yield Section("together", "Two parameters together", [two], TOGETHER)


def _bars(shares: Sequence[Importance], why: str) -> Block:
    return Bars(shares) if shares else Absent(why)


def _choices(
    trials: Sequence[FrozenTrial], complete: Sequence[FrozenTrial], axis: Axis
) -> Iterator[Part]:
    """Yields for each choice of a group how its options did.

    A choice is one of a group if it opens parameters: their names begin with it.
    """
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    for name in names:
        opens = any(other.startswith(f"{name}.") for other in names)
        own = [trial for trial in complete if name in trial.params]
        if (
            not opens
            or len({str(trial.params[name]) for trial in trials if name in trial.params}) < 2
        ):
            continue
        table = summary(own, name, axis.sign) if own else None
        tried: dict[str, int] = {}
        for trial in trials:
            if name in trial.params:
                tried[str(trial.params[name])] = tried.get(str(trial.params[name]), 0) + 1
        said = ", ".join(f"{option} by {count}" for option, count in tried.items())
        blocks: list[Block] = [Absent("No trial is complete yet.")] if table is None else [table]
        yield Part(name, blocks, f"chosen: {said}")
