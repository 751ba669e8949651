"""The parts of a training, as the sections of a config describe them: the network, the metric, and whole jobs."""

from collections.abc import Callable, Sequence
from pkgutil import resolve_name
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from studyloom.config.build import build
from studyloom.errors import ConfigError
from studyloom.metrics import COSTS, DIRECTIONS, METRICS, Direction, Goal, Metric
from studyloom.seeds import derive
from studyloom.text import nearest
from studyloom.training.job import Job


def build_network(section: DictConfig, shape: Sequence[int], outputs: int) -> Any:
    """The network of a section, for inputs of a shape; it may call how many numbers it gives outputs, or classes."""
    return build(section, shape=tuple(shape), outputs=outputs, classes=outputs)


def build_function(objective: DictConfig) -> Callable[..., Any]:
    """The function that an objective names by `_target_`.

    Raises:
        ConfigError: there is none, or, where the primary config is from elsewhere, it is not trusted.
    """
    section = OmegaConf.create(
        {"objective": {"_target_": objective["_target_"], "_partial_": True}}
    ).objective
    function: Callable[..., Any] = build(section).func
    return function


def build_metric(objective: DictConfig) -> Metric:
    """The metric of a study: one by name, or a callable of one's own, which may say its `direction` itself.

    Raises:
        ConfigError: there is none of that name, or its direction is another than the one that is given, or unknown.
    """
    (named, _), direction = split_metric(objective), objective.direction
    if direction not in (None, *DIRECTIONS):
        raise ConfigError(
            [f"objective.direction={direction}: is neither {' nor '.join(DIRECTIONS)}"]
        )
    if isinstance(named, DictConfig):
        metric = _own_metric(named, direction)
    elif named in METRICS:
        metric = METRICS[named]
    else:
        known = f"there are {', '.join(METRICS)}, and any _target_{nearest(str(named), [*METRICS])}"
        raise ConfigError([f"objective.metric={named}: no such metric; {known}"])
    if direction not in (None, metric.direction):
        better = "more" if metric.sign > 0 else "less"
        problem = f"of objective.metric={metric.name} {better} is better, so that it is {metric.direction}d"
        raise ConfigError(
            [
                f"objective.direction={direction}: {problem}; leave the direction out, or name another metric"
            ]
        )
    return metric


def build_goals(metric: Metric, objective: DictConfig) -> tuple[Goal, ...]:
    """What the values of a trial are: the metric, and what its network costs, if that is an objective beside it."""
    return (metric, *(Goal(cost, "minimize") for cost in split_metric(objective)[1]))


def split_metric(objective: DictConfig) -> tuple[Any, Sequence[str]]:
    """What `objective.metric` says of the metric, and the quantities that are wanted small beside it.

    Raises:
        ConfigError: of several, they are no metric and a quantity that networks have before they are trained.
    """
    named = objective.metric
    if not isinstance(named, ListConfig):
        return named, ()
    quantities = ", ".join(COSTS)
    written = f"objective.metric={OmegaConf.to_container(named)}"
    if len(named) != 2:
        example = "two are a metric and what a network costs, [accuracy, parameters]"
        raise ConfigError([f"{written}: one objective is a name, {example}"])
    metric, cost = named
    if not isinstance(metric, DictConfig) and metric in COSTS:
        raise ConfigError([f"{written}: the metric comes first, and then one of {quantities}"])
    if cost not in COSTS:
        near = nearest(str(cost), [*COSTS])
        raise ConfigError(
            [f"{written}: {cost} is nothing that a network costs; there are {quantities}{near}"]
        )
    return metric, (str(cost),)


def _own_metric(section: DictConfig, direction: Direction | None) -> Metric:
    made, name = build(section), str(section["_target_"]).rpartition(".")[2]
    if not callable(made):
        raise ConfigError(
            [
                f"objective.metric: {name} gave {made!r}, which cannot be called; functions need _partial_: true"
            ]
        )
    own = (
        getattr(made, "direction", None)
        or getattr(resolve_name(section["_target_"]), "direction", None)
        or direction
    )
    if own not in DIRECTIONS:
        raise ConfigError(
            [
                f"objective.direction: {name} does not say which way it is better; set maximize or minimize"
            ]
        )
    return Metric(name, own, made)


def build_jobs(config: DictConfig, folds: Sequence[tuple[Tensor, Tensor]], seed: int) -> list[Job]:
    """The trainings of one trial: one for each fold and seed, those of one fold side by side.

    Raises:
        ValueError: from `Job`, where sizes do not fit the data.
    """
    train = config.train
    if not isinstance(train.loss, DictConfig):
        raise ConfigError(
            [f"train.loss: {train.loss!r} is not set here; choose it with loss={train.loss}"]
        )

    def model(shape: Sequence[int], outputs: int) -> Any:
        return build_network(config.model, shape, outputs)

    optimizer, schedule, loss = build(config.optimizer), build(config.scheduler), build(train.loss)
    metric = build_metric(config.objective)
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
        )
        for fold, (training, validation) in enumerate(folds)
        for repeat in range(config.objective.seeds)
    ]
