"""Config: from a command line and YAML files to objects. Hydra is imported in this layer only.

`hydra_main` decorates the function of a study module. A primary config begins its defaults list
with `studyloom`, which adds the schema of studyloom's own sections.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studyloom.config.main import hydra_main as hydra_main

__all__ = [
    "arguments",
    "build",
    "compose",
    "config_sources",
    "hydra_main",
    "invocation",
    "main",
    "overrides",
    "runs",
    "scaffold",
    "schema",
    "study_config",
    "trust",
    "values",
]


def __getattr__(name: str) -> Any:
    """Imports `hydra_main`, and with it Hydra, when it is first needed.

    A study module imports it first, and then what else it needs. These imports take seconds: until
    the module decorates its function they run with fewer garbage collections, and Ctrl-C ends them
    without a traceback.
    """
    if name != "hydra_main":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from studyloom import processes

    processes.collect_garbage_rarely()
    processes.install_interrupt_handler()
    # Deferred to the end of the import: libraries turn a Ctrl-C in their midst into other errors.
    with processes.ending_at_interrupt(), processes.deferring_signals():
        from studyloom.config.main import hydra_main

    return hydra_main
