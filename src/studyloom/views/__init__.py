"""Views: a snapshot of a study, and how it is shown.

In the terminal, live and at the end, as `studyloom status`, as report.html with its figures, and as
a page that follows the study, with optuna-dashboard beside it.
"""

__all__ = [
    "comparison",
    "dashboard",
    "doctor",
    "figures",
    "page",
    "progress",
    "report",
    "snapshot",
    "terminal",
]
