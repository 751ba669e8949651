"""What explains a winner on the test set, on networks whose reasons are known."""

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
from studyloom.winner.predictions import MeasuredNetwork, describe_predictions
from studyloom.winner.statistics import Outputs

ACCURACY, MSE = METRICS["accuracy"], METRICS["mse"]


def split_of(inputs, targets, outputs, **known):
    return Split(inputs, targets, outputs, "toy", **known)


def test_the_calibration_error_is_the_distance_weighted_by_examples():
    told = calibrate(torch.tensor([[0.8, 0.2]] * 10), torch.tensor([0] * 8 + [1] * 2))
    assert told.error == pytest.approx(0.0, abs=1e-6), "it is right as often as sure"
    (bin_,) = told.bins
    assert (bin_.low, bin_.high, bin_.count) == (0.8, 0.9, 10)
    assert bin_.interval[0] < 0.8 < bin_.interval[1]
    sure = torch.tensor([[1.0, 0.0]] * 6 + [[0.55, 0.45]] * 2)
    told = calibrate(sure, torch.tensor([0, 0, 0, 1, 1, 1, 0, 1]))  # half are right of both
    assert told.error == pytest.approx(6 / 8 * 0.5 + 2 / 8 * 0.05, abs=1e-6)
    assert sum(one.count for one in told.bins) == 8


def test_each_class_has_the_share_that_is_right_of_it():
    targets = torch.tensor([0, 0, 0, 1])
    outputs = nn.functional.one_hot(torch.tensor([0, 0, 1, 1]), 2).float()
    part = split_of(torch.zeros(4, 1), targets, 2, names=("cat", "dog"))
    told = measure_groups(ACCURACY, Outputs(outputs, targets), part)
    assert told.of == "class"
    assert told.left == 0
    rows = {row.name: (row.count, row.value) for row in told.rows}
    assert rows == {"cat": (3, pytest.approx(2 / 3)), "dog": (1, 1.0)}


@pytest.mark.parametrize(("columns", "labels"), [(1, [0, 1]), (2, [0, 2]), (2, [-1, 1])])
def test_outputs_without_a_column_for_each_label_are_not_shown_as_classes(columns, labels):
    part = split_of(torch.zeros(2, 1), torch.tensor(labels), 2)
    outputs, network = Outputs(torch.randn(2, columns), part.targets), Corner()
    own = Metric("right", "maximize", lambda outputs, targets: 0.5)
    measured = MeasuredNetwork(job(), network, own, outputs, part)
    assert describe_predictions(measured, None) == {}
    assert explain(replace(measured, metric=ACCURACY)) is None


def test_groups_come_before_classes_and_numbers_have_them_too():
    class Grouped(Split):
        group_names = ("theo", "george", "theo")

    targets = torch.tensor([[0.0], [1.0], [2.0]])
    part = Grouped(torch.zeros(3, 1), targets, 1, "toy")
    found = Outputs(targets + torch.tensor([[1.0], [0.0], [3.0]]), targets)
    told = measure_groups(MSE, found, part)
    assert told.of == "group"
    rows = {row.name: row for row in told.rows}
    assert rows["theo"].value == pytest.approx((1 + 9) / 2)
    assert rows["george"].interval == (0.0, 0.0)
    low, high = rows["theo"].interval
    assert low <= rows["theo"].value <= high
    assert measure_groups(METRICS["rmse"], Outputs(targets, targets), part) is None, "it is no mean"


def test_the_column_that_decides_matters_and_the_others_do_not():
    torch.manual_seed(0)
    inputs = torch.randn(400, 3)
    targets = (inputs[:, 1] > 0).long()
    part = split_of(inputs, targets, 2, columns=("a", "b", "c"))

    def result(given):
        return torch.stack([-given.inputs[:, 1], given.inputs[:, 1]], 1)

    found = Outputs(result(part), targets)
    first, *others = permute_columns(ACCURACY, result, found, part, 0)
    assert first.name == "b"
    assert first.worse == pytest.approx(0.5, abs=0.1)
    assert first.interval[0] <= first.worse <= first.interval[1]
    assert [row.worse for row in others] == [0.0, 0.0]
    again = permute_columns(ACCURACY, result, found, part, 0)
    assert again[0] == first
    assert torch.equal(part.inputs, inputs)


def bright_corner(images):
    """Logits of a network that looks at the upper left corner alone."""
    seen = images[:, 0, :4, :4].mean((1, 2))
    return torch.stack([torch.zeros_like(seen), 5 * seen], 1)


def test_what_a_network_looks_at_is_what_it_owes_its_answer_to_and_is_drawn_red():
    for size in ((9, 5), (28, 28)):
        image = torch.zeros(1, *size)
        image[0, :4, :4] = 1.0
        change = occlude(bright_corner, image)
        assert change.shape == size
        assert change[0, 0] == change.max() > 0
        assert change[-1, -1] == pytest.approx(0.0, abs=1e-6)
    part = split_of(image[None], torch.tensor([0]), 2)
    outputs = Outputs(bright_corner(part.inputs), part.targets)
    (told,) = explain_images(lambda given: bright_corner(given.inputs), part, outputs, [0])
    assert (told.index, told.label, told.predicted) == (0, 0, 1)
    assert 0 < told.most <= 1
    kind, _, content = told.image.partition(",")
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
    """Looks at the corner, scaled; keeps the sizes and the brightest of what it sees."""

    def __init__(self):
        super().__init__()
        self.scale, self.seen = nn.Parameter(torch.ones(())), []

    def forward(self, image, mask):
        self.seen.append((len(image), float(image.max())))
        return self.scale * mask[:, :1] * bright_corner(image)


def scaled(items):
    images = torch.stack([image for image, _ in items]) / 255
    return images, torch.ones(len(items), 2), torch.tensor([label for _, label in items])


def job():
    everything = torch.arange(3)
    parts = (lambda **sizes: Corner(), torch.optim.SGD, lambda progress: 1.0, cross_entropy)
    return Job(*parts, everything, everything, epochs=1, batch_size=2, seed=0)


def test_covered_images_come_to_the_network_as_those_of_the_test_do(caplog):
    """Through the collate function, which may scale them and add inputs, in small batches.

    What cannot be explained does not cost the test.
    """
    data, network = Images(), Corner()
    sealed = Datasets(data, test=data, validation=1, outputs=2, collate=scaled).test()
    outputs = Outputs(*evaluate_network(job(), network, sealed))
    measured = MeasuredNetwork(job(), network, ACCURACY, outputs, sealed)
    told = explain(measured)
    assert sorted(one.index for one in told.occlusions) == [0, 1, 2]
    assert told.occlusions[0].most > 0.1
    assert max(size for size, _ in network.seen) == 2
    assert max(brightest for _, brightest in network.seen) == 1.0

    def fails(*given):
        raise RuntimeError("out of memory")

    network.forward = fails
    told = explain(measured)
    assert told == Explanations(calibration=told.calibration, groups=told.groups)
    assert told.calibration is not None
    assert told.groups is not None
    assert "the report lacks the winner's occlusions: RuntimeError: out of memory" in caplog.text
