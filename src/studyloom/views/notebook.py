"""A study in a notebook, as HTML without script or colors of the text."""

import os
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from studyloom.storage.stored_study import StoredStudy
from studyloom.text import html_table
from studyloom.views import snapshot as snapshots
from studyloom.views.drawing import svg
from studyloom.views.figures import Chart
from studyloom.views.report import read_report
from studyloom.winner.result import Candidate, Result, RunFiles, Summary

COLUMNS = ("", "trial", "in the search", "re-evaluation", "test", "hyperparameters")


def study_html(stored: StoredStudy, run_dir: Path | None, result: Result | None) -> str:
    """Shows a study: its result in a sentence, notable trials, and the first figure of its report.

    Args:
        run_dir: the folder with its report; None if it is unknown.
        result: the result in that folder, if there is one.
    """
    top, sections = read_report(stored, RunFiles(result))
    first = (block for each in sections if each.key in ("front", "search") for block in each.blocks)
    chart = next((block for block in first if isinstance(block, Chart)), None)
    link = ""
    if run_dir is not None and (report := run_dir / "report.html").exists():
        link = f' – <a href="{quote(os.path.relpath(report))}" target="_blank">report.html</a>'
    snapshot, figure = snapshots.take_snapshot(stored), svg(chart) if chart else ""
    table = html_table(COLUMNS, _rows(snapshot, result))
    sentence, counts = escape(top.sentence), escape(snapshot.headline)
    return f"<p><b>{sentence}</b></p>{table}{figure}<p>{counts}{link}</p>"


def _rows(snapshot: snapshots.Snapshot, result: Result | None) -> Iterator[Sequence[str]]:
    """Yields winner, best trial and baseline with their values in search, re-evaluation, test."""
    known, rows = dict[str, Candidate](), dict[str, Candidate]()
    tested = dict[str, Summary | None]()
    if result is not None:
        known = {row.name: row for row in result.candidates}
        rows = {"winner": result.winner}
        if test := result.test:
            tested = {"winner": test.winner, "baseline": test.baseline}
    for role, trial in (("best", snapshot.best), ("baseline", snapshot.baseline)):
        if trial is not None:
            costs = dict(zip(snapshot.costs, trial.values[1:], strict=False))
            own = Candidate(trial.number, trial.params, trial.values[0], costs)
            rows[role] = known.get(own.name, own)
    for role, row in rows.items():
        values = Summary(row.search_value), row.reevaluation, tested.get(role)
        search, *later = (
            "" if v is None else snapshots.format_summary(v, snapshot.metric) for v in values
        )
        cells = row.name.removeprefix("trial "), search + row.costs_words, *later
        yield role, *cells, snapshots.format_parameters(row.params)
