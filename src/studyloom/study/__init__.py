"""The study: the trials of a definition, slot by slot, in the database.

A worker claims a slot, makes its trial and runs it; its Reporter stores each epoch, and renews the
claim. Decisions (promotion, the early end) are functions of what is stored.
"""

__all__ = [
    "asha",
    "command_record",
    "earlier_studies",
    "early_end",
    "extrapolation",
    "failures",
    "gaussian_process",
    "held_trial",
    "opening",
    "placement",
    "provenance",
    "redo",
    "reporter",
    "rounds",
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
