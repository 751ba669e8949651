"""`studyloom predict` as a command: a user's own data, and files that would fill the memory."""

import json
import os
import resource
import subprocess
import sys

import hostile
import numpy as np
import pytest
import torch
import yaml
from commands import ROOT, environment, study, studyloom
from PIL import Image
from results import write_winner

from studyloom.config.scaffold import write_study
from studyloom.data import Embedded
from studyloom.data.sources import ASSET
from studyloom.models import MLP

pytestmark = pytest.mark.chaos

# Digits, black on white and from -1 to 1, as `studyloom new` asks for a function that loads them.
LOAD = """

def load(part):
    from studyloom.data.sources import ASSET

    import numpy as np

    with np.load(ASSET) as arrays:
        pixels, digits = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    return torch.from_numpy(1 - pixels / 127.5)[:, None].float(), torch.from_numpy(digits).long()


def to_input(image):
    return image / 127.5 - 1


@hydra_main"""
GIB = 2**30


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A study of one's own that has ended, whose data source says nothing of images."""
    folder = tmp_path_factory.mktemp("mine")
    write_study("mine", folder)
    page = folder / "studies" / "mine.py"
    page.write_text(page.read_text().replace("\n\n@hydra_main", LOAD))
    few = ("study.trials=1", "train.epochs=3", "winner.seeds=1", "launcher.workers=1")
    done = study(*few, page="mine", cwd=folder)
    assert done.returncode == 0, done.stderr
    with np.load(ASSET) as arrays:
        for number, pixels in enumerate(arrays["test_images"][::20]):
            Image.fromarray(255 - pixels).save(folder / f"{number:02}.png")
    return folder


def test_images_are_read_as_load_normalized_them_once_the_source_says_how(mine):
    images = sorted(path.name for path in mine.glob("*.png"))
    where = {"cwd": mine, "PYTHONPATH": str(mine)}
    ask = ("predict", "runs/mine", *images, "--trust", "studies")
    done = studyloom(*ask, **where)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 50
    assert "does not say how an image becomes an input; name it as data.transform" in done.stderr
    path = mine / "conf" / "mine.yaml"
    config = yaml.safe_load(path.read_text())
    says = {"_target_": "studies.mine.to_input", "_partial_": True}
    config["data"]["transform"] = says
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    done = studyloom("winner", "runs/mine", **where)
    assert done.returncode == 0, done.stderr
    done = studyloom(*ask, **where)
    assert done.returncode == 0, done.stderr
    answered = [int(line.split("\t")[1]) for line in done.stdout.splitlines()]
    truth = Embedded().test().targets[::20].tolist()
    right = sum(a == t for a, t in zip(answered, truth, strict=True)) / len(truth)
    told = json.loads((mine / "runs" / "mine" / "winner.json").read_text())
    assert right == pytest.approx(told["test"]["winner"]["mean"], abs=0.15)
    assert told["data"]["transform"].items() >= says.items()


def test_no_input_takes_a_gibibyte_and_valid_inputs_are_predicted(tmp_path):
    network = MLP((1, 28, 28), 10, hidden=[]).state_dict()
    run = write_winner(
        tmp_path / "run",
        {"_target_": "studyloom.models.MLP", "hidden": []},
        # With ones as weights the outputs of enormous numbers are infinite, whatever the seed.
        {name: torch.ones_like(each) for name, each in network.items()},
        shape=[1, 28, 28],
        outputs=10,
        mean=0.1307,
        std=0.3081,
        transform={"_target_": "studyloom.data.Image"},
    )
    canary = tmp_path / "canary"
    files = hostile.images() | hostile.arrays(canary) | hostile.archives(canary)
    bad = hostile.write(tmp_path / "bad", files) + hostile.nodes(tmp_path / "nodes")
    good = tmp_path / "good.png"
    good.write_bytes(hostile.image("PNG", (7000, 7000)))

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (6 * GIB, 6 * GIB))

    command = [sys.executable, "-m", "studyloom", "predict", run, *bad[:40], good, *bad[40:]]
    process = subprocess.Popen(
        [*map(str, command)],
        preexec_fn=limit,
        cwd=ROOT,
        env=environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        out, err = process.stdout.read(), process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 2, err
    assert [line.split("\t")[0] for line in out.splitlines()] == [str(good)]
    lines = err.splitlines()
    assert len(lines) == len(bad)
    for path, line in zip(bad, lines, strict=True):
        assert line.startswith(f"error: {path}: ")
    assert used.ru_maxrss * 1024 < GIB
    assert not canary.exists()
