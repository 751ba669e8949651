"""The undisturbed run with which every disturbed one is compared."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "helpers")]

import harness  # noqa: E402
import pytest  # noqa: E402
from runs import Run  # noqa: E402


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A function: the trials of an undisturbed study, by their number and the seed."""
    known = {}

    def trials_of(trials, seed=0):
        if (trials, seed) not in known:
            folder = tmp_path_factory.mktemp("whole")
            url = f"sqlite:///{folder}/study.db"
            stored = harness.prepare(url, trials, seed)
            harness.run(url, trials, folder, seed)
            harness.check(stored, trials)
            known[trials, seed] = stored.trials()
            stored.close()
        return known[trials, seed]

    return trials_of


@pytest.fixture(scope="session")
def clean(whole):
    """The same, for their outcomes."""
    return lambda trials, seed=0: harness.outcomes_of(whole(trials, seed))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The outcomes of the study that real commands run."""
    run = Run(folder := tmp_path_factory.mktemp("undisturbed"), f"sqlite:///{folder}/study.db")
    run.finish(None)
    return harness.outcomes(run.stored())
