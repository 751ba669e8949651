"""The path from a study module to the optimizer's step is short enough to be read."""

import json
import subprocess
import sys

import pytest
from commands import ROOT, environment

DEEPEST = 15  # functions of ours, that of the study module included
STUDY = """
import json
import sys
import traceback
from pathlib import Path

import torch

from studyloom.config import hydra_main
from studyloom.run import run


class Recording(torch.optim.SGD):
    def step(self, closure=None):
        frames = [(frame.filename, frame.name) for frame in traceback.extract_stack()]
        if any(name == "run_study" for _, name in frames):  # and not the preflight
            path = Path("frames.json")
            if not path.exists() and any(name == "run_epoch" for _, name in frames):
                path.write_text(json.dumps(frames))
        return super().step(closure)


@hydra_main(config_path=".", config_name="deep")
def main(cfg):
    run(cfg)


if __name__ == "__main__":
    main()
"""
CONFIG = """
defaults: [studyloom, data: mnist5k, model: mlp, _self_]
optimizer: {_target_: deep.Recording, _partial_: true, lr: 0.1}
study: {name: deep, trials: 1}
train: {epochs: 1}
winner: {enabled: false}
launcher: {workers: 1}
"""


@pytest.mark.chaos
def test_few_functions_lie_between_a_study_module_and_an_optimizer_step(tmp_path):
    (tmp_path / "deep.py").write_text(STUDY)
    (tmp_path / "deep.yaml").write_text(CONFIG)
    subprocess.run(
        [sys.executable, "-m", "deep"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(tmp_path)),
        check=True,
        timeout=100,
    )
    frames = json.loads((tmp_path / "frames.json").read_text())
    places = [str(ROOT / "src" / "studyloom"), str(tmp_path)]
    ours = [
        f"{file.rpartition('/')[2]}: {name}"
        for file, name in frames
        if name != "<module>" and any(file.startswith(place) for place in places)
    ]
    assert ours[-1] == "deep.py: step"
    assert len(ours[:-1]) <= DEEPEST, ours
