"""A committee: trained networks whose predictions are averaged, beside the winner.

The networks of the re-evaluation are chosen greedily, with replacement, by their predictions for
validation examples (Caruana, Niculescu-Mizil, Crew and Ksikes, "Ensemble selection from libraries
of models", ICML 2004). None is judged by an example that it was trained on: networks that share a
validation part, which in the re-evaluation are those of one seed, make a group, a committee is
chosen from each, and the answer is the mean of these, as in that paper's bagging of selections.

The winner and the baseline are trained on all data too, with the same seeds. These networks have
seen every validation part, so that none is chosen for its own predictions; but where a network of
these two is chosen, that of its configuration and seed which has seen all data takes its place, as
it does in the winner.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from studyloom.config.trust import check_targets
from studyloom.config.values import value_at
from studyloom.data.training_data import Part
from studyloom.errors import PredictError
from studyloom.metrics import Metric
from studyloom.question.jobs import build_network, measure_costs
from studyloom.study.stored_study import REEVALUATION, RETRAINING
from studyloom.text import name_error, one_line
from studyloom.training.checkpoint import load_weights, pack_weights
from studyloom.training.job import Job
from studyloom.winner.answer import (
    COMMITTEE,
    Answer,
    AverageName,
    Committee,
    Member,
    Validation,
    check_whole,
)
from studyloom.winner.stages import Plan
from studyloom.winner.statistics import AVERAGES, Average, summarise
from studyloom.winner.trainings import input_dtype, judge_network

ROUNDS = 20  # networks that are added to a committee at most; the best size up to this is taken
OF_LABELS = (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)
FAULTS = (ValueError, RuntimeError, LookupError)  # of outputs that have no mean or no value
COSTS = ("parameters", "latency_ms")


def select(
    outputs: Sequence[Tensor], targets: Tensor, metric: Metric, average: Average
) -> dict[int, int]:
    """Chooses networks greedily, with replacement: how often each position was added.

    Each round adds the network with which the mean is best; of a tie, the first. Of all rounds,
    the best committee counts, and of a tie the smallest: it is never worse than the best network.

    Args:
        outputs: of each network, (n, …); the best ones should come first.
    """
    parts = [average.to_mean(each.double()) for each in outputs]
    total, chosen = torch.zeros_like(parts[0]), []
    best: tuple[float, list[int]] = (-math.inf, [])
    for size in range(1, ROUNDS + 1):
        values = [
            metric.sign * metric(average.to_outputs((total + part) / size).float(), targets)
            for part in parts
        ]
        added = max(range(len(parts)), key=values.__getitem__)
        chosen.append(added)
        total += parts[added]
        if values[added] > best[0]:
            best = values[added], list(chosen)
    return {position: best[1].count(position) for position in sorted({*best[1]})}


def choose(plan: Plan) -> Committee:
    """Chooses a committee by validation predictions alone; it says why there is none."""
    try:
        return _choose(plan)
    except FAULTS as error:
        return Committee(tuple(plan.contenders), note=_note(error))


def _note(error: Exception) -> str:
    return f"there is no committee: {name_error(error, 300)}"


def _choose(plan: Plan) -> Committee:
    stage, metric, split = plan.reevaluation, plan.question.metric, plan.data.split
    trainings, candidates = stage.trainings, plan.contenders
    assert split is not None
    final = {key for key, trial in plan.retraining.trained.items() if trial.value is not None}
    named = average_of(trainings.job(candidates[0], 0), split)
    average = AVERAGES[named]
    groups: dict[bytes, list[tuple[int, int]]] = {}
    trained = {key for key, trial in stage.trained.items() if trial.value is not None}
    asked = itertools.product(candidates, range(trainings.seeds))
    for trial, seed in filter(trained.__contains__, asked):
        valid = trainings.job(trial, seed).valid.cpu().numpy().tobytes()
        groups.setdefault(valid, []).append((trial, seed))
    members, values, singles = [], [], []
    for keys in groups.values():
        outputs = []
        for trial, seed in keys:
            job = trainings.job(trial, seed)
            weights = plan.load_or_train(stage, trial, seed) or {}
            predicted, targets = judge_network(job, weights, split, job.valid)
            outputs.append(predicted)
        times = select(outputs, targets, metric, average)
        shares = [count / sum(times.values()) for count in times.values()]
        values.append(metric(average([outputs[position] for position in times], shares), targets))
        singles.append(max((metric(o, targets) for o in outputs), key=lambda v: metric.sign * v))
        for (position, count), share in zip(times.items(), shares, strict=True):
            trial, seed = keys[position]
            title = RETRAINING if (trial, seed) in final else REEVALUATION
            model_section = value_at(plan.question.at(plan.candidates[trial]), "model")
            dtype = input_dtype(trainings.job(trial, 0), split)
            share /= len(groups)
            members.append(Member(trial, seed, title, count, share, model_section, dtype))
    members.sort(key=lambda member: (candidates.index(member.trial), member.seed))
    validation = Validation(fmean(values), fmean(singles))
    networks = tuple(members)
    return Committee(tuple(candidates), members=networks, average=named, validation=validation)


def average_of(job: Job, split: Part) -> AverageName:
    """Returns how the outputs of networks like that of a job are averaged, a key of AVERAGES."""
    if split.classifies:
        return "softmax"
    return "sigmoid" if isinstance(getattr(job.loss, "loss", None), OF_LABELS) else "mean"


def judge(
    plan: Plan,
    choice: Committee,
    outputs_of: Callable[[Member], tuple[Tensor, Tensor]],
    of_winner: Sequence[float],
) -> Committee:
    """Judges a committee on the test part."""
    if choice.note is not None:
        return choice
    try:
        outputs, targets = zip(*(outputs_of(member) for member in choice.members), strict=True)
        mean = AVERAGES[choice.average](outputs, [member.share for member in choice.members])
        value = plan.question.metric(mean, targets[0])
        costs = {trial: _costs(plan, trial) for trial in plan.contenders}
    except FAULTS as error:
        return Committee(choice.candidates, note=_note(error))
    return replace(
        choice,
        test=value,
        difference=summarise([value - other for other in of_winner]),
        costs={
            name: (sum(costs[m.trial][name] for m in choice.members), costs[plan.winner][name])
            for name in COSTS
        },
    )


def _costs(plan: Plan, trial: int) -> dict[str, float]:
    assert plan.data.split is not None
    job = plan.reevaluation.trainings.job(trial, 0)
    return {c.quantity: c.value for c in measure_costs(COSTS, [], job, plan.data.split)}


def pack(plan: Plan, entry: Committee) -> dict[str, bytes]:
    """Returns the file of a committee by its name; nothing if there is none."""
    stages = {REEVALUATION: plan.reevaluation, RETRAINING: plan.retraining}
    states = {
        str(position): plan.load_or_train(stages[member.stage], member.trial, member.seed)
        for position, member in enumerate(entry.members)
    }
    return {COMMITTEE: pack_weights(states)} if states else {}


def remove_others(plan: Plan, answer: Answer) -> None:
    """Removes the networks of the re-evaluation that are in no committee, once it is written.

    Those of its members stay, as those of the retraining do, for when the test is done again.
    """
    if not plan.settings.committee or answer.committee is None:
        return
    stage = plan.reevaluation
    assert stage.weights is not None
    members = {
        (member.trial, member.seed)
        for member in answer.committee.members
        if member.stage == REEVALUATION
    }
    for training, trial in stage.trained.items():
        if training not in members:
            (stage.weights / f"trial-{trial.number}.pt").unlink(missing_ok=True)


class CommitteeNetwork(nn.Module):
    """Networks whose mean is one output, of the same meaning as theirs."""

    def __init__(self, entry: Committee, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.shares = tuple(member.share for member in entry.members)
        self.dtypes = tuple(m.dtype and getattr(torch, m.dtype) for m in entry.members)
        self.average = AVERAGES[entry.average]

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Returns the outputs (n, …) for what a member takes."""
        outputs = []
        for network, dtype in zip(self.networks, self.dtypes, strict=True):
            given = [each.to(dtype) if dtype else each for each in inputs]
            outputs.append(network(*given, **named))
        return self.average(outputs, self.shares)


def load_committee(
    run_dir: Path, answer: Answer, trusted: Sequence[str] | None
) -> CommitteeNetwork:
    """Loads the committee below a run directory, which may be another person's.

    Raises:
        PredictError: there is no committee, or its file cannot be used.
        ConfigError: winner.json names something that is not trusted.
    """
    entry, path = answer.committee, run_dir / COMMITTEE
    if entry is None or answer.data is None or not entry.members:
        way_out = "run the study's command again with winner.committee=true"
        note = entry.note if entry else f"the answer has no committee; {way_out}"
        raise PredictError(f"{run_dir}: {note}")
    sections = [member.model for member in entry.members]
    check_targets({"committee": {"members": sections}}, trusted)
    check_whole(run_dir, answer, COMMITTEE)
    facts = answer.data
    networks = [build_network(section, facts.shape, facts.outputs) for section in sections]
    try:
        states = load_weights(path, foreign=trusted is not None)
        for position, network in enumerate(networks):
            network.load_state_dict(states[str(position)])
    except (ValueError, LookupError, RuntimeError) as error:
        raise PredictError(f"{path}: {one_line(str(error))[:300]}") from None
    return CommitteeNetwork(entry, networks)
