"""Views: a snapshot of a study, and how it is shown.

Live and at the end in the terminal, by `studyloom status`, in a notebook, as report.html with
figures, and as a live report in the browser, with a link to optuna-dashboard.
"""

__all__ = [
    "comparison",
    "dashboard",
    "doctor",
    "dry_run",
    "events",
    "explanations",
    "figures",
    "notebook",
    "page",
    "progress",
    "report",
    "result_files",
    "snapshot",
    "terminal",
    "words",
]
