"""What a launcher starts its workers with."""

import pytest

from studyloom.worker.task import Command


@pytest.mark.parametrize("prefix", ["", "+", "++", "~"])
def test_workers_get_the_commands_arguments_without_those_of_the_launcher(prefix):
    arguments = ("study.trials=3", f"{prefix}launcher.per_gpu", f"{prefix}launcher=local")
    command = Command(("-m", "studies.mnist"), (*arguments, "+launchers=1"))
    kept = ["study.trials=3", "+launchers=1", "launcher=join", "launcher.begins=false"]
    assert command.worker_arguments() == ["-m", "studies.mnist", *kept]


def test_a_command_is_continued_as_its_user_has_typed_it():
    module = Command(("-m", "studies.mnist"), ("study.trials=40", "launcher.workers=2"))
    words = ["python", "-m", "studies.mnist", "launcher.workers=2", "study.trials=80"]
    assert module.continue_with("study.trials=80") == words
    program = Command(("-m", "studyloom", "run", "mine.yaml"), ())
    words = ["studyloom", "run", "mine.yaml", "study.epochs=80"]
    assert program.continue_with("study.epochs=80") == words
    call = Command(("-m", "studies.mnist"), (), is_call=True, kind="call")
    settings = {"top": 1, "seeds": 1}
    assert module.write_settings("winner", settings) == "winner.top=1 winner.seeds=1"
    assert call.write_settings("winner", settings) == 'winner={"top": 1, "seeds": 1}'
