"""The recipes run as pasted, and their programs resume from what they saved."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment
from test_readme import PAPERS, SITE, blocks
from test_trainers_page import PROGRAMS, SCRIPT_OF_CLI, require

pytestmark = pytest.mark.nightly
PAGE = PAPERS[f"{SITE}/guides/recipes.md"]
FEW = ("--trials", "1", "--workers", "1", "--set", "winner.enabled=false")
# The packages that each program needs.
PACKAGES = {
    "ddp.py": ("sklearn",),
    "accelerated.py": ("accelerate",),
    "finetune.py": ("transformers", "accelerate"),
    "cli.py": ("lightning",),
}
EPOCHS = {"finetune.py": "--num_train_epochs", "cli.py": "--trainer.max_epochs"}
# The programs of the page, by the names that the page gives them.
SCRIPTS = dict(re.findall(r"Save this as `(\w+\.py)`.*?```python\n(.*?)```", PAGE, re.DOTALL))


def read_command(name: str) -> list[str]:
    """Returns the words of the command in the page that tunes a program."""
    for block in blocks(PAGE, ""):
        words = shlex.split(block.replace("\\\n", " "))
        if name in words:
            return words
    raise AssertionError(f"the page has no command for {name}")


def fix_arguments(words: list[str], name: str) -> list[str]:
    """Returns the command line of a program without what studyloom adds and searches."""
    start = words.index("--trials") + 2
    plain = []
    for word in words[start:]:
        if re.search(r"\d:\d", word):
            plain.pop()  # the option that is searched
        else:
            plain.append(word)
    if plain[0] == name:
        plain.insert(0, sys.executable)
    return plain


def run(folder: Path, *command: str) -> str:
    """Runs a command, and returns what it printed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(HF_HUB_OFFLINE="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def project(tmp_path):
    """A folder with the programs of both pages."""
    for name, text in SCRIPTS.items():
        (tmp_path / name).write_text(text)
    for name, text in PROGRAMS.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "main.py").write_text(SCRIPT_OF_CLI)
    return tmp_path


def require_packages(name: str) -> None:
    for package in PACKAGES[name]:
        require(package)
    if name == "cli.py":
        pytest.importorskip("jsonargparse")  # an extra of Lightning


@pytest.mark.parametrize("name", PACKAGES)
def test_a_recipe_is_tuned_as_pasted(name, project):
    require_packages(name)
    _studyloom, tune, *words = read_command(name)
    del words[words.index("--trials") : words.index("--trials") + 2]
    printed = run(project, sys.executable, "-m", "studyloom", tune, *FEW, *words)
    assert "1 of 1 trials – 1 complete" in printed


@pytest.mark.parametrize("name", PACKAGES)
def test_the_program_of_a_recipe_resumes_at_its_last_epoch(name, project):
    require_packages(name)
    words = fix_arguments(read_command(name), name)
    option = EPOCHS.get(name, "--epochs")
    first = run(project, *words, option, "1")
    second = run(project, *words, option, "2")
    values = r"\b(?:val_acc|eval_accuracy)\b"
    assert [len(re.findall(values, text)) for text in (first, second)] == [1, 1]
