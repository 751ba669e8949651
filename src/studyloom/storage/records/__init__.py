"""Optuna's tables and the ledger are two records of one truth.

What each says of studies, trials and slots, in what they differ, and how that is mended.
"""

__all__ = ["compare", "heads", "leases", "reconcile", "slots", "standings", "studies"]
