"""A report of very many trials shows some of them, and says which."""

from made_trials import a_trial

from studyloom.views import report as sampling
from studyloom.views.snapshot import take_snapshot


def test_of_very_many_those_at_even_distances_and_those_that_stand_out_are_shown(
    study_of, monkeypatch, tmp_path
):
    """Values fall, but for one that is the best of all."""
    values = {number: 1 - number / 40 for number in range(40)} | {27: 2.0}
    stored = study_of([a_trial(number, accuracy=value) for number, value in values.items()])
    assert sampling.sample(stored, take_snapshot(stored), None) == (stored, "")
    monkeypatch.setattr(sampling, "MOST", 10)
    monkeypatch.setattr(sampling, "BEST", 3)
    shown, note = sampling.sample(stored, take_snapshot(stored), 35)
    numbers = [trial.number for trial in shown.trials()]
    # Every fourth; the three best, of which 0 was the best before 27; and the winner.
    assert numbers == sorted({*range(0, 40, 4), 27, 0, 1, 35})
    assert note.startswith(f"{len(numbers)} of 40 trials are shown")
    assert next(trial.number for trial in shown.ranked()) == 27
    page = sampling.write_report(stored, tmp_path).read_text()
    assert "of 40 trials are shown: 10 at even distances" in page
    assert "40 complete" in page
