"""Learning curves of trials, and the losses of one."""

from made_trials import AXIS, a_trial, mark_of, marked, numbered, points_of
from optuna.trial import TrialState

from studyloom.storage.attributes import EPOCHS
from studyloom.views import drawn_trials
from studyloom.views.curve_figures import draw_curves, draw_losses, name_losses_section
from studyloom.views.page import make_section


def test_a_curve_of_one_epoch_is_a_point_within_its_axis():
    figure = draw_curves(numbered(a_trial(0, epochs=0), a_trial(1, epochs=0)), marked(), AXIS)
    assert [(mark.name, mark.shape) for mark in figure.marks] == [("complete", "dot")]
    figure = draw_curves(numbered(a_trial(0, epochs=2), a_trial(1, epochs=0)), marked(), AXIS)
    path = figure.path(mark_of(figure, "complete"))
    assert path.count("M") == 2
    assert path.endswith("h.01")  # a line of no length, with round ends
    for steps in ([0], [0, 1, 2]):
        trial = a_trial(0, accuracy=0.5)
        trial.user_attrs.pop(EPOCHS)
        trial.intermediate_values = dict.fromkeys(steps, 0.5)
        figure = draw_curves([trial], marked(trial), AXIS)
        assert figure.x.low < min(steps) <= max(steps) < figure.x.high


def test_further_quantities_of_a_loop_are_drawn_with_gaps():
    trial, as_we_do = a_trial(3), a_trial(4)
    told = {"number": [1, 2, 3], "value": [0.5, 0.6, 0.7], "valid_loss": [2, 1, 1]}
    trial.user_attrs[EPOCHS] = told | {"loss": [3.0, None, 1.0], "recall": [0.1, 0.2, 0.3]}
    figure = draw_losses(trial)
    drawn = {mark.name: points_of(mark) for mark in figure.marks}
    assert drawn == {
        "loss": [(1, 3.0), (3, 1.0)],
        "recall": [(1, 0.1), (2, 0.2), (3, 0.3)],
        "validation loss": [(1, 2), (2, 1), (3, 1)],
    }
    assert len({mark.color for mark in figure.marks}) == 3
    assert figure.table.rows[1] == (2, "1.0000", "", "0.2000")
    assert make_section(name_losses_section(trial), [], which="").title == "Further quantities"
    as_we_do.user_attrs[EPOCHS] = told | {"train_loss": [3, 2, 1], "valid_loss": [3, 2, 4]}
    assert make_section(name_losses_section(as_we_do), [], which="").title == "Overfitting"
    assert "lowest at epoch 2" in str(draw_losses(as_we_do))


def test_pruned_curves_end_where_they_were_pruned():
    trials = numbered(a_trial(0, accuracy=0.9), a_trial(1, TrialState.PRUNED, 0.5, 1))
    figure = draw_curves(trials, marked(trials[0]), AXIS)
    assert [x for x, _ in points_of(mark_of(figure, "pruned"))] == [1, 2]
    assert [x for x, _ in points_of(mark_of(figure, "best"))] == [1, 2, 3, 4]
    (end,) = (mark for mark in figure.marks if mark.shape == "square")
    assert (points_of(end)[0][0], end.trials) == (2, [1])


def test_the_best_and_the_latest_of_many_curves_are_drawn(monkeypatch):
    monkeypatch.setattr(drawn_trials, "MOST_BEST", 10)
    monkeypatch.setattr(drawn_trials, "MOST_LATEST", 20)
    many = numbered(*(a_trial(n, accuracy=0.5 + (n * 7 % 90) / 200) for n in range(90)))
    figure = draw_curves(many, marked(many[0]), AXIS)
    drawn = {number for mark in figure.marks for number in mark.trials}
    best = sorted(range(90), key=lambda n: -many[n].value)[:10]
    assert drawn == {*best, *range(70, 90), 0}
    assert len(figure.marks) <= 9
    assert figure.table.note == "30 further trials are left out."
