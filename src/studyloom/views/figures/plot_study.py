"""A study as its plots see it: in memory, and with names and choices that plotly shows as they are."""

import html
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna  # its importance is imported when it is first used; it takes scipy along, where there is one
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from studyloom.study.stored_study import StoredStudy, value_of
from studyloom.text import shorten

ENOUGH = 3  # complete trials that have a parameter, for it to be drawn


def literal(value: object) -> str:
    """A text that plotly, which reads a little HTML, shows as it is."""
    return html.escape(str(value), quote=False)


class Label(str):
    """A categorical choice: Optuna's slices show the repr of one."""

    __repr__ = str.__str__


def plot_study(trials: Sequence[FrozenTrial], sign: int, goal: int = 0) -> optuna.Study:
    """The complete trials as a study in memory, under their numbers and with literal names and choices.

    Of their values, or those of one aim of several, more is better where sign is 1.

    All others are there as failed ones that say nothing, which Optuna's plots leave out.
    """
    return _plot_study(trials, {goal: sign})


def plot_study_all_goals(stored: StoredStudy) -> optuna.Study:
    """As `replicate`, with all values that trials have."""
    return _plot_study(
        stored.trials(), {place: goal.sign for place, goal in enumerate(stored.goals)}
    )


def _plot_study(trials: Sequence[FrozenTrial], signs: Mapping[int, int]) -> optuna.Study:
    """signs: which way the values are better that are wanted, by their places."""
    storage = InMemoryStorage()
    directions = [
        StudyDirection.MAXIMIZE if sign > 0 else StudyDirection.MINIMIZE for sign in signs.values()
    ]
    with quiet_optuna():
        study_id = storage.create_new_study(directions, "replica")
    for trial in trials:
        values = (
            [value_of(trial, goal) or 0.0 for goal in signs]
            if trial.state == TrialState.COMPLETE
            else []
        )
        if not values or not all(map(math.isfinite, values)):
            storage.create_new_trial(study_id, create_trial(state=TrialState.FAIL))
            continue
        params, distributions = {}, {}
        for name, value in trial.params.items():
            choice = _literals(trial.distributions[name])
            params[literal(name)] = choice.get(value, value) if isinstance(value, str) else value
            distributions[literal(name)] = _relabelled(trial.distributions[name], choice)
        told = create_trial(
            values=values,
            params=params,
            distributions=distributions,
            constraints=trial.constraints or None,
        )
        storage.create_new_trial(study_id, told)
    return optuna.load_study(study_name="replica", storage=storage)


def best_of(stored: StoredStudy, count: int) -> list[FrozenTrial]:
    """So many of the complete trials, those with the best values, by number; last those that break a constraint."""
    ranked = stored.ranked()
    numbers = {trial.number for trial in ranked}
    rest = [
        t for t in stored.trials() if t.state == TrialState.COMPLETE and t.number not in numbers
    ]
    rest.sort(key=stored.costs)
    return sorted([*ranked, *rest][:count], key=lambda trial: trial.number)


def _literals(distribution: BaseDistribution) -> dict[str, Label]:
    """The label of each choice that is a text; cut where that leaves them different."""
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
    """Optuna announces a study that it makes, and warns of importances from few trials, which the page says itself."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def varied_parameters(study: optuna.Study) -> list[str]:
    """The parameters that are worth a plot, the most important first."""
    seen: dict[str, list[Any]] = {}
    for trial in complete(study):
        for name, value in trial.params.items():
            seen.setdefault(name, []).append(value)
    names = sorted(
        name for name, values in seen.items() if len(values) >= ENOUGH and len({*values}) > 1
    )
    if not names:
        return []
    with quiet_optuna():
        return list(optuna.importance.get_param_importances(study, params=names))


def complete(study: optuna.Study) -> list[FrozenTrial]:
    """The complete trials."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
