"""A search that ends before its budget is spent: whole commands, killed in the midst."""

import json

import pytest
from commands import study, studyloom
from harness import outcomes
from live_processes import linux
from runs import STUDY, Run, kill

from studyloom.decisions.early_end import decide_early_end

pytestmark = [pytest.mark.nightly, linux]
TRIALS = 20
REGRET = 0.2  # which every estimate is below, so that it ends with the first, of ten trials
EARLY = (
    *(*STUDY, f"study.trials={TRIALS}", "train.epochs=8"),
    *("study.stop=improvement", f"study.min_improvement={REGRET}"),
)


class Early(Run):
    """A run whose search ends early: the law of exit code 0 is then the stated end."""

    def check_success(self, printed: str) -> None:
        trials, counts = self.stored().trials(), self.stored().ledger.counts()
        found = decide_early_end(self.stored(), TRIALS)
        assert found is not None, printed
        assert f"the search {found.reason}" in printed
        assert f"{found.begun} of {TRIALS} trials" in printed
        assert counts == {"free": TRIALS - found.begun, "held": 0, "done": found.begun}, "I9"
        assert all(trial.state.is_finished() for trial in trials), "I9: a trial runs for ever"
        assert [trial.user_attrs["slot"] for trial in trials] == [*range(found.begun)], "I2"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The outcomes of all trials of the budget."""
    folder = tmp_path_factory.mktemp("undisturbed")
    whole = ("study.stop=null", "study.min_improvement=null", "launcher.workers=1")
    run = Run(folder, f"sqlite:///{folder}/study.db", EARLY, trials=TRIALS)
    done = study(*run.overrides, *whole, **run.environment)
    run.ended(done.returncode, done.stdout, done.stderr, 0)
    return outcomes(run.stored())


@pytest.fixture
def run(tmp_path):
    run = Early(tmp_path / "run", f"sqlite:///{tmp_path}/run/study.db", EARLY)
    yield run
    kill(run.processes())


def test_an_early_end_stays_as_decided_although_workers_are_killed(run, undisturbed):
    process = run.start()
    run.until_done(6)
    kill(run.processes())
    process.communicate()
    printed = run.end(run.start(), 0)
    assert f"expected to gain less than study.min_improvement={REGRET}" in printed
    found = decide_early_end(run.stored(), TRIALS)
    assert found.gain < REGRET
    before = outcomes(run.stored())
    assert before <= undisturbed
    again = study(*run.overrides, **run.environment)
    assert "goes on" not in run.ended(again.returncode, again.stdout, again.stderr, 0)
    assert outcomes(run.stored()) == before
    assert decide_early_end(run.stored(), TRIALS) == found
    shown = studyloom("status", run.folder, "--json", **run.environment)
    assert json.loads(shown.stdout)["end_reason"] == decide_early_end(run.stored(), TRIALS).reason
    watched = studyloom("status", run.folder, "--watch", **run.environment)  # and does not wait
    assert (watched.returncode, watched.stdout.count("ended after")) == (0, 1)
    whole = study(
        *run.overrides, "study.stop=null", "study.min_improvement=null", **run.environment
    )
    assert whole.returncode == 0
    assert f"{TRIALS} of {TRIALS} trials" in whole.stdout
    assert outcomes(run.stored()) == undisturbed
