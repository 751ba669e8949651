"""Predictions of a stored winner from files of all kinds; hostile files execute nothing."""

import functools
import gzip
import json
import math
import shutil
from dataclasses import asdict

import hostile
import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image, ImageDraw
from sounds import hostile_wavs, sweep, wav
from studyloom.winner.prediction.inputs import read_inputs
from studyloom.winner.prediction.network import Network, load_network
from studyloom.winner.prediction.predict import predict

from studyloom.data import Picture, Sound
from studyloom.data.sources import ASSET, Embedded
from studyloom.data.transform import InputRange
from studyloom.errors import ConfigError, PredictError
from studyloom.models import MLP
from studyloom.question.jobs import build_network
from studyloom.text import format_value
from studyloom.training.checkpoint import save_weights
from studyloom.winner import loading
from studyloom.winner.predictor import Predictor


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


def test_a_colour_picture_of_a_grey_network_is_read_as_grey(run_dir, digits, tmp_path):
    Image.fromarray(digits[0]).save(tmp_path / "grey.png")
    Image.fromarray(digits[0]).convert("RGBA").save(tmp_path / "colour.png")
    grey, colour = (
        read_inputs(tmp_path / name, load_network(run_dir)) for name in ("grey.png", "colour.png")
    )
    assert torch.equal(grey.rows, colour.rows)
    network = Network(MLP((3, 28, 28), 10), (3, 28, 28), Picture())
    assert read_inputs(tmp_path / "colour.png", network).rows.shape == (1, 3, 28, 28)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello", "must be a picture or an IDX file"),
        (b"\0\0\x08\x01\0\0\0\x08" + bytes(8), "magic number"),
        (
            b"\0\0\x08\x03\0\0\0\x02\0\0\0\x02\0\0\0\x02" + bytes(8),
            "must be 28 × 28 pixels, as the network takes them; got 2 × 2",
        ),
        (b"", "is empty"),
    ],
)
def test_what_is_no_image_is_named_after_the_answers_to_the_others(
    run_dir, digits, tmp_path, content, words
):
    for name in ("first.png", "last.png"):
        Image.fromarray(digits[0]).save(tmp_path / name)
    (tmp_path / "bad").write_bytes(content)
    asked = [tmp_path / name for name in ("first.png", "bad", "gone", "last.png")]
    answers = predict(load_network(run_dir), asked)
    assert [next(answers).name for _ in range(2)] == [str(asked[0]), str(asked[3])]
    with pytest.raises(PredictError) as caught:
        next(answers)
    bad, gone = caught.value.mistakes
    assert bad.startswith(f"{asked[1]}: ")
    assert words in bad
    assert gone == f"{asked[2]}: No such file or directory"


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


# Networks that are larger than their weights

LARGE = {"_target_": "torch.nn.Linear", "in_features": 200_000, "out_features": 200_000}  # 160 GB


@pytest.mark.parametrize(
    "model",
    [
        LARGE,
        LARGE | {"device": "cpu"},
        {"_target_": "torch.nn.Sequential", "_args_": [LARGE]},
        {"_target_": "torch.nn.Identity", "forgotten": LARGE},
        {"_target_": "studyloom.models.MLP", "hidden": [200_000, 200_000]},
        {
            "_target_": "torch.nn.functional.pad",
            "input": {"_target_": "torch.nn.Parameter"},
            "pad": [0, 4 * 10**10],
        },
    ],
)
def test_a_foreign_winner_yaml_takes_no_more_memory_than_its_weights_file_allows(run_dir, model):
    (run_dir / "winner.yaml").write_text(yaml.safe_dump({"model": model}))
    with pytest.raises(PredictError, match=r"winner\.yaml: model takes more than 64 MiB of memory"):
        load_network(run_dir)


def test_a_billion_small_layers_are_too_large_too(run_dir, monkeypatch):
    monkeypatch.setattr(loading, "SPARE", 2**20)  # they end sooner
    lstm = {"_target_": "torch.nn.LSTM", "input_size": 1, "hidden_size": 1, "num_layers": 10**9}
    (run_dir / "winner.yaml").write_text(yaml.safe_dump({"model": lstm}))
    with pytest.raises(
        PredictError, match=r"winner\.yaml: model takes more than \d+ MiB of memory"
    ):
        load_network(run_dir)


def test_weights_that_are_small_in_their_file_do_not_make_a_large_network(run_dir):
    lazy = {"_target_": "torch.nn.LazyLinear", "out_features": 200_000}
    (run_dir / "winner.yaml").write_text(yaml.safe_dump({"model": lazy}))
    one = torch.zeros(1)
    weights = {"weight": one.expand(200_000, 200_000), "bias": one.expand(200_000)}
    save_weights(run_dir / "winner.pt", weights)
    with pytest.raises(PredictError, match=r"model takes more than 64 MiB.*winner\.pt has"):
        load_network(run_dir)


def test_a_network_that_cannot_be_built_is_named(run_dir):
    (run_dir / "winner.yaml").write_text(yaml.safe_dump({"model": LARGE | {"in_features": -1}}))
    with pytest.raises(PredictError, match=r"winner\.yaml: model cannot be built: RuntimeError"):
        load_network(run_dir)


KINDS = [
    {"_target_": "studyloom.models.MLP", "init": "kaiming", "standardise": True},
    {"_target_": "studyloom.models.CNN", "norm": "batch", "init": "xavier"},
    {"_target_": "studyloom.models.Recurrent", "cell": "lstm", "standardise": True},
    {"_target_": "studyloom.models.Recurrent", "cell": "gru", "layers": 2},
    {"_target_": "studyloom.models.Transformer"},
    {
        "_target_": "torch.nn.Sequential",
        "_args_": [
            {"_target_": "torch.nn.BatchNorm2d", "num_features": 1},
            {"_target_": "torch.nn.Flatten"},
            {"_target_": "torch.nn.LazyLinear", "out_features": 10},
        ],
    },
]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("model", KINDS, ids=lambda model: model["_target_"])
def test_networks_of_all_kinds_get_the_weights_of_the_file_and_memory_for_them(
    run_dir, model, half
):
    network = build_network(OmegaConf.create(model), (1, 28, 28), 10)
    network.train()(torch.randn(4, 1, 28, 28))  # what is lazy is made, and buffers change
    state = {k: v.half() if half else v for k, v in network.state_dict().items()}
    save_weights(run_dir / "winner.pt", state)
    (run_dir / "winner.yaml").write_text(yaml.safe_dump({"model": model}))
    loaded = load_network(run_dir).model
    assert {tensor.device.type for tensor in loaded.state_dict().values()} == {"cpu"}
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name].to(tensor.dtype)), name


class Demanding(torch.nn.Module):
    """A network that looks at its numbers when it is built, and has more than it saves."""

    def __init__(self, shape, outputs):
        super().__init__()
        self.first = torch.nn.Linear(math.prod(shape), outputs)
        self.tied = self.first
        self.scale = float(torch.linspace(0, 1, outputs)[-1])
        self.register_buffer("mask", torch.zeros(5000, 5000), persistent=False)

    def forward(self, inputs):
        return self.scale * self.tied(inputs.flatten(1))


def test_a_network_of_the_user_s_own_may_be_what_pytorch_cannot_build_without_memory(run_dir):
    network = Demanding((1, 28, 28), 10)
    save_weights(run_dir / "winner.pt", network.state_dict())
    (run_dir / "winner.yaml").write_text(f"model: {{_target_: {__name__}.Demanding}}\n")
    inputs = torch.randn(2, 1, 28, 28)
    loaded = load_network(run_dir, [__name__])
    torch.testing.assert_close(loaded(inputs), network(inputs).softmax(1))


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


class Tokens(torch.nn.Module):
    """A network that takes whole numbers alone."""

    def __init__(self, shape, outputs):
        super().__init__()
        self.embedding = torch.nn.EmbeddingBag(10, outputs)

    def forward(self, inputs):
        return self.embedding(inputs)


def test_a_network_that_begins_with_an_embedding_gets_whole_numbers(tabular, tmp_path):
    network = Tokens((2,), 2)
    save_weights(tabular / "winner.pt", network.state_dict())
    (tabular / "winner.yaml").write_text(f"model: {{_target_: {__name__}.Tokens}}\n")
    facts = json.loads((tabular / "winner.json").read_text())
    facts["data"] |= {"dtype": "int64", "names": [], "columns": []}
    (tabular / "winner.json").write_text(json.dumps(facts))
    np.save(tmp_path / "words.npy", np.array([[1, 9], [0, 3]]))
    answers = [*predict(load_network(tabular, [__name__]), [tmp_path / "words.npy"])]
    expected = network(torch.tensor([[1, 9], [0, 3]])).argmax(1).tolist()
    assert [answer.label for answer in answers] == expected
    facts["data"]["dtype"] = "complex64"
    (tabular / "winner.json").write_text(json.dumps(facts))
    with pytest.raises(PredictError, match="cannot be used"):
        load_network(tabular, [__name__])


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
        ("a.csv", b"size,age\n1,x\n", "line 2 must have 2 fields, and numbers for size, age"),
        ("a.csv", b"size,age\n", "must hold at least one line of numbers"),
        ("a.csv", b"\xff\xfe\x00", r"must be a \.npy file or a CSV file"),
        ("a.npy", b"\x93NUMPY", r"must be a \.npy file of numbers"),
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
    with pytest.raises(
        PredictError, match=r"must be a \.npy file of real numbers, and holds object"
    ):
        list(predict(load_network(tabular), [tmp_path / "objects.npy"]))


# Pictures of all kinds


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A run directory, of a network that has learnt the digits."""
    folder = tmp_path_factory.mktemp("reader")
    split = Embedded().train()
    inputs = torch.cat([split.inputs.flatten(1), torch.ones(len(split), 1)], 1).double()
    classes = torch.nn.functional.one_hot(split.targets).double()
    # Ridge regression, since an optimizer of torch takes four seconds to import.
    gram = inputs.T @ inputs + 100 * torch.eye(785, dtype=torch.float64)
    weights = (10 * torch.linalg.solve(gram, inputs.T @ classes)).float().T
    layer = {"1.weight": weights[:, :784].clone(), "1.bias": weights[:, 784].clone()}
    save_weights(folder / "winner.pt", layer)
    (folder / "winner.yaml").write_text("model: {_target_: studyloom.models.MLP, hidden: []}\n")
    facts = {"shape": [1, 28, 28], "outputs": 10, "mean": 0.1307, "std": 0.3081}
    facts |= {"inputs": asdict(InputRange.of(split))}
    facts |= {"transform": {"_target_": "studyloom.data.Picture"} | asdict(Embedded().transform)}
    (folder / "winner.json").write_text(json.dumps({"data": facts}))
    return folder


def seven(size=200, ink=0, paper=255):
    """Draws a seven."""
    page = Image.new("L", (size, size), paper)
    corners = [(0.28, 0.2), (0.72, 0.2), (0.45, 0.82)]
    line = [(x * size, y * size) for x, y in corners]
    ImageDraw.Draw(page).line(line, fill=ink, width=max(2, size // 12), joint="curve")
    return page


def drawn(folder):
    """Writes that seven in all ways, and returns the paths with the words that must be said."""
    page, ink = seven(), Image.eval(seven(), lambda level: 255 - level)
    clear = Image.new("L", page.size, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.array(page).astype(np.uint16) * 257)
    wide = Image.new("L", (400, 200), 255)
    wide.paste(page, (30, 0))
    photo = Image.new("RGB", (3000, 2000), (235, 230, 220))
    photo.paste(seven(900, 40, 230).convert("RGB"), (700, 400))
    empty = Image.new("L", page.size, 255)
    frames = {"save_all": True, "append_images": [empty]}
    turned = page.transpose(Image.Transpose.ROTATE_90)
    inverted, on_white = ("inverted: white background",), "transparent parts laid on white"
    made = {
        "black.png": (page, {}, inverted),
        "small.png": (seven(28), {}, inverted),
        "white.png": (seven(200, 255, 0), {}, ("200 × 200 pixels",)),
        "alpha.png": (Image.merge("RGBA", (clear, clear, clear, ink)), {}, (on_white, *inverted)),
        "light.png": (Image.merge("LA", (empty, ink)), {}, ("transparent parts laid on black",)),
        "grey-alpha.png": (Image.merge("LA", (clear, ink)), {}, (on_white, *inverted)),
        "deep.png": (deep, {}, inverted),
        "float.tiff": (Image.fromarray((np.array(page) / 255).astype(np.float32)), {}, inverted),
        "palette.png": (page.convert("P"), {}, inverted),
        "bits.png": (page.convert("1"), {}, inverted),
        "cmyk.jpg": (page.convert("CMYK"), {}, inverted),
        "turned.jpg": (turned, {"exif": exif}, ("turned upright", *inverted)),
        "frames.gif": (page, frames, ("first of several frames", *inverted)),
        "frames.webp": (page, frames, ("first of several frames", *inverted)),
        "wide.png": (wide, {}, ("400 × 200 pixels", *inverted)),
        "photo.jpg": (photo, {}, ("3000 × 2000 pixels", *inverted)),
    }
    for name, (image, settings, _) in made.items():
        image.save(folder / name, **settings)
    return {folder / name: words for name, (_, _, words) in made.items()}


def test_a_seven_is_a_seven_in_every_kind_of_picture_and_what_was_done_is_said(reader, tmp_path):
    asked = drawn(tmp_path)
    answers = list(predict(load_network(reader), [*asked]))
    assert {answer.name: answer.label for answer in answers} == {str(path): 7 for path in asked}
    for answer, words in zip(answers, asked.values(), strict=True):
        assert all(word in answer.note for word in words), answer
        assert "unlike" not in answer.note, answer
        assert str(answer).endswith(f"\t{answer.note}")


def test_an_image_is_answered_alike_at_each_scale_from_a_file_and_from_python(
    reader, digits, tmp_path
):
    image, network = digits[7], load_network(reader)
    scales = {
        "bytes": image,
        "words": image.astype(np.uint16) * 257,
        "whole": image.astype(np.int64),
        "floats": image.astype(np.float64),
        "unit": image / 255,
        "single": image[None].astype(np.float32) / 255,
        "columns": np.asfortranarray(image),
        "inputs": ((image / 255 - 0.1307) / 0.3081)[None].astype(np.float32),
    }
    for name, array in scales.items():
        np.save(tmp_path / f"{name}.npy", array)
    answers = list(predict(network, [tmp_path / f"{name}.npy" for name in scales]))
    assert {answer.label for answer in answers} == {answers[0].label}
    assert [answer.confidence for answer in answers] == pytest.approx(
        [answers[0].confidence] * len(scales), abs=1e-4
    )
    notes = dict(zip(scales, (answer.note for answer in answers), strict=True))
    assert notes["bytes"] == notes["inputs"] == ""
    assert notes["unit"] == "numbers taken as pixels from 0 to 1"
    assert notes["words"] == "numbers taken as pixels from 0 to 65535"
    for name, array in scales.items():
        asked = (
            torch.from_numpy(np.ascontiguousarray(array).astype(np.int64))
            if (name == "words")
            else array
        )
        prediction = Predictor(network).predict(asked)
        assert prediction.classes.tolist() == [answers[0].label]
        assert prediction.notes == (notes[name],)


def test_what_is_unlike_the_training_data_is_said_beside_its_answer(reader, digits, tmp_path):
    np.save(tmp_path / "other-scale.npy", digits[3][None] / 127.5 - 1)
    Image.new("L", (28, 28), 0).save(tmp_path / "empty.png")
    scaled, empty = predict(
        load_network(reader), [tmp_path / "other-scale.npy", tmp_path / "empty.png"]
    )
    assert scaled.note.startswith("unlike the training data: values -1.0000 to 1.0000 (there -0.42")
    assert empty.note.startswith("unlike the training data: mean -0.4242")


def test_a_winner_of_before_knows_its_own_digits_and_says_what_it_assumes_of_others(
    reader, tmp_path
):
    seven().save(tmp_path / "seven.png")
    facts = json.loads((reader / "winner.json").read_text())["data"]
    for key in ("inputs", "transform"):
        facts.pop(key)
    old = tmp_path / "old"
    shutil.copytree(reader, old)
    (old / "winner.json").write_text(json.dumps({"data": facts}))
    (answer,) = predict(load_network(old), [tmp_path / "seven.png"])
    assert answer.note.startswith("pixels scaled to -0.4242 to 2.8215, since the data source does")
    model = (old / "winner.yaml").read_text()
    (old / "winner.yaml").write_text(f"{model}data: {{_target_: studyloom.data.Embedded}}\n")
    (answer,) = predict(load_network(old), [tmp_path / "seven.png"])
    assert (answer.label, answer.note[:8]) == (7, "inverted")
    asked = torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "asked.npy", asked.numpy())
    network = load_network(old)
    (answer,) = predict(network, [tmp_path / "asked.npy"])
    assert answer.confidence == pytest.approx(float(network(asked[None]).max()))  # as they are
    assert answer.note.startswith("numbers taken as inputs and not as pixels: the winner is")


# A data source of the user's own


def own(reader, tmp_path, transform, **changes):
    """Copies that winner, as if a function of the user's own had loaded the digits."""
    folder = tmp_path / "own"
    shutil.copytree(reader, folder)
    facts = json.loads((folder / "winner.json").read_text())["data"]
    facts |= {"transform": transform, "mean": 0.0, "std": 1.0, **changes}
    (folder / "winner.json").write_text(json.dumps({"data": facts}))
    return folder


def halve(picture, divisor):
    """What a user's own source may have as its transform."""
    small = torch.nn.functional.interpolate(picture[None].float() / divisor, (28, 28))[0]
    return (1 - small - 0.1307) / 0.3081


HALVE = {"_target_": f"{__name__}.halve", "_partial_": True, "divisor": 255}


def test_pictures_are_refused_if_nobody_says_how_they_become_inputs(reader, digits, tmp_path):
    seven().save(tmp_path / "seven.png")
    network = load_network(own(reader, tmp_path, None))
    with pytest.raises(PredictError, match="does not say how a picture becomes an input; name it"):
        list(predict(network, [tmp_path / "seven.png"]))
    np.save(tmp_path / "loaded.npy", Embedded().test().inputs[:3].numpy())
    answers = list(predict(network, [tmp_path / "loaded.npy"]))  # as `load` returns them
    assert [answer.note for answer in answers] == [""] * 3


def test_a_function_of_the_user_s_own_makes_the_inputs_if_it_is_trusted(reader, tmp_path):
    seven(56).save(tmp_path / "seven.png")
    folder = own(reader, tmp_path, HALVE)
    with pytest.raises(ConfigError, match="not among the code that a configuration from elsewhere"):
        load_network(folder)
    network = load_network(folder, [__name__])
    assert isinstance(network.transform, functools.partial)
    made = read_inputs(tmp_path / "seven.png", network).rows[0]
    pixels = torch.from_numpy(np.array(seven(56)))[None]
    assert torch.equal(made, halve(pixels, divisor=255))


@pytest.mark.parametrize("dtype", [np.uint16, np.int64, np.int16])
def test_whole_numbers_reach_a_function_of_the_user_s_own_as_pixels_and_never_wrap(
    reader, tmp_path, dtype
):
    network = load_network(own(reader, tmp_path, HALVE), [__name__])
    levels = np.arange(784, dtype=dtype).reshape(28, 28) % 256
    np.save(tmp_path / "bytes.npy", levels)
    inputs = read_inputs(tmp_path / "bytes.npy", network)
    assert torch.equal(inputs.rows[0], halve(torch.from_numpy(levels.astype(np.uint8))[None], 255))
    assert inputs.done == []
    deep = np.arange(784, dtype=dtype).reshape(28, 28) * 41  # to 32103
    np.save(tmp_path / "words.npy", deep)
    inputs = read_inputs(tmp_path / "words.npy", network)
    reduced = torch.from_numpy(deep.astype(np.float32) / 257).round().to(torch.uint8)
    assert torch.equal(inputs.rows[0], halve(reduced[None], 255))
    assert inputs.done == ["numbers taken as pixels from 0 to 65535"]


@pytest.mark.parametrize("transform", [HALVE, {"_target_": "studyloom.data.Picture"}])
@pytest.mark.parametrize("level", [-1, 65536])
def test_whole_numbers_that_are_no_pixels_are_refused(reader, tmp_path, transform, level):
    network = load_network(own(reader, tmp_path, transform), [__name__])
    np.save(tmp_path / "none.npy", np.full((28, 28), level, np.int32))
    with pytest.raises(PredictError, match=f"must be from 0 to 65535; got {level} to {level}"):
        read_inputs(tmp_path / "none.npy", network)


def test_a_picture_of_whole_numbers_is_black_where_all_are_near_0(reader, tmp_path):
    network = load_network(reader)
    dark = np.eye(28, dtype=np.uint8)
    np.save(tmp_path / "whole.npy", dark)
    np.save(tmp_path / "unit.npy", dark / 255)
    whole, unit = (read_inputs(tmp_path / f"{name}.npy", network) for name in ("whole", "unit"))
    assert torch.allclose(whole.rows, unit.rows)
    assert "numbers taken as pixels from 0 to 1" not in whole.note(0)


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        ({"_target_": "os.system", "command": "touch CANARY"}, "not among the code"),
        ({"_target_": "studyloom.data.Loaded", "load": 1, "validation": 2}, "is no function"),
        ("os.system", "must have a _target_"),
        (LARGE, r"winner\.json: data\.transform takes more than 64 MiB of memory"),
    ],
)
def test_a_hostile_transform_is_refused_and_not_called(reader, tmp_path, transform, words):
    canary = tmp_path / "canary"
    if isinstance(transform, dict) and "command" in transform:
        transform = transform | {"command": f"touch {canary}"}
    with pytest.raises((ConfigError, PredictError), match=words):
        load_network(own(reader, tmp_path, transform))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": "wide"}, "cannot be used"),
        ({"shape": None}, "cannot be used"),
        ({"outputs": [3]}, "cannot be used"),
        ({"inputs": {"low": [0]}}, "cannot be used"),
        ({"inputs": {"low": [0, 1], "high": [2, 3], "means": [0, 1]}}, "does not fit data.shape"),
    ],
)
def test_a_damaged_answer_is_named(reader, tmp_path, change, words):
    with pytest.raises(PredictError, match=words):
        load_network(own(reader, tmp_path, None, **change))


# Sounds


@pytest.fixture
def hearing(tmp_path):
    """A run directory, of a network that takes spectrograms."""
    folder = tmp_path / "hearing"
    folder.mkdir()
    torch.manual_seed(0)
    save_weights(folder / "winner.pt", MLP((1, 24, 32), 10, hidden=[]).state_dict())
    (folder / "winner.yaml").write_text("model: {_target_: studyloom.models.MLP, hidden: []}\n")
    facts = {"shape": [1, 24, 32], "outputs": 10, "mean": 0.0, "std": 1.0, "loaded": True}
    facts |= {"kind": "float32", "transform": {"_target_": "studyloom.data.Sound"}}
    (folder / "winner.json").write_text(json.dumps({"data": facts}))
    return folder


def test_a_wav_file_is_answered_as_its_input_is_and_what_was_done_is_said(hearing, tmp_path):
    (tmp_path / "word.wav").write_bytes(wav(sweep(0.5, 300, 1800, 44100), 44100, channels=2))
    np.save(tmp_path / "word.npy", Sound()((tmp_path / "word.wav").read_bytes())[0].numpy())
    network = load_network(hearing)
    heard, given = predict(network, [tmp_path / "word.wav", tmp_path / "word.npy"])
    assert heard.note == "2 channels averaged; 44100 samples a second, resampled to 8000"
    assert (heard.label, heard.confidence) == (given.label, given.confidence)


def test_what_is_no_sound_is_named_after_the_answers_to_the_others(hearing, tmp_path):
    (tmp_path / "word.wav").write_bytes(wav(sweep(0.5, 300, 1800, 8000), 8000))
    contents = {name: content for name, (content, _) in hostile_wavs().items()}
    asked = hostile.write(tmp_path / "files", contents)
    answers = predict(load_network(hearing), [tmp_path / "word.wav", *asked])
    assert next(answers).note == ""
    with pytest.raises(PredictError) as caught:
        list(answers)
    for path, mistake in zip(asked, caught.value.mistakes, strict=True):
        assert mistake.startswith(f"{path}: ")
        assert len(mistake.splitlines()) == 1


# Hostile files


def test_every_hostile_file_is_one_line_and_nothing_in_it_is_executed(reader, tabular, tmp_path):
    canary = tmp_path / "canary"
    files = hostile.pictures() | hostile.idx_files() | hostile.arrays(canary) | hostile.bombs()
    asked = hostile.write(tmp_path / "files", files) + hostile.nodes(tmp_path / "nodes")
    named = {
        reader: asked,
        tabular: hostile.write(tmp_path / "tables", hostile.tables()),
    }
    for run_dir, paths in named.items():
        with pytest.raises(PredictError) as caught:
            list(predict(load_network(run_dir), paths))
        for path, mistake in zip(paths, caught.value.mistakes, strict=True):
            assert mistake.startswith(f"{path}: ")
            assert len(mistake.splitlines()) == 1
            assert len(mistake) < len(str(path)) + 220
    assert not canary.exists()


def test_a_table_with_a_byte_order_mark_is_read(tabular, tmp_path):
    (tmp_path / "excel.csv").write_bytes(
        "\ufeffsize;age".replace(";", ",").encode() + b"\r\n9,1\r\n"
    )
    assert [a.word for a in predict(load_network(tabular), [tmp_path / "excel.csv"])] == ["small"]


def test_what_a_file_is_its_content_says_and_not_its_name(reader, digits, tmp_path):
    Image.fromarray(digits[3]).save(tmp_path / "picture.npy", "PNG")
    np.save(tmp_path / "array.npy", digits[3])
    (tmp_path / "array.npy").rename(tmp_path / "array.png")
    first, second = predict(
        load_network(reader), [tmp_path / "picture.npy", tmp_path / "array.png"]
    )
    assert first.confidence == pytest.approx(second.confidence, abs=1e-5)


def test_a_name_with_control_characters_is_shown_with_their_escapes(reader, digits, tmp_path):
    path = tmp_path / "a\x1b[2J\nerror: b\t\udcff.png"
    Image.fromarray(digits[3]).save(str(path), "PNG")
    (answer,) = predict(load_network(reader), [path])
    assert answer.name == f"{tmp_path}/a\\x1b[2J\\nerror: b\\t\\udcff.png"
