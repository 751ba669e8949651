"""Integrations: trainings that are there already, as they are, as objectives of a study.

A config names some, as `objective._target_: studyloom.extras.integrations.Command`; a loop
of one's own imports those of trainers, which need the extra of their name. No other room imports
this one, and
each is imported when it is used.
"""

from importlib import import_module
from typing import Any

__all__ = ["accelerate", "command", "hydra", "lightning", "transformers"]

# What configs name, by the module that has it.
ADAPTERS = {"Command": "command", "Hydra": "hydra"}


def __getattr__(name: str) -> Any:
    if name not in ADAPTERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{ADAPTERS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*ADAPTERS, *__all__])
