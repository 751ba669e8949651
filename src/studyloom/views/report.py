"""The report of a study: sections of blocks, which the templates turn into HTML.

It can be written while the search runs; a sentence replaces a figure that cannot be drawn yet. To
add a section, yield it in `read_report`, and add its words to assets/report/sections.toml.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.errors import StudyloomError, UndrawnReport
from studyloom.files import write_whole
from studyloom.storage import trial_tables
from studyloom.storage.stored_study import StoredStudy, rank_by_value
from studyloom.storage.trial_record import TrialRecord, shown_state
from studyloom.text import (
    format_duration,
    format_parameter,
    format_value,
    shorten,
    shorten_names,
    write_minus,
)
from studyloom.views import (
    advice,
    drawing,
    failure_section,
    figures,
    halted_study,
    headline,
    page,
    parameter_sections,
    searched,
    words,
)
from studyloom.views.charts import Axis, Block, PageTable
from studyloom.views.drawn_trials import describe_selection
from studyloom.views.explanations import render_explanations
from studyloom.views.page import Absent, Paragraph, Section, draw_figure, make_section
from studyloom.views.progress import STAGE_NAMES, Progress, ProgressReader
from studyloom.views.snapshot import Snapshot
from studyloom.views.trial_details import collect_details, read_logs
from studyloom.winner.result import Result, Wrong

CONFIGS = ("best.yaml", ".hydra/config.yaml")  # below the run directory, that a report shows
MOST_TRIALS = 2000  # that are drawn, besides the notable ones; at 100,000, all of them took 22 GB
MOST_RANKED = 100  # trials that are drawn for their value


@dataclass(frozen=True)
class SampledStudy(StoredStudy):
    """A study that shows views only some of its trials.

    Attributes:
        sampled_trials: the trials that views see.
        note: a sentence that says how many of the trials are shown, and which.
    """

    sampled_trials: tuple[FrozenTrial, ...] = ()
    note: str = ""

    def trials(self, *, all_attributes: bool = False) -> list[FrozenTrial]:
        return [*self.sampled_trials]


def sample_trials(
    stored: StoredStudy, snapshot: Snapshot, winner_number: int | None
) -> SampledStudy | None:
    """Samples the trials of a very large study, since drawing all takes too much memory.

    Keeps trials at even distances, and the notable ones.

    Args:
        winner_number: the trial of the winner, which is kept; None without one.

    Returns:
        The study with the sampled trials; None if it is small enough to draw all of its trials.
    """
    trials = stored.trials()
    if len(trials) <= MOST_TRIALS:
        return None
    notable = [*snapshot.front[:MOST_RANKED], *stored.ranked()[:MOST_RANKED]]
    notable += figures.best_so_far(figures.complete_trials(trials), stored.sign)
    for trial in trials:
        if not trial.state.is_finished():
            notable.append(trial)
    for named_trial in (snapshot.best, snapshot.baseline):
        if named_trial is not None:
            notable.append(named_trial)
    numbers = {trial.number for trial in notable}
    if winner_number is not None:
        numbers.add(winner_number)
    for index in range(MOST_TRIALS):
        evenly_spaced = trials[len(trials) * index // MOST_TRIALS]
        numbers.add(evenly_spaced.number)
    sampled = tuple(trial for trial in trials if trial.number in numbers)
    note = (
        f"{len(sampled)} of {len(trials)} trials are shown: {MOST_TRIALS} at even distances, "
        "and those that stand out."
    )
    return SampledStudy(stored.name, stored.storage, stored.optuna, stored.ledger, sampled, note)


@dataclass(frozen=True)
class Period:
    """The time from the start of the first of some trials to the end of the last."""

    start: datetime
    end: datetime

    @property
    def seconds(self) -> float:
        return (self.end - self.start).total_seconds()


def find_period(trials: Sequence[FrozenTrial]) -> Period | None:
    """Returns the period of trials; None before one has begun and one has ended."""
    starts = [trial.datetime_start for trial in trials if trial.datetime_start is not None]
    ends = [trial.datetime_complete for trial in trials if trial.datetime_complete is not None]
    if not starts or not ends:
        return None
    return Period(min(starts), max(ends))


def collect_trials_of_stages(stored: StoredStudy) -> list[FrozenTrial]:
    """Returns the trials of the search, and the trainings of the later stages."""
    trials = [*stored.trials()]
    for stage in stored.later_stages():
        trials += stored.storage.get_all_trials(stage.study._study_id, deepcopy=False)
    return trials


def sum_worked_seconds(trials: Iterable[FrozenTrial]) -> float:
    """Returns the seconds that workers spent on trials, without their start-up.

    A reused training took no time.
    """
    durations = []
    for trial in trials:
        record = TrialRecord(trial)
        if record.reused is None:
            for kind, seconds in record.times.items():
                if kind != "start-up":
                    durations.append(float(seconds))
    return sum(durations)


# The top of the report: the result in a sentence, and four facts

REPAIR = (
    "Fix the cause, open the failed trials again by this command, and run the study again as "
    "before, with study.accept_code_change=true if its code has changed:"
)


def make_head(
    stored: StoredStudy,
    progress: Progress,
    result: Result | None,
    trials: Sequence[FrozenTrial],
    figure: Block,
    parameters: parameter_sections.RankedParameters,
    run_dir: Path | None,
    *,
    is_live: bool = False,
) -> page.Head:
    """Makes the top of the report; a live report shows the times in a separate line.

    Args:
        trials: the trials of all stages.
        parameters: the hyperparameters, and how much they matter.
        figure: the first figure of the report, which the image to share contains.
        run_dir: the folder of the study, which the command to repair it names; None if unknown.
    """
    snapshot = progress.search
    blocks: list[Block] = []
    halt = halted_study.explain_halt(stored)
    repairs: list[advice.Advice] = []
    if halt is not None:
        text = halt.headline
        if snapshot.best is None:  # the headline says how many trials failed
            text = halt.reason
        blocks.append(Paragraph(text, "bad"))
        if run_dir is not None:
            repairs.append(advice.Advice(REPAIR, halted_study.write_redo(run_dir)))
    ending = snapshot.forecast.ending
    if ending is not None:
        blocks.append(Paragraph(f"The search {ending.reason}."))
    facts = (
        words.make_trials_fact(stored, snapshot),
        words.make_best_fact(stored, snapshot),
        make_winner_fact(progress, result),
        make_time_fact(progress, trials, is_live=is_live),
    )
    sentence = f"{headline.make_headline(snapshot, result, halt)}."
    sentences = advice.list_advice(stored, snapshot, result, parameters.importances)
    head = page.Head(
        name=stored.name,
        sentence=sentence,
        blocks=blocks,
        facts=facts,
        searched=searched.describe_searched(stored),
        advice=[*repairs, *sentences],
    )
    return replace(head, image=drawing.share(head, figure))


def make_winner_fact(progress: Progress, result: Result | None) -> words.Fact:
    """Says whether the best is real, or which stages lead to the winner."""
    if result is not None:
        return words.make_winner_fact(result)
    if progress.halted is not None:
        return words.Fact("Winner", "–", "none, since the study stopped itself")
    later_stages = []
    for stage in progress.stages[1:]:  # the first is the search
        later_stages.append(f"{STAGE_NAMES[stage.title]} {stage.done}/{stage.budget}")
    explanation = ", ".join(later_stages) or "no re-evaluation"
    return words.Fact("Winner", "–", f"not yet: {explanation}")


def make_time_fact(
    progress: Progress, trials: Sequence[FrozenTrial], *, is_live: bool
) -> words.Fact:
    """Says how long the trainings took; or while workers run, what they do.

    Args:
        trials: the trials of all stages.
        is_live: whether a live report shows the time left in a separate line.
    """
    duration = "–"
    explanation: list[str] = []
    period = find_period(trials)
    if period is not None:
        duration = format_duration(period.seconds)
        explanation.append(f"from {period.start:%Y-%m-%d %H:%M}")
    if progress.is_at_work:
        activity = progress.stage_names_text  # other facts have the counts of each stage
        if not is_live:
            activity += f"; {progress.eta_text}"
            if progress.control_text:
                activity += f"; {progress.control_text}"
        return words.Fact("Time so far", duration, activity)
    seconds = sum_worked_seconds(trials)
    if seconds:
        # The trials name processes, of which there are more than workers: some replaced others.
        explanation.append(f"workers busy for {format_duration(seconds)} in all")
    if not progress.has_ended:
        explanation.append("no worker runs")
    return words.Fact("Took", duration, "; ".join(explanation))


# The sections about the result


def render_details(stored: StoredStudy, snapshot: Snapshot, result: Result | None) -> Section:
    """Renders the reasons for the result, what it is based on, and the best hyperparameters."""
    facts: list[words.Fact] = []
    lines: list[str] = []
    if result is not None:
        lines += words.explain_decision(result, snapshot.budget, stored.sign)
        if result.test or result.winner.reevaluation:
            facts += words.list_facts(result)
    rows: list[tuple[str, object]] = []
    for fact in facts:
        if fact.label:
            rows.append((fact.label, fact.text))
        else:
            lines.append(f"{words.begin_sentence(fact.value)}.")
    rows += _list_search_facts(stored, snapshot)
    data = words.describe_data(stored, result)
    if data:
        rows.append(("data", data))
    blocks: list[Block] = []
    if lines:
        blocks.append(page.Lines(lines))
    blocks.append(page.Facts(rows))
    best_params = None
    if snapshot.best is not None:
        best_params = snapshot.best.params
        parameters = words.format_parameters(best_params)
        blocks.append(Paragraph(f"Best:  {parameters}", "parameters"))
    if result is not None and result.winner.params != best_params:
        parameters = words.format_parameters(result.winner.params)
        blocks.append(Paragraph(f"Winner:  {parameters}", "parameters"))
    return make_section("details", blocks)


def _list_search_facts(stored: StoredStudy, snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """Yields the objectives, how the best trial is chosen, and what further trials would gain."""
    yield "values", ", and ".join(map(words.describe_objective, stored.objectives))
    if snapshot.rule is not None:
        yield "the best by", snapshot.rule
    label, _, gain = snapshot.forecast.describe_gain(snapshot.metric).partition(": ")
    if gain:
        yield label, gain


def render_candidates(result: Result) -> Iterator[Section]:
    """Renders the candidates and the ablation."""
    yield make_section("candidates", [_make_candidate_table(result)])
    ablation = result.ablation
    if ablation is not None and ablation.rows:
        blocks = [draw_figure(figures.draw_ablation, ablation)]
        # winner.simple.yaml is the winner with the defaults of changes that are not needed.
        description = words.describe_simple(result)
        if description:
            blocks.append(Paragraph(f"winner.simple.yaml is {description}."))
        yield make_section("ablation", blocks, metric=result.metric.name)


def render_predictions(result: Result) -> Iterator[Section]:
    """Renders what the winner predicts on the test set, and its errors."""
    why_absent = words.explain_no_predictions(result)
    predictions = result.predictions  # of numbers; None for a classifier
    if why_absent:
        yield make_section("winner", [Absent(why_absent)])
    elif predictions is not None:
        figure = draw_figure(figures.draw_predictions, predictions)
        yield make_section("predictions", [figure])
    else:
        yield make_section("confusion", [_make_confusion_table(result)])
        yield make_section("wrong", [_show_wrong_images(result.wrong or ())])


def _make_candidate_table(result: Result) -> PageTable:
    """Makes a table of the candidates, with their values in the search and on new seeds."""
    rows = []
    for candidate in result.candidates:
        role = ""
        if candidate == result.winner:
            role = "winner"
        elif candidate.baseline:
            role = "baseline"
        reevaluation = "–"
        if candidate.reevaluation:
            reevaluation = words.format_mean(candidate.reevaluation)
        costs = [f"{name} {words.format_number(cost)}" for name, cost in candidate.costs.items()]
        row = (
            candidate.trial,
            words.describe_search_value(candidate),
            reevaluation,
            words.format_number(candidate.selection_gap, "+"),
            role,
            "  ".join([*costs, words.format_parameters(candidate.params)]),
        )
        rows.append(row)
    head = ("trial", "search", "re-evaluation", "gap", "", "hyperparameters")
    return PageTable(head, rows, text_columns=(4, 5))  # the role and the hyperparameters


def _make_confusion_table(result: Result) -> Block:
    """Makes a table of the counts by true and predicted class."""
    if not result.confusion:
        return Absent("winner.json holds no confusion matrix.")
    names = result.classes or range(len(result.confusion))
    return page.Heat(names, result.confusion, "true classes by predicted ones")


def _show_wrong_images(errors: Iterable[Wrong]) -> Block:
    """Shows the images that the winner misclassifies, each with its classes and confidence."""
    images = []
    for error in errors:
        if page.is_embedded(error.image):
            image = page.CaptionedImage(
                source=error.image,
                label=f"test image {error.index}",
                caption=f"{error.label} → ",
                strong=str(error.predicted),
                remark=words.format_number(error.confidence),
            )
            images.append(image)
    if not images:
        return Absent("winner.json holds no images.")
    return page.Images(images)


# The sections about the search

# Sentences about the axis of a figure, by the scale of the axis.
AXIS_NOTES = {
    "unit": " The axis is stretched toward 1: equal steps divide the error by equal factors.",
    "factors": " The axis is logarithmic: equal steps are equal factors.",
    "plain": "",
}


def render_search(
    stored: StoredStudy, snapshot: Snapshot, result: Result | None, axis: Axis
) -> Iterator[Section]:
    """Renders the Pareto front, the history of the search, and the learning curves."""
    trials = stored.trials()
    marked = {"baseline": snapshot.baseline, "best": snapshot.best}
    winner_trial = None
    if result is not None:
        winner_trial = _find_trial(trials, result.winner.trial)
    if snapshot.costs:
        head, *rows = words.list_front(snapshot)
        table = PageTable(head, rows, text_columns=(len(head) - 1,))
        marked_on_front = {"winner": winner_trial, **marked}
        figure = draw_figure(figures.draw_front, stored, marked_on_front, axis, table)
        yield make_section("front", [figure], rule=snapshot.rule)
    yield render_history(trials, marked, axis, result, snapshot.live_trials)
    yield render_curves(trials, marked, axis, snapshot.live_trials)
    yield _render_losses(snapshot, winner_trial)


def render_history(
    trials: Sequence[FrozenTrial],
    marked: figures.Marked,
    axis: Axis,
    result: Result | None = None,
    live_trials: Collection[int] | None = None,
    early_trials: Collection[int] = (),
) -> Section:
    """Renders the history of the search.

    Args:
        marked: the trials that are highlighted, by name.
        result: the result, whose winner has means on new seeds; None before there is one.
        live_trials: the numbers of the trials that living workers hold; None without leases.
        early_trials: the numbers of trials that ended too early to say how long the axis must be.
    """
    figure = draw_figure(
        figures.draw_history,
        trials,
        marked,
        axis,
        winner=result,
        live_trials=live_trials,
        early_trials=early_trials,
    )
    winner = ""
    if result is not None and result.winner.reevaluation is not None:
        winner = " The winner's means on new seeds, with their standard errors, are at the right."
        if result.baseline_values_after_search(axis.metric):
            winner += " A short dotted line there is the baseline's mean on the same seeds."
    better = "Lower"
    if axis.sign > 0:
        better = "Higher"
    axis_note = AXIS_NOTES[axis.scale]
    return make_section("search", [figure], winner=winner, axis=axis_note, better=better)


def render_curves(
    trials: Sequence[FrozenTrial],
    marked: figures.Marked,
    axis: Axis,
    live_trials: Collection[int] | None = None,
) -> Section:
    """Renders the learning curves.

    Args:
        marked: the trials that are highlighted, by name.
        live_trials: the numbers of the trials that living workers hold; None without leases.
    """
    figure = draw_figure(figures.draw_curves, trials, marked, axis, live_trials=live_trials)
    rungs = ""
    if any(TrialRecord(trial).rungs for trial in trials):
        rungs = " A dotted line is a rung, at which trials wait for promotion."
    selection = describe_selection(len(figures.finite_curves(trials)))
    return make_section("curves", [figure], rungs=rungs, selection=selection)


def _find_trial(trials: Iterable[FrozenTrial], number: int) -> FrozenTrial | None:
    """Returns the trial with a number; None if it is missing."""
    for trial in trials:
        if trial.number == number:
            return trial
    return None


def _render_losses(snapshot: Snapshot, winner_trial: FrozenTrial | None) -> Section:
    """Renders the losses of the winner in the search, or else of the best trial."""
    if winner_trial is not None:
        trial = winner_trial
        role = "winner"
    elif snapshot.best is not None:
        trial = snapshot.best
        role = "best"
    else:
        reason = words.begin_sentence(words.explain_no_best(snapshot))
        return make_section(figures.name_losses_section(None), [Absent(f"{reason}.")], which="")
    figure = draw_figure(figures.draw_losses, trial)
    which = f"Trial {trial.number}, the {role}. "
    return make_section(figures.name_losses_section(trial), [figure], which=which)


MOST_COLUMNS = 100  # of the table of trials; 2,000 hyperparameters took 200 MB


# The table of all trials

# The titles of columns of `trial_tables`, where they differ from the name of the column.
COLUMN_TITLES = {
    "standard_error": "± error",
    "proposed_by": "proposed by",
    "seconds": "time",
    "reason": "why",
}
LONGEST = 60  # characters of a cell
SAMPLER = "sampler"  # the name of its row in the table of proposers


def render_trials(
    stored: StoredStudy,
    snapshot: Snapshot,
    winner_number: int | None,
    shares: Mapping[str, float],
    run_dir: Path | None,
) -> Section:
    """Renders the table of all trials, without empty columns; `studyloom trials --csv` has all.

    The most important hyperparameters come first, then those that most trials have; of very many,
    only the first are shown.

    Args:
        winner_number: the trial of the winner; None without one.
        shares: the importances; empty if there are none.
        run_dir: where the trials' logs are, if known.
    """
    table = trial_tables.trial_rows(stored)
    if not table:
        return make_section("trials", [Absent("No trial has begun yet.")])
    columns: dict[str, list[Any]] = {}  # the cells of each column, by its name
    for position, name in enumerate(table.columns):
        columns[name] = [row[position] for row in table.cells]
    ranked = _rank_parameter_columns(columns, shares)
    parameters = ranked[:MOST_COLUMNS]
    objectives = [name for name in columns if name.partition(".")[0] in ("value", "values")]
    shown_columns = {}
    for name in (
        *objectives,
        "standard_error",
        "epochs",
        *parameters,
        "proposed_by",
        "seconds",
        "reason",
    ):
        if any(cell is not None for cell in columns[name]):
            shown_columns[name] = columns[name]

    titles = _title_columns(objectives, ranked, snapshot.metric)
    head = []
    for name, cells in shown_columns.items():
        full_name = ""
        if name in ranked:
            full_name = name.removeprefix("params.")
        has_text = any(isinstance(cell, str | bool | list) for cell in cells)
        order = ""
        if name == objectives[0]:
            order = "ascending"
            if stored.sign > 0:
                order = "descending"
        column = page.Column(titles.get(name, name), has_text, parameter=full_name, order=order)
        head.append(column)
    trials_by_number = {trial.number: trial for trial in stored.trials()}
    trials = [trials_by_number[number] for number in columns["number"]]
    rows = _make_trial_rows(trials, shown_columns, snapshot, winner_number, run_dir)
    ranked_trials = rank_by_value(trials, stored.sign)
    ranks = {trial.number: rank for rank, trial in enumerate(ranked_trials)}
    rows.sort(key=lambda row: ranks[row.number])
    section = make_section("trials", [page.Trials(head, rows)])
    if len(parameters) < len(ranked):
        note = (
            f"Of {len(ranked)} hyperparameters the {len(parameters)} most important are shown; "
            "studyloom trials --csv has all."
        )
        section = replace(section, caption=f"{section.caption} {note}")
    return section


def _make_trial_rows(
    trials: Sequence[FrozenTrial],
    columns: Mapping[str, Sequence[Any]],
    snapshot: Snapshot,
    winner_number: int | None,
    run_dir: Path | None,
) -> list[page.Row]:
    """Returns a row for each trial, with its cells and the details that a click shows.

    Args:
        columns: the cells of each column, in the order of the trials.
        winner_number: the trial of the winner; None without one.
        run_dir: where the trials' logs are, if known.
    """
    logs: Mapping[int, str] = {}
    if run_dir is not None:
        logs = read_logs(run_dir, trials)
    rows = []
    for position, trial in enumerate(trials):
        marks = []
        if trial.number == winner_number:
            marks.append("winner")
        if snapshot.best is not None and trial.number == snapshot.best.number:
            marks.append("best")
        if TrialRecord(trial).is_baseline:
            marks.append("baseline")
        row = page.Row(
            number=trial.number,
            state=shown_state(trial, snapshot.live_trials),
            cells=[_make_cell(name, cells[position]) for name, cells in columns.items()],
            mark=", ".join(marks),
            more=collect_details(trial, logs.get(trial.number, ""), snapshot.live_trials),
        )
        rows.append(row)
    return rows


def _rank_parameter_columns(
    columns: Mapping[str, Sequence[object]], shares: Mapping[str, float]
) -> list[str]:
    """Returns the columns of hyperparameters: the most important, then the fullest first."""
    share_by_column = {trial_tables.column_of(name): share for name, share in shares.items()}

    def sort_key(name: str) -> tuple[float, int]:
        share = share_by_column.get(name, 0.0)
        empty_cells = columns[name].count(None)
        return -share, empty_cells

    names = [name for name in columns if name.startswith("params.")]
    return sorted(names, key=sort_key)


def _title_columns(values: Iterable[str], parameters: Iterable[str], metric: str) -> dict[str, str]:
    """Returns the titles of columns by name; the names of hyperparameters are shortened.

    Args:
        values: the columns of the objectives.
        parameters: the columns of all hyperparameters, also of those that are not shown: a short
            name must not fit one of these either.
    """
    titles = {**COLUMN_TITLES}
    for name in values:
        titles[name] = name.removeprefix("values.")
    titles["value"] = metric
    full_names = {name: name.removeprefix("params.") for name in parameters}
    other_titles = ["trial", "state", "epochs", *titles.values()]
    short_names = shorten_names(full_names.values(), other_titles)
    for name, full_name in full_names.items():
        titles[name] = short_names[full_name]
    return titles


def _make_cell(name: str, value: Any) -> page.Cell:
    """Makes a cell of a column: its text, and the value by which the table is sorted."""
    if value is None:
        return page.Cell("")
    if name == "seconds" and value < 10:
        text = f"{value:.1f} s"
    elif name == "seconds":
        text = format_duration(value)
    elif isinstance(value, float) and not name.startswith("params."):
        text = format_value(value)
    else:
        text = shorten(format_parameter(value), LONGEST)
        if isinstance(value, int | float):
            text = write_minus(text)
    return page.Cell(text, value)


def render_proposers(stored: StoredStudy, result: Result | None) -> Iterator[Section]:
    """Compares the trials of each proposer, if any, with those of the sampler."""
    numbers_by_proposer = _group_by_proposer(stored.trials())
    if len(numbers_by_proposer) == 1:
        return
    search_values = {trial.number: trial.values[0] for trial in stored.ranked()}
    means = {}
    if result is not None:
        for candidate in result.candidates:
            if candidate.mean is not None:
                means[candidate.trial] = candidate.mean
    sampler_best = _find_best_value(search_values, numbers_by_proposer[SAMPLER], stored.sign)
    rows = []
    for proposer, numbers in numbers_by_proposer.items():
        best = _find_best_value(search_values, numbers, stored.sign)
        gain = None
        if best is not None and sampler_best is not None:
            gain = stored.sign * (best - sampler_best)
        best_mean = _find_best_value(means, numbers, stored.sign)
        row = (
            proposer,
            len(numbers),
            words.format_number(best),
            words.format_number(gain, "+"),
            words.format_number(best_mean),
        )
        rows.append(row)
    head = ("", "trials", "best, search", "better than the sampler's by", "best re-evaluation mean")
    yield make_section("proposers", [PageTable(head, rows, text_columns=(0,))])


def _group_by_proposer(trials: Iterable[FrozenTrial]) -> dict[str, list[int]]:
    """Returns the numbers of the trials of the sampler, and of each program that proposed some.

    Trials whose configuration the user gave, such as the baseline, are left out.
    """
    numbers: dict[str, list[int]] = {SAMPLER: []}
    for trial in trials:
        record = TrialRecord(trial)
        proposer = record.proposer
        if proposer:
            numbers.setdefault(f"proposed by {proposer}", []).append(trial.number)
        elif not record.is_given:
            numbers[SAMPLER].append(trial.number)
    return numbers


def _find_best_value(
    values: Mapping[int, float], numbers: Iterable[int], sign: int
) -> float | None:
    """Returns the best value of some trials; None if none has a value.

    Args:
        values: the values of trials by number.
        numbers: the numbers of the trials to compare.
        sign: 1 if more is better, else -1.
    """
    compared = [values[number] for number in numbers if number in values]
    return max(compared, key=lambda value: sign * value, default=None)


# The sections about workers


def render_running(snapshot: Snapshot) -> Iterator[Section]:
    """Renders what runs now: each worker's trial, epoch, value and hyperparameters."""
    rows = []
    for worker in snapshot.workers:
        lease = ""
        if not worker.is_alive:
            lease = "silent: another worker resumes the trial"
        parameters = ""
        if worker.trial is not None:
            parameters = words.format_parameters(worker.params)
        texts = words.describe_worker(worker)
        row = (worker.owner, texts.trial, texts.epoch, texts.value, lease, parameters)
        rows.append(row)
    if rows:
        head = ("worker", "trial", "epoch", snapshot.metric, "", "hyperparameters")
        yield make_section("running", [PageTable(head, rows, text_columns=(0, 4, 5))])


def render_workers(stored: StoredStudy, snapshot: Snapshot) -> Section:
    """Renders the timeline of the workers."""
    trials = stored.trials()
    live_trials = snapshot.live_trials
    if live_trials is None:
        live_trials = frozenset()
    note = ""
    if len(trials) > MOST_TRIALS:
        note = f" These are the latest {MOST_TRIALS} of {len(trials)} trials."
    timeline = draw_figure(figures.draw_timeline, trials[-MOST_TRIALS:], live_trials)
    return make_section("workers", [timeline], latest=note)


def render_environment(
    trials: Iterable[FrozenTrial], result: Result | None, config_text: str
) -> Section:
    """Renders the environment in which the winner was trained, or else the first trial."""
    facts: dict[str, Any] = {}
    if result is not None:
        facts |= result.environment
    if not facts:
        facts |= _find_environment(trials)
    if result is not None and result.data is not None:
        facts["data"] = result.data.digest
    if result is not None and result.seeds:
        facts["seeds"] = [*result.seeds]
    block = page.Facts([(str(key), value) for key, value in facts.items() if value is not None])
    config: Block = Absent("No configuration was found.")
    if config_text.strip():
        config = page.Folded("configuration", config_text)
    return make_section("environment", [block, config])


def _find_environment(trials: Iterable[FrozenTrial]) -> Mapping[str, Any]:
    """Returns the first environment that a trial has stored; empty if none has."""
    for trial in trials:
        environment = TrialRecord(trial).provenance.get("environment")
        if isinstance(environment, dict):
            return environment
    return {}


# The whole report

FIRST_SECTIONS = ("search", "front")  # one of them is on the first screen
EXPLAINED_SECTIONS = ("importances", "winner")  # they say why they are empty


def read_configs(run_dir: Path) -> str:
    """Reads the configurations below a run directory; raises OSError if one cannot be read."""
    texts = []
    for name in CONFIGS:
        path = run_dir / name
        if path.exists():
            texts.append(f"# {name}\n{path.read_text(errors='replace').rstrip()}\n")
    return "\n\n".join(texts)


@dataclass(frozen=True)
class Report:
    """The top of a report and its sections, which are rendered when they are read."""

    head: page.Head
    sections: Iterator[Section]


@dataclass(frozen=True)
class _ReportSource:
    """The data from which the sections of a report are rendered.

    Args:
        stored: the study with all of its trials.
        drawn: the study with the trials that its figures show.
        note: a sentence that says which trials these are; empty if they are all.
        axis: the axis of the metric.
        parameters: the hyperparameters of all trials, and how much they matter.
        configs: the configurations, from `read_configs`.
        run_dir: where the logs are, if known.
    """

    stored: StoredStudy
    drawn: StoredStudy
    note: str
    progress: Progress
    result: Result | None
    axis: Axis
    parameters: parameter_sections.RankedParameters
    configs: str
    run_dir: Path | None

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot of the search."""
        return self.progress.search

    @property
    def has_failed(self) -> bool:
        """Returns whether failures are all that the search has come to."""
        return self.snapshot.best is None and self.snapshot.outcomes.get("failed", 0) > 0

    @property
    def winner_number(self) -> int | None:
        """The number of the winner's trial in the search; None without a winner."""
        if self.result is None:
            return None
        return self.result.winner.trial

    def is_worth_showing(self, section: Section) -> bool:
        """Returns whether a section has something to show, or a reason why it does not.

        A search that has only failures shows no section that says what is missing. Before a trial
        has a value, only the first section says so.
        """
        if not section.is_absent or section.has_error:
            return True
        if self.has_failed:
            return False
        if self.snapshot.best is None:
            return section.key in FIRST_SECTIONS
        key, _, _ = section.key.partition("-")  # the importances for a cost have a number
        return key in (*FIRST_SECTIONS, *EXPLAINED_SECTIONS)

    def render_search(self) -> list[Section]:
        """Renders the figures of the search, which a report always needs."""
        sections = render_search(self.drawn, self.snapshot, self.result, self.axis)
        return [*_add_note(sections, self.note)]

    def render_sections(self, search_sections: Sequence[Section]) -> Iterator[Section]:
        """Renders the sections one after the other, when they are needed: some take seconds.

        Args:
            search_sections: the figures of the search, of which the first are on the first screen.
        """
        first_count = 1
        if self.snapshot.costs:  # the Pareto front comes before the history
            first_count = 2
        failures = failure_section.render_failures(self.stored, opens_traceback=self.has_failed)
        if self.has_failed:
            yield failures
        first_section, *next_sections = search_sections[:first_count]
        bars = parameter_sections.make_bars(self.stored, self.parameters)
        yield replace(first_section, blocks=[*first_section.blocks, *bars])
        yield from next_sections
        yield from render_running(self.progress.current)
        yield render_details(self.stored, self.snapshot, self.result)
        if self.result is not None:
            yield from render_candidates(self.result)
        yield from search_sections[first_count:]
        yield from render_proposers(self.stored, self.result)
        yield render_workers(self.stored, self.snapshot)
        effects = parameter_sections.render_parameters(
            self.drawn, self.snapshot.best, self.axis, self.parameters
        )
        yield from _add_note(effects, self.note)
        if self.result is not None:
            yield from render_predictions(self.result)
            yield from render_explanations(self.result)
        if not self.has_failed:
            yield failures
        trials_section = render_trials(
            self.drawn, self.snapshot, self.winner_number, self.parameters.shares, self.run_dir
        )
        yield from _add_note([trials_section], self.note)
        yield render_environment(self.stored.trials(), self.result, self.configs)


def read_report(
    stored: StoredStudy,
    result: Result | None = None,
    configs: str = "",
    progress: Progress | None = None,
    run_dir: Path | None = None,
) -> Report:
    """Reads a study, and returns its report.

    Args:
        result: the result of the study, if there is one.
        configs: the configurations, from `read_configs`.
        progress: the progress of all stages, for a live report.
        run_dir: where the logs are, if known.
    """
    is_live = progress is not None
    if progress is None:
        progress = ProgressReader(stored).read()
    values = figures.last_values(stored.trials()).values()
    source = _ReportSource(
        stored=stored,
        drawn=stored,
        note="",
        progress=progress,
        result=result,
        axis=Axis.choose(stored.metric, stored.sign, values),
        parameters=parameter_sections.rank_parameters(stored),
        configs=configs,
        run_dir=run_dir,
    )
    # The figures of a large study draw only a sample of its trials.
    sampled = sample_trials(stored, progress.search, source.winner_number)
    if sampled is not None:
        source = replace(source, drawn=sampled, note=sampled.note)
    search_sections = source.render_search()
    trials = collect_trials_of_stages(stored)
    first_figure = search_sections[0].blocks[0]
    head = make_head(
        stored,
        progress,
        result,
        trials,
        first_figure,
        source.parameters,
        run_dir,
        is_live=is_live,
    )
    sections = source.render_sections(search_sections)
    return Report(head, filter(source.is_worth_showing, sections))


def _add_note(sections: Iterable[Section], note: str) -> Iterator[Section]:
    """Adds a note to the captions of some sections."""
    for section in sections:
        yield replace(section, caption=f"{section.caption} {note}".strip())


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
    replay_dir = None  # a trial can be replayed where the configurations are
    if configs:
        replay_dir = run_dir
    try:
        report = read_report(stored, result, configs, run_dir=run_dir)
        html = page.render_report(report.head, report.sections, replay_dir)
        if draw_png is not None:
            write_whole(path.with_suffix(".png"), draw_png(report.head.image))
    except (StudyloomError, OSError):
        raise
    except Exception as error:  # a study that has ended does not fail because of its report
        reason = page.describe_drawing_error(error)
        raise UndrawnReport(f"{path} is not written: {reason}") from error
    write_whole(path, html.encode(errors="replace"))
    return path
