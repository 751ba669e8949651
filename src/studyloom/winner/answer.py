"""TODO winner.answer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studyloom.text import format_cost, format_value

if TYPE_CHECKING:  # whoever only reads an answer, such as `studyloom status`, needs no torch
    from studyloom.winner.stages import Plan


def read_answer(run_dir: Path) -> dict[str, Any] | None:
    """What winner.json holds; None where there is none."""
    try:
        found = json.loads((run_dir / "winner.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def is_answer_of(found: Mapping[str, Any], plan: "Plan") -> bool:
    """Whether an answer is that of these very trainings."""
    return found.get("stage") == plan.last.stored.name


def format_costs(row: Mapping[str, Any]) -> str:
    """What a candidate costs, where that was an objective too."""
    return "".join(f", {name} {format_cost(value)}" for name, value in row.get("costs", {}).items())


def format_mean(values: Mapping[str, Any]) -> str:
    """Mean ± standard deviation."""
    return format_value(values["mean"]) + (
        "" if values["std"] is None else f" ± {format_value(values['std'])}"
    )


def format_difference(test: Mapping[str, Any]) -> str:
    found = test["difference"]
    if found["interval"] is None:
        return format_value(found["mean"], "+")
    low, high = (format_value(end, "+") for end in found["interval"])
    return f"{format_value(found['mean'], '+')}, 95 % interval {low} to {high}"
