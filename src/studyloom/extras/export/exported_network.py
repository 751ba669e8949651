"""The network that variants are made of, with the job that trained it.

Smaller networks are pruned, or built narrower; both are taught by the original.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor, nn
from torch.nn import functional

from studyloom.data import Split
from studyloom.data.examples import Part
from studyloom.extras.export.export_errors import CompressError
from studyloom.objectives.jobs import build_network
from studyloom.objectives.loop import Unstopped
from studyloom.objectives.objective import Attempt
from studyloom.objectives.user_functions import kept_name, weights_of
from studyloom.seeds import derive
from studyloom.storage.stored_study import FINAL_TRAINING
from studyloom.training.batches import find_input_dtype
from studyloom.training.checkpoint import load_weights
from studyloom.training.job import Job
from studyloom.training.trainer import Training
from studyloom.winner.predictions import make_network
from studyloom.winner.read_evaluation import Evaluation

TEMPERATURE = 4.0  # of the softened outputs
SHARE = 0.5  # of the teacher's outputs in the loss; the rest is that of the targets
OF_LABELS = (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)
LEAST = 8  # an argument from here on may be a width; smaller ones are mostly depths and heads


@dataclass(frozen=True)
class Original:
    """A trained network, and what others are made of it with.

    Attributes:
        network: on the CPU.
        job: that trained it.
        part: the examples, on the device to train on.
        section: `model` of the config.
        seed: of the examples that set the ranges of int8, `calibration` in number.
    """

    network: nn.Module
    job: Job
    part: Part
    section: Any
    seed: int
    calibration: int

    @classmethod
    def retrained(cls, evaluation: Evaluation, calibration: int) -> "Original":
        """Trains the winner's configuration without a validation set, always the same one."""
        data, definition = evaluation.study.data, evaluation.study.definition
        winner = evaluation.winner
        assert winner is not None
        assert evaluation.candidates is not None
        point = evaluation.candidates[winner].point
        assert data.split is not None
        assert data.source is not None
        # No other path of a study has this length and end; see CandidateTrainings.new_seed.
        seed, count = derive(definition.seed, 0, 0, 2), definition.config.objective.folds
        fold = data.split.folds(count, data.source.validation, seed)[-1]
        job = definition.job(point, fold, seed)
        if definition.trains_networks:
            network = train_network(job, data.split)
        else:
            attempt = Attempt(stage=FINAL_TRAINING)
            made = definition.make_objective(point, winner.trial, data, attempt, seed, fold)
            made.run(lambda step: None, Unstopped())
            network = _network_of(made.weights() or {}, job, evaluation)
        section = definition.at(point).get("model")
        return cls(network, job, data.split, section, seed, calibration)

    @classmethod
    def of_winner(cls, evaluation: Evaluation, calibration: int) -> "Original":
        """Loads the winner, with the job that trained it on all training data."""
        study, winner, part = evaluation.study, evaluation.winner, evaluation.study.data.split
        assert winner is not None
        assert evaluation.trained is not None
        assert part is not None
        trainings = evaluation.trained.source
        job, config = trainings.job(winner, 0), study.definition.at(trainings.candidates[winner])
        network = _network_of(load_weights(study.run_dir / "winner.pt"), job, evaluation)
        seed = trainings.new_seed(0)
        return cls(network, job, part, config.get("model"), seed, calibration)

    @cached_property
    def inputs(self) -> Tensor:
        """Training examples, in the type that the network takes."""
        count = min(self.calibration, len(self.job.train))
        drawn = torch.randperm(
            len(self.job.train), generator=torch.Generator().manual_seed(self.seed)
        )[: max(2, count)]
        rows = [self.part.input_at(int(self.job.train[at])) for at in drawn]
        return torch.stack([row for row in rows if row is not None]).cpu().to(self.dtype)

    @cached_property
    def dtype(self) -> torch.dtype:
        """In which the network takes inputs."""
        if isinstance(self.part, Split):
            return find_input_dtype(self.job, self.network, self.part)
        whole = str(self.part.kind).startswith("int")
        return torch.int64 if whole else torch.float32

    def train(self, make: Callable[[], nn.Module]) -> nn.Module:
        """Trains a network as the original was, also to imitate the original's outputs.

        The schedule starts again, which is as good as any other (Renda et al. 2020,
        arXiv:2003.02389).

        Args:
            make: returns the network on the CPU, the same at every call.
        """
        step = distillation(self.network, self.dtype, meaning_of(self.job, self.part))
        job = replace(self.job, model=lambda shape, outputs: make(), step=step)
        return train_network(job, self.part)

    def pruned(self, ratio: float) -> nn.Module:
        smaller = prune(self.network, self.inputs[:2], ratio)
        return self.train(lambda: deepcopy(smaller))

    def student(self, width: float) -> nn.Module:
        build = partial(build_network, shape=self.part.shape, outputs=self.part.outputs)
        section, _ = narrow(self.section, width, build)
        return self.train(lambda: build(section))


def _network_of(kept: dict[str, Any], job: Job, evaluation: Evaluation) -> nn.Module:
    """Makes the network of a job with what its training has kept, in eval mode."""
    definition, part = evaluation.study.definition, evaluation.study.data.split
    assert part is not None
    if not definition.trains_networks:
        kept = weights_of(kept, kept_name(definition.config.objective.network))
    return make_network(job, kept, part).eval()


def train_network(job: Job, part: Part) -> nn.Module:
    """Trains a job to its end.

    Returns:
        the network in eval mode, on the CPU.

    Raises:
        Diverged: its loss is not finite.
    """
    training = Training([job], part)
    with closing(training):
        for _ in training:
            pass
    return make_network(job, training.weights()[0], part).cpu().eval()


def prune(network: nn.Module, inputs: Tensor, ratio: float) -> nn.Module:
    """Returns a network without a share of its channels and units, those with the smallest norm.

    Whole channels go, in every layer the same share, and with them what reads them: zeros among the
    weights would leave file and latency unchanged. Source: Li et al. 2017 (arXiv:1608.08710), by
    the dependencies of Fang et al. 2023 (arXiv:2301.12900), which `torch-pruning` finds.

    Args:
        network: on the CPU; it is not changed.
        inputs: some examples, in the type that it takes.
        ratio: the share, above 0 and below 1.

    Raises:
        CompressError: no layer can be pruned, or the library does not know a layer.
    """
    import torch_pruning

    pruned = deepcopy(network).eval()
    layers = [m for m in pruned.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    if not layers:
        raise CompressError("it has no layer whose channels can be pruned")
    before = count_parameters(pruned)
    try:
        torch_pruning.pruner.MagnitudePruner(
            pruned,
            inputs,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=layers[-1:],  # whose channels are the outputs
        ).step()
        pruned(inputs)
    except Exception as error:  # what the library raises of a layer that it does not know
        raise CompressError(f"it cannot be pruned: {type(error).__name__}: {error}") from error
    if count_parameters(pruned) == before:
        raise CompressError(f"nothing of it can be pruned at a ratio of {ratio:g}")
    return pruned


def narrow(
    section: DictConfig, width: float, build: Callable[[DictConfig], nn.Module]
) -> tuple[DictConfig, list[str]]:
    """Returns the section of a narrower network, and which of its arguments are smaller.

    An argument is a width if it is an integer of at least 8, or a list of such, and half of it
    gives a network with fewer parameters.

    Args:
        width: the share of each width that is left.
        build: builds the network of a section.

    Raises:
        CompressError: no argument is a width.
    """
    whole = count_parameters(build(section))
    narrower, changed = section.copy(), []
    for key, value in _widths(section):
        trial = section.copy()
        trial[key] = _scaled(value, 0.5)
        try:
            is_width = count_parameters(build(trial)) < whole
        except Exception:  # half of it is refused, so it is not a width
            is_width = False
        if is_width:
            narrower[key] = _scaled(value, width)
            changed.append(f"{key}={narrower[key]}")
    if not changed:
        raise CompressError("no argument of model is a width, so that there is no narrower student")
    return narrower, changed


def _widths(section: DictConfig) -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        values = list(value) if isinstance(value, ListConfig) else [value]
        if values and all(type(each) is int and each >= LEAST for each in values):
            yield str(key), value


def _scaled(value: Any, share: float) -> Any:
    if isinstance(value, int):
        return max(1, round(value * share))
    return [max(1, round(each * share)) for each in value]


def distillation(teacher: nn.Module, dtype: torch.dtype, meaning: str) -> Callable[..., Any]:
    """Returns a step that learns from the targets and from what a network says of the inputs.

    Source: Hinton et al. 2015 (arXiv:1503.02531), whose softened outputs of classes these are.
    Labels, as probabilities, and numbers are learned by the loss of the study.

    Args:
        teacher: the original; a copy of it goes to the device of the inputs.
        dtype: in which the networks take the inputs.
        meaning: of the outputs, as `meaning_of` returns it.
    """
    teacher = deepcopy(teacher).eval().requires_grad_(False)

    def step(network: nn.Module, batch: Any, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        inputs, targets = batch
        inputs = inputs.to(dtype)
        with torch.no_grad():
            taught = teacher.to(inputs.device)(inputs).float()
        outputs = network(inputs).float()
        if meaning == "classes":
            soft, hard = (o.div(TEMPERATURE).log_softmax(1) for o in (taught, outputs))
            distance = functional.kl_div(hard, soft, log_target=True, reduction="batchmean")
            learnt = distance * TEMPERATURE**2
        else:
            learnt = loss(outputs, taught.sigmoid() if meaning == "labels" else taught)
        return SHARE * learnt + (1 - SHARE) * loss(outputs, targets)

    return step


def meaning_of(job: Job, part: Part) -> str:
    """Returns the meaning of the outputs of a job's network: classes, labels or numbers."""
    if part.classifies:
        return "classes"
    return "labels" if isinstance(getattr(job.loss, "loss", None), OF_LABELS) else "numbers"


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
