"""The commands of proposers: `studyloom ask` and `studyloom propose`.

A proposer is a person, program or agent that chooses configurations for some trials of a running
search. Its proposals are queued like any other configuration (`extras.proposals.queue`).
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.text import Text

from studyloom.commands.options import open_run, print_json
from studyloom.decisions.early_end import read_bounds
from studyloom.decisions.extrapolation import extrapolate
from studyloom.extras.proposals.queue import count_free_slots, count_proposed, propose, why_closed
from studyloom.extras.proposals.stored_space import StoredSpace, json_schema, read_space
from studyloom.space.outline import outline
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.storage.trial_tables import trial_rows
from studyloom.text import one_line
from studyloom.views.consoles import make_console
from studyloom.views.headline import describe_trial
from studyloom.views.snapshot import take_snapshot
from studyloom.views.words import describe_data

DEADLINE = 10.0  # seconds to wait for a database that is busy or away
MAX_POINTS = 20  # of a learning curve
MIN_TRIALS = 10  # trials with values that a best region needs
SHARE_OF_BEST = 10  # one in so many trials is in the best region
MIN_BEST = 3  # trials in the best region
COLUMNS = ("number", "state", "value", "epochs", "seconds", "proposed_by")  # of a trial
Document = dict[str, Any]  # an object in JSON


def ask(stored: StoredStudy) -> Document:
    """Returns what a proposer needs to know, as `commands.documents.ProposalContext` describes."""
    space = read_space(stored)
    trials = stored.trials()
    budget = read_bounds(stored).trials
    free_slots = count_free_slots(stored)
    reason_of_end = why_closed(stored)
    proposals_left = 0
    if reason_of_end is None:
        proposals_left = _count_proposals_left(space, trials, budget, free_slots)
    return {
        "study": stored.name,
        "definition": _describe_definition(stored, trials),
        "space": json_schema(space),
        "budget": budget,
        "trials_left": free_slots,
        "proposals_left": proposals_left,
        "end_reason": reason_of_end,
        "best_region": best_region(stored, trials),
        "trials": _describe_trials(stored, trials),
    }


def _describe_definition(stored: StoredStudy, trials: Sequence[FrozenTrial]) -> Document:
    """Returns the objective of a study, the value of its baseline, and what it trains."""
    snapshot = take_snapshot(stored)
    objective = stored.objectives[0]
    direction = "minimize"
    if objective.sign > 0:
        direction = "maximize"
    baseline = None
    if snapshot.baseline is not None and snapshot.baseline.values:
        baseline = snapshot.baseline.values[0]
    definition = stored.definition() or {}
    loop = str(definition.get("objective._target_") or "")
    model = ""
    if trials:
        model = describe_trial(trials[0], trials[0].params)
    data = describe_data(stored, None)
    return {
        "metric": objective.name,
        "direction": direction,
        "rule": snapshot.rule,
        "baseline": baseline,
        "about": "; ".join(part for part in (loop, model, data) if part),
    }


def _count_proposals_left(
    space: StoredSpace, trials: Sequence[FrozenTrial], budget: int, free_slots: int
) -> int:
    """Counts the configurations that may be proposed now to a study that takes proposals."""
    if space.baseline and not trials:
        free_slots -= 1  # trial 0 will be the default configuration
    allowed = space.most_proposals(budget) - count_proposed(trials)
    return max(0, min(free_slots, allowed))


def _describe_trials(stored: StoredStudy, trials: Sequence[FrozenTrial]) -> list[Document]:
    """Returns the state, values, configuration and learning curve of each trial."""
    by_number = {trial.number: trial for trial in trials}
    descriptions = []
    for row in trial_rows(stored).to_dicts():
        description = {}
        for name, value in row.items():
            if name in COLUMNS or name.startswith("values."):
                description[name] = value
        trial = by_number[row["number"]]
        description["params"] = trial.params
        description["curve"] = curve_points(trial)
        descriptions.append(description)
    return descriptions


def curve_points(trial: FrozenTrial) -> list[tuple[int, float]]:
    """Returns the epochs and values of a learning curve: at most 20, evenly spaced, with the last.

    Values that are not finite are left out.
    """
    curve = TrialRecord(trial).curve
    points = []
    for epoch, value in zip(curve.get("number", ()), curve.get("value", ()), strict=False):
        if value is not None and math.isfinite(value):
            points.append((epoch, value))
    stride = max(1, math.ceil(len(points) / MAX_POINTS))
    # Taken from the end, so that the last point is among them, and then turned around.
    from_the_end = points[::-stride]
    return from_the_end[::-1]


def best_region(stored: StoredStudy, trials: list[FrozenTrial]) -> Document | None:
    """Returns the part of the space in which the best trials are; None if too few have a value.

    The best trials are the best tenth, from which TPE draws, but at least three. A trial that
    stopped early counts with the value that it is expected to reach, as samplers see it.

    Returns:
        By hyperparameter: `low` and `high` of a number, or how often each choice occurs.
    """
    further_objectives = [objective.name for objective in stored.objectives[1:]]
    # Trials that stopped early become complete ones, with the value that is expected of them.
    extrapolated = extrapolate(trials, stored.optuna.directions, further_objectives)
    complete = [trial for trial in extrapolated if trial.state == TrialState.COMPLETE]
    if len(complete) < MIN_TRIALS:
        return None

    def sort_key(trial: FrozenTrial) -> tuple[float, int]:
        # The sign is 1 if more of the metric is better, else -1.
        return -stored.sign * trial.values[0], trial.number

    best_first = sorted(complete, key=sort_key)
    best_count = max(MIN_BEST, math.ceil(len(complete) / SHARE_OF_BEST))
    values_by_name: dict[str, list[Any]] = {}
    for trial in best_first[:best_count]:
        for name, value in trial.params.items():
            values_by_name.setdefault(name, []).append(value)
    return {name: _summarize(values) for name, values in values_by_name.items()}


def _summarize(values: Sequence[Any]) -> Document:
    """Returns the range of numbers, or how often each choice occurs."""
    if all(isinstance(value, int | float) for value in values):
        return {"low": min(values), "high": max(values)}
    return dict(Counter(str(value) for value in values))


def print_proposed(arguments: Any) -> None:
    """Queues a configuration for `studyloom propose`, and prints the number of its trial."""
    stored = open_run(arguments, DEADLINE)
    number = propose(stored, arguments.configuration, arguments.by, arguments.why)
    if arguments.json:
        print_json({"study": stored.name, "trial": number})
    else:
        print(f"trial {number} of {one_line(stored.name)} waits for the next free worker")


def print_asked(arguments: Any) -> None:
    """Prints for `studyloom ask` what a proposer must know."""
    stored = open_run(arguments, DEADLINE)
    facts = ask(stored)
    if arguments.json:
        print_json(facts)
        return
    definition = facts["definition"]
    objective = f"{definition['direction']} {definition['metric']}"
    first_line = f"{facts['study']}: {objective}; {definition['about']}"
    console = make_console()
    for line in (first_line, _format_progress(facts)):
        console.print(Text(one_line(line)), soft_wrap=True)
    console.print(outline(read_space(stored).space))


def _format_progress(facts: Document) -> str:
    """Returns how many trials may be proposed, or why none may.

    Args:
        facts: what `ask` returns.
    """
    if facts["end_reason"]:
        return str(facts["end_reason"])
    progress = f"all {facts['budget']} trials have begun"
    if facts["trials_left"]:
        progress = f"{facts['trials_left']} of {facts['budget']} trials have not begun"
    return f"{progress}; {facts['proposals_left']} may be proposed now"
