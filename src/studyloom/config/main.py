"""`hydra_main`, the decorator of a study's page: reads the command line, reports its mistakes."""

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
from hydra.errors import HydraException
from omegaconf import DictConfig

from studyloom._version import __version__
from studyloom.config.foreign import Guard, guarded
from studyloom.config.overrides import (
    describe_compose_error,
    describe_sweep,
    find_override_mistakes,
    page_help,
    parse_command_line,
)
from studyloom.config.passwords import JSON, move_passwords, take_outputs
from studyloom.config.registration import (
    GROUPS,
    composing_once,
    find_foreign_mistakes,
    register,
)
from studyloom.config.schema import unknown_keys
from studyloom.errors import ConfigError, print_errors, wants_tracebacks
from studyloom.processes import collect_as_usual, collect_rarely
from studyloom.text import mask_passwords

SWEEP = re.compile(r"-m|--multirun|\+*hydra\.mode=(RunMode\.)?MULTIRUN", re.IGNORECASE)


def hydra_main(
    config_path: str, config_name: str
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Decorates a task as `hydra.main` does, and adds `--dry-run`.

    All mistakes of a command line are printed at once, and the command ends with exit code 2.
    `HYDRA_FULL_ERROR=1` shows the traceback instead.

    Args:
        config_path: the folder of the study's configs; if relative, from the folder of the page.
        config_name: the name of its primary config, without `.yaml`.
    """
    register()
    collect_as_usual()

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        folder = folder_of_configs(task, config_path)
        return decorated(task, folder, config_name)

    return decorate


def decorated(
    task: Callable[[DictConfig], None], config_path: str, config_name: str
) -> Callable[[], None]:
    """Decorates a task, see `hydra_main`.

    Args:
        task: gets the config as composed.
        config_path: the folder of the study's configs, absolute.
        config_name: the name of its primary config.
    """

    @hydra.main(version_base=None, config_path=config_path, config_name=config_name)
    @functools.wraps(task)
    def main(cfg: DictConfig) -> None:
        if not tracebacks:
            del os.environ["HYDRA_FULL_ERROR"]
        if mistakes := unknown_keys(cfg):
            exit_with_mistakes(*mistakes)
        task(cfg)

    tracebacks = wants_tracebacks()

    @functools.wraps(task)
    def run() -> None:
        gc.freeze()  # later collections skip the imported modules: 0.8 s at exit alone
        collect_rarely()  # until trials begin
        try:
            sys.argv[1:] = arguments(sys.argv[1:])
        except ConfigError as error:
            exit_with_mistakes(*error.mistakes)
        answer_at_once(task, config_path, config_name, sys.argv[1:])
        trusted = trusted_by(sys.argv[1:])
        with guarded([Path(config_path), GROUPS], trusted) as guard, composing_once():
            if mistakes := foreign_mistakes(guard, config_path, config_name, sys.argv[1:]):
                exit_with_mistakes(*mistakes)
            if not tracebacks:
                # Hydra's own report exits with 1, so Hydra shall raise until it has composed.
                os.environ["HYDRA_FULL_ERROR"] = "1"
            try:
                main()
            except Exception as error:  # of composing; Hydra reports what the task raises
                if tracebacks:
                    raise
                exit_with_mistakes(*compose_mistakes(error, config_path, config_name, sys.argv[1:]))

    vars(run).update(config_path=config_path, config_name=config_name)  # for `studyloom.run`
    return run


def folder_of_configs(task: Callable[[DictConfig], None], config_path: str) -> str:
    """Returns the folder of a page's configs, and has a page run as a file find its own modules.

    `python studies/mine.py` has Python look for modules in studies/; those that configs name, such
    as studies.mine, lie beside that folder.

    Args:
        task: the function of the page.
        config_path: as the page says it.
    """
    page = Path(task.__code__.co_filename).resolve()
    main = sys.modules["__main__"]
    if task.__module__ == "__main__" and getattr(main, "__spec__", None) is None:
        root = page.parent
        while (root / "__init__.py").is_file():
            root = root.parent
        if root != page.parent and str(root) not in sys.path:
            sys.path.insert(0, str(root))
    return str((page.parent / config_path).resolve())


def answer_at_once(
    task: Callable[[DictConfig], None], config_path: str, config_name: str, argv: Sequence[str]
) -> None:
    """Answers what needs no study, or says that one begins: torch takes a second or two.

    Args:
        task: the function of the page.
        config_path: the folder of the study's configs.
        config_name: the name of its primary config.
        argv: the arguments of the command, without its name.
    """
    if "--version" in argv:
        print(f"studyloom {__version__}")
        sys.exit()
    if {"--help", "-h"} & {*argv}:
        about = inspect.getdoc(inspect.getmodule(task)) or ""
        shown = [argument for argument in argv if argument not in ("--help", "-h")]
        print(page_help(about, config_path, config_name, shown))
        sys.exit()
    if sweeps := [argument for argument in argv if SWEEP.fullmatch(argument)]:
        exit_with_mistakes(describe_sweep(sweeps[0], argv))
    quiet = ("study.dry_run", "-", "hydra.")  # what Hydra is asked for has no line before it
    # Standard output may be closed: then Python has none.
    if sys.stdout is None or not sys.stdout.isatty() or os.environ.get(JSON):
        return  # nobody waits for it there
    if not any(argument.startswith(quiet) for argument in argv):
        print(f"{config_name}: starting", flush=True)


def compose_mistakes(
    error: Exception, config_path: str, config_name: str, argv: Sequence[str]
) -> list[str]:
    """Explains why a config could not be composed, or its run directory not be made.

    Args:
        error: what Hydra raised.
        config_path: the folder of the study's configs.
        config_name: the name of its primary config.
        argv: the arguments of the command, without its name.

    Returns:
        One line a mistake.
    """
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return [f"run_dir: {error.strerror}: {error.filename}; name another with run_dir=…"]
    if isinstance(error, ConfigError):  # of a file from elsewhere
        return list(error.mistakes)
    mistakes = find_override_mistakes(config_path, config_name, argv)
    return mistakes or [describe_compose_error(error)]


def exit_with_mistakes(*mistakes: str) -> NoReturn:
    """Prints the mistakes of a configuration without a traceback, and exits with code 2."""
    print_errors(ConfigError(mistakes))
    if os.environ.get(JSON):
        reason = mask_passwords("\n".join(mistakes))
        print(json.dumps({"exit_code": 2, "reason": reason}), flush=True)
    sys.exit(2)


def arguments(argv: Sequence[str]) -> list[str]:
    """Rewrites a command line for Hydra.

    `--dry-run` becomes an override. A URL with a password, and what the command tells to whom, move
    to the environment.

    Args:
        argv: the arguments of the command, without its name.

    Raises:
        ConfigError: every password that cannot be moved.
    """
    result = [
        "study.dry_run=true" if argument == "--dry-run" else argument
        for argument in move_passwords(take_outputs(argv))
    ]
    if any(re.fullmatch(r"study\.dry_run=(true|True|1|yes|on)", argument) for argument in result):
        result += ["hydra.output_subdir=null", "hydra.run.dir=."]  # a dry run leaves nothing behind
    return result


def foreign_mistakes(
    guard: Guard, config_path: str, config_name: str, argv: Sequence[str]
) -> list[str]:
    """Reads the configs of folders that the command line names, which others may have written.

    Args:
        guard: knows the folders that are the user's own.
        config_path: the folder of the study's configs.
        config_name: the name of the primary config, unless the command line names another.
        argv: the arguments of the command, without its name.

    Returns:
        Every mistake in them; none if the command line names no folder.
    """
    options = parse_command_line(config_path, config_name, argv)
    searched = any("hydra.searchpath" in override for override in options.overrides)
    named = None if options.config_dir == config_path else options.config_dir
    if named is None and options.config_path == config_path and not searched:
        return []
    if not Path(options.config_path).is_absolute():
        return []  # seen from the page; Hydra finds it, and the first mistake, when it composes
    return find_foreign_mistakes(
        guard, options.config_path, named, options.config_name, options.overrides
    )


def trusted_by(argv: Sequence[str]) -> list[str]:
    """Returns the keys and packages of `trust=[…]` on a command line.

    Only the command line counts: a config from elsewhere must not trust itself.
    """
    values = [
        argument.partition("=")[2] for argument in argv if argument.lstrip("+").startswith("trust=")
    ]
    value = values[-1] if values else ""
    return [name for name in re.split(r"[\s,]+", value.strip("'\"[] ")) if name]
