"""Trainings and tests of an earlier budget are reused, bit for bit."""

from dataclasses import replace

import pytest
import torch
import toys
from drawn import Drawn
from reevaluated import SPACE, CountedTest, evaluate_winner, flat, stages_of, work
from toys import EACH_KIND, KINDS, LOOP, ask

from studyloom.data import Datasets
from studyloom.data.training_data import TrainingData
from studyloom.definition import network as network_module
from studyloom.storage.attributes import REUSED
from studyloom.storage.opening import create_study
from studyloom.training.checkpoint import load_weights
from studyloom.training.trainer import Training
from studyloom.views.terminal import describe_winner
from studyloom.winner.candidates import CandidateTrainings

SETTINGS = {"top": 1, "seeds": 2}


@pytest.fixture(scope="module", params=EACH_KIND)
def definition(request):
    return ask(*SPACE, *KINDS[request.param])


@pytest.fixture
def trained(monkeypatch):
    """Counts the networks that are trained, and returns their seeds in order."""
    seeds, loop = [], toys.train

    class Counted(Training):
        def __init__(self, jobs, *args, **kwargs):
            seeds.extend(job.seed for job in jobs)
            super().__init__(jobs, *args, **kwargs)

    monkeypatch.setattr(network_module, "Training", Counted)
    monkeypatch.setattr(toys, "train", lambda cfg, run: seeds.append(run.seed) or loop(cfg, run))
    return seeds


def reevaluated(definition, url, run_dir, trials, **settings):
    """Works through the stages of a budget, and returns them, the result and uses of the test."""
    stages, test = stages_of(definition, url, run_dir, trials, **SETTINGS | settings), CountedTest()
    work(stages)
    return stages, evaluate_winner(stages, test, ["x"]), test.loaded


def test_the_trainings_of_the_same_candidates_are_those_of_the_smaller_budget(
    definition, sqlite_url, tmp_path, trained
):
    """Values, curves and weights, and the test; only what is new is trained."""
    small, result, opened = reevaluated(definition, sqlite_url, tmp_path, 4)
    # A command that was killed after the test reads its result, which was stored at once.
    (tmp_path / "winner.json").unlink()
    again = evaluate_winner(small, pytest.fail, ["x"])
    assert (again.test, again.confusion) == (result.test, result.confusion)
    assert opened == 1
    assert result.reused == {"re-evaluation": (0, 4), "final-training": (0, 4)}
    weights = load_weights(tmp_path / "winner.pt")
    before = {*small.candidates}
    trained.clear()
    large, grown, opened = reevaluated(definition, sqlite_url, tmp_path, 5)
    assert {*large.candidates} == before, "the fifth is not among the best"
    assert len(trained) == 1, "the fifth trial of the search"
    assert grown.reused == {"re-evaluation": (4, 4), "final-training": (4, 4)}
    assert opened == 0
    assert grown.test == replace(result.test, earlier=True)
    for stage, was in (
        (large.reevaluation, small.reevaluation),
        (large.final_training, small.final_training),
    ):
        for training, trial in stage.trained.items():
            same = was.trained[training]
            assert trial.values == same.values
            assert trial.user_attrs["epochs"] == same.user_attrs["epochs"]
            assert trial.user_attrs[REUSED] == f"{was.stored.name}, trial {same.number}"
    again, weights = flat(load_weights(tmp_path / "winner.pt")), flat(weights)
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    lines = "\n".join(describe_winner(grown))
    assert "reused, as trained before: 4 of 4 re-evaluations, 4 of 4 final trainings" in lines
    anew = evaluate_winner(large, CountedTest(), ["x"], repeat=True)  # if one asks for it
    assert anew.test == replace(result.test, uses=2)


def test_a_final_training_that_would_repeat_the_reevaluation_is_not_trained(
    definition, sqlite_url, tmp_path, trained, monkeypatch
):
    stages = stages_of(definition, sqlite_url, tmp_path, 4, **SETTINGS)
    source = Datasets(train=Drawn(), valid=Drawn())
    own = TrainingData(source, source.train())
    trainings = CandidateTrainings(definition, stages.data, {}, seeds=2)
    repeats = [replace(trainings, data=data).repeats for data in (TrainingData(), own)]
    assert [trainings.repeats, *repeats] == [False, True, True]
    monkeypatch.setattr(CandidateTrainings, "repeats", True)
    work(stages)
    result = evaluate_winner(stages, CountedTest(), ["x"])
    assert len(trained) == 8, "four in the search, and two candidates on two seeds"
    assert result.reused["final-training"] == (4, 4)
    assert stages.final_training.values() == stages.reevaluation.values()


@pytest.mark.chaos
@pytest.mark.parametrize("keeps", [True, False], ids=["keeps", "keeps nothing"])
def test_a_loop_without_a_test_is_reevaluated_once_and_its_answer_has_what_it_kept_there(
    sqlite_url, tmp_path, trained, monkeypatch, keeps
):
    """There is no final training; what another host keeps is trained again."""
    if not keeps:
        monkeypatch.setattr(toys.Run, "keep", lambda self, **parts: None)
    definition = ask(*SPACE, *(override for override in LOOP if "test" not in override))
    small, result, opened = reevaluated(definition, sqlite_url, tmp_path, 4)
    assert (result.test, opened) == (None, 0)
    trained.clear()
    _, grown, _ = reevaluated(definition, sqlite_url, tmp_path, 5)
    assert grown.reused == {"re-evaluation": (4, 4)}
    assert len(trained) == 1, "the fifth trial of the search"
    assert (tmp_path / "winner.pt").exists() == keeps
    if keeps:
        weights = flat(load_weights(tmp_path / "winner.pt"))
        for file in (*small.reevaluation.weights.parent.glob("*/*.pt"), tmp_path / "winner.pt"):
            file.unlink()
        stages = stages_of(definition, sqlite_url, tmp_path, 5, **SETTINGS)
        evaluate_winner(stages, pytest.fail, ["x"])
        again = flat(load_weights(tmp_path / "winner.pt"))
        assert all(torch.equal(again[name], weights[name]) for name in weights)


@pytest.mark.chaos
def test_further_seeds_and_another_candidate_are_trained_beside_those_that_are_known(
    definition, sqlite_url, tmp_path, trained
):
    reevaluated(definition, sqlite_url, tmp_path, 4)
    trained.clear()
    stages, result, opened = reevaluated(definition, sqlite_url, tmp_path, 4, seeds=3)
    assert result.reused == {"re-evaluation": (4, 6), "final-training": (4, 6)}
    assert len(trained) == 4, "the third seed of each"
    assert opened == 1, "it has not been seen by these"
    trained.clear()
    stages, result, _ = reevaluated(definition, sqlite_url, tmp_path, 4, top=3)
    assert result.reused["re-evaluation"] == (4, 2 * len(stages.candidates))
    assert len(stages.candidates) > 2


@pytest.mark.chaos
def test_what_other_code_has_trained_is_trained_again(definition, sqlite_url, tmp_path, trained):
    """After an accepted change of one's own code nothing of before is reused, nor the test."""

    def of_code(digest):
        asked = replace(definition)
        vars(asked)["code"] = {"code.mine": digest}
        identity, objectives = asked.identity("toy"), asked.objectives
        create_study(
            sqlite_url, "s", identity, 4, objectives=objectives, accept_code_change=True
        ).close()
        return asked

    _, result, _ = reevaluated(of_code("a"), sqlite_url, tmp_path, 4)
    trained.clear()
    _, anew, opened = reevaluated(of_code("b"), sqlite_url, tmp_path, 4)
    assert anew.reused == {"re-evaluation": (0, 4), "final-training": (0, 4)}
    assert opened == 1
    assert len(trained) == 8
    assert anew.stage != result.stage
    _, back, opened = reevaluated(of_code("a"), sqlite_url, tmp_path, 4)
    assert back.reused == {"re-evaluation": (4, 4), "final-training": (4, 4)}
    assert opened == 0
