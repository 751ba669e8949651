"""Errors as a person sees them: printed before a process ends, or raised from a call in Python."""

import contextlib
import functools
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

from studyloom.environment import TRACEBACKS
from studyloom.errors import StudyloomError, list_messages
from studyloom.text import indented, mask_passwords

P = ParamSpec("P")
R = TypeVar("R")


def print_errors(error: Exception) -> None:
    """Prints each message of an error on standard error, after `error: `, without passwords."""
    for message in list_messages(error, str(error)):
        with contextlib.suppress(OSError, ValueError):  # standard error may be full or closed
            sys.stderr.write(f"error: {indented(mask_passwords(message))}\n")


def exit_with(error: Exception, code: int) -> NoReturn:
    """Prints an error and ends the process; raises it instead if tracebacks are wanted."""
    if wants_tracebacks():
        raise error
    print_errors(error)
    sys.exit(code)


def shorten_tracebacks(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function of the Python API, so that the tracebacks of its errors are short.

    They end at the user's call of the function, without frames of studyloom and without the cause
    of the error, unless HYDRA_FULL_ERROR=1.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (StudyloomError, KeyboardInterrupt) as error:
            if wants_tracebacks():
                raise
            raise error.with_traceback(None) from None

    return call


def wants_tracebacks() -> bool:
    """Returns whether HYDRA_FULL_ERROR=1 requests tracebacks."""
    return TRACEBACKS.get() == "1"
