"""The winner: the best trials re-evaluated with new seeds, one of them chosen, and tested once.

`evaluation` describes the stages on the way there. `candidates`, `stages` and `stored_trainings`
are what these stages train, `measurement` tests the winner, and `assemble_result` makes the
`result` of all of it, which `views.result_files` writes below the run directory.
"""

__all__ = [
    "assemble_result",
    "candidates",
    "evaluation",
    "explanation_values",
    "inputs",
    "measurement",
    "predictions",
    "predictor",
    "result",
    "stages",
    "statistics",
    "stored_trainings",
]
