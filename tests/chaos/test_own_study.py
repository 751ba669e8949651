"""Real commands on a study of one's own, whose network is in the folder where it was run."""

import json
import re
import shlex
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


def test_the_command_in_winner_yaml_works_as_printed(project):
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


def test_predict_and_winner_use_the_code_of_the_study_s_folder_with_consent(project, tmp_path):
    """In that folder its packages are found if they are trusted; elsewhere a line says how."""
    run_dir, points = project / "runs" / "my run", project / "points.npy"
    here = studyloom("predict", "runs/my run", "points.npy", "--trust", "studies", cwd=project)
    assert here.returncode == 0, here.stderr
    assert len(here.stdout.splitlines()) == 3
    distrusted = studyloom("predict", run_dir, points, cwd=project)
    assert distrusted.returncode == 2
    assert "--trust studies" in distrusted.stderr
    for command in (("predict", run_dir, points, "--trust", "studies"), ("winner", run_dir)):
        away = studyloom(*command, cwd=tmp_path)
        assert away.returncode == 2
        assert "Traceback" not in away.stderr
        (option,) = re.findall(r"add (--code .*)$", away.stderr, re.MULTILINE)
        assert shlex.split(option) == ["--code", str(project)]
        told = studyloom(*command, *shlex.split(option), cwd=tmp_path)
        assert told.returncode == 0, told.stderr
        if command[0] == "predict":
            answers = [
                [line.split("\t")[1:] for line in d.stdout.splitlines()] for d in (told, here)
            ]
            assert answers[0] == answers[1]
