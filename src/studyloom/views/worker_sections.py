"""The sections of a report about workers: what they run, when they trained, in what environment."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from optuna.trial import FrozenTrial

from studyloom.storage.stored_study import StoredStudy
from studyloom.storage.trial_record import TrialRecord
from studyloom.views import page, words
from studyloom.views.charts import Block, PageTable
from studyloom.views.sampled_study import MOST_TRIALS
from studyloom.views.snapshot import Snapshot
from studyloom.views.timeline_figure import draw_timeline
from studyloom.winner.result import Result


def render_running(snapshot: Snapshot) -> Iterator[page.Section]:
    """Renders what runs now: each worker's trial, epoch, value and hyperparameters."""
    rows = []
    for worker in snapshot.workers:
        texts = words.describe_worker(worker)
        lease = ""
        if not worker.is_alive:
            lease = texts.lease
        parameters = ""
        if worker.trial is not None:
            parameters = words.format_parameters(worker.params)
        row = (worker.owner, texts.trial, texts.epoch, texts.value, lease, parameters)
        rows.append(row)
    if rows:
        head = ("worker", "trial", "epoch", snapshot.metric, "", "hyperparameters")
        yield page.make_section("running", [PageTable(head, rows, text_columns=(0, 4, 5))])


def render_workers(stored: StoredStudy, snapshot: Snapshot) -> page.Section:
    """Renders the timeline of the workers."""
    trials = stored.trials()
    live_trials = snapshot.live_trials
    if live_trials is None:
        live_trials = frozenset()
    note = ""
    if len(trials) > MOST_TRIALS:
        note = f" These are the latest {MOST_TRIALS} of {len(trials)} trials."
    timeline = page.draw_figure(draw_timeline, trials[-MOST_TRIALS:], live_trials)
    return page.make_section("workers", [timeline], latest=note)


def render_environment(
    trials: Iterable[FrozenTrial], result: Result | None, config_text: str
) -> page.Section:
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
    config: Block = page.Absent("No configuration was found.")
    if config_text.strip():
        config = page.Folded("configuration", config_text)
    return page.make_section("environment", [block, config])


def _find_environment(trials: Iterable[FrozenTrial]) -> Mapping[str, Any]:
    """Returns the first environment that a trial has stored; empty if none has."""
    for trial in trials:
        environment = TrialRecord(trial).provenance.get("environment")
        if isinstance(environment, dict):
            return environment
    return {}
