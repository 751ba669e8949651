"""The command of a study: its processes, from its config to its exit code."""

import logging
import time
from dataclasses import replace
from functools import partial
from typing import NoReturn

from omegaconf import DictConfig

from studyloom.commands.outputs import Outputs, prepare_logging, take_environment
from studyloom.commands.search import search_and_report
from studyloom.environment import WORKER
from studyloom.views.terminal import print_dry_run
from studyloom.winner.stages import ResultStages
from studyloom.worker.forks import can_fork
from studyloom.worker.line import Line
from studyloom.worker.process import Reporting, run_process, run_worker
from studyloom.worker.task import Command


def run_study(cfg: DictConfig, command: Command | None = None) -> NoReturn:
    """Runs the command of a study, see `studyloom.run.run`."""
    command = command or Command.of_this_process()
    began = time.monotonic() - command.age()  # a fork is younger than the command
    command = replace(command, age=lambda: time.monotonic() - began)
    outputs = Outputs(take_environment())  # before any fork, and in workers of a launcher
    if WORKER.get() is not None:
        work(cfg, command, Line.of_launcher())

    def begin() -> None:
        prepare_logging(logging.WARNING)
        outputs.open()

    run_process(
        cfg,
        command,
        Line(lingers=not can_fork()),
        partial(search_and_report, outputs=outputs),
        make_stages=ResultStages,
        reporting=Reporting(begin, partial(print_dry_run, console=outputs.console), outputs.finish),
        worker=partial(work, cfg, command),
    )


def work(cfg: DictConfig, command: Command, line: Line) -> NoReturn:
    """Works in this process on all stages of a study, as a worker that a launcher has started."""
    prepare_logging(logging.INFO)
    run_worker(cfg, command, line, ResultStages)
