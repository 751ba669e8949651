"""Trackers that people already use: TensorBoard, MLflow, W&B and Trackio.

Each is a view of the database: a run of a fixed id for a trial that runs or has ended. `projection`
says what is written and when.
"""

from studyloom.extras.trackers.mlflow import MLflow
from studyloom.extras.trackers.projection import Tracker
from studyloom.extras.trackers.tensorboard import TensorBoard
from studyloom.extras.trackers.trackio import Trackio
from studyloom.extras.trackers.wandb import WandB

__all__ = ["MLflow", "TensorBoard", "Tracker", "Trackio", "WandB"]
