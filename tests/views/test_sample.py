"""A report of very many trials shows some of them, and says which."""

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from studyloom.study.opening import create_study
from studyloom.views import report as sampling
from studyloom.views.snapshot import take_snapshot

RANGE = FloatDistribution(0.0, 1.0)


@pytest.fixture
def stored(sqlite_url):
    """A study of 60 trials: values fall, but for one that is the best of all."""
    stored = create_study(sqlite_url, "many", {"asks": "nothing"}, 60)
    for number in range(60):
        value = 9.0 if number == 43 else 1.0 - number / 60
        given = {"params": {"x": number / 60}, "distributions": {"x": RANGE}}
        given |= {"values": [value], "intermediate_values": {1: value}}
        attributes = {"slot": number}
        stored.optuna.add_trial(
            create_trial(state=TrialState.COMPLETE, user_attrs=attributes, **given)
        )
    yield stored
    stored.close()


def test_of_very_many_those_at_even_distances_and_those_that_stand_out_are_shown(
    stored, monkeypatch, tmp_path
):
    assert sampling.sample(stored, take_snapshot(stored), None) == (stored, "")
    monkeypatch.setattr(sampling, "MOST", 10)
    monkeypatch.setattr(sampling, "BEST", 3)
    shown, note = sampling.sample(stored, take_snapshot(stored), 55)
    numbers = [trial.number for trial in shown.trials()]
    # Every sixth; the three best, of which 0 was the best before 43; and the winner.
    assert numbers == sorted({*range(0, 60, 6), 43, 0, 1, 55})
    assert note.startswith(f"{len(numbers)} of 60 trials are shown")
    assert next(trial.number for trial in shown.ranked()) == 43
    page = sampling.write_report(stored, tmp_path).read_text()
    assert "of 60 trials are shown: 10 at even distances" in page
    assert "60 complete" in page
