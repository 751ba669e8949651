"""Loops: questions that a loop of the user's own answers, and what such a loop is given.

The objective that calls it for each fold and seed, the `run` that it holds, and its reports.
"""

__all__ = ["function", "loop", "reports", "run"]
