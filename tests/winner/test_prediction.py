"""Predictions of a stored winner from files of all kinds; hostile files execute nothing."""

import gzip
import json
import math
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from studyloom.data.idx import ASSET, Embedded
from studyloom.errors import ConfigError, PredictError
from studyloom.models import MLP
from studyloom.text import format_value
from studyloom.training.checkpoint import save_weights
from studyloom.winner.prediction import Network, load_network, predict, read_images


@pytest.fixture
def run_dir(tmp_path):
    """A run directory with the winner's files, of a small network on MNIST's shape."""
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(0)
    save_weights(folder / "winner.pt", MLP((1, 28, 28), 10, hidden=[8]).state_dict())
    (folder / "winner.yaml").write_text("model: {_target_: studyloom.models.MLP, hidden: [8]}\n")
    facts = {"shape": [1, 28, 28], "outputs": 10, "mean": 0.1307, "std": 0.3081}
    (folder / "winner.json").write_text(json.dumps({"data": facts}))
    return folder


@pytest.fixture
def digits():
    with np.load(ASSET) as arrays:
        return arrays["test_images"][:20]


def test_a_picture_and_an_idx_file_are_classified_as_the_data_set_would_be(
    run_dir, digits, tmp_path
):
    split = Embedded().test()
    model = MLP((1, 28, 28), 10, hidden=[8])
    model.load_state_dict(torch.load(run_dir / "winner.pt", weights_only=True))
    expected = model.eval()(split.inputs[:20]).detach().softmax(1).max(1)
    Image.fromarray(digits[3]).save(tmp_path / "three.png")
    header = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in digits.shape)
    (tmp_path / "many-idx3-ubyte").write_bytes(header + digits.tobytes())
    (tmp_path / "many-idx3-ubyte.gz").write_bytes(gzip.compress(header + digits.tobytes()))
    network = load_network(run_dir)
    paths = [tmp_path / name for name in ("three.png", "many-idx3-ubyte", "many-idx3-ubyte.gz")]
    answers = list(predict(network, paths))
    assert [answer.label for answer in answers[1:21]] == expected.indices.tolist()
    assert [answer.label for answer in answers[21:]] == expected.indices.tolist()
    assert (answers[0].name, answers[0].label) == (str(paths[0]), int(expected.indices[3]))
    assert answers[4].name == f"{paths[1]}[3]"
    assert answers[0].confidence == pytest.approx(float(expected.values[3]), abs=1e-5)


def test_a_colour_picture_of_a_grey_network_is_read_as_grey(digits, tmp_path):
    Image.fromarray(digits[0]).convert("RGBA").save(tmp_path / "colour.png")
    assert torch.equal(
        read_images(tmp_path / "colour.png", (1, 28, 28))[0, 0], torch.from_numpy(digits[0].copy())
    )
    assert read_images(tmp_path / "colour.png", (3, 28, 28)).shape == (1, 3, 28, 28)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello", "must be a picture or an IDX file"),
        (b"\0\0\x08\x01\0\0\0\x08" + bytes(8), "magic number"),
        (
            b"\0\0\x08\x03\0\0\0\x01\0\0\0\x02\0\0\0\x02\1\2\3\4",
            "must be 28 × 28 pixels, as the network takes them; got 2 × 2",
        ),
        (b"", "must be a picture"),
    ],
)
def test_what_is_no_image_is_named_before_the_first_answer(
    run_dir, digits, tmp_path, content, words
):
    Image.fromarray(digits[0]).save(tmp_path / "good.png")
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(PredictError, match="bad") as caught:
        next(predict(load_network(run_dir), [tmp_path / "good.png", tmp_path / "bad"]))
    assert words in str(caught.value)


def test_an_image_that_is_not_there_is_named(run_dir, tmp_path):
    with pytest.raises(PredictError, match=r"nowhere\.png: No such file"):
        list(predict(load_network(run_dir), [tmp_path / "nowhere.png"]))


def test_a_folder_without_a_winner_says_when_there_will_be_one(tmp_path):
    with pytest.raises(
        PredictError, match=r"no winner\.json; the study writes it when its search has ended"
    ):
        load_network(tmp_path)


@pytest.mark.parametrize(
    "model",
    [
        {"_target_": "os.system", "command": "touch CANARY"},
        {"_target_": "builtins.eval", "_args_": ["open('CANARY', 'w')"]},
        {
            "_target_": "studyloom.models.MLP",
            "hidden": [{"_target_": "os.system", "command": "touch CANARY"}],
        },
        {"_target_": "torch.load", "f": "CANARY.pt", "weights_only": False},
    ],
)
def test_a_hostile_winner_creates_no_canary(run_dir, tmp_path, model):
    canary = tmp_path / "canary"
    text = yaml.safe_dump({"model": model}).replace("CANARY", str(canary))
    (run_dir / "winner.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"model.*_target_"):
        load_network(run_dir)
    assert not canary.exists()


def test_weights_of_another_network_or_none_are_named(run_dir, tmp_path):
    save_weights(run_dir / "winner.pt", MLP((1, 28, 28), 10, hidden=[9]).state_dict())
    with pytest.raises(PredictError, match=r"winner\.pt: .*size mismatch"):
        load_network(run_dir)
    (run_dir / "winner.pt").write_bytes(b"no weights")
    with pytest.raises(PredictError, match=r"winner\.pt.*cannot be read as weights"):
        load_network(run_dir)
    shutil.rmtree(run_dir)


# Tables and arrays


@pytest.fixture
def tabular(tmp_path):
    """A run directory, of a network that predicts two named classes from two named columns."""
    folder = tmp_path / "tabular"
    folder.mkdir()
    model = MLP((2,), 2, hidden=[], standardise=True)
    model.load_state_dict(
        model.state_dict()
        | {"0.mean": torch.tensor([10.0, 0.0]), "2.weight": torch.tensor([[1.0, 0.0], [-1.0, 0.0]])}
        | {"2.bias": torch.zeros(2)}
    )
    save_weights(folder / "winner.pt", model.state_dict())
    (folder / "winner.yaml").write_text(
        "model: {_target_: studyloom.models.MLP, hidden: [], standardise: true}\n"
    )
    facts = {"shape": [2], "outputs": 2, "mean": 0.0, "std": 1.0}
    facts |= {"classifies": True, "names": ["large", "small"], "columns": ["size", "age"]}
    (folder / "winner.json").write_text(json.dumps({"data": facts}))
    return folder


def test_a_table_is_read_by_the_names_of_its_columns(tabular, tmp_path):
    (tmp_path / "rows.csv").write_text("name,age,size\na,1,12\nb,2,8\n")
    answers = list(predict(load_network(tabular), [tmp_path / "rows.csv"]))
    assert [answer.word for answer in answers] == ["large", "small"]
    assert str(answers[0]).split("\t")[1:] == ["large", f"{1 / (1 + math.exp(-4)):.4f}"], (
        "standardised as in training"
    )


def test_an_array_holds_one_input_or_several(tabular, tmp_path):
    np.save(tmp_path / "one.npy", np.array([12, 0]))
    np.save(tmp_path / "several.npy", np.array([[12.0, 0.0], [8.0, 0.0]]))
    network = load_network(tabular)
    assert [
        a.label for a in predict(network, [tmp_path / "one.npy", tmp_path / "several.npy"])
    ] == [0, 0, 1]


def test_numbers_are_told_as_they_are(tmp_path):
    network = Network(MLP((3, 1), 1, hidden=[4]), (3, 1), classifies=False)
    (tmp_path / "windows.csv").write_text("1,2,3\n4,5,6\n")
    answers = list(predict(network, [tmp_path / "windows.csv"]))
    expected = network.model(torch.arange(1.0, 7.0).reshape(2, 3, 1)).flatten().tolist()
    assert [answer.values[0] for answer in answers] == pytest.approx(expected)
    assert str(answers[1]) == f"{tmp_path / 'windows.csv'}[1]\t{format_value(answers[1].values[0])}"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"age\n1\n", "has no column size"),
        ("a.csv", b"size,age\n1,x\n", "line 2 must have 2 numbers"),
        ("a.csv", b"size,age\n", "must hold at least one line of numbers"),
        ("a.csv", b"\xff\xfe\x00", r"must be a \.npy file or a CSV file"),
        ("a.npy", b"no array", r"must be a \.npy file of numbers"),
        ("gone.csv", None, "No such file"),
    ],
)
def test_a_file_without_such_numbers_is_refused(tabular, tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PredictError, match=words):
        list(predict(load_network(tabular), [tmp_path / name]))


def test_an_array_of_another_shape_or_with_objects_is_refused(tabular, tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((4, 3)))
    with pytest.raises(
        PredictError, match="must hold an input of 2 numbers, or several; got 4 × 3"
    ):
        list(predict(load_network(tabular), [tmp_path / "wide.npy"]))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(PredictError, match=r"must be a \.npy file of numbers"):
        list(predict(load_network(tabular), [tmp_path / "objects.npy"]))
