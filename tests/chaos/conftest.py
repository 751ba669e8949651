"""The undisturbed run with which every disturbed one is compared."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import harness  # noqa: E402
import pytest  # noqa: E402
from runs import Run  # noqa: E402


@pytest.fixture(scope="session")
def clean(tmp_path_factory):
    """A function: the outcomes of an undisturbed study, by number of trials and seed."""
    known = {}

    def outcomes(trials, seed=0):
        if (trials, seed) not in known:
            folder = tmp_path_factory.mktemp("clean")
            url = f"sqlite:///{folder}/study.db"
            stored = harness.prepare(url, trials, seed)
            harness.run(url, trials, folder, seed)
            harness.check(stored, trials)
            known[trials, seed] = harness.outcomes(stored)
        return known[trials, seed]

    return outcomes


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The outcomes of the study that real commands run."""
    run = Run(folder := tmp_path_factory.mktemp("undisturbed"), f"sqlite:///{folder}/study.db")
    run.finish(None)
    return harness.outcomes(run.stored())
