"""Real commands on a study of one's own, whose network is in the folder where it was run."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import environment, study, studyloom

pytestmark = pytest.mark.chaos

QUICK = ("study.trials=2", "train.epochs=1", "winner.top=1", "winner.seeds=2", "launcher.workers=1")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The folder of a project, with spaces in its path, in which a study of one's own has run."""
    project = tmp_path_factory.mktemp("own") / "my project's folder"
    assert studyloom("new", "mine", project).returncode == 0
    run_dir = "run_dir='runs/my run'"
    done = study(*QUICK, run_dir, page="mine", cwd=project, PYTHONPATH=str(project))
    assert done.returncode == 0, done.stderr
    np.save(project / "points.npy", np.zeros((3, 2), "float32"))
    return project


def test_the_command_in_winner_yaml_works_unchanged(project):
    """Also for a network of one's own, and for paths with spaces and quotes."""
    first = (project / "runs" / "my run" / "winner.yaml").read_text().splitlines()
    command = first[1].removeprefix("# ")
    assert command.startswith("python -m studies.mine ")
    env = environment()
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"  # its python
    done = subprocess.run(command, shell=True, cwd=project, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 trials" in done.stdout
    before = json.loads((project / "runs" / "my run" / "winner.json").read_text())
    after = json.loads((project / "runs" / "mine-winner" / "winner.json").read_text())
    assert after["test"]["winner"]["values"][:2] == before["test"]["winner"]["values"]


def test_a_trusted_run_works_from_any_folder_and_a_copy_names_trust(project, tmp_path):
    run_dir, points = project / "runs" / "my run", project / "points.npy"
    here = studyloom("predict", "runs/my run", "points.npy", cwd=project)
    away = studyloom("predict", run_dir, points, cwd=tmp_path)
    answers = [[line.split("\t")[1:] for line in d.stdout.splitlines()] for d in (here, away)]
    assert len(answers[0]) == 3, here.stderr
    assert answers[0] == answers[1], away.stderr
    for command in (("winner", run_dir), ("replay", run_dir, "--trial", 1)):
        done = studyloom(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    copy = shutil.copytree(run_dir, tmp_path / "copy")
    distrusted = studyloom("predict", copy, points, cwd=tmp_path)
    assert distrusted.returncode == 2
    assert "--trust studies" in distrusted.stderr
    trusted = ("predict", copy, points, "--trust", "studies")
    lost = studyloom(*trusted, cwd=tmp_path)
    assert lost.returncode == 2
    (option,) = re.findall(r"add (--code .*)$", lost.stderr, re.MULTILINE)
    told = studyloom(*trusted, *shlex.split(option), cwd=tmp_path)
    assert told.returncode == 0, told.stderr
