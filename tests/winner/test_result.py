"""The files of a result belong together, and its numbers say what they are."""

import json

import pytest
from results import document_of, result_of

from studyloom.errors import PredictError
from studyloom.views.words import (
    describe_accepted_files,
    describe_choice,
    describe_difference,
    describe_reuse,
    describe_stored_result,
    describe_test_use,
    explain_choice,
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


def test_the_numbers_of_a_result_are_described_in_words():
    assert describe_choice(result_of(trials=40)) == "chosen from 40 trials"
    first = "chosen from the first 40 of 60 trials"
    assert describe_choice(result_of(trials=40, study_trials=60)) == first
    reused = {"re-evaluation": [20, 20], "final-training": [0, 10]}
    assert describe_reuse(result_of(reused=reused)).endswith(": 20 of 20 re-evaluations")
    assert describe_reuse(result_of()) == ""
    test = result_of(test=TEST).test
    assert describe_difference(test).endswith("+0.0100 to +0.0300 over seeds only")
    even = result_of(test=TEST | {"difference": {"mean": 0.0, "interval": [-0.01, 0.01]}}).test
    assert describe_difference(even).endswith("+0.0100 over seeds only: no difference shown")
    assert describe_test_use(test) == "used once, after the winner was chosen"
    earlier = result_of(test=TEST | {"earlier": True}).test
    assert describe_test_use(earlier).startswith("used once, for these networks")
    facts = {"shape": [5], "transform": {"_target_": "mine.Letters"}, "reads": True}
    assert describe_accepted_files(result_of(data=facts).data) == "files that mine.Letters reads"


def test_no_view_shows_a_spread_if_the_training_ignores_the_seed():
    same = {"winner": {"mean": 0.9, "std": 0.0, "values": [0.9, 0.9, 0.9]}}
    result = result_of(test=same)
    assert format_mean(result.test.winner) == "0.9000"
    assert describe_stored_result(result.in_short()) == "test accuracy 0.9000, trial 0"


def test_the_reason_for_a_winner_names_the_candidates_that_failed():
    complete = {"trial": 1, "mean": 1.18, "values": [1.17, 1.16, 1.21]}
    baseline = {"baseline": True, "failed": 1, "mean": 1.08, "values": [1.06, 1.1]}
    failed = "the baseline failed in 1 of 3 re-evaluations"
    result = result_of(winner=baseline, candidates=[complete, baseline])
    why = "since no candidate beats it by more than chance explains, on 2 new seeds"
    assert explain_choice(result) == f"{why}; {failed}"
    result = result_of(winner=complete, candidates=[complete, baseline])
    assert (
        explain_choice(result) == f"the only candidate with values on all of 3 new seeds; {failed}"
    )
    never = {"baseline": True, "failed": 3}
    result = result_of(winner=complete, candidates=[complete, never])
    reason = "the baseline failed in 3 of 3 re-evaluations, so that nothing is compared with it"
    assert explain_choice(result).endswith(reason)


def test_a_single_candidate_has_no_best_mean():
    only = {"mean": 0.5, "values": [0.5, 0.5, 0.5]}
    assert explain_choice(result_of(winner=only)) == "the only candidate"
