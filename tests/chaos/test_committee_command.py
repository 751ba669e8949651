"""Real commands with a committee, killed between choosing and writing."""

import json

import numpy as np
import pytest
import torch
from commands import ROOT, study, studyloom
from test_answers import Commands
from test_loaders import STUDY

from studyloom.winner.answer import COMMITTEE
from studyloom.winner.predictor import load_winner

pytestmark = pytest.mark.chaos


class WithCommittee(Commands):
    """The same commands, which also choose a committee."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.overrides.append("winner.committee=true")

    def predict(self) -> str:
        done = studyloom("predict", self.run_dir, self.digits, "--committee")
        assert done.returncode == (2 if done.stderr else 0)
        return done.stderr or done.stdout


def test_a_command_killed_while_it_writes_its_committee_comes_to_the_same_one(url, tmp_path):
    """Killed before its answer, and before its file; the test part is opened once in all."""
    digits = tmp_path / "digits.npy"
    np.save(digits, np.random.default_rng(0).normal(size=(5, 1, 28, 28)).astype("float32"))
    run_dir = tmp_path if url.startswith("sqlite") else tmp_path / "run"
    commands = WithCommittee(run_dir, url, digits)
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
    undisturbed = WithCommittee(other, f"sqlite:///{other}/study.db", digits)
    undisturbed.run(4)
    assert undisturbed.predict() == told
    again = json.loads((other / "winner.json").read_text())["committee"]
    assert [again["members"], again["test"]] == [members, answer["committee"]["test"]]
    assert (other / COMMITTEE).read_bytes() == (run_dir / COMMITTEE).read_bytes()


def test_committees_of_datasets_and_of_numbers_are_means_of_their_members(tmp_path):
    """Whose parts of the data are a Dataset that draws, and a table in the order of time."""
    settings = ("winner.top=1", "winner.seeds=2", "winner.committee=true", "launcher.workers=1")
    drawn = (*STUDY, *settings, "study.trials=2", "train.epochs=2")
    numbers = (*settings, "study.trials=2", "train.epochs=2", "pruner=none")
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    for page, overrides in (("mnist", drawn), ("sunspots", numbers)):
        run_dir = tmp_path / page
        done = study(*overrides, f"run_dir={run_dir}", page=page, **paths)
        assert done.returncode == 0, done.stderr
        answer = json.loads((run_dir / "winner.json").read_text())
        members = answer["committee"]["members"]
        if page == "mnist":
            assert {member["seed"] for member in members} == {0, 1}, "of each validation part"
        average = {"mnist": "softmax", "sunspots": "mean"}[page]
        assert answer["committee"]["average"] == average
        predictor = load_winner(run_dir, trust=["gate", "drawn"], committee=True)
        network = predictor.network
        inputs = torch.randn(5, *predictor.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            each = [member(inputs) for member in network.networks]
            if page == "mnist":
                each = [outputs.softmax(1) for outputs in each]
            expected = sum(m["share"] * o for m, o in zip(members, each, strict=True))
        prediction = predictor.predict(inputs)
        given = prediction.probabilities if page == "mnist" else prediction.values
        torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-4)
