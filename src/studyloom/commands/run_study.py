"""The command of a study: its processes, from its config to its exit code."""

import logging
import time
from dataclasses import replace
from functools import partial
from typing import NoReturn

from studyloom.commands.outputs import Outputs, prepare_logging, take_environment
from studyloom.commands.reporting import StudyReporting, TrackingReporting
from studyloom.config.study_config import StudyConfig
from studyloom.environment import WORKER
from studyloom.winner.evaluation import WinnerStages
from studyloom.worker.forks import can_fork
from studyloom.worker.line import Line
from studyloom.worker.process import StudyProcess, run_worker
from studyloom.worker.task import Command


def command_process(config: StudyConfig, command: Command | None = None) -> StudyProcess:
    """Returns this process as the command of a study, whose method `run` runs it.

    In a process that a launcher has started as a worker, it never returns: it runs trials, and then
    ends the process.

    Args:
        command: how the user has started the study; None for the command of this process.
    """
    if command is None:
        command = Command.of_this_process()
    # Forked workers inherit this time: `command.age` would give them the age of the fork.
    began = time.monotonic() - command.age()

    def age() -> float:
        return time.monotonic() - began

    # A process that lingers may live on after its command. Any other is made to end some seconds
    # after it, which is safe only if no other thread, such as a debugger's, runs yet.
    unconnected_line = Line(lingers=not can_fork())
    command = replace(command, age=age, line=unconnected_line)
    # The settings of outputs are removed from the environment, so that neither a fork nor a command
    # that a trial starts writes to the same outputs.
    outputs = Outputs(take_environment())
    is_worker = WORKER.get() is not None
    if is_worker:
        work(config, command, Line.to_launcher())  # it ends the process
    worker = partial(work, config, command)
    return StudyProcess(config, command, StudyReporting(command, outputs), WinnerStages(), worker)


def work(config: StudyConfig, command: Command, line: Line) -> NoReturn:
    """Runs trainings of all stages of a study in this process, as a worker, and ends the process.

    Args:
        line: the connection to the process that started it, for messages.
    """
    prepare_logging(logging.INFO)
    run_worker(config, command, line, TrackingReporting(), WinnerStages())
