"""From a search to a tested winner, on toy data and real databases."""

import base64
import io
import json
import math
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toys
import yaml
from optuna.study import StudyDirection
from optuna.trial import TrialState
from PIL import Image
from reevaluated import (
    SPACE,
    SPLIT,
    CountedTest,
    evaluate_winner,
    flat,
    open_stages,
    stages_of,
    test_part,
    train,
    train_plainly,
    work,
)
from toys import EACH_KIND, KINDS, TINY, TWO, ask, compose, toy_folds

from studyloom.data.sources import Series
from studyloom.data.training_data import TrainingData
from studyloom.decisions.strategy import Strategy
from studyloom.errors import Diverged, NoWinner
from studyloom.extras.predict.predicting import predict
from studyloom.metrics import ACCURACY, ObjectiveValue
from studyloom.space.rule import Rule
from studyloom.storage.attributes import DEFINITION, EPOCHS, UUID
from studyloom.storage.ledger import add_study
from studyloom.storage.opening import create_study, open_study
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import format_value
from studyloom.training.checkpoint import load_weights
from studyloom.views.run_details import describe_winner
from studyloom.views.words import describe_comparison
from studyloom.winner import measurement
from studyloom.winner.assemble_result import is_result_of
from studyloom.winner.candidates import (
    CandidateId,
    CandidateSource,
    CandidateTrainings,
    Training,
    find_kept_epoch,
)
from studyloom.winner.predictor import load_network
from studyloom.winner.reevaluation import Reevaluated
from studyloom.winner.result import Result
from studyloom.winner.stages import StagePlanner

TRIALS = 4
PLATEAU = "{_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, patience: 0}"


@pytest.fixture(scope="module", params=EACH_KIND)
def kind(request):
    """A network of studyloom, or a custom training loop: these laws hold for both."""
    return request.param


@pytest.fixture(scope="module")
def definition(kind):
    return ask(*SPACE, *KINDS[kind])


network = pytest.mark.parametrize("kind", ["network"], indirect=True)


@pytest.fixture(scope="module")
def evaluated(definition, tmp_path_factory):
    """Stages that have ended, what winner.json holds, and how often the test set was loaded."""
    run_dir = tmp_path_factory.mktemp("evaluated")
    stages = stages_of(definition, f"sqlite:///{run_dir}/study.db", run_dir, TRIALS, top=2, seeds=2)
    work(stages)
    test = CountedTest()
    evaluate_winner(stages, test, ["python", "-m", "studies.mnist"])
    return stages, Result.read(run_dir), test.loaded


# Stages


def test_a_stage_that_another_worker_is_making_has_not_ended(definition, sqlite_url, tmp_path):
    study = stages_of(definition, sqlite_url, tmp_path, 1, seeds=2)
    train(study.search, SPLIT, 1)
    plan = StagePlanner(study.study, study.evaluation.rule).plan_reevaluation(study.candidates)
    storage = study.stored.ledger.storage
    attributes = {DEFINITION: plan.identity, UUID: "0" * 32}
    add_study(storage, str(plan.name), [StudyDirection.MAXIMIZE], attributes)
    assert plan.find() is None, "its slots are not stored yet"
    assert plan.begin().count_open_trials() == plan.trials
    assert plan.find().count_open_trials() == plan.trials


def test_a_study_stopped_in_its_re_evaluation_resumes_to_the_same_winner(
    definition, evaluated, tmp_path
):
    """Before all trainings of the re-evaluation have ended, there is no winner."""
    ended = 3
    url = f"sqlite:///{tmp_path}/study.db"
    first = stages_of(definition, url, tmp_path, TRIALS, top=2, seeds=2)
    train(first.search, SPLIT, TRIALS)
    train(first.reevaluation, SPLIT, ended)
    first.close()
    stages = stages_of(definition, url, tmp_path, TRIALS, top=2, seeds=2)
    assert stages.count_open_trials() >= stages.reevaluation.trials - ended
    assert not stages.is_done()
    assert [stage.title for stage in stages] == ["search", "re-evaluation"]
    names = [study.study_name for study in stages.search.stored.storage.get_all_studies()]
    assert not any("final-training" in name for name in names)
    work(stages)
    assert stages.is_done()
    resumed = stages.reevaluated
    uninterrupted = evaluated[0].reevaluated
    assert (resumed.winner, resumed.values) == (uninterrupted.winner, uninterrupted.values)


def test_best_trials_and_baseline_are_re_evaluated_on_the_same_new_folds(
    evaluated,
):
    stages, _, _ = evaluated
    values = {trial.number: trial.value for trial in stages.search.stored.trials()}
    values.pop(0)  # the baseline, beside which the two best trials are candidates
    best = sorted(values, key=lambda number: (-values[number], number))[:2]
    assert {*stages.candidates} == {*map(CandidateId, best), CandidateId(0)}
    trainings = stages.reevaluation.source
    for seed in range(2):
        train, valid = trainings.fold(seed)
        assert len(valid) == 40
        assert not {*train.tolist()} & {*valid.tolist()}
    new_sets = [frozenset(trainings.fold(seed)[1].tolist()) for seed in range(2)]
    set_of_search = frozenset(toy_folds(SPLIT)[0][1].tolist())
    assert len({*new_sets, set_of_search}) == 3, "each validation set is new"


def test_values_are_those_of_plain_trainings_and_the_best_mean_wins(evaluated):
    stages, result, _ = evaluated
    assert [stage.title for stage in stages] == ["search", "re-evaluation", "final-training"]
    assert (stages.is_done(), stages.count_open_trials()) == (True, 0)
    reevaluated = stages.reevaluated
    for candidate, values in reevaluated.values.items():
        for seed, value in enumerate(values):
            assert train_plainly(stages.reevaluation, candidate, seed)[0] == value
    means = {row.trial: np.mean(row.values) for row in result.candidates}
    winner = reevaluated.winner.trial
    assert means[winner] == max(means.values())
    assert result.winner.trial == winner
    assert result.winner.selection_gap == pytest.approx(result.winner.search_value - means[winner])


def test_the_same_seed_gives_the_same_weights_on_all_training_data(evaluated):
    stages, _, _ = evaluated
    assert stages.final_training.source.fold(0)[0].tolist() == [*range(len(SPLIT.targets))]
    stored = flat(load_weights(stages.run_dir / "winner.pt"))
    again = flat(train_plainly(stages.final_training, stages.reevaluated.winner, 0)[1])
    assert stored.keys() == again.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in again.items())


def test_a_plateau_in_the_final_training_steps_on_the_values_of_the_search(tmp_path):
    """The examples of its validation are among those that it trains on."""
    plateau = ("~scheduler", f"+scheduler={PLATEAU}", "train.epochs=3")
    definition = ask(*SPACE, *plateau)
    stages = stages_of(definition, f"sqlite:///{tmp_path}/s.db", tmp_path, 2, top=1, seeds=2)
    work(stages)
    curves = [trial.user_attrs[EPOCHS]["value"] for trial in stages.search.stored.trials()]
    for origin in stages.final_training.source.candidates:
        final = stages.final_training.source.job(origin, 0).schedule
        again = stages.reevaluation.source.job(origin, 0).schedule
        assert final.recorded == curves[origin.trial]
        assert len(final.recorded) == 3
        assert list(again.recorded) == []
    stages.close()


def test_the_kept_epoch_is_that_of_the_mean_curve():
    curve = {"value": [0.1, 0.5, 0.5, 0.2]}
    assert find_kept_epoch(curve, "best", ACCURACY.sign) == 2
    assert find_kept_epoch(curve, "last", ACCURACY.sign) == 4
    assert find_kept_epoch({}, "best", ACCURACY.sign) is None


def test_a_single_candidate_wins_without_re_evaluation_unless_it_failed(tmp_path):
    definition = ask(*TINY[:-1], "space=none", "pruner=none")
    stages = stages_of(definition, f"sqlite:///{tmp_path}/study.db", tmp_path, trials=1, seeds=2)
    work(stages)
    assert [stage.title for stage in stages] == ["search", "final-training"]
    result = evaluate_winner(stages, CountedTest(), ["x"])
    assert result.winner.trial == 0
    assert result.winner.selection_gap is None
    assert len(result.test.winner.values) == 2
    diverging = ask(*TINY[:-1], "space=none", "pruner=none", "optimizer=sgd", "optimizer.lr=1e30")
    (tmp_path / "diverging").mkdir()
    url = f"sqlite:///{tmp_path}/diverging/study.db"
    without = stages_of(diverging, url, tmp_path / "diverging", trials=1, seeds=2)
    work(without)
    assert (without.is_done(), without.count_open_trials()) == (False, 0), "no trial could win"


@pytest.mark.parametrize("title", ["re-evaluation", "final-training"])
def test_a_training_that_diverges_after_a_report_has_failed(tmp_path, monkeypatch, title):
    make_new_objective = CandidateTrainings.make_new_objective
    failed = []

    def make_failing(self, training, number, attempt):
        objective = make_new_objective(self, training, number, attempt)
        is_last = training == (max(self.candidates), 1)
        if attempt.stage == title and is_last:
            failed.append(training.candidate)
            monkeypatch.setattr(objective, "run", partial(diverge_later, objective.run))
        return objective

    def diverge_later(run, report, stopping):
        def report_two(step):
            if step.number > 2:
                raise Diverged(0, 3, 4, "train", float("nan"))
            report(step)

        return run(report_two, stopping)

    monkeypatch.setattr(CandidateTrainings, "make_new_objective", make_failing)
    url = f"sqlite:///{tmp_path}/study.db"
    stages = stages_of(ask(*SPACE, "train.epochs=4"), url, tmp_path, 3, top=2, seeds=2)
    work(stages)
    stage = next(stage for stage in stages if stage.title == title)
    assert failed
    assert {*stage.values()} == {*stage.source.candidates} - {*failed}
    if title == "re-evaluation":
        assert failed[0] not in stages.reevaluated.eligible
        return
    with pytest.raises(NoWinner, match="could not be trained on all data: train loss is nan"):
        stage.load_or_train(Training(failed[0], 1))


@pytest.mark.parametrize(("failures", "values"), [(1, 2), (2, 1)])
def test_a_failed_training_of_a_candidate_is_tried_again_once(
    definition, tmp_path, monkeypatch, failures, values
):
    """The first training of the stage: in a search its failure would halt the study."""
    make_new_objective = CandidateTrainings.make_new_objective
    attempts = []

    def make_failing(self, training, number, attempt):
        if attempt.stage == "re-evaluation" and training == self.trainings[0]:
            attempts.append(number)
            if len(attempts) <= failures:
                raise OSError("disk full")
        return make_new_objective(self, training, number, attempt)

    monkeypatch.setattr(CandidateTrainings, "make_new_objective", make_failing)
    url = f"sqlite:///{tmp_path}/study.db"
    stages = stages_of(definition, url, tmp_path, 1, top=1, seeds=2, ablation=True)
    work(stages)
    stage = stages.reevaluation
    assert (len(attempts), stage.count_open_trials()) == (2, 0)
    assert len(stages.reevaluated.values_by_seed(CandidateId(0))) == values
    (failed,) = stage.stored.set_aside_trials()
    assert (failed.number, failed.state) == (attempts[0], TrialState.FAIL)
    repeated = next(trial for trial in stage.stored.trials() if trial.number == attempts[1])
    assert TrialRecord(repeated).repeats == failed.number


# The test


def test_each_use_of_the_test_set_is_counted_before_it_is_loaded(definition, tmp_path):
    """A use by a killed command counts too; the result says how many there were."""
    stages = stages_of(
        definition, f"sqlite:///{tmp_path}/study.db", tmp_path, TRIALS, top=1, seeds=2
    )
    work(stages)

    def killed():
        assert stages.search.stored.test_uses() == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_winner(stages, killed, ["x"])
    result = evaluate_winner(stages, CountedTest(), ["x"])
    reopened = open_study(f"sqlite:///{tmp_path}/study.db", "s")
    assert result.test.test_set_uses == reopened.test_uses() == 2
    assert "the test set was used 2 times" in "\n".join(describe_winner(result))
    assert "used 2 times" in (tmp_path / "model_card.md").read_text()
    for file in stages.final_training.weights.iterdir():  # as if another host had them
        file.unlink()
    again = evaluate_winner(stages, CountedTest(), ["x"])
    assert again.test == result.test, "the networks are trained again to the same weights"


@network
def test_an_error_in_what_the_report_shows_keeps_the_test(
    definition, tmp_path, monkeypatch, caplog
):
    stages = stages_of(definition, f"sqlite:///{tmp_path}/study.db", tmp_path, 1, top=1, seeds=1)
    work(stages)
    monkeypatch.setattr(measurement, "describe_predictions", lambda *_: {}["gone"])
    result = evaluate_winner(stages, CountedTest(), ["x"])
    assert (result.test.test_set_uses, result.test.examples, result.confusion) == (1, 200, None)
    assert "the report lacks the winner's predictions: KeyError: 'gone'" in caplog.text
    assert evaluate_winner(stages, CountedTest(), ["x"]).test.test_set_uses == 1


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["loop"], indirect=True)
def test_an_error_in_the_test_of_a_loop_is_explained(definition, tmp_path, monkeypatch):
    stages = stages_of(definition, f"sqlite:///{tmp_path}/study.db", tmp_path, 1, top=1, seeds=1)
    work(stages)
    with monkeypatch.context() as wrong:
        for test, reason in (
            (lambda *_: {}["part"], r"objective\.test=.*: KeyError: 'part' \(.*:\d+\); fix"),
            (lambda *_: math.nan, r"objective\.test=.*returned nan from objective\.test: expected"),
            (
                lambda _, run, part: run.epochs(3),
                r"objective\.test=.*run\.epochs can be called once in a trial, and",
            ),
        ):
            wrong.setattr(toys, "test", test)
            with pytest.raises(NoWinner, match=reason):
                evaluate_winner(stages, CountedTest(), ["x"])
    assert evaluate_winner(stages, CountedTest(), ["x"]).test.test_set_uses == 4


@pytest.mark.chaos  # scikit-learn takes seconds to import
@network
def test_an_undefined_metric_on_the_test_set_is_explained(definition, tmp_path):
    definition = ask(*TINY[:-1], "space=none", "pruner=none", "objective.metric=roc_auc")
    stages = stages_of(definition, f"sqlite:///{tmp_path}/study.db", tmp_path, trials=1, seeds=1)
    work(stages)
    test_set = test_part()
    without_a_class = replace(test_set, targets=test_set.targets.clamp(max=8))
    with pytest.raises(NoWinner, match=r"no value on the test set: objective\.metric=roc_auc: "):
        evaluate_winner(stages, lambda: without_a_class, ["x"])


def test_scores_and_wrong_images_are_those_of_the_stored_networks(evaluated):
    stages, result, uses = evaluated
    assert uses == 1
    winner = stages.definition.compose_config(
        stages.candidates[stages.reevaluated.winner].configuration
    )
    images, model = test_part(), toys.build(winner.for_user(), SPLIT.as_dataset())
    model.load_state_dict(
        flat(train_plainly(stages.final_training, stages.reevaluated.winner, 0)[1])
    )
    predicted = model.eval()(images.inputs).argmax(1)
    accuracy = float((predicted == images.targets).double().mean())
    assert result.test.winner.values[0] == pytest.approx(accuracy, abs=1e-7)
    assert result.test.examples == len(images.targets)
    if result.confusion is None:  # a loop's test returns its values itself
        assert result.test.further_values[0].keys() == {"accuracy", "loss"}
        return
    confusion = np.array(result.confusion)
    assert confusion.sum() == result.test.examples == len(images.targets)
    assert np.trace(confusion) / confusion.sum() == pytest.approx(accuracy)
    assert confusion.sum(axis=1).tolist() == torch.bincount(images.targets).tolist()
    sure = [item.confidence for item in result.wrong]
    assert sure == sorted(sure, reverse=True)
    for item in result.wrong:
        assert item.label == int(images.targets[item.index]) != item.predicted
        head, _, content = item.image.partition(",")
        assert head == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(content))).size == (4, 4)


# The files


def test_files_and_terminal_show_the_same_result(evaluated):
    """winner.yaml composes to the winner's configuration, with nothing to search."""
    stages, result, _ = evaluated
    files = {path.name for path in stages.run_dir.iterdir()}
    assert files >= {"winner.json", "winner.yaml", "winner.pt", "model_card.md"}
    card, lines = (stages.run_dir / "model_card.md").read_text(), "\n".join(describe_winner(result))
    mean, both = result.test.winner.mean, map(format_value, result.test.winner.values)
    scores = f"{mean:.4f} ({' and '.join(both)})"
    assert scores in card
    assert scores in lines
    winner = stages.reevaluated.winner
    assert f"trial {winner.trial}" in lines
    assert is_result_of(result, stages.evaluation)
    json.dumps(result.document(), allow_nan=False)
    winner_config = yaml.safe_load((stages.run_dir / "winner.yaml").read_text())
    assert winner_config["optimizer"]["lr"] == result.winner.params["optimizer.lr"]
    cfg, composer = compose("hydra.searchpath=[file://conf]", name="winner", folder=stages.run_dir)
    again = type(stages.definition).from_config(cfg, composer)
    assert Strategy(again).trials == 1
    expected = stages.definition.compose_config(stages.candidates[winner].configuration)
    config = again.compose_config(again.baseline)
    for section in ("model", "optimizer", "train", "objective", "data"):
        assert config[section] == expected[section], section


# Less is better, and numbers instead of classes


@pytest.fixture(scope="module")
def forecast(tmp_path_factory):
    """Stages over a toy series that have ended, what winner.json holds, and the source."""
    run_dir = tmp_path_factory.mktemp("forecast")
    path = run_dir / "wave.csv"
    wave = [f"{50 + 40 * math.sin(step / 3):.4f}\n" for step in range(120)]
    path.write_text("value\n" + "".join(wave))
    source = Series(str(path), "value", window=6, test_size=20, validation=20)
    definition = ask(
        *("model=mlp", "model.hidden=[8]", "model.standardize=true", "optimizer=adam"),
        *("train.epochs=4", "objective.metric=mae", "loss=mae", "space=lr"),
        *("sampler=random", "study.seed=3"),
    )
    data, url = TrainingData(source, source.train()), f"sqlite:///{run_dir}/study.db"
    stored = create_study(url, "s", definition.identity("toy"), 5, objectives=definition.objectives)
    stages = open_stages(stored, definition, data, url, run_dir, 5, top=2, seeds=2)
    work(stages)
    return stages, evaluate_winner(stages, source.test, ["python", "-m", "studies.wave"]), source


def test_the_least_mean_wins_if_less_is_better(forecast):
    """A series is split in the order of time: the validation set is its end."""
    stages, result, _ = forecast
    trials = stages.search.stored.trials()
    values = {trial.number: trial.value for trial in trials if trial.value is not None}
    values.pop(0)  # the baseline, beside which the two best trials are candidates
    best = sorted(values, key=values.get)[:2]
    assert {*stages.candidates} == {*map(CandidateId, best), CandidateId(0)}
    means = {row.trial: row.mean for row in result.candidates}
    assert means[stages.reevaluated.winner.trial] == min(means.values())
    assert [*means.values()] == sorted(means.values())
    row = result.winner
    assert row.selection_gap == pytest.approx(row.mean - row.search_value), (
        "above 0 if the search overrated it"
    )
    for seed in range(2):
        training, valid = stages.reevaluation.source.fold(seed)
        assert training.max() < valid.min()
        assert valid.tolist() == [*range(len(stages.data.split) - 20, len(stages.data.split))]


def test_a_regression_keeps_its_predictions_and_the_value_of_a_rule(forecast):
    """`predict` gives the values of the test."""
    stages, result, source = forecast
    test, predictions = source.test(), result.predictions
    assert result.confusion is None
    assert torch.tensor(predictions.targets).tolist() == test.targets.tolist()
    distance = (torch.tensor(predictions.predicted) - test.targets).abs().mean()
    assert result.test.winner.values[0] == pytest.approx(float(distance), rel=1e-5)
    rule = float((test.inputs[:, -1] - test.targets).abs().mean())
    assert result.test.references == {"persistence": pytest.approx(rule)}
    assert any(
        line.split() == ["persistence", format_value(rule)] for line in describe_winner(result)
    )
    assert "CSV files with 6 numbers in a line" in (stages.run_dir / "model_card.md").read_text()
    np.save(stages.run_dir / "windows.npy", test.inputs.numpy())
    predicted = predict(load_network(stages.run_dir), [stages.run_dir / "windows.npy"])
    values = [prediction.values[0] for prediction in predicted]
    assert values == pytest.approx([pair[0] for pair in predictions.predicted], rel=1e-5)


# Two objectives


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A study with two objectives whose search has ended.

    Its candidates have 4 to 64 units, each of 27 parameters, and 10 further parameters.
    """
    folder = tmp_path_factory.mktemp("searched")
    definition = ask(*TWO, "study.baseline=true")
    stages = stages_of(definition, f"sqlite:///{folder}/study.db", folder, 6)
    train(stages.search, SPLIT, 6)
    stages.close()
    return folder / "study.db"


@pytest.fixture
def two(searched, tmp_path):
    """Makes the stages of that study, once its search has ended."""
    shutil.copy(searched, tmp_path / "study.db")

    def make(*overrides, **settings):
        definition = ask(*TWO, "study.baseline=true", *overrides)
        url = f"sqlite:///{tmp_path}/study.db"
        return stages_of(definition, url, tmp_path, trials=6, **{"top": 2, "seeds": 2} | settings)

    return make


def costs_of(stages):
    return {trial.number: trial.values[1] for trial in stages.search.stored.trials()}


def test_only_trials_that_satisfy_the_rule_are_re_evaluated(two, tmp_path):
    stages = two("winner.rule='max accuracy where parameters < 400'")
    work(stages)
    costs, values = costs_of(stages), {t.number: t.values[0] for t in stages.search.stored.trials()}
    satisfying = [number for number in costs if costs[number] < 400]
    satisfying.sort(key=lambda number: (-values[number], costs[number], number))
    assert 0 not in satisfying, "the baseline has 442"
    numbers = {origin.trial for origin in stages.candidates}
    assert numbers == {*satisfying[:2], 0}, "the baseline is re-evaluated for the comparison"
    winner = stages.reevaluated.winner.trial
    assert winner in satisfying
    result = evaluate_winner(stages, CountedTest(), ["python", "-m", "studies.pareto"])
    means = {row.trial: row.mean for row in result.candidates}
    assert means[winner] == max(means[number] for number in satisfying[:2])
    assert (result.rule, result.satisfies_rule) == ("max accuracy where parameters < 400", True)
    assert result.winner.costs == {"parameters": costs[winner]}
    assert result.test.difference is not None
    reason, tested, *_ = describe_winner(result)
    assert reason.startswith(f"winner: trial {winner}, ")
    assert tested.endswith(f", parameters {costs[winner]:.0f}")
    *_, last = describe_winner(replace(result, satisfies_rule=False))
    assert "on new seeds no candidate satisfies max accuracy where parameters < 400" in last
    card = (tmp_path / "model_card.md").read_text()
    assert "Chosen by `max accuracy where parameters < 400`" in card


@pytest.mark.chaos
def test_a_rule_that_is_set_again_tests_its_earlier_networks(two):
    """Another rule chooses another winner of the same search."""
    tests, winners = [], []
    for rule in ("max accuracy", "min parameters", "max accuracy"):
        stages = two(f"winner.rule='{rule}'", top=1)
        work(stages)
        tests.append(evaluate_winner(stages, CountedTest(), []).test)
        winners.append(stages.reevaluated.winner.trial)
    costs = costs_of(stages)
    assert costs[winners[1]] == min(costs.values())
    assert [test.test_set_uses for test in tests] == [1, 2, 2]
    assert tests[0].winner == tests[2].winner != tests[1].winner


def test_there_is_no_winner_if_no_trial_satisfies_the_rule(two):
    """The default rule allows no more parameters than the baseline has."""
    stages = two("winner.rule='max accuracy where parameters < 1'")
    assert stages.candidates == {}
    assert [stage.title for stage in stages] == ["search"]
    assert not stages.is_done()
    stages.close()
    stages = two()
    costs = costs_of(stages)
    assert str(stages.rule) == f"max accuracy where parameters <= {costs[0]:.0f}"
    contenders = [
        origin.trial for origin, candidate in stages.candidates.items() if candidate.may_win
    ]
    assert 0 in contenders
    assert all(costs[number] <= costs[0] for number in contenders)


def test_the_best_mean_wins_if_none_satisfies_the_rule_on_new_seeds(two):
    stages = two("winner.rule='min parameters where accuracy > 0.01'")
    costs = costs_of(stages)
    small, large = sorted(stages.candidates, key=lambda origin: costs[origin.trial])[:2]
    means = {origin: [0.001] for origin in stages.candidates} | {small: [0.002], large: [0.003]}
    reevaluated = Reevaluated(stages.search.stored, stages.rule, stages.candidates, means)
    assert reevaluated.winner == large
    assert not reevaluated.satisfies_rule


def reevaluate(values, baseline, partial=None, direction="maximize", rule=None, **settings):
    """Makes a re-evaluation of trial 3 and of the baseline, trial 0, by their new values.

    Args:
        partial: the values of a baseline with failed trainings, by seed, instead of `baseline`.
    """
    objective = ObjectiveValue("value", direction)
    search = SimpleNamespace(
        metric="value",
        sign=objective.sign,
        objectives=[objective],
        values_by_name=lambda trial: {"value": 0.5, "parameters": trial},
    )
    new_values = {CandidateId(3): [objective.sign * value for value in values]}
    partial_values = {}
    if partial is None:
        new_values[CandidateId(0)] = [objective.sign * value for value in baseline]
    else:
        partial_values[CandidateId(0)] = {
            seed: objective.sign * value for seed, value in partial.items()
        }
    candidates = {
        CandidateId(number): CandidateSource(
            number, None, is_baseline=number == 0, final_value=objective.sign * searched
        )
        for number, searched in ((0, 0.94), (3, 0.96))
    }
    costs = [objective, ObjectiveValue("parameters", "minimize")]
    parsed_rule = Rule(objective) if rule is None else Rule.parse(rule, costs)
    return Reevaluated(
        search,
        parsed_rule,
        candidates,
        new_values,
        partial_values,
        searched_values=[objective.sign * value for value in (0.96, 0.95, 0.93, 0.9, 0.8)],
        **settings,
    )


@pytest.mark.parametrize(
    ("values", "baseline", "wins"),
    [
        ([0.94, 0.95, 0.96], [0.90, 0.91, 0.92], True),
        ([0.94, 0.96, 0.95], [0.90, 0.95, 0.97], False),
        # All seeds agree on the difference, although each seed has another value.
        ([0.94, 0.95, 0.96], [0.93, 0.94, 0.95], True),
        ([0.9501] * 3, [0.95] * 3, True),  # no seed makes a difference
        ([0.955], [0.95], False),  # the search, which stands in for a second seed, has 0.02
    ],
)
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_baseline_wins_unless_another_is_better_by_the_margin(
    values, baseline, wins, direction
):
    reevaluated = reevaluate(values, baseline, direction=direction)
    assert reevaluated.winner == CandidateId(3 if wins else 0)


@pytest.mark.parametrize("rule", [None, "max value where parameters < 9"])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_margin_is_in_units_of_the_metric_for_any_seeds_and_rule(rule, seeds):
    values, baseline = [0.94, 0.96, 0.95][:seeds], [0.90, 0.95, 0.96][:seeds]
    gain = sum(values) / seeds - sum(baseline) / seeds
    for margin, winner in ((0.0, 3), (0.9 * gain, 3), (1.1 * gain, 0)):
        reevaluated = reevaluate(values, baseline, rule=rule, margin=margin)
        assert reevaluated.winner == CandidateId(winner)
        assert reevaluated.comparison.margin == margin


def test_a_rule_that_ranks_by_a_cost_has_no_margin():
    """A cost is known, so chance does not decide."""
    reevaluated = reevaluate([0.9], [0.95], rule="min parameters where value > 0.5", margin=1.0)
    assert reevaluated.comparison is None
    assert reevaluated.winner == CandidateId(0), "the baseline has fewest parameters here"


def test_a_decision_for_the_baseline_is_said_in_numbers():
    comparison = reevaluate([0.94, 0.96, 0.95], [0.90, 0.95, 0.97]).comparison
    sentence = describe_comparison(comparison)
    assert sentence.startswith("the default configuration, since trial 3 beat it by only 0.0100 (")
    assert "(standard error 0.0173) on 3 new seeds, and chance explains at most 0.0" in sentence
    assert sentence.endswith("; winner.margin=0 takes trial 3")
    won = describe_comparison(replace(comparison, margin=0.005, margin_is_set=True))
    assert won.startswith("since it beat the baseline by 0.0100 (standard error ")
    assert won.endswith(", and winner.margin is 0.0050")
    worse = replace(comparison, gain=-0.01)
    assert describe_comparison(worse).endswith("since no trial beat it on 3 new seeds")


@pytest.mark.parametrize(
    ("partial", "wins"),
    [
        ({0: 1.161, 2: 1.199}, False),  # the gain is 0.0135 on these two seeds
        ({1: 1.11}, True),  # 0.0485 on this one
        ({}, True),  # nothing to compare with
    ],
)
def test_a_baseline_with_a_failed_training_is_compared_on_its_other_seeds(partial, wins):
    reevaluated = reevaluate([1.1745, 1.1585, 1.2125], None, partial, margin=0.04)
    assert reevaluated.winner == CandidateId(3 if wins else 0)
