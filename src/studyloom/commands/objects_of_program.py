"""What only the calling program has: definitions of a notebook or script, and given objects.

A worker in another process cannot import them, so the program passes them on; see
`user_code.pickled`.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager

from studyloom.config.study_config import StudyConfig
from studyloom.config.values import as_yaml
from studyloom.definition.definition import Definition
from studyloom.errors import ConfigError
from studyloom.user_code.digests import CODE, find_main_globals, find_targets
from studyloom.user_code.pickled import MAIN, NAMES_OF_THIS_PROGRAM, passing_objects


def pass_objects_of_program(
    definition: Definition, *, starts_processes: bool, leaves_host: bool
) -> AbstractContextManager[None]:
    """Makes what only this program defines available to the workers that a body starts.

    Args:
        starts_processes: whether workers run in other processes.
        leaves_host: whether they may run on other hosts.

    Raises:
        ConfigError: workers run on other hosts, which cannot get the objects.
    """
    names = _find_names_of_program(definition.config)
    if names and starts_processes and leaves_host:
        raise ConfigError(
            f"{', '.join(names)}: is defined only in this program, and the launcher starts "
            "workers on other hosts, which cannot import it; move it into a module that they have"
        )
    digests: dict[str, str] = {}
    used_globals: Iterable[str] = ()
    if names:
        digests = _select_digests_of_program(definition)
        used_globals = find_main_globals(names)
    return passing_objects(
        names, source_digests=digests, used_globals=used_globals, needed=starts_processes
    )


def names_script(config: StudyConfig) -> bool:
    """Returns whether a config names an object of the script that runs, such as `__main__.Net`."""
    return f": {MAIN}" in as_yaml(config.written)


def _find_names_of_program(config: StudyConfig) -> list[str]:
    """Returns the names in a config that only this program defines."""
    targets = dict.fromkeys(find_targets(config.written))  # an ordered set
    return [name for name in targets if name.startswith(NAMES_OF_THIS_PROGRAM)]


def _select_digests_of_program(definition: Definition) -> dict[str, str]:
    """Returns the digests of the sources that only this program defines, by name."""
    digests = {}
    for key, digest in definition.code.items():
        name = key.removeprefix(CODE)
        # The names are "__main__", which stands for all of the program, and such as "__main__.Net".
        if f"{name}.".startswith(MAIN):
            digests[name] = digest
    return digests
