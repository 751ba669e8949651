"""The figures of the report, as plotly figures.

Each function returns a figure, or a sentence that says why there is nothing to draw yet.
"""

__all__ = [
    "axes",
    "curves",
    "history",
    "outlook",
    "parameters",
    "pareto",
    "plot_study",
    "predictions",
    "timeline",
]
