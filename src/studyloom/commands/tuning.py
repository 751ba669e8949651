"""`studyloom tune`: searches for the arguments of a training script."""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from studyloom.commands.options import argument, command, either
from studyloom.commands.plugins import load_plugin
from studyloom.commands.studies import run_source
from studyloom.errors import ConfigError

if TYPE_CHECKING:
    from studyloom.commands.tuned_command import TunedCommand
    from studyloom.worker.task import Command


@command(
    "search for the best arguments of a training script",
    either(
        argument("--maximize", "NAME", "the printed value to maximize, such as val_acc"),
        argument("--minimize", "NAME", "the printed value to minimize, such as val_loss"),
        argument("--sweep", "FILE", "a W&B sweep file, in place of a metric and a program"),
        required=True,
    ),
    argument(
        "--trials", "N", "the number of trials (default: that of the sweep file, or 40)", type=int
    ),
    argument("--workers", "N", "worker processes (default: one for each GPU or core)", type=int),
    argument("--name", "NAME", "the name of the study (default: that of the script)"),
    argument("--value", "REGEX", "finds the value in a line, instead of its name", default=""),
    argument("--step", "REGEX", "finds the step in a line, instead of epoch, step or iter"),
    argument(
        *("--test", "TEST"),
        "measures the winner once: the name of a value that the script prints at its end, a REGEX, "
        "or a program such as evaluate.py",
        action="append",
        default=[],
    ),
    argument(
        *("--fixed", "ARGUMENT"),
        "an argument that is passed as it is, although its value looks like a range or list",
        action="append",
        default=[],
    ),
    argument(
        *("--set", "KEY=VALUE"),
        "a key of the study, such as study.timeout=3600; see studyloom keys",
        action="append",
        default=[],
        dest="settings",
    ),
    argument(
        *("-m", "MODULE"),
        "a module and its arguments, as python -m takes them",
        nargs=argparse.REMAINDER,
        dest="module",
    ),
    argument(
        *("program", "PROGRAM"),
        "the script, such as train.py, or a program that starts it, such as torchrun; and its "
        "arguments: LOW:HIGH, LOW:HIGH:log, LOW:HIGH:STEP and A,B are searched, all others passed",
        nargs=argparse.REMAINDER,
    ),
    examples=[
        "studyloom tune --maximize val_acc --trials 20 train.py --lr 1e-4:1e-1:log",
        "studyloom tune --minimize loss --trials 20 -m mine.train lr=1e-4:1e-1:log@1e-3",
        "studyloom tune --sweep sweep.yaml --workers 4",
        "studyloom tune --maximize acc torchrun --standalone train.py --width=8:64",
    ],
)
def tune(arguments: argparse.Namespace) -> None:
    """Runs a script as it is, with other arguments in each trial, and reads its value in the lines
    that it prints: val_acc=0.93, 'val_acc': 0.93, a table. The options of studyloom come first,
    then the script with its arguments. The baseline has the script's own defaults.

    It is an ordinary study: the same command resumes it, and more --trials continue it. After the
    search, up to 12 trainings choose the winner: the best 3 trials and the baseline, with 3 new
    seeds each. --set winner.top=1 --set winner.seeds=1 makes it 2, --set winner.enabled=false none.
    """
    overrides = []
    if arguments.trials is not None:
        overrides.append(f"study.trials={arguments.trials}")
    if arguments.workers is not None:
        overrides.append(f"launcher.workers={arguments.workers}")
    overrides += arguments.settings
    if arguments.sweep is not None:
        study = _write_study_of_sweep(arguments, overrides)
    else:
        study = _write_study(arguments, overrides)
    run_source(str(study.config), study.overrides, _make_commands(arguments))


def _make_commands(
    arguments: argparse.Namespace,
) -> Callable[[tuple[str, ...], tuple[str, ...]], "Command"]:
    """Returns a function that makes the command of a study, which knows the typed command line."""
    program = arguments.program
    if arguments.module is not None:
        program = ["-m", *arguments.module]
    command_line = sys.argv[2:]  # after `studyloom tune`
    options_end = len(command_line) - len(program)
    if command_line[options_end - 1 : options_end] == ["--"]:  # before the program
        options_end -= 1
    options = tuple(command_line[:options_end])
    tuned = tuple(command_line[options_end:])

    def make_command(
        program_of_worker: tuple[str, ...], overrides: tuple[str, ...]
    ) -> "TunedCommand":
        from studyloom.commands.tuned_command import TunedCommand

        return TunedCommand(program_of_worker, overrides, options=options, tuned=tuned)

    return make_command


def _write_study(arguments: argparse.Namespace, overrides: list[str]) -> Any:
    """Writes the study of a command line."""
    metric = arguments.maximize
    direction = "maximize"
    if metric is None:
        metric = arguments.minimize
        direction = "minimize"
    program = arguments.program
    if arguments.module is not None:
        program = ["-m", *arguments.module]
    elif program[:1] == ["--"]:
        program = program[1:]
    return load_plugin("tune")(
        program,
        metric=metric,
        direction=direction,
        name=arguments.name,
        fixed=arguments.fixed,
        value=arguments.value,
        step=arguments.step,
        tests=arguments.test,
        overrides=overrides,
    )


def _write_study_of_sweep(arguments: argparse.Namespace, overrides: list[str]) -> Any:
    """Writes the study of a sweep file.

    Raises:
        ConfigError: a program or another option is given, which the file has.
    """
    has_program = bool(arguments.program) or arguments.module is not None
    if has_program or arguments.fixed:
        raise ConfigError(
            f"--sweep {arguments.sweep}: the file has the program and its arguments; leave out "
            "those on the command line"
        )
    if arguments.value or arguments.step:
        raise ConfigError(
            "--value and --step find a value and its step in a line, and the metric of "
            f"--sweep {arguments.sweep} has a name; leave them out"
        )
    return load_plugin("tune_sweep")(
        arguments.sweep, name=arguments.name, tests=arguments.test, overrides=overrides
    )
