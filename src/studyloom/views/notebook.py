"""A study in a notebook, as HTML that has no script and leaves the colors of texts to it."""

import os
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from studyloom.storage.stored_study import StoredStudy
from studyloom.text import html_table, printable
from studyloom.views import words
from studyloom.views.advice import Advice
from studyloom.views.charts import Chart
from studyloom.views.drawing import svg
from studyloom.views.notable_trials import list_notable_trials
from studyloom.views.page import Section
from studyloom.views.report import read_report
from studyloom.views.snapshot import Snapshot, take_snapshot
from studyloom.winner.result import Result, Summary

COLUMNS = ("", "trial", "search", "re-evaluation", "test", "hyperparameters")


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
    searched = ""
    if report.head.searched:
        searched = f"<p>Searched: {escape(report.head.searched)}</p>"
    advice = _list_advice(report.head.advice)
    snapshot = take_snapshot(stored)
    table = html_table(COLUMNS, _list_rows(snapshot, result))
    sentence = escape(report.head.sentence)
    counts = escape(words.describe_counts(snapshot))
    link = _link_report(run_dir)
    return f"<p><b>{sentence}</b></p>{searched}{table}{figure}{advice}<p>{counts}{link}</p>"


def _list_advice(advice: Sequence[Advice]) -> str:
    """Returns what an expert would say, each in a paragraph with its line to copy."""
    paragraphs = []
    for sentence in advice:
        text = sentence.text
        if sentence.line:
            text += f" {sentence.line}"
        paragraphs.append(f"<p>{escape(printable(text))}</p>")
    return "".join(paragraphs)


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


def _list_rows(snapshot: Snapshot, result: Result | None) -> Iterator[Sequence[str]]:
    """Yields a row for each notable trial, with the cells of COLUMNS."""
    for trial in list_notable_trials(snapshot, result):
        candidate = trial.candidate
        search_value = words.format_metric(candidate.search_value, snapshot.metric)
        yield (
            trial.name,
            str(candidate.trial),
            f"{search_value}{words.format_costs(candidate.costs)}",
            _format_summary(candidate.reevaluation, snapshot.metric),
            _format_summary(trial.test, snapshot.metric),
            words.format_parameters(candidate.params),
        )


def _format_summary(summary: Summary | None, metric: str) -> str:
    """Formats the values on several seeds; empty without values."""
    if summary is None:
        return ""
    return words.format_summary(summary, metric)
