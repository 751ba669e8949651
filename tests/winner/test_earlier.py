"""Trainings and tests of an earlier budget are reused, bit for bit."""

from dataclasses import replace

import pytest
import torch
import toys
import yaml
from drawn import Drawn
from reevaluated import SPACE, CountedTest, evaluate_winner, flat, stages_of, work
from toys import EACH_KIND, KINDS, LOOP, TINY, ask

from studyloom.data import Datasets
from studyloom.data.training_data import TrainingData
from studyloom.definition import network as network_module
from studyloom.storage.attributes import REUSED, TESTED
from studyloom.storage.opening import create_study
from studyloom.training.checkpoint import load_weights
from studyloom.training.trainer import Training
from studyloom.views.run_details import describe_winner
from studyloom.views.words import describe_difference
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


def evaluate_budget(definition, url, run_dir, trials, **settings):
    """Works through the stages of a budget, and returns them, the result and uses of the test."""
    stages, test = stages_of(definition, url, run_dir, trials, **SETTINGS | settings), CountedTest()
    work(stages)
    return stages, evaluate_winner(stages, test, ["x"]), test.loaded


def test_a_larger_budget_reuses_trainings_and_test_of_its_candidates(
    definition, sqlite_url, tmp_path, trained
):
    """The reused trainings have the same values, curves and weights; only the rest is trained."""
    small, result, test_uses = evaluate_budget(definition, sqlite_url, tmp_path, 4)
    # A command that was killed after the test reads its result, which was stored at once.
    (tmp_path / "winner.json").unlink()
    again = evaluate_winner(small, pytest.fail, ["x"])
    assert (again.test, again.confusion) == (result.test, result.confusion)
    assert test_uses == 1
    assert result.reused_trainings == {"re-evaluation": (0, 4), "final-training": (0, 4)}
    weights = load_weights(tmp_path / "winner.pt")
    before = {*small.candidates}
    trained.clear()
    large, new_result, test_uses = evaluate_budget(definition, sqlite_url, tmp_path, 5)
    assert {*large.candidates} == before, "the fifth is not among the best"
    assert len(trained) == 1, "the fifth trial of the search"
    assert new_result.reused_trainings == {"re-evaluation": (4, 4), "final-training": (4, 4)}
    assert test_uses == 0
    assert new_result.test == replace(result.test, tested_before=True)
    for stage, earlier_stage in (
        (large.reevaluation, small.reevaluation),
        (large.final_training, small.final_training),
    ):
        for training, trial in stage.ended_trials.items():
            reused = earlier_stage.ended_trials[training]
            assert trial.values == reused.values
            assert trial.user_attrs["epochs"] == reused.user_attrs["epochs"]
            assert trial.user_attrs[REUSED] == f"{earlier_stage.stored.name}, trial {reused.number}"
    again, weights = flat(load_weights(tmp_path / "winner.pt")), flat(weights)
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    lines = "\n".join(describe_winner(new_result))
    assert "reused, as trained before: 4 of 4 re-evaluations, 4 of 4 final trainings" in lines
    repeated = evaluate_winner(large, CountedTest(), ["x"], repeat=True)
    assert repeated.test == replace(result.test, test_set_uses=2)
    # A test that another version of studyloom has stored, with other fields, is repeated.
    for stage in (small.final_training, large.final_training):
        stage.stored.optuna.set_user_attr(TESTED, {"test": {"covers": "seeds"}})
    repeated = evaluate_winner(large, CountedTest(), ["x"])
    assert repeated.test == replace(result.test, test_set_uses=3)


@pytest.mark.parametrize("retrain", [True, False])
def test_the_networks_that_were_selected_are_not_tested_unless_asked(
    definition, sqlite_url, tmp_path, trained, monkeypatch, retrain
):
    """Where the final training has the examples of the re-evaluation, it gets other seeds."""
    settings = SETTINGS | {"margin": 0.0, "retrain": retrain}
    stages = stages_of(definition, sqlite_url, tmp_path, 4, **settings)
    source = Datasets(train=Drawn(), valid=Drawn())
    own = TrainingData(source, source.train())
    trainings = CandidateTrainings(definition, stages.data, {}, seeds=2)
    assert not trainings.has_examples_of_reevaluation
    for data in (TrainingData(), own):
        assert replace(trainings, data=data).has_examples_of_reevaluation
    monkeypatch.setattr(CandidateTrainings, "has_examples_of_reevaluation", True)
    work(stages)
    result = evaluate_winner(stages, CountedTest(), ["x"])
    assert not result.winner.baseline
    new_seeds = {*stages.reevaluation.source.new_seeds}
    if retrain:
        assert new_seeds.isdisjoint(stages.final_training.source.new_seeds)
        assert result.reused_trainings["final-training"] == (0, 4)
        assert not result.test.used_in_selection
    else:
        assert len(trained) == 8, "four in the search, and two candidates on two seeds"
        assert new_seeds == {*stages.final_training.source.new_seeds}
        assert result.reused_trainings["final-training"] == (4, 4)
        assert stages.final_training.values() == stages.reevaluation.values()
        assert result.test.difference.interval is None
        assert "winner.retrain=true tests others" in describe_difference(result.test)


@pytest.mark.parametrize(
    "settings",
    [{"margin": 0.0}, pytest.param({"margin": 1.0}, marks=pytest.mark.chaos), {"retrain": False}],
)
def test_winner_yaml_has_the_seeds_of_the_networks_that_were_tested(
    definition, sqlite_url, tmp_path, monkeypatch, settings
):
    monkeypatch.setattr(CandidateTrainings, "has_examples_of_reevaluation", True)
    stages = stages_of(definition, sqlite_url, tmp_path, 4, **SETTINGS | settings)
    work(stages)
    evaluate_winner(stages, CountedTest(), ["x"])
    written = yaml.safe_load((tmp_path / "winner.yaml").read_text())
    (tmp_path / "again").mkdir()
    url = f"sqlite:///{tmp_path}/again/study.db"
    again = ask(*TINY[:-1], "space=none", "sampler=random", "pruner=none")
    single = stages_of(again, url, tmp_path / "again", 1, seeds=2, **written["winner"])
    work(single)
    assert len(single.candidates) == 1
    tested_seeds = stages.final_training.source.new_seeds
    assert single.final_training.source.new_seeds == tested_seeds


def test_a_baseline_that_wins_is_not_trained_again(definition, sqlite_url, tmp_path, monkeypatch):
    monkeypatch.setattr(CandidateTrainings, "has_examples_of_reevaluation", True)
    stages = stages_of(definition, sqlite_url, tmp_path, 4, **SETTINGS, margin=1.0)
    work(stages)
    result = evaluate_winner(stages, CountedTest(), ["x"])
    assert result.winner.baseline
    assert result.reused_trainings["final-training"] == (2, 2)


@pytest.mark.chaos
@pytest.mark.parametrize("keeps", [True, False], ids=["keeps", "keeps nothing"])
def test_the_result_of_a_loop_without_test_has_its_re_evaluated_states(
    sqlite_url, tmp_path, trained, monkeypatch, keeps
):
    """There is no final training; networks that another host keeps are trained again."""
    if not keeps:
        monkeypatch.setattr(toys.Run, "keep", lambda self, **parts: None)
    definition = ask(*SPACE, *(override for override in LOOP if "test" not in override))
    small, result, test_uses = evaluate_budget(definition, sqlite_url, tmp_path, 4)
    assert (result.test, test_uses) == (None, 0)
    trained.clear()
    _, new_result, _ = evaluate_budget(definition, sqlite_url, tmp_path, 5)
    assert new_result.reused_trainings == {"re-evaluation": (4, 4)}
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
def test_only_new_seeds_and_new_candidates_are_trained(definition, sqlite_url, tmp_path, trained):
    evaluate_budget(definition, sqlite_url, tmp_path, 4)
    trained.clear()
    stages, result, test_uses = evaluate_budget(definition, sqlite_url, tmp_path, 4, seeds=3)
    assert result.reused_trainings == {"re-evaluation": (4, 6), "final-training": (4, 6)}
    assert len(trained) == 4, "the third seed of each"
    assert test_uses == 1, "the networks of the third seed were not tested yet"
    trained.clear()
    stages, result, _ = evaluate_budget(definition, sqlite_url, tmp_path, 4, top=3)
    assert result.reused_trainings["re-evaluation"] == (4, 2 * len(stages.candidates))
    assert len(stages.candidates) > 2


@pytest.mark.chaos
def test_trainings_of_other_code_are_not_reused(definition, sqlite_url, tmp_path, trained):
    """After an accepted change of the user's code, neither trainings nor the test are reused."""

    def definition_with_code(digest):
        changed = replace(definition)
        vars(changed)["code"] = {"code.mine": digest}
        create_study(
            sqlite_url,
            "s",
            changed.identity("toy"),
            4,
            objectives=changed.objectives,
            accept_code_change=True,
        ).close()
        return changed

    _, result, _ = evaluate_budget(definition_with_code("a"), sqlite_url, tmp_path, 4)
    trained.clear()
    _, repeated, test_uses = evaluate_budget(definition_with_code("b"), sqlite_url, tmp_path, 4)
    assert repeated.reused_trainings == {"re-evaluation": (0, 4), "final-training": (0, 4)}
    assert test_uses == 1
    assert len(trained) == 8
    assert repeated.stage != result.stage
    _, back, test_uses = evaluate_budget(definition_with_code("a"), sqlite_url, tmp_path, 4)
    assert back.reused_trainings == {"re-evaluation": (4, 4), "final-training": (4, 4)}
    assert test_uses == 0
