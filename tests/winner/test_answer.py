"""The files of an answer belong together, and its numbers say what they are."""

import json

import pytest

from studyloom.errors import PredictError
from studyloom.winner.answer import (
    check_whole,
    format_choice,
    format_reuse,
    format_seeds,
    format_tested,
    read_answer,
    stated_page,
    strays,
    write_answer,
)

FILES = {"winner.pt": b"weights", "winner.yaml": b"model: {}\n", "model_card.md": b"# A card\n"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"another", None])
def test_an_answer_with_a_file_of_another_one_or_without_it_is_none(tmp_path, name, content):
    answer = write_answer(tmp_path, {"study": "s"}, FILES)
    assert read_answer(tmp_path) == answer
    check_whole(tmp_path, answer)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert strays(tmp_path, answer) == [name]
    assert read_answer(tmp_path) is None
    with pytest.raises(PredictError, match=f"incomplete: {name} did not come with winner.json"):
        check_whole(tmp_path, answer, name)


def test_a_file_that_the_answer_never_had_belongs_to_another_one(tmp_path):
    """A function as the objective has no network; winner.pt is one of before."""
    (tmp_path / "winner.pt").write_bytes(b"weights")
    answer = write_answer(tmp_path, {"study": "s"}, {"winner.yaml": b"params: {}\n"})
    assert read_answer(tmp_path) == answer
    assert strays(tmp_path, answer, "winner.pt") == ["winner.pt"]


def test_an_answer_of_an_earlier_version_has_no_digests_and_is_read_as_it_is(tmp_path):
    (tmp_path / "winner.json").write_text(json.dumps({"study": "s"}))
    (tmp_path / "winner.pt").write_bytes(b"weights")
    assert read_answer(tmp_path) == {"study": "s"}
    check_whole(tmp_path, {"study": "s"}, "winner.pt", "winner.yaml")


def test_a_write_that_is_cut_short_over_an_earlier_version_s_answer_is_noticed(
    tmp_path, monkeypatch
):
    """winner.json goes first, since that of an earlier version has no digests."""
    (tmp_path / "winner.json").write_text(json.dumps({"study": "s"}))
    for name in FILES:
        (tmp_path / name).write_bytes(b"of before")

    def killed(path, *rest, **options):
        if path.name != "winner.json":
            raise KeyboardInterrupt
        path.write_text(*rest)

    monkeypatch.setattr("studyloom.winner.answer.write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        write_answer(tmp_path, {"study": "s"}, FILES)
    assert read_answer(tmp_path) is None


def test_what_a_winner_was_chosen_from_is_told_apart_from_the_whole_study():
    assert format_choice({"trials": 40}) == "chosen from 40 trials"
    assert format_choice({"trials": 40, "study_trials": 40}) == "chosen from 40 trials"
    first = "chosen from the first 40 of 60 trials"
    assert format_choice({"trials": 40, "study_trials": 60}) == first
    assert format_choice({"trials": 40, "study_trials": 40}, budget=60) == first


def test_the_spread_says_what_it_is_only_where_there_is_one():
    assert format_seeds({"values": [0.5, 0.6]}) == "± is the standard deviation over 2 seeds"
    assert format_seeds({"values": [0.5]}) == format_seeds({}) == ""


def test_what_was_reused_is_counted_and_nothing_is_said_of_none():
    reused = {"re-evaluation": [20, 20], "retraining": [0, 10]}
    assert format_reuse({"reused": reused}).endswith(": 20 of 20 re-evaluations")
    assert format_reuse({"reused": {"retraining": [0, 10]}}) == format_reuse({}) == ""


def test_a_test_of_an_earlier_answer_is_not_said_to_come_after_the_choice():
    assert format_tested({"openings": 1}) == "opened once, after the winner was chosen"
    earlier = format_tested({"openings": 1, "earlier": True})
    assert earlier.startswith("opened once, for these networks")


@pytest.mark.parametrize(
    ("command", "page"),
    [
        (["python", "-m", "studies.mnist"], True),
        (["python", "studies/mnist.py"], True),
        (["python", "-m", "studyloom", "run", "conf/mine.yaml"], True),
        (["python", "-c", "import os"], False),
        (["python", "-m", "pip", "install", "x"], False),
        (["python", "-m", "a\nmodel: {_target_: os.system}"], False),
        (["python", "a\nb.py"], False),
        (["rm", "-rf", "/"], False),
        (["python", "-m", 7], False),
        ("python -m studies.mnist", False),
        (None, False),
    ],
)
def test_winner_json_states_the_page_of_a_study_and_no_other_command(command, page):
    assert stated_page({"command": command}) == (command if page else None)
