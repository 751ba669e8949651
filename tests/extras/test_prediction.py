"""Predictions of a stored winner for files of all kinds; nothing in its files is executed."""

import functools
import math
import os
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from results import write_winner

from studyloom.cli import main
from studyloom.data import Reader
from studyloom.data.sources import ASSET, Embedded
from studyloom.data.transform import InputRange
from studyloom.errors import ConfigError, PredictError
from studyloom.extras.predict import input_files
from studyloom.extras.predict.input_files import InputFiles
from studyloom.extras.predict.predicting import predict
from studyloom.files import mark_trusted
from studyloom.models import MLP
from studyloom.training.checkpoint import save_weights
from studyloom.views.words import format_prediction
from studyloom.winner.predictor import Predictor, load_network

IMAGE = {"_target_": "studyloom.data.Image"}
FACTS = {"shape": [1, 28, 28], "outputs": 10, "mean": 0.1307, "std": 0.3081, "transform": IMAGE}
MODEL = "studyloom.models.MLP"


@pytest.fixture(scope="module")
def digits_read(tmp_path_factory):
    """Facts and weights of a network that has learnt the digits."""
    split = Embedded().train()
    inputs = torch.cat([split.inputs.flatten(1), torch.ones(len(split), 1)], 1).double()
    classes = torch.nn.functional.one_hot(split.targets).double()
    # Ridge regression, since an optimizer of torch takes four seconds to import.
    gram = inputs.T @ inputs + 100 * torch.eye(785, dtype=torch.float64)
    weights = (10 * torch.linalg.solve(gram, inputs.T @ classes)).float().T
    layer = {"1.weight": weights[:, :784].clone(), "1.bias": weights[:, 784].clone()}
    transform = IMAGE | asdict(Embedded().transform)
    return layer, FACTS | {"input_range": asdict(InputRange.measure(split)), "transform": transform}


@pytest.fixture
def reader(digits_read, tmp_path):
    """A run directory, of that network."""
    layer, facts = digits_read
    return write_winner(tmp_path / "reader", {"_target_": MODEL, "hidden": []}, layer, **facts)


@pytest.fixture
def digits():
    with np.load(ASSET) as arrays:
        return arrays["test_images"][:20]


def test_an_image_and_an_array_are_classified_as_the_data_set_would_be(reader, digits, tmp_path):
    model = MLP((1, 28, 28), 10, hidden=[])
    model.load_state_dict(torch.load(reader / "winner.pt", weights_only=True))
    inputs = Embedded().test().inputs[:20]
    expected = model.eval()(inputs).detach().softmax(1).max(1)
    Image.fromarray(digits[3]).save(tmp_path / "three.png")
    np.save(tmp_path / "many.npy", digits)
    paths = [tmp_path / "three.png", tmp_path / "many.npy"]
    first, *answers = predict(load_network(reader), paths)
    assert [answer.label for answer in answers] == expected.indices.tolist()
    assert (first.name, first.label) == (str(paths[0]), int(expected.indices[3]))
    assert answers[3].name == f"{paths[1]}[3]"
    assert first.confidence == pytest.approx(float(expected.values[3]), abs=1e-5)


def test_files_without_an_image_are_named_after_the_other_predictions(reader, digits, tmp_path):
    for name in ("first.png", "last.png"):
        Image.fromarray(digits[0]).save(tmp_path / name)
    contents = {
        "words": (b"hello", "must be an image or a .npy file"),
        "idx3-ubyte": (b"\0\0\x08\x03" + bytes(12), "must be an image or a .npy file"),
        "empty": (b"", "is empty"),
    }
    for name, (content, _) in contents.items():
        (tmp_path / name).write_bytes(content)
    asked = [tmp_path / name for name in ("first.png", *contents, "gone", "last.png")]
    answers = predict(load_network(reader), asked)
    assert [next(answers).name for _ in range(2)] == [str(asked[0]), str(asked[-1])]
    with pytest.raises(PredictError) as caught:
        next(answers)
    said = [words for _, words in contents.values()] + ["No such file or directory"]
    for path, words, mistake in zip(asked[1:-1], said, caught.value.errors, strict=True):
        assert mistake.startswith(f"{path}: ")
        assert words in mistake


def test_a_hostile_winner_calls_nothing(tmp_path):
    canary = tmp_path / "canary"
    touch = {"_target_": "os.system", "command": f"touch {canary}"}
    state = MLP((1, 28, 28), 10, hidden=[]).state_dict()
    for model in (touch, {"_target_": MODEL, "hidden": [touch]}):
        with pytest.raises(ConfigError, match=r"_target_"):
            load_network(write_winner(tmp_path / "run", model, state, **FACTS))
    hostile = FACTS | {"transform": touch}
    own = write_winner(tmp_path / "run", {"_target_": MODEL, "hidden": []}, state, **hostile)
    with pytest.raises(ConfigError, match="not among the code"):
        load_network(own)
    assert not canary.exists()


def test_a_missing_winner_or_weights_of_another_network_are_an_error(tmp_path):
    words = r"no winner\.json; the study writes it when its search has ended"
    with pytest.raises(PredictError, match=words):
        load_network(tmp_path)
    other = MLP((1, 28, 28), 10, hidden=[9]).state_dict()
    folder = write_winner(tmp_path, {"_target_": MODEL, "hidden": [8]}, other, **FACTS)
    with pytest.raises(PredictError, match=r"winner\.pt: .*size mismatch"):
        load_network(folder)
    save_weights(folder / "winner.pt", MLP((1, 28, 28), 10, hidden=[8]).state_dict())
    with pytest.raises(PredictError, match=r"winner\.pt did not come with winner\.json"):
        load_network(folder)
    (folder / "winner.json").write_text('{"data": {}}')
    with pytest.raises(PredictError, match=r"winner\.json: cannot be used"):
        load_network(folder)


@pytest.mark.parametrize("name", ["winner.json", "winner.yaml", "winner.pt", ".hydra/hydra.yaml"])
def test_a_folder_whose_files_never_end_is_refused_at_once(name, tmp_path, capsys):
    state = MLP((1, 28, 28), 10, hidden=[8]).state_dict()
    write_winner(tmp_path, {"_target_": MODEL, "hidden": [8]}, state, **FACTS)
    (tmp_path / ".hydra").mkdir(exist_ok=True)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)  # whoever opens it waits for a writer
    for command in (["predict", str(tmp_path), __file__], ["compress", str(tmp_path)]):
        assert main(command) != 0
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.count("error: ") == 2


# Tables and arrays


@pytest.fixture
def tabular(tmp_path):
    """A run directory, of a network that predicts two named classes from two named columns."""
    model = MLP((2,), 2, hidden=[], standardize=True)
    weights = {"2.weight": torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), "2.bias": torch.zeros(2)}
    state = model.state_dict() | weights | {"0.mean": torch.tensor([10.0, 0.0])}
    section = {"_target_": MODEL, "hidden": [], "standardize": True}
    facts = {
        "shape": [2],
        "outputs": 2,
        "class_names": ["large", "small"],
        "columns": ["size", "age"],
    }
    return write_winner(tmp_path / "tabular", section, state, **facts)


def test_a_table_is_read_by_column_names_and_an_array_by_their_order(tabular, tmp_path):
    (tmp_path / "rows.csv").write_text("name,age,size\na,1,12\nb,2,8\n")
    np.save(tmp_path / "one.npy", np.array([12, 0]))
    np.save(tmp_path / "several.npy", np.array([[12.0, 0.0], [8.0, 0.0]]))
    asked = [tmp_path / name for name in ("rows.csv", "one.npy", "several.npy")]
    answers = list(predict(load_network(tabular), asked))
    assert [answer.class_name for answer in answers] == [
        "large",
        "small",
        "large",
        "large",
        "small",
    ]
    standardized = f"{1 / (1 + math.exp(-4)):.4f}"
    assert format_prediction(answers[0]).split("\t")[1:] == ["large", standardized], (
        "as in training"
    )


def test_a_network_of_one_logit_gives_its_value_and_no_class(tmp_path):
    """A softmax over one column is 1 for every input."""
    weights = {"1.weight": torch.tensor([[1.0, -1.0]]), "1.bias": torch.zeros(1)}
    facts = {"shape": [2], "outputs": 1, "class_names": ["no", "yes"]}
    folder = write_winner(tmp_path, {"_target_": MODEL, "hidden": []}, weights, **facts)
    np.save(tmp_path / "rows.npy", np.array([[3.0, 1.0], [1.0, 3.0]]))
    answers = [*predict(load_network(folder), [tmp_path / "rows.npy"])]
    assert [(each.label, each.values) for each in answers] == [(None, (2.0,)), (None, (-2.0,))]
    told = Predictor(load_network(folder)).predict([[3.0, 1.0]])
    assert (told.classes, told.values.tolist()) == (None, [[2.0]])


def test_a_trusted_run_directory_needs_no_further_trust(own, tmp_path):
    folder = own(HALVE)
    with pytest.raises(ConfigError, match="not among the code"):
        load_network(folder)
    mark_trusted(folder)
    assert isinstance(load_network(folder).form.transform, functools.partial)
    folder.rename(tmp_path / "moved")  # as if it came from elsewhere
    with pytest.raises(ConfigError, match="not among the code"):
        load_network(tmp_path / "moved")


def test_a_file_without_the_needed_numbers_is_refused_in_a_line(tabular, tmp_path, monkeypatch):
    np.save(tmp_path / "wide.npy", np.zeros((4, 3)))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "infinite.npy", np.array([[0.0, np.inf]]))
    (tmp_path / "folder").mkdir()
    contents = {
        "lacks.csv": b"age\n1\n",
        "letter.csv": b"size,age\n1,x\n",
        "none.csv": b"size,age\n",
        "utf16.csv": b"\xff\xfe\x00",
        "large.csv": b"size,age\n" + b"1,2\n" * 2**18,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    words = {
        "wide.npy": "must hold an input of 2 numbers, or several; got 4 × 3",
        "objects.npy": "allow_pickle=False",
        "infinite.npy": "must be finite; input 0 holds",
        "folder": "Is a directory",
        "lacks.csv": "must have one column size",
        "letter.csv": "line 2 must have 2 fields, and numbers for size, age",
        "none.csv": "must hold at least one line of numbers",
        "utf16.csv": "must be a .npy file or a CSV file",
        "large.csv": "must have at most 1 MiB; divide it",
    }
    monkeypatch.setattr(input_files, "MAX_BYTES", 2**20)
    with pytest.raises(PredictError) as caught:
        list(predict(load_network(tabular), [tmp_path / name for name in words]))
    for (name, said), mistake in zip(words.items(), caught.value.errors, strict=True):
        assert mistake.startswith(f"{tmp_path / name}: ")
        assert said in mistake
        assert len(mistake.splitlines()) == 1


# Images of all kinds


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
    clear, empty = (Image.new("L", page.size, level) for level in (0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.array(page)
    photo = Image.new("RGB", (3000, 2000), (235, 230, 220))
    photo.paste(seven(900, 40, 230).convert("RGB"), (700, 400))
    frames = {"save_all": True, "append_images": [empty]}
    turned = page.transpose(Image.Transpose.ROTATE_90)
    inverted, on_white = "inverted: white background", "transparent parts laid on white"
    made = {
        "white.png": (seven(200, 255, 0), {}, ["200 × 200 pixels"]),
        "alpha.png": (Image.merge("RGBA", (clear, clear, clear, ink)), {}, [on_white, inverted]),
        "light.png": (Image.merge("LA", (empty, ink)), {}, ["transparent parts laid on black"]),
        "deep.png": (Image.fromarray(pixels.astype(np.uint16) * 257), {}, [inverted]),
        "float.tiff": (Image.fromarray((pixels / 255).astype(np.float32)), {}, [inverted]),
        "palette.png": (page.convert("P"), {}, [inverted]),
        "cmyk.jpg": (page.convert("CMYK"), {}, [inverted]),
        "turned.jpg": (turned, {"exif": exif}, ["turned upright", inverted]),
        "frames.gif": (page, frames, ["first of several frames", inverted]),
        "photo.jpg": (photo, {}, ["3000 × 2000 pixels", inverted]),
    }
    for name, (image, settings, _) in made.items():
        image.save(folder / name, **settings)
    return {folder / name: words for name, (_, _, words) in made.items()}


def test_a_digit_is_read_in_every_image_format_with_a_note(reader, tmp_path):
    asked = drawn(tmp_path)
    answers = list(predict(load_network(reader), [*asked]))
    assert {answer.name: answer.label for answer in answers} == {str(path): 7 for path in asked}
    for answer, words in zip(answers, asked.values(), strict=True):
        assert all(word in answer.note for word in words), answer
        assert "unlike" not in answer.note, answer
        assert format_prediction(answer).endswith(f"\t{answer.note}")


def test_predictions_for_an_image_are_equal_from_a_file_and_from_python(reader, digits, tmp_path):
    image, network = digits[7], load_network(reader)
    types = {
        "bytes": image,
        "words": image.astype(np.uint16) * 257,
        "whole": image.astype(np.int64),
        "unit": image / 255,
        "columns": np.asfortranarray(image),
    }
    for name, array in types.items():
        np.save(tmp_path / f"{name}.npy", array)
    answers = list(predict(network, [tmp_path / f"{name}.npy" for name in types]))
    assert {(answer.label, answer.note) for answer in answers} == {(answers[0].label, "")}
    assert [answer.confidence for answer in answers] == pytest.approx(
        [answers[0].confidence] * len(types), abs=1e-4
    )
    for array in types.values():
        prediction = Predictor(network).predict(array)
        assert prediction.classes.tolist() == [answers[0].label]


def test_an_input_is_read_by_its_type_and_the_winner_not_its_neighbors(reader, own, digits):
    """An image alone was scaled, and beside one with a number below 0 it was not."""
    images = torch.from_numpy(digits[:2].copy())[:, None]
    normalized = (images / 255 - 0.1307) / 0.3081
    positive = normalized[0].abs()
    loads = Predictor(load_network(own(IMAGE | {"mean": 0.1307, "std": 0.3081})))
    alone = loads.predict(positive).probabilities[0]
    beside = loads.predict(torch.stack([positive, normalized[1]])).probabilities[0]
    assert torch.allclose(alone, beside, atol=1e-6)
    expected = loads.network(positive[None]).softmax(1)[0]
    assert torch.allclose(alone, expected, atol=1e-6)
    makes = Predictor(load_network(reader))
    pages = 255 - images
    both = makes.predict(torch.cat([pages[:1], images[1:]])).probabilities[0]
    assert torch.allclose(makes.predict(pages[0]).probabilities[0], both, atol=1e-6)
    with pytest.raises(PredictError, match=r"pixels from 0 to 1, .* got -0.42"):
        makes.predict(normalized)


def test_an_input_unlike_the_training_data_has_a_note(reader, digits, tmp_path):
    np.save(tmp_path / "white.npy", 255 - digits[3][None])
    Image.new("L", (28, 28), 0).save(tmp_path / "empty.png")
    asked = [tmp_path / name for name in ("white.npy", "empty.png")]
    white, empty = predict(load_network(reader), asked)
    assert white.note.startswith("unlike the training data: mean 2.")
    assert empty.note.startswith("unlike the training data: mean −0.4242")


# A data source of the user's own


@pytest.fixture
def own(digits_read, tmp_path):
    """Makes that winner as if a function of the user's own had loaded the digits."""
    layer, facts = digits_read

    def make(transform):
        known = facts | {"transform": transform, "mean": 0.0, "std": 1.0}
        return write_winner(tmp_path / "own", {"_target_": MODEL, "hidden": []}, layer, **known)

    return make


def halve(image, divisor):
    """What a user's own source may have as its transform."""
    small = torch.nn.functional.interpolate(image[None].float() / divisor, (28, 28))[0]
    return (1 - small - 0.1307) / 0.3081


HALVE = {"_target_": f"{__name__}.halve", "_partial_": True, "divisor": 255}


def test_a_user_function_makes_the_inputs_if_it_is_trusted(own, tmp_path):
    seven(56).save(tmp_path / "seven.png")
    with pytest.raises(PredictError, match="does not say how an image becomes an input; name it"):
        list(predict(load_network(own(None)), [tmp_path / "seven.png"]))
    folder = own(HALVE)
    with pytest.raises(ConfigError, match="not among the code that an untrusted configuration"):
        load_network(folder)
    network = load_network(folder, [__name__])
    assert isinstance(network.form.transform, functools.partial)
    (made,), _ = InputFiles(network.form).read(tmp_path / "seven.png")
    pixels = torch.from_numpy(np.array(seven(56)))[None]
    assert torch.equal(made, halve(pixels, divisor=255))


def test_integers_reach_the_users_function_as_pixels_and_never_wrap(own, tmp_path):
    network = load_network(own(HALVE), [__name__])
    levels = torch.arange(784, dtype=torch.uint8).reshape(1, 28, 28)
    for dtype, factor in ((np.uint8, 1), (np.int16, 1), (np.uint16, 257)):
        np.save(tmp_path / "pixels.npy", levels.numpy().astype(dtype) * factor)
        rows, _ = InputFiles(network.form).read(tmp_path / "pixels.npy")
        assert torch.equal(rows[0], halve(levels, 255))
    for level in (-1, 256):
        np.save(tmp_path / "none.npy", np.full((28, 28), level, np.int32))
        with pytest.raises(PredictError, match=f"from 0 to 255, .* uint16; got {level} to {level}"):
            InputFiles(network.form).read(tmp_path / "none.npy")


# What a class of the user's own reads


class Letters(Reader):
    """Counts the vowels of each line; what a line is tells which mistake is made."""

    def __call__(self, content):
        lines = content.decode().splitlines()
        if "bug" in lines:
            raise KeyError("bug")
        rows = torch.tensor([[line.count(vowel) for vowel in "aeiou"] for line in lines])
        if "flat" in lines:
            rows = rows[:, :3]
        notes = ["" if line.isalpha() else "not only letters" for line in lines]
        return rows, notes[1:] if "short" in lines else notes


@pytest.fixture
def letters(tmp_path):
    """A run directory, of a network whose inputs were integers of a Dataset."""
    torch.manual_seed(0)
    state = MLP((5,), 3, hidden=[]).state_dict()
    facts = {
        "shape": [5],
        "outputs": 3,
        "from_dataset": True,
        "input_dtype": "int64",
        "has_reader": True,
    }
    facts["transform"] = {"_target_": f"{__name__}.Letters"}
    return write_winner(tmp_path / "letters", {"_target_": MODEL, "hidden": []}, state, **facts)


def test_each_input_of_a_file_has_a_prediction_and_notes(letters, tmp_path):
    """A file of which a reader makes no inputs is named."""
    path, network = tmp_path / "words", load_network(letters, [__name__])
    path.write_text("aeiou\no o o o\nxyz\n")
    np.save(tmp_path / "words.npy", [[1, 1, 1, 1, 1], [0, 0, 0, 4, 0], [0, 0, 0, 0, 0]])
    read, given = (list(predict(network, [each])) for each in (path, tmp_path / "words.npy"))
    assert [answer.note for answer in read] == ["", "not only letters", ""]
    assert [answer.confidence for answer in read] == [answer.confidence for answer in given]
    assert read[1].name == f"{path}[1]"
    shapeless = "winner.json: data.transform does not make (5,) of a file"
    for content, said in (
        ("bug", "data.transform: KeyError: 'bug'"),
        ("flat", shapeless),
        ("short\nline", shapeless),
    ):
        path.write_text(content)
        with pytest.raises(PredictError) as caught:
            list(predict(network, [path]))
        assert str(caught.value).startswith(f"{path}: {said}")


def test_a_file_is_read_by_its_content_and_not_by_its_name(reader, digits, tmp_path):
    Image.fromarray(digits[3]).save(tmp_path / "image.npy", "PNG")
    np.save(tmp_path / "array.npy", digits[3])
    (tmp_path / "array.npy").rename(tmp_path / "array.png")
    path = tmp_path / "a\x1b[2J\nerror: b\t\udcff.png"
    Image.fromarray(digits[3]).save(str(path), "PNG")
    asked = [tmp_path / "image.npy", tmp_path / "array.png", path]
    first, second, third = predict(load_network(reader), asked)
    assert first.confidence == pytest.approx(second.confidence, abs=1e-5)
    assert third.name == f"{tmp_path}/a\\x1b[2J\\nerror: b\\t\\udcff.png", (
        "no terminal is told more"
    )
