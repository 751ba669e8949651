"""A stand-in for the run of a trial, which takes reports."""

import pytest


class Run:
    """What an adapter sees of a trial.

    Args:
        folder: of the trial.
        value: that was reported last, at `step`, by an attempt before.
    """

    def __init__(self, folder, value=None, step=-1):
        self.dir, self.seed, self.trial, self.stage = folder, 7, 3, "search"
        self.value, self.step = value, step
        self.reports = []
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, value, step):
        self.reports.append((step, value))


@pytest.fixture
def make_run(tmp_path):
    return lambda **before: Run(tmp_path / "trial", **before)
