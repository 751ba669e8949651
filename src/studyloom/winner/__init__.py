"""The winner: the best trials re-evaluated with new seeds, one of them chosen, and tested once.

`winner.stages` describes how the result is made, from `candidates` by way of `stored_trainings` to
`measurement` and `evaluation`, which writes it below the run directory as winner.json, winner.yaml,
winner.pt and model_card.md.
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
    "result",
    "stages",
    "statistics",
    "stored_trainings",
]
