"""The report of a study: sections of blocks, which the templates turn into HTML.

It can be written while the search runs; a sentence replaces a figure that cannot be drawn yet. To
add a section, yield it in `read_report`, and add its words to assets/report/sections.toml.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.errors import StudyloomError, UndrawnReport
from studyloom.files import write_whole
from studyloom.storage import attributes, trial_tables
from studyloom.storage.failures import NO_REASON, count_failures, describe_resumption
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import INTERRUPTED, TrialRecord, describe_state, shown_state
from studyloom.text import (
    format_duration,
    format_parameter,
    format_value,
    plural,
    shorten,
    shorten_end,
    shorten_names,
)
from studyloom.views import drawing, figures, page, words
from studyloom.views.explanations import explanation_sections
from studyloom.views.page import Absent, Section, Words, drawn, section
from studyloom.views.progress import STAGE_NAMES, Progress, ProgressReader
from studyloom.views.snapshot import Importances, Snapshot, importances, varied_parameters
from studyloom.winner.result import Result, Wrong
from studyloom.worker_log import read_trial_end

CONFIGS = ("best.yaml", ".hydra/config.yaml")  # below the run directory, that are shown
MOST = 2000  # trials shown, besides the notable ones; at 100,000, all of them took 22 GB
BEST = 100  # trials shown for their value


@dataclass(frozen=True)
class SampledStudy(StoredStudy):
    """A study that shows views only the trials in `shown`."""

    shown: tuple[FrozenTrial, ...] = ()

    def trials(self, *, all_attributes: bool = False) -> list[FrozenTrial]:
        return [*self.shown]


def sample(stored: StoredStudy, snapshot: Snapshot, won: Any) -> tuple[StoredStudy, str]:
    """Samples the trials of a very large study at even distances, and keeps the notable ones.

    Returns:
        The study with the sampled trials, and a sentence about it, empty if all are shown.
    """
    trials = stored.trials()
    if len(trials) <= MOST:
        return stored, ""
    marked = [snapshot.best, snapshot.baseline, *snapshot.front[:BEST], *stored.ranked()[:BEST]]
    kept = {trial.number for trial in marked if trial is not None} | {won}
    kept |= {trial.number for trial in trials if not trial.state.is_finished()}
    kept |= {
        trial.number for trial in figures.best_so_far(figures.complete_trials(trials), stored.sign)
    }
    kept |= {trials[len(trials) * place // MOST].number for place in range(MOST)}
    shown = tuple(trial for trial in trials if trial.number in kept)
    which = f"{MOST} at even distances, and those that stand out"
    note = f"{len(shown)} of {len(trials)} trials are shown: {which}."
    return SampledStudy(stored.name, stored.storage, stored.optuna, stored.ledger, shown), note


def span(trials: Sequence[FrozenTrial]) -> tuple[datetime, datetime] | None:
    """Returns when the first trial began and the last one ended; None without one."""
    begun = [trial.datetime_start for trial in trials if trial.datetime_start is not None]
    ended = [trial.datetime_complete for trial in trials if trial.datetime_complete is not None]
    return (min(begun), max(ended)) if begun and ended else None


def trials_of_stages(stored: StoredStudy) -> list[FrozenTrial]:
    """Returns the trials of the search, and the trainings of the later stages."""
    read = stored.storage.get_all_trials
    studies = [stage.study for stage in stored.later_stages()]
    later = (read(study._study_id, deepcopy=False) for study in studies)
    return [*stored.trials(), *itertools.chain.from_iterable(later)]


def wall_seconds(trials: Sequence[FrozenTrial]) -> float | None:
    """Returns the seconds from the first start to the last end of trials; None without one."""
    ends = span(trials)
    return None if ends is None else (ends[1] - ends[0]).total_seconds()


def seconds_worked(trials: Iterable[FrozenTrial]) -> float:
    """Returns the seconds that workers spent on trials, without start-up."""
    return sum(
        float(seconds)
        for record in map(TrialRecord, trials)
        if record.reused is None
        for kind, seconds in record.times.items()
        if kind != "start-up"
    )


def head(
    stored: StoredStudy,
    progress: Progress,
    winner: Result | None,
    trials: Sequence[FrozenTrial],
    figure: figures.Block,
    *,
    live: bool = False,
) -> page.Head:
    """Renders the top of the report; a `live` one shows the times in a separate line.

    Args:
        trials: of all stages.
    """
    snapshot, blocks = progress.search, list[figures.Block]()
    if (halted := stored.halted()) is not None:
        why = f"The study stopped itself, since its trials fail with this: {halted}"
        blocks.append(Words(why, "bad"))
    if (ended := snapshot.forecast.ending) is not None:
        blocks.append(Words(f"The search {ended.reason}."))
    facts = (
        words.trials_fact(stored, snapshot),
        words.best_fact(snapshot),
        winner_fact(progress, winner),
        time_fact(progress, trials, live=live),
    )
    sentence = f"{words.describe_study(snapshot, stored, winner)}."
    top = page.Head(stored.name, sentence, blocks, facts)
    return replace(top, image=drawing.share(top, figure))


def winner_fact(progress: Progress, result: Result | None) -> words.Fact:
    """Says whether the best is real, or which stages lead to the winner."""
    if result is not None:
        return words.winner_fact(result)
    later = [f"{STAGE_NAMES[stage.title]} {stage.done}/{stage.budget}" for stage in progress.stages]
    return words.Fact("Winner", "–", f"not yet: {', '.join(later[1:]) or 'no re-evaluation'}")


def time_fact(progress: Progress, trials: Sequence[FrozenTrial], *, live: bool) -> words.Fact:
    """Says how long the trainings took, and what runs now."""
    took = "–"
    explanation: list[str] = []
    ends = span(trials)
    if ends is not None:
        took = format_duration((ends[1] - ends[0]).total_seconds())
        explanation.append(f"from {ends[0]:%Y-%m-%d %H:%M}")
    if progress.is_at_work:
        now = [progress.stage_text]
        if not live:
            now += [progress.eta_text, progress.control_text]
        return words.Fact("Time so far", took, "; ".join(filter(None, now)))
    worked = seconds_worked(trials)
    if worked:
        explanation.append(f"workers trained for {format_duration(worked)}")
    if not progress.has_ended:
        explanation.append("no worker runs")
    return words.Fact("Took", took, "; ".join(explanation))


def details_section(stored: StoredStudy, snapshot: Snapshot, result: Result | None) -> Section:
    """Renders the reasons for the result, what it is based on, and the best hyperparameters."""
    lines: list[str] = []
    rows: list[tuple[str, object]] = []
    if result is not None:
        lines += words.explain_decision(result, snapshot.budget, stored.sign)
    if result is not None and (result.test or result.winner.reevaluation):
        for fact in words.list_facts(result):
            if fact.label:
                rows.append((fact.label, str(replace(fact, label=""))))
            else:
                lines.append(f"{words.begin_sentence(fact.value)}.")
    rows.append(("values", ", and ".join(map(words.describe_objective, stored.objectives))))
    if snapshot.rule is not None:
        rows.append(("the best by", snapshot.rule))
    label, _, gain = snapshot.forecast.describe_gain(snapshot.metric).partition(": ")
    if gain:
        rows.append((label, gain))
    data = words.describe_data(stored, result)
    if data:
        rows.append(("data", data))
    blocks: list[figures.Block] = [page.Facts(rows)]
    if lines:
        blocks.insert(0, page.Lines(lines))
    best = None if snapshot.best is None else snapshot.best.params
    if best is not None:
        blocks.append(Words(f"Best:  {words.format_parameters(best)}", "parameters"))
    if result is not None and result.winner.params != best:
        parameters = words.format_parameters(result.winner.params)
        blocks.append(Words(f"Winner:  {parameters}", "parameters"))
    return section("details", blocks)


def winner_sections(winner: Result) -> Iterator[Section]:
    """Renders the candidates, and what the winner gets right and wrong on the test set."""
    yield section("candidates", [candidates(winner)])
    ablation = winner.ablation
    if ablation is not None and ablation.rows:
        blocks = [drawn(figures.ablation, ablation)]
        simple = words.describe_simple(winner)
        if simple:
            blocks.append(Words(f"winner.simple.yaml is {simple}."))
        yield section("ablation", blocks, metric=winner.metric.name)
    missing = words.explain_no_predictions(winner)
    if missing:
        yield section("winner", [Absent(missing)])
    elif winner.predictions is not None:
        figure = drawn(figures.predictions, winner.predictions)
        yield section("predictions", [figure])
    else:
        counts: figures.Block = Absent("winner.json holds no confusion matrix.")
        if matrix := winner.confusion:
            names = winner.classes or range(len(matrix))
            counts = page.Heat(names, matrix, "true classes by predicted ones")
        yield section("confusion", [counts])
        images = [
            image(item.image, f"test image {item.index}", item, item.confidence)
            for item in winner.wrong or ()
            if page.is_embedded(item.image)
        ]
        shown = page.Images(images) if images else Absent("winner.json holds no images.")
        yield section("wrong", [shown])


def candidates(winner: Result) -> figures.PageTable:
    """Renders the candidates as a table, with their values in the search and on new seeds."""
    rows = []
    for row in winner.candidates:
        role = "baseline" if row.baseline else ""
        if row == winner.winner:
            role = "winner"
        costs = [f"{name} {words.number(cost)}" for name, cost in row.costs.items()]
        parameters = "  ".join([*costs, words.format_parameters(row.params)])
        again = words.format_mean(row.reevaluation) if row.reevaluation else "–"
        numbers = (row.trial, words.number(row.search_value), again, words.number(row.gap, "+"))
        rows.append((*numbers, role, parameters))
    return figures.PageTable(
        ("trial", "search", "re-evaluation", "gap", "", "hyperparameters"), rows, words=(4, 5)
    )


def image(source: str, label: str, error: Wrong, remark: float) -> page.CaptionedImage:
    """Renders an image that the winner misclassifies."""
    predicted = str(error.predicted)
    return page.CaptionedImage(source, label, f"{error.label} → ", predicted, words.number(remark))


STRETCHED = {
    "unit": " The axis is stretched toward 1: equal steps divide the error by equal factors.",
    "factors": " The axis is logarithmic: equal steps are equal factors.",
    "plain": "",
}


def search_sections(
    stored: StoredStudy, snapshot: Snapshot, winner: Result | None, axis: figures.Axis
) -> Iterator[Section]:
    """Renders the Pareto front, the history of the search, and the learning curves."""
    trials, best = stored.trials(), snapshot.best
    marked = {"baseline": snapshot.baseline, "best": best}
    chosen = None if winner is None else winner.winner.trial
    won = next((trial for trial in trials if trial.number == chosen), None)
    if snapshot.costs:
        heads, *rows = words.front_rows(snapshot)
        table = figures.PageTable(heads, rows, words=(len(heads) - 1,))
        figure = drawn(figures.front, stored, {"winner": won} | marked, axis, table)
        yield section("front", [figure], rule=snapshot.rule)
    better = "Higher" if axis.sign > 0 else "Lower"
    figure = drawn(figures.history, trials, marked, axis, winner, snapshot.live_trials)
    yield section("search", [figure], axis=STRETCHED[axis.scale], better=better)
    most = {"best": figures.MOST_BEST, "latest": figures.MOST_LATEST}
    yield section(
        "curves", [drawn(figures.curves, trials, marked, axis, snapshot.live_trials)], **most
    )
    losses: figures.Block = Absent(f"{words.begin_sentence(words.explain_no_best(snapshot))}.")
    which = ""
    if (shown := won or best) is not None:
        which = f"Trial {shown.number}, the {'best' if won is None else 'winner'}. "
        losses = drawn(figures.losses, shown)
    yield section(figures.losses_section(shown), [losses], which=which)


MOST_SLICES = 24  # of the most important hyperparameters
MOST_COLUMNS = 100  # of the table of trials; 2,000 hyperparameters took 200 MB


def what_matters(stored: StoredStudy) -> tuple[list[str], list[Importances]]:
    """Returns the varied hyperparameters, the most important first, and all importances."""
    names = varied_parameters(figures.complete_trials(stored.trials()), figures.ENOUGH)
    by_objective = [importances(stored, place) for place, _ in enumerate(stored.objectives)]
    shares = by_objective[0].shares
    return sorted(names, key=lambda name: -shares.get(name, 0.0)), by_objective


def parameter_sections(
    stored: StoredStudy,
    best: FrozenTrial | None,
    axis: figures.Axis,
    names: Sequence[str],
    by_objective: Sequence[Importances],
) -> Iterator[Section]:
    """Renders the importances of hyperparameters for each objective, and their effects."""
    trials = stored.trials()
    for position, objective in enumerate(stored.objectives):
        shares = by_objective[position].shares
        block: figures.Block = page.Bars([*shares.items()])
        if not shares:
            block = Absent(words.explain_no_importances(by_objective[position]))
        made = section("importances", [block])
        if len(by_objective) > 1:
            made = replace(made, title=f"What matters for {objective.name}")
        if position > 0:
            made = replace(made, key=f"importances-{position}")
        yield made
    most = names[:MOST_SLICES]
    yield section("slices", [drawn(figures.slices, trials, most, best, axis)])
    yield section("together", [drawn(figures.together, trials, most, axis)])


SHOWN = {
    "standard_error": "± error",
    "proposed_by": "proposed by",
    "seconds": "time",
    "reason": "why",
}  # by its column
LONGEST = 60  # characters of a cell


def trials_section(
    stored: StoredStudy,
    snapshot: Snapshot,
    won: int | None,
    shares: Mapping[str, float],
    run_dir: Path | None,
) -> Section:
    """Renders the table of all trials, without empty columns; `studyloom trials --csv` has all.

    The most important hyperparameters come first, then those that most trials have; of very many,
    only the first are shown.

    Args:
        shares: the importances; empty if there are none.
        run_dir: where the trials' logs are, if known.
    """
    rows = trial_tables.trial_rows(stored)
    if not rows:
        return section("trials", [Absent("No trial has begun yet.")])
    columns = dict(zip(rows.columns, zip(*rows.cells, strict=True), strict=True))
    asked = [name for name in columns if name.startswith("params.")]
    known = {trial_tables.column_of(name): -share for name, share in shares.items()}
    asked.sort(key=lambda name: (known.get(name, 0.0), columns[name].count(None)))
    ranked = asked[:MOST_COLUMNS]
    values = [name for name in columns if name.partition(".")[0] in ("value", "values")]
    order = [*values, "standard_error", "epochs", *ranked, "proposed_by", "seconds", "reason"]
    shown = {n: columns[n] for n in order if any(cell is not None for cell in columns[n])}
    best = None if snapshot.best is None else snapshot.best.number
    trials = {trial.number: trial for trial in stored.trials()}
    logs = {} if run_dir is None else read_logs(run_dir, [*trials.values()])
    table = []
    for row, trial in enumerate(columns["number"]):
        marks = {
            "winner": trial == won,
            "best": trial == best,
            attributes.BASELINE: columns[attributes.BASELINE][row],
        }
        mark = ", ".join(name for name, is_so in marks.items() if is_so)
        cells = [_cell(name, column[row]) for name, column in shown.items()]
        state = shown_state(trials[trial], snapshot.live_trials)
        more = trial_details(trials[trial], logs.get(trial, ""), snapshot.live_trials)
        table.append(page.Row(trial, state, cells, mark, more))
    full = {name: name.removeprefix("params.") for name in asked}
    titles = SHOWN | {name: name.removeprefix("values.") for name in values}
    titles |= {"value": snapshot.metric}
    short = shorten_names(full.values(), ["trial", "state", "epochs", *titles.values()])
    head = [
        page.Column(
            short[full[name]] if name in full else titles.get(name, name),
            words=any(isinstance(cell, str | bool | list) for cell in column),
            parameter=full.get(name, ""),
        )
        for name, column in shown.items()
    ]
    made = section("trials", [page.Trials(head, table)])
    few = (
        f"Of {len(asked)} hyperparameters the {len(ranked)} most important are shown; "
        "studyloom trials --csv has all."
    )
    return replace(made, caption=f"{made.caption} {few}") if len(ranked) < len(asked) else made


def _cell(name: str, value: Any) -> page.Cell:
    if value is None:
        return page.Cell("")
    if name == "seconds":
        shown = format_duration(value) if value >= 10 else f"{value:.1f} s"
    elif isinstance(value, float) and not name.startswith("params."):
        shown = format_value(value)
    else:
        shown = shorten(format_parameter(value), LONGEST)
    return page.Cell(shown, value)


# What the table shows of a trial below its row: its end, its times, its log.
LOG_LINES, LOG_LINE = 40, 300  # of a trial's log, and the characters of one
LOGGED = 60_000  # characters of all logs in a report
WORKER_LOGS, TAIL = 64, 2**18  # worker logs that are read, and the bytes at the end of each
LATE = timedelta(seconds=10)  # a log may report an end so much later than the database


def trial_details(
    trial: FrozenTrial, log: str, alive: Collection[int] | None = None
) -> dict[str, Any]:
    """Returns what a report shows of a trial, without empty values; `alive` as in `shown_state`."""
    record, began = TrialRecord(trial), trial.datetime_start
    spent = {kind: s for kind, s in record.times.items() if 0 < s < math.inf}
    details = {
        "end": ending(trial, alive),
        "facts": {
            "began": "" if began is None else f"{began:%Y-%m-%d %H:%M:%S}",
            "worker": str(record.worker or ""),
        },
        "times": {kind: float(f"{seconds:.3g}") for kind, seconds in spent.items()},
        "traceback": str(record.traceback or ""),
        "log": log,
        "replayable": bool(record.provenance),
    }
    return {name: value for name, value in details.items() if value}


def ending(trial: FrozenTrial, alive: Collection[int] | None = None) -> str:
    """Says how a trial ended and why, or how far it has come."""
    record = TrialRecord(trial)
    kind, done, planned = shown_state(trial, alive), record.steps_done, record.steps_planned
    epochs = f"{done} of {plural(planned, 'epoch')}" if planned else plural(done, "epoch")
    if record.planned_jobs is not None:
        epochs = f"{done} of {planned} folds and seeds"
    if kind != "complete" and (last := figures.finite_curves([trial]).get(trial.number)):
        epochs += f", at {format_value(last[-1][1])}"
    rung = ": it waited at a rung, and others were promoted" if record.rungs else ""
    sentences = {
        "failed": f"It failed after {epochs}: {record.reason or NO_REASON}",
        "pruned": f"It was pruned after {epochs}{rung}.",
        "paused": f"It is paused after {epochs}, until it is promoted or the search has ended.",
        "running": f"It runs, and has trained {epochs}.",
        INTERRUPTED: f"It is {describe_state(trial, alive)}: it has trained {epochs}.",
        "waiting": "No worker has begun it yet.",
    }
    sentence = sentences.get(kind, f"It is complete, after {epochs}.")
    if record.reused is not None:
        sentence += f" It was not trained: its result is that of {record.reused}."
    if resumed := record.resumed:
        sentence += f" T{describe_resumption(trial.number, resumed, record.streams)[1:]}."
    return sentence


def read_logs(run_dir: Path, trials: Sequence[FrozenTrial]) -> dict[int, str]:
    """Returns the last log lines of trials by number, up to a limit for each and for all.

    A command has a log for each trial. A worker has one log, of which a trial gets the lines
    between the end of the previous trial and its own. Failed trials come first, then the latest.
    """
    texts = dict(_written(run_dir, trials))
    failed = {trial.number for trial in trials if TrialRecord(trial).outcome == "failed"}
    kept, left = dict[int, str](), LOGGED
    for trial in sorted(texts, key=lambda trial: (trial not in failed, -trial)):
        lines = [shorten_end(line, LOG_LINE) for line in texts[trial][-LOG_LINES:]]
        text = "\n".join(lines)
        left -= len(text)
        if left < 0:
            break
        kept[trial] = text
    return kept


def _written(run_dir: Path, trials: Sequence[FrozenTrial]) -> Iterator[tuple[int, list[str]]]:
    try:
        folder = run_dir.resolve()
        files = [path for path in (folder / "logs").glob("*.log") if path.is_file()]
        files = [path for path in files if path.resolve().is_relative_to(folder)]
        files.sort(key=lambda path: -path.stat().st_mtime)
    except OSError:
        return
    ends = {trial.number: trial.datetime_complete for trial in trials}
    own = {f"trial-{number}.log": number for number in ends}
    for path in [path for path in files if not path.name.startswith("trial-")][:WORKER_LOGS]:
        lines: list[str] = []
        for line in _tail(path):
            lines.append(line)
            end = read_trial_end(line)
            if end is None:
                continue
            trial_lines = lines
            lines = []
            ended = ends.get(end.trial)
            # Another stage has a trial of this number too. A line with only its end adds nothing.
            if ended is not None and abs(end.time - ended) < LATE and len(trial_lines) > 1:
                yield end.trial, trial_lines
    for path in files:
        if path.name in own and (lines := _tail(path)):
            yield own[path.name], lines


def _tail(path: Path) -> list[str]:
    """Returns the last lines of a file; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            return file.read(TAIL).decode(errors="replace").splitlines()
    except OSError:
        return []


def proposer_sections(stored: StoredStudy, winner: Result | None) -> Iterator[Section]:
    """Compares the trials of each proposer, if any, with those of the sampler."""
    own = defaultdict[str | None, list[int]](list, {None: []})
    for trial in stored.trials():
        record = TrialRecord(trial)
        if (by := record.proposer()) or not record.is_given:
            own[by].append(trial.number)
    searched = {trial.number: trial.values[0] for trial in stored.ranked()}
    means = {row.trial: row.mean for row in (winner.candidates if winner else ())}

    def best(values: Mapping[int, float | None], numbers: Iterable[int]) -> float | None:
        known = [value for n in numbers if (value := values.get(n)) is not None]
        return max(known, key=lambda value: stored.sign * value, default=None)

    rows, first = list[tuple[object, ...]](), best(searched, own[None])
    for by, numbers in own.items():
        found, who = best(searched, numbers), f"proposed by {by}" if by else "sampler"
        gain = None if found is None or first is None else stored.sign * (found - first)
        reevaluation = words.number(best(means, numbers))
        rows.append((who, len(numbers), words.number(found), words.number(gain, "+"), reevaluation))
    head = ("", "trials", "best, search", "better than the sampler's by", "best re-evaluation mean")
    if len(own) > 1:
        yield section("proposers", [figures.PageTable(head, rows, words=(0,))])


MOST_MESSAGES = 10  # of one kind of failure


def running_sections(snapshot: Snapshot) -> Iterator[Section]:
    """Renders what runs now: each worker's trial, epoch, value and hyperparameters."""
    rows = []
    for worker in snapshot.workers:
        cells = words.worker_cells(worker)[:3]
        lease = "" if worker.is_alive else "silent: another worker resumes the trial"
        params = "" if worker.trial is None else words.format_parameters(worker.params)
        rows.append((worker.owner, *cells, lease, params))
    if rows:
        head = ("worker", "trial", "epoch", snapshot.metric, "", "hyperparameters")
        yield section("running", [figures.PageTable(head, rows, words=(0, 4, 5))])


def worker_sections(stored: StoredStudy, snapshot: Snapshot) -> Iterator[Section]:
    """Renders the timeline of the workers, and the failures."""
    trials = stored.trials()
    alive = snapshot.live_trials
    if alive is None:
        alive = frozenset()
    latest = f" These are the latest {MOST} of {len(trials)} trials." if len(trials) > MOST else ""
    yield section("workers", [drawn(figures.timeline, trials[-MOST:], alive)], latest=latest)
    yield section("failures", [*failures(trials)] or [Absent("No trial has failed.")])


def failures(trials: Sequence[FrozenTrial]) -> Iterator[page.Part]:
    """Yields the failures by kind, the most frequent first.

    Each message has its trials and one of their tracebacks.
    """
    for failure in count_failures(trials):
        reasons = failure.by_reason()
        blocks: list[figures.Block] = []
        for reason, members in [*reasons.items()][:MOST_MESSAGES]:
            numbers = ", ".join(str(trial.number) for trial in members[:MOST_MESSAGES])
            numbers += ", …" if len(members) > MOST_MESSAGES else ""
            blocks += [Words(reason, "bad"), Words(f"trial {numbers}", "quiet")]
            kept = [text for t in members if (text := TrialRecord(t).traceback) is not None]
            blocks += [page.Folded("traceback", str(traceback)) for traceback in kept[:1]]
        if len(reasons) > MOST_MESSAGES:
            blocks.append(Words(f"and {len(reasons) - MOST_MESSAGES} other messages", "quiet"))
        yield page.Part(failure.kind, blocks, f"{failure.count} ×")


def environment_section(
    trials: Iterable[FrozenTrial], winner: Result | None, config_text: str
) -> Section:
    """Renders the environment in which the winner was trained, or else the first trial."""
    known = (TrialRecord(trial).provenance.get("environment") for trial in trials)
    first: dict[str, Any] = next((each for each in known if isinstance(each, dict)), {})
    facts = {**((winner and winner.environment) or first)}
    if winner is not None:
        facts["data"] = winner.data.digest if winner.data else None
        facts["seeds"] = [*winner.seeds] or None
    block = page.Facts([(str(key), value) for key, value in facts.items() if value is not None])
    config: figures.Block = Absent("No configuration was found.")
    if config_text.strip():
        config = page.Folded("configuration", config_text)
    return section("environment", [block, config])


def read_configs(run_dir: Path) -> str:
    """Reads the configurations below a run directory; raises OSError if one cannot be read."""
    texts = []
    for name in CONFIGS:
        path = run_dir / name
        if path.exists():
            texts.append(f"# {name}\n{path.read_text(errors='replace').rstrip()}\n")
    return "\n\n".join(texts)


def read_report(
    stored: StoredStudy,
    result: Result | None = None,
    configs: str = "",
    progress: Progress | None = None,
    run_dir: Path | None = None,
) -> tuple[page.Head, Iterator[Section]]:
    """Reads a study, and returns the top of its report and the sections below.

    Args:
        result: the result of the study, if there is one.
        configs: the configurations, from `read_configs`.
        progress: the progress of the whole job, for a live report.
        run_dir: where the logs are, if known.
    """
    live = progress is not None
    if progress is None:
        progress = ProgressReader(stored).read()
    snapshot, current = progress.search, progress.current
    values = figures.last_values(stored.trials()).values()
    axis = figures.Axis.of(stored.metric, stored.sign, values)
    won = None if result is None else result.winner.trial
    shown, note = sample(stored, snapshot, won)
    search = [*noted(search_sections(shown, snapshot, result, axis), note)]
    first = 2 if snapshot.costs else 1  # figures on the first screen, or directly below

    def sections() -> Iterator[Section]:
        yield from search[:first]
        yield from running_sections(current)
        yield details_section(stored, snapshot, result)
        if result is not None:
            yield from winner_sections(result)
            yield from explanation_sections(result)
        yield from search[first:]
        yield from proposer_sections(stored, result)
        names, by_objective = what_matters(shown)
        shares = by_objective[0].shares
        yield from noted([trials_section(shown, snapshot, won, shares, run_dir)], note)
        yield from noted(parameter_sections(shown, snapshot.best, axis, names, by_objective), note)
        yield from worker_sections(stored, snapshot)
        yield environment_section(stored.trials(), result, configs)

    trials, figure = trials_of_stages(stored), search[0].blocks[0]
    return head(stored, progress, result, trials, figure, live=live), sections()


def noted(sections: Iterable[Section], note: str) -> Iterator[Section]:
    """Adds a note to the captions of some sections."""
    for each in sections:
        yield replace(each, caption=f"{each.caption} {note}".strip())


def write_report(
    stored: StoredStudy,
    run_dir: Path,
    folder: Path | None = None,
    *,
    draw_png: Callable[[str], bytes] | None = None,
) -> Path:
    """Writes report.html of the study that runs in a folder.

    Args:
        folder: where to write it; None for `run_dir`, which holds the winner and the logs.
        draw_png: draws an SVG, see `extras/image.py`; the top of the report is written as
            report.png too. None for no image.

    Raises:
        ConfigError: what draws the image is not installed.
        OSError: it cannot be written.
        UndrawnReport: it cannot be drawn, for any reason.
    """
    path = (folder or run_dir) / "report.html"
    result = Result.read(run_dir, stored)
    configs = read_configs(run_dir)
    try:
        top, sections = read_report(stored, result, configs, run_dir=run_dir)
        html = page.report_page(top, sections, run_dir if configs else None)
        if draw_png is not None:
            write_whole(path.with_suffix(".png"), draw_png(top.image))
    except (StudyloomError, OSError):
        raise
    except Exception as error:  # a study that has ended does not fail because of its report
        raise UndrawnReport(f"{path} is not written: {page.undrawn(error)}") from error
    write_whole(path, html.encode(errors="replace"))
    return path
