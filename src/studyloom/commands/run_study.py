"""The command of a study: its processes, from its config to its exit code."""

import logging
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import NoReturn

from omegaconf import DictConfig

from studyloom.commands.outputs import Outputs, prepare_logging, take_environment
from studyloom.commands.search import search_and_report
from studyloom.commands.stages import result_stages
from studyloom.environment import WORKER
from studyloom.launch.forks import Death, watch
from studyloom.launch.line import Line
from studyloom.launch.process import (
    connect_ranks,
    exit_code,
    fork_workers,
    reporting_end,
    reporting_mistakes,
    work_here,
)
from studyloom.launch.search import open_search, prepare
from studyloom.launch.task import Command, launcher_class
from studyloom.processes import worker_id
from studyloom.study.stopping import Stop, following
from studyloom.views.terminal import print_dry_run


def run_study(cfg: DictConfig, command: Command | None = None) -> NoReturn:
    """Runs the command of a study, see `studyloom.run.run`."""
    command = command or Command.of_this_process()
    began = time.monotonic() - command.age()  # a fork is younger than the command
    command = replace(command, age=lambda: time.monotonic() - began)
    targets = take_environment()  # before any fork, and in workers that a launcher starts
    if WORKER.get() is not None:
        run_worker(cfg, command, Line.of_launcher())
    watch(lambda line, death: run_here(cfg, command, line, death, targets))


def run_worker(cfg: DictConfig, command: Command, line: Line) -> NoReturn:
    """Works in this process on all stages of a study, as a worker that a launcher has started."""
    prepare_logging(logging.INFO)
    work_here(cfg, command, line, result_stages)


def run_here(
    cfg: DictConfig,
    command: Command,
    line: Line,
    death: Death | None,
    targets: Mapping[str, str],
) -> NoReturn:
    """Runs a command in this process.

    Args:
        line: to the process that watches this one.
        death: of the process in whose place this one goes on.
        targets: the variables that say what is reported, and to whom.
    """
    with (
        ExitStack() as ending,
        line.ending(),
        Stop(cfg.study.timeout, line.is_asked) as stop,
        ExitStack() as opened,
    ):
        outputs, launcher = Outputs(targets), launcher_class(cfg)
        work = partial(run_worker, cfg, command)
        server = None if cfg.study.dry_run else fork_workers(launcher, work, ending)
        prepare_logging(logging.WARNING)
        with reporting_mistakes(stop, outputs.finish):
            outputs.open()
            prepared = prepare(cfg, connect_ranks(cfg, command, line, ending, launcher))
            if cfg.study.dry_run:
                print_dry_run(prepared.definition, outputs.console)
                outputs.finish(0)
                sys.exit()
            search = open_search(prepared, stop, result_stages, create=True)
            prepared, plan = opened.enter_context(search)
        task = prepared.task(plan, command, on_claim=line.say_claimed, fork_server=server)
        with reporting_end(stop, outputs.finish), following(plan.search.stored, stop):
            if death is not None:
                task.ledger.record_death(worker_id(death.pid), death.words)
            code = search_and_report(prepared, plan, task, stop, outputs)
            outputs.finish(exit_code(code, stop), stop.ended_by if stop() else None)
        sys.exit(exit_code(code, stop))
