"""The report of a study: sections of blocks, which the templates turn into HTML.

It can be written while the search runs; a sentence replaces a figure that cannot be drawn yet. To
add a section, yield it in `read_report`, and add its words to assets/report/sections.toml.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.errors import StudyloomError, UndrawnReport
from studyloom.files import write_whole
from studyloom.storage import attributes, trial_tables
from studyloom.storage.failures import count_failures
from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord, shown_state
from studyloom.text import (
    format_duration,
    format_parameter,
    format_value,
    shorten,
    shorten_names,
)
from studyloom.views import drawing, figures, page, words
from studyloom.views.charts import Axis, Block, PageTable
from studyloom.views.explanations import render_explanations
from studyloom.views.page import Absent, Paragraph, Section, draw_figure, make_section
from studyloom.views.progress import STAGE_NAMES, Progress, ProgressReader
from studyloom.views.snapshot import (
    Importances,
    Snapshot,
    compute_importances,
    find_varied_parameters,
)
from studyloom.views.trial_details import read_logs, trial_details
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
    """Samples the trials of a very large study at even distances, and keeps the notable ones.

    Args:
        winner_number: the trial of the winner, which is kept; None without one.

    Returns:
        The study with the sampled trials; None if it is small enough to draw all of its trials.
    """
    trials = stored.trials()
    if len(trials) <= MOST_TRIALS:
        return None
    steps = figures.best_so_far(figures.complete_trials(trials), stored.sign)
    unfinished = [trial for trial in trials if not trial.state.is_finished()]
    notable = [*snapshot.front[:MOST_RANKED], *stored.ranked()[:MOST_RANKED], *steps, *unfinished]
    numbers = {trial.number for trial in notable}
    for trial in (snapshot.best, snapshot.baseline):
        if trial is not None:
            numbers.add(trial.number)
    if winner_number is not None:
        numbers.add(winner_number)
    for place in range(MOST_TRIALS):
        numbers.add(trials[len(trials) * place // MOST_TRIALS].number)
    sampled = tuple(trial for trial in trials if trial.number in numbers)
    which = f"{MOST_TRIALS} at even distances, and those that stand out"
    note = f"{len(sampled)} of {len(trials)} trials are shown: {which}."
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


def make_head(
    stored: StoredStudy,
    progress: Progress,
    result: Result | None,
    trials: Sequence[FrozenTrial],
    figure: Block,
    *,
    is_live: bool = False,
) -> page.Head:
    """Makes the top of the report; a live report shows the times in a separate line.

    Args:
        trials: the trials of all stages.
        figure: the first figure of the report, which the image to share contains.
    """
    snapshot = progress.search
    blocks: list[Block] = []
    halted = stored.halted()
    if halted is not None:
        reason = f"The study stopped itself, since its trials fail with this: {halted}"
        blocks.append(Paragraph(reason, "bad"))
    ending = snapshot.forecast.ending
    if ending is not None:
        blocks.append(Paragraph(f"The search {ending.reason}."))
    facts = (
        words.make_trials_fact(stored, snapshot),
        words.make_best_fact(snapshot),
        make_winner_fact(progress, result),
        make_time_fact(progress, trials, is_live=is_live),
    )
    sentence = f"{words.describe_study(snapshot, stored, result)}."
    head = page.Head(stored.name, sentence, blocks, facts)
    return replace(head, image=drawing.share(head, figure))


def make_winner_fact(progress: Progress, result: Result | None) -> words.Fact:
    """Says whether the best is real, or which stages lead to the winner."""
    if result is not None:
        return words.make_winner_fact(result)
    later = []
    for stage in progress.stages[1:]:
        later.append(f"{STAGE_NAMES[stage.title]} {stage.done}/{stage.budget}")
    return words.Fact("Winner", "–", f"not yet: {', '.join(later) or 'no re-evaluation'}")


def make_time_fact(
    progress: Progress, trials: Sequence[FrozenTrial], *, is_live: bool
) -> words.Fact:
    """Says how long the trainings took, and what runs now."""
    duration = "–"
    explanation: list[str] = []
    period = find_period(trials)
    if period is not None:
        duration = format_duration(period.seconds)
        explanation.append(f"from {period.start:%Y-%m-%d %H:%M}")
    if progress.is_at_work:
        now = [progress.stage_text]
        if not is_live:
            now += [progress.eta_text, progress.control_text]
        return words.Fact("Time so far", duration, "; ".join(filter(None, now)))
    seconds = sum_worked_seconds(trials)
    if seconds:
        explanation.append(f"workers trained for {format_duration(seconds)}")
    if not progress.has_ended:
        explanation.append("no worker runs")
    return words.Fact("Took", duration, "; ".join(explanation))


# The sections about the result


def render_details(stored: StoredStudy, snapshot: Snapshot, result: Result | None) -> Section:
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


def render_winner(result: Result) -> Iterator[Section]:
    """Renders the candidates, the ablation, and what the winner predicts on the test set."""
    yield make_section("candidates", [_make_candidate_table(result)])
    ablation = result.ablation
    if ablation is not None and ablation.rows:
        blocks = [draw_figure(figures.draw_ablation, ablation)]
        simple = words.describe_simple(result)
        if simple:
            blocks.append(Paragraph(f"winner.simple.yaml is {simple}."))
        yield make_section("ablation", blocks, metric=result.metric.name)
    why_absent = words.explain_no_predictions(result)
    if why_absent:
        yield make_section("winner", [Absent(why_absent)])
    elif result.predictions is not None:
        figure = draw_figure(figures.draw_predictions, result.predictions)
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
            words.format_number(candidate.search_value),
            reevaluation,
            words.format_number(candidate.gap, "+"),
            role,
            "  ".join([*costs, words.format_parameters(candidate.params)]),
        )
        rows.append(row)
    head = ("trial", "search", "re-evaluation", "gap", "", "hyperparameters")
    return PageTable(head, rows, text_columns=(4, 5))


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
    better = "Lower"
    if axis.sign > 0:
        better = "Higher"
    figure = draw_figure(figures.draw_history, trials, marked, axis, result, snapshot.live_trials)
    yield make_section("search", [figure], axis=AXIS_NOTES[axis.scale], better=better)
    figure = draw_figure(figures.draw_curves, trials, marked, axis, snapshot.live_trials)
    yield make_section("curves", [figure], best=figures.MOST_BEST, latest=figures.MOST_LATEST)
    yield _render_losses(snapshot, winner_trial)


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


MOST_SLICES = 24  # figures of one hyperparameter each, of the most important ones
MOST_COLUMNS = 100  # of the table of trials; 2,000 hyperparameters took 200 MB


@dataclass(frozen=True)
class RankedParameters:
    """The hyperparameters of a search, and how much they matter.

    Args:
        names: those that varied, the most important for the metric first.
        by_objective: the importances for each objective, for the metric first.
    """

    names: Sequence[str]
    by_objective: Sequence[Importances]

    @property
    def shares(self) -> Mapping[str, float]:
        """The importances for the metric."""
        return self.by_objective[0].shares


def rank_parameters(stored: StoredStudy) -> RankedParameters:
    """Computes the importances of a study's hyperparameters, and sorts those that varied."""
    by_objective = [compute_importances(stored, place) for place in range(len(stored.objectives))]
    shares = by_objective[0].shares
    names = find_varied_parameters(figures.complete_trials(stored.trials()), figures.ENOUGH)
    names.sort(key=lambda name: -shares.get(name, 0.0))
    return RankedParameters(names, by_objective)


def render_parameters(
    stored: StoredStudy,
    best: FrozenTrial | None,
    axis: Axis,
    parameters: RankedParameters,
) -> Iterator[Section]:
    """Renders the importances of hyperparameters for each objective, and their effects."""
    for position, objective in enumerate(stored.objectives):
        computed = parameters.by_objective[position]
        block: Block = page.Bars([*computed.shares.items()])
        if not computed.shares:
            block = Absent(words.explain_no_importances(computed))
        section = make_section("importances", [block])
        if len(stored.objectives) > 1:
            section = replace(section, title=f"What matters for {objective.name}")
        if position > 0:
            section = replace(section, key=f"importances-{position}")
        yield section
    trials = stored.trials()
    names = parameters.names[:MOST_SLICES]
    yield make_section("slices", [draw_figure(figures.draw_slices, trials, names, best, axis)])
    yield make_section("together", [draw_figure(figures.draw_pair, trials, names, axis)])


# The table of all trials

# The titles of columns of `trial_tables`, where they differ from the name of the column.
COLUMN_TITLES = {
    "standard_error": "± error",
    "proposed_by": "proposed by",
    "seconds": "time",
    "reason": "why",
}
LONGEST = 60  # characters of a cell


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
    columns = dict(zip(table.columns, zip(*table.cells, strict=True), strict=True))
    ranked = _rank_parameter_columns(columns, shares)
    parameters = ranked[:MOST_COLUMNS]
    values = [name for name in columns if name.partition(".")[0] in ("value", "values")]
    shown_columns = {}
    for name in (
        *values,
        "standard_error",
        "epochs",
        *parameters,
        "proposed_by",
        "seconds",
        "reason",
    ):
        if any(cell is not None for cell in columns[name]):
            shown_columns[name] = columns[name]

    trials = {trial.number: trial for trial in stored.trials()}
    logs: Mapping[int, str] = {}
    if run_dir is not None:
        logs = read_logs(run_dir, [*trials.values()])
    rows = []
    for position, number in enumerate(columns["number"]):
        marks = []
        if number == winner_number:
            marks.append("winner")
        if snapshot.best is not None and number == snapshot.best.number:
            marks.append("best")
        if columns[attributes.BASELINE][position]:
            marks.append(attributes.BASELINE)
        trial = trials[number]
        row = page.Row(
            number=number,
            state=shown_state(trial, snapshot.live_trials),
            cells=[_make_cell(name, cells[position]) for name, cells in shown_columns.items()],
            mark=", ".join(marks),
            more=trial_details(trial, logs.get(number, ""), snapshot.live_trials),
        )
        rows.append(row)

    titles = _title_columns(values, ranked, snapshot.metric)
    head = []
    for name, cells in shown_columns.items():
        full_name = ""
        if name in ranked:
            full_name = name.removeprefix("params.")
        has_text = any(isinstance(cell, str | bool | list) for cell in cells)
        head.append(page.Column(titles.get(name, name), is_text=has_text, parameter=full_name))
    section = make_section("trials", [page.Trials(head, rows)])
    if len(parameters) < len(ranked):
        note = (
            f"Of {len(ranked)} hyperparameters the {len(parameters)} most important are shown; "
            "studyloom trials --csv has all."
        )
        section = replace(section, caption=f"{section.caption} {note}")
    return section


def _rank_parameter_columns(
    columns: Mapping[str, Sequence[object]], shares: Mapping[str, float]
) -> list[str]:
    """Returns the columns of hyperparameters: the most important, then the fullest first."""
    share_by_column = {trial_tables.column_of(name): share for name, share in shares.items()}
    names = [name for name in columns if name.startswith("params.")]
    return sorted(
        names, key=lambda name: (-share_by_column.get(name, 0.0), columns[name].count(None))
    )


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
    return page.Cell(text, value)


def render_proposers(stored: StoredStudy, result: Result | None) -> Iterator[Section]:
    """Compares the trials of each proposer, if any, with those of the sampler."""
    numbers_by_proposer: dict[str | None, list[int]] = {None: []}  # None for the sampler
    for trial in stored.trials():
        record = TrialRecord(trial)
        proposer = record.proposer()
        if proposer or not record.is_given:
            numbers_by_proposer.setdefault(proposer, []).append(trial.number)
    if len(numbers_by_proposer) == 1:
        return
    search_values = {trial.number: trial.values[0] for trial in stored.ranked()}
    means = {}
    if result is not None:
        for candidate in result.candidates:
            if candidate.mean is not None:
                means[candidate.trial] = candidate.mean
    sampler_best = _find_best_value(search_values, numbers_by_proposer[None], stored.sign)
    rows = []
    for proposer, numbers in numbers_by_proposer.items():
        name = "sampler"
        if proposer:
            name = f"proposed by {proposer}"
        best = _find_best_value(search_values, numbers, stored.sign)
        gain = None
        if best is not None and sampler_best is not None:
            gain = stored.sign * (best - sampler_best)
        row = (
            name,
            len(numbers),
            words.format_number(best),
            words.format_number(gain, "+"),
            words.format_number(_find_best_value(means, numbers, stored.sign)),
        )
        rows.append(row)
    head = ("", "trials", "best, search", "better than the sampler's by", "best re-evaluation mean")
    yield make_section("proposers", [PageTable(head, rows, text_columns=(0,))])


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


# The sections about workers and failures

MOST_MESSAGES = 10  # of one kind of failure


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


def render_workers(stored: StoredStudy, snapshot: Snapshot) -> Iterator[Section]:
    """Renders the timeline of the workers, and the failures."""
    trials = stored.trials()
    live_trials = snapshot.live_trials
    if live_trials is None:
        live_trials = frozenset()
    note = ""
    if len(trials) > MOST_TRIALS:
        note = f" These are the latest {MOST_TRIALS} of {len(trials)} trials."
    timeline = draw_figure(figures.draw_timeline, trials[-MOST_TRIALS:], live_trials)
    yield make_section("workers", [timeline], latest=note)
    failures: list[Block] = [*_render_failures(trials)]
    if not failures:
        failures = [Absent("No trial has failed.")]
    yield make_section("failures", failures)


def _render_failures(trials: Sequence[FrozenTrial]) -> Iterator[page.Part]:
    """Yields the failures by kind, the most frequent first.

    Each message has its trials and one of their tracebacks.
    """
    for failure in count_failures(trials):
        trials_by_message = [*failure.by_reason().items()]
        blocks: list[Block] = []
        for message, failed_trials in trials_by_message[:MOST_MESSAGES]:
            numbers = ", ".join(str(trial.number) for trial in failed_trials[:MOST_MESSAGES])
            if len(failed_trials) > MOST_MESSAGES:
                numbers += ", …"
            blocks.append(Paragraph(message, "bad"))
            blocks.append(Paragraph(f"trial {numbers}", "quiet"))
            traceback = _find_traceback(failed_trials)
            if traceback is not None:
                blocks.append(page.Folded("traceback", traceback))
        further = len(trials_by_message) - MOST_MESSAGES
        if further > 0:
            blocks.append(Paragraph(f"and {further} other messages", "quiet"))
        yield page.Part(failure.kind, blocks, f"{failure.count} ×")


def _find_traceback(trials: Iterable[FrozenTrial]) -> str | None:
    """Returns the first traceback that a trial has stored; None if none has."""
    for trial in trials:
        traceback = TrialRecord(trial).traceback
        if traceback is not None:
            return str(traceback)
    return None


def render_environment(
    trials: Iterable[FrozenTrial], result: Result | None, config_text: str
) -> Section:
    """Renders the environment in which the winner was trained, or else the first trial."""
    facts: dict[str, Any] = {}
    if result is not None:
        facts |= result.environment
    if not facts:
        facts |= _find_environment(trials)
    if result is not None:
        if result.data is not None:
            facts["data"] = result.data.digest
        facts["seeds"] = [*result.seeds] or None
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
        progress: the progress of all stages, for a live report.
        run_dir: where the logs are, if known.
    """
    is_live = progress is not None
    if progress is None:
        progress = ProgressReader(stored).read()
    snapshot = progress.search
    current = progress.current
    values = figures.last_values(stored.trials()).values()
    axis = Axis.choose(stored.metric, stored.sign, values)
    winner_number = None
    if result is not None:
        winner_number = result.winner.trial
    sampled = sample_trials(stored, snapshot, winner_number)
    drawn: StoredStudy = stored  # the study with the trials that are drawn
    note = ""
    if sampled is not None:
        drawn = sampled
        note = sampled.note
    search_sections = [*_add_note(render_search(drawn, snapshot, result, axis), note)]
    first = 1  # figures that the first screen has, or that follow it directly
    if snapshot.costs:
        first = 2

    def render_sections() -> Iterator[Section]:
        """Renders the sections one after the other, when they are needed: some take seconds."""
        yield from search_sections[:first]
        yield from render_running(current)
        yield render_details(stored, snapshot, result)
        if result is not None:
            yield from render_winner(result)
            yield from render_explanations(result)
        yield from search_sections[first:]
        yield from render_proposers(stored, result)
        parameters = rank_parameters(drawn)
        trials_section = render_trials(drawn, snapshot, winner_number, parameters.shares, run_dir)
        yield from _add_note([trials_section], note)
        yield from _add_note(render_parameters(drawn, snapshot.best, axis, parameters), note)
        yield from render_workers(stored, snapshot)
        yield render_environment(stored.trials(), result, configs)

    trials = collect_trials_of_stages(stored)
    first_figure = search_sections[0].blocks[0]
    head = make_head(stored, progress, result, trials, first_figure, is_live=is_live)
    return head, render_sections()


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
        head, sections = read_report(stored, result, configs, run_dir=run_dir)
        html = page.render_report(head, sections, replay_dir)
        if draw_png is not None:
            write_whole(path.with_suffix(".png"), draw_png(head.image))
    except (StudyloomError, OSError):
        raise
    except Exception as error:  # a study that has ended does not fail because of its report
        reason = page.describe_drawing_error(error)
        raise UndrawnReport(f"{path} is not written: {reason}") from error
    write_whole(path, html.encode(errors="replace"))
    return path
