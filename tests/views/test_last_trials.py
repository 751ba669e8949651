"""The best trial and the last ones, in a table of any width."""

from datetime import timedelta

import pytest
from made_trials import BEGAN, MODEL, RATE, a_trial, branching
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from snapshots import snapshot_of

from studyloom.storage.attributes import PAUSED, PLANNED_EPOCHS, PLANNED_JOBS
from studyloom.views.last_trials import last_trials
from studyloom.views.progress import Progress, StageProgress

RUNNING, PRUNED = TrialState.RUNNING, TrialState.PRUNED
WIDTHS = (20, 40, 60, 80, 120, 400)


def progress_of(trials, title="search", best=None, later=(), **more):
    for number, trial in enumerate(trials):
        trial.number = number
    snapshot = snapshot_of(best=None if best is None else trials[best])
    stages = tuple(StageProgress(name, 0, 1, snapshot) for name in dict.fromkeys(["search", title]))
    trials_by_stage = {"search": trials}
    if later:
        trials_by_stage[title] = later
    return Progress(snapshot, stages, title, trials=trials_by_stage, **more)


def column(table, name):
    place = names_of(table).index(name)
    return [row[place].strip() for row in table[1:]]


def names_of(table):
    return [name.strip() for name in table[0]]


def width_of(table):
    return sum(max(map(len, cells)) + 2 for cells in zip(*table, strict=True)) - 2


def test_the_best_trial_is_above_running_trials_and_the_last_five():
    """A trial that began long ago is shown while it runs; a paused one by when it paused."""
    trials = [a_trial(0, RUNNING), a_trial(1, RUNNING, **{PAUSED: 4})]
    trials += [a_trial(n, PRUNED if n % 2 else TrialState.COMPLETE) for n in range(2, 12)]
    table = last_trials(progress_of(trials, best=4), 80)
    assert column(table, "trial") == ["4", "0", "8", "9", "10", "11"]
    assert column(table, "") == ["best", "", "", "", "", ""]
    assert column(table, "state")[:2] == ["complete", "running"]
    trials[1].datetime_start = BEGAN + timedelta(hours=1)
    table = last_trials(progress_of(trials, best=4), 80)
    assert column(table, "trial") == ["4", "0", "1", "9", "10", "11"]
    assert column(table, "state")[2] == "paused"


def test_a_running_trial_has_its_last_value_and_planned_epochs():
    trials = [a_trial(0, RUNNING, 0.75, epochs=2, **{PLANNED_EPOCHS: 9}), a_trial(1, RUNNING)]
    trials[1].intermediate_values = {}
    of_loop = a_trial(2, epochs=19, **{PLANNED_JOBS: 2})
    of_loop.intermediate_values = {1: 0.9, 2: 0.9}
    table = last_trials(progress_of([*trials, of_loop]), 80)
    assert column(table, "epochs") == ["3/9", "0", "2/2"]
    assert column(table, "value") == ["0.7500", "", "0.9000"]


@pytest.mark.parametrize("width", WIDTHS)
def test_columns_that_do_not_fit_are_left_out_and_no_cell_is_cut(width):
    trials = [a_trial(n, params=branching(n)) for n in range(9)]
    trials[7].params = {**trials[7].params, "text": "long" * 60}
    full_table = last_trials(progress_of(trials, best=5), 1000)
    table = last_trials(progress_of(trials, best=5), width)
    assert width_of(table) <= width
    for name in names_of(table):
        assert column(table, name) == column(full_table, name)
    assert ("text" in names_of(table)) is (width == 400)


def test_important_hyperparameters_come_first_then_frequent_ones():
    trials = [a_trial(n, params=branching(n)) for n in range(9)]
    names = names_of(last_trials(progress_of(trials), 200))
    assert names[5:] == ["model", "lr", "momentum", "channels"]
    progress = progress_of(trials, importances={"mlp.momentum": 0.6, "lr": 0.3, "model": 0.1})
    names = names_of(last_trials(progress, 200))
    assert names[5:] == ["momentum", "lr", "model", "channels"]
    assert names_of(last_trials(progress, 48))[-1] == "momentum"


def test_optimizers_share_a_column_and_a_list_is_one_value():
    rates = ("sgd.lr", "adam.lr")
    sizes = {"hidden.length": (2, IntDistribution(1, 2)), "hidden.0": (8, IntDistribution(1, 64))}
    sizes["hidden.1"] = (16, IntDistribution(1, 64))
    trials = [a_trial(n, params={rates[n % 2]: (0.1**n, RATE), **sizes}) for n in range(4)]
    table = last_trials(progress_of(trials), 100)
    assert column(table, "lr") == ["1", "0.1", "0.01", "0.001"]
    assert column(table, "hidden") == ["8-16"] * 4
    both = {"sgd.lr": (0.5, RATE), "adam.lr": (0.25, RATE)}
    table = last_trials(progress_of([a_trial(0, params=both), trials[1]]), 100)
    assert column(table, "sgd.lr") == ["0.5", ""]
    assert column(table, "adam.lr") == ["0.25", "0.1"]


def test_a_training_of_a_later_stage_is_shown_as_the_trial_it_repeats():
    trials = [a_trial(n, params={"model": ("cnn" if n else "mlp", MODEL)}) for n in range(3)]
    candidates = CategoricalDistribution([0, 2])
    seeds = IntDistribution(0, 1)
    later = [
        a_trial(0, params={"trial": (0, candidates), "seed": (0, seeds)}),
        a_trial(1, params={"trial": (2, candidates), "seed": (1, seeds)}),
    ]
    table = last_trials(progress_of(trials, "re-evaluation", best=2, later=later), 80)
    assert column(table, "trial") == ["2", "0", "2"]
    assert column(table, "seed") == ["", "0", "1"]
    assert column(table, "model") == ["cnn", "mlp", "cnn"]


def test_before_the_first_trial_there_is_a_header():
    names = names_of(last_trials(progress_of([]), 80))
    assert names == ["", "trial", "state", "epochs", "value"]


def test_a_line_break_in_a_name_breaks_no_row():
    name, value = "a\nb", CategoricalDistribution(["x\ny"])
    params = {name: ("x\ny", value), "lr": (0.1, FloatDistribution(0, 1))}
    table = last_trials(progress_of([a_trial(0, params=params)]), 80)
    assert not any("\n" in cell for row in table for cell in row)
