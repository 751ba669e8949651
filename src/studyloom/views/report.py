"""report.html: what a study has found so far, on one page that needs no other file.

The report can be written while the search runs; what cannot be drawn yet is replaced by a sentence
that says why.
"""

import platform
from collections.abc import Iterator, Mapping, Sequence
from os.path import lexists
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial

from studyloom import __version__
from studyloom.compress.record import read_record
from studyloom.files import read_below, write_whole
from studyloom.storage.attributes import TRACEBACK
from studyloom.study.stored_study import StoredStudy, value_of
from studyloom.study.trials.failures import count_failures
from studyloom.text import format_cost
from studyloom.views import captions
from studyloom.views.figures import curves, pareto
from studyloom.views.figures.axes import Axis
from studyloom.views.figures.history import history
from studyloom.views.figures.outlook import outlook
from studyloom.views.figures.parameters import contour, importance_bars, parallel, slices
from studyloom.views.figures.plot_study import best_of, complete_trials, plot_study
from studyloom.views.figures.predictions import confusion, predictions, wrong
from studyloom.views.figures.style import ENOUGH
from studyloom.views.figures.timeline import timeline
from studyloom.views.importances import importances, varied_parameters
from studyloom.views.page import (
    absent,
    committee_cards,
    compressed,
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
from studyloom.views.snapshot import Snapshot, front_rows, take_snapshot, trial_counts
from studyloom.views.terminal import format_parameters
from studyloom.winner.answer import (
    belongs_to,
    format_choice,
    format_covers,
    format_openings,
    format_race,
    read_answer,
)

SHOWN_CONFIGS = ("best.yaml", ".hydra/config.yaml")  # below the run directory
MOST_LINES = 200  # over parallel axes, of the best trials
MOST_MESSAGES = 10  # of one kind of failure

Card = tuple[str, str, str]  # a heading, a number and a note


def write_report(stored: StoredStudy, run_dir: Path) -> Path:
    """Writes report.html of the study that runs in a folder.

    Returns:
        The path of the report.

    Raises:
        OSError: the folder cannot be written to.
    """
    configs = {name: read_below(run_dir, name) for name in SHOWN_CONFIGS if lexists(run_dir / name)}
    texts = {name: content.decode(errors="replace").rstrip() for name, content in configs.items()}
    config_text = "\n\n".join(f"# {name}\n{text}\n" for name, text in texts.items())
    answer = read_answer(run_dir) or {}  # it may be that of another study which ran here
    answer["compressed"] = read_record(run_dir, answer)
    page = render(stored, answer if belongs_to(answer, stored) else None, config_text)
    path = run_dir / "report.html"
    write_whole(path, page.encode(errors="replace"))
    return path


def render(stored: StoredStudy, winner: dict[str, Any] | None, config_text: str) -> str:
    """Renders the page as HTML.

    Args:
        stored: the study.
        winner: what winner.json holds, None if there is none; any key may be missing.
        config_text: the configurations to show, as text.
    """
    snapshot = take_snapshot(stored)
    axis = Axis.of(stored.metric, stored.sign)
    parts = [
        header(stored, snapshot, winner),
        *search_sections(stored, snapshot, winner, axis),
        *parameter_sections(stored, snapshot.best, axis),
        *worker_sections(stored),
        *winner_sections(winner),
        section(
            "Configuration and environment", "", environment(winner) + configuration(config_text)
        ),
    ]
    return document(stored.name, "".join(parts))


def search_sections(
    stored: StoredStudy, snapshot: Snapshot, winner: dict[str, Any] | None, axis: Axis
) -> Iterator[str]:
    """Renders the Pareto front, the history of the search, and the learning curves.

    Args:
        stored: the study.
        snapshot: the same at this moment.
        winner: what winner.json holds, None if there is none; any key may be missing.
        axis: the axis of the values.
    """
    trials, best, baseline = stored.trials(), snapshot.best, snapshot.baseline
    chosen = get(winner, "winner", "trial")
    won = next((trial for trial in trials if trial.number == chosen), None)
    if snapshot.costs:
        yield front_section(stored, snapshot, won, axis)
    figure = history(plot_study(trials, stored.sign), trials, best, baseline, axis)
    yield section("Search", captions.history_caption(axis), plot(figure))
    title, caption, figure = outlook(stored, snapshot.outlook)
    yield section(title, caption, plot(figure))
    figure = curves.curves(trials, best, baseline, axis)
    yield section("Learning curves", captions.CURVES, plot(figure))
    which = ""
    if (shown := won or best) is not None:
        which = f"Trial {shown.number}, the {'best' if won is None else 'winner'}. "
    yield section(*curves.beside(shown, which), plot(curves.losses(shown)))


def front_section(
    stored: StoredStudy, snapshot: Snapshot, won: FrozenTrial | None, axis: Axis
) -> str:
    """Renders the Pareto front as a figure and a table.

    Args:
        stored: a study with two objectives.
        snapshot: the same at this moment.
        won: the trial of the winner, if there is one.
        axis: the axis of the values.
    """
    marked = {"baseline": snapshot.baseline, "best": snapshot.best, "winner": won}
    figure = pareto.front(stored, marked, axis)
    content = plot(figure) if isinstance(figure, str) else plot(figure) + front_table(snapshot)
    caption = f"{captions.FRONT} The best is chosen by <b>{text(snapshot.rule)}</b>."
    return section("The Pareto front", caption, content)


def front_table(snapshot: Snapshot) -> str:
    """Renders the trials of the Pareto front as a table."""
    (*heads, _), *rows = front_rows(snapshot)
    head = "".join(f'<th class="number">{text(name)}</th>' for name in heads)
    lines = []
    for *cells, mark in rows:
        numbers = "".join(f'<td class="number">{text(cell)}</td>' for cell in cells)
        lines.append(f"<tr>{numbers}<td>{text(mark)}</td></tr>")
    return f"<table><tr>{head}<th></th></tr>{''.join(lines)}</table>"


def parameter_sections(stored: StoredStudy, best: FrozenTrial | None, axis: Axis) -> Iterator[str]:
    """Renders which parameters matter, for each objective, and how they shape the value.

    Args:
        stored: the study.
        best: the trial to mark as the best.
        axis: the axis of the values.
    """
    study = plot_study(stored.trials(), stored.sign)
    shares = plotted_importances(study)
    several = len(stored.goals) > 1
    title = f"What matters for {text(stored.metric)}" if several else "Which parameters matter"
    yield section(title, captions.IMPORTANCES, plot(importance_bars(shares)))
    for position, goal in enumerate(stored.goals[1:], 1):
        others = plotted_importances(plot_study(stored.trials(), goal.sign, position))
        title = f"What matters for {text(goal.name)}"
        yield section(title, captions.IMPORTANCES, plot(importance_bars(others)))
    names = [*shares]
    figures = slices(study, names, best, axis)
    yield section("Parameter by parameter", captions.SLICES, multiples(figures))
    top = plot_study(best_of(stored, MOST_LINES), stored.sign)
    figure = plot(parallel(top, names, axis), "wide")
    yield section("The best trials over all parameters", captions.PARALLEL, figure)
    yield section("Two parameters together", captions.CONTOUR, plot(contour(study, names, axis)))


def plotted_importances(study: optuna.Study) -> dict[str, float]:
    """Returns the importances of the parameters that occur often enough to be drawn.

    Args:
        study: the complete trials, as `plot_study` copies them.

    Returns:
        The share of each parameter by its literal name, the largest first.
    """
    return importances(study, varied_parameters(complete_trials(study), ENOUGH))


def worker_sections(stored: StoredStudy) -> Iterator[str]:
    """Renders the timeline of the workers, and the failures."""
    trials = stored.trials()
    alive = {
        held.trial_id
        for held in stored.ledger.held()
        if held.trial_id is not None and held.left > 0
    }
    yield section("Workers", captions.TIMELINE, plot(timeline(trials, alive)))
    yield section("Failures", captions.FAILURES, failures(trials))


def winner_sections(winner: dict[str, Any] | None) -> Iterator[str]:
    """Renders the candidates, and what the winner gets right and wrong on the test part.

    Args:
        winner: what winner.json holds, None if there is none; any key may be missing.
    """
    title = "The winner on the test part"
    if winner is None:
        yield section(title, "", absent("There is no winner.json yet."))
        return
    if (record := get(winner, "compressed")) is not None:
        yield section("Made small", captions.COMPRESSED, compressed(record))
    yield section("Candidates", captions.CANDIDATES, candidates(winner))
    if "note" in winner:
        yield section(title, "", absent(text(winner["note"])))
    elif (predicted := get(winner, "predictions")) is not None:
        figure = plot(predictions(predicted))
        yield section("Predictions on the test part", captions.PREDICTIONS, figure)
    else:
        yield section("Confusion on the test part", captions.CONFUSION, confusion(winner))
        yield section("Most confidently wrong", captions.WRONG, wrong(winner))


def header(stored: StoredStudy, snapshot: Snapshot, winner: dict[str, Any] | None) -> str:
    """Renders the top of the page: the study, its numbers, and the parameters of the best.

    Args:
        stored: the study.
        snapshot: the same at this moment.
        winner: what winner.json holds, None if there is none; any key may be missing.
    """
    cards = "".join(
        f"<div><dt>{title}</dt><dd>{value}</dd><dd>{note}</dd></div>"
        for title, value, note in [
            *search_cards(stored, snapshot),
            *test_cards(winner, stored.sign, snapshot.budget),
        ]
    )
    goals = ", and ".join(
        f"{text(goal.name)}, {'more' if goal.sign > 0 else 'less'} is better"
        for goal in stored.goals
    )
    parts = [
        f"<h1>{text(stored.name)}</h1>",
        f'<p class="caption">values are {goals}</p>',
    ]
    if (halted := stored.halted()) is not None:
        why = f"The study has stopped, since its trials fail with this: {text(halted)}"
        parts.append(f'<p class="bad">{why}</p>')
    if (ended := snapshot.outlook.ending) is not None:
        parts.append(f'<p class="caption">The search {text(ended.words)}.</p>')
    parts.append(f'<dl class="numbers">{cards}</dl>')
    params = {"Best": snapshot.best.params} if snapshot.best else {}
    won = get(winner, "winner", "params")
    if isinstance(won, dict) and won != params.get("Best"):
        params["Winner"] = won
    for who, chosen in params.items():
        line = f"{who}:  {text(format_parameters(chosen))}"
        parts.append(f'<p class="caption parameters">{line}</p>')
    return f"<header>{''.join(parts)}</header>\n"


def search_cards(stored: StoredStudy, snapshot: Snapshot) -> Iterator[Card]:
    """Returns the numbers of the search, measured on the validation part."""
    counts = " · ".join(trial_counts(snapshot))
    yield "Trials", f"{snapshot.done} <small>of {snapshot.budget}</small>", counts
    best, baseline = snapshot.best, snapshot.baseline
    value, start = value_of(best), value_of(baseline)
    note = "no trial is complete yet" if best is None else f"trial {best.number}"
    yield "Best, validation", number(value), note
    note = "the configuration as composed" if baseline else "none"
    yield "Baseline, validation", number(start), note
    gain = None if value is None or start is None else stored.sign * (value - start)
    difference = "best minus baseline" if stored.sign > 0 else "baseline minus best"
    yield "Gain, validation", number(gain, "+"), f"{difference}; flatters the best"
    for position, name in enumerate(snapshot.costs, 1):
        costs = [None if trial is None else value_of(trial, position) for trial in (best, baseline)]
        ours, theirs = ("–" if cost is None else format_cost(cost) for cost in costs)
        yield f"{text(name)}, best", ours, f"baseline: {theirs}"


def test_cards(winner: dict[str, Any] | None, sign: int, budget: int) -> Iterator[Card]:
    """Returns the numbers of the test; none if there was no test.

    Args:
        winner: what winner.json holds, None if there is none; any key may be missing.
        sign: 1 if higher is better, -1 if lower is.
        budget: of the study.
    """
    if (test := get(winner, "test")) is None:
        return
    runs = len(get(test, "winner", "values") or ())
    times = f", {runs} seeds (± is their standard deviation)" if runs else ""
    chosen = text(format_choice(winner or {}, budget))
    note = f"trial {text(get(winner, 'winner', 'trial'))}{times}, {chosen}"
    yield "Winner, test", spread(get(test, "winner")), note
    opened = format_openings(test)
    examples = get(test, "examples")
    note = ", ".join(filter(None, [examples and f"{text(examples)} test examples", opened]))
    yield "Baseline, test", spread(get(test, "baseline")), note
    low, high = (get(test, "difference", "interval") or (None, None))[:2]
    note = f"95 % interval {number(low, '+')} to {number(high, '+')} {text(format_covers(test))}"
    yield "Difference, test", number(get(test, "difference", "mean"), "+"), note
    ends = ("search value", "mean of the retrainings")[::sign]
    note = " minus ".join(ends)
    yield "Selection gap", number(get(winner, "winner", "gap"), "+"), note
    yield from committee_cards(get(winner, "committee"))
    for rule, value in (get(test, "references") or {}).items():
        yield f"{text(rule).capitalize()}, test", number(value), "what needs no network"


def failures(trials: Sequence[FrozenTrial]) -> str:
    """Renders the failures by kind, the most frequent first, each message with its trials."""
    counts = count_failures(trials)
    if not counts:
        return absent("No trial has failed.")
    parts = []
    for failure in counts:
        reasons = failure.by_reason()
        times = f'<span class="quiet">{failure.count} ×</span>'
        parts.append(f"<h3>{text(failure.kind)} {times}</h3>")
        parts += [message(*item) for item in list(reasons.items())[:MOST_MESSAGES]]
        if len(reasons) > MOST_MESSAGES:
            others = len(reasons) - MOST_MESSAGES
            parts.append(f'<p class="quiet">and {others} other messages</p>')
    return "".join(parts)


def message(reason: str, trials: Sequence[FrozenTrial]) -> str:
    """Renders a failure's message with the trials that stored it, and one of their tracebacks.

    Args:
        reason: the message.
        trials: the trials that stored it, by number.
    """
    numbers = ", ".join(str(trial.number) for trial in trials[:MOST_MESSAGES])
    numbers += ", …" if len(trials) > MOST_MESSAGES else ""
    tracebacks = (t.user_attrs[TRACEBACK] for t in trials if TRACEBACK in t.user_attrs)
    traceback = next(tracebacks, None)
    return (
        f'<p><span class="bad">{text(reason)}</span> <span class="quiet">trial {numbers}</span></p>'
        + ("" if traceback is None else folded("traceback", traceback))
    )


def candidates(winner: dict[str, Any]) -> str:
    """Renders the candidates as a table, with their values in the search and retrained."""
    rows = [row for row in get(winner, "candidates") or () if isinstance(row, dict)]
    if not rows:
        return absent("winner.json names no candidates.")
    sign = -1 if get(winner, "metric", "direction") == "minimize" else 1
    titles = ("trial", "search", "trained again", "gap")
    heads = "".join(f'<th class="number">{title}</th>' for title in titles)
    won = get(winner, "winner", "trial")
    lines = "".join(_candidate_row(row, won, sign) for row in rows)
    race = "".join(f"<p>{text(line)}</p>" for line in format_race(winner))
    return f'<table class="candidates"><tr>{heads}</tr>{lines}</table>{race}'


def _candidate_row(row: Mapping[str, Any], won: object, sign: int) -> str:
    value, mean = row.get("search_value"), row.get("mean")
    gap = sign * (value - mean) if isinstance(value, float) and isinstance(mean, float) else None
    role = "<b>baseline</b>  " if row.get("baseline") else ""
    if row.get("trial") == won:
        role = "<b>winner</b>  "
    costs = "".join(f"{name} {number(cost)}  " for name, cost in (get(row, "costs") or {}).items())
    numbers = [text(row.get("trial", "–")), number(value), spread(row), number(gap, "+")]
    cells = "".join(f'<td class="number">{cell}</td>' for cell in numbers)
    params = text(format_parameters(get(row, "params") or {}))
    return (
        f'<tr>{cells}</tr><tr><td class="parameters" colspan="4">{role}{text(costs)}'
        f"{params}</td></tr>"
    )


def environment(winner: dict[str, Any] | None) -> str:
    """Renders the environment in which the winner was trained, or else that of this process.

    Args:
        winner: what winner.json holds, None if there is none; any key may be missing.
    """
    facts = get(winner, "environment")
    if not isinstance(facts, dict):
        facts = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "optuna": optuna.__version__,
            "studyloom": __version__,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        }
    facts = facts | {"data": get(winner, "data", "digest"), "seeds": get(winner, "seeds")}
    rows = (
        f"<tr><th>{text(key)}</th><td>{text(value)}</td></tr>"
        for key, value in facts.items()
        if value is not None
    )
    return f"<table>{''.join(rows)}</table>"


def configuration(config_text: str) -> str:
    """Renders the configurations, folded away."""
    if not config_text.strip():
        return absent("No configuration was found.")
    return folded("configuration", config_text)
