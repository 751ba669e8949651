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

_importing: list[str] = []  # the modules that are being imported, the innermost last


@contextmanager
def importing_module(name: str) -> Iterator[None]:
    """Imports a module of the user's in the body, which sees a command line without arguments.

    Raises:
        ConfigError: the module ends its process.
    """
    arguments, sys.argv = sys.argv, sys.argv[:1]
    _importing.append(name)
    try:
        yield
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


def refuse_while_importing() -> None:
    """Refuses to begin a study while a command, or one of its workers, imports the user's code.

    Each worker imports that module, and would start workers that import it.

    Raises:
        ConfigError: a module is being imported.
    """
    if _importing:
        stack = (each.frame for each in inspect.stack(0) if each.function == "<module>")
        name = next(stack).f_globals["__name__"]  # of the module that begins it
        words = "runs a study when it is imported, and each worker imports it"
        raise ConfigError(f"{name}: {words}; {BELOW_GUARD}")
