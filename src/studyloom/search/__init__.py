"""The search: what decides how a study continues, as pure functions of the stored trials.

Every worker computes the same decision from the same database, so no worker is the master. Here are
the promotion of trials, the warm start, the portfolio of points that earlier studies give, when a
search has ended, and the race for the winner.
"""

from studyloom import make_callable

__all__ = [
    "earlier",
    "ending",
    "fronts",
    "placing",
    "portfolio",
    "promotion",
    "race",
    "regret",
    "warm_start",
]

# `studyloom.search(…)` is the API, and this room has the same name.
make_callable(__name__)
