"""The beginning of the report: the answer in a sentence, what decided it, and what it rests on."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from studyloom.study.stored_study import StoredStudy, value_of
from studyloom.text import format_cost, format_duration, format_shape
from studyloom.views.progress.job import JobReader
from studyloom.views.progress.words import working_words
from studyloom.views.report.blocks import (
    Block,
    Card,
    Cards,
    Facts,
    Lines,
    Words,
    get,
    number,
    spread,
)
from studyloom.views.report.parts import Stage, wall_seconds, worker_seconds
from studyloom.views.sentence import quotable
from studyloom.views.snapshot import Snapshot, trial_counts, why_no_best
from studyloom.views.terminal import format_parameters
from studyloom.winner.answer import format_choice, format_covers, format_openings, format_race


@dataclass(frozen=True)
class Head:
    """The beginning of a page.

    Args:
        name: of the study.
        sentence: the answer, to be quoted.
        blocks: what it rests on.
    """

    name: str
    sentence: str
    blocks: list[Block]


def head(
    stored: StoredStudy, snapshot: Snapshot, winner: dict[str, Any] | None, parts: list[Stage]
) -> Head:
    """Renders the top of the report.

    Args:
        stored: the study.
        snapshot: the same at this moment.
        winner: what winner.json holds, None if there is none; any key may be missing.
        parts: the search and the later stages.
    """
    blocks: list[Block] = []
    if (halted := stored.halted()) is not None:
        why = f"The study has stopped, since its trials fail with this: {halted}"
        blocks.append(Words(why, "bad"))
    if (ended := snapshot.outlook.ending) is not None:
        blocks.append(Words(f"The search {ended.words}."))
    if words := working_words(JobReader(stored).read()):
        blocks.append(Words(words))
    if lines := [*decided(stored, winner, snapshot.budget)]:
        blocks.append(Lines(lines))
    blocks.append(Facts([*facts(stored, snapshot, winner, parts)]))
    blocks.append(Cards([*test_cards(winner, stored.sign), *search_cards(stored, snapshot)]))
    params = {"Best": snapshot.best.params} if snapshot.best else {}
    won = get(winner, "winner", "params")
    if isinstance(won, dict) and won != params.get("Best"):
        params["Winner"] = won
    blocks += [Words(f"{who}:  {format_parameters(p)}", "parameters") for who, p in params.items()]
    sentence = quotable(stored, winner, snapshot).replace(" %", "\N{NO-BREAK SPACE}%")
    return Head(stored.name, f"{sentence}.", blocks)


def decided(stored: StoredStudy, winner: dict[str, Any] | None, budget: int) -> Iterator[str]:
    """Yields what decided the answer, a line for each reason.

    Args:
        stored: the study.
        winner: what winner.json holds, None if there is none; any key may be missing.
        budget: of the study.
    """
    if (won := get(winner, "winner")) is None or winner is None:
        return
    rows = [row for row in get(winner, "candidates") or () if isinstance(row, dict)]
    fresh = len(get(won, "values") or ())
    chosen = f"Trial {get(won, 'trial')} was {format_choice(winner, budget)}"
    mean = get(won, "mean")
    if not fresh or not isinstance(mean, float):
        yield f"{chosen}."
    else:
        # Who left a race early has fewer values. By a rule, or with another metric, one may win
        # whose mean is not the best.
        others = [
            row["mean"]
            for row in rows
            if row.get("trial") != get(won, "trial")
            and isinstance(row.get("mean"), float)
            and len(get(row, "values") or ()) == fresh
        ]
        worse = [other for other in others if stored.sign * (mean - other) >= 0]
        of = f"of {len(rows)} candidates"
        if len(worse) == len(others):
            yield f"{chosen}: it had the best mean {of} on {fresh} fresh seeds."
        else:
            rule = get(winner, "rule") or "the rule"
            yield f"{chosen}: it is the best {of} by {rule}, on {fresh} fresh seeds."
        if worse:
            next_best = max(worse, key=lambda other: stored.sign * other)
            yield f"The next best has {number(next_best)} there, and it has {number(mean)}."
    yield from format_race_safely(winner)
    test = get(winner, "test")
    low, high = _pair(get(test, "difference", "interval"))
    if low is not None and high is not None:
        seen = "shows no difference" if low <= 0 <= high else "excludes 0"
        interval = f"{number(low, '+')} to {number(high, '+')} {format_covers(test)}".strip()
        yield f"The 95 % interval of the difference to the baseline, {interval}, {seen}."
    if opened := format_openings(test):
        yield f"The test part was {opened}, after the winner was chosen."


def format_race_safely(winner: dict[str, Any]) -> list[str]:
    """Formats how a race went; nothing of a record that lacks some of it."""
    try:
        return format_race(winner)
    except (LookupError, TypeError, ValueError):
        return []


def _pair(interval: Any) -> tuple[float | None, float | None]:
    if isinstance(interval, list) and len(interval) == 2:
        low, high = interval
        if isinstance(low, int | float) and isinstance(high, int | float):
            return low, high
    return None, None


def facts(
    stored: StoredStudy, snapshot: Snapshot, winner: dict[str, Any] | None, parts: list[Stage]
) -> Iterator[tuple[str, object]]:
    """Yields how long it took, on what, and what the values are."""
    if (wall := wall_seconds(parts)) is not None:
        begun = min(part.span[0] for part in parts if part.span is not None)
        worked = worker_seconds(parts)
        spent = f"{format_duration(wall)}, from {_moment(begun)}"
        yield "took", spent + (f"; workers trained for {format_duration(worked)}" if worked else "")
    if data := _data(stored, winner):
        yield "data", data
    goals = ", and ".join(
        f"{goal.name}, {'more' if goal.sign > 0 else 'less'} is better" for goal in stored.goals
    )
    yield "values", goals
    if snapshot.rule is not None:
        yield "the best by", snapshot.rule


def _moment(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M")


def _data(stored: StoredStudy, winner: dict[str, Any] | None) -> str:
    """Words what the networks were trained and tested on."""
    question = stored.question() or {}
    told = []
    if isinstance(source := question.get("data._target_"), str):
        told.append(source.rpartition(".")[2])
    shape = get(winner, "data", "shape")
    if isinstance(shape, list) and shape:
        told.append(f"inputs of {format_shape(shape)}")
    if isinstance(outputs := get(winner, "data", "outputs"), int):
        classes = get(winner, "data", "classifies")
        told.append(f"{outputs} {'classes' if classes else 'outputs'}")
    validation = question.get("data.validation")
    if isinstance(validation, int) and question.get("objective.folds") in (None, 1):
        told.append(f"{validation} examples to validate")
    if isinstance(examples := get(winner, "test", "examples"), int):
        told.append(f"{examples} to test")
    digest = get(winner, "data", "digest") or question.get("data.digest")
    if isinstance(digest, str) and digest:
        told.append(f"SHA-256 {digest[:12]}…")
    return ", ".join(told)


def search_cards(stored: StoredStudy, snapshot: Snapshot) -> Iterator[Card]:
    """Returns the numbers of the search, measured on the validation part."""
    counts = " · ".join(trial_counts(snapshot))
    yield Card("Trials", str(snapshot.done), f"of {snapshot.budget}", counts)
    best, baseline = snapshot.best, snapshot.baseline
    value, start = value_of(best), value_of(baseline)
    missing = why_no_best(snapshot).replace("No", "no", 1)
    note = missing if best is None else f"trial {best.number}"
    yield Card("Best, validation", number(value), "", note)
    note = "the configuration as composed" if baseline else "none"
    yield Card("Baseline, validation", number(start), "", note)
    gain = None if value is None or start is None else stored.sign * (value - start)
    difference = "best minus baseline" if stored.sign > 0 else "baseline minus best"
    yield Card("Gain, validation", number(gain, "+"), "", f"{difference}; flatters the best")
    for position, name in enumerate(snapshot.costs, 1):
        costs = [None if trial is None else value_of(trial, position) for trial in (best, baseline)]
        ours, theirs = ("–" if cost is None else format_cost(cost) for cost in costs)
        yield Card(f"{name}, best", ours, "", f"baseline: {theirs}")


def test_cards(winner: dict[str, Any] | None, sign: int) -> Iterator[Card]:
    """Returns the numbers of the test; none if there was no test.

    Args:
        winner: what winner.json holds, None if there is none; any key may be missing.
        sign: 1 if higher is better, -1 if lower is.
    """
    if (test := get(winner, "test")) is None:
        return
    runs = len(get(test, "winner", "values") or ())
    times = f", {runs} seeds (± is their standard deviation)" if runs else ""
    note = f"trial {get(winner, 'winner', 'trial')}{times}"
    examples = get(test, "examples")
    part = ", ".join(
        filter(None, [examples and f"{examples} test examples", format_openings(test)])
    )
    if get(test, "baseline") is None:  # there is none, or it has won
        yield _spread_card("Winner, test", get(test, "winner"), f"{note}; {part}")
    else:
        yield _spread_card("Winner, test", get(test, "winner"), note)
        yield _spread_card("Baseline, test", get(test, "baseline"), part)
        low, high = _pair(get(test, "difference", "interval"))
        note = f"95 % interval {number(low, '+')} to {number(high, '+')} {format_covers(test)}"
        yield Card("Difference, test", number(get(test, "difference", "mean"), "+"), "", note)
    note = " minus ".join(("search value", "mean of the retrainings")[::sign])
    yield Card("Selection gap", number(get(winner, "winner", "gap"), "+"), "", note)
    yield from committee_cards(get(winner, "committee"))
    references = get(test, "references")
    for rule, value in (references if isinstance(references, dict) else {}).items():
        yield Card(f"{str(rule).capitalize()}, test", number(value), "", "what needs no network")


def _spread_card(title: str, values: Any, note: str) -> Card:
    mean, _, error = spread(values).partition(" ")
    return Card(title, mean, error, note)


def committee_cards(entry: Any) -> Iterator[Card]:
    """Returns what a committee came to; nothing without one.

    Args:
        entry: of winner.json, any key of which may be missing.
    """
    if isinstance(get(entry, "members"), list):
        ours, theirs = _pair(get(entry, "costs", "parameters"))
        costs = f"{number(ours)} parameters, the winner has {number(theirs)}"
        networks = f"{len(entry['members'])} networks"
        yield Card("Committee, test", number(get(entry, "test")), "", networks)
        difference = number(get(entry, "difference", "mean"), "+")
        yield Card("Committee minus winner, test", difference, "", costs)
    elif (note := get(entry, "note")) is not None:
        yield Card("Committee, test", number(None), "", str(note))
