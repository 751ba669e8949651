"""The bench that says where the time of a trial goes."""

import os
import re
import subprocess
import sys

import pytest
from commands import ROOT

pytestmark = pytest.mark.nightly


def test_profile_prints_every_part_of_a_trial_at_its_smallest_size():
    env = {name: value for name, value in os.environ.items() if name != "STUDYLOOM_DATA"}
    command = [sys.executable, "scripts/bench.py", "profile", "--trials", "2"]
    done = subprocess.run(
        command, cwd=ROOT, env=env | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for bench in ("example", "tutorial"):
        assert f"{bench}: left out; it needs STUDYLOOM_DATA" in done.stdout
    rows = {
        label.strip(): [float(number) for number in numbers]
        for label, *numbers in re.findall(
            r"^  (\S.*?) +([\d.]+) +([\d.]+) +([\d.]+)% +([\d.]+)$", done.stdout, re.MULTILINE
        )
    }
    parts = ["batch gathered", "forward and loss", "backward", "optimizer", "python"]
    expected = [f"step: {part}" for part in parts]
    expected += ["evaluation", "checkpoint: written", "sampler", "pruner", "storage: python"]
    expected += [
        "storage: commit",
        "storage: INSERT trial_intermediate_values",
        "the worker's loop",
    ]
    for label in expected:
        assert rows[label][3] > 0, label  # it was called
    steps = {rows[f"step: {part}"][3] for part in ("forward and loss", "backward", "optimizer")}
    assert len(steps) == 1
    total = rows.pop("all")
    assert sum(row[0] for row in rows.values()) == pytest.approx(total[0], abs=0.01 * len(rows))
    for label in ("kernels", "autograd", "python and the rest", r"aten::\w+"):
        assert re.search(rf"^    {label} +[\d.]+ +[\d.]+%$", done.stdout, re.MULTILINE), label
