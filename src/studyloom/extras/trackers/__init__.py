"""Trackers that people already use: TensorBoard, MLflow and W&B, each a view of the database.

Each writes a run of a fixed id for a trial that has ended; `projection` says what and when.
"""

from studyloom.extras.trackers.mlflow import MLflow
from studyloom.extras.trackers.projection import Tracker
from studyloom.extras.trackers.tensorboard import TensorBoard
from studyloom.extras.trackers.wandb import WandB

__all__ = ["MLflow", "TensorBoard", "Tracker", "WandB"]
