"""Builds what the sections of a config describe: the network, the metric, and whole jobs."""

import functools
import inspect
from collections.abc import Callable, Sequence
from pkgutil import resolve_name
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from torch import Tensor

from studyloom.config.build import build, find_target
from studyloom.config.schema import SCHEMA
from studyloom.config.values import describe_error
from studyloom.errors import ConfigError
from studyloom.metrics import COSTS, DIRECTIONS, METRICS, Direction, Goal, Metric
from studyloom.question.parts import (
    build_groups,
    build_loss,
    build_optimizer,
    build_schedule,
    build_step,
)
from studyloom.seeds import derive
from studyloom.text import nearest
from studyloom.training.job import Job

VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def build_network(section: DictConfig, shape: Sequence[int] | None, outputs: int | None) -> Any:
    """Builds the network of a section.

    Args:
        section: with the `_target_`, whose parameter for the number of outputs may be called
            `outputs` or `classes`. A network without these parameters is not given them.
        shape: of one input, without the batch; None if it is not one tensor.
        outputs: how many numbers the network gives for an input; None if that is not known.

    Raises:
        ConfigError: the section cannot be built, or the network needs what is not known.
    """
    known = {"shape": None if shape is None else tuple(shape), "outputs": outputs}
    known["classes"] = outputs
    wanted = inspect.signature(find_target(section)).parameters
    for name, value in known.items():
        asked = name in wanted and wanted[name].default is inspect.Parameter.empty
        if value is None and asked and name not in section:
            key = "shape" if name == "shape" else "outputs"
            raise ConfigError(
                [
                    f"data.{key} must be given: {section['_target_']} takes {name}, and the first "
                    "item of the Dataset does not say it"
                ]
            )
    return build(section, **{name: value for name, value in known.items() if value is not None})


def build_function(objective: DictConfig) -> Callable[..., Any]:
    """Resolves the function that an objective names by `_target_`; does not call it.

    The section's keys that are not ours are arguments: a class is built with them, and a function
    gets them by name.

    Raises:
        ConfigError: there is no such function, or it does not take the arguments; or the primary
            config is from elsewhere, and its package is not trusted.
    """
    section = objective.copy()
    with open_dict(section):
        for name in SCHEMA.objective:
            if name != "_target_":
                section.pop(name, None)
    target = find_target(section)
    if mistakes := _argument_mistakes(section, target):
        raise ConfigError(mistakes)
    if inspect.isclass(target):
        try:
            made: Callable[..., Any] = build(section)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                [f"objective._target_={section['_target_']}: {describe_error(error)}"]
            ) from error
        return made
    with open_dict(section):
        section["_partial_"] = True
    partial: functools.partial[Any] = build(section)
    return partial if partial.args or partial.keywords else partial.func


def _argument_mistakes(section: DictConfig, target: Any) -> list[str]:
    """Finds keys beside ours that a target does not take, and those that a class lacks."""
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):  # written in C
        return []
    if not inspect.isclass(target):
        parameters = parameters[2:]  # without the configuration and the run
    names = [each.name for each in parameters if each.kind not in VARIADIC]
    given = [str(name) for name in section if not str(name).startswith("_")]
    known = [str(name) for name in SCHEMA.objective]
    mistakes = [
        f"objective.{name}: no such key; objective has {', '.join(known)}, and "
        f"{section['_target_']} takes {', '.join(names) or 'nothing else'}"
        f"{nearest(name, [*names, *known])}"
        for name in given
        if name not in names and not any(each.kind is each.VAR_KEYWORD for each in parameters)
    ]
    required = [each.name for each in parameters if each.default is each.empty]
    if inspect.isclass(target):
        mistakes += [
            f"objective.{name} must be set: {section['_target_']} needs {' and '.join(required)}"
            for name in required
            if name in names and name not in given
        ]
    return mistakes


def build_metric(objective: DictConfig) -> Metric:
    """Builds the metric of a study.

    Args:
        objective: the section, whose `metric` is one of METRICS or a callable of the user's own;
            that may have its `direction` as an attribute.

    Raises:
        ConfigError: the metric is unknown; or its direction is unknown, or is not the one that the
            section gives.
    """
    (named, _), direction = split_metric(objective), objective.direction
    if direction not in (None, *DIRECTIONS):
        raise ConfigError(
            [f"objective.direction must be {' or '.join(DIRECTIONS)}, or null; got {direction}"]
        )
    if isinstance(named, DictConfig):
        metric = _own_metric(named, direction)
    elif named in METRICS:
        metric = METRICS[named]
    else:
        options = f"there are {', '.join(METRICS)}, and any _target_"
        near = nearest(str(named), [*METRICS])
        raise ConfigError([f"objective.metric={named}: unknown metric; {options}{near}"])
    if direction not in (None, metric.direction):
        better = "more" if metric.sign > 0 else "less"
        raise ConfigError(
            [
                f"objective.direction must be {metric.direction}, since {better} {metric.name} is "
                f"better; got {direction}; leave the direction out, or choose another metric"
            ]
        )
    return metric


def build_goals(metric: Metric, objective: DictConfig) -> tuple[Goal, ...]:
    """Returns what the values of a trial are: the metric, and a cost if it is an objective too."""
    return (metric, *(Goal(cost, "minimize") for cost in split_metric(objective)[1]))


def split_metric(objective: DictConfig) -> tuple[Any, Sequence[str]]:
    """Splits `objective.metric` into the metric and the costs that are minimized beside it.

    Returns:
        The metric as the section has it, a name or a mapping with a `_target_`; and at most one of
        COSTS.

    Raises:
        ConfigError: a list is not a metric and then a cost.
    """
    named = objective.metric
    if not isinstance(named, ListConfig):
        return named, ()
    quantities = ", ".join(COSTS)
    where = f"objective.metric={OmegaConf.to_container(named)}"
    if len(named) != 2:
        raise ConfigError(
            [
                f"{where}: must be one name, or for two objectives a metric and a cost of the "
                "network, [accuracy, parameters]"
            ]
        )
    metric, cost = named
    if not isinstance(metric, DictConfig) and metric in COSTS:
        raise ConfigError([f"{where}: the metric comes first, and then one of {quantities}"])
    if cost not in COSTS:
        near = nearest(str(cost), [*COSTS])
        raise ConfigError(
            [f"{where}: the second must be a cost of the network, {quantities}; got {cost}{near}"]
        )
    return metric, (str(cost),)


def _own_metric(section: DictConfig, given: Direction | None) -> Metric:
    """Builds a metric of the user's own; its direction is an attribute of it, or the one given."""
    score, name = build(section), str(section["_target_"]).rpartition(".")[2]
    if not callable(score):
        raise ConfigError(
            [
                f"objective.metric must be a callable; {name} returned {score!r} "
                "(a function needs _partial_: true)"
            ]
        )
    direction = (
        getattr(score, "direction", None)
        or getattr(resolve_name(section["_target_"]), "direction", None)
        or given
    )
    if direction not in DIRECTIONS:
        raise ConfigError(
            [
                f"objective.direction must be {' or '.join(DIRECTIONS)}, since {name} does not say "
                f"which is better; got {'null' if direction is None else direction}"
            ]
        )
    return Metric(name, direction, score)


def build_jobs(config: DictConfig, folds: Sequence[tuple[Tensor, Tensor]], seed: int) -> list[Job]:
    """Builds the jobs of one trial: one for each fold and seed, those of one fold side by side.

    Args:
        config: of the trial.
        folds: of the data; see `data.folds.make_folds`.
        seed: of the trial, from which the seeds of its jobs descend.

    Raises:
        ConfigError: a section cannot be built.
        ValueError: from `Job`, if sizes do not fit the data.
    """
    train = config.train
    if not isinstance(train.loss, DictConfig):
        raise ConfigError(
            [f"train.loss: {train.loss!r} cannot be set here; choose it with loss={train.loss}"]
        )

    def model(shape: Sequence[int] | None, outputs: int | None) -> Any:
        return build_network(config.model, shape, outputs)

    optimizer, schedule = build_optimizer(config.optimizer), build_schedule(config.scheduler)
    loss, metric = build_loss(train.loss), build_metric(config.objective)
    groups = build_groups(config.optimizer)
    step, evaluate = build_step(train, "step"), build_step(train, "evaluate")
    return [
        Job(
            model=model,
            optimizer=optimizer,
            schedule=schedule,
            loss=loss,
            train=training,
            valid=validation,
            epochs=train.epochs,
            batch_size=train.batch_size,
            seed=derive(seed, fold, repeat),
            l1=train.l1,
            clip=train.clip,
            precision=train.precision,
            samples_per_epoch=train.samples_per_epoch,
            metric=metric,
            step=step,
            evaluate=evaluate,
            groups=groups,
            accumulate=train.accumulate,
            drop_last=train.drop_last,
            ema=train.ema,
            patience=train.patience,
            keep=train.keep,
            until=train.until,
        )
        for fold, (training, validation) in enumerate(folds)
        for repeat in range(config.objective.seeds)
    ]
