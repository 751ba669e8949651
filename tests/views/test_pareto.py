import json

import pytest
from commands import study, studyloom
from optuna.trial import create_trial
from toys import fill, two_sided

from studyloom.views import figures
from studyloom.views.charts import Axis
from studyloom.views.snapshot import take_snapshot

PLAIN = Axis("accuracy", "plain", 1)


def drawn(stored, **marked):
    """The figure, with the points of its marks by name: (cost, height)."""
    snapshot = take_snapshot(stored)
    figure = figures.front(
        stored, {"baseline": snapshot.baseline, "best": snapshot.best, **marked}, PLAIN
    )
    back = (lambda x: round(10**x)) if figure.x.reads == "tens" else float
    return figure, {m.name: {(back(x), y) for x, y in m.points} for m in figure.marks}


@pytest.fixture
def stored(sqlite_url):
    stored = two_sided(
        sqlite_url, (0.90, 3000), (0.95, 3000), (0.80, 100), (0.85, 200), (0.84, 900), None
    )
    fill(stored, create_trial(values=[0.99, 50], constraints={"latency_ms": 1.0}))
    return stored


def test_each_complete_trial_is_a_point_on_the_front_beaten_or_infeasible(stored):
    figure, points = drawn(stored, winner=stored.trials()[3])
    assert points["front"] == {(trial.values[1], trial.values[0]) for trial in stored.front()}
    assert points["front"] == {(100, 0.80), (200, 0.85), (3000, 0.95)}
    assert points["beaten"] == {(3000, 0.90), (900, 0.84)}
    assert points["infeasible"] == {(50, 0.99)}
    assert points["baseline"] == {(3000, 0.90)}
    assert points["best"] == {(3000, 0.95)}
    assert points["winner"] == {(200, 0.85)}
    assert [y for _, y in figure.mark("staircase").points] == [0.80, 0.85, 0.95]
    assert "stepped" in figure.mark("staircase").style
    assert figure.table.rows[0] == (2, "0.8000", "100")
    assert figure.x.reads == "tens", "costs that differ by more than ten times"
    assert [tick.label for tick in figure.x.ticks] == ["100", "300", "1_000", "3_000"]


@pytest.mark.chaos
def test_the_command_ends_with_front_winner_and_report_and_takes_another_rule_afterwards(tmp_path):
    small = ("study.trials=6", "train.epochs=1", "train.samples_per_epoch=64")
    small += ("winner.top=1", "winner.seeds=1", f"run_dir={tmp_path}")
    done = study(*small, "launcher.workers=2", page="pareto")
    assert done.returncode == 0, done.stderr
    assert "front     accuracy  parameters  trial" in done.stdout
    assert "rule      max accuracy where parameters < 50_000" in done.stdout
    assert 'class="line c-best stepped' in (tmp_path / "report.html").read_text()
    first = json.loads((tmp_path / "winner.json").read_text())
    assert first["winner"]["costs"]["parameters"] < 50_000
    assert "# pareto, trial" in (tmp_path / "best.yaml").read_text()
    rule = "max accuracy where parameters > 100_000"
    again = study(*small, "launcher=join", f"winner.rule='{rule}'", page="pareto")
    assert again.returncode == 0, again.stderr
    second = json.loads((tmp_path / "winner.json").read_text())
    assert second["winner"]["costs"]["parameters"] > 100_000
    assert second["trials"] == first["trials"] == 6
    assert f"rule      {rule}" in studyloom("status", tmp_path).stdout
    rule = "max accuracy where parameters < 9"
    none = study(*small, "launcher=join", f"winner.rule='{rule}'", page="pareto")
    assert none.returncode == 1
    assert f"no trial keeps to winner.rule: {rule}; loosen it" in none.stdout
