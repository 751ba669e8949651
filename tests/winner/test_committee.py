"""Committees: chosen by examples that no member has seen, tested once, and loaded as data."""

from dataclasses import replace

import pytest
import torch
from answers import answer_of
from judged import MIXED, SPLIT, CountedTest, plan_of, test_part, work
from torch import nn
from toys import LOOP, TINY, TWO, ask

from studyloom.errors import ConfigError, PredictError
from studyloom.metrics import ACCURACY, METRICS
from studyloom.models import CNN, MLP
from studyloom.question.validation import check_sections
from studyloom.training.checkpoint import load_weights, pack_weights
from studyloom.views.report import committee_cards
from studyloom.views.terminal import winner_lines
from studyloom.winner import committee
from studyloom.winner.answer import COMMITTEE, read_answer, write_answer
from studyloom.winner.committee import remove_others, select
from studyloom.winner.evaluation import evaluate_winner
from studyloom.winner.predictor import load_network, load_winner
from studyloom.winner.stages import is_answer_of
from studyloom.winner.statistics import AVERAGES

SETTINGS = {"top": 2, "seeds": 2, "committee": True}


# Choosing


def slow(outputs, targets, metric, name, rounds):
    """The same selection, from all members anew each time; returns positions and the value."""
    chosen, best = [], (-float("inf"), [])
    for _ in range(rounds):
        tried = []
        for position in range(len(outputs)):
            members = [outputs[each] for each in (*chosen, position)]
            mean = AVERAGES[name](members, [1 / len(members)] * len(members))
            tried.append(metric.sign * metric(mean, targets))
        chosen.append(tried.index(max(tried)))
        if max(tried) > best[0] + 1e-9:
            best = max(tried), list(chosen)
    return best[1], best[0]


def library(count, seed):
    """Outputs of networks that are right about different examples."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(40) % 3
    right = 1.5 * nn.functional.one_hot(targets, 3)
    return list(right + 2 * torch.randn(count, 40, 3, generator=generator)), targets


def test_each_round_adds_the_network_with_which_the_mean_is_best():
    """A network that nothing makes better is a committee of itself."""
    for seed, metric in enumerate(("accuracy", "cross_entropy")):
        outputs, targets = library(4, seed=seed)
        score, average = METRICS[metric], AVERAGES["softmax"]
        expected, value = slow(outputs, targets, score, "softmax", committee.ROUNDS)
        chosen = select(outputs, targets, score, average)
        assert chosen == {p: expected.count(p) for p in sorted({*expected})}
        singles = [score.sign * score(each, targets) for each in outputs]
        assert value > max(singles), "here a committee is better than each of its networks"
    targets = torch.arange(12) % 3
    right, wrong = (5.0 * nn.functional.one_hot((targets + k) % 3, 3) for k in (0, 1))
    outputs = [wrong, right.double(), wrong]
    assert select(outputs, targets, ACCURACY, AVERAGES["softmax"]) == {1: 1}


def test_what_is_averaged_are_probabilities_or_numbers():
    outputs = [3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    outputs[0][0, 0] = 200.0  # certain beyond float32
    scales = {"softmax": lambda o: o.softmax(1), "sigmoid": torch.sigmoid, "mean": lambda o: o}
    for name, scale in scales.items():
        mean = AVERAGES[name](outputs, [0.25, 0.75])
        assert torch.isfinite(mean).all()
        expected = 0.25 * scale(outputs[0]) + 0.75 * scale(outputs[1])
        torch.testing.assert_close(scale(mean), expected, atol=1e-5, rtol=1e-5)


# From a search to its committee


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A plan with a committee, its answer, and how often the test part was loaded."""
    folder = tmp_path_factory.mktemp("committee")
    plan = plan_of(ask(*MIXED), f"sqlite:///{folder}/study.db", folder, 3, **SETTINGS)
    work(plan)
    test = CountedTest()
    answer = evaluate_winner(plan, test, ["python", "-m", "studies.mnist"])
    return plan, answer, test.loaded


def network_of(plan, trial, seed, stage):
    """The network of a training in eval mode, from the file that the stage has kept."""
    number = stage.trained[trial, seed].number
    model = plan.reevaluation.asked.job(trial, seed).model(shape=SPLIT.shape, outputs=10)
    model.load_state_dict(load_weights(stage.weights / f"trial-{number}.pt"))
    return model.eval()


def stage_of(plan, member):
    return plan.retraining if member.stage == "retraining" else plan.reevaluation


@torch.no_grad()
def mean_of(plan, members, inputs):
    """The mean of the members' probabilities, (n, 10), without any code of committees."""
    return sum(
        m.share * network_of(plan, m.trial, m.seed, stage_of(plan, m))(inputs).softmax(1)
        for m in members
    )


def test_no_network_is_judged_by_examples_that_it_was_trained_on(evaluated):
    """The slow way: in each seed, those that share its validation part, and no other example."""
    plan, answer, _ = evaluated
    trainings, entry = plan.reevaluation.asked, answer.committee
    assert [*entry.candidates] == [t.number for t in plan.ranked if t.number in plan.candidates]
    members, values = {}, []
    for seed in range(2):
        train, valid = trainings.fold(seed)
        assert not {*train.tolist()} & {*valid.tolist()}
        with torch.no_grad():
            outputs = [
                network_of(plan, trial, seed, plan.reevaluation)(SPLIT.inputs[valid])
                for trial in entry.candidates
            ]
        chosen, value = slow(outputs, SPLIT.targets[valid], ACCURACY, "softmax", committee.ROUNDS)
        values.append(value)
        for position in {*chosen}:
            times = chosen.count(position)
            share = times / len(chosen) / 2
            members[entry.candidates[position], seed] = times, pytest.approx(share)
    known = {(m.trial, m.seed): (m.times, m.share) for m in entry.members}
    assert known == members
    assert entry.validation.value == pytest.approx(sum(values) / 2)
    assert entry.validation.value >= entry.validation.single
    assert sum(m.share for m in entry.members) == pytest.approx(1)
    final = {plan.winner, plan.baseline()}  # which were trained on all data too, and take the place
    for member in entry.members:
        assert member.stage == ("retraining" if member.trial in final else "re-evaluation")


def test_it_is_tested_in_the_opening_of_the_winner_which_stays_the_winner(evaluated):
    plan, answer, loaded = evaluated
    entry, part = answer.committee, test_part()
    assert loaded == answer.test.openings == 1
    assert answer.winner.trial == plan.winner
    value = ACCURACY(mean_of(plan, entry.members, part.inputs), part.targets)
    assert entry.test == value
    differences = [value - other for other in answer.test.winner.values]
    assert entry.difference.mean == pytest.approx(sum(differences) / 2)
    parameters = 16 * 16 + 16 + 16 * 10 + 10
    assert entry.costs["parameters"] == (len(entry.members) * parameters, parameters)


def test_its_file_predicts_the_mean_of_its_members(evaluated):
    plan, answer, _ = evaluated
    expected = mean_of(plan, answer.committee.members, SPLIT.inputs)
    network = load_network(plan.run_dir, committee=True)
    torch.testing.assert_close(network(SPLIT.inputs)[0], expected, atol=1e-6, rtol=1e-5)
    given = load_winner(plan.run_dir, committee=True).predict(SPLIT.inputs)
    torch.testing.assert_close(given.probabilities, expected, atol=1e-6, rtol=1e-5)
    single = load_winner(plan.run_dir).predict(SPLIT.inputs).probabilities
    assert not torch.allclose(single, expected, atol=1e-3)
    states = torch.load(plan.run_dir / COMMITTEE, weights_only=True)
    assert len(states) == len(answer.committee.members)


def test_terminal_card_and_report_show_it_beside_the_winner(evaluated):
    plan, answer, _ = evaluated
    entry, count = answer.committee, len(answer.committee.members)
    for shown in ("\n".join(winner_lines(answer)), (plan.run_dir / "model_card.md").read_text()):
        assert f"{count} networks" in shown
        assert f"{count}.0 × the winner's" in shown
        assert "difference to the winner" in shown
        assert f"trial {entry.members[0].trial}: " in shown
    heads = [card.title for card in committee_cards(entry)]
    assert heads == ["Committee, test", "Committee minus winner, test"]


@pytest.mark.chaos
def test_an_answer_without_a_committee_gets_one_and_the_opening_is_counted(tmp_path):
    """Networks that nobody kept are trained again, by workers; then only those of members stay."""
    question, url = ask(*MIXED), f"sqlite:///{tmp_path}/study.db"
    first = plan_of(question, url, tmp_path, 3, **SETTINGS | {"committee": False})
    work(first)
    plain = evaluate_winner(first, CountedTest(), ["x"])
    plan = plan_of(question, url, tmp_path, 3, **SETTINGS)
    assert not plan.is_done()
    work(plan)
    assert not is_answer_of(plain, plan)
    answer = evaluate_winner(plan, CountedTest(), ["x"])
    assert answer.winner == plain.winner
    assert answer.test == replace(plain.test, openings=2)
    assert answer.reused["re-evaluation"][0] == 0
    assert is_answer_of(read_answer(tmp_path), plan)
    remove_others(plan, answer)
    members = [m for m in answer.committee.members if m.stage == "re-evaluation"]
    assert len([*plan.reevaluation.weights.iterdir()]) == len(members)
    anew = evaluate_winner(plan, CountedTest(), ["x"], anew=True)
    assert anew.committee.members == answer.committee.members
    assert anew.test.openings == 3


@pytest.mark.chaos
def test_what_cannot_be_averaged_costs_the_committee_and_not_the_winner(tmp_path, monkeypatch):
    plan = plan_of(ask(*MIXED), f"sqlite:///{tmp_path}/study.db", tmp_path, 2, **SETTINGS)
    work(plan)

    def refuse(*_):
        raise IndexError("Dimension out of range")

    monkeypatch.setattr(committee, "select", refuse)
    answer = evaluate_winner(plan, CountedTest(), ["x"])
    assert answer.test.winner.values
    assert not (tmp_path / COMMITTEE).exists()
    assert "there is no committee: IndexError: Dimension" in "\n".join(winner_lines(answer))
    assert is_answer_of(read_answer(tmp_path), plan), "and it is not asked for again"
    with pytest.raises(PredictError, match="there is no committee: IndexError"):
        load_network(tmp_path, committee=True)


# Refused before trial 0


def test_where_nothing_can_be_averaged_it_is_refused_with_the_way_out():
    for overrides, words in (
        ((*MIXED, "winner.enabled=false"), "winner.enabled is false"),
        ((*TINY, *LOOP), "is a loop of your own"),
        (TWO, "objective.metric names more than one"),
        ((*MIXED, "train.evaluate={_target_: toys.evaluate}"), "returns outputs of its own"),
    ):
        told = [m for m in check_sections(ask(*overrides, "winner.committee=true")) if words in m]
        assert len(told) == 1, words
        assert "set winner.committee=false" in told[0]


# Files


@pytest.fixture
def folder(tmp_path):
    """Writes a run directory whose committee has an MLP and a CNN; returns it and both networks."""
    torch.manual_seed(0)
    networks = MLP((1, 8, 8), 3, hidden=[4]), CNN((1, 8, 8), 3, channels=4)
    sections = (
        {"_target_": "studyloom.models.MLP", "hidden": [4]},
        {"_target_": "studyloom.models.CNN", "channels": 4},
    )

    def write(**changes):
        members = [
            {"trial": k, "seed": 0, "stage": "retraining", "times": 1, "share": share, "model": own}
            for k, (share, own) in enumerate(zip((0.25, 0.75), sections, strict=True))
        ]
        members[1] |= changes
        entry = {"candidates": [0, 1], "average": "softmax", "members": members}
        facts = {"shape": [1, 8, 8], "outputs": 3}
        states = {str(k): network.state_dict() for k, network in enumerate(networks)}
        files = {"winner.yaml": b"model: {}", COMMITTEE: pack_weights(states)}
        write_answer(tmp_path, answer_of(data=facts, committee=entry), files)
        return tmp_path

    return write, networks


def test_members_of_different_architectures_are_averaged(folder):
    write, networks = folder
    inputs = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        first, second = (network.eval()(inputs).softmax(1) for network in networks)
    network = load_network(write(), committee=True)
    torch.testing.assert_close(network(inputs)[0], 0.25 * first + 0.75 * second)


def test_nothing_hostile_of_a_member_is_called(folder):
    write, _ = folder
    touch = {"_target_": "os.system", "command": "touch canary"}
    for model in (touch, {"_target_": "studyloom.models.MLP", "hidden": [touch]}):
        with pytest.raises(ConfigError, match=r"committee\.members\[1\]"):
            load_network(write(model=model), committee=True)


def test_a_file_that_did_not_come_with_the_answer_is_refused(folder):
    run_dir = folder[0]()
    (run_dir / COMMITTEE).write_bytes(b"another")
    with pytest.raises(PredictError, match=r"incomplete: .*committee\.pt"):
        load_network(run_dir, committee=True)
    write_answer(run_dir, answer_of(data={}), {"winner.yaml": b"model: {}"})
    with pytest.raises(PredictError, match=r"again with winner\.committee=true"):
        load_network(run_dir, committee=True)
