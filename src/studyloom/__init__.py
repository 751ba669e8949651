"""Optuna-based study orchestration for PyTorch."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where a module was before: stored studies and people's configs name `studyloom.tables.Table`.
MOVED = {
    "studyloom.grid": "studyloom.space.grid",
    "studyloom.tables": "studyloom.data.tables",
}


def __getattr__(name: str) -> Any:
    if module := MOVED.get(f"{__name__}.{name}"):
        return import_module(module)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
