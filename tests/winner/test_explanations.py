"""Explanations of a winner on the test set, for networks whose reasons are known."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from studyloom.data import Datasets
from studyloom.data.split import Split
from studyloom.extras.explain import explain
from studyloom.extras.explain.explain import (
    calibrate,
    explain_images,
    measure_groups,
    occlude,
    permute_columns,
)
from studyloom.metrics import METRICS, Metric
from studyloom.training.job import Job
from studyloom.training.trainer import evaluate_network
from studyloom.winner.explanation_values import Explanations
from studyloom.winner.predictions import DescribedPredictions, MeasuredNetwork, describe_predictions
from studyloom.winner.statistics import Outputs

ACCURACY, MSE = METRICS["accuracy"], METRICS["mse"]


def split_of(inputs, targets, outputs, **facts):
    return Split(inputs, targets, outputs, "toy", **facts)


def test_the_calibration_error_weights_distances_by_examples():
    calibration = calibrate(torch.tensor([[0.8, 0.2]] * 10), torch.tensor([0] * 8 + [1] * 2))
    assert calibration.error == pytest.approx(0.0, abs=1e-6), "it is right as often as sure"
    (bin_,) = calibration.bins
    assert (bin_.low, bin_.high, bin_.count) == (0.8, 0.9, 10)
    assert bin_.interval[0] < 0.8 < bin_.interval[1]
    sure = torch.tensor([[1.0, 0.0]] * 6 + [[0.55, 0.45]] * 2)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 0, 1])  # half of each kind are right
    calibration = calibrate(sure, labels)
    assert calibration.error == pytest.approx(6 / 8 * 0.5 + 2 / 8 * 0.05, abs=1e-6)
    assert sum(one.count for one in calibration.bins) == 8


def test_each_class_has_an_accuracy():
    targets = torch.tensor([0, 0, 0, 1])
    outputs = nn.functional.one_hot(torch.tensor([0, 0, 1, 1]), 2).float()
    part = split_of(torch.zeros(4, 1), targets, 2, names=("cat", "dog"))
    groups = measure_groups(ACCURACY, Outputs(outputs, targets), part)
    assert groups.grouped_by == "class"
    assert groups.omitted == 0
    rows = {row.name: (row.count, row.value) for row in groups.rows}
    assert rows == {"cat": (3, pytest.approx(2 / 3)), "dog": (1, 1.0)}


@pytest.mark.parametrize(("columns", "labels"), [(1, [0, 1]), (2, [0, 2]), (2, [-1, 1])])
def test_outputs_without_a_column_for_each_label_are_not_classes(columns, labels):
    part = split_of(torch.zeros(2, 1), torch.tensor(labels), 2)
    outputs, network = Outputs(torch.randn(2, columns), part.targets), Corner()
    metric = Metric("right", "maximize", lambda outputs, targets: 0.5)
    measured = MeasuredNetwork(job(), network, metric, outputs, part)
    assert describe_predictions(measured, None) == DescribedPredictions()
    assert explain(replace(measured, metric=ACCURACY)) is None


def test_groups_are_preferred_to_classes_and_work_for_regression():
    class Grouped(Split):
        group_names = ("theo", "george", "theo")

    targets = torch.tensor([[0.0], [1.0], [2.0]])
    part = Grouped(torch.zeros(3, 1), targets, 1, "toy")
    outputs = Outputs(targets + torch.tensor([[1.0], [0.0], [3.0]]), targets)
    groups = measure_groups(MSE, outputs, part)
    assert groups.grouped_by == "group"
    rows = {row.name: row for row in groups.rows}
    assert rows["theo"].value == pytest.approx((1 + 9) / 2)
    assert rows["george"].interval == (0.0, 0.0)
    low, high = rows["theo"].interval
    assert low <= rows["theo"].value <= high
    assert measure_groups(METRICS["rmse"], Outputs(targets, targets), part) is None, (
        "a root is not a mean"
    )


def test_only_the_column_that_decides_makes_the_metric_worse():
    torch.manual_seed(0)
    inputs = torch.randn(400, 3)
    targets = (inputs[:, 1] > 0).long()
    part = split_of(inputs, targets, 2, columns=("a", "b", "c"))

    def predict(examples):
        return torch.stack([-examples.inputs[:, 1], examples.inputs[:, 1]], 1)

    outputs = Outputs(predict(part), targets)
    first, *others = permute_columns(ACCURACY, predict, outputs, part, 0)
    assert first.name == "b"
    assert first.worse_by == pytest.approx(0.5, abs=0.1)
    assert first.interval[0] <= first.worse_by <= first.interval[1]
    assert [row.worse_by for row in others] == [0.0, 0.0]
    again = permute_columns(ACCURACY, predict, outputs, part, 0)
    assert again[0] == first
    assert torch.equal(part.inputs, inputs)


def bright_corner(images):
    """Logits of a network that looks only at the upper left corner."""
    brightness = images[:, 0, :4, :4].mean((1, 2))
    return torch.stack([torch.zeros_like(brightness), 5 * brightness], 1)


def test_the_part_of_an_image_that_decides_is_drawn_red():
    for size in ((9, 5), (28, 28)):
        image = torch.zeros(1, *size)
        image[0, :4, :4] = 1.0
        change = occlude(bright_corner, image)
        assert change.shape == size
        assert change[0, 0] == change.max() > 0
        assert change[-1, -1] == pytest.approx(0.0, abs=1e-6)
    part = split_of(image[None], torch.tensor([0]), 2)
    outputs = Outputs(bright_corner(part.inputs), part.targets)
    (occlusion,) = explain_images(
        lambda examples: bright_corner(examples.inputs), part, outputs, [0]
    )
    assert (occlusion.index, occlusion.label, occlusion.predicted) == (0, 0, 1)
    assert 0 < occlusion.largest_loss <= 1
    kind, _, content = occlusion.image.partition(",")
    assert kind == "data:image/png;base64"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).astype(int)
    assert pixels.shape == (28, 28, 3)
    red, _, blue = pixels[1, 1]
    assert red > blue + 50
    assert abs(pixels[-1, -1] - pixels[-1, -1].mean()).max() < 2  # gray


class Images(Dataset):
    """Images of bytes, all of class 0, that are bright in the upper left corner."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        image = torch.zeros(1, 28, 28, dtype=torch.uint8)
        image[0, :4, :4] = 255
        return image, 0


class Corner(nn.Module):
    """Looks at the corner, scaled; keeps the size of each batch and its brightest pixel."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.batches = []

    def forward(self, image, mask):
        self.batches.append((len(image), float(image.max())))
        return self.scale * mask[:, :1] * bright_corner(image)


def scaled(items):
    images = torch.stack([image for image, _ in items]) / 255
    return images, torch.ones(len(items), 2), torch.tensor([label for _, label in items])


def job():
    everything = torch.arange(3)
    parts = (lambda **sizes: Corner(), torch.optim.SGD, lambda progress: 1.0, cross_entropy)
    return Job(*parts, everything, everything, epochs=1, batch_size=2, seed=0)


def test_covered_images_are_collated_like_those_of_the_test(caplog):
    """Through the collate function, which may scale them and add inputs, in small batches.

    An error in an explanation keeps the test.
    """
    data, network = Images(), Corner()
    test = Datasets(data, test=data, validation=1, outputs=2, collate=scaled).test()
    outputs = Outputs(*evaluate_network(job(), network, test))
    measured = MeasuredNetwork(job(), network, ACCURACY, outputs, test)
    explanations = explain(measured)
    assert sorted(one.index for one in explanations.occlusions) == [0, 1, 2]
    assert explanations.occlusions[0].largest_loss > 0.1
    assert max(size for size, _ in network.batches) == 2
    assert max(brightest for _, brightest in network.batches) == 1.0

    def fail(*inputs):
        raise RuntimeError("out of memory")

    network.forward = fail
    explanations = explain(measured)
    assert explanations == Explanations(
        calibration=explanations.calibration, groups=explanations.groups
    )
    assert explanations.calibration is not None
    assert explanations.groups is not None
    assert "the report lacks the winner's occlusions: RuntimeError: out of memory" in caplog.text
