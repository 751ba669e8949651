"""The figures of the pages, as charts: data that a page draws.

Each function returns a chart, or a sentence that says why there is nothing to draw yet.
"""

__all__ = [
    "axes",
    "calibration",
    "chart",
    "curves",
    "history",
    "outlook",
    "parameters",
    "pareto",
    "predictions",
    "timeline",
    "trials",
]
