"""Config: from a command line and YAML files to objects. Hydra is imported in this room only.

`hydra_main` decorates the page of a study. A primary config begins its defaults list with
`studyloom` to take in the schema of studyloom's own sections.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studyloom.config.main import hydra_main as hydra_main

__all__ = [
    "build",
    "compose",
    "hydra_main",
    "overrides",
    "runs",
    "scaffold",
    "schema",
    "trust",
    "values",
]


def __getattr__(name: str) -> Any:
    if name != "hydra_main":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from studyloom.config.main import hydra_main  # checking a config needs no Hydra

    return hydra_main
