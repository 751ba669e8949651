"""What is kept of a trial: its reports, rungs, failures, files, provenance, and where time went."""

__all__ = [
    "failures",
    "files",
    "limits",
    "provenance",
    "reporter",
    "rows",
    "rungs",
    "stopwatch",
    "tracking",
]
