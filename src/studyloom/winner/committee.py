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

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf
from optuna.trial import TrialState
from torch import Tensor, nn

from studyloom.config import trust
from studyloom.config.values import value_at
from studyloom.data.split import Split
from studyloom.data.training_data import Part
from studyloom.errors import PredictError
from studyloom.metrics import Metric
from studyloom.question.jobs import measure_costs
from studyloom.study.job import REEVALUATION, RETRAINING
from studyloom.training.batches import batch_dtype
from studyloom.training.checkpoint import load_weights, pack_weights
from studyloom.training.job import Job
from studyloom.training.trainer import evaluate_network
from studyloom.winner.answer import COMMITTEE, check_whole
from studyloom.winner.candidates import CandidateTrainings
from studyloom.winner.loading import load_into
from studyloom.winner.statistics import AVERAGES, Average, summarise

if TYPE_CHECKING:
    from studyloom.winner.stages import Plan, Stage

ROUNDS = 20  # networks that are added to a committee at most; the best size up to this is taken
OF_LABELS = (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)
FAULTS = (ValueError, RuntimeError, LookupError)  # of outputs that have no mean or no value
DTYPES = {"float32": torch.float32, "int32": torch.int32, "int64": torch.int64}
MOST_MEMBERS = 1000  # of a file from elsewhere
COSTS = ("parameters", "latency_ms")

# The networks of trainings: the stage, and the numbers of candidate and seed.
Weights = Callable[["Stage", int, int], Mapping[str, Any] | None]


def select(
    outputs: Sequence[Tensor], targets: Tensor, metric: Metric, average: Average
) -> dict[int, int]:
    """Chooses networks greedily, with replacement.

    Each round adds the network with which the mean is best; of a tie, the first. Of all rounds,
    the best committee counts, and of a tie the smallest: it is never worse than the best network.

    Args:
        outputs: of each network, (n, …); the best ones should come first.
        targets: (n, …).
        metric: judges the mean.
        average: takes it.

    Returns:
        how often each chosen network was added, by its position.

    Raises:
        UndefinedMetric: the metric has no value.
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


@dataclass(frozen=True)
class Member:
    """A network of a committee.

    Attributes:
        trial: the number of its trial in the search.
        seed: the number of its fresh seed.
        stage: re-evaluation, or retraining if it was trained on all data.
        times: how often it was chosen.
        share: its weight in the mean.
    """

    trial: int
    seed: int
    stage: str
    times: int
    share: float


@dataclass(frozen=True)
class Choice:
    """A committee as it was chosen.

    Attributes:
        candidates: the trials whose networks it was chosen from, the best first.
        members: its networks; none if there can be no committee.
        average: a key of AVERAGES.
        value: on the validation parts, as a mean over them. It was chosen for it.
        single: the same of the best network of each part.
        note: why there is no committee.
    """

    candidates: tuple[int, ...]
    members: tuple[Member, ...] = ()
    average: str = "mean"
    value: float = math.nan
    single: float = math.nan
    note: str = ""


def candidates_of(plan: "Plan") -> tuple[int, ...]:
    """Returns the trials whose networks may be members, the best first: those that may win."""
    return tuple(trial.number for trial in plan.ranked if trial.number in plan.candidates)


def choose(plan: "Plan", weights: Weights) -> Choice:
    """Chooses a committee by validation predictions alone.

    Args:
        plan: the stages of the run, all of which have ended.
        weights: loads the network of a training.
    """
    try:
        return _choose(plan, weights)
    except FAULTS as error:
        return Choice(candidates_of(plan), note=_note(error))


def _note(error: Exception) -> str:
    return f"there is no committee: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _choose(plan: "Plan", weights: Weights) -> Choice:
    stage, metric, split = plan.reevaluation, plan.question.metric, plan.data.split
    trainings, candidates = stage.asked, candidates_of(plan)
    assert isinstance(trainings, CandidateTrainings)
    assert split is not None
    final = {*_trained_in(plan.retraining)}
    named = average_of(trainings.job(candidates[0], 0), split)
    average = AVERAGES[named]
    groups: dict[bytes, list[tuple[int, int]]] = {}
    judged = [key for key in _trained_in(stage) if key[0] in candidates]
    for trial, seed in sorted(judged, key=lambda key: (candidates.index(key[0]), key[1])):
        valid = trainings.job(trial, seed).valid.cpu().numpy().tobytes()
        groups.setdefault(valid, []).append((trial, seed))
    members, values, singles = [], [], []
    for keys in groups.values():
        outputs, targets = _validation_outputs(plan, stage, keys, weights)
        times = select(outputs, targets, metric, average)
        shares = [count / sum(times.values()) for count in times.values()]
        values.append(metric(average([outputs[position] for position in times], shares), targets))
        singles.append(max((metric(o, targets) for o in outputs), key=lambda v: metric.sign * v))
        for (position, count), share in zip(times.items(), shares, strict=True):
            key = keys[position]
            title = RETRAINING if key in final else REEVALUATION
            members.append(Member(*key, title, count, share / len(groups)))
    members.sort(key=lambda member: (candidates.index(member.trial), member.seed))
    return Choice(candidates, tuple(members), named, fmean(values), fmean(singles))


def _trained_in(stage: "Stage") -> list[tuple[int, int]]:
    """Returns the candidate and the seed of each training of a stage that has a value."""
    return [
        (trial.params["candidate"], trial.params["seed"])
        for trial in stage.stored.trials()
        if trial.state == TrialState.COMPLETE and "seed" in trial.params
    ]


def average_of(job: Job, split: Part) -> str:
    """Returns how the outputs of networks like that of a job are averaged, a key of AVERAGES."""
    if split.classifies:
        return "softmax"
    return "sigmoid" if isinstance(getattr(job.loss, "loss", None), OF_LABELS) else "mean"


def _validation_outputs(
    plan: "Plan", stage: "Stage", keys: Sequence[tuple[int, int]], weights: Weights
) -> tuple[list[Tensor], Tensor]:
    """Returns the outputs of networks for the validation part that they share, and the targets."""
    trainings, split = stage.asked, plan.data.split
    assert isinstance(trainings, CandidateTrainings)
    assert split is not None
    outputs = []
    for trial, seed in keys:
        job = trainings.job(trial, seed)
        model = job.model(shape=split.shape, outputs=split.outputs)
        model.load_state_dict(weights(stage, trial, seed) or {})
        predicted, targets = evaluate_network(job, model, split, job.valid)
        outputs.append(predicted.cpu())
    return outputs, targets.cpu()


def recall(plan: "Plan", tested: Mapping[str, Any] | None) -> Choice | None:
    """Returns the committee that was tested, if it was chosen from the candidates of now.

    Args:
        plan: the stages of the run.
        tested: what the database holds of a test; None if it holds none.
    """
    stored, candidates = (tested or {}).get("committee"), candidates_of(plan)
    if not isinstance(stored, dict) or stored["candidates"] != [*candidates]:
        return None
    names = list(Member.__dataclass_fields__)
    members = [Member(*(member[name] for name in names)) for member in stored.get("members", ())]
    if not members:
        return Choice(candidates, note=stored["note"])
    known = stored["validation"]
    return Choice(candidates, tuple(members), stored["average"], known["value"], known["single"])


def judge(
    plan: "Plan",
    choice: Choice,
    judged: Callable[[Member], tuple[Tensor, Tensor]],
    of_winner: Sequence[float],
) -> dict[str, Any]:
    """Judges a committee on the test part.

    Args:
        plan: the stages of the run.
        choice: the committee.
        judged: returns the outputs and targets of a member on the test part.
        of_winner: the winner's values there, one for each seed.

    Returns:
        the entry `committee` of winner.json.
    """
    entry: dict[str, Any] = {"candidates": list(choice.candidates)}
    if choice.note:
        return entry | {"note": choice.note}
    try:
        outputs, targets = zip(*(judged(member) for member in choice.members), strict=True)
        mean = AVERAGES[choice.average](outputs, [member.share for member in choice.members])
        value = plan.question.metric(mean, targets[0])
        trials = {plan.winner, *(member.trial for member in choice.members)}
        networks = {trial: _describe(plan, trial) for trial in trials}
    except FAULTS as error:
        return entry | {"note": _note(error)}
    return entry | {
        "members": [
            asdict(member) | {name: networks[member.trial][name] for name in ("model", "dtype")}
            for member in choice.members
        ],
        "average": choice.average,
        "validation": {"value": choice.value, "single": choice.single},
        "test": value,
        "difference": summarise([value - other for other in of_winner]),
        "costs": {
            name: [
                sum(networks[member.trial][name] for member in choice.members),
                networks[plan.winner][name],
            ]
            for name in COSTS
        },
    }


def _describe(plan: "Plan", trial: int) -> dict[str, Any]:
    """Describes the network of a candidate: how it is built, what it takes, what it costs."""
    trainings, split = plan.reevaluation.asked, plan.data.split
    assert isinstance(trainings, CandidateTrainings)
    assert split is not None
    job, dtype = trainings.job(trial, 0), None
    if isinstance(split, Split) and not split.inputs.is_floating_point():
        network = job.model(shape=split.shape, outputs=split.outputs)
        dtype = str(batch_dtype(job, network, split)).removeprefix("torch.")
    model = value_at(plan.question.at(plan.candidates[trial]), "model")
    costs = {cost.quantity: cost.value for cost in measure_costs(COSTS, [], job, split)}
    return {"model": model, "dtype": dtype, **costs}


def pack(plan: "Plan", answer: Mapping[str, Any], weights: Weights) -> dict[str, bytes]:
    """Returns the file of a committee by its name; nothing if there is none.

    Args:
        plan: the stages of the run.
        answer: what winner.json will hold.
        weights: loads the network of a training.
    """
    stages = {REEVALUATION: "reevaluation", RETRAINING: "retraining"}
    states = {
        str(position): weights(
            getattr(plan, stages[member["stage"]]), member["trial"], member["seed"]
        )
        for position, member in enumerate((answer.get("committee") or {}).get("members", ()))
    }
    return {COMMITTEE: pack_weights(states)} if states else {}


def remove_others(plan: "Plan", answer: Mapping[str, Any]) -> None:
    """Removes the networks of the re-evaluation that are in no committee, once it is written.

    Those of its members stay, as those of the retraining do, for when the test is done again.

    Args:
        plan: the stages of the run.
        answer: what winner.json holds.
    """
    entry = answer.get("committee") or {}
    if not plan.settings.committee or not entry:
        return
    stage = plan.reevaluation
    assert stage.weights is not None
    members = {
        (member["trial"], member["seed"])
        for member in entry.get("members", ())
        if member["stage"] == REEVALUATION
    }
    for trial in stage.stored.trials():
        if (trial.params.get("candidate"), trial.params.get("seed")) not in members:
            (stage.weights / f"trial-{trial.number}.pt").unlink(missing_ok=True)


class Committee(nn.Module):
    """Networks whose mean is one output, of the same meaning as theirs.

    Args:
        networks: the members.
        shares: of each in the mean.
        dtypes: in which each takes its inputs; None as they come.
        average: takes the mean.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        shares: Sequence[float],
        dtypes: Sequence[torch.dtype | None],
        average: Average,
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.shares, self.dtypes, self.average = tuple(shares), tuple(dtypes), average

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Returns the outputs (n, …) for what a member takes."""
        outputs = []
        for network, dtype in zip(self.networks, self.dtypes, strict=True):
            given = [each if dtype is None else each.to(dtype) for each in inputs]
            outputs.append(network(*given, **named))
        return self.average(outputs, self.shares)


def assemble(entry: Mapping[str, Any], networks: Sequence[nn.Module]) -> Committee:
    """Returns a committee of networks that are built as the members of an answer, in their order.

    Args:
        entry: `committee` of winner.json.
        networks: such as those of committee.pt, or trained anew.

    Raises:
        ValueError, LookupError, TypeError: the entry is damaged.
    """
    shares = [float(member["share"]) for member in entry["members"]]
    named = [member["dtype"] for member in entry["members"]]
    dtypes = [None if name is None else DTYPES[name] for name in named]
    if not 0 < len(shares) <= MOST_MEMBERS or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"must have 1 to {MOST_MEMBERS} members, with shares from 0 to 1")
    return Committee(networks, shares, dtypes, AVERAGES[entry["average"]])


def load_committee(
    run_dir: Path,
    answer: Mapping[str, Any],
    trusted: Sequence[str],
    shape: Sequence[int] | None,
    outputs: int | None,
) -> Committee:
    """Loads the committee below a run directory, which may be another person's.

    Args:
        run_dir: the run directory.
        answer: what winner.json holds.
        trusted: packages, modules or classes that it may name, beside those of ours.
        shape: of one input; None if it is not one tensor.
        outputs: how many numbers a network gives for an input; None if that is not known.

    Raises:
        PredictError: there is no committee, or its file cannot be used.
        ConfigError: winner.json names something that is not trusted.
        OSError: a file cannot be read.
    """
    entry = answer.get("committee")
    if not isinstance(entry, dict) or "members" not in entry:
        note = entry.get("note") if isinstance(entry, dict) else None
        way_out = "run the study's command again with winner.committee=true"
        raise PredictError(f"{run_dir}: {note or f'the answer has no committee; {way_out}'}")
    try:
        models = [dict(member["model"]) for member in entry["members"]]
        assemble(entry, [])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        where = f"{run_dir / 'winner.json'}: committee cannot be used"
        raise PredictError(f"{where}: {type(error).__name__}: {error}") from None
    trust.check_targets({"committee": {"members": models}}, trusted)
    check_whole(run_dir, answer, COMMITTEE)
    path = run_dir / COMMITTEE
    try:
        kept = load_weights(path)
        states = [kept[str(position)] for position in range(len(models))]
    except (ValueError, LookupError) as error:
        raise PredictError(f"{path}: {' '.join(str(error).split())[:300]}") from None
    origin = f"{run_dir / 'winner.json'}: committee"
    sections = [OmegaConf.create(model) for model in models]
    networks = load_into(sections, states, (shape, outputs), origin, path)
    check_whole(run_dir, answer, COMMITTEE)  # it may have been replaced
    return assemble(entry, networks)
