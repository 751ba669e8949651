from datetime import datetime, timedelta

import pytest
from made_trials import AXIS, BEGAN, a_trial, forty
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from studyloom.storage.attributes import EPOCHS
from studyloom.views.figures import curves
from studyloom.views.figures.axes import log_ticks
from studyloom.views.figures.parameters import contour, parallel
from studyloom.views.figures.plot_study import best_of, plot_study
from studyloom.views.figures.style import COLOURS
from studyloom.views.figures.timeline import idle_share, timeline


def test_of_many_trials_the_best_are_drawn_over_parallel_axes(study_of):
    best = best_of(study_of(forty()), 5)
    assert [trial.number for trial in best] == [31, 32, 35, 36, 37]
    figure = parallel(plot_study(best, 1), ["model", "nowhere"], AXIS)
    assert len(figure.data) == 5
    assert figure.data[-1].line.color == COLOURS["best"]
    assert figure.data[-1].y[0] == 1


def test_a_plot_study_has_the_numbers_values_and_constraints_of_the_study(study_of):
    trials = study_of(forty()).trials()
    copied = plot_study(trials, 1).get_trials()
    assert [trial.number for trial in copied] == list(range(40))
    for trial, copy in zip(trials, copied, strict=True):
        if trial.state == TrialState.COMPLETE:
            assert (copy.value, copy.params, copy.constraints) == (
                trial.value,
                trial.params,
                trial.constraints,
            )
        else:
            assert (copy.state, copy.params) == (TrialState.FAIL, {})


def test_choices_stay_different_when_they_are_cut():
    choices = CategoricalDistribution(
        ["x" * 50 + "a" + "x" * 50, "x" * 50 + "b" + "x" * 50, None, 1]
    )
    trials = [
        create_trial(value=0.5, params={"p": c}, distributions={"p": choices})
        for c in choices.choices
    ]
    for number, trial in enumerate(trials):
        trial.number = number
    assert len({trial.params["p"] for trial in plot_study(trials, 1).trials}) == 4


def test_making_a_plot_study_prints_nothing(study_of, capfd):
    trials = study_of(forty()).trials()
    capfd.readouterr()
    plot_study(trials, 1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("low", "high"), [(0.1, 0.97), (0.917, 0.9725), (0.96, 0.961), (0.0, 1.0), (0.999, 0.9999)]
)
def test_an_axis_has_some_round_marks_in_its_range(low, high):
    marks = AXIS.marks(low, high)
    assert 3 <= len(marks) <= 18
    assert all(low <= mark <= high for mark in marks)
    assert marks == sorted({*marks})
    assert AXIS.marks(0.5012, 0.5012) == [0.5012]


def test_the_accuracy_axis_rises_and_counts_factors_of_ten_in_the_error():
    heights = [AXIS.height(value / 1000) for value in range(-10, 1000)]
    assert heights == sorted({*heights})
    assert [AXIS.height(value) for value in (0.0, 0.9, 0.99)] == pytest.approx([0, 1, 2])
    assert AXIS.height(1.0) == AXIS.height(1.1) < 5


def test_logarithmic_axes_have_three_or_four_marks():
    for low, high in ((1e-6, 1e-1), (1e-4, 1e-2), (0.001, 0.009), (0.0021, 0.0029), (16, 512)):
        axis = log_ticks([low, high])
        assert 1 <= len(axis["tickvals"]) == len(axis["ticktext"]) <= 4
        assert all(low <= value <= high for value in axis["tickvals"])


def of_a_loop(**columns):
    curve = {"number": [1, 2, 3], "value": [0.5, 0.6, 0.7], "seconds": [1, 1, 1]}
    trial = a_trial(3)
    trial.user_attrs[EPOCHS] = curve | columns
    return trial


def test_what_a_loop_told_beside_the_value_is_drawn_with_gaps_where_it_told_none():
    trial = of_a_loop(loss=[3.0, None, 1.0], recall=[0.1, 0.2, 0.3], valid_loss=[2, 1, 1])
    figure = curves.losses(trial)
    drawn = {line.name: [*line.y] for line in figure.data}
    assert drawn == {
        "loss": [3.0, None, 1.0],
        "recall": [0.1, 0.2, 0.3],
        "validation loss": [2, 1, 1],
    }
    assert len({line.line.color for line in figure.data}) == 3
    title, caption = curves.beside(trial, "Trial 3. ")
    assert (title, caption) == (
        "Further quantities",
        "Trial 3. What the loop reported beside the value.",
    )


def test_losses_that_a_loop_calls_as_we_do_show_over_fitting():
    trial = of_a_loop(train_loss=[3, 2, 1], valid_loss=[3, 2, 4])
    assert curves.beside(trial, "")[0] == curves.beside(a_trial(0), "")[0] == "Over-fitting"
    assert "lowest at epoch 2" in str(curves.losses(trial))


def test_a_loop_that_told_only_its_value_has_no_figure_of_more():
    assert curves.losses(of_a_loop()) == "Trial -1 stored no losses."


def test_idle_is_the_share_of_gaps_in_a_workers_time():
    def at(*spans):
        return [
            (BEGAN + timedelta(seconds=start), BEGAN + timedelta(seconds=end))
            for start, end in spans
        ]

    assert idle_share(at((0, 10))) == 0
    assert idle_share(at((5, 5))) == 0
    assert idle_share(at((5, 10), (0, 4))) == pytest.approx(0.1)
    assert idle_share(at((0, 10), (2, 4), (8, 20), (30, 40))) == pytest.approx(0.25)


def test_an_unfinished_trial_lasts_until_now_only_if_somebody_is_at_it(study_of):
    trials = study_of([a_trial(0), a_trial(1, TrialState.RUNNING)]).trials()
    ends = [timeline(trials, alive).data[-1].x[0] / 1000 for alive in ((), (trials[1]._trial_id,))]
    assert ends[0] == 0
    assert ends[1] == pytest.approx(
        (datetime.now() - trials[1].datetime_start).total_seconds(), abs=60
    )


def test_pruned_curves_end_where_they_were_pruned(study_of):
    trials = study_of([a_trial(0, accuracy=0.9), a_trial(1, TrialState.PRUNED, 0.5, 1)]).trials()
    figure = curves.curves(trials, trials[0], None, AXIS)
    lines = {trace.name: trace for trace in figure.data if trace.mode == "lines"}
    assert lines["pruned"].x == (1, 2, None)
    assert lines["best"].x == (1, 2, 3, 4, None)
    (cross,) = (trace for trace in figure.data if trace.mode == "markers")
    assert cross.x == (2,)
    assert cross.text == ("trial 1: pruned after epoch 2 at 0.5000",)


def test_the_curves_of_many_trials_are_few_traces(study_of):
    trials = study_of(forty()).trials()
    assert len(curves.curves(trials, trials[37], trials[0], AXIS).data) <= 8


def test_the_contour_shows_parameters_that_occur_together(study_of):
    study = plot_study(study_of(forty()).trials(), 1)
    assert isinstance(contour(study, ["cnn.channels", "mlp.momentum"], AXIS), str)
    figure = contour(study, ["cnn.channels", "mlp.momentum", "lr"], AXIS)
    assert {figure.layout.title.text, figure.layout.xaxis.title.text} == {"mlp.momentum", "lr"}
