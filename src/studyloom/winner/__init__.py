"""The winner: the best trials judged again on fresh seeds, retrained, and tested once.

The stages are studies of their own in the same database, so that workers share them. The answer is
written below the run directory, and predicts.
"""

__all__ = ["answer", "evaluation", "prediction", "stages"]
