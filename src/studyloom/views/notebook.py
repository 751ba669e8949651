"""A study in a notebook, as HTML without script or colors of the text."""

import os
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from studyloom.storage.stored_study import StoredStudy
from studyloom.text import html_table
from studyloom.views import words
from studyloom.views.drawing import svg
from studyloom.views.figures import Chart
from studyloom.views.report import read_report
from studyloom.views.snapshot import Snapshot, take_snapshot
from studyloom.winner.result import Candidate, Result, Summary

COLUMNS = ("", "trial", "in the search", "re-evaluation", "test", "hyperparameters")


def study_html(stored: StoredStudy, run_dir: Path | None, result: Result | None) -> str:
    """Shows a study: its result in a sentence, notable trials, and the first figure of its report.

    Args:
        run_dir: the folder with its report; None if it is unknown.
        result: the result in that folder, if there is one.
    """
    top, sections = read_report(stored, result)
    first = (block for each in sections if each.key in ("front", "search") for block in each.blocks)
    chart = next((block for block in first if isinstance(block, Chart)), None)
    link = ""
    if run_dir is not None and (report := run_dir / "report.html").exists():
        link = f' – <a href="{quote(os.path.relpath(report))}" target="_blank">report.html</a>'
    snapshot = take_snapshot(stored)
    figure = "" if chart is None else svg(chart)
    table = html_table(COLUMNS, _rows(snapshot, result))
    sentence, counts = escape(top.sentence), escape(words.headline(snapshot))
    return f"<p><b>{sentence}</b></p>{table}{figure}<p>{counts}{link}</p>"


def _rows(snapshot: Snapshot, result: Result | None) -> Iterator[Sequence[str]]:
    """Yields winner, best trial and baseline with their values in search, re-evaluation, test."""
    candidates: dict[int, Candidate] = {}
    rows: dict[str, Candidate] = {}
    tests: dict[str, Summary | None] = {}
    if result is not None:
        candidates = {candidate.trial: candidate for candidate in result.candidates}
        rows["winner"] = result.winner
        if result.test is not None:
            tests = {"winner": result.test.winner, "baseline": result.test.baseline}
    for role, trial in (("best", snapshot.best), ("baseline", snapshot.baseline)):
        if trial is not None:
            costs = words.costs_of(snapshot, trial)
            searched = Candidate(trial.number, trial.params, trial.values[0], costs)
            rows[role] = candidates.get(trial.number, searched)
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
    return "" if summary is None else words.format_summary(summary, metric)
