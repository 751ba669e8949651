"""Studies side by side, as `studyloom compare` shows them: differences, results and costs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from rich.console import Console
from rich.text import Text

from studyloom.config.runs import read_written
from studyloom.config.values import flatten, written_values
from studyloom.errors import ConfigError
from studyloom.storage.stored_study import StoredStudy, value_of
from studyloom.storage.trial_record import TrialRecord
from studyloom.text import format_duration, format_parameter, mask_passwords, one_line, shorten
from studyloom.views import page, trial_values, words
from studyloom.views.charts import Block, Chart, PageTable
from studyloom.views.comparison_figure import MOST_STUDIES, draw_best_lines
from studyloom.views.headline import make_headline
from studyloom.views.snapshot import Snapshot, take_snapshot
from studyloom.views.terminal_lines import align_rows
from studyloom.views.worked_time import collect_trials_of_stages, find_period, sum_worked_seconds
from studyloom.winner.result import Result

# Sections of the config that affect a search without being in the study definition.
SEARCH_SECTIONS = ("sampler", "pruner", "study", "winner", "launcher")
UNLIKE = "These studies measure different things, so that their values have no axis in common."


@dataclass(frozen=True)
class ComparedStudy:
    """A study to compare.

    Args:
        label: a short name that no other of the compared studies has.
        trials: the trials of all stages.
        settings: the study definition and the settings of the search, by key.
    """

    label: str
    run_dir: Path
    stored: StoredStudy
    snapshot: Snapshot
    result: Result | None
    trials: Sequence[FrozenTrial]
    settings: Mapping[str, Any]


def read_studies(folders_and_studies: Sequence[tuple[Path, StoredStudy]]) -> list[ComparedStudy]:
    """Reads studies to compare them.

    Args:
        folders_and_studies: the run directory of each study, and the study.

    Raises:
        ConfigError: there are fewer than two or too many studies, or one is named twice.
    """
    count = len(folders_and_studies)
    if not 2 <= count <= MOST_STUDIES:
        raise ConfigError(f"compare: takes 2 to {MOST_STUDIES} run directories; got {count}")
    folders = [folder for folder, _ in folders_and_studies]
    paths = [folder.resolve() for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"compare: {path} is named twice; name each study once")
    labels = _choose_labels(folders, [stored.name for _, stored in folders_and_studies])
    studies = []
    for label, (folder, stored) in zip(labels, folders_and_studies, strict=True):
        study = ComparedStudy(
            label=label,
            run_dir=folder,
            stored=stored,
            snapshot=take_snapshot(stored),
            result=Result.read(folder, stored),
            trials=collect_trials_of_stages(stored),
            settings=_read_settings(folder, stored),
        )
        studies.append(study)
    return studies


def _choose_labels(folders: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Returns unique labels of studies: names, or else folders, or else whole paths."""
    folder_names = [folder.name for folder in folders]
    for labels in (names, folder_names):
        if len({*labels}) == len(labels):
            return [shorten(one_line(label), 32) for label in labels]
    return [one_line(str(folder)) for folder in folders]


def _read_settings(run_dir: Path, stored: StoredStudy) -> dict[str, Any]:
    """Returns the stored definition of a study and the settings of its search, by key.

    The settings are in the config that Hydra wrote into the run directory, which may be missing.
    """
    settings = dict(stored.definition() or {})
    try:
        config = written_values(read_written(run_dir, "config.yaml"))
    except (ConfigError, OSError):
        return settings
    for name in SEARCH_SECTIONS:
        section = config.get(name)
        if isinstance(section, dict):
            settings |= dict(flatten(section, name))
    settings.pop("study.name", None)  # the label shows it
    return settings


def find_differences(studies: Sequence[ComparedStudy]) -> dict[str, list[str]]:
    """Returns the keys whose values differ, each with its value in each study.

    The value is – where a study lacks the key.
    """
    keys: set[str] = set()
    for study in studies:
        keys |= study.settings.keys()
    differences = {}
    for key in sorted(keys):
        values = []
        for study in studies:
            value = "–"
            if key in study.settings:
                value = mask_passwords(format_parameter(study.settings[key]))
            values.append(value)
        if len({*values}) > 1:
            differences[key] = [shorten(value, 60) for value in values]
    return differences


@dataclass(frozen=True)
class ComparedFacts:
    """A study: its best value, its winner on the test set, and what both cost.

    `difference` is winner minus baseline, `seconds` the time from the first start to the last end.
    Numbers are not rounded; None means unknown.
    """

    name: str
    run_dir: str
    metric: str
    best: float | None
    test: float | None
    std: float | None
    difference: float | None
    trials: int
    budget: int
    pruned: int
    failed: int
    epochs: int
    seconds: float | None
    worker_seconds: float | None


@dataclass(frozen=True)
class Comparison:
    """Studies side by side, and for each key that differs its values in their order."""

    studies: list[ComparedFacts]
    differences: Mapping[str, list[Any]]


def collect_facts(study: ComparedStudy) -> ComparedFacts:
    """Returns the results of a study and their cost."""
    test_mean = None
    test_std = None
    difference = None
    if study.result is not None and study.result.test is not None:
        test = study.result.test
        test_mean = test.winner.mean
        test_std = test.winner.std
        if test.difference is not None:
            difference = test.difference.mean
    seconds = None
    period = find_period(study.trials)
    if period is not None:
        seconds = period.seconds
    return ComparedFacts(
        name=study.stored.name,
        run_dir=str(study.run_dir),
        metric=study.stored.metric,
        best=value_of(study.snapshot.best),
        test=test_mean,
        std=test_std,
        difference=difference,
        trials=study.snapshot.done,
        budget=study.snapshot.budget,
        pruned=study.snapshot.outcomes.get("pruned", 0),
        failed=study.snapshot.outcomes.get("failed", 0),
        epochs=sum(TrialRecord(trial).epoch_count for trial in study.stored.trials()),
        seconds=seconds,
        worker_seconds=sum_worked_seconds(study.trials),
    )


def make_document(studies: Sequence[ComparedStudy]) -> dict[str, Any]:
    """Returns a comparison as a JSON document."""
    facts = [collect_facts(study) for study in studies]
    return asdict(Comparison(facts, find_differences(studies)))


def make_table(studies: Sequence[ComparedStudy]) -> PageTable:
    """Returns the studies side by side: a row for each fact, a column for each study."""
    columns = []
    for study in studies:
        facts = collect_facts(study)
        outcomes = study.snapshot.outcomes
        test = words.format_number(facts.test)
        if facts.std is not None:
            test += f" ± {words.format_number(facts.std)}"
        column = {
            "best, search": words.format_number(facts.best),
            "test": test,
            "over its baseline, test": words.format_number(facts.difference, "+"),
            "trials": words.format_done(study.snapshot),
            "begun, not ended": str(outcomes.get("paused", 0) + outcomes.get("running", 0)),
            "pruned, failed": f"{facts.pruned}, {facts.failed}",
            "epochs of the search": str(facts.epochs),
            "from first start to last end": _format_duration(facts.seconds),
            "workers trained for": _format_duration(facts.worker_seconds),
        }
        columns.append(column)
    rows = []
    for title in columns[0]:
        rows.append((title, *(column[title] for column in columns)))
    head = ("", *(study.label for study in studies))
    return PageTable(head, rows, text_columns=(0,))


def _format_duration(seconds: float | None) -> str:
    if not seconds:
        return "–"
    return format_duration(seconds)


@dataclass(frozen=True)
class _Standing:
    """The value by which a study is compared with others."""

    label: str
    value: float


def describe_lead(studies: Sequence[ComparedStudy]) -> str:
    """Says in a sentence which study found the better configuration, and by how much.

    The studies are compared on their test sets if all have been tested, or else in the search.
    """
    stored = studies[0].stored
    if not _have_same_objective(studies):
        return UNLIKE
    basis = "on the test set"
    standings = _list_standings(studies, tested=True)
    if len(standings) < len(studies):
        basis = "in the search"
        standings = _list_standings(studies, tested=False)
    if not standings:
        return "No study has a complete trial yet."
    standings.sort(key=lambda standing: -stored.sign * standing.value)
    leader = standings[0]
    value = f"{one_line(stored.metric)} {words.format_number(leader.value)}"
    sentence = f"{leader.label} leads: {value} {basis}"
    if len(standings) > 1:
        runner_up = standings[1]
        lead = words.format_number(abs(leader.value - runner_up.value))
        sentence += f", {lead} better than {runner_up.label}"
        if leader.value == runner_up.value:
            sentence = f"{leader.label} and {runner_up.label} are equal: {value} {basis}"
    if len(standings) < len(studies):
        sentence += "; the others have no complete trial yet"
    if _have_same_definition(studies):
        return f"{sentence}. They have the same definition."
    return f"{sentence}. They have different definitions."


def _list_standings(studies: Sequence[ComparedStudy], *, tested: bool) -> list[_Standing]:
    """Returns the values of the studies that have one, on the test set or in the search."""
    standings = []
    for study in studies:
        facts = collect_facts(study)
        value = facts.best
        if tested:
            value = facts.test
        if value is not None:
            standings.append(_Standing(study.label, value))
    return standings


def _have_same_objective(studies: Sequence[ComparedStudy]) -> bool:
    """Returns whether all studies optimize the same metric in the same direction."""
    objectives = {(study.stored.metric, study.stored.sign) for study in studies}
    return len(objectives) == 1


def _have_same_definition(studies: Sequence[ComparedStudy]) -> bool:
    """Returns whether all studies have the same definition."""
    definitions = set()  # as text, since a mapping is not hashable
    for study in studies:
        definitions.add(json.dumps(study.stored.definition(), sort_keys=True, default=str))
    return len(definitions) == 1


def list_winners(studies: Sequence[ComparedStudy]) -> dict[str, list[str]]:
    """Returns the hyperparameters of each winner, or of the best trial before there is one.

    Returns:
        The values in the order of the studies, by the name of the hyperparameter; – where a study
        lacks it.
    """
    params_of_studies: list[Mapping[str, Any]] = []
    for study in studies:
        params: Mapping[str, Any] = {}
        if study.result is not None:
            params = study.result.winner.params
        elif study.snapshot.best is not None:
            params = study.snapshot.best.params
        params_of_studies.append(params)
    winners: dict[str, list[str]] = {}
    for params in params_of_studies:
        for name in params:
            winners.setdefault(name, [])
    for name, cells in winners.items():
        for params in params_of_studies:
            cell = "–"
            if name in params:
                cell = shorten(format_parameter(params[name]), 60)
            cells.append(cell)
    return winners


def best_so_far(study: ComparedStudy, *, over_time: bool) -> list[tuple[float, float]]:
    """Returns the points of a curve: the best value after each trial that improved it.

    A last point repeats the best value at the end of the search.

    Args:
        over_time: whether the curve is over the seconds that workers have trained, and not over
            the number of trials.
    """
    trials = study.stored.trials()
    ended = [trial for trial in trials if trial.state.is_finished()]
    positions: dict[int, float] = {}  # of each trial on the horizontal axis, by number
    end = 0.0
    if over_time:
        ended.sort(key=lambda trial: (trial.datetime_complete or datetime.max, trial.number))
        for trial in ended:
            end += sum_worked_seconds([trial])
            positions[trial.number] = end
    else:
        # Trials are counted in the order in which they began, with those that still run: their
        # numbers have gaps where a trial was replaced.
        for trial in trials:
            end += 1
            positions[trial.number] = end
    improvements = trial_values.best_so_far(trial_values.complete_trials(ended), study.stored.sign)
    points = [(positions[trial.number], trial.values[0]) for trial in improvements]
    if points:
        _, last_value = points[-1]
        points.append((end, last_value))
    return points


def draw_curves(studies: Sequence[ComparedStudy], *, over_time: bool) -> Chart | str:
    """Draws the best value so far of each study, over its trials or the time of its workers."""
    stored = studies[0].stored
    if not _have_same_objective(studies):
        return UNLIKE
    lines = {study.label: best_so_far(study, over_time=over_time) for study in studies}
    return draw_best_lines(lines, stored.metric, stored.sign, over_time=over_time)


def render_sections(studies: Sequence[ComparedStudy]) -> list[page.Section]:
    """Returns the sections of the HTML comparison."""
    rows = [(key, *values) for key, values in find_differences(studies).items()]
    differences: Block = page.Absent("Definition and search are the same.")
    if rows:
        head = ("", *(study.label for study in studies))
        differences = PageTable(head, rows, text_columns=range(len(head)))
    over_trials = page.draw_figure(draw_curves, studies, over_time=False)
    over_time = page.draw_figure(draw_curves, studies, over_time=True)
    winners: Block = page.Absent("No study has a winner with hyperparameters yet.")
    winner_rows = [(name, *values) for name, values in list_winners(studies).items()]
    if winner_rows:
        head = ("", *(study.label for study in studies))
        winners = PageTable(head, winner_rows, text_columns=range(len(head)))
    return [
        page.make_section("found", [make_table(studies)]),
        page.make_section("winners", [winners]),
        page.make_section("differs", [differences]),
        page.make_section("over-trials", [over_trials]),
        page.make_section("over-time", [over_time]),
    ]


def render(studies: Sequence[ComparedStudy]) -> str:
    """Renders the comparison as self-contained HTML."""
    name = " · ".join(study.label for study in studies)
    sentences = [_describe(study) for study in studies]
    head = page.Head(name, describe_lead(studies), [page.Lines(sentences)])
    return page.render_report(head, render_sections(studies))


def _describe(study: ComparedStudy) -> str:
    """Describes a study in one sentence, after its label."""
    sentence = make_headline(study.snapshot, study.result)
    return f"{study.label}: {sentence}."


def write_page(studies: Sequence[ComparedStudy], path: Path) -> None:
    """Writes the comparison as HTML; raises FileError or OSError if it cannot."""
    page.write_page(path, render(studies))


def print_comparison(studies: Sequence[ComparedStudy], console: Console) -> None:
    """Prints studies side by side: which leads, the sentence of each, results and differences."""
    console.print(Text(describe_lead(studies), "bold"), soft_wrap=True)
    for study in studies:
        console.print(Text(_describe(study)), soft_wrap=True)
    table = make_table(studies)
    rows = []
    for row in (table.head, *table.rows):
        rows.append([one_line(str(cell)) for cell in row])
    no_cells = ["" for _ in studies]
    rows.append(["", *no_cells])
    rows.append(["winner, or best trial", *no_cells])
    for name, values in list_winners(studies).items():
        rows.append([f"  {one_line(name)}", *map(one_line, values)])
    rows.append(["", *no_cells])
    rows.append(["what differs", *no_cells])
    for key, values in find_differences(studies).items():
        rows.append([f"  {one_line(key)}", *map(one_line, values)])
    console.print()
    for line in align_rows(rows, text_columns=(0,)):
        console.print(Text(line), soft_wrap=True)
