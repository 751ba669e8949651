"""The command of a worker."""

from studyloom.launch import command
from studyloom.launch.command import Command


def test_a_worker_is_the_same_command_without_its_launcher(monkeypatch):
    monkeypatch.setattr(
        command.sys, "argv", ["x", "a.b=1", "launcher=local", "launcher.workers=3", "launchers=2"]
    )
    assert Command.of_this_process().worker()[-3:] == ["a.b=1", "launchers=2", "launcher=join"]
