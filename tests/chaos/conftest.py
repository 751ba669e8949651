"""The undisturbed run with which every disturbed one is compared."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import harness  # noqa: E402
import pytest  # noqa: E402


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
