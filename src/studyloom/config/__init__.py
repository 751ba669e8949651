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
    # Lazy, so that `studyloom.config.trust` checks a config without importing Hydra.
    if name != "hydra_main":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from studyloom import processes

    # A study module imports the rest next, until it is decorated.
    processes.collect_rarely()
    processes.install_interrupt_handler()
    # A Ctrl-C in the middle would come out of the libraries as any error.
    with processes.ending_at_interrupt(), processes.deferring_signals():
        from studyloom.config.main import hydra_main

    return hydra_main
