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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

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
SWEEP = re.compile(r"-m|--multirun|\+*hydra\.mode=(RunMode\.)?MULTIRUN", re.IGNORECASE)
HELP = ("--help", "-h")
QUIET = ("study.dry_run", "hydra")  # keys with whose overrides a command prints only their output


def hydra_main(config_path: str, config_name: str) -> Callable[[Task], Callable[[], None]]:
    """Decorates a task as `hydra.main` does, and adds studyloom's own options, such as `--dry-run`.

    All errors of a command line are printed together, and the command ends with exit code 2.
    `HYDRA_FULL_ERROR=1` shows the traceback instead.

    Args:
        config_path: the folder of the study's configs; if relative, from that of the module.
        config_name: the name of its primary config, without `.yaml`.
    """
    register()
    processes.collect_as_usual()
    processes.restore_interrupt_handler()

    def decorate(task: Task) -> Callable[[], None]:
        folder = folder_of_configs(task, config_path)
        tracebacks = wants_tracebacks()

        @hydra.main(config_path=folder, config_name=config_name, **VERSION_BASE)
        @functools.wraps(task)
        def main(cfg: DictConfig) -> None:
            if not tracebacks:
                TRACEBACKS.take()
            errors = find_config_errors(cfg)
            if errors:
                exit_with_errors(*errors)
            with seeding_imports(cfg.study.seed):
                task(cfg)

        @functools.wraps(task)
        @processes.ending_at_interrupt()
        def run() -> None:
            end_import_at_study()
            processes.open_streams()
            gc.freeze()  # later collections skip the imported modules: 0.8 s at exit
            processes.collect_rarely()  # until trials begin
            try:
                argv = rewrite_arguments(sys.argv[1:])
            except ConfigError as error:
                exit_with_errors(*error.errors)
            sys.argv[1:] = argv
            handle_early_options(task, folder, config_name, argv)
            with in_force(find_trust_rules(argv, Path(folder))), composing_once():
                if not tracebacks:
                    # Hydra's own report exits with 1, so Hydra raises until the config is complete.
                    os.environ[TRACEBACKS.name] = "1"
                try:
                    main()
                    sys.stdout.flush()  # of what Hydra prints, such as --cfg
                except BrokenPipeError:  # the reader of the pipe has gone
                    processes.discard_output()
                except Exception as error:  # of composing; Hydra reports what the task raises
                    if tracebacks:
                        raise
                    exit_with_errors(*explain_failure(error, folder, config_name, argv))

        vars(run).update(config_path=folder, config_name=config_name)  # for `studyloom.run`
        return run

    return decorate


def folder_of_configs(task: Task, config_path: str) -> str:
    """Returns the folder of a module's configs, and makes modules that they name importable.

    `python studies/mine.py` lets Python look for modules only in studies/; those that configs name,
    such as studies.mine, lie in the folder above.
    """
    module = Path(task.__code__.co_filename).resolve()
    is_script = task.__module__ == "__main__" and sys.modules["__main__"].__spec__ is None
    if is_script:
        root = above_packages(module)
        if root != module.parent and str(root) not in sys.path:
            sys.path.insert(0, str(root))
    return str((module.parent / config_path).resolve())


def handle_early_options(
    task: Task, config_path: str, config_name: str, argv: Sequence[str]
) -> None:
    """Handles `--version` and the like before torch is imported, or prints that a study begins."""
    if "--version" in argv:
        processes.print_at_once(f"studyloom {__version__}")
        sys.exit()
    if not set(HELP).isdisjoint(argv):
        about = task.__doc__ or inspect.getdoc(inspect.getmodule(task)) or ""
        overrides = [argument for argument in argv if argument not in HELP]
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
    """Returns whether a command has options of Hydra, or is a dry run."""
    for argument in argv:
        if argument.startswith("-") or Override.parse(argument).is_within(*QUIET):
            return True
    return False


def exit_with_errors(*errors: str) -> NoReturn:
    """Prints the errors of a configuration without a traceback, and exits with code 2."""
    print_errors(ConfigError(errors))
    if JSON.get():
        reason = mask_passwords("\n".join(errors))
        print(json.dumps({"exit_code": 2, "reason": reason}), flush=True)
    sys.exit(2)
