"""`hydra_main`: makes a function of a study module a command.

All errors of a command line are reported together.
"""

import functools
import gc
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, cast

import hydra
from omegaconf import DictConfig

from studyloom import processes
from studyloom._version import __version__
from studyloom.config.arguments import (
    explain_failure,
    find_config_errors,
    find_trust_rules,
    rewrite_arguments,
)
from studyloom.config.config_sources import composing_once, register
from studyloom.config.overrides import VERSION_BASE, Override, study_help
from studyloom.config.trust import in_force
from studyloom.environment import JSON, TRACEBACKS, WORKER
from studyloom.error_display import print_errors, wants_tracebacks
from studyloom.errors import ConfigError
from studyloom.text import mask_passwords
from studyloom.user_code.importing import (
    above_packages,
    end_import_at_study,
    seeding_imports,
)

Task = Callable[[DictConfig], None]
# An argument that makes Hydra run a command several times, such as `-m` or `hydra.mode=MULTIRUN`.
SWEEP = re.compile(r"-m|--multirun|\+*hydra\.mode=(RunMode\.)?MULTIRUN", re.IGNORECASE)
HELP = ("--help", "-h")
QUIET = ("study.dry_run", "hydra")  # with an override of these keys nothing else is printed


def hydra_main(config_path: str, config_name: str) -> Callable[[Task], Callable[[], None]]:
    """Decorates a task as `hydra.main` does, and adds studyloom's own options, such as `--dry-run`.

    All errors of a command line are printed together, and the command ends with exit code 2.
    `HYDRA_FULL_ERROR=1` shows the traceback instead.

    Args:
        config_path: the folder of the study's configs; if relative, from that of the module.
        config_name: the name of its primary config, without `.yaml`.
    """
    register()
    # The long imports of the study module end here. Until then garbage is collected rarely, and
    # Ctrl-C ends the process without a traceback (see `studyloom.config`).
    processes.collect_garbage_as_usual()
    processes.restore_interrupt_handler()

    def decorate(task: Task) -> Callable[[], None]:
        module_file = Path(task.__code__.co_filename).resolve()
        folder = str((module_file.parent / config_path).resolve())
        is_main = task.__module__ == "__main__"
        is_script = is_main and sys.modules["__main__"].__spec__ is None  # and not `python -m`
        if is_script:
            _add_package_parent(module_file)

        @functools.wraps(task)
        @processes.ending_at_interrupt()
        def run() -> None:
            _prepare_process()
            arguments = _read_arguments()
            handle_early_options(task, folder, config_name, arguments)
            shows_tracebacks = wants_tracebacks()  # True if the user has set HYDRA_FULL_ERROR
            compose_and_run = _make_hydra_command(
                task, folder, config_name, shows_tracebacks=shows_tracebacks
            )
            with explaining_errors_of_composing(
                folder, config_name, arguments, shows_tracebacks=shows_tracebacks
            ):
                compose_and_run()
                sys.stdout.flush()  # raises BrokenPipeError here, and not at exit

        vars(run).update(config_path=folder, config_name=config_name)  # for `studyloom.run`
        return run

    return decorate


def _prepare_process() -> None:
    """Prepares the process for a command, once its modules are imported.

    A worker imports a script only for the definitions in it: there, the script ends at this call.
    """
    end_import_at_study()
    processes.open_closed_streams()  # before anything is printed or a file is opened
    gc.freeze()  # later collections skip the imported modules: 0.8 s at exit
    processes.collect_garbage_rarely()  # until trials begin


def _read_arguments() -> list[str]:
    """Returns the arguments of the command as Hydra takes them, which also reads `sys.argv`.

    If one of them is wrong, the process ends with exit code 2.
    """
    try:
        arguments = rewrite_arguments(sys.argv[1:])
    except ConfigError as error:
        exit_with_errors(*error.errors)
    sys.argv[1:] = arguments
    return arguments


def _make_hydra_command(
    task: Task, folder: str, config_name: str, *, shows_tracebacks: bool
) -> Callable[[], None]:
    """Returns a function that composes the config by Hydra, checks it, and calls the task."""

    @hydra.main(config_path=folder, config_name=config_name, **VERSION_BASE)
    @functools.wraps(task)
    def check_and_run(cfg: DictConfig) -> None:
        if not shows_tracebacks:
            TRACEBACKS.take()  # HYDRA_FULL_ERROR, which was set only until the config is composed
        errors = find_config_errors(cfg)
        if errors:
            exit_with_errors(*errors)
        with seeding_imports(cfg.study.seed):
            task(cfg)

    return cast(Callable[[], None], check_and_run)  # Hydra's decorator passes the config


def _add_package_parent(module_file: Path) -> None:
    """Lets a script import its own package, whose modules the configs name.

    `python studies/mine.py` puts only studies/ on the module path. A config names studies.mine,
    which is imported from the folder above.
    """
    parent = above_packages(module_file)
    if parent != module_file.parent and str(parent) not in sys.path:
        sys.path.insert(0, str(parent))


@contextmanager
def explaining_errors_of_composing(
    folder: str, config_name: str, arguments: Sequence[str], *, shows_tracebacks: bool
) -> Iterator[None]:
    """Explains why Hydra cannot compose a config in the body, and ends the process with code 2.

    Hydra would print its own report and exit with code 1. With HYDRA_FULL_ERROR=1 it raises the
    error instead, so this variable is set while the config is composed. The command removes the
    variable when it begins: Hydra reports an error of the command, and exits by SystemExit.

    Args:
        folder: the folder of the study's configs.
        config_name: the name of its primary config.
        arguments: the command line.
        shows_tracebacks: whether the user wants the traceback instead.
    """
    with in_force(find_trust_rules(arguments, Path(folder))), composing_once():
        if not shows_tracebacks:
            os.environ[TRACEBACKS.name] = "1"  # HYDRA_FULL_ERROR; `check_and_run` removes it
        try:
            yield
        except BrokenPipeError:  # the reader of the pipe has gone
            processes.discard_output()
        except Exception as error:  # of composing
            if shows_tracebacks:
                raise
            exit_with_errors(*explain_failure(error, folder, config_name, arguments))


def handle_early_options(
    task: Task, config_path: str, config_name: str, argv: Sequence[str]
) -> None:
    """Handles what needs no import of torch: --version, --help, and the refusal of a sweep.

    For any other command a person sees at once that the study begins.
    """
    if "--version" in argv:
        processes.print_at_once(f"studyloom {__version__}")
        sys.exit()
    overrides = [argument for argument in argv if argument not in HELP]
    wants_help = len(overrides) < len(argv)
    if wants_help:
        about = task.__doc__ or inspect.getdoc(inspect.getmodule(task)) or ""
        processes.print_at_once(study_help(about, config_path, config_name, overrides))
        sys.exit()
    for argument in argv:
        if SWEEP.fullmatch(argument):
            exit_with_errors(
                f"{argument}: a study is a search already; write what it searches into a space, "
                "such as conf/space/mine.yaml, and choose that with space=mine"
            )
    is_read_by_program = bool(JSON.get()) or WORKER.get() is not None
    if not is_read_by_program and not _prints_only_output(argv):
        processes.print_at_once(f"{config_name}: starting")


def _prints_only_output(argv: Sequence[str]) -> bool:
    """Returns whether a command trains nothing: a dry run, or one with options of Hydra."""
    for argument in argv:
        if argument.startswith("-") or Override.parse(argument).is_within(*QUIET):
            return True
    return False


def exit_with_errors(*errors: str) -> NoReturn:
    """Prints the errors of a configuration without a traceback, and exits with code 2.

    With `--json` they are printed as JSON too.
    """
    print_errors(ConfigError(errors))
    if JSON.get():
        reason = mask_passwords("\n".join(errors))
        print(json.dumps({"exit_code": 2, "reason": reason}), flush=True)
    sys.exit(2)
