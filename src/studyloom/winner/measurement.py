"""Measures winner and baseline on the test set, which is used once for the same networks.

The networks of studyloom's own training are run on the test set here. What a custom training loop
has kept is handed to the user's function, `objective.test`, which measures it. A stored test of the
same networks is reused.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from studyloom.config.values import describe_error
from studyloom.data.examples import Part
from studyloom.errors import NoWinner, UndefinedMetric
from studyloom.metrics import METRICS, Metric
from studyloom.objectives.user_functions import find_network_name, select_weights
from studyloom.storage.ledger import Store
from studyloom.winner.candidates import CandidateTrainings, Origin, Training
from studyloom.winner.data_facts import describe_data
from studyloom.winner.evaluation import Evaluation
from studyloom.winner.predictions import (
    DescribedPredictions,
    Explain,
    MeasuredNetwork,
    compute_outputs,
    describe_predictions,
    make_network,
)
from studyloom.winner.reevaluation import Reevaluated
from studyloom.winner.result import Scores, Tested
from studyloom.winner.statistics import Outputs, Sampled, compare, resample
from studyloom.winner.stored_trainings import CandidateStage
from studyloom.worker.provenance import current_environment

CPU = torch.device("cpu")

log = logging.getLogger(__name__)

State = dict[str, Any]  # the weights of a network, or the states that a loop kept, by name
# The states that the final trainings of each candidate kept, in the order of their seeds.
States = dict[Origin, list[State]]


@dataclass(frozen=True)
class MeasuredWinner:
    """The findings on a winner.

    Args:
        state: the state that its first training kept; None if a loop kept nothing.
    """

    tested: Tested
    state: State | None


def measure_winner(
    evaluation: Evaluation,
    store: Store,
    *,
    repeat: bool,
    explain: Explain | None,
) -> MeasuredWinner:
    """Measures winner and baseline, unless the same networks were tested before.

    Stores the findings in the database at once.

    Args:
        evaluation: the evaluation of a study whose final training has ended.
        repeat: whether to test networks again that were tested before.
        explain: explains the predictions of the winner.

    Raises:
        NoWinner: a final training has failed, or the metric has no value on the test set.
    """
    reevaluated = evaluation.reevaluated
    stage = evaluation.trained
    assert reevaluated is not None
    assert stage is not None
    winner = reevaluated.winner
    is_earlier = False
    if evaluation.test is not None and not repeat:
        tested = evaluation.test.tested
        is_earlier = evaluation.test.is_earlier
        state = stage.load_or_train(Training(winner, 0))
        if tested.data is None and has_known_network(stage.source):
            # The user has named the network after the test; using it needs facts about the data.
            tested = replace(tested, data=describe_data(stage.source, winner, None))
    else:
        states: States = {}
        for training in stage.source.trainings:
            state_of_seed = stage.load_or_train(training) or {}
            states.setdefault(training.candidate, []).append(state_of_seed)
        state = states[winner][0]
        tested = use_test_set(reevaluated, stage, states, store, explain)
    assert tested.test is not None
    uses = reevaluated.search.test_uses()
    scores = replace(tested.test, uses=uses, earlier=is_earlier)
    return MeasuredWinner(replace(tested, test=scores), state)


def use_test_set(
    reevaluated: Reevaluated,
    stage: CandidateStage,
    states: States,
    store: Store,
    explain: Explain | None,
) -> Tested:
    """Measures the final networks on the test set, and stores the findings.

    Raises:
        NoWinner: the metric has no value on the test set.
    """
    # The use is counted before the test set is read: this process may be killed during the test.
    reevaluated.search.count_test_use(store)
    measure = measure_loops
    if stage.source.definition.trains_networks:
        measure = measure_networks
    try:
        tested = measure(stage.source, reevaluated, states, explain)
    except UndefinedMetric as error:
        raise NoWinner(f"no value on the test set: {error}; fix the test data") from error
    stage.store_test(tested, store)
    return tested


def describe_untested(trainings: CandidateTrainings, winner: Origin) -> Tested:
    """Describes the winner of a loop without `objective.test`."""
    data = None
    if has_known_network(trainings):
        data = describe_data(trainings, winner, None)
    return Tested(
        seeds=trainings.new_seeds,
        untested=trainings.definition.untested or None,
        environment=current_environment(CPU),
        data=data,
    )


def has_known_network(trainings: CandidateTrainings) -> bool:
    """Returns whether the network of a loop and its training data are known.

    They are if a config names them as `objective.network` and `data`.
    """
    objective = trainings.definition.config.objective
    return trainings.data.split is not None and objective.network is not None


def measure_loops(
    trainings: CandidateTrainings, reevaluated: Reevaluated, states: States, explain: Explain | None
) -> Tested:
    """Calls `objective.test`, which measures the states of loops on the test set, for each seed.

    Raises:
        NoWinner: the user's function has raised an exception, or returned no finite number.
    """
    definition = trainings.definition
    metric = definition.metric
    winner = reevaluated.winner
    seeds = trainings.new_seeds
    test = None
    examples = None
    if trainings.data.split is not None:
        test = trainings.data.test()
        examples = len(test)

    results: dict[Origin, list[dict[str, float]]] = {}
    for candidate, states_by_seed in states.items():
        results[candidate] = []
        for seed, state in zip(seeds, states_by_seed, strict=True):
            dataset = None
            if test is not None:
                dataset = test.as_dataset()
            result = definition.test(trainings.candidates[candidate], seed, state, dataset)
            results[candidate].append(result)
    values = {}
    for candidate, results_by_seed in results.items():
        values[candidate] = [result[metric.name] for result in results_by_seed]
    scores = compare_with_others(reevaluated, values, metric)

    described = DescribedPredictions()
    data = None
    has_own_test = True
    if test is not None and has_known_network(trainings):
        with warning_of_errors():
            network = measure_kept_network(trainings, winner, states[winner][0], test)
            described = describe_predictions(network, explain)
            has_own_test = False
        data = describe_data(trainings, winner, test)
    return Tested(
        test=replace(scores, examples=examples, further=tuple(results[winner])),
        data=data,
        seeds=seeds,
        own_test=has_own_test,
        environment=current_environment(CPU),
        **vars(described),
    )


def measure_kept_network(
    trainings: CandidateTrainings, winner: Origin, state: State, test: Part
) -> MeasuredNetwork:
    """Runs the network that a loop has kept on the test set."""
    definition = trainings.definition
    job = trainings.job(winner, 0)
    weights = select_weights(state, find_network_name(definition.config.objective.network))
    return MeasuredNetwork(
        job=job,
        network=make_network(job, weights, test),
        metric=METRICS.get(definition.metric.name, definition.metric),
        outputs=compute_outputs(job, weights, test),
        test=test,
    )


@contextmanager
def warning_of_errors() -> Iterator[None]:
    """Turns an exception of what only the report needs into a warning: the test is done."""
    try:
        yield
    except Exception as error:  # the user's code may raise anything
        log.warning("the report lacks the winner's predictions: %s", describe_error(error))


def compare_with_others(
    reevaluated: Reevaluated,
    values: Mapping[Origin, Sequence[float]],
    metric: Metric,
    sampled: Mapping[Origin, Sampled] | None = None,
) -> Scores:
    """Compares the winner with the baseline, and with the simple configuration if it was trained.

    Args:
        values: a value on the test set for each seed of each candidate.
        metric: the metric of these values.
        sampled: the values on single examples or resamples, see `resample`.
    """
    winner = reevaluated.winner
    baseline = reevaluated.baseline
    scores = compare(values, winner, baseline, sampled, metric.bounds)
    for candidate in values:
        if candidate not in (winner, baseline):  # it is the simple configuration
            simple = compare(values, winner, candidate, sampled, metric.bounds).baseline
            return replace(scores, simple=simple)
    return scores


def measure_networks(
    trainings: CandidateTrainings, reevaluated: Reevaluated, states: States, explain: Explain | None
) -> Tested:
    """Measures networks on the test set.

    Raises:
        UndefinedMetric: the metric has no value there.
    """
    metric = trainings.definition.metric
    winner = reevaluated.winner
    test = trainings.data.test().to(trainings.data.device)
    jobs = {candidate: trainings.job(candidate, 0) for candidate in states}
    outputs: dict[Origin, list[Outputs]] = {}
    for candidate, weights_by_seed in states.items():
        job = jobs[candidate]
        outputs[candidate] = [compute_outputs(job, weights, test) for weights in weights_by_seed]
    values = {}
    for candidate, outputs_by_seed in outputs.items():
        values[candidate] = [network.score(metric) for network in outputs_by_seed]

    job = jobs[winner]
    first_outputs = outputs[winner][0]
    sampled = None
    references = {}
    described = DescribedPredictions()
    # With an evaluation function of the user, outputs and targets may mean anything.
    if job.evaluate is None:
        sampled = resample(metric, outputs, len(test), trainings.new_seed(0))
        for rule, predicted in test.references.items():
            references[rule] = metric(predicted.cpu(), first_outputs.targets)
        with warning_of_errors():
            network = make_network(job, states[winner][0], test)
            measured = MeasuredNetwork(job, network, metric, first_outputs, test)
            described = describe_predictions(measured, explain)
    scores = compare_with_others(reevaluated, values, metric, sampled)
    seeds = [trainings.job(winner, seed).seed for seed in range(trainings.seeds)]
    return Tested(
        test=replace(scores, examples=len(test), references=references),
        data=describe_data(trainings, winner, test),
        seeds=tuple(seeds),
        epochs=job.last_epoch,
        environment=current_environment(test.device),
        **vars(described),
    )
