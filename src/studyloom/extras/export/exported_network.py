"""The network that variants are made of, with the job that trained it.

Smaller networks are pruned, or built narrower; both then learn from the original, as students from
their teacher.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from studyloom.data import Split
from studyloom.data.examples import Part
from studyloom.extras.export.export_errors import CompressError
from studyloom.objectives.jobs import build_network
from studyloom.objectives.loop import Unstopped
from studyloom.objectives.objective import Attempt
from studyloom.objectives.user_functions import find_network_name, select_weights
from studyloom.seeds import derive
from studyloom.storage.stored_study import FINAL_TRAINING
from studyloom.training.batches import find_input_dtype
from studyloom.training.checkpoint import load_weights
from studyloom.training.job import Job
from studyloom.training.trainer import Training
from studyloom.winner.evaluation import Evaluation
from studyloom.winner.predictions import make_network

TEMPERATURE = 4.0  # by which outputs are divided, which softens their probabilities
TEACHER_SHARE = 0.5  # of the teacher's outputs in the loss; the targets have the rest
LABEL_LOSSES = (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)
Section = Mapping[str, Any]  # the section `model` of a configuration
MIN_WIDTH = 8  # of an argument that may be a width; smaller ones are mostly depths and heads
# An export and a pruner need two examples: of one, PyTorch's export would take the size of the
# batch for a constant.
EXAMPLES_TO_TRACE = 2
# The last of the numbers from which the seed of a compression is derived. New seeds of trainings
# end in 0 (CandidateTrainings.new_seed), and those of new folds in 1 (Definition.make_new_fold).
COMPRESSION = 2


@dataclass(frozen=True)
class Original:
    """A trained network, with all that is needed to make smaller ones of it.

    Attributes:
        network: on the CPU.
        job: the job that trained it.
        examples: the training data of the study, on the device to train on.
        section: the section `model` of its configuration; None if a custom loop makes its network.
        seed: draws the examples that set the ranges of int8.
        calibration: the number of these examples.
    """

    network: nn.Module
    job: Job
    examples: Part
    section: Section | None
    seed: int
    calibration: int

    @classmethod
    def retrained(cls, evaluation: Evaluation, calibration: int) -> "Original":
        """Trains the winner's configuration on the training data without a validation set.

        The validation set is always the same, so that each command compares variants alike.

        Args:
            calibration: the number of examples that set the ranges of int8.
        """
        data = evaluation.study.data
        definition = evaluation.study.definition
        winner = evaluation.winner
        assert winner is not None
        assert evaluation.candidates is not None
        configuration = evaluation.candidates[winner].configuration
        assert data.split is not None
        assert data.source is not None
        # No other seed of the study is derived from these numbers, so that this training shares its
        # draws with no other.
        seed = derive(definition.seed, 0, 0, COMPRESSION)
        folds = data.split.folds(definition.config.objective.folds, data.source.validation, seed)
        fold = folds[-1]  # its training and validation examples
        job = definition.build_job(configuration, fold, seed)
        if definition.trains_networks:
            network = train_network(job, data.split)
        else:
            attempt = Attempt(stage=FINAL_TRAINING)
            objective = definition.make_objective(
                configuration, winner.trial, data, attempt, seed, fold
            )
            objective.run(_report_nothing, Unstopped())
            network = _load_network(objective.weights() or {}, job, evaluation)
        section = definition.compose_config(configuration).get("model")
        return cls(network, job, data.split, section, seed, calibration)

    @classmethod
    def of_winner(cls, evaluation: Evaluation, calibration: int) -> "Original":
        """Loads the winner, with the job that trained it on all training data.

        Args:
            calibration: the number of examples that set the ranges of int8.
        """
        study = evaluation.study
        winner = evaluation.winner
        examples = study.data.split
        assert winner is not None
        assert evaluation.trained_stage is not None
        assert examples is not None
        trainings = evaluation.trained_stage.source
        seed_number = 0  # the network of the first seed is in winner.pt
        job = trainings.job(winner, seed=seed_number)
        config = study.definition.compose_config(trainings.candidates[winner])
        network = _load_network(load_weights(study.run_dir / "winner.pt"), job, evaluation)
        seed = trainings.new_seed(seed_number)
        return cls(network, job, examples, config.get("model"), seed, calibration)

    @cached_property
    def inputs(self) -> Tensor:
        """Randomly drawn training examples, in the type that the network takes."""
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(self.job.train), generator=generator)
        count = max(EXAMPLES_TO_TRACE, self.calibration)
        inputs = []
        for position in order[:count]:
            example = self.examples.input_at(int(self.job.train[position]))
            if example is not None:  # an item whose input is not one tensor has none
                inputs.append(example)
        return torch.stack(inputs).cpu().to(self.dtype)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The type in which the network takes inputs."""
        if isinstance(self.examples, Split):
            return find_input_dtype(self.job, self.network, self.examples)
        if str(self.examples.kind).startswith("int"):
            return torch.int64
        return torch.float32

    def train(self, make: Callable[[], nn.Module]) -> nn.Module:
        """Trains a network like the original, but to imitate the original's outputs too.

        The schedule starts again, which is as good as any other (Renda et al. 2020,
        arXiv:2003.02389).

        Args:
            make: returns the network on the CPU, the same at every call.
        """
        meaning = meaning_of_outputs(self.job, self.examples)
        step = make_distillation_step(self.network, self.dtype, meaning)
        job = replace(self.job, model=lambda shape, outputs: make(), step=step)
        return train_network(job, self.examples)

    def pruned(self, ratio: float) -> nn.Module:
        """Returns the network without a share of its channels and units, trained again."""
        smaller = prune(self.network, self.inputs[:EXAMPLES_TO_TRACE], ratio)
        return self.train(lambda: deepcopy(smaller))

    def student(self, width: float) -> nn.Module:
        """Returns a trained network whose widths are a share of the original's."""
        build = partial(build_network, shape=self.examples.shape, outputs=self.examples.outputs)
        assert self.section is not None  # the network of a custom loop has no students
        narrower_section = narrow(self.section, width, build)
        return self.train(lambda: build(narrower_section))


def _report_nothing(step: object) -> None:
    """Takes the report of each step of a loop, which nothing stores here."""


def _load_network(weights: dict[str, Any], job: Job, evaluation: Evaluation) -> nn.Module:
    """Makes the network of a job with trained weights, in eval mode.

    Args:
        weights: the content of winner.pt: the weights of the network. A custom loop may train
            several networks, and then it is the weights of each by its name in `run.keep`;
            `objective.network` names the one to load.
    """
    definition = evaluation.study.definition
    if not definition.trains_networks:
        name = find_network_name(definition.config.objective.network)
        weights = select_weights(weights, name)
    training_data = evaluation.study.data.split
    assert training_data is not None
    return make_network(job, weights, training_data).eval()


def train_network(job: Job, examples: Part) -> nn.Module:
    """Trains the network of a job, and returns it on the CPU in eval mode.

    Raises:
        Diverged: its loss is not finite.
    """
    training = Training([job], examples)
    with closing(training):
        for _ in training:  # each step is an epoch
            pass
    (weights,) = training.weights()  # a list with an item for each job
    return make_network(job, weights, examples).cpu().eval()


def prune(network: nn.Module, inputs: Tensor, ratio: float) -> nn.Module:
    """Returns a network without a share of its channels and units, those with the smallest norm.

    Whole channels are removed, the same share in every layer, and with them the weights that read
    them: zeros among the weights would leave file and latency unchanged (Li et al. 2017,
    arXiv:1608.08710). `torch-pruning` finds which weights of other layers read a channel (Fang et
    al. 2023, arXiv:2301.12900).

    Args:
        network: on the CPU; it is not changed.
        inputs: some examples, in the type that the network takes.
        ratio: the share, above 0 and below 1.

    Raises:
        CompressError: no layer can be pruned, or the library does not know a layer.
    """
    import torch_pruning

    pruned = deepcopy(network).eval()
    prunable_types = nn.Linear | nn.modules.conv._ConvNd
    layers = [module for module in pruned.modules() if isinstance(module, prunable_types)]
    if not layers:
        raise CompressError("it has no layer whose channels can be pruned")
    last_layer = layers[-1]
    parameters_before = count_parameters(pruned)
    try:
        pruner = torch_pruning.pruner.MagnitudePruner(
            pruned,
            inputs,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[last_layer],  # its channels are the outputs of the network
        )
        pruner.step()
        pruned(inputs)  # raises if the layers do not fit together
    except Exception as error:  # the library raises any for a layer that it does not know
        raise CompressError(f"it cannot be pruned: {type(error).__name__}: {error}") from error
    if count_parameters(pruned) == parameters_before:
        raise CompressError(f"nothing of it can be pruned at a ratio of {ratio:g}")
    return pruned


def narrow(section: Section, width: float, build: Callable[[Section], nn.Module]) -> dict[str, Any]:
    """Returns the section of a narrower network: its widths are reduced to a share.

    An argument is a width if it is an integer of at least 8, or a list of such, and half of it
    gives a network with fewer parameters. Half as many heads of attention, for example, give as
    many parameters, so that the number of heads is not a width.

    Args:
        width: the share to which each width is reduced.
        build: builds the network of a section.

    Raises:
        CompressError: no argument is a width.
    """
    parameters = count_parameters(build(section))
    widths = {}
    for key, value in _list_possible_widths(section):
        halved = {**section, key: _scale(value, 0.5)}
        if _has_fewer_parameters(halved, parameters, build):
            widths[key] = _scale(value, width)
    if not widths:
        raise CompressError("no argument of model is a width, so that there is no narrower student")
    return {**section, **widths}


def _list_possible_widths(section: Section) -> Iterator[tuple[str, int | list[int]]]:
    """Yields the arguments that are integers of at least 8, or lists of such."""
    for key, value in section.items():
        if isinstance(value, list):
            numbers = value
        else:
            numbers = [value]
        # `type` is compared, since a subclass of int, such as bool, is no width.
        are_wide = all(type(number) is int and number >= MIN_WIDTH for number in numbers)
        if numbers and are_wide:
            yield str(key), value


def _has_fewer_parameters(
    section: Section,
    parameters: int,
    build: Callable[[Section], nn.Module],
) -> bool:
    """Returns True if the network of a section can be built, and has fewer than `parameters`."""
    try:
        return count_parameters(build(section)) < parameters
    except Exception:  # the network refuses its arguments
        return False


def _scale(value: int | list[int], share: float) -> int | list[int]:
    """Returns a share of a width, or of each width in a list; at least 1."""
    if isinstance(value, int):
        return max(1, round(value * share))
    return [max(1, round(number * share)) for number in value]


def make_distillation_step(
    teacher: nn.Module, dtype: torch.dtype, meaning: str
) -> Callable[..., Any]:
    """Returns a training step that learns from the targets and from the outputs of a teacher.

    Outputs of classes are softened before they are compared, as in Hinton et al. 2015
    (arXiv:1503.02531). Labels, as probabilities, and numbers are learned by the loss of the study.

    Args:
        teacher: the original; a copy of it is moved to the device of the inputs.
        dtype: the type in which the networks take the inputs.
        meaning: what the outputs are: classes, labels or numbers.
    """
    teacher = deepcopy(teacher).eval().requires_grad_(False)

    def step(network: nn.Module, batch: Any, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Returns the loss of a student: half of it to the teacher's outputs, half to the targets.

        Args:
            network: the student.
            loss: the loss of the study.
        """
        inputs, targets = batch
        inputs = inputs.to(dtype)
        with torch.no_grad():
            outputs_of_teacher = teacher.to(inputs.device)(inputs).float()
        outputs = network(inputs).float()
        if meaning == "classes":  # one of several for each example
            loss_to_teacher = _measure_softened_distance(outputs, outputs_of_teacher)
        elif meaning == "labels":  # several for each example, each with a probability of its own
            loss_to_teacher = loss(outputs, outputs_of_teacher.sigmoid())
        else:  # numbers
            loss_to_teacher = loss(outputs, outputs_of_teacher)
        return TEACHER_SHARE * loss_to_teacher + (1 - TEACHER_SHARE) * loss(outputs, targets)

    return step


def _measure_softened_distance(outputs: Tensor, outputs_of_teacher: Tensor) -> Tensor:
    """Returns the divergence between the softened probabilities of classes of two networks.

    Its gradients shrink with the square of the temperature. It is multiplied by that square, so
    that the share of the targets in the whole loss does not depend on the temperature.
    """
    predicted = outputs.div(TEMPERATURE).log_softmax(1)
    expected = outputs_of_teacher.div(TEMPERATURE).log_softmax(1)
    divergence = functional.kl_div(predicted, expected, log_target=True, reduction="batchmean")
    return divergence * TEMPERATURE**2


def meaning_of_outputs(job: Job, examples: Part) -> str:
    """Returns what the outputs of a job's network are: classes, labels or numbers."""
    if examples.classifies:
        return "classes"
    loss = getattr(job.loss, "loss", None)  # within `OneHot`, or a user's loss that wraps one
    if isinstance(loss, LABEL_LOSSES):
        return "labels"
    return "numbers"


def count_parameters(network: nn.Module) -> int:
    """Counts the trainable and other parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())
