"""The programs of the page on Lightning and Hugging Face run as pasted."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from commands import environment, shows_test
from test_readme import PAPERS, SITE, blocks

pytestmark = pytest.mark.nightly
PAGE = PAPERS[f"{SITE}/guides/lightning-hugging-face.md"]
PROGRAMS = {
    re.search(r'name="(\w+)"', block)[1]: block
    for block in blocks(PAGE, "python")
    if "sl.search(" in block
}
(SCRIPT_OF_CLI,) = (block for block in blocks(PAGE, "python") if "LightningCLI(" in block)
(CONFIG_OF_CLI,) = blocks(PAGE, "yaml")


def require(library):
    if find_spec(library) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{library} is missing")


def run(folder, *command):
    env = environment(HF_HUB_OFFLINE="1")
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_searched_tested_and_predicts(name, tmp_path):
    require(name.partition("_")[0])
    (tmp_path / f"{name}.py").write_text(PROGRAMS[name])
    printed = run(tmp_path, sys.executable, f"{name}.py")
    assert "6 of 6 trials" in printed
    assert shows_test(printed)
    assert re.search(r"^tensor\(\[\d", printed, re.MULTILINE), printed


def test_a_lightning_module_of_a_program_is_tuned_by_its_command_line(tmp_path):
    require("lightning")
    pytest.importorskip("jsonargparse")  # an extra of Lightning
    (tmp_path / "lightning_digits.py").write_text(PROGRAMS["lightning_digits"])
    (tmp_path / "main.py").write_text(SCRIPT_OF_CLI)
    (tmp_path / "cli.yaml").write_text(CONFIG_OF_CLI)
    few = ("study.trials=1", "winner.enabled=false", "launcher.workers=1")
    printed = run(tmp_path, sys.executable, "-m", "studyloom", "run", "cli.yaml", *few)
    assert "1 of 1 trials – 1 complete" in printed
