"""The search: what decides where to go on, as pure functions of the stored trials.

Any worker computes the same from the same database, so that nobody is the master. Today it holds
the warm start; samplers, pruners and races of our own belong here.
"""

__all__ = ["warm_start"]
