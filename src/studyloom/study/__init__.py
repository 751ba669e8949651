"""The study: the trials of a definition, slot by slot, in the database.

A worker claims a slot, makes its trial and runs it; its Reporter stores each epoch, and renews the
claim. Decisions (promotion, the early end) are functions of what is stored.
"""

__all__ = [
    "command_record",
    "earlier_studies",
    "early_end",
    "extrapolation",
    "failures",
    "held_trial",
    "opening",
    "placement",
    "process",
    "promotion",
    "provenance",
    "reporter",
    "search",
    "slots",
    "stage",
    "stopping",
    "stored_study",
    "strategy",
    "trial_record",
    "warm_start",
    "worker",
]
