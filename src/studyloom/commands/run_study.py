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
    """Returns this process as the command of a study, see `studyloom.run.run`, or its worker."""
    command = command or Command.of_this_process()
    began = time.monotonic() - command.age()  # a fork is younger than the command
    command = replace(
        command, age=lambda: time.monotonic() - began, line=Line(lingers=not can_fork())
    )
    outputs = Outputs(take_environment())  # before any fork, and in workers of a launcher
    if WORKER.get() is not None:
        work(config, command, Line.to_launcher())
    worker = partial(work, config, command)
    return StudyProcess(config, command, StudyReporting(command, outputs), WinnerStages(), worker)


def work(config: StudyConfig, command: Command, line: Line) -> NoReturn:
    """Works in this process on all stages of a study, as a worker that a launcher has started."""
    prepare_logging(logging.INFO)
    run_worker(config, command, line, TrackingReporting(), WinnerStages())
