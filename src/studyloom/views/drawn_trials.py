"""Which trials a figure draws, if there are so many that a reader cannot tell them apart."""

from collections.abc import Mapping

MOST_BEST = 100  # of the best trials; more are one stain
MOST_LATEST = 100  # of the latest trials


def select_drawn(values: Mapping[int, float], sign: int) -> set[int]:
    """Returns the numbers of the trials that a figure draws: all, or of many the best and latest.

    Args:
        values: the last value of each trial, by number, in the order of numbers.
        sign: 1 if more is better, -1 if less is.
    """
    if len(values) <= MOST_BEST + MOST_LATEST:
        return {*values}
    best_first = sorted(values, key=lambda number: -sign * values[number])
    return {*best_first[:MOST_BEST], *[*values][-MOST_LATEST:]}


def describe_selection(count: int) -> str:
    """Says which trials are drawn, to end a caption; empty if all are.

    Args:
        count: how many trials could be drawn.
    """
    if count <= MOST_BEST + MOST_LATEST:
        return ""
    return f" The best {MOST_BEST} and the latest {MOST_LATEST} trials are drawn."
