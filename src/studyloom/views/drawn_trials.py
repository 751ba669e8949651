"""Trials in figures: which of very many are drawn, and as marks of which color.

An *outcome* is how a trial stands, as the table of trials calls it: complete, pruned, paused,
failed, interrupted or running. *Marked* trials are highlighted.
"""

from collections.abc import Collection, Mapping
from typing import Literal

from optuna.trial import FrozenTrial

from studyloom.storage.trial_record import INTERRUPTED
from studyloom.views import charts

NOTHING_COMPLETE = "No trial is complete yet."
MOST_BEST = 100  # of the best trials; more are one stain
MOST_LATEST = 100  # of the latest trials
COLORS = {INTERRUPTED: "running"}  # of an outcome that shares the color of another
MANY = 400  # trials, whose marks are smaller
SMALLER = 0.6  # the share of their width that is left
SHADES = 5  # of a ramp from gray to blue

Marked = Mapping[str, FrozenTrial | None]  # `baseline`, `best` and, of a front, `winner`


def select_drawn(values: Mapping[int, float], sign: int) -> set[int]:
    """Returns the numbers of the trials that a figure draws: all, or of many the best and latest.

    Args:
        values: the last value of each trial, by number.
        sign: 1 if more is better, -1 if less is.
    """
    if len(values) <= MOST_BEST + MOST_LATEST:
        return {*values}
    best_first = sorted(values, key=lambda number: -sign * values[number])
    latest = sorted(values)[-MOST_LATEST:]  # trials are numbered in the order in which they began
    return {*best_first[:MOST_BEST], *latest}


def describe_selection(count: int, *, of_each: str = "") -> str:
    """Says which trials are drawn, to end a caption; empty if all are.

    Args:
        count: how many trials could be drawn.
        of_each: the noun for what a figure of several parts has a part for, such as hyperparameter;
            each part then draws trials of its own.
    """
    if count <= MOST_BEST + MOST_LATEST:
        return ""
    if of_each:
        return (
            f" Of each {of_each}, at most the best {MOST_BEST} and the latest {MOST_LATEST} trials "
            "are drawn."
        )
    return f" The best {MOST_BEST} and the latest {MOST_LATEST} trials are drawn."


def select_points(
    points: Mapping[int, charts.Point], numbers: Collection[int]
) -> dict[int, charts.Point]:
    """Returns the points of some trials, by number."""
    return {number: point for number, point in points.items() if number in numbers}


def remove_points(
    points: Mapping[int, charts.Point], numbers: Collection[int]
) -> dict[int, charts.Point]:
    """Returns the points of all trials but some, by number."""
    return {number: point for number, point in points.items() if number not in numbers}


def color_of_outcome(outcome: str) -> str:
    """Returns the color of an outcome, or that of the outcome whose color it shares."""
    return COLORS.get(outcome, outcome)


def choose_shade(position: int, count: int) -> int:
    """Returns the shade of the item at a position of `count`: from 0, gray, to the bluest."""
    return SHADES * position // count


def mark_shades(
    points: Mapping[int, charts.Point],
    shades: Mapping[int, int],
    width: float,
    shape: Literal["dot", "square"] = "dot",
) -> list[charts.Mark]:
    """Returns the dots or squares of trials, a mark for each shade from gray to blue.

    Args:
        points: the coordinates of the trials, by number.
        shades: the shade of each trial, below SHADES.
    """
    marks = []
    for shade in range(SHADES):
        members = {number for number in points if shades[number] == shade}
        selected = select_points(points, members)
        marks.append(
            charts.make_trial_dots(selected, color=f"ramp-{shade}", width=width, shape=shape)
        )
    return charts.without_empty(marks)
