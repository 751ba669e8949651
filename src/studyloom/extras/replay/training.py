"""Trains the first epochs of a trial again, as its provenance says."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from omegaconf import DictConfig
from optuna import TrialPruned

from studyloom.data.training_data import TrainingData
from studyloom.definition.jobs import build_jobs
from studyloom.definition.loop import Loop, LoopObjective
from studyloom.definition.objective import NetworkObjective, Objective, Step
from studyloom.definition.run import loop_jobs
from studyloom.definition.user_functions import build_function, loop_goals, loop_limits
from studyloom.errors import ConfigError
from studyloom.extras.replay.comparison import Course
from studyloom.extras.replay.stored_trial import is_loop
from studyloom.study import failures
from studyloom.study.provenance import Provenance
from studyloom.study.stopping import Stop
from studyloom.training.steps import on_threads
from studyloom.training.trainer import Training

MOST_THREADS = 1024  # a greater number in a database is ignored


def threads(count: Any) -> AbstractContextManager[None]:
    """Runs the body with as many threads as the trial had."""
    usable = type(count) is int and 1 <= count <= MOST_THREADS
    return on_threads(count if usable else torch.get_num_threads())


class _Enough(Exception):
    """Ends a training after as many epochs as the trial has stored."""


def train_again(
    cfg: DictConfig,
    provenance: Provenance,
    data: TrainingData,
    metric: str,
    until: int | None,
    report: Callable[[int, Step], None],
) -> Course:
    """Trains the first epochs of a trial again.

    Args:
        until: how many epochs to train; if the jobs are trained in turn, those of each job count.
            None to train to the end.
        report: called with each epoch, and how many there are with it.
    """
    objective = _make_objective(cfg, provenance, data)
    value, failure, count = None, None, 0

    def take(step: Step | None) -> None:
        nonlocal count
        assert step is not None  # nothing is stored
        if is_loop(cfg) and objective.stride > 1 and step.number % objective.stride == 0:
            return  # the end of a job
        count += 1
        report(count, step)
        if count == until:
            raise _Enough

    try:
        value = objective.run(take, Stop())
    except ConfigError:
        raise
    except (_Enough, TrialPruned):
        pass
    except Exception as error:  # as in the trial
        failure = failures.explain(error)
    columns = objective.curves()
    curve = {metric: columns.get("value", ()), **columns}
    return Course(curve, failure, value)


def _make_objective(cfg: DictConfig, provenance: Provenance, data: TrainingData) -> Objective:
    if is_loop(cfg):
        calls = loop_jobs(cfg, data, provenance.seed)
        loop = Loop(build_function(cfg.objective), cfg, loop_goals(cfg), loop_limits(cfg))
        return LoopObjective(loop, calls)
    assert data.split is not None
    jobs = build_jobs(cfg, data.folds, provenance.seed)
    threads_now = torch.get_num_threads()  # as many as the trial had
    in_turn = provenance.in_turn
    return NetworkObjective(Training(jobs, data.split, in_turn=in_turn, threads=threads_now))
