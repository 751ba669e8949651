"""report.html: what a study has found so far, on one page that needs nothing but itself.

It works while the search is on its way: what cannot be drawn yet says so in a line.
"""

import json
import os
import platform
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial

from studyloom import __version__
from studyloom.storage.attributes import FAILURE, REASON, TRACEBACK
from studyloom.study.stored_study import StoredStudy, value_of
from studyloom.text import format_cost
from studyloom.views.figures import curves, pareto
from studyloom.views.figures.axes import Axis
from studyloom.views.figures.parameters import contour, importances, parallel, slices
from studyloom.views.figures.plot_study import best_of, plot_study, varied_parameters
from studyloom.views.page import (
    absent,
    document,
    folded,
    get,
    multiples,
    number,
    plot,
    section,
    spread,
    text,
)
from studyloom.views.snapshot import Snapshot, front_rows, outcome, take_snapshot
from studyloom.views.terminal import format_parameters

SHOWN_CONFIGS = ("best.yaml", ".hydra/config.yaml")  # below the run directory
PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
LINES = 200  # over parallel axes, of the best trials
DISTINCT = 10  # messages that are shown of a class of failures


def write_report(stored: StoredStudy, run_dir: Path) -> Path:
    """Writes report.html of the study that runs in a folder, beside and renames, and returns its path.

    Raises:
        OSError: the folder cannot be written to.
    """
    found = {name: run_dir / name for name in SHOWN_CONFIGS if (run_dir / name).is_file()}
    texts = (
        f"# {name}\n{path.read_text(errors='replace').rstrip()}\n" for name, path in found.items()
    )
    page = render(stored, read_winner(run_dir / "winner.json"), "\n\n".join(texts))
    path = run_dir / "report.html"
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(page.encode(errors="replace"))
    beside.replace(path)
    return path


def read_winner(path: Path) -> dict[str, Any] | None:
    """What winner.json holds; None if there is none, or none that can be read."""
    try:
        winner = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return winner if isinstance(winner, dict) else None


def render(stored: StoredStudy, winner: dict[str, Any] | None, config_text: str) -> str:
    """The page.

    winner: what winner.json holds; keys may be absent.
    """
    trials, snapshot = stored.trials(), take_snapshot(stored)
    alive = {
        held.trial_id
        for held in stored.ledger.held()
        if held.trial_id is not None and held.left > 0
    }
    best, baseline = snapshot.best, snapshot.baseline
    study = plot_study(trials, stored.sign)
    top = plot_study(best_of(stored, LINES), stored.sign)
    axis = Axis.of(stored.metric, stored.sign)
    names = varied_parameters(study)
    chosen = get(winner, "winner", "trial")
    followed = next((trial for trial in trials if trial.number == chosen), best)
    which = (
        f"Trial {followed.number}, the {'winner' if followed.number == chosen else 'best'}. "
        if followed
        else ""
    )
    parts = [
        headline(stored, snapshot, winner),
        *several(
            stored, snapshot, followed if followed and followed.number == chosen else None, axis
        ),
        section("Search", history(axis), plot(curves.history(study, trials, best, baseline, axis))),
        section("Learning curves", CURVES, plot(curves.curves(trials, best, baseline, axis))),
        section("Over-fitting", which + LOSSES, plot(curves.losses(followed))),
        *matters(stored, study, names),
        section("Parameter by parameter", SLICES, multiples(slices(study, names, best, axis))),
        section(
            "The best trials over all parameters",
            PARALLEL,
            plot(parallel(top, names, axis), "wide"),
        ),
        section("Two parameters together", CONTOUR, plot(contour(study, names, axis))),
        section("Workers", TIMELINE, plot(curves.timeline(trials, alive))),
        section("Failures", FAILURES, failures(trials)),
    ]
    if winner is None:
        parts.append(
            section("The winner on the test part", "", absent("There is no winner.json yet."))
        )
    elif "note" in winner:
        parts.append(section("Candidates", CANDIDATES, candidates(winner)))
        parts.append(section("The winner on the test part", "", absent(text(winner["note"]))))
    else:
        parts.append(section("Candidates", CANDIDATES, candidates(winner)))
        if (told := get(winner, "predictions")) is not None:
            parts.append(
                section("Predictions on the test part", PREDICTIONS, plot(curves.predictions(told)))
            )
        else:
            parts.append(section("Confusion on the test part", CONFUSION, confusion(winner)))
            parts.append(section("Most confidently wrong", WRONG, wrong(winner)))
    parts.append(
        section(
            "Configuration and environment", "", environment(winner) + configuration(config_text)
        )
    )
    return document(stored.name, "".join(parts))


def several(
    stored: StoredStudy, snapshot: Snapshot, won: FrozenTrial | None, axis: Axis
) -> list[str]:
    """The Pareto front, where there is one, as a figure and a table."""
    if not snapshot.costs:
        return []
    figure = pareto.front(
        stored, {"baseline": snapshot.baseline, "best": snapshot.best, "winner": won}, axis
    )
    content = plot(figure) if isinstance(figure, str) else plot(figure) + front_table(snapshot)
    return [
        section(
            "The Pareto front",
            f"{FRONT} The best is chosen by <b>{text(snapshot.rule)}</b>.",
            content,
        )
    ]


def matters(stored: StoredStudy, study: optuna.Study, names: Sequence[str]) -> list[str]:
    """The importances for each value that trials have."""
    first = plot(importances(study, names))
    if len(stored.goals) == 1:
        return [section("Which parameters matter", IMPORTANCES, first)]
    sections = [section(f"What matters for {text(stored.metric)}", IMPORTANCES, first)]
    for place, goal in enumerate(stored.goals[1:], 1):
        other = plot_study(stored.trials(), goal.sign, place)
        drawn = plot(importances(other, varied_parameters(other)))
        sections.append(section(f"What matters for {text(goal.name)}", IMPORTANCES, drawn))
    return sections


def front_table(snapshot: Snapshot) -> str:
    (*heads, _), *rows = front_rows(snapshot)
    head = "".join(f'<th class="number">{text(name)}</th>' for name in heads)
    lines = []
    for *cells, mark in rows:
        numbers = "".join(f'<td class="number">{text(cell)}</td>' for cell in cells)
        lines.append(f"<tr>{numbers}<td>{text(mark)}</td></tr>")
    return f"<table><tr>{head}<th></th></tr>{''.join(lines)}</table>"


FRONT = (
    "A trial is on the front where no other is as good in both and better in one: whoever wants more of one has to pay "
    "with the other. What wins on fresh seeds may lie beside it."
)
HISTORY = (
    "Each point is a complete trial, in the order in which they began; the marks at the bottom are trials that ended "
    "otherwise. Values are those of the validation part."
)
CURVES = "The value after each epoch; a cross is where a trial was ended before its time."
LOSSES = "Where the validation loss rises again and the training loss goes on falling, the network learns by heart."
IMPORTANCES = (
    "The share of a parameter in what tells good trials from bad ones (PED-ANOVA), in all 1. With few complete trials "
    "it is a hint and no more."
)
SLICES = (
    "Each point is a complete trial, at its setting and its value, the later the bluer; the ring is the best. The "
    "most important parameter comes first."
)
PARALLEL = (
    "A line is a complete trial: from its value at the left over its parameters, the bluer the better, the best in "
    "green. It meets an axis at – where the trial has no such parameter."
)
CONTOUR = "The value between the complete trials, which are the points; the bluer the better. Between points it is a guess."
TIMELINE = (
    "A row is a worker and a bar one of its trials; gaps are time without a trial. Idle is the share of gaps from the "
    "first start to the last end."
)
FAILURES = "What came to nothing, by class, with the messages as they were stored."
CANDIDATES = (
    "The best of many trials looks better than it is. So the best few are trained again with other seeds, and the mean "
    "of these decides; the gap is what the search had promised too much."
)
PREDICTIONS = (
    "What the winner told beside what came; of examples in the order of time one after the other."
)
CONFUSION = "Rows are true classes and columns predictions; the diagonal is right, red is wrong."
WRONG = "Images that the winner takes for something else, the surest first: true class → prediction, and how sure it is."


def history(axis: Axis) -> str:
    scales = {
        "unit": " Their axis is stretched towards 1, so that equal steps divide the error by equal factors.",
        "factors": " Equal steps of their axis are equal factors.",
        "plain": "",
    }
    return f"{HISTORY}{scales[axis.scale]} {'Higher' if axis.sign > 0 else 'Lower'} is better."


def headline(stored: StoredStudy, snapshot: Snapshot, winner: dict[str, Any] | None) -> str:
    """The numbers that one wants first."""
    counts = [
        f"{snapshot.outcomes.get(kind, 0)} {kind}" for kind in ("complete", "pruned", "failed")
    ]
    if snapshot.workers:
        counts.append(f"{len(snapshot.workers)} running")
    best, baseline = snapshot.best, snapshot.baseline
    found, begun = value_of(best), value_of(baseline)
    gain = None if found is None or begun is None else stored.sign * (found - begun)
    gained, gap = "best minus baseline", "search value minus mean of the retrainings"
    if stored.sign < 0:
        gained, gap = "baseline minus best", "mean of the retrainings minus search value"
    cards = [
        ("Trials", f"{snapshot.done} <small>of {snapshot.budget}</small>", " · ".join(counts)),
        (
            "Best, validation",
            number(found),
            "no trial is complete yet" if best is None else f"trial {best.number}",
        ),
        (
            "Baseline, validation",
            number(begun),
            "the configuration as composed" if baseline else "none",
        ),
        ("Gain, validation", number(gain, "+"), f"{gained}; flatters the best"),
    ]
    for place, name in enumerate(snapshot.costs, 1):
        costs = [None if trial is None else value_of(trial, place) for trial in (best, baseline)]
        much, less = ("–" if cost is None else format_cost(cost) for cost in costs)
        cards.append((f"{text(name)}, best", much, f"baseline: {less}"))
    if (test := get(winner, "test")) is not None:
        runs = len(get(test, "winner", "values") or ())
        low, high = (get(test, "difference", "interval") or (None, None))[:2]
        interval = f"95 % interval {number(low, '+')} to {number(high, '+')}"
        times = f", {runs} seeds" if runs else ""
        cards += [
            (
                "Winner, test",
                spread(get(test, "winner")),
                f"trial {text(get(winner, 'winner', 'trial'))}{times}",
            ),
            (
                "Baseline, test",
                spread(get(test, "baseline")),
                f"{text(get(test, 'examples'))} test examples, used once",
            ),
            ("Difference, test", number(get(test, "difference", "mean"), "+"), interval),
            ("Selection gap", number(get(winner, "winner", "gap"), "+"), gap),
        ]
        for rule, value in (get(test, "references") or {}).items():
            cards.append(
                (f"{text(rule).capitalize()}, test", number(value), "what needs no network")
            )
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd><dd>{note}</dd></div>" for name, value, note in cards
    )
    halted = stored.halted()
    goals = ", and ".join(
        f"{text(goal.name)}, {'more' if goal.sign > 0 else 'less'} is better"
        for goal in stored.goals
    )
    told = {"Best": best.params} if best else {}
    if isinstance(won := get(winner, "winner", "params"), dict) and won != told.get("Best"):
        told["Winner"] = won
    return (
        f"<header><h1>{text(stored.name)}</h1>"
        f'<p class="caption">values are {goals}</p>'
        + (
            f'<p class="bad">The study has stopped, since its trials fail with this: {text(halted)}</p>'
            if halted
            else ""
        )
        + f'<dl class="numbers">{shown}</dl>'
        + "".join(
            f'<p class="caption parameters">{who}:  {text(format_parameters(p))}</p>'
            for who, p in told.items()
        )
        + "</header>\n"
    )


def failures(trials: Sequence[FrozenTrial]) -> str:
    """Messages by class, the most frequent first, each with its trials and one traceback."""
    failed = [trial for trial in trials if outcome(trial) == "failed"]
    if not failed:
        return absent("No trial has failed.")
    kinds = Counter(str(trial.user_attrs.get(FAILURE, "unexplained")) for trial in failed)
    parts = []
    for kind, count in kinds.most_common():
        messages: dict[str, list[FrozenTrial]] = {}
        for trial in failed:
            if trial.user_attrs.get(FAILURE, "unexplained") == kind:
                messages.setdefault(
                    str(trial.user_attrs.get(REASON, "no reason was stored")), []
                ).append(trial)
        parts.append(f'<h3>{text(kind)} <span class="quiet">{count} ×</span></h3>')
        parts += [message(*item) for item in list(messages.items())[:DISTINCT]]
        if len(messages) > DISTINCT:
            parts.append(f'<p class="quiet">and {len(messages) - DISTINCT} other messages</p>')
    return "".join(parts)


def message(reason: str, trials: Sequence[FrozenTrial]) -> str:
    numbers = ", ".join(str(trial.number) for trial in trials[:DISTINCT]) + (
        ", …" if len(trials) > DISTINCT else ""
    )
    details = next(
        (trial.user_attrs[TRACEBACK] for trial in trials if TRACEBACK in trial.user_attrs), None
    )
    return (
        f'<p><span class="bad">{text(reason)}</span> <span class="quiet">trial {numbers}</span></p>'
        + (folded("traceback", details) if details is not None else "")
    )


def candidates(winner: dict[str, Any]) -> str:
    rows = [row for row in get(winner, "candidates") or () if isinstance(row, dict)]
    if not rows:
        return absent("winner.json names no candidates.")
    parts = []
    for row in rows:
        value, mean = row.get("search_value"), row.get("mean")
        sign = -1 if get(winner, "metric", "direction") == "minimize" else 1
        gap = (
            sign * (value - mean) if isinstance(value, float) and isinstance(mean, float) else None
        )
        won = row.get("trial") == get(winner, "winner", "trial")
        role = "<b>winner</b>  " if won else "<b>baseline</b>  " if row.get("baseline") else ""
        costs = "".join(
            f"{name} {number(cost)}  " for name, cost in (get(row, "costs") or {}).items()
        )
        numbers = [text(row.get("trial", "–")), number(value), spread(row), number(gap, "+")]
        cells = "".join(f'<td class="number">{cell}</td>' for cell in numbers)
        parts.append(
            f'<tr>{cells}</tr><tr><td class="parameters" colspan="4">{role}{text(costs)}'
            f"{text(format_parameters(get(row, 'params') or {}))}</td></tr>"
        )
    heads = "".join(
        f'<th class="number">{head}</th>' for head in ("trial", "search", "trained again", "gap")
    )
    return f'<table class="candidates"><tr>{heads}</tr>{"".join(parts)}</table>'


def confusion(winner: dict[str, Any]) -> str:
    rows = [row for row in get(winner, "confusion") or () if isinstance(row, list)]
    if not rows or any(not isinstance(count, int) for row in rows for count in row):
        return absent("winner.json holds no confusion matrix.")
    errors = [
        count for true, row in enumerate(rows) for column, count in enumerate(row) if column != true
    ]
    right = [row[true] for true, row in enumerate(rows) if true < len(row)]
    most = {True: max(1, *right, 0), False: max(1, *errors, 0)}
    hue = {True: "76,139,245", False: "229,72,77"}
    classes = get(winner, "classes")
    if not isinstance(classes, list) or len(classes) != len(rows):
        classes = [*range(len(rows))]
    parts = ["<tr><th></th>", *(f"<th>{text(name)}</th>" for name in classes), "</tr>"]
    for true, row in enumerate(rows):
        parts.append(f"<tr><th>{text(classes[true])}</th>")
        for column, count in enumerate(row):
            same = column == true
            shade = f"rgba({hue[same]},{0.08 + 0.5 * count / most[same]:.2f})"
            parts.append(
                f'<td style="background:{shade}">{count}</td>'
                if count
                else '<td class="none">·</td>'
            )
        parts.append("</tr>")
    return f'<div class="wide"><table class="confusion">{"".join(parts)}</table></div>'


def wrong(winner: dict[str, Any]) -> str:
    parts = []
    for item in get(winner, "wrong") or ():
        picture = get(item, "image")
        if isinstance(picture, str) and PICTURE.fullmatch(picture):
            parts.append(
                f'<figure><img src="{picture}" alt="test image {text(get(item, "index"))}">'
                f"<figcaption>{text(get(item, 'label'))} → <b>{text(get(item, 'predicted'))}</b> "
                f'<span class="quiet">{number(get(item, "confidence"))}</span></figcaption></figure>'
            )
    return (
        f'<div class="wrong">{"".join(parts)}</div>'
        if parts
        else absent("winner.json holds no images.")
    )


def environment(winner: dict[str, Any] | None) -> str:
    """Of the winner's training, else of this process."""
    told = get(winner, "environment")
    if not isinstance(told, dict):
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        versions = {
            "torch": torch.__version__,
            "optuna": optuna.__version__,
            "studyloom": __version__,
        }
        told = {"python": platform.python_version(), **versions, "device": device}
    facts = {
        **told,
        "data": get(winner, "data", "digest"),
        "seeds": get(winner, "seeds"),
    }
    rows = (
        f"<tr><th>{text(key)}</th><td>{text(value)}</td></tr>"
        for key, value in facts.items()
        if value is not None
    )
    return f"<table>{''.join(rows)}</table>"


def configuration(config_text: str) -> str:
    return (
        folded("configuration", config_text)
        if config_text.strip()
        else absent("No configuration was found.")
    )
