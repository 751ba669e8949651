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
from studyloom.metrics import METRICS
from studyloom.objectives.user_functions import find_network_name, select_weights
from studyloom.storage.ledger import Store
from studyloom.winner.candidates import CandidateId, CandidateTrainings, Training
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
StatesByCandidate = dict[CandidateId, list[State]]


@dataclass(frozen=True)
class MeasuredWinner:
    """A winner that was measured on the test set.

    Args:
        tested: the findings, which the result has.
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
    """Measures winner and baseline on the test set, unless the same networks were tested before.

    Args:
        evaluation: the evaluation of a study whose final training has ended.
        store: writes to the database for the only command that may test the winner now.
        repeat: whether to test networks again that were tested before.
        explain: explains the predictions of the winner; None for no explanations.

    Raises:
        NoWinner: a final training has failed, or the metric has no value on the test set.
    """
    reevaluated = evaluation.reevaluated
    stage = evaluation.trained_stage
    assert reevaluated is not None
    assert stage is not None
    winner = reevaluated.winner
    if evaluation.test is not None and not repeat:
        measured = reuse_test(evaluation.test.tested, stage, winner)
        is_test_of_earlier_stage = evaluation.test.is_earlier
    else:
        states = load_states(stage)
        tested = use_test_set(reevaluated, stage, states, store, explain)
        state_of_first_seed = states[winner][0]
        measured = MeasuredWinner(tested, state_of_first_seed)
        is_test_of_earlier_stage = False
    assert measured.tested.test is not None
    scores = replace(
        measured.tested.test,
        test_set_uses=reevaluated.search.test_uses(),  # over all results of the study so far
        tested_before=is_test_of_earlier_stage,
    )
    return replace(measured, tested=replace(measured.tested, test=scores))


def reuse_test(tested: Tested, stage: CandidateStage, winner: CandidateId) -> MeasuredWinner:
    """Returns a winner with the stored test of its networks.

    If the user has named the network of a loop after the test, the facts about the data are added,
    which are needed to use the network.
    """
    state = stage.load_or_train(Training(winner, seed=0))
    if tested.data is None and has_known_network(stage.source):
        facts = describe_data(stage.source, winner, test=None)
        return MeasuredWinner(replace(tested, data=facts), state)
    return MeasuredWinner(tested, state)


def load_states(stage: CandidateStage) -> StatesByCandidate:
    """Loads the states that the final trainings kept; empty for one that kept nothing."""
    states: StatesByCandidate = {}
    for training in stage.source.trainings:
        kept_state = stage.load_or_train(training) or {}
        states.setdefault(training.candidate, []).append(kept_state)
    return states


def use_test_set(
    reevaluated: Reevaluated,
    stage: CandidateStage,
    states: StatesByCandidate,
    store: Store,
    explain: Explain | None,
) -> Tested:
    """Measures the final networks on the test set, and stores the findings at once.

    Raises:
        NoWinner: the metric has no value on the test set.
    """
    # The use is counted before the test set is read: this process may be killed during the test.
    reevaluated.search.count_test_use(store)
    try:
        if stage.source.definition.trains_networks:
            tested = measure_networks(stage.source, reevaluated, states, explain)
        else:
            tested = measure_loops(stage.source, reevaluated, states, explain)
    except UndefinedMetric as error:
        raise NoWinner(f"no value on the test set: {error}; fix the test data") from error
    stage.store_test(tested, store)
    return tested


def describe_untested(trainings: CandidateTrainings, winner: CandidateId) -> Tested:
    """Describes the winner of a loop without `objective.test`, which is not tested.

    The field `untested` is the reason, for instance that a command returns no network; None if the
    user could set `objective.test`.
    """
    data = None
    if has_known_network(trainings):
        data = describe_data(trainings, winner, test=None)
    return Tested(
        seeds=trainings.new_seeds,
        untested=trainings.definition.untested or None,
        environment=current_environment(CPU),
        data=data,
    )


def has_known_network(trainings: CandidateTrainings) -> bool:
    """Returns whether a config names the network of a loop and its training data.

    Their keys are `objective.network` and `data`.
    """
    objective = trainings.definition.config.objective
    return trainings.data.split is not None and objective.network is not None


def measure_loops(
    trainings: CandidateTrainings,
    reevaluated: Reevaluated,
    states: StatesByCandidate,
    explain: Explain | None,
) -> Tested:
    """Measures the states that loops kept, by `objective.test`: a function of the user.

    Args:
        states: the states of each candidate, in the order of their seeds.

    Raises:
        NoWinner: the user's function has raised an exception, or returned no finite number.
    """
    metric = trainings.definition.metric
    winner = reevaluated.winner
    test_set = None  # None if the loop loads its data itself
    examples = None
    if trainings.data.split is not None:
        test_set = trainings.data.test()
        examples = len(test_set)

    results = {}
    values = {}
    for candidate, kept_states in states.items():
        results[candidate] = call_test_function(trainings, candidate, kept_states, test_set)
        values[candidate] = [result[metric.name] for result in results[candidate]]
    scores = compare_with_others(trainings, reevaluated, values)

    # For the report, the winner's network is run on the test set too, if the config says what makes
    # it. Without that, or if it fails with a warning, the result has only the values that the test
    # function of the user has returned.
    described = DescribedPredictions()
    data = None
    tested_by_function_only = True
    if test_set is not None and has_known_network(trainings):
        state_of_first_seed = states[winner][0]
        with warning_of_errors():
            network = measure_kept_network(trainings, winner, state_of_first_seed, test_set)
            described = describe_predictions(network, explain)
            tested_by_function_only = False
        data = describe_data(trainings, winner, test_set)
    seeds = trainings.new_seeds
    definition = trainings.definition
    if definition.has_optuna_objective:
        seeds = tuple(definition.find_test_seed(seed) for seed in seeds)
    return Tested(
        test=replace(scores, examples=examples, further_values=tuple(results[winner])),
        data=data,
        seeds=seeds,
        tested_by_function_only=tested_by_function_only,
        environment=current_environment(CPU),
        **vars(described),
    )


def call_test_function(
    trainings: CandidateTrainings,
    candidate: CandidateId,
    kept_states: Sequence[State],
    test_set: Part | None,
) -> list[dict[str, float]]:
    """Calls the user's function `objective.test` with the state of each seed of a candidate.

    Returns:
        For each seed the value of the metric, and of what else the function returns, by name.
    """
    definition = trainings.definition
    configuration = trainings.candidates[candidate]
    results = []
    for seed, state in zip(trainings.new_seeds, kept_states, strict=True):
        dataset = None
        if test_set is not None:
            dataset = test_set.as_dataset()
        results.append(definition.test(configuration, seed, state, dataset))
    return results


def measure_kept_network(
    trainings: CandidateTrainings, winner: CandidateId, state: State, test: Part
) -> MeasuredNetwork:
    """Runs the network that a loop has kept on the test set, for the report."""
    definition = trainings.definition
    job = trainings.job(winner, seed=0)
    weights = select_weights(state, find_network_name(definition.config.objective.network))
    # A built-in metric of this name can compute values from outputs. The metric of a loop cannot:
    # the loop reports its values.
    metric = METRICS.get(definition.metric.name, definition.metric)
    return MeasuredNetwork(
        job=job,
        network=make_network(job, weights, test),
        metric=metric,
        outputs=compute_outputs(job, weights, test),
        test=test,
    )


@contextmanager
def warning_of_errors() -> Iterator[None]:
    """Turns an exception in the body, which only the report needs, into a warning."""
    try:
        yield
    except Exception as error:  # the user's code may raise anything
        log.warning("the report lacks the winner's predictions: %s", describe_error(error))


def compare_with_others(
    trainings: CandidateTrainings,
    reevaluated: Reevaluated,
    values: Mapping[CandidateId, Sequence[float]],
    sampled: Mapping[CandidateId, Sampled] | None = None,
) -> Scores:
    """Compares the winner with the baseline, and with the simple configuration if it was trained.

    If the winner was chosen for these networks, chance has favored them, on the test set too. The
    difference to the baseline has no interval then: it would not contain the truth often enough.

    Args:
        trainings: the final trainings.
        values: a value on the test set for each seed of each candidate.
        sampled: the values on single examples or resamples, see `resample`.
    """
    bounds = trainings.definition.metric.bounds
    winner = reevaluated.winner
    baseline = reevaluated.baseline
    scores = compare(values, winner, baseline, sampled, bounds)
    if measures_selected_networks(trainings, reevaluated) and scores.difference is not None:
        difference = replace(scores.difference, interval=None)
        scores = replace(scores, difference=difference, used_in_selection=True)
    simple = next((key for key in values if key not in (winner, baseline)), None)
    if simple is None:
        return scores
    # `compare` calls the candidate that the winner is compared with its baseline.
    comparison_with_simple = compare(values, winner, simple, sampled, bounds)
    return replace(scores, simple=comparison_with_simple.baseline)


def measures_selected_networks(trainings: CandidateTrainings, reevaluated: Reevaluated) -> bool:
    """Returns whether the tested networks are those for whose values the winner was chosen."""
    has_networks_of_reevaluation = (
        trainings.definition.tests_kept_states
        and trainings.has_examples_of_reevaluation
        and not trainings.has_final_seeds
    )
    return has_networks_of_reevaluation and reevaluated.winner_was_selected


def measure_networks(
    trainings: CandidateTrainings,
    reevaluated: Reevaluated,
    states: StatesByCandidate,
    explain: Explain | None,
) -> Tested:
    """Measures networks on the test set, and describes the predictions of the winner.

    Args:
        states: the weights of the networks of each candidate, in the order of their seeds.

    Raises:
        UndefinedMetric: the metric has no value there.
    """
    metric = trainings.definition.metric
    winner = reevaluated.winner
    test_set = trainings.data.test().to(trainings.data.device)
    outputs: dict[CandidateId, list[Outputs]] = {}
    values: dict[CandidateId, list[float]] = {}
    for candidate, weights_by_seed in states.items():
        job = trainings.job(candidate, seed=0)
        outputs[candidate] = []
        values[candidate] = []
        for weights in weights_by_seed:
            outputs_of_network = compute_outputs(job, weights, test_set)
            outputs[candidate].append(outputs_of_network)
            values[candidate].append(outputs_of_network.score(metric))

    job = trainings.job(winner, seed=0)
    first_outputs = outputs[winner][0]
    sampled = None  # the values on single examples, for the intervals
    references = {}
    described = DescribedPredictions()
    # With an evaluation function of the user, outputs and targets may mean anything.
    if job.evaluate is None:
        sampled = resample(metric, outputs, len(test_set), trainings.new_seed(0))
        # Predictions of simple rules, such as persistence: the last value of a time series
        for rule, predicted in test_set.references.items():
            references[rule] = metric(predicted.cpu(), first_outputs.targets)
        with warning_of_errors():
            network = make_network(job, states[winner][0], test_set)
            measured = MeasuredNetwork(job, network, metric, first_outputs, test_set)
            described = describe_predictions(measured, explain)
    scores = compare_with_others(trainings, reevaluated, values, sampled)
    seeds = [trainings.job(winner, seed).seed for seed in range(trainings.seeds)]
    return Tested(
        test=replace(scores, examples=len(test_set), references=references),
        data=describe_data(trainings, winner, test_set),
        seeds=tuple(seeds),
        epochs=job.last_epoch,
        environment=current_environment(test_set.device),
        **vars(described),
    )
