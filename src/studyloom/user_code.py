"""The user's own code: where all of it is imported that a config or a call names.

A module may do more than define something: parse the command line, end its process, or search.
"""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Any

from studyloom.errors import ConfigError

BELOW_GUARD = 'put that below `if __name__ == "__main__":`'

# For each import that is going on, the innermost last: whether it ends where a study would begin.
_importing: list[bool] = []


class _StudyBegins(BaseException):
    """Ends the import of a script where it would run a study."""


@contextmanager
def importing_module(name: str, *, until_study: bool = False) -> Iterator[None]:
    """Imports a module of the user's in the body, which sees a command line without arguments.

    Args:
        until_study: whether the body ends where it would begin a study.

    Raises:
        ConfigError: the module ends its process.
    """
    arguments, sys.argv = sys.argv, sys.argv[:1]
    _importing.append(until_study)
    try:
        yield
    except _StudyBegins:
        if not until_study:
            raise
    except SystemExit as end:
        raise ConfigError(
            f"{name}: ends its process when it is imported (SystemExit: {end}), as a module does "
            f"that parses the command line; {BELOW_GUARD}"
        ) from end
    finally:
        sys.argv = arguments
        _importing.pop()


def find_member(name: str) -> Any:
    """Imports what a dotted name says; `resolve_name` hides why a module cannot be imported.

    Raises:
        ConfigError: the module ends its process, or searches.
    """
    with importing_module(name.rpartition(".")[0]):
        try:
            return resolve_name(name)
        except AttributeError as error:
            module = f"{getattr(error.obj, '__name__', '')}.{error.name}"
            if hasattr(error.obj, "__path__") and find_spec(module):
                import_module(module)
            raise


def end_import() -> None:
    """Ends the import of the user's code, if there is one, where it would begin a study.

    Each worker imports a module, and would start workers that import it. Of a script a command
    needs what it has defined so far.

    Raises:
        ConfigError: a module is being imported, and no script.
    """
    if any(_importing):
        raise _StudyBegins
    if _importing:
        stack = (each.frame for each in inspect.stack(0) if each.function == "<module>")
        name = next(stack).f_globals["__name__"]  # of the module that begins it
        words = "runs a study when it is imported, and each worker imports it"
        raise ConfigError(f"{name}: {words}; {BELOW_GUARD}")
