"""Trials that are trained by two processes, with gloo on the CPU: real commands and real deaths."""

import contextlib
import random

import pytest
from harness import outcomes
from live_processes import linux
from ranked import TRIALS, RanksRun, below, losses
from runs import EPOCHS, holder, kill, nap

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
    environments = [trial.user_attrs["provenance"]["environment"] for trial in undisturbed.trials()]
    assert {environment["ranks"] for environment in environments} == {2}


def test_a_command_and_then_a_rank_that_are_killed_cost_nothing(run, undisturbed):
    def kill_the_command():
        kill([run.latest.pid])
        run.until_gone(20)  # no rank outlives its command

    run.at_work(meanwhile=kill_the_command).communicate()
    printed = run.end(run.at_work(meanwhile=run.kill_rank_1), 0)
    assert "rank 1 of a worker ended with signal SIGKILL; its log: " in printed
    assert outcomes(run.stored()) == outcomes(undisturbed)
    assert losses(run.stored()) == losses(undisturbed)
    claims = [trial.user_attrs["provenance"]["claims"] for trial in run.stored().trials()]
    assert claims == [3, 1, 1], "its trial was adopted twice, and resumed"


@pytest.fixture
def steps(tmp_path):
    (tmp_path / "steps").mkdir()
    return tmp_path / "steps"


@pytest.mark.nightly
def test_a_pruned_trial_ends_in_both_ranks(run, steps):
    pruner = ("pruner=median", "pruner.n_startup_trials=1", "pruner.n_warmup_steps=2")
    process = run.start("model._target_=gate.Counted", *pruner, STUDYLOOM_TEST_STEPS=str(steps))
    run.end(process, 0)
    trials = run.stored().trials()
    assert "PRUNED" in [trial.state.name for trial in trials]
    epochs = sum(map(len, losses(run.stored())))
    assert epochs < TRIALS * EPOCHS
    sizes = {path.name: path.read_text().split() for path in steps.glob("[01]")}
    assert sizes == dict.fromkeys("01", ["16"] * 2 * epochs)  # half of each batch of 32


def test_the_exception_of_one_rank_fails_its_trial_alone(run, steps):
    step = 2 * EPOCHS + 3  # in the second epoch of the second trial
    failing = {"STUDYLOOM_TEST_STEPS": str(steps), "STUDYLOOM_TEST_FAIL": f"1 {step}"}
    printed = run.end(run.start("model._target_=gate.Counted", **failing), 0)
    assert "a worker ended" not in printed  # both ranks have gone on
    trials = run.stored().trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    words = f"ArithmeticError: rank 1 has failed in step {step}"
    assert trials[1].user_attrs["reason"] == words


@pytest.mark.nightly
def test_ranks_that_are_killed_at_any_moment_cost_nothing(run, undisturbed):
    def reports(stored):
        return sum(len(trial.intermediate_values) for trial in stored.trials())

    process, luck = run.start("launcher.workers=2", "study.max_attempts=99"), random.Random(1)
    run._until(reports)
    for _ in range(6):
        begun = reports(run.stored())
        run._until(lambda stored, n=begun: reports(stored) > n or process.poll() is not None)
        nap(luck.random() * 0.05)  # somewhere in an epoch
        if held := run.stored().ledger.held():
            first = holder(luck.choice(held))
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


@pytest.mark.nightly
def test_a_loop_goes_on_after_a_kill_and_a_rank_that_hangs_ends_with_the_others(tmp_path):
    """The trial that hangs has failed, and no other."""
    runs = [
        RanksRun(tmp_path / name, f"sqlite:///{tmp_path}/{name}/study.db", *LOOP)
        for name in ("undisturbed", "killed", "hangs")
    ]
    undisturbed, killed, hangs = runs
    undisturbed.end(undisturbed.start(), 0)
    killed.end(killed.at_work(meanwhile=killed.kill_rank_1), 0)
    assert outcomes(killed.stored()) == outcomes(undisturbed.stored())
    hangs.end(hangs.start("study.trial_timeout=30", STUDYLOOM_TEST_HANG="1 1 3"), 0)
    trials = hangs.stored().trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert len(trials[1].intermediate_values) == 2
    assert "study.trial_timeout=30" in trials[1].user_attrs["reason"]
    rest = outcomes(hangs.stored()) & outcomes(undisturbed.stored())
    assert {number for number, *_ in rest} == {0, 2}
