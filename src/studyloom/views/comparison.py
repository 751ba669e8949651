"""`studyloom compare`: studies side by side: their differences, results and costs."""

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
from studyloom.views import figures, page, words
from studyloom.views.report import seconds_worked, trials_of_stages, wall_seconds
from studyloom.views.snapshot import Snapshot, take_snapshot
from studyloom.views.terminal import align_rows
from studyloom.winner.result import Result

# Keys of the config that Hydra wrote which affect a search without being in its definition.
DECIDES = ("sampler", "pruner", "study", "winner", "launcher")
UNLIKE = "These studies measure different things, so that their values have no axis in common."


@dataclass(frozen=True)
class Compared:
    """A study to compare: trials of all stages; settings of its definition and its search."""

    label: str
    run_dir: Path
    stored: StoredStudy
    snapshot: Snapshot
    result: Result | None
    trials: Sequence[FrozenTrial]
    settings: Mapping[str, Any]


def read_studies(found: Sequence[tuple[Path, StoredStudy]]) -> list[Compared]:
    """Reads studies to compare them.

    Raises:
        ConfigError: there are fewer than two or too many studies, or one is named twice.
    """
    folders = [folder.resolve() for folder, _ in found]
    if not 2 <= len(found) <= figures.MOST_STUDIES:
        raise ConfigError(
            f"compare: takes 2 to {figures.MOST_STUDIES} run directories; got {len(found)}"
        )
    for folder in folders:
        if folders.count(folder) > 1:
            raise ConfigError(f"compare: {folder} is named twice; name each study once")
    names = _labels([folder for folder, _ in found], [stored.name for _, stored in found])
    compared = []
    for label, (folder, stored) in zip(names, found, strict=True):
        result = Result.read(folder, stored)
        trials, settings = trials_of_stages(stored), _settings(folder, stored)
        snapshot = take_snapshot(stored)
        compared.append(Compared(label, folder, stored, snapshot, result, trials, settings))
    return compared


def _labels(folders: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Returns unique labels of studies: names, or else folders, or else whole paths."""
    for labels in (names, [folder.name for folder in folders]):
        if len({*labels}) == len(labels):
            return [shorten(one_line(label), 32) for label in labels]
    return [one_line(str(folder)) for folder in folders]


def _settings(run_dir: Path, stored: StoredStudy) -> dict[str, Any]:
    """Returns the definition of a study and its search settings, by key.

    The config that Hydra wrote is read as data; without it there is only the stored definition.
    """
    settings = dict(stored.definition() or {})
    try:
        config = written_values(read_written(run_dir, "config.yaml"))
    except (ConfigError, OSError):
        return settings
    for name in DECIDES:
        section = config.get(name)
        if isinstance(section, dict):
            settings |= dict(flatten(section, name))
    settings.pop("study.name", None)
    return settings


def differing(studies: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """Returns the keys whose values differ, with the value of each study, or – without one."""
    keys = sorted({key for study in studies for key in study.settings})
    rows = []
    for key in keys:
        values = [
            mask_passwords(format_parameter(study.settings[key])) if key in study.settings else "–"
            for study in studies
        ]
        if len({*values}) > 1:
            rows.append((key, [shorten(value, 60) for value in values]))
    return rows


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
    of: int
    pruned: int
    failed: int
    epochs: int
    seconds: float | None
    worker_seconds: float | None


@dataclass(frozen=True)
class Comparison:
    """Studies side by side, and for each key that differs its values in their order."""

    studies: list[ComparedFacts]
    differs: Mapping[str, list[Any]]


def facts(study: Compared) -> ComparedFacts:
    """Returns the results of a study and their cost."""
    snapshot, trials = study.snapshot, study.stored.trials()
    test = study.result.test if study.result else None
    return ComparedFacts(
        name=study.stored.name,
        run_dir=str(study.run_dir),
        metric=study.stored.metric,
        best=value_of(snapshot.best),
        test=test.winner.mean if test else None,
        std=test.winner.std if test else None,
        difference=test.difference.mean if test and test.difference else None,
        trials=snapshot.done,
        of=snapshot.budget,
        pruned=snapshot.outcomes.get("pruned", 0),
        failed=snapshot.outcomes.get("failed", 0),
        epochs=sum(TrialRecord(trial).epoch_count for trial in trials),
        seconds=wall_seconds(study.trials),
        worker_seconds=seconds_worked(study.trials),
    )


def document(studies: Sequence[Compared]) -> dict[str, Any]:
    """Returns a comparison as a JSON document."""
    return asdict(Comparison([*map(facts, studies)], dict(differing(studies))))


def table(studies: Sequence[Compared]) -> figures.PageTable:
    """Returns the studies side by side: a row for each fact, a column for each study."""
    columns = []
    for study in studies:
        known = facts(study)
        spread = "" if known.std is None else f" ± {words.number(known.std)}"
        column = {
            "best, search": words.number(known.best),
            "test": f"{words.number(known.test)}{spread}",
            "over its baseline, test": words.number(known.difference, "+"),
            "trials": f"{known.trials} of {known.of}",
            "pruned, failed": f"{known.pruned}, {known.failed}",
            "epochs of the search": str(known.epochs),
            "from first start to last end": _took(known.seconds),
            "workers trained for": _took(known.worker_seconds),
        }
        columns.append(column)
    rows = [(title, *(column[title] for column in columns)) for title in columns[0]]
    return figures.PageTable(("", *(study.label for study in studies)), rows, words=(0,))


def _took(seconds: float | None) -> str:
    return "–" if not seconds else format_duration(seconds)


def best_so_far(study: Compared, *, over_time: bool) -> list[tuple[float, float]]:
    """Returns the best value after each trial that improved it, and at the end."""
    trials = study.stored.trials()
    ended = [trial for trial in trials if trial.state.is_finished()]
    # Numbers have gaps, of trials that were replaced or are another program's.
    at = {trial.number: float(place) for place, trial in enumerate(trials, 1)}
    end = float(len(trials))
    if over_time:
        ended.sort(key=lambda trial: (trial.datetime_complete or datetime.max, trial.number))
        end = 0.0
        for trial in ended:
            end += seconds_worked([trial])
            at[trial.number] = end
    steps = figures.best_so_far(figures.complete_trials(ended), study.stored.sign)
    points = [(at[trial.number], trial.values[0]) for trial in steps]
    return [*points, (end, points[-1][1])] if points else []


def curves(studies: Sequence[Compared], *, over_time: bool) -> figures.Chart | str:
    """Draws the best value so far of each study, over its trials or the time of its workers."""
    (metric, sign), *others = {(study.stored.metric, study.stored.sign) for study in studies}
    if others:
        return UNLIKE
    lines = {study.label: best_so_far(study, over_time=over_time) for study in studies}
    return figures.best_lines(lines, metric, sign, over_time=over_time)


def sections(studies: Sequence[Compared]) -> list[page.Section]:
    """Returns the sections of the HTML comparison."""
    rows = [(key, *values) for key, values in differing(studies)]
    head = ("", *(study.label for study in studies))
    differs: figures.Block = page.Absent("Definition and search are the same.")
    if rows:
        differs = figures.PageTable(head, rows, words=range(len(head)))
    return [
        page.section("found", [table(studies)]),
        page.section("differs", [differs]),
        page.section("over-trials", [page.drawn(curves, studies, over_time=False)]),
        page.section("over-time", [page.drawn(curves, studies, over_time=True)]),
    ]


def render(studies: Sequence[Compared]) -> str:
    """Renders the comparison as self-contained HTML."""
    lines = [f"{study.label}: {_sentence(study)}" for study in studies]
    asked = {
        json.dumps(study.stored.definition(), sort_keys=True, default=str) for study in studies
    }
    same = (
        "They have the same definition." if len(asked) == 1 else "They have different definitions."
    )
    name = " · ".join(study.label for study in studies)
    return page.report_page(page.Head(name, same, [page.Lines(lines)]), sections(studies))


def _sentence(study: Compared) -> str:
    return f"{words.describe_study(study.snapshot, study.stored, study.result)}."


def write_page(studies: Sequence[Compared], path: Path) -> None:
    """Writes the comparison as HTML; raises FileError or OSError if it cannot."""
    page.write_page(path, render(studies))


def print_comparison(studies: Sequence[Compared], console: Console) -> None:
    """Prints studies side by side: the sentence of each, their results, and their differences."""
    for study in studies:
        console.print(Text(f"{study.label}: {_sentence(study)}"), soft_wrap=True)
    found = table(studies)
    rows = [[*map(one_line, map(str, row))] for row in (found.head, *found.rows)]
    rows += [[""] * len(found.head), ["what differs", *[""] * len(studies)]]
    for key, values in differing(studies):
        rows.append([f"  {one_line(key)}", *map(one_line, values)])
    console.print()
    for line in align_rows(rows, text_columns=(0,)):
        console.print(Text(line), soft_wrap=True)
