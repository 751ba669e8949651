"""A copy of a study for plots: in memory, with names and choices that plotly shows verbatim."""

import html
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from studyloom.study.stored_study import StoredStudy, value_of
from studyloom.text import one_line, shorten


def literal(value: object) -> str:
    """Escapes a text for plotly, which reads a little HTML, so that it is shown verbatim."""
    return html.escape(one_line(str(value)), quote=False)


class Label(str):
    """A categorical choice whose repr has no quotes: Optuna's slice plots show the repr."""

    __repr__ = str.__str__


def plot_study(trials: Sequence[FrozenTrial], sign: int, goal: int = 0) -> optuna.Study:
    """Copies the complete trials into a study in memory, with literal names and choices.

    Trials keep their numbers: every other trial is copied as a failed one without parameters,
    which Optuna's plots leave out, and so is a trial that is not there.

    Args:
        trials: all trials of a study, by number.
        sign: 1 if a higher value is better, -1 if a lower one is.
        goal: the position of the value to copy, for trials with several.
    """
    return _plot_study(trials, {goal: sign})


def plot_study_all_goals(stored: StoredStudy) -> optuna.Study:
    """Copies a study as `plot_study` does, with all values that its trials have."""
    signs = {position: goal.sign for position, goal in enumerate(stored.goals)}
    return _plot_study(stored.trials(), signs)


def _plot_study(trials: Sequence[FrozenTrial], signs: Mapping[int, int]) -> optuna.Study:
    """Copies the values at the positions that are the keys of `signs`."""
    storage = InMemoryStorage()
    directions = [
        StudyDirection.MAXIMIZE if sign > 0 else StudyDirection.MINIMIZE for sign in signs.values()
    ]
    with quiet_optuna():
        study_id = storage.create_new_study(directions, "plots")
    known = {trial.number: trial for trial in trials}
    for number in range(max(known, default=-1) + 1):
        trial = known.get(number)
        storage.create_new_trial(study_id, _plot_trial(trial, [*signs]))
    return optuna.load_study(study_name="plots", storage=storage)


def _plot_trial(trial: FrozenTrial | None, goals: Sequence[int]) -> FrozenTrial:
    if trial is None or trial.state != TrialState.COMPLETE:
        return create_trial(state=TrialState.FAIL)
    values = [value_of(trial, goal) or 0.0 for goal in goals]
    if not all(map(math.isfinite, values)):
        return create_trial(state=TrialState.FAIL)
    params, distributions = {}, {}
    for name, value in trial.params.items():
        labels = _labels(trial.distributions[name])
        params[literal(name)] = labels.get(value, value) if isinstance(value, str) else value
        distributions[literal(name)] = _relabelled(trial.distributions[name], labels)
    return create_trial(
        values=values,
        params=params,
        distributions=distributions,
        constraints=trial.constraints or None,
    )


def best_of(stored: StoredStudy, count: int) -> list[FrozenTrial]:
    """Returns the complete trials with the best values, by number.

    Args:
        stored: the study.
        count: how many trials to return at most. Trials that break a constraint, or the rule by
            which the best is chosen, are taken only if there is room after all others.
    """
    ranked = stored.ranked()
    numbers = {trial.number for trial in ranked}
    rest = [
        trial
        for trial in stored.trials()
        if trial.state == TrialState.COMPLETE and trial.number not in numbers
    ]
    rest.sort(key=stored.costs)
    return sorted([*ranked, *rest][:count], key=lambda trial: trial.number)


def _labels(distribution: BaseDistribution) -> dict[str, Label]:
    """Returns the label of each choice that is a text; cut, if cut labels still differ."""
    if not isinstance(distribution, CategoricalDistribution):
        return {}
    choices = [choice for choice in distribution.choices if isinstance(choice, str)]
    short = {choice: shorten(choice, 24) for choice in choices}
    unique = len({*short.values()}) == len(short)
    return {choice: Label(literal(short[choice] if unique else choice)) for choice in choices}


def _relabelled(distribution: BaseDistribution, labels: Mapping[str, Label]) -> BaseDistribution:
    if not isinstance(distribution, CategoricalDistribution):
        return distribution
    return CategoricalDistribution(
        [labels[c] if isinstance(c, str) else c for c in distribution.choices]
    )


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silences Optuna, which announces a new study and warns of importances from few trials.

    The page says the second itself.
    """
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Returns the complete trials, by number; not to be changed."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
