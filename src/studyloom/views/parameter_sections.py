"""The sections of a report about hyperparameters: how much each matters, and its effect."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from optuna.trial import FrozenTrial

from studyloom.storage.stored_study import StoredStudy
from studyloom.views import page
from studyloom.views.advice import explain_basis, explain_no_importances
from studyloom.views.axes import Axis
from studyloom.views.charts import Block
from studyloom.views.drawn_settings import ENOUGH
from studyloom.views.drawn_trials import describe_selection
from studyloom.views.importances import (
    Importances,
    collect_names,
    compare_values,
    compute_importances,
    find_varied_parameters,
    rank_by_importance,
)
from studyloom.views.pair_figure import draw_pair
from studyloom.views.parallel_figure import draw_parallel
from studyloom.views.plain_names import name_plainly
from studyloom.views.slice_figures import draw_slices
from studyloom.views.trial_values import last_values

MOST_SLICES = 24  # figures of one hyperparameter each, of the most important ones
MOST_BARS = 6  # hyperparameters on the first screen


@dataclass(frozen=True)
class RankedParameters:
    """The hyperparameters of a search, and how much they matter.

    Args:
        names: those that varied, the most important for the metric first.
        by_objective: the importances for each objective, for the metric first.
    """

    names: Sequence[str]
    by_objective: Sequence[Importances]

    @property
    def importances(self) -> Importances:
        """The importances for the metric."""
        return self.by_objective[0]

    @property
    def shares(self) -> Mapping[str, float]:
        """The shares of the hyperparameters for the metric."""
        return self.importances.shares


def rank_parameters(stored: StoredStudy) -> RankedParameters:
    """Computes the importances of a study's hyperparameters, and sorts those that varied."""
    by_objective = []
    for position in range(len(stored.objectives)):
        by_objective.append(compute_importances(stored, position))
    trials = stored.trials()
    compared = compare_values(trials).values
    varied = find_varied_parameters([trial for trial in trials if trial.number in compared], ENOUGH)
    names = rank_by_importance(varied, by_objective[0].shares)
    return RankedParameters(names, by_objective)


def make_bars(stored: StoredStudy, parameters: RankedParameters) -> Iterator[Block]:
    """Yields the bars of the first screen, with plain names; nothing without importances.

    How many trials they need is a sentence above them.
    """
    shares = parameters.shares
    if not shares:
        return
    plain_names = name_plainly(collect_names(stored.trials()))
    bars = [(plain_names[name], share) for name, share in shares.items()]
    remark = "share of what sets the best quarter of the trials apart"
    yield page.Part("What matters", [page.Bars(bars[:MOST_BARS])], remark, key="matters")


def render_parameters(
    stored: StoredStudy,
    best: FrozenTrial | None,
    axis: Axis,
    parameters: RankedParameters,
) -> Iterator[page.Section]:
    """Renders the importances of hyperparameters for each objective, and their effects.

    Args:
        stored: the study with the trials that are drawn.
    """
    for position, objective in enumerate(stored.objectives):
        importances = parameters.by_objective[position]
        block: Block = page.Bars([*importances.shares.items()])
        if not importances.shares:
            block = page.Absent(explain_no_importances(importances))
        section = page.make_section("importances", [block], basis=explain_basis(importances))
        if len(stored.objectives) > 1:
            section = replace(section, title=f"What matters for {objective.name}")
        if position > 0:  # two sections may not have the same key
            section = replace(section, key=f"importances-{position}")
        yield section
    trials = stored.trials()
    names = parameters.names[:MOST_SLICES]
    order = ""
    if parameters.shares:
        order = " The most important hyperparameter comes first."
    if len(names) < len(parameters.names):
        order += f" {len(names)} of {len(parameters.names)} hyperparameters are shown."
    slices = page.draw_figure(draw_slices, trials, names, best, axis)
    count = len(last_values(trials))
    selection = describe_selection(count, of_each="hyperparameter")
    yield page.make_section("slices", [slices], selection=selection, order=order)
    choice = "two hyperparameters that occur together"
    if parameters.shares:
        choice = "the two most important hyperparameters that occur together"
    pair = page.draw_figure(draw_pair, trials, names, axis)
    yield page.make_section("together", [pair], choice=choice)
    lines = page.draw_figure(draw_parallel, trials, parameters.names, best, axis)
    yield page.make_section("parallel", [lines], selection=describe_selection(count))
