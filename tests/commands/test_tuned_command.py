"""The command line with which the user of `studyloom tune` continues a study."""

import pytest

from studyloom.commands.parser import make_parser
from studyloom.commands.tuned_command import TunedCommand
from studyloom.commands.tuning import _make_commands

PROGRAM = ["train.py", "--lr", "1e-4:1e-1:log", "--trials", "3"]


def make(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["studyloom", "tune", *words])
    return _make_commands(make_parser().parse_args(["tune", *words]))(("-m", "studyloom"), ())


@pytest.mark.parametrize("trials", [["--trials", "8"], ["--trials=8"], []])
@pytest.mark.parametrize("program", [PROGRAM, ["-m", "mine.train", "lr=1:2"], ["--", *PROGRAM], []])
def test_more_trials_take_the_place_of_those_that_were_typed(trials, program, monkeypatch):
    metric = ["--maximize", "val acc"]
    if not program:
        metric = ["--sweep", "sweep.yaml"]
    command = make(monkeypatch, *trials, *metric, *program)
    options = [*metric, "--trials", "16"]
    if trials:  # the new number is where the former was
        options = ["--trials", "16", *metric]
    words = ["studyloom", "tune", *options, *program]
    assert command.continue_with("study.trials=16") == words


def test_another_setting_takes_the_place_of_its_own():
    options = ("--set", "cost.limit=2", "--set=cost.per_hour=1", "--name", "a")
    command = TunedCommand(("-m", "studyloom"), (), options=options, tuned=("train.py",))
    words = ["--set", "cost.limit=4", "--set=cost.per_hour=1", "--name", "a", "train.py"]
    assert command.continue_with("cost.limit=4") == ["studyloom", "tune", *words]
    settings = "--set winner.top=1 --set winner.seeds=1"
    assert command.write_settings("winner", {"top": 1, "seeds": 1}) == settings
