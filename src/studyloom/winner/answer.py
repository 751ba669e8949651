"""The answer of a study: reading winner.json, and wording its numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studyloom.text import format_cost, format_value

if TYPE_CHECKING:  # reading an answer, as `studyloom status` does, must not import torch
    from studyloom.winner.stages import Plan


def read_answer(run_dir: Path) -> dict[str, Any] | None:
    """Returns what winner.json holds; None if there is none, or none that can be read."""
    try:
        answer = json.loads((run_dir / "winner.json").read_text())
    except (OSError, ValueError):
        return None
    return answer if isinstance(answer, dict) else None


def is_answer_of(answer: Mapping[str, Any], plan: "Plan") -> bool:
    """Whether an answer comes from the final stage of this very plan."""
    return answer.get("stage") == plan.last.stored.name


def format_costs(row: Mapping[str, Any]) -> str:
    """Formats the costs of a candidate, each after a comma; empty if the metric was all.

    Args:
        row: a candidate in winner.json.
    """
    return "".join(f", {name} {format_cost(value)}" for name, value in row.get("costs", {}).items())


def format_mean(values: Mapping[str, Any]) -> str:
    """Formats mean ± standard deviation.

    Args:
        values: what `summarise` returns.
    """
    return format_value(values["mean"]) + (
        "" if values["std"] is None else f" ± {format_value(values['std'])}"
    )


def format_difference(test: Mapping[str, Any]) -> str:
    """Formats the difference between winner and baseline, with its interval.

    Args:
        test: what `compare` returns, with a difference.
    """
    difference = test["difference"]
    mean = format_value(difference["mean"], "+")
    if difference["interval"] is None:
        return mean
    low, high = (format_value(end, "+") for end in difference["interval"])
    return f"{mean}, 95 % interval {low} to {high}"
