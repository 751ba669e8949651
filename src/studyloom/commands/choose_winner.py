"""`studyloom winner`, and opening a study whose search has ended, as `studyloom compress` does."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import optuna

from studyloom.commands import write_result
from studyloom.commands.outputs import Outputs
from studyloom.commands.recording import begin_recording, explain_missing_winner
from studyloom.config.study_config import StudyConfig
from studyloom.errors import ConfigError, Interrupted
from studyloom.storage.command_record import StoredCommand, end_command, recording_end
from studyloom.views import consoles, live_display, run_details, terminal_lines
from studyloom.winner.evaluation import WinnerStages, read_evaluation
from studyloom.winner.result import Result
from studyloom.worker.driver import Reporting, run_study
from studyloom.worker.open_study import OpenStudy
from studyloom.worker.prepare_search import open_search, prepare
from studyloom.worker.stopping import Stop
from studyloom.worker.task import Command, Task


@dataclass(frozen=True)
class ChosenWinner:
    """The winner of a study, chosen again.

    Args:
        study: the name of the study.
        result: the summary of its result; None if it has none.
    """

    study: str
    result: dict[str, Any] | None


class WinnerReporting(Reporting):
    """Reports on the winner of a search that has ended, which it tests.

    Args:
        command: the command of `studyloom`.
        repeats_test: whether to test the winner again if it was tested before.

    Attributes:
        result: the summary of the result, once it is known.
    """

    def __init__(
        self, command: Command, console: consoles.SafeConsole, *, repeats_test: bool
    ) -> None:
        self.command = command
        self.console = console
        self.repeats_test = repeats_test
        self.outputs = Outputs()
        self.outputs.console = console
        self.result: dict[str, Any] | None = None

    @contextmanager
    def attached(self, study: OpenStudy) -> Iterator[None]:
        """Records in the database that the command begins, and how it ends after the body."""
        check_search_has_ended(study)
        with super().attached(study), recording_end(study.stored):
            begin_recording(study, self.command)
            self.outputs.attach(study.stored, study.run_dir)
            yield
            self.result = StoredCommand.read(study.stored).result

    @contextmanager
    def watch(self, task: Task, stop: Stop) -> Iterator[None]:
        """Shows the progress in the terminal while the body trains."""
        with live_display.Display(self.outputs.read, self.console, stop):
            yield

    def finish(self, stop: Stop, detached_notice: str | None) -> int:
        """Tests the winner and prints the result, once all trainings have ended.

        Raises:
            Interrupted: a stop was requested before.
            NoWinner: the trainings have no winner.
        """
        study = self.study
        assert study is not None
        evaluation = read_evaluation(study)
        trainings_are_left = evaluation.trained_stage is None
        if stop() and trainings_are_left:
            folder = shlex.quote(str(study.run_dir))
            command = "ablate"  # it does not test again
            if self.repeats_test:
                command = "winner"
            terminal_lines.say(
                self.console, f"{stop.reason}; studyloom {command} {folder} resumes here"
            )
            raise Interrupted
        missing_winner = explain_missing_winner(evaluation)
        if missing_winner is not None:
            raise missing_winner
        # winner.json names the command of the study; a new file names the same command.
        earlier_result = Result.read(study.run_dir)
        command_line = self.command.as_typed
        if earlier_result is not None:
            command_line = [*earlier_result.command]
        result = write_result.make_result(evaluation, command_line, repeats_test=self.repeats_test)
        run_details.print_result(study.stored, result, self.console)
        if not read_evaluation(study).remaining:
            end_command(study.stored, exit_code=0)
        return 0

    def continues(self, open_trials: int) -> bool:
        """Prints that trials of the search are open again; they are not trained here."""
        reason = "trials were opened meanwhile, as by studyloom redo: run the study to train them"
        terminal_lines.say(self.console, f"{open_trials} {reason}")
        return False


def choose_winner(
    config: StudyConfig, console: consoles.SafeConsole, *, repeats_test: bool = True
) -> ChosenWinner:
    """Chooses and tests the winner of a search that has ended.

    Args:
        repeats_test: whether to test it again if it was tested before.

    Raises:
        ValueError: the search has not ended, or the config or the database cannot be used.
        LaunchError: trainings are left, and no worker runs them.
        NoWinner: every candidate has lost a training, or a final training or the test has failed.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # This command begins no study: it needs one whose search has ended.
    command = replace(Command.of_this_process(), begins=False)
    reporting = WinnerReporting(command, console, repeats_test=repeats_test)
    with Stop() as stop:
        run_study(config, command, reporting, stop, WinnerStages())
    return ChosenWinner(str(config.study.name), reporting.result)


@contextmanager
def open_study_after_search(config: StudyConfig, stop: Stop) -> Iterator[OpenStudy]:
    """Opens the config's study, whose search must have ended, and closes it afterwards.

    Raises:
        ValueError: the search has not ended, or the config or the database cannot be used.
    """
    prepared = prepare(config, joins=True)
    with open_search(prepared, stop, create=False) as study:
        check_search_has_ended(study)
        yield study


def check_search_has_ended(study: OpenStudy) -> None:
    """Checks that a study has the definition of its config, and that its search has ended.

    Raises:
        ConfigError: the search has not ended.
        DefinitionError: the study has another definition.
    """
    study.check_definition()
    open_trials = study.search.count_open_trials()
    if open_trials:
        raise ConfigError(
            f"{study.run_dir}: {open_trials} of {study.search.trials} trials are open; run the "
            "study to its end, or with a smaller study.trials"
        )
