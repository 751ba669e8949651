"""The winner: the best trials re-evaluated with new seeds, one of them chosen, and tested once.

`winner.read_evaluation` describes how the result is made, from `candidates` by way of `stages` and
`stored_trainings` to `measurement` and `evaluation`, which writes it below the run directory as
winner.json, winner.yaml, winner.pt and model_card.md.
"""

__all__ = [
    "candidates",
    "evaluation",
    "explanation_values",
    "inputs",
    "measurement",
    "model_card",
    "predictions",
    "predictor",
    "read_evaluation",
    "result",
    "stages",
    "statistics",
    "stored_trainings",
]
