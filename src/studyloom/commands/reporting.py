"""Reports of a command on the study that it runs: the progress, the result, and what comes next."""

import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from studyloom.commands import end_of_run, write_result
from studyloom.commands.announcement import announce
from studyloom.commands.outputs import Outputs, prepare_logging
from studyloom.commands.plugins import load_plugin
from studyloom.commands.recording import begin_recording, explain_missing_winner
from studyloom.definition.definition import Definition
from studyloom.storage.command_record import end_command, recording_end
from studyloom.views import dry_run, live_display, resumptions, terminal, terminal_lines
from studyloom.views.snapshot import take_snapshot
from studyloom.winner.evaluation import Evaluation, read_evaluation
from studyloom.worker.callbacks import TrialCallback
from studyloom.worker.open_study import OpenStudy
from studyloom.worker.process import ProcessReporting
from studyloom.worker.stopping import Stop, read_control
from studyloom.worker.task import Command, Task


class TrackingReporting(ProcessReporting):
    """Reports the trials of a search to the trackers of its config, as a worker does."""

    def make_callbacks(self, config: Mapping[str, Any]) -> Sequence[TrialCallback]:
        if not config["track"]:
            return ()
        tracking = load_plugin("tracking")
        return (tracking(config["track"], Path(config["run_dir"])),)


class StudyReporting(TrackingReporting):
    """Shows the progress of a study, prints its result, and writes the files of the run directory.

    Args:
        command: the command that runs the study.
    """

    def __init__(self, command: Command, outputs: Outputs) -> None:
        self.command = command
        self.outputs = outputs
        self.console = outputs.console
        self.has_run_workers = False
        self.has_announced = False  # whether what is to do was printed

    def open(self) -> None:
        prepare_logging(logging.WARNING)
        self.outputs.open()

    def end(self, code: int, reason: str | None) -> None:
        self.outputs.finish(code, reason)

    def show_dry_run(self, definition: Definition) -> None:
        dry_run.print_dry_run(definition, self.console)

    @contextmanager
    def attached(self, study: OpenStudy) -> Iterator[None]:
        """Records in the database that the command begins, and how it ends after the body.

        The outputs, such as the file of events, report on the study until then.
        """
        with super().attached(study):
            try:
                with recording_end(study.stored):
                    begin_recording(study, self.command)
                    self.outputs.attach(study.stored, study.run_dir)
                    self.print_notices(study)
                    yield
            finally:
                self.outputs.report_progress()  # for the last time

    def print_notices(self, study: OpenStudy) -> None:
        """Prints what the user must know about a study before its trials run.

        The notices say that the study is paused, that its code has changed, or that the run
        directory had the result of another study.
        """
        stored = study.stored
        if read_control(stored) == "pause":
            folder = shlex.quote(str(study.run_dir))
            notice = f"{stored.name} is paused; studyloom resume {folder} resumes it"
            terminal_lines.say(self.console, notice)
        terminal.print_code_changes(stored, self.console)
        write_result.move_result_of_another_study(study, self.console)

    @contextmanager
    def watch(self, task: Task, stop: Stop) -> Iterator[None]:
        """Shows the progress in the terminal and the other outputs while the body trains."""
        outputs = self.outputs
        notes: list[str] = []
        if not self.has_announced:
            notes = [*outputs.notes, *announce(self.opened, self.command, task)]
        self.has_announced = True
        self.has_run_workers = True
        # It prints the trials that resume from now on: it compares with the progress so far.
        resumption_printer = resumptions.Resumptions(outputs.read(), self.console)
        display = live_display.Display(
            outputs.read, self.console, stop, [*outputs.listeners, resumption_printer], notes
        )
        with display, end_of_run.deferring_halt():
            yield

    def finish(self, stop: Stop, detached_notice: str | None) -> int:
        """Prints and writes the result once the workers have ended, and returns the exit code."""
        if stop.lone_signal is not None:  # only this process was stopped; others continue
            return 0
        if detached_notice is not None:  # the workers continue without this command
            terminal_lines.say(self.console, detached_notice)
            return 0
        evaluation = read_evaluation(self.opened)
        study = evaluation.study
        code = self.report(evaluation, stop)
        # Read again: another command, such as `studyloom redo`, may have opened trials meanwhile.
        if not stop() and not read_evaluation(study).remaining:
            end_command(study.stored, code)
        study.search.remove_stale_files(study.definition.config.checkpoints.dir)
        return code

    def report(self, evaluation: Evaluation, stop: Stop) -> int:
        """Prints the result of a study, or how far it is, and writes its files.

        Returns:
            The exit code; 1 if there is no best trial, although the study was not stopped.

        Raises:
            NoWinner: the stages after the search have ended without a winner.
        """
        study = evaluation.study
        snapshot = take_snapshot(study.stored)
        if snapshot.best is not None:
            write_result.write_best(study, snapshot.best)
        result = None
        missing_winner = None  # the error that says why there is none
        try:
            if evaluation.trained_stage is not None:
                result = write_result.make_result(evaluation, self.command.as_typed)
            else:  # stopped, or without a winner
                if snapshot.done:
                    write_result.write_report(study)
                if snapshot.best is not None and not stop():
                    missing_winner = explain_missing_winner(evaluation)
        finally:  # a test that fails leaves the result of the search
            end_of_run.print_end(
                evaluation,
                snapshot,
                result,
                command=self.command,
                has_run_workers=self.has_run_workers,
                stop=stop,
                console=self.console,
            )
        end_of_run.check_halted(evaluation, self.command)

        for callback in study.prepared.callbacks:
            callback.finish(study.stored, ended=not read_evaluation(study).remaining)
        if missing_winner is not None:  # raised last, so that all else is printed and tracked
            raise missing_winner
        if snapshot.best is not None or stop():
            return 0
        return 1

    def continues(self, open_trials: int) -> bool:
        """Prints that trials were opened meanwhile, and records a new beginning for them."""
        reason = "trials or trainings were opened meanwhile, as by studyloom redo: they follow"
        terminal_lines.say(self.console, f"{open_trials} {reason}")
        begin_recording(self.opened, self.command)
        self.has_announced = False
        return True

    @property
    def opened(self) -> OpenStudy:
        """The study, which is open."""
        assert self.study is not None
        return self.study
