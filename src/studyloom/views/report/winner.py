"""The sections of the winner: made small, its candidates, and what it gets right and wrong."""

from collections.abc import Iterator
from typing import Any

from studyloom.extras.export.record import compressed_rows, record_lines
from studyloom.views.figures.chart import Table
from studyloom.views.figures.predictions import predictions
from studyloom.views.report.answer import format_race_safely
from studyloom.views.report.blocks import (
    Absent,
    Block,
    Heat,
    Lines,
    Picture,
    Pictures,
    Section,
    drawn,
    get,
    is_embedded,
    number,
    spread,
)
from studyloom.views.terminal import format_parameters

TITLE = "The winner on the test part"
CANDIDATES = (
    "The best of many trials is partly luck. So the best few are trained again with other seeds, "
    "and their mean decides; the gap is how much the search promised too much. "
    "± is the standard deviation over the seeds."
)
PREDICTIONS = (
    "What the winner predicted beside what came; over time if the examples are in that order."
)
CONFUSION = "Rows are true classes, columns are predictions; the diagonal is right, red is wrong."
WRONG = (
    "The images that the winner gets wrong, the most confident mistakes first: "
    "true class → prediction, and how sure it is."
)
COMPRESSED = (
    "Variants of the winner, judged on a validation part that neither they nor their original were "
    "trained on. “Worse by” is a 95 % interval, over examples, of what is lost. Latencies are "
    "medians, with the 10th and the 90th percentile."
)


def winner_sections(winner: dict[str, Any] | None) -> Iterator[Section]:
    """Renders the candidates, and what the winner gets right and wrong on the test part.

    Args:
        winner: what winner.json holds, None if there is none; any key may be missing.
    """
    if winner is None:
        yield Section("winner", TITLE, [Absent("There is no winner.json yet.")])
        return
    if (record := get(winner, "compressed")) is not None:
        yield Section("compressed", "Made small", compressed(record), COMPRESSED)
    yield Section("candidates", "Candidates", candidates(winner), CANDIDATES)
    if "note" in winner:
        yield Section("winner", TITLE, [Absent(str(winner["note"]))])
    elif (predicted := get(winner, "predictions")) is not None:
        figure = drawn(predictions(predicted))
        yield Section("winner", "Predictions on the test part", [figure], PREDICTIONS)
    else:
        yield Section("winner", "Confusion on the test part", [confusion(winner)], CONFUSION)
        yield Section("wrong", "Most confidently wrong", [wrong(winner)], WRONG)


def compressed(record: dict[str, Any]) -> list[Block]:
    """Renders the variants of a winner that was made small as a table, and what was chosen.

    Args:
        record: what compress.json holds.
    """
    heads, *rows = compressed_rows(record)
    return [Table(heads, rows, words=(0, len(heads) - 1)), Lines([*record_lines(record)])]


def candidates(winner: dict[str, Any]) -> list[Block]:
    """Renders the candidates as a table, with their values in the search and retrained."""
    rows = [row for row in get(winner, "candidates") or () if isinstance(row, dict)]
    if not rows:
        return [Absent("winner.json names no candidates.")]
    sign = -1 if get(winner, "metric", "direction") == "minimize" else 1
    won = get(winner, "winner", "trial")
    head = ("trial", "search", "trained again", "gap", "", "parameters")
    table = Table(head, [_candidate(row, won, sign) for row in rows], words=(4, 5))
    race = format_race_safely(winner)
    return [table, Lines(race)] if race else [table]


def _candidate(row: dict[str, Any], won: object, sign: int) -> tuple[object, ...]:
    value, mean = row.get("search_value"), row.get("mean")
    gap = sign * (value - mean) if isinstance(value, float) and isinstance(mean, float) else None
    role = "baseline" if row.get("baseline") else ""
    if row.get("trial") == won:
        role = "winner"
    costs = get(row, "costs")
    told = [
        f"{name} {number(cost)}"
        for name, cost in (costs if isinstance(costs, dict) else {}).items()
    ]
    params = get(row, "params")
    shown = format_parameters(params if isinstance(params, dict) else {})
    numbers = (row.get("trial", "–"), number(value), spread(row), number(gap, "+"))
    return (*numbers, role, "  ".join([*told, shown]))


def confusion(winner: dict[str, Any]) -> Block:
    """Renders the confusion matrix, with shades by count."""
    held = get(winner, "confusion")
    rows = [row for row in (held if isinstance(held, list) else ()) if isinstance(row, list)]
    if not rows or any(not isinstance(count, int) for row in rows for count in row):
        return Absent("winner.json holds no confusion matrix.")
    classes = get(winner, "classes")
    if not isinstance(classes, list) or len(classes) != len(rows):
        classes = [*range(len(rows))]
    return Heat(classes, rows, "true classes by predicted ones")


def wrong(winner: dict[str, Any]) -> Block:
    """Renders the images that the winner gets wrong; only pictures that winner.json embeds."""
    pictures = []
    held = get(winner, "wrong")
    for item in held if isinstance(held, list) else ():
        if is_embedded(source := get(item, "image")):
            label = f"test image {get(item, 'index')}"
            words, said = f"{get(item, 'label')} → ", str(get(item, "predicted"))
            pictures.append(Picture(source, label, words, said, number(get(item, "confidence"))))
    return Pictures(pictures) if pictures else Absent("winner.json holds no images.")
