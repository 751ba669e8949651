"""The files of a result belong together, and its numbers say what they are."""

import json

import pytest
from results import document_of, result_of

from studyloom.errors import PredictError
from studyloom.views.words import (
    describe_accepted_files,
    describe_stored_result,
    format_mean,
)
from studyloom.winner.result import Result

FILES = {"winner.pt": b"weights", "winner.yaml": b"model: {}\n", "model_card.md": b"# A card\n"}
TEST = {"winner": {"mean": 0.5}, "difference": {"mean": 0.02, "interval": [0.01, 0.03]}}


def test_a_written_result_is_read_back_and_a_malformed_one_is_not(tmp_path):
    result = result_of(test=TEST, data={"shape": [2]}).write(tmp_path, FILES)
    assert Result.read(tmp_path) == result
    assert result.document()["test"]["difference"]["interval"] == [0.01, 0.03]
    for content in ("", "{", "[]", '{"study": 7}'):
        (tmp_path / "winner.json").write_text(content)
        assert Result.read(tmp_path) is None
        with pytest.raises(PredictError, match=f"; to write it again: studyloom winner {tmp_path}"):
            Result.load(tmp_path)


def test_fields_of_an_earlier_studyloom_are_ignored(tmp_path):
    left = [{"trial": 3, "seeds": 1, "cause": "behind", "reason": "only the better half went on"}]
    race = {"entrants": 4, "trainings": 8, "budget": 9, "seeds": 3, "last": [0, 1], "left": left}
    (tmp_path / "winner.json").write_text(json.dumps(document_of(race=race)))
    assert Result.read(tmp_path) == result_of()


def test_a_result_with_a_missing_file_or_a_file_of_another_one_is_refused(tmp_path):
    for name in FILES:
        result = result_of().write(tmp_path, FILES)
        for content in (b"another", None):
            (tmp_path / name).unlink()
            if content is not None:
                (tmp_path / name).write_bytes(content)
            assert Result.read(tmp_path) is None
            with pytest.raises(PredictError, match=f"{name} did not come with winner.json"):
                result.check_whole(tmp_path, name)


def test_a_write_that_is_killed_over_another_result_is_noticed(tmp_path, monkeypatch):
    result_of(study="before").write(tmp_path, FILES)

    def write_until_killed(path, *arguments, **options):
        if path.name != "winner.json":
            raise KeyboardInterrupt
        path.write_text(*arguments)

    monkeypatch.setattr("studyloom.winner.result.write_whole", write_until_killed)
    changed = {name: content + b" again" for name, content in FILES.items()}
    with pytest.raises(KeyboardInterrupt):
        result_of().write(tmp_path, changed)
    assert Result.read(tmp_path) is None


def test_no_view_shows_a_spread_if_the_training_ignores_the_seed():
    same = {"winner": {"mean": 0.9, "std": 0.0, "values": [0.9, 0.9, 0.9]}}
    result = result_of(test=same)
    assert format_mean(result.test.winner) == "0.9000"
    assert describe_stored_result(result.in_short()) == "test accuracy 0.9000, trial 0"


def test_accepted_files_are_those_that_the_transform_reads():
    facts = {"shape": [5], "transform": {"_target_": "mine.Letters"}, "has_reader": True}
    assert describe_accepted_files(result_of(data=facts).data) == "files that mine.Letters reads"
