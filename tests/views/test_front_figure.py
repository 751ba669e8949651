"""The Pareto front: complete trials by cost and value."""

from made_trials import mark_of, points_of
from optuna.trial import create_trial
from toys import fill, two_sided

from studyloom.views.axes import Axis
from studyloom.views.charts import PageTable
from studyloom.views.front_figure import draw_front
from studyloom.views.snapshot import take_snapshot


def test_each_complete_trial_is_a_point_on_the_front_beaten_or_infeasible(sqlite_url):
    stored = two_sided(
        sqlite_url, (0.90, 3000), (0.95, 3000), (0.80, 100), (0.85, 200), (0.84, 900), None
    )
    fill(stored, create_trial(values=[0.99, 50], constraints={"flops": 1.0}))
    snapshot = take_snapshot(stored)
    marked = {"baseline": snapshot.baseline, "best": snapshot.best, "winner": stored.trials()[3]}
    table = PageTable(("trial",), [])
    figure = draw_front(stored, marked, Axis("accuracy", "plain", 1), table)
    assert figure.x.kind == "tens", "costs that differ by more than ten times"
    assert [tick.label for tick in figure.x.ticks] == ["100", "300", "1,000", "3,000"]
    points = {m.name: {(round(10**x), y) for x, y in points_of(m)} for m in figure.marks}
    front = "front: not beaten in both"
    assert points[front] == {(trial.values[1], trial.values[0]) for trial in stored.front()}
    assert points[front] == {(100, 0.80), (200, 0.85), (3000, 0.95)}
    assert points["beaten"] == {(3000, 0.90), (900, 0.84)}
    assert points["infeasible"] == {(50, 0.99)}
    assert points["baseline"] == {(3000, 0.90)}
    assert points["best"] == {(3000, 0.95)}
    assert points["winner"] == {(200, 0.85)}
    assert [y for _, y in points_of(mark_of(figure, ""))] == [0.80, 0.85, 0.95]
    assert "stepped" in mark_of(figure, "").style
    assert figure.y.title == "accuracy, more is better, over parameters"
    assert figure.x.title == "parameters, less is better, log"
    assert figure.table == table
