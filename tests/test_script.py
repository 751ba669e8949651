"""What a script defines and searches is found by the commands, which are other programs."""

import json
import runpy
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import studyloom as sl
from studyloom.cli import main

HEAD = """\
import sys
import torch
from torch import nn
import studyloom as sl
from helper import WIDTH

class Net(nn.Module):
    def __init__(self, shape, outputs, width=WIDTH):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(shape[0], width), nn.Linear(width, outputs))

    def forward(self, x):
        return self.layers(x)

def loop(run, *, width=8):
    net = nn.Linear(4, width)
    run.keep(net=net)
    for _ in run.epochs(2):
        run.report(loss=1 / width + net.weight.sum())
    return run.value

def layer(width):
    return nn.Linear(4, width)
"""
FEW = 'trials=2, workers=1, quiet=True, winner={"top": 1, "seeds": 1}, sampler="random"'
UNGUARDED = f"""
x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
pair = (x, (x[:, 0] > 0).long())
study = sl.search(Net, data=(pair, pair), name="mine", space={{"model": {{"width": sl.Int(4, 9)}}}},
                  train={{"epochs": 1, "batch_size": 16}}, {FEW})
study.close()
with open("ran", "a") as file:
    file.write("x")
"""
GUARDED = f"""
if __name__ == "__main__":
    sl.search(loop, minimize="loss", name="looped", space={{"width": sl.Int(4, 9)}},
              objective={{"network": "__main__.layer"}}, {FEW}).close()
    with open("ran", "a") as file:
        file.write("x")
"""


KINDS = ("mine", "looped")  # a network whose search runs at import, and a loop behind a guard


@dataclass
class SearchedScript:
    """A script that has run.

    Attributes:
        folder: the working directory.
        path: the script, in a folder of its own.
        run_dir: the run directory of its study.
    """

    folder: Path
    path: Path
    run_dir: Path


def search_script(kind, folder):
    """Writes a script into a folder, which must be the working directory, and runs it there."""
    code = folder / "code"
    code.mkdir()
    script = code / f"{kind}_script.py"
    script.write_text(HEAD + (UNGUARDED if kind == "mine" else GUARDED))
    (code / "helper.py").write_text("WIDTH = 5\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(code), *sys.path])
        runpy.run_path(str(script), run_name="__main__")
    sys.modules.pop("helper")
    np.save("inputs.npy", np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32))
    return SearchedScript(folder, script, folder / "runs" / kind)


@pytest.fixture(scope="module", params=KINDS)
def script_once(request, tmp_path_factory):
    """A script that has run once for all tests."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return search_script(request.param, folder)


@pytest.fixture
def searched(script_once, tmp_path, monkeypatch):
    """A script that has run, from its working directory; what a test changes there is restored."""
    folder = script_once.folder
    saved = shutil.copytree(folder, tmp_path / "saved")
    monkeypatch.chdir(folder)
    yield script_once
    shutil.rmtree(folder)
    saved.rename(folder)


def test_commands_import_a_script_without_running_its_guarded_code(searched, capsys):
    run_dir = searched.run_dir
    for command in (
        ["predict", run_dir, "inputs.npy"],
        ["replay", run_dir, "--trial", 1],
        ["winner", run_dir],
    ):
        before, path = sys.modules["__main__"], [*sys.path]
        assert main([*map(str, command)]) in (0, None), capsys.readouterr().err
        assert (sys.modules["__main__"], sys.path) == (before, path)
        assert not hasattr(before, "Net")
    out = capsys.readouterr().out
    assert "equal bit for bit" in out
    assert "inputs.npy[2]\t" in out
    assert Path("ran").read_text() == "x", "the script searched once, and ended there"


def test_a_changed_or_missing_script_is_named_or_refused(searched, capsys, caplog):
    script, run_dir = searched.path, searched.run_dir
    edited = script.read_text().replace("super().__init__()", "super().__init__(); 3")
    script.write_text(edited.replace("run.keep(net=net)", "run.keep(net=net); 3"))
    predict = ["predict", str(run_dir), "inputs.npy"]
    assert main(predict) == 0
    assert f"{script} has changed since the study ran" in caplog.text
    assert main(["winner", str(run_dir)]) == 2
    changed = "Net" if run_dir.name == "mine" else "loop"
    assert f"the code of {changed} has changed since the study" in capsys.readouterr().err
    moved = script.parent.rename(searched.folder / "moved")
    assert main(predict) == 2
    assert f"{script}: the script of the study is not there" in capsys.readouterr().err
    assert main([*predict, "--code", str(moved)]) == 0
    (run_dir / ".hydra" / "script.sha256").unlink()
    assert main(predict) == 2
    assert "is defined in a script or notebook that is not this program" in capsys.readouterr().err


def test_a_script_continues_with_more_trials_under_the_same_definition(searched, monkeypatch):
    script, run_dir = searched.path, searched.run_dir
    script.write_text(script.read_text().replace("trials=2", "trials=3"))
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
    runpy.run_path(str(script), run_name="__main__")
    with sl.open_study(run_dir) as study:
        assert len(study.trials) == 3


@pytest.mark.parametrize("script_once", KINDS[:1], indirect=True)
def test_a_script_of_an_untrusted_directory_is_not_executed(
    searched, tmp_path, capsys, monkeypatch
):
    script, run_dir = searched.path, searched.run_dir
    copy = shutil.copytree(run_dir, tmp_path / "copy")
    predict = ["predict", str(copy), "inputs.npy", "--trust", "studyloom"]
    consent = ["--trust", "__main__", "--code", str(script.parent)]
    script.write_text("open('hacked', 'w')\n" + script.read_text())
    for command in (predict, [*predict, *consent], ["replay", str(copy), "--trial", "1"]):
        assert main(command) == 2
        assert "__main__." in capsys.readouterr().err
    assert main(["winner", str(copy)]) == 2
    assert "add --trust-config" in capsys.readouterr().err
    with pytest.raises(sl.ConfigError, match="is defined in a script or notebook that is not this"):
        sl.load_winner(copy, trust=["studyloom"])
    assert not (searched.folder / "hacked").exists()


def test_winner_yaml_names_no_command_that_cannot_import_it(searched):
    first, second, *_ = (searched.run_dir / "winner.yaml").read_text().splitlines()
    assert first.startswith("# The winner of ")
    assert first.endswith(".")
    assert not second.startswith("#")


def test_a_config_of_a_script_is_refused_with_what_to_move(searched):
    script, run_dir = searched.path, searched.run_dir
    names = {"mine": "Net", "looped": "layer, loop"}[run_dir.name]
    with sl.open_study(run_dir) as study, pytest.raises(sl.ConfigError) as caught:
        study.to_yaml("conf")
    assert f"what {script} defines: move {names} into a module" in str(caught.value)
    assert f"`from parts import {names}`" in str(caught.value)
    assert not Path("conf").exists()


def test_another_program_loads_the_winner_as_predict_does(searched, capsys):
    inputs = np.load("inputs.npy")
    before = dict(sys.modules)
    path = [*sys.path]
    winner = sl.load_winner(searched.run_dir)
    prediction = winner.predict(inputs)
    assert sys.path == path
    for name in ("__main__", "__mp_main__"):
        assert sys.modules.get(name) is before.get(name)
    assert Path("ran").read_text() == "x", "the script searched once, and ended there"
    assert main(["predict", str(searched.run_dir), "inputs.npy", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)["predictions"][0]
    if prediction.classes is not None:
        assert first["label"] == int(prediction.classes[0])
    else:
        assert first["values"] == pytest.approx(prediction.values[0].tolist())

    make = type(winner.network)
    if make is torch.nn.Linear:
        make = runpy.run_path(str(searched.path))["layer"]
    searched.path.unlink()
    with pytest.raises(sl.ConfigError, match=r"not there.*load_winner\(RUN_DIR, network=Net\)"):
        sl.load_winner(searched.run_dir).predict(inputs)
    sl.load_winner(searched.run_dir, network=make).predict(inputs)


def test_a_script_that_loads_its_own_winner_is_not_run_again(searched, monkeypatch):
    """Neither by the program that runs it, nor while another program imports it."""
    script = searched.path
    loading = f"winner = sl.load_winner({str(searched.run_dir)!r})\nassert winner.predict(inputs)\n"
    inputs = 'import numpy\ninputs = numpy.load("inputs.npy")\n'
    script.write_text(HEAD + inputs + loading)
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
    runpy.run_path(str(script), run_name="__main__")
    sl.load_winner(searched.run_dir).predict(np.load("inputs.npy"))


@pytest.mark.parametrize("script_once", KINDS[:1], indirect=True)
def test_a_script_that_ends_its_process_on_import_is_named(searched, capsys):
    script, run_dir = searched.path, searched.run_dir
    for code, words in (
        ("sys.exit(len(sys.argv))", "(SystemExit: 1)"),
        ("print(sys.argv[1:])", ""),
    ):
        script.write_text(f"import sys\n{code}\n{HEAD}")
        assert main(["predict", str(run_dir), "inputs.npy"]) == (2 if words else 0)
        out, err = capsys.readouterr()
        assert f"{script}: ends its process when it is imported {words}" in err or not words
    assert out.startswith("[]\n")
