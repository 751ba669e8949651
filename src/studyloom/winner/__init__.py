"""The winner: the best trials retrained on fresh seeds, one of them chosen, and tested once.

The best of 40 trials is partly luck. We retrain the top three on fresh seeds; the drop is the
selection gap. How the answer is made is described in `winner.stages`; it is written below the run
directory as winner.json, winner.yaml, winner.pt and model_card.md.
"""

__all__ = [
    "evaluation",
    "model_card",
    "predictor",
    "result",
    "stages",
    "statistics",
    "trainings",
]
