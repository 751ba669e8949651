"""The history of a search: each trial at its last value, and the best so far."""

import re
from dataclasses import replace

import pytest
from made_trials import AXIS, a_trial, mark_of, marked, numbered, points_of
from optuna.trial import TrialState, create_trial
from results import result_of

from studyloom.metrics import ObjectiveValue
from studyloom.storage.attributes import EPOCHS
from studyloom.views.axes import SIZE, Axis
from studyloom.views.history_figure import draw_history


@pytest.mark.parametrize("least", [1.0, -0.1])
def test_a_few_far_worse_trials_are_strokes_at_the_edge_of_the_history(least):
    values = [57.0, *(least + 0.3 - n / 100 for n in range(30))]
    for sign in (-1, 1):
        trials = numbered(*(a_trial(n, accuracy=-sign * v) for n, v in enumerate(values)))
        axis = Axis.choose("distance", sign, [trial.value for trial in trials])
        figure = draw_history(trials, marked(trials[-1], trials[0]), axis)
        (line,) = mark_of(figure, "best so far").parts
        places = [figure.y.place(y) for _, y in line]
        assert max(places) - min(places) > SIZE / 2
        (far,) = (mark for mark in figure.marks if mark.shape == "rug")
        assert (far.color, far.trials) == ("complete", [0])
        assert points_of(far) == [(0, figure.y.high if sign < 0 else figure.y.low)]
        assert "baseline" not in figure.names()
        value = f"{-sign * 57:.4f}".replace("-", "−")
        assert figure.table.note == f"The baseline has {value}."


def test_the_history_has_the_values_of_the_baseline_on_new_seeds(searched):
    trials = searched.trials()
    baseline = {"trial": 0, "baseline": True, "mean": 0.91, "values": [0.91]}
    won = {"trial": 37, "mean": 0.95, "values": [0.95]}
    test = {"winner": {"mean": 0.96}, "baseline": {"mean": 0.93}}
    result = result_of(winner=won, candidates=[baseline, won], test=test)
    figure = draw_history(trials, marked(trials[37], trials[0]), AXIS, result)
    baselines = [mark for mark in figure.marks if mark.color == "baseline"]
    assert [mark.hint for mark in baselines] == ["", "baseline, re-evaluation", "baseline, test"]
    lines = [mark.parts[0] for mark in baselines]
    search, reevaluation, final = [(ends[0][0], ends[1][0], ends[0][1]) for ends in lines]
    assert [y for _, _, y in (search, reevaluation, final)] == [
        AXIS.coordinate(value) for value in (0.9, 0.91, 0.93)
    ]
    assert search[1] <= reevaluation[1] <= final[0] < final[1] <= figure.x.high
    without_winner = draw_history(
        trials, marked(trials[37], trials[0]), AXIS, result_of(winner=baseline, test=test)
    )
    assert sum(mark.color == "baseline" for mark in without_winner.marks) == 1


def test_the_history_marks_each_trial_once_and_the_best_so_far(searched):
    valueless = create_trial(state=TrialState.FAIL)
    unbounded = create_trial(value=float("inf"))
    diverged = a_trial(0, TrialState.PRUNED, 0.85, 2)
    diverged.user_attrs[EPOCHS]["value"][-1] = float("nan")
    waiting = create_trial(state=TrialState.WAITING)
    trials = numbered(*searched.trials(), valueless, unbounded, diverged, waiting)
    figure = draw_history(trials, marked(trials[37], trials[0]), AXIS)
    drawn = [mark for mark in figure.marks if mark.name != "best" and mark.trials]
    assert sorted(n for mark in drawn for n in mark.trials) == [*range(43)]
    at = {n: y for mark in drawn for n, (_, y) in zip(mark.trials, points_of(mark), strict=True)}
    assert at[37] == AXIS.coordinate(0.937)
    assert [at[number] for number in (3, 39)] == [AXIS.coordinate(value) for value in (0.7, 0.8)]
    assert at[42] == pytest.approx(AXIS.coordinate(0.8)), "its last finite value"
    strokes = {n for mark in drawn if mark.shape == "rug" for n in mark.trials}
    assert strokes == {40, 41} == {n for n, y in at.items() if y < min(at[n] for n in range(40))}
    shapes = {mark.name: mark.shape for mark in figure.marks if mark.name in ("pruned", "running")}
    assert shapes == {"pruned": "square", "running": "dot"}
    assert not any("faint" in mark.style for mark in figure.marks), "small ones are pale enough"
    (steps,) = mark_of(figure, "best so far").parts
    assert [x for x, _ in steps][:3] == [0, 1, 2]
    assert [y for _, y in steps] == sorted(y for _, y in steps)
    assert figure.table.rows[-1] == (37, "0.9370")
    paths = "".join(figure.path(mark) for mark in figure.marks)
    places = [float(number) for number in re.findall(r"-?[\d.]+", paths)]
    assert all(-20 <= place <= 1020 for place in places), "they stay within it"
    assert isinstance(draw_history([valueless], marked(), AXIS), str)
    assert draw_history([trials[39]], marked(), AXIS).names() == ["running"], (
        "before one is complete"
    )


def test_the_history_rings_the_winner_and_has_its_comparable_new_values(searched):
    won = {"trial": 36, "values": (0.92, 0.93, 0.94), "mean": 0.93, "std": 0.012}
    result = result_of(winner=won, test={"winner": {"values": [0.91], "mean": 0.91}})
    best = searched.trials()[37]
    figure = draw_history(searched.trials(), marked(best), AXIS, result)
    assert mark_of(figure, "winner").trials == [36]
    (again,), (test,) = (points_of(mark_of(figure, name)) for name in ("re-evaluation", "test"))
    assert (again[1], test[1]) == (AXIS.coordinate(0.93), AXIS.coordinate(0.91))
    assert 39 < again[0] < test[0] < figure.x.high, "to the right of all trials"
    across = draw_history(searched.trials(), marked(best, best), AXIS, result)
    ends = [x for x, _ in points_of(mark_of(across, "baseline"))]
    assert ends == [across.x.low, again[0]], "across the search, and not to the new values"
    bars = [m for m in figure.marks if (m.color, m.shape) == ("winner", "line")]
    ends = [0.93 - 0.012 / 3**0.5, 0.93 + 0.012 / 3**0.5]
    assert [y for _, y in points_of(bars[0])] == pytest.approx([*map(AXIS.coordinate, ends)])
    other = replace(result, metric=ObjectiveValue("loss", "minimize"))
    assert not {"re-evaluation", "test"} & {*draw_history([best], marked(), AXIS, other).names()}
