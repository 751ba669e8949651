"""Loads a winner that `track.mlflow.register` has registered, for `mlflow.pyfunc.load_model`.

Nothing that the model holds is executed, and its config may only name networks of studyloom and
torch. For your own networks use `studyloom.load_winner(folder, trust=[…])`.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studyloom.errors import PredictError
from studyloom.winner.predictor import Predictor, read_winner_files


class Served:
    """The model that MLflow calls to predict.

    Args:
        predictor: predicts with the winner's network.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> NDArray[Any]:
        """Predicts classes, as int64 (n,), or numbers, as float32 (n, outputs).

        Args:
            model_input: an array (n, *shape), or a table whose rows are flattened inputs.
            params: ignored; MLflow passes them.
        """
        numbers = np.asarray(model_input)
        is_table = hasattr(model_input, "columns")  # of pandas
        if is_table:
            numbers = numbers.reshape(-1, *self.predictor.shape)
        prediction = self.predictor.predict(numbers)
        if prediction.classes is not None:
            return prediction.classes.numpy()
        assert prediction.values is not None
        return prediction.values.numpy()


def _load_pyfunc(path: str) -> Served:
    files = read_winner_files(Path(path))
    if files.is_of_loop:
        raise PredictError(f"{path}: holds what a loop kept; studyloom.load_winner loads it")
    return Served(Predictor(files.network()))
