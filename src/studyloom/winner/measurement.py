"""Measures winner and baseline on the test set, which is used once for the same networks."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from studyloom.config.values import describe_error
from studyloom.errors import NoWinner, UndefinedMetric
from studyloom.metrics import METRICS
from studyloom.objectives.user_functions import kept_name, weights_of
from studyloom.storage.ledger import Store
from studyloom.winner.candidates import CandidateTrainings, Origin
from studyloom.winner.data_facts import describe_data
from studyloom.winner.predictions import (
    Explain,
    MeasuredNetwork,
    describe_predictions,
    make_network,
    network_outputs,
)
from studyloom.winner.evaluation import Evaluation
from studyloom.winner.reevaluation import Reevaluated
from studyloom.winner.result import Scores, Tested
from studyloom.winner.statistics import compare, resample
from studyloom.worker.provenance import current_environment

CPU = torch.device("cpu")

log = logging.getLogger(__name__)
# What the final trainings of winner and baseline kept: weights of a network, or a loop's states.
Kept = dict[Origin, list[dict[str, Any]]]


def measure_winner(
    evaluation: Evaluation,
    store: Store,
    *,
    repeat: bool,
    explain: Explain | None,
) -> tuple[Tested, dict[str, Any] | None]:
    """Measures winner and baseline, unless the same networks were tested before.

    Stores the result in the database at once.

    Args:
        evaluation: of a study whose final training has ended.
        repeat: whether to test networks again that were tested before.
        explain: explains the predictions of the winner.

    Returns:
        The findings, and what the winner's first training kept.

    Raises:
        NoWinner: a final training has failed, or the metric has no value on the test set.
    """
    found, stage = evaluation.reevaluated, evaluation.trained
    assert found is not None
    assert stage is not None
    tested = None if repeat else evaluation.test
    earlier = tested is not None and evaluation.is_earlier_test
    if tested is not None:
        first = stage.load_or_train(found.winner, 0)
        if tested.data is None and _predicts(stage.source):  # its network was named after the test
            data = describe_data(stage.source, found.winner, None)
            tested = replace(tested, data=data)
    else:
        kept: Kept = {}
        for candidate, seed in stage.source.trainings:
            kept.setdefault(candidate, []).append(stage.load_or_train(candidate, seed) or {})
        found.search.count_test_use(store)  # before it, should this be killed
        measure = _measure if stage.source.definition.trains_networks else _call_test
        try:
            tested = measure(stage.source, found, kept, explain)
        except UndefinedMetric as error:
            raise NoWinner(f"no value on the test set: {error}; fix the test data") from error
        stage.store_test(tested, store)
        first = kept[found.winner][0]
    assert tested.test is not None
    scores = replace(tested.test, uses=found.search.test_uses(), earlier=earlier)
    return replace(tested, test=scores), first


def describe_untested(trainings: CandidateTrainings, winner: Origin) -> Tested:
    """Describes the winner of a loop without `objective.test`."""
    untested = trainings.definition.untested or None
    data = describe_data(trainings, winner, None) if _predicts(trainings) else None
    environment = current_environment(CPU)
    return Tested(seeds=trainings.new_seeds, untested=untested, environment=environment, data=data)


def _call_test(
    trainings: CandidateTrainings, found: Reevaluated, kept: Kept, explain: Explain | None
) -> Tested:
    """Calls `objective.test`, which measures the states of loops on the test set, for each seed.

    Raises:
        NoWinner: the user's function has raised an exception, or returned no finite number.
    """
    definition, winner, seeds = trainings.definition, found.winner, trainings.new_seeds
    metric = definition.metric
    test = None if trainings.data.split is None else trainings.data.test()

    def measure(candidate: Origin) -> list[dict[str, float]]:
        point = trainings.candidates[candidate]
        return [
            definition.test(point, seed, states, None if test is None else test.as_dataset())
            for seed, states in zip(seeds, kept[candidate], strict=True)
        ]

    measured = {candidate: measure(candidate) for candidate in kept}
    values = {candidate: [each[metric.name] for each in by] for candidate, by in measured.items()}
    scores = _compare(found, values, bounds=metric.bounds)
    shown: dict[str, Any] = {"own_test": True}
    if test is not None and _predicts(trainings):
        with _reporting():
            name, job = kept_name(definition.config.objective.network), trainings.job(winner, 0)
            weights = weights_of(kept[winner][0], name)
            measured_network = MeasuredNetwork(
                job=job,
                network=make_network(job, weights, test),
                metric=METRICS.get(metric.name, metric),
                outputs=network_outputs(job, weights, test),
                test=test,
            )
            shown = describe_predictions(measured_network, explain)
        shown["data"] = describe_data(trainings, winner, test)
    examples = None if test is None else len(test)
    return Tested(
        test=replace(scores, examples=examples, further=tuple(measured[winner])),
        seeds=seeds,
        environment=current_environment(CPU),
        **shown,
    )


@contextmanager
def _reporting() -> Iterator[None]:
    """Turns an exception of what only the report needs into a warning: the test is done."""
    try:
        yield
    except Exception as error:  # of the user's code
        log.warning("the report lacks the winner's predictions: %s", describe_error(error))


def _compare(found: Reevaluated, values: Mapping[Origin, list[float]], **how: Any) -> Scores:
    """Compares the winner with the baseline, and with the simple configuration if it was trained.

    Args:
        how: further arguments of `compare`.
    """
    scores = compare(values, found.winner, found.baseline, **how)
    simple = next((o for o in values if o not in (found.winner, found.baseline)), None)
    compared = None if simple is None else compare(values, found.winner, simple, **how).baseline
    return replace(scores, simple=compared)


def _predicts(trainings: CandidateTrainings) -> bool:
    """Whether the network of a loop and its training data are known."""
    objective = trainings.definition.config.objective
    return trainings.data.split is not None and objective.network is not None


def _measure(
    trainings: CandidateTrainings, found: Reevaluated, kept: Kept, explain: Explain | None
) -> Tested:
    """Measures networks on the test set.

    Raises:
        UndefinedMetric: the metric has no value there.
    """
    metric, winner, seed = trainings.definition.metric, found.winner, trainings.new_seed(0)
    test = trainings.data.test().to(trainings.data.device)
    jobs = {candidate: trainings.job(candidate, 0) for candidate in kept}
    outputs = {
        candidate: [network_outputs(jobs[candidate], weights, test) for weights in by_seed]
        for candidate, by_seed in kept.items()
    }
    values = {candidate: [each.score(metric) for each in by] for candidate, by in outputs.items()}
    job, first = jobs[winner], outputs[winner][0]
    sampled, references, shown = None, {}, {}
    if job.evaluate is None:  # with the user's function, outputs and targets may mean anything
        sampled = resample(metric, outputs, len(test), seed)
        references = {
            rule: metric(predicted.cpu(), first.targets)
            for rule, predicted in test.references.items()
        }
        with _reporting():
            network = make_network(job, kept[winner][0], test)
            measured = MeasuredNetwork(job, network, metric, first, test)
            shown = describe_predictions(measured, explain)
    scores = _compare(found, values, sampled=sampled, bounds=metric.bounds)
    return Tested(
        test=replace(scores, examples=len(test), references=references),
        data=describe_data(trainings, winner, test),
        seeds=tuple(trainings.job(winner, each).seed for each in range(trainings.seeds)),
        epochs=job.last_epoch,
        environment=current_environment(test.device),
        **shown,
    )
