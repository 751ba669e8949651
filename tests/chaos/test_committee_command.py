"""Real commands with a committee, killed between choosing and writing."""

import json

import numpy as np
import pytest
from commands import studyloom
from test_answers import Commands

from studyloom.winner.answer import COMMITTEE

pytestmark = pytest.mark.nightly


class WithCommittee(Commands):
    """The same commands, which also choose a committee."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.overrides.append("winner.committee=true")

    def predict(self) -> str:
        done = studyloom("predict", self.run_dir, self.digits, "--committee")
        assert done.returncode == (2 if done.stderr else 0)
        return done.stderr or done.stdout


def test_a_command_killed_while_it_writes_its_committee_comes_to_the_same_one(tmp_path):
    """Killed before its answer, and before its file; the test part is opened once in all."""
    digits = tmp_path / "digits.npy"
    np.save(digits, np.random.default_rng(0).normal(size=(5, 1, 28, 28)).astype("float32"))
    run_dir = tmp_path / "run"
    commands = WithCommittee(run_dir, digits)
    commands.run_killed(4, "winner.json")  # it is chosen and tested by now
    assert not (run_dir / COMMITTEE).exists()
    assert "there is no winner.json" in commands.predict()
    assert commands.openings() == 1
    commands.run_killed(4, COMMITTEE)
    assert not (run_dir / COMMITTEE).exists()
    assert "the answer is incomplete" in commands.predict()
    printed = commands.run(4)
    assert commands.openings() == 1
    answer = json.loads((run_dir / "winner.json").read_text())
    members = answer["committee"]["members"]
    assert f"{len(members)} networks" in printed
    told = commands.predict()
    assert len(told.splitlines()) == 5
    assert "error" not in told

    kept = [m for m in members if m["stage"] == "re-evaluation"]
    final = answer["reused"]["retraining"][1]
    assert len([*run_dir.glob("winner/*/*.pt")]) == len(kept) + final, "the others are removed"

    other = tmp_path / "undisturbed"
    undisturbed = WithCommittee(other, digits)
    undisturbed.run(4)
    assert undisturbed.predict() == told
    again = json.loads((other / "winner.json").read_text())["committee"]
    assert [again["members"], again["test"]] == [members, answer["committee"]["test"]]
    assert (other / COMMITTEE).read_bytes() == (run_dir / COMMITTEE).read_bytes()
