"""A winner made small by commands, and its file where there is neither studyloom nor torch."""

import json
import re
import signal
import subprocess
import venv
from importlib.metadata import version

import numpy as np
import pytest
import torch
from commands import QUICK, study, studyloom

from studyloom.storage.opening import open_study

pytestmark = pytest.mark.nightly
for package in ("onnx", "onnxscript", "onnxruntime", "torch_pruning"):
    pytest.importorskip(package, reason="the extra export is missing")

COMMAND = (
    *(word for word in QUICK if not word.startswith(("winner", "model"))),
    *("model.hidden=[64]", "study.trials=1", "launcher.workers=1", "winner.seeds=1"),
)
# All that a program needs which runs the file.
ALONE = """
import json, sys
import numpy as np, onnxruntime
for name in ("torch", "studyloom"):
    assert name not in sys.modules
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} is here")
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = json.loads(session.get_modelmeta().custom_metadata_map["studyloom"])
for batch in (1, 3):
    inputs = np.load(sys.argv[2])[:batch]
    np.save(sys.argv[3], session.run(None, {"inputs": inputs})[0])
print(facts["shape"])
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run directory with a winner that was made small, and what the command printed."""
    folder = tmp_path_factory.mktemp("small") / "run"
    done = study(*COMMAND, f"run_dir={folder}")
    assert done.returncode == 0, done.stdout + done.stderr
    # By bytes alone, so that no latency has a say in what is chosen.
    words = ("ratios=[0.5]", "widths=[0.5]", "repeats=3", "rule=min bytes")
    done = studyloom("compress", folder, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def uses(folder):
    stored = open_study(f"sqlite:///{folder / 'study.db'}", "mnist")
    count = stored.test_uses()
    stored.close()
    return count


def test_compress_writes_its_files_and_uses_the_test_set_once(run_dir):
    folder, printed = run_dir
    record = json.loads((folder / "winner.onnx.json").read_text())
    assert [row["name"].split(",")[0] for row in record["variants"][::2]] == [
        *("unchanged", "pruned by 0.5", "student of 0.5")
    ]
    sizes = {row["name"]: row["bytes"] for row in record["variants"]}
    assert 3 < sizes["unchanged, fp32"] / sizes["unchanged, int8"] < 4
    assert record["chosen"]["bytes"] == (folder / "winner.onnx").stat().st_size
    assert record["chosen"]["name"] == min(sizes, key=sizes.get)
    assert uses(folder) == record["test"]["test_set_uses"] == 2
    assert re.search(r"chosen .* by min bytes", printed)
    content = (folder / "winner.onnx").read_bytes()
    assert str(folder.parent).encode() not in content
    assert b"site-packages" not in content, "which line of whose code a node is of"


def test_a_compressed_winner_runs_without_studyloom_and_torch(run_dir, tmp_path):
    from studyloom.extras.export.onnx import OnnxNetwork

    folder, _ = run_dir
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    wanted = f"onnxruntime=={version('onnxruntime')}"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wanted], check=True, timeout=600)
    inputs = np.random.default_rng(0).normal(size=(3, 1, 28, 28)).astype(np.float32)
    np.save(tmp_path / "inputs.npy", inputs)
    files = (folder / "winner.onnx", tmp_path / "inputs.npy", tmp_path / "outputs.npy")
    command = [python, "-I", "-c", ALONE, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[1, 28, 28]"
    ours = OnnxNetwork((folder / "winner.onnx").read_bytes())(torch.from_numpy(inputs))
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), ours.numpy(), atol=1e-5)


def test_a_killed_compression_is_completed_by_the_same_command(run_dir):
    folder, _ = run_dir
    words = ("ratios=[]", "widths=[0.5]", "repeats=3", "rule=min bytes")
    for file in ("winner.onnx.json", "winner.onnx"):
        done = studyloom("compress", folder, *words, STUDYLOOM_TEST_KILL=file)
        assert done.returncode == -signal.SIGKILL, (file, done.stdout, done.stderr)
    done = studyloom("compress", folder, *words, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["chosen"]["bytes"] == (folder / "winner.onnx").stat().st_size
    assert record["test"]["tested_before"], "the test set was used once for this file"
