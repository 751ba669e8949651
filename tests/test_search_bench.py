"""`bench.py search`: its statistics, its files, its replays, and the peers next to them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scripts.search import comparison, peers
from scripts.search.comparison import FACTS, Search, Setting, run_searches, show, whole_seeds
from scripts.search.simulator import define, replay
from scripts.search.statistics import describe, interval
from scripts.search.surrogates import SPACE, Surrogate
from scripts.search.tables import Task
from studyloom.decisions.asha import AshaOrder
from studyloom.metrics import ObjectiveValue
from studyloom.storage.standings import DONE, OPEN, UNCLAIMED, RungReport, Standing

EPOCHS, TRIALS = 9, 12
VALUES = np.random.default_rng(0).random((100, 1, EPOCHS)).cumsum(2).astype(np.float32)
SPACE_OF_TOY = {"a": {"int": [0, 9]}, "b": {"choice": [*range(10)]}}
TOY = Task("toy", "toys", "mnist", ("space=none", "model=mlp"), SPACE_OF_TOY, (), VALUES)
RANDOM = ("sampler=random", "pruner=asha", "pruner.min_resource=1")
MAP = SimpleNamespace(imap=map)  # a pool without processes


def test_the_interval_of_equal_differences_is_their_value():
    assert interval(np.full((3, 5), 0.25)) == (0.25, 0.25)
    assert describe(np.full((3, 5), 0.25)) == "+0.250 [+0.250, +0.250]"


def test_an_interval_has_the_mean_and_narrows_with_more_seeds():
    values = np.random.default_rng(1).normal(size=(8, 400))
    widths = []
    for seeds in (4, 40, 400):
        low, high = interval(values[:, :seeds])
        assert low < values[:, :seeds].mean() < high
        widths.append(high - low)
    assert widths[0] > 2 * widths[1] > 2 * widths[2]


def test_only_seeds_that_both_methods_have_are_paired(capsys):
    ours = np.full((2, 3, len(FACTS) + 16), 0.5)
    theirs = ours + np.array([0.1, 0.2, 9.0])[None, :, None]
    ours[1, 2] = np.nan  # a task lacks the third seed
    assert whole_seeds(ours) == [0, 1]
    show({"ours": ours, "theirs": theirs}, "theirs")
    *_, gains = capsys.readouterr().out.splitlines()
    assert gains.startswith("ours ")
    assert gains.count("+0.150 ") == len(comparison.MARKS)


@pytest.fixture
def searches(monkeypatch):
    """Three searches of a toy, whose work is counted; and the count."""
    done = []

    def work(search):
        done.append(search.seed)
        return search, np.array([1.0, 1.0, 0.1, search.seed])

    monkeypatch.setattr(comparison, "work", work)
    return [Search("toys", "toy", "random", seed, Setting()) for seed in range(3)], done


def test_a_search_whose_result_is_in_a_file_is_not_run_again(tmp_path, searches):
    planned, done = searches
    assert len(run_searches(MAP, planned[:2], tmp_path)) == 2  # and then it was interrupted
    found = run_searches(MAP, planned, tmp_path)
    assert done == [0, 1, 2]
    assert [found[search][-1] for search in planned] == [0, 1, 2]


def test_a_result_is_valid_for_one_setting_and_one_state_of_the_code(
    tmp_path, searches, monkeypatch
):
    planned, done = searches
    for more in ({}, {"workers": 4}, {"trials": 20}, {"epochs": 12}):
        run_searches(MAP, [replace(planned[0], setting=Setting(**more))], tmp_path)
    assert len(done) == 4
    monkeypatch.setattr(comparison, "digest", lambda method: "other")
    run_searches(MAP, planned[:1], tmp_path)
    assert len(done) == 5


def test_the_digest_of_the_product_is_that_of_its_files(monkeypatch, tmp_path):
    comparison.digest.cache_clear()
    before = comparison.digest("tpe")
    assert comparison.digest("optuna") != before == comparison.digest("default")
    (tmp_path / "more.yaml").write_text("a: 1")
    monkeypatch.setattr(comparison, "CONF", tmp_path)
    comparison.digest.cache_clear()
    assert comparison.digest("tpe") != before
    comparison.digest.cache_clear()


def test_a_replay_trains_what_the_order_of_promotion_chooses():
    tape = replay(TOY.begin(0), RANDOM, 0, 60, trials=TRIALS)
    order = AshaOrder(1, 3, 1, (ObjectiveValue("accuracy", "maximize"),))
    rungs, reached = order.rungs(EPOCHS), dict[int, dict[int, float]]()
    for trial, epoch, value in zip(tape.trials, tape.epochs, tape.values, strict=True):
        before = reached.setdefault(trial, {})
        assert epoch == len(before) + 1
        if epoch == 1 or epoch - 1 in rungs:
            while (
                chosen := order.choose([standing(n, reached, rungs) for n in range(TRIALS)])
            ) and (chosen.ends_pruned):
                reached[chosen.slot][0] = DONE
            assert chosen is not None
            assert chosen.slot == trial
        before[epoch] = value
    assert len(reached) == TRIALS


def standing(slot: int, reached: dict[int, dict[int, float]], rungs: list[int]) -> Standing:
    """Returns how far a trial has come; its epoch 0 marks that it has ended."""
    if not (values := reached.get(slot)):
        return Standing(slot, UNCLAIMED)
    last = max(values)
    reports = {rung: RungReport(rung, values[rung]) for rung in rungs if rung <= last}
    state = DONE if 0 in values or last == EPOCHS else OPEN
    return Standing(slot, state, last, reports, paused=max(reports, default=None))


class Halving:
    """A peer without a process: it trains two configurations, and continues the better one."""

    def __init__(self, error: str = "") -> None:
        self.error, self.told = error, list[float]()

    def call(self, name, *arguments):
        if name == "begin":
            space, epochs, _ = arguments
            assert [name for name, *_ in space] == ["a", "b"]
            assert epochs == EPOCHS
        elif self.error:
            raise RuntimeError(self.error)
        elif name == "tell":
            self.told.append(arguments[1])
        elif len(self.told) < 2:
            return [len(self.told), {"a": len(self.told), "b": 3}, 2]
        elif len(self.told) == 2:
            return [int(self.told[1] > self.told[0]), {"a": 9, "b": 9}, 5]
        return None


def test_a_trial_of_a_peer_continues_and_costs_only_its_new_epochs():
    peer = Halving()
    tape = peers.search(peer, TOY.begin(0), 0, 100)
    better = tape.trials[-1]
    assert tape.epochs == [1, 2, 1, 2, 3, 4, 5]
    assert tape.trials == [0, 0, 1, 1, *[better] * 3]
    assert tape.configurations == [[3, 13][trial] for trial in tape.trials]
    assert peer.told == [VALUES[3, 0, 1], VALUES[13, 0, 1], VALUES[[3, 13][better], 0, 4]]


def test_optuna_runs_in_its_process_the_same_each_time(tmp_path):
    tapes = []
    for _ in range(2):
        with peers.Peer("optuna", peers.prepare("optuna", tmp_path)[0], tmp_path) as peer:
            tapes.append(peers.search(peer, TOY.begin(0), 3, 150, workers=2))
    assert tapes[0] == tapes[1]
    assert tapes[0].full
    ends = [
        tapes[0].epochs[n] for n in range(150) if tapes[0].trials[n] not in tapes[0].trials[n + 1 :]
    ]
    assert EPOCHS in ends
    assert any(end < EPOCHS for end in ends[:-2]), "the median pruner has stopped some"


def test_a_peer_whose_library_is_missing_says_so(tmp_path):
    with peers.Peer("none", Path(sys.executable), tmp_path) as peer:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"^none: KeyError: .none"):
                peer.call("begin", [], 9, 0)
        peer._process.kill()
        peer._process.wait()
        with pytest.raises(RuntimeError, match=r"^none: its process ended$"):
            peer.call("propose", 0)


def test_a_peer_that_fails_or_does_not_install_is_one_line(tmp_path, monkeypatch, capsys):
    failed = "smac: ValueError: no"
    plan = [Search("toys", "toy", "smac", seed, Setting(), Path("python")) for seed in range(2)]
    monkeypatch.setattr(comparison, "work", lambda search: (search, failed))
    assert run_searches(MAP, plan, tmp_path) == {}
    assert capsys.readouterr().out == f"{failed}\n"
    made = subprocess.CompletedProcess((), 1, "", "many\nERROR: No matching distribution\n")
    monkeypatch.setattr(peers.subprocess, "run", lambda *_, **__: made)
    assert peers.prepare("smac", tmp_path) == (None, "ERROR: No matching distribution")


def test_a_joined_task_is_one_choice_that_opens_all_hyperparameters_of_a_data_set():
    task = Surrogate((34539, 126029))
    opened = {name: option for name, *_, option in peers.describe_space(task.space)}
    assert opened.pop("network") is None
    assert opened == {f"network.{o}.{n}": o for o in ("first", "second") for n in SPACE}
    (group,) = define(task, (), 0).space.groups()
    assert group.name == "params.network"
    assert {leaf.name for leaves in group.options.values() for leaf in leaves} == {
        f"params.{name}" for name in opened
    }
