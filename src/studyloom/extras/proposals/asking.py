"""What proposers ask of a study: `studyloom ask` and `studyloom propose`."""

import math
from collections import Counter
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.text import Text

from studyloom.commands.options import open_run, print_json
from studyloom.decisions.early_end import read_bounds
from studyloom.decisions.extrapolation import extrapolate
from studyloom.extras.proposals.queue import count_free_slots, propose, why_closed
from studyloom.extras.proposals.stored_space import json_schema, read_space
from studyloom.space.outline import outline
from studyloom.storage.stored_study import StoredStudy, trial_rows
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import one_line
from studyloom.views.report import data_words
from studyloom.views.snapshot import describe, take_snapshot
from studyloom.views.terminal import make_console

DEADLINE = 10.0  # seconds to wait for a database that is busy or away
POINTS = 20  # at most, of a learning curve
LEAST = 10  # trials with values, before there is a best region
SHOWN = ("number", "state", "value", "epochs", "seconds", "proposed_by")  # of a trial


def ask(stored: StoredStudy) -> dict[str, Any]:
    """Returns what a proposer needs to know, as `commands.documents.ProposalContext` describes."""
    known, snapshot, trials = read_space(stored), take_snapshot(stored), stored.trials()
    budget, goal = read_bounds(stored).trials, stored.goals[0]
    left, closed = count_free_slots(stored), why_closed(stored)
    proposed = sum(TrialRecord(trial).proposed is not None for trial in trials)
    free = left - (known.baseline and not trials)
    about = [str((stored.definition() or {}).get("objective._target_") or "")]
    about += [describe(trial, trial.params) for trial in trials[:1]]
    baseline, rows = snapshot.baseline, trial_rows(stored).to_dicts()
    more = {t.number: {"params": t.params, "curve": curve_points(t)} for t in trials}
    return {
        "study": stored.name,
        "definition": {
            "metric": goal.name,
            "direction": "maximize" if goal.sign > 0 else "minimize",
            "rule": snapshot.rule,
            "baseline": None if baseline is None else (baseline.values or [None])[0],
            "about": "; ".join(filter(None, [*about, data_words(stored, None)])),
        },
        "space": json_schema(known),
        "budget": budget,
        "left": left,
        "proposals_left": 0 if closed else max(0, min(free, known.most(budget) - proposed)),
        "ended": closed,
        "best_region": best_region(stored, trials),
        "trials": [
            {name: row[name] for name in row if name in SHOWN or name.startswith("values.")}
            | more[row["number"]]
            for row in rows
        ],
    }


def curve_points(trial: FrozenTrial) -> list[tuple[int, float]]:
    """Returns the epochs and values of a learning curve: at most 20, evenly spaced, with the last.

    Values that are not finite are left out.
    """
    curve = TrialRecord(trial).curve
    pairs = zip(curve.get("number", ()), curve.get("value", ()), strict=False)
    points = [(at, value) for at, value in pairs if value is not None and math.isfinite(value)]
    stride = -(-len(points) // POINTS) or 1
    return points[::-stride][::-1]


def best_region(stored: StoredStudy, trials: list[FrozenTrial]) -> dict[str, Any] | None:
    """Returns where the best trials are; None if fewer than ten have a value.

    These are the best tenth, from which TPE draws, but at least three. A trial that stopped early
    counts with its value and what others gained from there, as samplers see it.

    Returns:
        By hyperparameter: `low` and `high` of a number, or how often each choice occurs.
    """
    shown = extrapolate(trials, stored.optuna.directions, [goal.name for goal in stored.goals[1:]])
    ended = [trial for trial in shown if trial.state == TrialState.COMPLETE]
    if len(ended) < LEAST:
        return None
    ended.sort(key=lambda trial: (-stored.sign * trial.values[0], trial.number))
    best = ended[: max(3, math.ceil(len(ended) / 10))]
    region: dict[str, Any] = {}
    for name in dict.fromkeys(name for trial in best for name in trial.params):
        values = [trial.params[name] for trial in best if name in trial.params]
        numbers = all(isinstance(value, int | float) for value in values)
        ends = {"low": min(values), "high": max(values)} if numbers else None
        region[name] = ends or dict(Counter(map(str, values)))
    return region


def print_proposed(arguments: Any) -> None:
    """Queues a configuration for `studyloom propose`, and prints the number of its trial."""
    stored = open_run(arguments, DEADLINE)
    number = propose(stored, arguments.point, arguments.by, arguments.why)
    if arguments.json:
        print_json({"study": stored.name, "trial": number})
    else:
        print(f"trial {number} of {one_line(stored.name)} waits for the next free worker")


def print_asked(arguments: Any) -> None:
    """Prints for `studyloom ask` what a proposer must know."""
    stored = open_run(arguments, DEADLINE)
    facts, console = ask(stored), make_console()
    if arguments.json:
        print_json(facts)
        return
    asked, left, of = facts["definition"], facts["left"], facts["budget"]
    begun = f"{left} of {of} trials have not begun" if left else f"all {of} trials have begun"
    for line in (
        f"{facts['study']}: {asked['direction']} {asked['metric']}; {asked['about']}",
        facts["ended"] or f"{begun}; {facts['proposals_left']} may be proposed now",
    ):
        console.print(Text(one_line(line)), soft_wrap=True)
    console.print(outline(read_space(stored).space))
