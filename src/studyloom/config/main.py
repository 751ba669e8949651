"""From Hydra's config to objects. The only module that imports Hydra.

A primary config begins its defaults list with `studyloom` to take in the schema of studyloom's own sections. The other
groups (data, model, optimizer, …) hold a `_target_` and its arguments, and any class can stand there.
"""

import functools
import gc
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from studyloom.config import trust
from studyloom.config.build import foreign_trust
from studyloom.config.overrides import (
    describe_compose_error,
    find_override_mistakes,
    parse_command_line,
)
from studyloom.config.registration import register
from studyloom.config.schema import unknown_keys
from studyloom.errors import ConfigError, print_errors, wants_tracebacks
from studyloom.text import has_password

NO_SWEEP = "a study is a search already; what it searches stands in space"
# Where a URL with a password moves to.
HIDDEN = {"storage.url": "STUDYLOOM_STORAGE", "study.from": "STUDYLOOM_FROM"}


def hydra_main(
    config_path: str, config_name: str
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """`hydra.main`, with mistakes told all at once and exit code 2, and with `--dry-run`.

    `HYDRA_FULL_ERROR=1` shows the traceback instead.
    """

    register()

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
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
            gc.freeze()  # later collections skip what is imported: 0.8 s at the end alone
            sys.argv[1:] = arguments(sys.argv[1:])
            if sweeps := {"-m", "--multirun"}.intersection(sys.argv[1:]):
                exit_with_mistakes(f"{sweeps.pop()}: {NO_SWEEP}")
            if foreign := foreign_config(config_path, config_name, sys.argv[1:]):
                foreign_trust.append(trusted_by(sys.argv[1:]))
                try:
                    trust.load_foreign(foreign, foreign_trust[-1])
                except (ConfigError, OSError) as error:
                    exit_with_mistakes(*getattr(error, "mistakes", [str(error)]))
            if not tracebacks:
                # Hydra's own report exits with 1; until it has composed it is asked to raise.
                os.environ["HYDRA_FULL_ERROR"] = "1"
            try:
                main()
            except Exception as error:  # from composing; what the task raises, Hydra reports
                if tracebacks:
                    raise
                if isinstance(error, OSError) and not isinstance(error, HydraException):
                    where = f"{error.strerror}: {error.filename}"
                    exit_with_mistakes(f"run_dir: {where}; name another with run_dir=…")
                mistakes = find_override_mistakes(config_path, config_name, sys.argv[1:])
                exit_with_mistakes(*(mistakes or [describe_compose_error(error)]))
            finally:
                foreign_trust.clear()

        return run

    return decorate


def exit_with_mistakes(*mistakes: str) -> NoReturn:
    """Prints the mistakes of a configuration, without a traceback, and ends the process with 2."""
    print_errors(ConfigError(mistakes))
    sys.exit(2)


def arguments(argv: Sequence[str]) -> list[str]:
    """The command line as Hydra shall see it.

    A storage URL with a password moves to the environment: Hydra writes its overrides to files, and workers are started
    with them, where `ps` would show them.
    """
    result = []
    for argument in argv:
        name, _, value = argument.partition("=")
        if argument == "--dry-run":
            result += ["study.dry_run=true"]
        elif (kept := HIDDEN.get(name.lstrip("+"))) and has_password(value.strip("'\"")):
            os.environ[kept] = value.strip("'\"")
            result += [f"{name}=${{oc.env:{kept}}}"]
        else:
            result.append(argument)
    if any(re.fullmatch(r"study\.dry_run=(true|True|1|yes|on)", argument) for argument in result):
        result += ["hydra.output_subdir=null", "hydra.run.dir=."]  # a dry run leaves nothing behind
    return result


def foreign_config(config_path: str, config_name: str, argv: Sequence[str]) -> Path | None:
    """The primary config, where it lies in a folder that the command line names: another person may have written it."""
    given = parse_command_line(config_path, config_name, argv)
    name = Path(given.config_name).with_suffix(".yaml")
    folders = (given.config_dir, given.config_path)
    found = next(
        (Path(folder) / name for folder in folders if (Path(folder) / name).is_file()), None
    )
    return (
        None
        if found is None or found.resolve().is_relative_to(Path(config_path).resolve())
        else found
    )


def trusted_by(argv: Sequence[str]) -> list[str]:
    """The packages that `trust=[…]` names on a command line; a config from elsewhere cannot name its own."""
    value = next(
        (a.partition("=")[2] for a in reversed(argv) if a.lstrip("+").startswith("trust=")), ""
    )
    return [name for name in re.split(r"[\s,]+", value.strip("'\"[] ")) if name]
