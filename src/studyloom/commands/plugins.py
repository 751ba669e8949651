"""Plugins: optional parts below `extras/`, which commands load by name; nothing imports `extras/`.

A command hands them down to the layers below it, as functions or callbacks.

Example:
    >>> load_plugin("explain")  # doctest: +SKIP
    <function explain at 0x…>
"""

from importlib import import_module
from typing import Any

# The name of each plugin, and its place below `studyloom.extras`: the module and its member.
PLUGINS = {
    "adopt": ("adopt.pages", "adopt"),
    "ask": ("proposals.asking", "print_asked"),
    "compress": ("export.compression", "compress"),
    "print_compressed": ("export.compression", "print_compressed"),
    "draw_png": ("image", "draw_png"),
    "explain": ("explain", "explain"),
    "gpu_checks": ("gpu", "show"),
    "mcp": ("mcp", "serve"),
    "notify": ("notify", "Notices"),
    "predict": ("predict.predicting", "predict"),
    "propose": ("proposals.asking", "print_proposed"),
    "propose_changed": ("proposals.queue", "propose_changed"),
    "replay": ("replay.replay", "replay"),
    "tune": ("tune.tune", "write_study"),
    "tune_sweep": ("tune.tune", "write_study_of_sweep"),
    "tracking": ("trackers.projection", "make_tracking"),
}


def load_plugin(name: str) -> Any:
    """Imports an optional part of studyloom by its name in PLUGINS, and returns its function.

    Raises:
        ImportError: a package of the extra is missing; the caller says which extra has it.
    """
    module, member = PLUGINS[name]
    return getattr(import_module(f"studyloom.extras.{module}"), member)
