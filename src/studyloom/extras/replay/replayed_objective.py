"""Makes the objective of a trial again, as its provenance says."""

import torch

from studyloom.config.study_config import StudyConfig
from studyloom.data.training_data import TrainingData
from studyloom.extras.replay.stored_trial import is_loop
from studyloom.objectives.jobs import build_jobs
from studyloom.objectives.loop import Loop, LoopObjective
from studyloom.objectives.loop_run import make_loop_jobs
from studyloom.objectives.objective import NetworkObjective, Objective
from studyloom.objectives.user_functions import (
    build_function,
    read_loop_limits,
    read_loop_objectives,
)
from studyloom.training.trainer import Training
from studyloom.worker.provenance import Provenance


def make_objective(config: StudyConfig, provenance: Provenance, data: TrainingData) -> Objective:
    """Makes the objective of a trial's configuration, on as many threads as PyTorch has now."""
    if is_loop(config):
        function = build_function(config["objective"])
        loop = Loop(function, config, read_loop_objectives(config), read_loop_limits(config))
        return LoopObjective(loop, make_loop_jobs(config, data, provenance.seed))
    assert data.split is not None
    jobs = build_jobs(config, data.folds, provenance.seed)
    training = Training(jobs, data.split, threads=torch.get_num_threads())
    return NetworkObjective(training)
