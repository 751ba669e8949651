"""The winner: the best trials re-evaluated with new seeds, one of them chosen, and tested once.

`winner.read_evaluation` describes how the result is made, from `candidates` by way of `stages` and
`stored_trainings` to `measurement` and `evaluation`. `views.result_files` writes it below the run
directory.
"""

__all__ = [
    "candidates",
    "evaluation",
    "explanation_values",
    "inputs",
    "measurement",
    "predictions",
    "predictor",
    "read_evaluation",
    "result",
    "stages",
    "statistics",
    "stored_trainings",
]
