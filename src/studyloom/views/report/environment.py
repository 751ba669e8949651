"""The last section of the report: the environment of the winner, and the configurations."""

import platform
import sys
from importlib.metadata import version
from typing import Any

from studyloom._version import __version__
from studyloom.views.report.blocks import Absent, Block, Facts, Folded, Section, get


def environment_section(winner: dict[str, Any] | None, config_text: str) -> Section:
    """Renders the environment in which the winner was trained, or else that of this process.

    Args:
        winner: what winner.json holds, None if there is none; any key may be missing.
        config_text: the configurations to show, as text.
    """
    blocks: list[Block] = [environment(winner)]
    if config_text.strip():
        blocks.append(Folded("configuration", config_text))
    else:
        blocks.append(Absent("No configuration was found."))
    return Section("environment", "Configuration and environment", blocks)


def environment(winner: dict[str, Any] | None) -> Facts:
    """Returns the facts of the environment, with the data's digest and the seeds."""
    facts = get(winner, "environment")
    if not isinstance(facts, dict):
        facts = {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "optuna")},
            "studyloom": __version__,
            "device": _device(),
        }
    facts = facts | {"data": get(winner, "data", "digest"), "seeds": get(winner, "seeds")}
    return Facts([(str(key), value) for key, value in facts.items() if value is not None])


def _device() -> str | None:
    """Names the device of this process; None if it has not imported torch, which takes a second."""
    if (torch := sys.modules.get("torch")) is None:
        return None
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "cpu"
