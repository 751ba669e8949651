"""From the config of a trial to its jobs: the only place where sections become objects.

A job is a network to train, or a call of a loop of the user's own. Each section is resolved to
plain values once; the functions here take those, or a section of a config as it is. They raise
ConfigError, with every mistake in it, if a section cannot be built.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LRScheduler

from studyloom.config.build import Section, build, find_target, plain
from studyloom.config.schema import SCHEMA
from studyloom.config.values import describe_error, value_at, with_values
from studyloom.data.split import Fold
from studyloom.data.training_data import Part, TrainingData
from studyloom.definition.loop import LoopJob
from studyloom.definition.rule import Condition, Cost
from studyloom.definition.scale import parse_scale, present
from studyloom.errors import ConfigError, PredictError, refuse
from studyloom.metrics import COSTS, DIRECTIONS, MEMORY, METRICS, Metric
from studyloom.seeds import derive
from studyloom.storage.attributes import OF_TRIALS
from studyloom.text import as_yaml, is_scalar, nearest
from studyloom.training.batches import make_batches
from studyloom.training.job import Job
from studyloom.training.memory import predict_memory
from studyloom.training.optimizer import ParameterGroup, TorchSchedule, freeze
from studyloom.training.scaling import Scaling
from studyloom.training.steps import apply_network

NETWORK = "objective.network"
GROUPS, INTERVAL = "groups", "interval"  # our own keys in the sections optimizer and scheduler
# PyTorch's losses of numbers, which also take classes if these are made one-hot.
OF_NUMBERS = (nn.BCELoss, nn.BCEWithLogitsLoss, nn.MSELoss, nn.MultiLabelSoftMarginLoss)
NEUTRAL = {"weights": "none", "label_smoothing": 0.0}  # what our own losses are without
WARM_UP = 5  # calls of a network before its latency is measured
TIMED = 30  # calls whose median is the latency


# Jobs of networks


def build_jobs(config: DictConfig, folds: Sequence[Fold], seed: int) -> list[Job]:
    """Builds the jobs of one trial: one for each fold and seed, those of one fold side by side.

    The seeds of the jobs descend from that of the trial.
    """
    train, objective, optimizer = map(plain, (config.train, config.objective, config.optimizer))
    if not isinstance(train["loss"], dict):
        name = train["loss"]
        raise ConfigError(f"train.loss: {name!r} cannot be set here; choose it with loss={name}")
    parts: dict[str, Any] = {
        "model": functools.partial(build_network, plain(config.model)),
        "optimizer": build_optimizer(optimizer),
        "groups": build_groups(optimizer.get(GROUPS)),
        "scaling": build_scaling(config),
        "schedule": build_schedule(plain(config.scheduler)),
        "metric": build_metric(objective),
    }
    # The keys of the section `train` are fields of a job.
    parts |= train | {"loss": build_loss(train["loss"])}
    parts |= {name: build_step(name, train[name]) for name in ("step", "evaluate")}
    return [
        Job(train=training, valid=validation, seed=derive(seed, fold, repeat), **parts)
        for fold, (training, validation) in enumerate(folds)
        for repeat in range(objective["seeds"])
    ]


def build_network(section: Section, shape: Sequence[int] | None, outputs: int | None) -> Any:
    """Builds the network of a section, which may have no parameters for shape and outputs.

    Args:
        section: its target's parameter for the number of outputs may be `outputs` or `classes`.
        shape: of one input, without the batch; None if it is not one tensor.
        outputs: how many numbers the network gives for an input; None if that is not known.
    """
    known: dict[str, Any] = {"shape": None if shape is None else tuple(shape)}
    known |= {"outputs": outputs, "classes": outputs}
    wanted = inspect.signature(find_target(section, "model")).parameters
    for name, value in known.items():
        asked = name in wanted and wanted[name].default is inspect.Parameter.empty
        if value is None and asked and name not in section:
            key = "shape" if name == "shape" else "outputs"
            raise ConfigError(
                f"data.{key} must be given: {section['_target_']} takes {name}, and the first "
                "item of the Dataset does not say it"
            )
    offered = {name: value for name, value in known.items() if value is not None}
    return build(section, "model", **offered)


def build_scaling(config: DictConfig) -> Scaling | None:
    """Returns how a network follows the rule of the section `scale`; None at its base size."""
    base = _at_base_size(config)
    return None if base is None else Scaling(functools.partial(build_network, plain(base.model)))


def _at_base_size(config: DictConfig) -> DictConfig | None:
    """Returns a config at the sizes from which the rule of `scale` counts; None if it has them."""
    scale = parse_scale(config)
    sizes = {} if scale is None else present(scale.rule_sizes, config)
    other = {key: size for key, size in sizes.items() if value_at(config, key) != size}
    return with_values(config, other) if other else None


class OneHot(nn.Module):
    """A loss of numbers that takes classes (n,) too, one-hot in the shape of the outputs."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not targets.is_floating_point():
            targets = functional.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
        result: Tensor = self.loss(outputs, targets)
        return result


def build_loss(section: Mapping[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """Builds the loss of a section: of ours, of PyTorch as it is, or of the user's own.

    For a loss of PyTorch, lists of numbers such as `weight` become tensors, and what the option of
    the group `loss` brings and has no effect is left out. Losses of numbers take classes one-hot.
    """
    target = find_target(section, "loss")
    if not (inspect.isclass(target) and target.__module__ == "torch.nn.modules.loss"):
        loss: Callable[[Tensor, Tensor], Tensor] = build(section, "loss")
        return loss
    without_effect = {key for key, value in NEUTRAL.items() if section.get(key) == value}
    accepted = inspect.signature(target).parameters
    settings = {k: v for k, v in section.items() if k in accepted or k not in without_effect}
    mistakes = [
        f"loss.{name}: {section['_target_']} has no parameter {name}; it has "
        f"{', '.join(accepted)}{nearest(name, [*accepted])}; leave it out with '~loss.{name}'"
        for name in settings
        if name not in accepted and not name.startswith("_")
    ]
    if settings.get("reduction", "mean") != "mean":
        mistakes.append(
            f"loss.reduction must be mean, since the losses of batches are averaged over examples; "
            f"got {settings['reduction']}"
        )
    refuse(mistakes)
    lists = {key: value for key, value in settings.items() if isinstance(value, list)}
    tensors = {key: torch.tensor(value, dtype=torch.float32) for key, value in lists.items()}
    made = build(settings | tensors, "loss")
    return OneHot(made) if isinstance(made, OF_NUMBERS) else made


def build_schedule(
    section: Mapping[str, Any], key: str = "scheduler"
) -> Callable[[float], float] | TorchSchedule:
    """Builds the schedule of a section: a function of progress, or a scheduler of PyTorch."""
    target = find_target(section, key)
    if not (inspect.isclass(target) and issubclass(target, LRScheduler)):
        schedule: Callable[[float], float] = build(section, key)
        return schedule
    own = {name: value for name, value in section.items() if name not in (INTERVAL, "schedulers")}
    settings = dict(build(own | {"_partial_": True}, key).keywords)
    if "schedulers" in section:
        settings["schedulers"] = [build_schedule(inner, key) for inner in section["schedulers"]]
    return TorchSchedule(target, settings, section.get(INTERVAL))


def build_step(name: str, section: Any) -> Callable[..., Any] | None:
    """Builds a step of the user's own, or returns None if there is none.

    Args:
        name: the key in `train`, step or evaluate.
    """
    if section is None:
        return None
    key = f"train.{name}"
    if inspect.isroutine(find_target(section, key)):
        section = section | {"_partial_": True}
    step: Callable[..., Any] = build(section, key)
    return step


def build_optimizer(section: Section) -> Callable[..., Any]:
    """Builds the optimizer, which waits for the parameters."""
    own = {name: value for name, value in plain(section).items() if name != GROUPS}
    make: Callable[..., Any] = build(own, "optimizer")
    return make


def build_groups(groups: Any) -> tuple[ParameterGroup, ...]:
    """Builds `optimizer.groups`, such as {head: {match: head, lr: 0.01}, body: {match: 'b*'}}."""
    example = "{head: {match: 'head.*', lr: 0.01}, body: {match: 'body.*', frozen: true}}"
    if groups is None:
        return ()
    if not isinstance(groups, Mapping):
        raise ConfigError(
            f"optimizer.groups must be a mapping of groups, such as {example}; got {groups!r}"
        )
    mistakes, built = [], []
    for name, group in groups.items():
        settings = dict(group) if isinstance(group, Mapping) else {}
        match, frozen = settings.pop("match", None), bool(settings.pop("frozen", False))
        patterns = match if isinstance(match, list) and match else [match]
        if all(isinstance(pattern, str) for pattern in patterns):
            built.append(ParameterGroup(str(name), tuple(patterns), frozen, settings))
        else:
            mistakes.append(
                f"optimizer.groups.{name}: must have match, a pattern of parameter names or a "
                f"list, as in {example}; got {group!r}"
            )
    refuse(mistakes)
    return tuple(built)


# Metrics and goals of networks


def build_metric(objective: Section) -> Metric:
    """Builds the metric of the section `objective`: one of METRICS, or the user's own."""
    objective = plain(objective)
    named, direction = split_metric(objective)[0], objective["direction"]
    if isinstance(named, Mapping):
        metric = _own_metric(named, direction)
    elif named in METRICS:
        metric = METRICS[named]
    else:
        options = f"there are {', '.join(METRICS)}, and any _target_"
        near = nearest(str(named), [*METRICS])
        raise ConfigError(f"objective.metric={named}: unknown metric; {options}{near}")
    if direction not in (None, metric.direction):
        raise ConfigError(
            f"objective.direction must be {metric.direction} for {metric.name}; got {direction}; "
            "leave the direction out, or choose another metric"
        )
    return metric


def split_metric(objective: Mapping[str, Any]) -> tuple[Any, Sequence[str]]:
    """Splits `objective.metric` into the metric, and at most one of COSTS to minimize beside it."""
    named = objective["metric"]
    if not isinstance(named, list):
        return named, ()
    if len(named) != 2 or named[0] in COSTS or named[1] not in COSTS:
        near = nearest(str(named[1]), COSTS) if len(named) == 2 else ""
        raise ConfigError(
            f"objective.metric={named}: must be one name, or for two objectives a metric and "
            f"then a cost of the network, {', '.join(COSTS)}{near}"
        )
    return named[0], named[1:]


def _own_metric(section: Mapping[str, Any], given: Any) -> Metric:
    """Builds a metric of the user's own; its direction is an attribute of it, or the one given."""
    key, name = "objective.metric", section["_target_"].rpartition(".")[2]
    target = find_target(section, key)
    try:
        score = build(section, key)
        if not callable(score):
            raise TypeError(f"{name} returned {score!r}")
        with contextlib.suppress(ValueError):  # a function written in C has no signature
            inspect.signature(score).bind(None, None)
    except TypeError as error:
        raise ConfigError(
            f"{key}={name}: {error}; a metric is called as (outputs, targets) -> number, so that "
            "a function needs _partial_: true"
        ) from error
    direction = getattr(score, "direction", None) or getattr(target, "direction", None) or given
    if direction not in DIRECTIONS:
        raise ConfigError(
            f"objective.direction must be {' or '.join(DIRECTIONS)}, since {name} does not say "
            f"which is better; got {as_yaml(direction)}"
        )
    return Metric(name, direction, score)


# What networks cost


def count_parameters(model: nn.Module, example: Any) -> float:
    """Counts the numbers that are trained; the example is not used."""
    return float(sum(weight.numel() for weight in model.parameters() if weight.requires_grad))


def count_flops(model: nn.Module, example: Any) -> float:
    """Counts the floating-point operations of one forward pass, with PyTorch's FlopCounterMode.

    A multiplication and its addition are two operations.
    """
    from torch.utils.flop_counter import FlopCounterMode  # it imports PyTorch's compiler

    with FlopCounterMode(display=False) as counter:
        apply_network(model, example)
    return float(counter.get_total_flops())


def measure_latency(model: nn.Module, example: Any) -> float:
    """Measures the milliseconds of one forward pass: the median of 30, on this worker's device."""
    on_gpu = any(parameter.device.type != "cpu" for parameter in model.parameters())

    def call() -> float:
        began = perf_counter()
        apply_network(model, example)
        if on_gpu:
            torch.accelerator.synchronize()
        return perf_counter() - began

    for _ in range(WARM_UP):
        call()
    return 1e3 * median(call() for _ in range(TIMED))


# Called with a network in eval mode, and a batch of one example on its device. MEMORY is that of a
# training, and not of a call.
MEASURES: dict[str, Callable[[nn.Module, Any], float]] = {
    "parameters": count_parameters,
    "flops": count_flops,
    "latency_ms": measure_latency,
}


@torch.inference_mode()
def measure_costs(
    quantities: Collection[str],
    limits: Sequence[Condition],
    job: Job,
    split: Part,
    together: int = 1,
) -> list[Cost]:
    """Measures what a job's network costs on the first example of a part, limited costs first.

    The random state stays as it is. A network that takes more memory than it may is not brought to
    its device, and its other costs stay unknown.

    Args:
        quantities: to measure beside those that have a limit; of COSTS.
        together: how many such jobs are trained in lockstep.
    """
    limit_of = {limit.name: limit for limit in limits}
    names = dict.fromkeys([*limit_of, *quantities])
    costs = []
    if MEMORY in names:
        costs = [Cost(MEMORY, predict_memory(job, split, together), limit_of.get(MEMORY))]
        if costs[0].excess > 0:
            return costs
    with torch.random.fork_rng(devices=[]):
        model = job.model(shape=split.shape, outputs=split.outputs).to(split.device).eval()
        freeze(model, job.groups)
        batches = make_batches(job, split)
        batches.fit(model)
        example = next(batches.part(torch.zeros(1, dtype=torch.int64, device=split.device)))[0]
        measured = {name: MEASURES[name](model, example) for name in names if name != MEMORY}
    return [*costs, *(Cost(name, cost, limit_of.get(name)) for name, cost in measured.items())]


# Loops of the user's own


def build_function(objective: Section) -> Callable[..., Any]:
    """Resolves the function that an objective names by `_target_`; does not call it.

    The section's keys that are not ours are arguments: a class is built with them, and a function
    gets them by name.
    """
    ours = [name for name in SCHEMA.objective if name != "_target_"]
    section = {name: value for name, value in plain(objective).items() if name not in ours}
    target = find_target(section, "objective")
    try:
        if inspect.isclass(target):
            made: Callable[..., Any] = build(section, "objective")
            return made
        partial: functools.partial[Any] = build(section | {"_partial_": True}, "objective")
        inspect.signature(target).bind_partial(*partial.args, **partial.keywords)
    except ConfigError:
        raise
    except Exception as error:
        words = f"objective._target_={section['_target_']}: {describe_error(error)}"
        raise ConfigError(words) from error
    return partial if partial.args or partial.keywords else partial.func


def named_params(function: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Returns what a loop `(run, *, width=32, …)` takes from `params`.

    Returns:
        The default of each name, `inspect.Parameter.empty` without one; and whether any further
        name will do.
    """
    given = getattr(function, "keywords", {})  # in the section `objective`
    _, *parameters = inspect.signature(function).parameters.values()
    named = {
        each.name: each.default
        for each in parameters
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) and each.name not in given
    }
    return named, any(each.kind == each.VAR_KEYWORD for each in parameters)


def is_plain(value: Any) -> bool:
    """Whether YAML gives back a value as it is: a scalar, or lists and mappings of them."""
    if isinstance(value, list | dict):
        return all(map(is_plain, value.values() if isinstance(value, dict) else value))
    return is_scalar(value) and str(value) != "nan" and "${" not in str(value)


def build_named(named: Any, key: str = "objective.test") -> Callable[..., Any]:
    """Returns the function that a key names, by a dotted name or as a section."""
    named = named[kept] if key == NETWORK and (kept := kept_name(named)) else named
    section = plain(named) if isinstance(named, Mapping) else {"_target_": named}
    function: Callable[..., Any] = build(section | {"_partial_": True}, key)
    return function


def kept_name(named: Any) -> str | None:
    """Returns the name in `run.keep` of the network that `objective.network` makes.

    Args:
        named: what makes it; or {name: what makes it}, where a loop keeps several networks.

    Returns:
        None for the only network that the loop keeps.
    """
    single = isinstance(named, Mapping) and len(named) == 1 and "_target_" not in named
    return next(iter(named)) if single else None


def network_of(make: Any, config: DictConfig, **known: Any) -> nn.Module:
    """Returns the network of a loop at a config.

    Args:
        make: the network, or what makes it of those of `params`, `known` and `config` that its
            signature names.

    Raises:
        ConfigError: it makes no network of these.
    """
    try:
        if not isinstance(make, nn.Module):
            offered = {"config": config} | known | (value_at(config, "params") or {})
            names = inspect.signature(make).parameters
            make = make(**{name: offered[name] for name in names if name in offered})
        if not isinstance(make, nn.Module):
            raise TypeError(f"it must give a torch.nn.Module; got {type(make).__name__}")
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"{NETWORK}: {describe_error(error)}") from error
    return make


def loop_scaling(config: DictConfig, known: Mapping[str, Any]) -> Scaling | None:
    """Returns how the network of a loop follows the rule of `scale`; None at its base size.

    Args:
        known: of the data, for `objective.network`.
    """
    if (base := _at_base_size(config)) is None:
        return None
    make = build_named(config.objective.network, NETWORK)
    return Scaling(lambda shape, outputs: network_of(make, base, **known))


def weights_of(states: Mapping[str, Any], name: str | None) -> dict[str, Tensor]:
    """Returns the weights of a network among the states that a loop has kept.

    Args:
        name: by which the loop keeps it; None for the only one.

    Raises:
        PredictError: it has kept no network, or none of that name, or several.
    """
    networks: dict[str, Any] = {
        kept: state
        for kept, state in states.items()
        if isinstance(state, Mapping) and state and all(map(torch.is_tensor, state.values()))
    }
    if not networks:
        raise PredictError(
            "nothing that could predict was kept of the winner; winner.yaml has its configuration. "
            "A training loop keeps its network by run.keep(net=net); a command, a Hydra app and an "
            "Optuna objective save and load theirs themselves"
        )
    if name is None and len(networks) == 1:
        (name,) = networks
    if name not in networks:
        raise PredictError(
            f"{NETWORK} must say which network of run.keep predicts, {' or '.join(networks)}: set "
            f"{NETWORK}={{NAME: mine.Net}}, or call load_winner(RUN_DIR, network={{'NAME': Net}})"
        )
    weights: dict[str, Tensor] = networks[name]
    return weights


def named_goals(objective: Section) -> list[tuple[str, Any]]:
    """Returns the names and directions of what a loop returns, the metric first."""
    objective = plain(objective)
    names, directions = (
        value if isinstance(value, list) else [value]
        for value in (objective["metric"], objective["direction"])
    )
    if not names or not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
        raise ConfigError(
            "objective.metric must be a name for the value, or a list of different names, since "
            f"the function returns the values themselves; got {objective['metric']}"
        )
    if len(directions) != len(names) or any(value not in DIRECTIONS for value in directions):
        each = f", for each of {', '.join(names)}" if len(names) > 1 else ""
        raise ConfigError(
            f"objective.direction must be {' or '.join(DIRECTIONS)}{each}, since a function "
            f"does not say which is better; got {as_yaml(objective['direction'])}"
        )
    check_names("objective.metric", names[1:])
    return [*zip(names, directions, strict=True)]


def check_names(key: str, names: Sequence[str]) -> None:
    """Raises ConfigError if a cost has the name of something else that is stored with a trial."""
    taken = [name for name in names if name in OF_TRIALS]
    refuse([f"{key}: {name} is a name of ours; choose another" for name in taken])


def loop_jobs(config: DictConfig, data: TrainingData, seed: int) -> list[LoopJob]:
    """Returns the jobs of a trial: one for each fold and seed.

    The seed of the trial is that of a single job; those of several descend from it.
    """
    folds: Sequence[Fold | None] = data.folds or [None]
    seeds = config.objective.seeds
    single = len(folds) == seeds == 1
    return [
        loop_job(data, fold, position, seed if single else derive(seed, position, repeat))
        for position, fold in enumerate(folds)
        for repeat in range(seeds)
    ]


def loop_job(data: TrainingData, fold: Fold | None, position: int, seed: int) -> LoopJob:
    """Returns the call of a loop with one fold, if there are data, and one seed."""
    if fold is None or data.split is None:
        return LoopJob(position, seed)
    split, (training, validation) = data.split, fold
    return LoopJob(
        position, seed, lambda: (split.part(training, to_train=True), split.part(validation))
    )
