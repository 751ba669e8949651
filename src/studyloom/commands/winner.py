"""`studyloom winner`: chooses and tests the winner of a search that has ended."""

import shlex
from typing import Any, NoReturn

import optuna
from omegaconf import DictConfig
from rich.console import Console

from studyloom.commands.outputs import Outputs
from studyloom.commands.result import compress_winner, print_winner, say
from studyloom.commands.stages import find_no_winner, open_ended
from studyloom.definition.prepare import compresses
from studyloom.errors import Interrupted
from studyloom.launch.task import Command, make_task
from studyloom.study.command_record import StoredCommand, begin_command, end_command, recording_end
from studyloom.study.stopping import Stop
from studyloom.views.status import Display
from studyloom.views.terminal import SafeConsole
from studyloom.winner.stages import Plan


def judge(cfg: DictConfig, console: SafeConsole) -> tuple[str, Any]:
    """Chooses and tests the winner of a search that has ended, also if it was done before.

    Returns:
        The name of the study, and its answer in short.

    Raises:
        ValueError: the search has not ended, or the config or the database cannot be used.
        LaunchError: trainings are left, and nobody works on them.
        NoWinner: every candidate has lost a training, or a final training or the test has failed.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with Stop() as stop, open_ended(cfg, stop) as (prepared, plan):
        stored = plan.search.stored
        command, outputs = Command.of_this_process(), Outputs()
        outputs.console = console
        record = plan.command_record(compresses=compresses(plan.definition))
        begin_command(stored, record, command.age())
        outputs.attach(stored, prepared.run_dir)
        with recording_end(stored):
            with Display(outputs.read, console, stop):
                prepared.launcher.launch(make_task(prepared, plan, command), stop)
            if stop() and not plan.is_done():
                stop_here(plan, "winner", stop, console)
            if (missing := find_no_winner(plan)) is not None:
                raise missing
            print_winner(plan, command.page, console, anew=True)
            failure = compress_winner(plan, stop, outputs)
            if stop() and compresses(plan.definition):  # who comes again need not judge again
                stop_here(plan, "compress", stop, console)
            if failure is not None:
                raise failure
        end_command(stored, 0)
        return stored.name, StoredCommand.read(stored).result


def stop_here(plan: Plan, command: str, stop: Stop, console: Console) -> NoReturn:
    """Says which command of `studyloom` goes on from here, and raises Interrupted."""
    folder = shlex.quote(str(plan.run_dir))
    say(console, f"{stop.ended_by}; studyloom {command} {folder} goes on from here")
    raise Interrupted
