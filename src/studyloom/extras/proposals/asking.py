"""What proposers ask of a study: `studyloom ask` and `studyloom propose`."""

from typing import Any

from rich.text import Text

from studyloom.commands.options import open_run, print_json
from studyloom.extras.proposals.queue import count_free_slots, propose, why_closed
from studyloom.extras.proposals.stored_space import json_schema, read_space
from studyloom.space.outline import outline
from studyloom.study.early_end import read_bounds
from studyloom.study.stored_study import StoredStudy, trial_rows
from studyloom.study.trial_record import TrialRecord
from studyloom.text import one_line
from studyloom.views.report import data_words
from studyloom.views.snapshot import describe, take_snapshot
from studyloom.views.terminal import make_console

DEADLINE = 10.0  # seconds to wait for a database that is busy or away
SHOWN = ("number", "state", "value", "epochs", "seconds", "proposed_by")  # of a trial


def ask(stored: StoredStudy) -> dict[str, Any]:
    """Returns what a proposer needs to know, as `commands.documents.Asked` describes it."""
    known, snapshot, trials = read_space(stored), take_snapshot(stored), stored.trials()
    budget, goal = read_bounds(stored).trials, stored.goals[0]
    left, closed = count_free_slots(stored), why_closed(stored)
    proposed = sum(TrialRecord(trial).proposed is not None for trial in trials)
    free = left - (known.baseline and not trials)
    about = [str((stored.definition() or {}).get("objective._target_") or "")]
    about += [describe(trial, trial.params) for trial in trials[:1]]
    baseline, rows = snapshot.baseline, trial_rows(stored).to_dicts()
    params = {trial.number: trial.params for trial in stored.trials()}
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
        "trials": [
            {name: row[name] for name in row if name in SHOWN or name.startswith("values.")}
            | {"params": params[row["number"]]}
            for row in rows
        ],
    }


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
