"""A stand-in for the run of a trial, which takes reports."""

import pytest


class Run:
    """What an adapter sees of a trial.

    Args:
        folder: of the trial.
    """

    def __init__(self, folder):
        self.dir, self.seed, self.trial, self.stage = folder, 7, 3, "search"
        self.reports, self.warnings, self.kept = [], [], {}
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, value, step):
        self.reports.append((step, value))

    def keep_at_end(self, **parts):
        self.kept |= parts

    def warn(self, words):
        self.warnings.append(words)


@pytest.fixture
def make_run(tmp_path):
    return lambda: Run(tmp_path / "trial")
