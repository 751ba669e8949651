"""What a launcher starts its workers with."""

import pytest

from studyloom.worker.task import Command


@pytest.mark.parametrize("prefix", ["", "+", "++", "~"])
def test_workers_get_the_commands_arguments_without_those_of_the_launcher(prefix):
    arguments = ("study.trials=3", f"{prefix}launcher.per_gpu", f"{prefix}launcher=local")
    command = Command(("-m", "studies.mnist"), (*arguments, "+launchers=1"))
    kept = ["study.trials=3", "+launchers=1", "launcher=join", "launcher.begins=false"]
    assert command.worker_arguments() == ["-m", "studies.mnist", *kept]
