"""How images become inputs like those of the training set, and notes on those that differ."""

import functools

import numpy as np
import pytest
import torch

from studyloom.data import Embedded, Idx, Image, Loaded
from studyloom.data.sources import ASSET, IMAGE_SETS
from studyloom.data.split import Split
from studyloom.data.transform import InputRange, describe_transform
from studyloom.errors import DataError

MNIST = Image("black", "ink").complete(0.1307, 0.3081)
SIZE = (28, 28)


@pytest.fixture(scope="module")
def digits():
    """Thirty digits, three of each, float32 (30, 1, 28, 28) from 0 to 1."""
    with np.load(ASSET) as arrays:
        return torch.from_numpy(arrays["test_images"][::34].copy())[:, None].float() / 255


def on_paper(digit, size, top, left, scale=5):
    """Draws a digit (28, 28) black on a large white page (1, *size)."""
    page = torch.ones(1, *size)
    large = torch.nn.functional.interpolate(digit[None, None], scale_factor=scale)[0]
    page[:, top : top + large.shape[1], left : left + large.shape[2]] -= large[0]
    return page


def test_images_of_the_data_set_are_converted_bit_for_bit(digits):
    normalized = Embedded().test().inputs[::34]
    for image, expected in zip(digits, normalized, strict=True):
        inputs, notes = MNIST(image.clone(), SIZE)
        assert notes == []
        assert torch.equal(inputs, expected)


def test_an_image_with_an_inverted_background_is_inverted_with_a_note(digits):
    for image in digits:
        inputs, notes = MNIST(1 - image, SIZE)
        assert notes == ["inverted: white background, in training black"]
        expected, _ = MNIST(image.clone(), SIZE)
        assert torch.allclose(inputs, expected, atol=1e-5)


def test_a_digit_on_a_large_page_is_scaled_and_centered_as_in_mnist(digits):
    for image in digits[::3]:
        page = on_paper(image[0], (220, 400), 30, 200)
        inputs, notes = MNIST(page, SIZE)
        assert notes[1:] == ["400 × 220 pixels, what is drawn scaled and centered in 28 × 28"]
        expected, _ = MNIST(image.clone(), SIZE)
        assert float((inputs - expected).abs().mean()) < 0.08
        ink = inputs[0] * 0.3081 + 0.1307
        rows = (torch.arange(28) + 0.5) @ ink.sum(1) / ink.sum()
        assert 13.5 <= float(rows) <= 15.5


def test_an_image_of_another_size_is_padded_cropped_or_stretched():
    image = torch.ones(1, 40, 80)
    image[..., :20] = 0.5  # the left quarter
    for fit, corner, side in (("pad", 1.0, 0.5), ("crop", 1.0, 1.0), ("stretch", 0.5, 0.5)):
        inputs, (note,) = Image("white", fit)(image.clone(), (20, 20))
        assert inputs.shape == (1, 20, 20)
        assert note.startswith("80 × 40 pixels, ")
        assert note.endswith(" 20 × 20")
        ends = [float(inputs[0, 0, 0]), float(inputs[0, 10, 0])]
        assert ends == pytest.approx([corner, side], abs=0.1)


def test_an_invalid_argument_is_refused_by_its_key():
    for arguments, words in (
        ({"background": "blakc"}, "background must be black, white or null; .*did you mean black"),
        ({"fit": "sretch"}, "fit must be one of pad, crop, .*did you mean stretch"),
        ({"fit": "ink"}, "fit=ink needs data.transform.background"),
        ({"mean": "x"}, "mean must be a finite number, one for each channel, or null"),
        ({"mean": float("nan")}, "mean must be a finite number"),
        ({"std": [1.0, 0.0, 1.0]}, "std must be a finite number above 0"),
    ):
        with pytest.raises(DataError, match=f"data.transform.{words}"):
            Image(**arguments)


def images(low, high, shape=(1, 4, 4)):
    inputs = torch.linspace(low, high, 6)[:, None, None, None].expand(6, *shape).clone()
    return inputs, torch.arange(6) % 2


def test_a_transform_that_contradicts_the_data_fails_before_trial_0():
    for transform, loaded, words in (
        (Image(), images(-1, 1), "makes inputs from 0.0000 to 1.0000 of images, and the train"),
        (Image(mean=0.1307, std=0.3081), images(-2, 9), "makes inputs from −0.4242 to 2.8215"),
        (Image(), (torch.rand(6, 2), torch.arange(6) % 2), "an Image makes inputs of"),
        (Image(mean=[0.5, 0.5]), images(0, 1), "mean must be one number, or 1, one for each"),
        ("resize", images(0, 1), "must be a studyloom.data.Image, or your own function"),
    ):
        with pytest.raises(DataError, match=words):
            Loaded(lambda part, loaded=loaded: loaded, 2, transform=transform).train()


# What a winner stores


def flatten(image):
    return image.flatten() / 255


def test_a_transform_is_stored_as_a_section_if_it_has_a_name(digits):
    split = Embedded().train()
    assert describe_transform(Embedded().transform, None, split) == {
        "_target_": "studyloom.data.Image",
        "background": "black",
        "fit": "ink",
        "mean": 0.1307,
        "std": 0.3081,
    }
    assert Idx("fashion_mnist", 2).transform == IMAGE_SETS["fashion_mnist"].transform
    section = {"_target_": "studies.mine.flatten", "_partial_": True}
    own = Loaded(lambda part: None, 2, transform=functools.partial(flatten))
    assert describe_transform(own.transform, section, split) == section
    named = Loaded(lambda part: None, 2, transform=flatten)
    assert describe_transform(named.transform, None, split) == {
        "_target_": f"{__name__}.flatten",
        "_partial_": True,
    }
    unnamed = Loaded(lambda part: None, 2, transform=lambda image: image)
    assert describe_transform(unnamed.transform, None, split) is None
    assert describe_transform(None, None, split) is None


# What is unlike the training data


def test_an_image_unlike_training_is_described_by_values_and_mean():
    training_range = InputRange.measure(Embedded().train())
    like = Embedded().test().inputs
    assert len(training_range.describe_differences(like)) <= 2  # of 1000
    notes = training_range.describe_differences(
        torch.stack([like[0], -like[0], torch.full_like(like[0], -0.42)])
    )
    assert sorted(notes) == [1, 2]
    assert notes[1].startswith("unlike the training data: values −2.8215 to 0.4242 (there −0.4242")
    assert "mean" in notes[2]
    assert "values" not in notes[2]


def test_a_row_unlike_training_is_described_by_its_columns():
    inputs = torch.tensor([[0.0, 10.0], [1.0, 20.0]])
    training_range = InputRange.measure(Split(inputs, torch.tensor([0, 1]), 2, "d"))
    notes = training_range.describe_differences(
        torch.tensor([[0.5, 15.0], [0.5, 90.0], [-3.0, 90.0]]), ["size", "age"]
    )
    assert notes == {
        1: "unlike the training data: age 90.0000 (there 10.0000 to 20.0000)",
        2: "unlike the training data: size −3.0000 (there 0.0000 to 1.0000), "
        "age 90.0000 (there 10.0000 to 20.0000)",
    }
