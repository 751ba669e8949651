"""Views: a snapshot of a study, and how it is shown.

A terminal shows a study while it runs and at its end, and so does `studyloom status`. A notebook
shows it as HTML. report.html has figures, and the dashboard is the same report live in the browser,
with a link to optuna-dashboard. The modules of the report are called after its parts:
`report_head`, `search_sections`, `history_figure`.
"""

__all__ = [
    "advice",
    "advice_lines",
    "axes",
    "charts",
    "comparison",
    "consoles",
    "dashboard",
    "doctor",
    "dry_run",
    "events",
    "explanations",
    "halted_study",
    "headline",
    "importances",
    "live_display",
    "notebook",
    "one_trial",
    "overview",
    "page",
    "progress",
    "progress_reader",
    "report",
    "report_requests",
    "result_files",
    "resumptions",
    "run_details",
    "run_end",
    "search_sections",
    "snapshot",
    "status",
    "terminal",
    "terminal_lines",
    "trial_details",
    "words",
]
