"""Trackers that people already use (TensorBoard, MLflow, W&B), told how a study goes.

A tracker is a view of the database, which has the truth. A thread of each worker tells it, so that
training never waits for it; what it was not told when a worker died, or while it was away, it is
told later, from the stored reports. It is asked first what it has, so that nothing is told twice.
Nothing in here knows Optuna: `study.trials.tracking` makes what is told from stored trials.
"""

from studyloom.extras.trackers.feed import Ending, Feed
from studyloom.extras.trackers.mlflow import MLflow
from studyloom.extras.trackers.sections import build_trackers
from studyloom.extras.trackers.tensorboard import TensorBoard
from studyloom.extras.trackers.tracker import (
    Answer,
    Known,
    Point,
    Recalling,
    TrackedStudy,
    TrackedTrial,
    Tracker,
)
from studyloom.extras.trackers.wandb import WandB

__all__ = [
    "Answer",
    "Ending",
    "Feed",
    "Known",
    "MLflow",
    "Point",
    "Recalling",
    "TensorBoard",
    "TrackedStudy",
    "TrackedTrial",
    "Tracker",
    "WandB",
    "build_trackers",
]
