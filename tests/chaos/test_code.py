"""Real commands whose user edits their own code between them."""

import os

import pytest
from commands import study, studyloom
from live_processes import until
from runs import Run, kill

pytestmark = pytest.mark.chaos

QUICK = ("study.trials=2", "train.epochs=1", "winner.enabled=false", "launcher.workers=1")


def test_an_edit_of_user_code_makes_another_study_definition(tmp_path):
    """A comment is none, and a key goes on with the study."""
    assert studyloom("new", "mine", tmp_path).returncode == 0

    def run(*overrides):
        return study(*QUICK, *overrides, page="mine", cwd=tmp_path, PYTHONPATH=str(tmp_path))

    def edit(old, new):
        page = tmp_path / "studies" / "mine.py"
        text = page.read_text()
        assert old in text
        page.write_text(text.replace(old, new, 1))

    assert (done := run()).returncode == 0, done.stderr
    edit("class Net", "# wider is better\nclass Net")
    assert "the budget of 2 trials is spent" in run().stdout
    edit("nn.ReLU", "nn.Tanh")
    refused = run("study.trials=3")
    assert refused.returncode == 2, refused.stdout
    for words in ("studies/mine.py has changed since the study 'mine' began", "accept_code_change"):
        assert words in refused.stderr
    done = run("study.trials=3", "study.accept_code_change=true")
    assert done.returncode == 0, done.stderr
    assert "3 of 3 trials" in done.stdout
    assert (done := run("study.trials=3")).returncode == 0, done.stderr
    assert "trials 0 to 1 ran other code: studies.mine has changed" in done.stdout


def test_a_worker_that_starts_after_an_edit_of_the_code_does_not_join(tmp_path):
    """The worker that has read the code of before goes on with all trials."""
    run = Run(tmp_path / "run", f"sqlite:///{tmp_path}/run/study.db")
    run.overrides += ("model._target_=own_gated.Net", "study.trials=4")
    run.environment["PYTHONPATH"] += f"{os.pathsep}{tmp_path}"
    source = tmp_path / "own_gated.py"
    source.write_text("import gate\n\nclass Net(gate.Net):\n    pass\n")

    def edit_and_kill():
        source.write_text("import gate\n\nclass Net(gate.Net):\n    other = True\n")
        kill(run.workers()[:1])
        until(lambda: "own_gated.py has changed since" in run.logs())  # of the next worker

    run.end(run.at_work(meanwhile=edit_and_kill), 0)
    assert run.stored().ledger.counts() == {"free": 0, "held": 0, "done": 4}
