"""Trials that are trained by two processes, with gloo on the CPU: real commands and real deaths."""

import contextlib
import os
import random
import signal

import pytest
from harness import outcomes
from live_processes import linux, until
from ranked import TRIALS, RanksRun, below, losses
from runs import EPOCHS, kill, nap

pytestmark = [pytest.mark.chaos, linux]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same study with two ranks, to its end."""
    run = RanksRun(folder := tmp_path_factory.mktemp("two"), f"sqlite:///{folder}/study.db")
    run.end(run.start(), 0)
    return run.stored()


@pytest.fixture
def run(tmp_path, sqlite_url):
    run = RanksRun(tmp_path / "run", f"sqlite:///{tmp_path}/run/study.db")
    yield run
    kill(run.processes())  # where a test has failed


def test_two_ranks_come_to_the_values_of_one_process(tmp_path, undisturbed):
    one = RanksRun(tmp_path / "one", f"sqlite:///{tmp_path}/one/study.db", "launcher.ranks=1")
    one.end(one.start(), 0)
    assert len(losses(undisturbed)) == TRIALS
    for alone, together in zip(losses(one.stored()), losses(undisturbed), strict=True):
        assert together == pytest.approx(alone, rel=1e-4)
        assert len(together) == EPOCHS
    environments = [trial.user_attrs["made"]["environment"] for trial in undisturbed.trials()]
    assert {environment["ranks"] for environment in environments} == {2}


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.nightly), 1])
def test_a_rank_that_is_killed_costs_nothing(run, undisturbed, rank):
    process, ranks, go_on = run.at_work()
    os.kill(ranks[rank], signal.SIGKILL)
    until(lambda: not {*ranks} & {*run.processes()}, 20)
    go_on()
    printed = run.end(process, 0)
    of_rank = "rank 1 of " if rank else ""
    assert f"{of_rank}a worker ended with signal SIGKILL; its log: " in printed
    assert outcomes(run.stored()) == outcomes(undisturbed)
    assert losses(run.stored()) == losses(undisturbed)
    (death,) = {trial.user_attrs["made"]["claims"] for trial in run.stored().trials()} - {1}
    assert death == 2  # its trial was adopted, and resumed


@pytest.mark.nightly
def test_a_pruned_trial_ends_in_both_ranks(run, tmp_path):
    counts = tmp_path / "steps"
    counts.mkdir()
    pruner = ("pruner=median", "pruner.n_startup_trials=1", "pruner.n_warmup_steps=2")
    process = run.start(*("model._target_=gate.Counted", *pruner), STUDYLOOM_TEST_STEPS=str(counts))
    run.end(process, 0)
    states = [trial.state.name for trial in run.stored().trials()]
    assert "PRUNED" in states
    epochs = sum(len(trial.user_attrs["epochs"]["value"]) for trial in run.stored().trials())
    assert epochs < TRIALS * EPOCHS
    sizes = {path.name: path.read_text().split() for path in counts.glob("[01]")}
    assert sizes == dict.fromkeys("01", ["16"] * 2 * epochs)  # half of each batch of 32


def test_the_exception_of_one_rank_fails_its_trial_alone(run, tmp_path):
    counts = tmp_path / "steps"
    counts.mkdir()
    process = run.start(
        "model._target_=gate.Counted",
        STUDYLOOM_TEST_STEPS=str(counts),
        STUDYLOOM_TEST_FAIL=f"1 {2 * EPOCHS + 3}",  # in the second epoch of the second trial
    )
    printed = run.end(process, 0)
    assert "a worker ended" not in printed  # both ranks have gone on
    first, second, third = run.stored().trials()
    assert (
        second.user_attrs["reason"]
        == f"ArithmeticError: rank 1 has failed in step {2 * EPOCHS + 3}"
    )
    assert [t.state.name for t in (first, second, third)] == ["COMPLETE", "FAIL", "COMPLETE"]


@pytest.mark.nightly
def test_an_exception_beyond_what_ranks_agree_on_fails_its_trial_and_replaces_the_worker(run):
    process = run.start(
        *("optimizer=sgd", "optimizer._target_=gate.FailingSGD"),
        STUDYLOOM_TEST_FAIL=f"1 {2 * EPOCHS + 3}",  # in the second epoch of the second trial
    )
    printed = run.end(process, 0)
    assert printed.count("a worker ended with a signal, and released its trial") == 1
    _, second, _ = run.stored().trials()
    words = f"ArithmeticError: the optimizer has failed in step {2 * EPOCHS + 3}"
    assert second.user_attrs["reason"] == words
    assert "in another rank:" in second.user_attrs["traceback"]
    assert [t.state.name for t in run.stored().trials()] == ["COMPLETE", "FAIL", "COMPLETE"]


def test_no_rank_outlives_its_command(run, undisturbed):
    process, *_ = run.at_work()
    kill([process.pid])
    process.communicate()
    until(lambda: not run.processes(), 20)
    run.end(run.start(), 0)
    assert outcomes(run.stored()) == outcomes(undisturbed)


@pytest.mark.nightly
def test_ranks_that_are_killed_at_any_moment_cost_nothing(run, undisturbed):
    process, luck = run.start("launcher.workers=2", "study.max_attempts=99"), random.Random(1)
    run.until(run.reports)
    for _ in range(6):
        begun = len(run.reports())
        run.until(lambda n=begun: len(run.reports()) > n or process.poll() is not None)
        nap(luck.random() * 0.05)  # somewhere in an epoch
        if held := run.stored().ledger.held():
            first = int(luck.choice(held).owner.rpartition(":")[2])
            with contextlib.suppress(OSError):
                kill([luck.choice([first, *below(first)])])
    run.end(process, 0)
    assert outcomes(run.stored()) == outcomes(undisturbed), run.logs()
    assert losses(run.stored()) == losses(undisturbed)


# A loop of one's own, which only reports in rank 0

LOOP = (
    *("objective._target_=looped.train", "objective.metric=loss", "objective.direction=minimize"),
    *("+params.lr=0.1", "space=none", "+space.params.lr.float=[0.01,0.3]"),
)


@pytest.fixture(scope="module")
def undisturbed_loop(tmp_path_factory):
    run = RanksRun(folder := tmp_path_factory.mktemp("loop"), f"sqlite:///{folder}/study.db", *LOOP)
    run.end(run.start(), 0)
    return run.stored()


@pytest.fixture
def loop(tmp_path):
    run = RanksRun(tmp_path / "run", f"sqlite:///{tmp_path}/run/study.db", *LOOP)
    yield run
    kill(run.processes())


def values(stored):
    return [trial.value for trial in stored.trials()]


@pytest.mark.nightly
def test_a_loop_goes_on_from_what_it_keeps_when_a_rank_is_killed(loop, undisturbed_loop):
    process, ranks, go_on = loop.at_work()
    os.kill(ranks[1], signal.SIGKILL)
    until(lambda: not {*ranks} & {*loop.processes()}, 20)
    go_on()
    loop.end(process, 0)
    assert values(loop.stored()) == values(undisturbed_loop)


@pytest.mark.nightly
def test_a_rank_that_hangs_is_ended_with_the_others_and_its_trial_alone_fails(
    loop, undisturbed_loop
):
    process = loop.start("study.trial_timeout=15", STUDYLOOM_TEST_HANG="1 1 3")
    loop.until(lambda: len(loop.reports()) == 8 + 2)  # the first trial, and two epochs more
    (slot,) = loop.stored().ledger.held()
    first = int(slot.owner.rpartition(":")[2])
    ranks = {first, *below(first)}
    assert len(ranks) == 2
    loop.end(process, 0)  # and none of its processes is left
    trials = loop.stored().trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert "study.trial_timeout=15" in trials[1].user_attrs["reason"]
    assert [trials[0].value, trials[2].value] == values(undisturbed_loop)[::2]
