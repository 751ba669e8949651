"""Metrics: their values against scikit-learn's, their configuration, and their preflight."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from toys import TINY, ask, compose, toy_folds, toy_split, validate_search

from studyloom.data.split import Fold, Split
from studyloom.data.training_data import TrainingData
from studyloom.errors import ConfigError, UndefinedMetric
from studyloom.metrics import METRICS, Metric
from studyloom.objectives.jobs import build_metric
from studyloom.training.batches import EVALUATION_BATCH
from studyloom.training.trainer import Training

GENERATOR = torch.Generator().manual_seed(0)
OUTPUTS = torch.randn(60, 3, generator=GENERATOR)
CLASSES = torch.arange(60) % 3
NUMBERS = OUTPUTS + torch.randn(60, 3, generator=GENERATOR)


def metric_of(*overrides):
    return build_metric(compose(*overrides)[0]["objective"])


def test_metrics_equal_those_of_scikit_learn():
    """Those that PyTorch computes here agree with scikit-learn's own computation too."""
    truth, guess = CLASSES.numpy(), OUTPUTS.argmax(1).numpy()
    sure = OUTPUTS.double().softmax(1).numpy()
    wanted = NUMBERS.numpy(), OUTPUTS.numpy()
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(truth, guess),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(truth, guess),
        "f1_macro": sklearn_metrics.f1_score(truth, guess, average="macro"),
        "roc_auc": sklearn_metrics.roc_auc_score(truth, sure, multi_class="ovr", average="macro"),
        "average_precision": sklearn_metrics.average_precision_score(np.eye(3)[truth], sure),
        "cross_entropy": sklearn_metrics.log_loss(truth, sure),
        "mse": sklearn_metrics.mean_squared_error(*wanted),
        "rmse": sklearn_metrics.mean_squared_error(*wanted) ** 0.5,
        "mae": sklearn_metrics.mean_absolute_error(*wanted),
        "r2": sklearn_metrics.r2_score(*wanted),
    }
    assert {*expected} == {*METRICS}
    right = {"classes": 5 * torch.eye(3)[CLASSES], "numbers": NUMBERS + 0.01}
    for name, value in expected.items():
        metric = METRICS[name]
        targets = CLASSES if metric.targets == "classes" else NUMBERS
        assert metric(OUTPUTS, targets) == pytest.approx(value, abs=1e-6), name
        better = metric(right[metric.targets], targets)
        assert metric.sign * better > metric.sign * value, name


def test_outputs_and_targets_may_differ_by_a_dimension_of_one():
    numbers, right = torch.tensor([1.0, 2.0, 3.0]), torch.eye(3)
    for name in ("mse", "rmse", "mae"):
        assert METRICS[name](numbers[:, None], numbers) == 0.0, name
        assert METRICS[name](numbers, numbers[:, None]) == 0.0, name
        with pytest.raises(RuntimeError, match="shape"):
            METRICS[name](right, numbers)
    assert METRICS["accuracy"](right, torch.tensor([[0], [1], [0]])) == pytest.approx(2 / 3)
    masks = torch.arange(24).reshape(2, 3, 4) % 3
    assert METRICS["accuracy"](right[masks].movedim(-1, 1), masks) == 1.0


@pytest.mark.parametrize("name", ["roc_auc", "average_precision"])
def test_outputs_with_probability_1_are_ranked_by_their_odds(name):
    """From a margin of 37 on they are all 1, and would be ties."""
    draw = torch.Generator().manual_seed(0)
    truth = torch.randint(2, (400,), generator=draw)
    surer = 300 * (torch.randn(400, 2, generator=draw) + 0.5 * torch.eye(2)[truth]).double()
    expected = getattr(sklearn_metrics, f"{name}_score")(truth, surer[:, 1] - surer[:, 0])
    assert METRICS[name](surer, truth) == pytest.approx(expected, abs=1e-12)


def test_a_class_without_examples_has_no_recall_even_if_predicted():
    truth, guess = torch.tensor([0, 0, 1, 1, 1]), torch.eye(3)[[0, 0, 1, 1, 2]]
    assert METRICS["balanced_accuracy"](guess, truth) == pytest.approx((1 + 2 / 3) / 2)


def test_a_metric_that_is_not_a_finite_number_is_an_error():
    for value in (float("inf"), "0.5", None, torch.tensor(float("nan"))):
        own = Metric("own", "maximize", lambda outputs, targets, value=value: value)
        with pytest.raises(UndefinedMetric, match=r"objective\.metric=own"):
            own(OUTPUTS, CLASSES)


# From the configuration


def test_an_invalid_metric_is_refused_with_a_fix():
    own = "objective.metric={_target_: test_metrics.%s%s}"
    for overrides, words in (
        (["objective.metric=f1_marco"], "=f1_marco: unknown metric; .*did you mean f1_macro"),
        (
            ["objective.metric=mse", "objective.direction=maximize"],
            r"objective\.direction must be minimize for mse; got maximize",
        ),
        ([own % ("margin", ", _partial_: true")], "since margin does not say which is better"),
        ([own % ("Four", "")], "Four returned 4; .* a function needs _partial_: true"),
        ([own % ("margin", "")], "margin.* 2 required .*; .* a function needs _partial_: true"),
        (
            [own % ("score", ", _partial_: true"), "objective.direction=maximize"],
            r"score: too many positional .*; .* called as \(outputs, targets\) -> number",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            metric_of(*overrides)


def margin(outputs, targets, floor=0.0):
    return outputs.max() - floor


def score(preds):
    return preds.mean()


def Four():
    return 4


class Worst:
    direction = "minimize"

    def __call__(self, outputs, targets):
        return outputs.max()


def test_a_custom_metric_has_options_and_a_direction():
    metric = metric_of(
        "objective.metric={_target_: test_metrics.margin, _partial_: true, floor: 2.0}",
        "objective.direction=minimize",
    )
    assert (metric.name, metric.direction) == ("margin", "minimize")
    assert metric(OUTPUTS, CLASSES) == pytest.approx(float(OUTPUTS.max()) - 2)
    assert metric_of("objective.metric={_target_: test_metrics.Worst}").direction == "minimize"


# In training


def test_the_metric_of_an_epoch_is_not_a_mean_over_batches(
    monkeypatch,
):
    monkeypatch.setitem(EVALUATION_BATCH, "cpu", 7)
    split, definition = toy_split(), ask(*TINY, "objective.metric=roc_auc")
    (training, validation), *_ = toy_folds(split)
    training = Training(
        definition.build_jobs(definition.baseline, [(training, validation)], 0), split
    )
    last = list(training)[-1][0]
    model = training._runs[0].model.eval()
    assert last.value == METRICS["roc_auc"](
        model(split.inputs[validation]).detach(), split.targets[validation]
    )


# Before the first trial


def series(count=100):
    inputs = torch.randn(count, 5, generator=torch.Generator().manual_seed(0))
    return Split(inputs, inputs.sum(1, keepdim=True), 1, "numbers")


def check(split, folds, *overrides):
    definition = ask("space=none", "model.hidden=[4]", "train.batch_size=16", *overrides)
    validate_search(definition, TrainingData(None, split, folds))


def test_a_metric_or_loss_unfit_for_the_data_fails_before_trial_0():
    own = ("objective.metric={_target_: test_metrics.nothing, _partial_: true}",)
    for overrides, split, words in (
        (
            ["loss=mae"],
            series(),
            "accuracy: is for classes, .* numbers; choose one of rmse, mse, .*argmax",
        ),
        (["objective.metric=mse"], toy_split(100), "mse: is for numbers, .* are classes"),
        (["objective.metric=mse"], series(), "loss=cross_entropy is for classes, .* are numbers"),
        (
            [*own, "objective.direction=maximize"],
            toy_split(100),
            "nothing: must be a finite number; got nan for 20 examples, in the validation set",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            check(split, toy_folds(split), *overrides)


def nothing(outputs, targets):
    return float("nan")


def test_a_validation_set_that_lacks_a_class_is_named_with_its_fold():
    split = toy_split(100, classes=2)
    folds = [
        Fold(torch.arange(0, 50), torch.arange(50, 100)),
        Fold(torch.arange(50, 100), torch.arange(0, 50, 2)),
    ]
    words = "of 25 none is of class 1, in the validation set of fold 1"
    with pytest.raises(ConfigError, match=words):
        check(split, folds, "objective.metric=roc_auc")
