"""The report of a study: sections of blocks, which templates turn into a page.

Sections are data, so that the page that is served while a search runs can tell which of them has
changed. Templates escape whatever they are given.
"""

from studyloom.views.report.writing import render, write_report

__all__ = [
    "answer",
    "blocks",
    "environment",
    "page",
    "parameters",
    "parts",
    "render",
    "search",
    "sections",
    "trials",
    "winner",
    "workers",
    "write_report",
    "writing",
]
