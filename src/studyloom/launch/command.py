"""The command that runs a study: workers are started with it, and people can type it."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from studyloom.processes import stat_fields

# Set in the environment of workers that a launcher starts, to the launcher's age in seconds.
WORKER_VARIABLE = "STUDYLOOM_WORKER"


def process_age() -> float:
    """Returns the seconds since this process began, plus for a worker its launcher's age then."""
    before = os.environ.get(WORKER_VARIABLE, "0")
    try:
        began = int(stat_fields("self")[19]) / os.sysconf("SC_CLK_TCK")
        own = time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, AttributeError):  # outside Linux
        own = time.process_time()
    return float(before) + own


@dataclass(frozen=True)
class Command:
    """A command that runs a study: the one that runs now, or one that equals a call from Python.

    Args:
        program: what a Python interpreter is given before the overrides, such as
            ("-m", "studies.mnist").
        arguments: Hydra's overrides and options.
        age: returns the seconds for which the command has run.
    """

    program: tuple[str, ...]
    arguments: tuple[str, ...]
    age: Callable[[], float] = process_age

    @classmethod
    def of_this_process(cls) -> "Command":
        """Returns the command that a person typed to start this process."""
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        program = ("-m", spec.name) if spec is not None else (sys.argv[0],)
        return cls(program, tuple(sys.argv[1:]))

    @property
    def page(self) -> list[str]:
        """The command line without its arguments, as a person types it."""
        return ["python", *self.program]

    def without(self, *keys: str) -> list[str]:
        """Returns the arguments without some overrides.

        Args:
            keys: the groups, sections and keys whose overrides are left out, with all below them.
        """
        left_out = tuple(f"{key}{end}" for key in keys for end in ("=", "."))
        return [argument for argument in self.arguments if not argument.startswith(left_out)]

    def worker(self, ranks: int = 1) -> list[str]:
        """Returns the arguments with which a Python interpreter runs a worker of this command.

        Args:
            ranks: how many processes train each of its trials.
        """
        several = [f"launcher.ranks={ranks}"] if ranks > 1 else []
        return [*self.program, *self.without("launcher"), "launcher=join", *several]
