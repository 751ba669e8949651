"""Files that a class of the user's own reads for a winner: texts, and what else is no picture."""

import json

import numpy as np
import pytest
import torch
from studyloom.winner.model_card import accepted_files
from studyloom.winner.prediction.network import load_network
from studyloom.winner.prediction.predict import predict

from studyloom.data import Reader
from studyloom.errors import ConfigError, PredictError
from studyloom.models import MLP
from studyloom.training.checkpoint import save_weights


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
def run_dir(tmp_path):
    """A run directory, of a network whose inputs were whole numbers of a Dataset."""
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(0)
    save_weights(folder / "winner.pt", MLP((5,), 3, hidden=[]).state_dict())
    (folder / "winner.yaml").write_text("model: {_target_: studyloom.models.MLP, hidden: []}\n")
    seen = {"low": [0.0] * 5, "high": [1.0] * 5, "means": [0.0, 1.0]}
    facts = {"shape": [5], "outputs": 3, "mean": 0.0, "std": 1.0, "loaded": True, "kind": "int64"}
    facts |= {"transform": {"_target_": f"{__name__}.Letters"}, "inputs": seen}
    (folder / "winner.json").write_text(json.dumps({"data": facts}))
    return folder


def test_each_input_of_a_file_has_an_answer_and_what_was_done_to_it(run_dir, tmp_path):
    (tmp_path / "words").write_text("aeiou\no o o o\nxyz\n")
    np.save(tmp_path / "words.npy", [[1, 1, 1, 1, 1], [0, 0, 0, 4, 0], [0, 0, 0, 0, 0]])
    network = load_network(run_dir, [__name__])
    read, given = (list(predict(network, [tmp_path / name])) for name in ("words", "words.npy"))
    assert [answer.note for answer in read] == ["", "not only letters", ""]
    assert [answer.confidence for answer in read] == [answer.confidence for answer in given]
    assert read[1].name == f"{tmp_path / 'words'}[1]"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "'utf-8' codec can't decode byte 0xff"),  # a ValueError: as it is
        (b"bug", "data.transform: KeyError: 'bug'"),
        (b"flat", "winner.json: data.transform does not make (5,) of a file"),
        (b"short\nline", "winner.json: data.transform does not make (5,) of a file"),
        (b"", "it is empty"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(run_dir, tmp_path, content, said):
    (tmp_path / "asked").write_bytes(content)
    with pytest.raises(PredictError) as caught:
        list(predict(load_network(run_dir, [__name__]), [tmp_path / "asked"]))
    assert str(caught.value).startswith(f"{tmp_path / 'asked'}: {said}")


def test_a_reader_is_called_only_if_it_is_trusted(run_dir):
    with pytest.raises(ConfigError, match="not among the code that a configuration from elsewhere"):
        load_network(run_dir)


def test_the_model_card_says_who_reads_the_files():
    facts = {"shape": [5], "columns": [], "transform": {"_target_": "mine.Letters"}, "reads": True}
    assert accepted_files(facts) == "files that mine.Letters reads"
