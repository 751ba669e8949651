"""A study in a notebook, as HTML that has no script and leaves the colors of texts to it."""

import os
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from studyloom.storage.stored_study import StoredStudy
from studyloom.text import html_table
from studyloom.views import words
from studyloom.views.charts import Chart
from studyloom.views.drawing import svg
from studyloom.views.page import Section
from studyloom.views.report import read_report
from studyloom.views.snapshot import Snapshot, take_snapshot
from studyloom.winner.result import Candidate, Result, Summary

COLUMNS = ("", "trial", "in the search", "re-evaluation", "test", "hyperparameters")


def render_study(stored: StoredStudy, run_dir: Path | None, result: Result | None) -> str:
    """Shows a study: its result in a sentence, notable trials, and the first figure of its report.

    Args:
        run_dir: the folder with its report; None if it is unknown.
        result: the result in that folder, if there is one.
    """
    report = read_report(stored, result)
    chart = _find_chart(report.sections)
    figure = ""
    if chart is not None:
        figure = svg(chart)
    snapshot = take_snapshot(stored)
    table = html_table(COLUMNS, _list_notable_trials(snapshot, result))
    sentence = escape(report.head.sentence)
    counts = escape(words.make_headline(snapshot))
    link = _link_report(run_dir)
    return f"<p><b>{sentence}</b></p>{table}{figure}<p>{counts}{link}</p>"


def _find_chart(sections: Iterable[Section]) -> Chart | None:
    """Returns the Pareto front or the history of the search; None before there is one."""
    for section in sections:
        if section.key in ("front", "search"):
            for block in section.blocks:
                if isinstance(block, Chart):
                    return block
    return None


def _link_report(run_dir: Path | None) -> str:
    """Returns a link to the report below a run directory; empty if there is none."""
    if run_dir is None:
        return ""
    report = run_dir / "report.html"
    if not report.exists():
        return ""
    address = quote(os.path.relpath(report))  # as the notebook server sees it
    return f' – <a href="{address}" target="_blank">report.html</a>'


def _list_notable_trials(snapshot: Snapshot, result: Result | None) -> Iterator[Sequence[str]]:
    """Yields winner, best trial and baseline with their values in search, re-evaluation, test."""
    rows: dict[str, Candidate] = {}  # by role
    candidates: dict[int, Candidate] = {}  # by trial
    tests: dict[str, Summary | None] = {}  # by role
    if result is not None:
        rows["winner"] = result.winner
        for candidate in result.candidates:
            candidates[candidate.trial] = candidate
        if result.test is not None:
            tests = {"winner": result.test.winner, "baseline": result.test.baseline}
    for role, trial in (("best", snapshot.best), ("baseline", snapshot.baseline)):
        if trial is None:
            continue
        if trial.number in candidates:
            rows[role] = candidates[trial.number]
        else:
            costs = words.map_costs(snapshot, trial)
            rows[role] = Candidate(trial.number, trial.params, trial.values[0], costs)
    for role, row in rows.items():
        search = words.format_metric(row.search_value, snapshot.metric)
        yield (
            role,
            str(row.trial),
            f"{search}{words.format_costs(row.costs)}",
            _format_summary(row.reevaluation, snapshot.metric),
            _format_summary(tests.get(role), snapshot.metric),
            words.format_parameters(row.params),
        )


def _format_summary(summary: Summary | None, metric: str) -> str:
    """Formats the values on several seeds; empty without values."""
    if summary is None:
        return ""
    return words.format_summary(summary, metric)
