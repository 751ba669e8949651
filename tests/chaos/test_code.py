"""Real commands whose user edits their own code between them."""

import os

import pytest
from commands import study, studyloom
from harness import until
from runs import Run, kill

pytestmark = pytest.mark.chaos

NETS = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, shape, outputs, width=16):
        super().__init__(nn.Flatten(), nn.Linear(2, width), nn.ReLU(), nn.Linear(width, outputs))
"""
READING = """
import torch

def load(part):
    generator = torch.Generator().manual_seed(int(part == "test"))
    inputs = torch.randn(200, 2, generator=generator)
    return inputs, (inputs.prod(dim=1) > 0).long()
"""
SCORING = """
def share(outputs, targets):
    return float((outputs.argmax(1) == targets).double().mean())

share.direction = "maximize"
"""
LOSING = """
from torch import nn

class Loss(nn.CrossEntropyLoss):
    def __init__(self, **others):
        super().__init__()
"""
# Of each module an edit that gives other results.
EDITS = {
    "nets": ("nn.ReLU", "nn.Tanh"),
    "reading": ("return inputs,", "torch.manual_seed(0)\n    return inputs,"),
    "scoring": (".double()", ".float()"),
    "losing": ("__init__()", "__init__(label_smoothing=0.1)"),
}


@pytest.fixture
def project(tmp_path):
    """A study of one's own whose network, data, metric and loss are modules of their own."""
    assert studyloom("new", "mine", tmp_path).returncode == 0
    sources = {"nets": NETS, "reading": READING, "scoring": SCORING, "losing": LOSING}
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
    for path, old, new in (
        ("conf/model/mine.yaml", "studies.mine.Net", "nets.Net"),
        ("conf/data/mine.yaml", "studies.mine.load", "reading.load"),
        ("conf/data/mine.yaml", "400", "50"),
    ):
        text = (tmp_path / path).read_text()
        assert old in text
        (tmp_path / path).write_text(text.replace(old, new))
    return tmp_path


QUICK = (
    *("study.trials=2", "train.epochs=1", "winner.enabled=false", "launcher.workers=1"),
    *("+objective.metric._target_=scoring.share", "+objective.metric._partial_=true"),
    *("loss._target_=losing.Loss",),
)


def edit(project, module, old, new):
    path = project / f"{module}.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_an_edit_of_one_s_own_code_is_another_question(project):
    """Of network, data, metric and loss; a comment is none, and a key goes on with it."""

    def run(*overrides):
        return study(*QUICK, *overrides, page="mine", cwd=project, PYTHONPATH=str(project))

    assert (done := run()).returncode == 0, done.stderr
    edit(project, "nets", "class Net", "# wider is better\nclass Net")
    assert "the budget of 2 trials is spent" in run().stdout
    for module, change in EDITS.items():
        edit(project, module, *change)
    refused = run("study.trials=3")
    assert refused.returncode == 2, refused.stdout
    for words in ("asks another question", *(f"  code.{module}: " for module in EDITS)):
        assert words in refused.stderr
    assert "study.accept_code_change=true" in refused.stderr
    done = run("study.trials=3", "study.accept_code_change=true")
    assert done.returncode == 0, done.stderr
    assert "3 of 3 trials" in done.stdout
    assert (done := run("study.trials=3")).returncode == 0, done.stderr
    changed = "losing, nets, reading, scoring"
    assert f"trials 0 to 1 were made with other code: {changed} has changed" in done.stdout


def test_a_worker_that_starts_after_an_edit_does_not_join(tmp_path):
    """The worker that has read the code of before goes on with all trials."""
    run = Run(tmp_path / "run", f"sqlite:///{tmp_path}/run/study.db")
    run.overrides += ("model._target_=own_gated.Net", "study.trials=4")
    run.environment["PYTHONPATH"] += f"{os.pathsep}{tmp_path}"
    source = tmp_path / "own_gated.py"
    source.write_text("import gate\n\nclass Net(gate.Net):\n    pass\n")

    def edit_and_kill():
        source.write_text("import gate\n\nclass Net(gate.Net):\n    other = True\n")
        kill(run.workers()[:1])
        until(lambda: "only your own code differs" in run.logs())  # of the next worker

    run.end(run.at_work(meanwhile=edit_and_kill), 0)
    assert run.stored().ledger.counts() == {"free": 0, "held": 0, "done": 4}
