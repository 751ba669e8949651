"""The winner without each of its changes: put back, trained, compared, and tested."""

import math
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
from reevaluated import (
    SPLIT,
    CountedTest,
    evaluate_winner,
    stages_of,
    train,
    train_plainly,
    work,
)
from toys import KINDS, TINY, ask, compose

import studyloom as sl
from studyloom.definition.custom_loop import LoopDefinition
from studyloom.errors import PredictError
from studyloom.views.result_figures import draw_ablation
from studyloom.views.run_details import describe_winner
from studyloom.views.words import describe_simple, list_ablation
from studyloom.winner.ablation import Defaults, Losses
from studyloom.winner.assemble_result import is_result_of
from studyloom.winner.candidates import CandidateId
from studyloom.winner.result import SIMPLE, Ablation, AblationRow, Result, write_json
from studyloom.winner.statistics import estimate_difference_error

SPACE = (
    *(*TINY[:-1], "space=none", "sampler=random", "pruner=none", "study.baseline=false"),
    "+space.optimizer.lr={float:[0.003,0.1],log:true}",
    "+space.train.batch_size.choice=[16,32,64]",
    "+space.model.dropout.float=[0,0.3]",
)
TRIALS, SEEDS = 3, 2


# What is put back


def defaults_of(params, *overrides):
    definition = ask(*TINY[:1], *overrides)
    return Defaults(definition, definition.space.make_configuration(params), [])


CNN = {
    "model": "cnn",
    "model.cnn.channels": 32,
    "optimizer": "sgd",
    "optimizer.sgd.lr": 0.3,
    "optimizer.sgd.momentum": 0.5,
    "train.batch_size": 64,
}


def test_an_option_put_back_has_the_defaults_of_its_branch():
    defaults = defaults_of(CNN)
    back = defaults.put_back(("model",))
    assert back.params == {name: CNN[name] for name in CNN if not name.startswith("model")} | {
        "model": "mlp",
        "model.mlp.hidden.length": 1,
        "model.mlp.hidden.0": 16,  # as the command says
        "model.mlp.activation": "relu",
        "model.mlp.dropout": 0.0,
    }
    assert defaults.definition.compose_config(back)["model"]["hidden"] == [16]
    channels = defaults.put_back(("model.cnn.channels",))
    assert channels.params == CNN | {"model.cnn.channels": 16}


def test_putting_back_all_changes_gives_the_baseline():
    defaults = defaults_of(CNN)
    changes = [name for (name,) in defaults.single_changes]
    assert {*changes} == {*CNN} - {"train.batch_size"}
    assert defaults.put_back(changes) == defaults.definition.baseline
    of_baseline = defaults_of(defaults.definition.baseline.params)
    assert not of_baseline.single_changes


# The default, the middle of the range, is about 0.017.
def test_a_change_that_a_relation_needs_is_not_put_back():
    where = "space.where=['optimizer.lr < 0.015']"
    definition = ask(*SPACE, f"+{where}")
    configuration = definition.space.make_configuration(
        {"optimizer.lr": 0.01, "train.batch_size": 16, "model.dropout": 0.1}
    )
    changes = Defaults(definition, configuration, []).single_changes
    assert {*changes} == {("train.batch_size",), ("model.dropout",)}


def hills(trial):
    """An objective of Optuna's, whose layers say which widths there are."""
    layers = trial.suggest_int("layers", 1, 5)
    return sum(trial.suggest_float(f"width.{layer}", 0, 1) for layer in range(layers))


def test_defaults_of_an_optuna_objective_are_the_middles_of_its_ranges(tmp_path, monkeypatch):
    (tmp_path / "own.yaml").write_text(
        "defaults: [studyloom, sampler: random, pruner: none, storage: sqlite, launcher: local, "
        "_self_]\nstudy: {name: own, trials: 6}\n"
        "objective: {_target_: test_ablation.hills, metric: height, direction: maximize}\n"
    )
    definition = LoopDefinition.from_config(*compose(name="own", folder=tmp_path))
    url = f"sqlite:///{tmp_path}/study.db"
    stages = stages_of(definition, url, tmp_path, 6, top=1, seeds=1, ablation=True)
    work(stages)
    result = evaluate_winner(stages, None, ["x"])
    rows = {row.name: row for row in result.ablation.rows}
    assert rows["layers"].default == 3
    params = result.winner.params
    widths = [params.get(f"width.{layer}", 0.5) for layer in range(3)]
    assert rows["layers"].values == (pytest.approx(sum(widths)),)
    assert {row.default for name, row in rows.items() if name != "layers"} == {0.5}
    assert all(row.needed for row in rows.values()), "the noise of a single seed is unknown"


# What is shown of it


def test_a_change_is_needed_if_the_interval_of_its_loss_is_above_zero():
    winner = [0.9, 0.92, 0.94]
    values = {
        ("a",): [0.5, 0.52, 0.55],
        ("b",): [0.9, 0.91, 0.95],
        ("c",): [0.91, 0.93, 0.95],
    }
    losses = Losses(winner, values, sign=1)
    assert [losses.is_needed(name) for name in "abcd"] == [True, False, False, True]
    assert [*losses.propose_simplifications()] == [("b", "c"), ("c",)]
    assert losses.loss("a") == pytest.approx(0.92 - np.mean(values["a",]))
    assert 0 < losses.error.standard_error < losses.error.half_interval
    for sign in (1, -1):
        mirrored = {names: [-sign * value for value in row] for names, row in values.items()}
        mirrored_losses = Losses([-sign * value for value in winner], mirrored, sign=-sign)
        assert mirrored_losses.loss("a") == pytest.approx(losses.loss("a"))


def test_the_interval_of_a_loss_holds_for_all_changes_at_once():
    draw = np.random.default_rng(0)
    covered = 0
    runs = 1000
    for _ in range(runs):
        truth = draw.normal(0, 3, (6, 1))
        series = truth + draw.normal(0, 5, 3) + draw.normal(size=(6, 3))
        half = estimate_difference_error(series).half_interval
        means = series.mean(1)
        true_means = truth[:, 0]
        errors = (means[1:] - means[0]) - (true_means[1:] - true_means[0])
        covered += bool((np.abs(errors) <= half).all())
    assert 0.95 <= covered / runs < 0.985
    assert estimate_difference_error([[0.5], [0.6]]) is None
    error = estimate_difference_error([[0.5, 0.6], [0.1, 0.2]])
    assert (error.standard_error, error.half_interval) == pytest.approx((0, 0))


# From the search to the test


@pytest.fixture(scope="module", params=["network", pytest.param("loop", marks=pytest.mark.chaos)])
def definition(request):
    return ask(*SPACE, *KINDS[request.param])


def open_stages(definition, folder, **settings):
    url = f"sqlite:///{folder}/study.db"
    return stages_of(definition, url, folder, TRIALS, top=1, seeds=SEEDS, **settings)


@pytest.fixture(scope="module")
def ablated(definition, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("ablated")
    stages = open_stages(definition, run_dir, ablation=True, simple_margin=0.5)
    work(stages)
    test = CountedTest()
    return stages, evaluate_winner(stages, test, ["x"]), test.loaded


def test_an_ablation_trains_on_the_seeds_of_the_re_evaluation(ablated):
    stages, result, _ = ablated
    titles = dict.fromkeys(stage.title for stage in stages)
    assert [*titles] == ["search", "re-evaluation", "ablation", "final-training"]
    assert stages.is_done()
    first = stages.stage("ablation")
    assert first.source.new_seeds == stages.reevaluation.source.new_seeds
    for row in result.ablation.rows:
        origin = CandidateId(result.winner.trial, defaults=(row.name,))
        assert CandidateId.read(origin.columns) == origin
        for seed, value in enumerate(row.values):
            assert train_plainly(first, origin, seed)[0] == value
        assert len(row.values) == SEEDS
        means = np.mean(result.winner.values) - np.mean(row.values)
        assert row.worse_by == pytest.approx(means)
    assert len(result.ablation.rows) >= 2
    assert Result.read(stages.run_dir) == result
    assert is_result_of(result, stages.evaluation)


def test_the_simple_configuration_shares_the_single_use_of_the_test_set(ablated):
    stages, result, loaded = ablated
    assert loaded == result.test.test_set_uses == stages.search.stored.test_uses() == 1
    ablation = result.ablation
    assert {*ablation.simple_defaults} == {row.name for row in ablation.rows if not row.needed}
    assert ablation.simple_worse_by <= 0.5
    assert (stages.run_dir / SIMPLE).exists()
    assert len(result.test.simple.values) == SEEDS
    assert "on the test set: " in describe_simple(result)
    lines = "\n".join(describe_winner(result))
    assert all(line in lines for line in list_ablation(result))


@pytest.mark.chaos
def test_a_killed_ablation_resumes_to_the_same_table(definition, ablated, tmp_path):
    stages = open_stages(definition, tmp_path, ablation=True, simple_margin=0.5)
    for stage in stages:
        if stage.title == "ablation":
            train(stage, SPLIT, 2)
            break
        train(stage, SPLIT, stage.trials)
    assert stages.count_open_trials()
    stages.close()
    stages = open_stages(definition, tmp_path, ablation=True, simple_margin=0.5)
    work(stages)
    assert evaluate_winner(stages, CountedTest(), ["x"]).ablation == ablated[1].ablation


@pytest.mark.chaos
def test_an_ablation_of_a_tested_winner_does_not_use_the_test_set(definition, ablated, tmp_path):
    plain = open_stages(definition, tmp_path)
    work(plain)
    before = evaluate_winner(plain, CountedTest(), ["x"])
    plain.close()
    for ablation in (True, True, False):  # again; and the study's own command afterwards
        stages = open_stages(definition, tmp_path, ablation=ablation, simple_margin=0.5)
        work(stages)
        test = CountedTest()
        result = evaluate_winner(stages, test, ["x"])
        assert test.loaded == 0
        assert result.test == before.test
        stages.close()
        if ablation:
            assert result.ablation == ablated[1].ablation
            assert "not tested" in describe_simple(result)


@pytest.mark.chaos
def test_a_command_without_ablation_keeps_the_test_that_one_made(definition, tmp_path):
    first = open_stages(definition, tmp_path, ablation=True, simple_margin=0.5)
    work(first)
    result = evaluate_winner(first, CountedTest(), ["x"])
    first.close()
    stages = open_stages(definition, tmp_path, simple_margin=0.5)
    assert is_result_of(result, stages.evaluation)
    assert stages.final_training.stored.name == result.stage


def test_a_result_with_a_malformed_ablation_is_not_read(ablated, tmp_path):
    _, result, _ = ablated
    write_json(tmp_path / "winner.json", result)
    assert Result.load(tmp_path).ablation == result.ablation
    document = result.document()
    document["ablation"]["rows"] = "<script>"
    write_json(tmp_path / "winner.json", document)
    with pytest.raises(PredictError, match="cannot be used"):
        Result.load(tmp_path)


def test_the_figure_of_an_ablation_shows_each_known_loss():
    rows = (
        AblationRow("a", 1, 0, (0.5, 0.6), 0.3, needed=True),
        AblationRow("b", "x", "y", (0.8, 0.9), -0.01, needed=False),
        AblationRow("c", 2, 0),
    )
    ablation = Ablation(rows, half_interval=0.0213, simple_defaults=("b",), simple_worse_by=-0.01)
    chart = draw_ablation(ablation)
    assert chart.names() == ["needed", "not needed"]
    dots = {mark.name: mark.parts for mark in chart.marks if mark.name}
    assert dots == {"needed": [[(0.3, 1)]], "not needed": [[(-0.01, 0)]]}
    assert chart.table.rows == [
        ("a", "1", "0", "+0.300 ± 0.021", "needed", ""),
        ("b", "x", "y", "−0.010 ± 0.021", "not needed", "default"),
        ("c", "2", "0", "no value: a training failed", "needed", ""),
    ]
    for hostile in (math.inf, math.nan):
        assert (
            draw_ablation(replace(ablation, half_interval=hostile))
            == "winner.json holds no losses."
        )
    assert draw_ablation(Ablation(())) == "winner.json holds no losses."


NOISE = 0.02  # the standard deviation of a value


def six(run, *, a=0.0, b=0.0, c=0.0, d=0.0, e=0.0, f=0.0):
    """A loop of which two hyperparameters matter, by six and by five times the noise."""
    noise = random.Random(f"{run.seed} {a} {b} {c} {d} {e} {f}").gauss(0, NOISE)
    run.report(height=0.8 - 0.2 * (a - 0.8) ** 2 - 0.2 * (b - 0.7) ** 2 + noise)
    return run.value


@pytest.mark.nightly
def test_the_two_of_six_hyperparameters_that_matter_are_needed(tmp_path):
    needed = []
    for seed in range(20):
        study = sl.search(
            six,
            space={name: sl.Float(0, 1) for name in "abcdef"},
            maximize="height",
            trials=30,
            seed=seed,
            name="six",
            run_dir=tmp_path / str(seed),
            winner={"ablation": True},
            sampler="random",
            pruner="none",
            workers=1,
            quiet=True,
        )
        rows = study.winner.details["ablation"]["rows"]
        needed.append("".join(sorted(row["name"][-1] for row in rows if row["needed"])))
        study.close()
    print(needed, file=sys.stderr)
    assert needed.count("ab") >= 18, needed
