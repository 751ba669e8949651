"""The search: what decides how a study continues, as pure functions of the stored trials.

Every worker computes the same decision from the same database, so no worker is the master. Today
this room holds the warm start and the promotion of trials; samplers and races belong here.
"""

from studyloom import make_callable

__all__ = ["promotion", "warm_start"]

# `studyloom.search(…)` is the API, and this room has the same name.
make_callable(__name__)
