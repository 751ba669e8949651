"""Describes how far a search at a small size told what is good at the size of its winner.

The section `scale` names both sizes; the candidates have the larger one.
"""

from collections.abc import Iterable, Sequence

from optuna.trial import FrozenTrial

from studyloom.config.values import as_yaml, plain_sections
from studyloom.definition.network import measure_costs
from studyloom.space.tree import Point
from studyloom.storage.attributes import EPOCHS
from studyloom.winner.candidates import CandidateTrainings, at_target
from studyloom.winner.result import Candidate, Transfer
from studyloom.winner.statistics import rank_correlation


def describe_transfer(
    trainings: CandidateTrainings,
    candidates: Sequence[Candidate],
    winner: Candidate,
    point: Point,
    searched: Iterable[FrozenTrial],
    trained: Iterable[Point],
) -> Transfer | None:
    """Describes how far the small trials told what is good; None without a target size.

    Args:
        trainings: of the last stage.
        point: of the winner.
        searched: the trials of the search.
        trained: the point of each training after it.
    """
    definition = trainings.definition
    if (scale := definition.scale) is None or not scale.target:
        return None
    pairs = [(r.search_value, r.mean) for r in candidates if r.factor == 1 and r.mean is not None]
    order, interval = rank_correlation(pairs)
    small = definition.space.at(winner.params).values
    return Transfer(
        small=dict(scale.searched),
        target=dict(scale.target),
        rule=scale.rule,
        values={key: value for key, value in point.values.items() if small.get(key) != value},
        promised=winner.search_value,
        reached=winner.search_value if winner.mean is None else winner.mean,
        candidates=len(pairs),
        order=order,
        interval=interval,
        neighbour=winner.factor != 1,
        share=_share_of_operations(trainings, searched, trained),
    )


def _share_of_operations(
    trainings: CandidateTrainings, searched: Iterable[FrozenTrial], trained: Iterable[Point]
) -> float | None:
    """Returns how many of the operations were done that all at the target size would have taken.

    Counted is a forward pass of each network by the examples of its training; None where there is
    no network of ours.
    """
    definition, split, fold = trainings.definition, trainings.data.split, trainings.new_fold(0)
    if split is None or fold is None or not definition.trains_networks:
        return None
    part, known = split.for_preflight(), dict[str, tuple[float, int]]()

    def operations(point: Point) -> tuple[float, int]:
        """Returns those of an epoch of one job, and the epochs of a training."""
        name = as_yaml(plain_sections(definition.at(point), "model", "train"))
        if name not in known:
            job = definition.job(point, fold, seed=0)
            (flops,) = measure_costs(["flops"], [], job, part)
            known[name] = flops.value * job.samples, job.last
        return known[name]

    small = target = later = 0.0
    for trial in searched:
        run = len(trial.user_attrs.get(EPOCHS, {}).get("value", ()))
        if not run:
            continue
        point = definition.space.at(trial.params)
        each, last = operations(point)
        small += run * each
        each, full = operations(at_target(definition, point))
        target += run * full / last * each
    for point in trained:
        each, full = operations(point)
        later += full * each
    return (small + later) / (target + later) if target else None
