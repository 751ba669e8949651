"""The network that variants are made of, with the job that trained it, and who teaches them."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from studyloom.config.trust import packages_to_trust
from studyloom.config.values import value_at
from studyloom.data import Split
from studyloom.data.training_data import Part
from studyloom.extras.export.export import OnnxNetwork, check_equal, export_network, quantize
from studyloom.extras.export.shrink import distillation, narrow, prune
from studyloom.metrics import Metric
from studyloom.question.jobs import build_jobs, build_network
from studyloom.seeds import derive
from studyloom.training.batches import batch_dtype
from studyloom.training.checkpoint import load_weights
from studyloom.training.job import Job
from studyloom.training.trainer import Training, evaluate_network
from studyloom.winner.candidates import CandidateTrainings
from studyloom.winner.committee import Committee, assemble, average_of, load_committee
from studyloom.winner.stages import Plan
from studyloom.winner.statistics import compare, resample


@dataclass(frozen=True)
class Original:
    """A trained network, and what others are made of it with.

    Args:
        network: on the CPU.
        job: that trained it.
        part: the examples, on the device to train on.
        section: `model` of the config.
        seed: of the examples that set the ranges of int8.
        calibration: how many there are.
        teacher: whose outputs variants learn from; None for the network itself.
    """

    network: nn.Module
    job: Job
    part: Part
    section: Any
    seed: int
    calibration: int
    teacher: nn.Module | None = None

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
            return batch_dtype(self.job, self.network, self.part)
        whole = str(self.part.kind).startswith("int")
        return torch.int64 if whole else torch.float32

    def train(self, make: Callable[[], nn.Module]) -> nn.Module:
        """Trains a network as the original was, and to say what its teacher says.

        The schedule begins anew, which is as good as any other (Renda et al. 2020,
        arXiv:2003.02389).

        Args:
            make: returns the network on the CPU, the same at every call.
        """
        teacher = self.network if self.teacher is None else self.teacher
        step = distillation(teacher, self.dtype, average_of(self.job, self.part))
        job = replace(self.job, model=lambda shape, outputs: make(), step=step)
        return train_network(job, self.part)

    def pruned(self, ratio: float) -> nn.Module:
        smaller = prune(self.network, self.inputs[:2], ratio)
        return self.train(lambda: deepcopy(smaller))

    def student(self, width: float) -> nn.Module:
        build = partial(build_network, shape=self.part.shape, outputs=self.part.outputs)
        section, _ = narrow(self.section, width, build)
        return self.train(lambda: build(section))


def retrain(plan: Plan, calibration: int) -> Original:
    """Trains the winner's configuration without a validation part."""
    assert plan.data.split is not None
    job, network = _train_apart(plan, plan.winner, 0)
    model = plan.question.at(plan.candidates[plan.winner]).model
    seed = derive(plan.question.seed, 0, 0, 2)
    return Original(network, job, plan.data.split, model, seed, calibration)


def retrain_committee(plan: Plan, entry: Mapping[str, Any]) -> Committee:
    """Trains the configurations of a committee without the validation part of `retrain`.

    So what it teaches a variant tells nothing of the examples by which the variant is judged.

    Args:
        plan: the stages of the run.
        entry: `committee` of winner.json.
    """
    members = enumerate(entry["members"], start=1)
    return assemble(entry, [_train_apart(plan, m["trial"], number)[1] for number, m in members])


def _train_apart(plan: Plan, trial: int, number: int) -> tuple[Job, nn.Module]:
    """Trains the configuration of a candidate without a validation part, always the same one.

    Args:
        plan: the stages of the run.
        trial: the number of the candidate.
        number: of the training, which decides its seed.
    """
    part, question = plan.data.split, plan.question
    assert part is not None
    # No other path of a study has this length and end; see CandidateTrainings.fresh_seed.
    seeds = [derive(question.seed, each, 0, 2) for each in (0, number)]
    folds = part.folds(question.config.objective.folds, plan.data.source.validation, seeds[0])
    job = build_jobs(question.at(plan.candidates[trial]), [folds[-1]], seeds[1])[0]
    return job, train_network(job, part)


def load_winner_network(plan: Plan, calibration: int) -> Original:
    """Loads the winner, with the job that trained it on all training data."""
    part, trainings = plan.data.split, plan.last.asked
    assert part is not None
    assert isinstance(trainings, CandidateTrainings)
    job = trainings.job(plan.winner, 0)
    network = job.model(shape=part.shape, outputs=part.outputs)
    network.load_state_dict(load_weights(plan.run_dir / "winner.pt"))
    config = plan.question.at(plan.candidates[plan.winner])
    seed = trainings.fresh_seed(0)
    return Original(network.eval(), job, part, config.model, seed, calibration)


def load_teacher(plan: Plan, answer: Mapping[str, Any]) -> Committee:
    """Loads the committee of an answer, whose networks have seen all training data.

    Args:
        plan: the stages of the run.
        answer: what winner.json holds.

    Raises:
        PredictError: its file cannot be used.
        ConfigError: winner.json names other networks than the study has trained.
    """
    part = plan.data.split
    assert part is not None
    points = [plan.candidates[member["trial"]] for member in answer["committee"]["members"]]
    own = packages_to_trust([value_at(plan.question.at(point), "model") for point in points])
    return load_committee(plan.run_dir, answer, own, part.shape, part.outputs)


def train_network(job: Job, part: Part) -> nn.Module:
    """Trains a job to its end.

    Returns:
        the network in eval mode, on the CPU.

    Raises:
        Diverged: its loss is not finite.
    """
    training = Training([job], part)
    for _ in training:
        pass
    network = job.model(shape=part.shape, outputs=part.outputs)
    network.load_state_dict(training.weights()[0])
    return network.cpu().eval()


def export(
    original: Original, network: nn.Module, facts: Mapping[str, Any], *, quantized: bool
) -> bytes:
    """Exports a network, checks that the file predicts the same, and quantizes it if asked to.

    Args:
        original: with whose examples both is done.
        network: on the CPU.
        facts: what winner.json says of the data.
        quantized: whether to quantize it.

    Raises:
        CompressError: it has no form in ONNX, or the file predicts something else.
    """
    content = export_network(network, original.inputs[:2], inputs_of(facts))
    compare_outputs(original, network, content)
    return quantize(content, original.inputs) if quantized else content


def compare_outputs(original: Original, network: nn.Module, content: bytes) -> Tensor:
    """Returns what a file gives for the validation part of a job, equal to what its network does.

    Raises:
        CompressError: they are not equal.
    """
    outputs = [evaluate(original, each)[0] for each in (network, OnnxNetwork(content))]
    check_equal(*outputs)
    return outputs[1]


def evaluate(
    original: Original, network: nn.Module, part: Part | None = None
) -> tuple[Tensor, Tensor]:
    """Evaluates a network on the CPU: on a part, or else on the original's validation part."""
    job = replace(original.job, precision="fp32")
    where = job.valid.cpu() if part is None else None
    return evaluate_network(job, network, (part or original.part).to("cpu"), where)


def inputs_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what of winner.json's `data` who runs the file must know."""
    return {name: facts[name] for name in ("shape", "mean", "std", "transform", "names", "columns")}


def differ(
    metric: Metric, original: Original, before: Tensor, after: Tensor, targets: Tensor
) -> dict[str, Any]:
    """Compares what two networks say of the same examples.

    Returns:
        `value` and `original`; `mean`, which is value minus original; its 95 % `interval` over
        examples, the mean twice where none is known; and whether it `covers` examples.
    """
    values = {0: [metric(before, targets)], 1: [metric(after, targets)]}
    judged = {0: [(before, targets)], 1: [(after, targets)]}
    resampled = None
    if original.job.evaluate is None:  # with one of the user's own, outputs may mean anything
        resampled = resample(metric, judged, len(targets), original.seed)
    difference = compare(values, 1, 0, resampled, original.seed)["difference"]
    mean = difference["mean"]
    known = difference["interval"] is not None
    return {
        "value": values[1][0],
        "original": values[0][0],
        "mean": mean,
        "interval": difference["interval"] if known else [mean, mean],
        "covers": known,
    }
