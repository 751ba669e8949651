"""A search at a small size whose winner is reevaluated, trained and tested at another."""

from dataclasses import replace

import pytest
import torch
from reevaluated import SPLIT, CountedTest, evaluate_winner, stages_of, work
from toys import CONF, TINY, compose

import studyloom as sl
from studyloom.definition.network import NetworkDefinition
from studyloom.extras.trackers.projection import track_result
from studyloom.views.report import details_section
from studyloom.views.snapshot import take_snapshot
from studyloom.views.terminal import winner_lines
from studyloom.winner.candidates import Origin
from studyloom.winner.evaluation import is_result_of, winner_config
from studyloom.winner.model_card import model_card
from studyloom.winner.predictor import load_network
from studyloom.winner.result import Result
from studyloom.winner.statistics import rank_correlation

SCALED = (
    *(*TINY[1:-1], "space=none", "sampler=random", "pruner=none"),
    *(
        "+space.optimizer.lr={float:[1e-3,1e-1],log:true}",
        "scale={model.hidden:[[8],[32]],rule:mup}",
    ),
)
TRIALS = 5


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("scaled")
    definition = NetworkDefinition.from_config(*compose(*SCALED, name="mnist", folder=CONF))
    stages = stages_of(definition, f"sqlite:///{run_dir}/study.db", run_dir, TRIALS, top=2, seeds=2)
    work(stages)
    evaluate_winner(stages, CountedTest(), ["python", "-m", "studies.mnist"])
    return stages, Result.read(run_dir)


def test_candidates_are_reevaluated_at_the_target_with_their_rule(evaluated):
    stages, result = evaluated
    jobs = [stages.reevaluation.source.job(origin, 0) for origin in stages.candidates]
    assert all(job.scaling is not None for job in jobs)
    for job in jobs:
        network = job.model(shape=SPLIT.shape, outputs=SPLIT.outputs)
        assert {p.shape[0] for p in network.parameters()} == {32, 10}
    assert is_result_of(result, stages)


def test_the_best_is_reevaluated_beside_itself_at_half_and_at_twice_its_learning_rate(evaluated):
    stages, result = evaluated
    best = stages.search.stored.ranked(stages.rule)[0].number
    rows = {row.factor: row for row in result.candidates if row.trial == best}
    assert {*rows} == {0.5, 1.0, 2.0}
    rates = {
        factor: stages.definition.at(stages.candidates[Origin(best, factor)].point).optimizer.lr
        for factor in rows
    }
    assert rates[0.5] * 4 == pytest.approx(rates[1.0] * 2) == pytest.approx(rates[2.0])
    for trial, factor in ((0, 0.5), (0, 2.0), (17, 0.5), (17, 2.0), (17, 1.0)):
        assert Origin.of(Origin(trial, factor).number) == Origin(trial, factor)


def test_the_answer_says_how_far_the_small_trials_told_the_large_ones(evaluated):
    _, result = evaluated
    found = result.transfer
    reevaluated = [row for row in result.candidates if row.factor == 1]
    assert (found.small, found.target) == ({"model.hidden": [8]}, {"model.hidden": [32]})
    assert (found.rule, found.candidates) == ("mup", len(reevaluated))
    assert found.values["model.hidden"] == [32]
    carried = found.carry({"model": {"hidden": [8], "init": "default"}})
    assert carried["model"] == {"hidden": [32], "init": "default"}
    assert found.promised == result.winner.search_value
    assert found.reached == result.winner.mean
    assert found.neighbour == (result.winner.factor != 1)
    assert 0 < found.share < 1
    lines = "\n".join(winner_lines(result))
    assert (
        "searched with model.hidden [8], and scaled to model.hidden [32] by the rule mup" in lines
    )
    renamed = replace(result, transfer=replace(found, small={"params.Width": 8}))
    sentence = renamed.transfer_sentence
    assert sentence.startswith("Searched with params.Width 8, and scaled")
    assert "selection gap" not in lines, "two sizes have no gap by selection"


def test_every_view_lists_the_hyperparameters_at_the_target_with_the_changed_learning_rate(
    evaluated,
):
    stages, result = evaluated
    stored = stages.search.stored
    assert result.params["model.hidden"] == [32]
    assert result.in_short()["params"] == result.params
    assert track_result(stored, stages.run_dir).params == result.params
    *_, shown = details_section(stored, take_snapshot(stored), result).blocks
    assert "model.hidden=[32]" in shown.text
    row = replace(result.winner, factor=2.0)
    card = model_card(replace(result, winner=row), stages.run_dir, None, {})
    assert card.startswith(f"# s: trial {row.trial} at 2 times its learning rate\n")
    assert "| `model.hidden` | `[32]` |" in card


def test_winner_yaml_trains_the_network_of_the_target_by_the_same_rule(evaluated, tmp_path):
    stages, _ = evaluated
    winner = stages.reevaluated.winner
    config = winner_config(stages.definition, stages.candidates[winner].point)
    assert config["model"]["hidden"] == [32]
    assert config["scale"] == {"model.hidden": [8], "rule": "mup"}
    folder = tmp_path / "conf"
    folder.mkdir()
    (folder / "again.yaml").write_text((stages.run_dir / "winner.yaml").read_text())
    again = NetworkDefinition.from_config(
        *compose(f"hydra.searchpath=[file://{CONF}]", name="again", folder=folder)
    )
    (job,) = again.jobs(again.baseline, [SPLIT.whole()], 0)
    wanted = stages.final_training.source.job(winner, 0)
    same, other = (
        [group["lr"] for group in each.optimizer([torch.zeros(1, requires_grad=True)]).param_groups]
        for each in (job, wanted)
    )
    assert same == other
    assert job.scaling is not None


def test_the_network_of_the_target_is_loaded_and_predicts(evaluated):
    stages, _ = evaluated
    network = load_network(stages.run_dir)
    assert 32 in {weights.shape[0] for weights in network.model.parameters()}
    assert network(SPLIT.inputs[:3].float())[0].shape == (3, 10)


class Points(torch.utils.data.Dataset):
    def __init__(self, seed):
        inputs = torch.rand(100, 6, generator=torch.Generator().manual_seed(seed))
        self.targets = [int(each.sum() > 3) for each in inputs]
        self.items = [*zip(inputs, self.targets, strict=True)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Own(torch.nn.Sequential):
    def __init__(self, shape, outputs, width=8):
        body = torch.nn.Linear(*shape, width), torch.nn.ReLU(), torch.nn.Linear(width, width)
        super().__init__(*body, torch.nn.ReLU(), torch.nn.Linear(width, outputs))


def test_a_network_of_ones_own_on_datasets_is_carried_to_the_target(tmp_path):
    study = sl.search(
        Own,
        data=(Points(0), Points(1)),
        space={"optimizer": {"lr": sl.Float(1e-3, 1e-1, log=True)}},
        scale={"model.width": (8, 32)},
        train={"epochs": 2, "batch_size": 16},
        winner={"top": 1, "seeds": 1},
        trials=2,
        workers=1,
        quiet=True,
        run_dir=tmp_path / "own",
    )
    assert study.winner.params["model.width"] == 32
    network = load_network(study.winner.run_dir)
    assert {weights.shape[0] for weights in network.model.parameters()} == {32, 2}


@pytest.mark.parametrize(
    ("pairs", "order", "known"),
    [
        ([(1, 1), (2, 2)], None, False),
        ([(1, 3), (2, 2), (3, 1)], -1.0, False),
        ([(1, 1), (1, 2), (1, 3)], None, False),
        ([(n, n + (n % 2) * 1.5) for n in range(8)], 0.9285714, True),
    ],
)
def test_a_rank_correlation_has_an_interval_where_it_says_something(pairs, order, known):
    found, interval = rank_correlation(pairs)
    assert found == (None if order is None else pytest.approx(order))
    assert (interval is not None) == known
    assert interval is None or -1 <= interval[0] < found < interval[1] <= 1
