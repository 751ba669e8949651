"""Evaluating the winner: winner and baseline on the test part, and the files of the answer."""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from studyloom.data.training_data import Part
from studyloom.errors import NoWinner, UndefinedMetric
from studyloom.extras.explain import explain
from studyloom.question.objective import Attempt
from studyloom.question.question import FunctionQuestion
from studyloom.storage.attributes import KEPT, TESTED
from studyloom.study.failures import reason_of
from studyloom.study.job import RETRAINING
from studyloom.study.provenance import current_environment
from studyloom.study.stopping import Stop
from studyloom.training.checkpoint import load_weights, pack_weights
from studyloom.training.job import Job
from studyloom.training.trainer import evaluate_network
from studyloom.winner import committee
from studyloom.winner.answer import format_race, write_answer
from studyloom.winner.candidates import CandidateTrainings
from studyloom.winner.earlier import earlier_test
from studyloom.winner.model_card import describe_data, model_card
from studyloom.winner.pictures import report_part
from studyloom.winner.racing import describe_race
from studyloom.winner.stages import Plan, Stage
from studyloom.winner.statistics import compare, resample, summarise
from studyloom.winner.winner_yaml import winner_yaml

NO_TEST = "there is no objective.test, so that nothing was tested"
OWN_TEST = "a function of your own has tested it, so that there are no predictions to show"


def evaluate_winner(
    plan: Plan, test: Callable[[], Part], command: Sequence[str], *, anew: bool = False
) -> dict[str, Any]:
    """Tests winner and baseline, and writes winner.{json,yaml,pt} and model_card.md.

    What the test part gave is stored in the database as soon as it is known. If the same networks
    were tested before, the test part stays closed.

    A loop without `objective.test` is not tested: the re-evaluation has found the winner, and
    winner.pt holds what the loop has kept there.

    Args:
        plan: the stages of the run, all of which have ended.
        test: loads the test part; called once, if at all.
        command: the command of the study's page.
        anew: whether to open the test part also if it was opened for these networks before.

    Returns:
        what winner.json holds.

    Raises:
        NoWinner: a final training or the test has failed.
        OSError: a file cannot be written.
    """
    stage, run_dir, metric = plan.last, plan.run_dir, plan.question.metric
    trainings = stage.asked
    assert isinstance(trainings, CandidateTrainings)
    seeds = trainings.seeds if plan.question.tested else len(plan.fresh_values[plan.winner])
    answer = {
        "study": plan.search.stored.name,
        "stage": stage.stored.name,
        "trials": plan.trials,
        "study_trials": sum(plan.search.stored.ledger.counts().values()),
        "reused": plan.reused(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        **describe_candidates(plan),
        "metric": {"name": metric.name, "direction": metric.direction},
        "rule": str(plan.rule),
        "keeps": plan.rule.holds(plan.known_values(plan.winner)),
        "test": None,
        "data": None,
        "seeds": [trainings.fresh_seed(seed) for seed in range(seeds)],
        "command": list(command),
    }
    files: dict[str, bytes] = {}
    if plan.question.tested:
        tested, kept = test_trainings(plan, trainings, test, anew=anew)
        answer |= tested
        files |= committee.pack(plan, answer, partial(load_or_train, plan))
        files["model_card.md"] = model_card(answer, plan).encode()
    else:
        kept = load_or_train(plan, plan.last, plan.winner, 0)
        answer |= {"note": NO_TEST, "environment": current_environment(torch.device("cpu"))}
    if kept is not None:
        files["winner.pt"] = pack_weights(kept)
    files["winner.yaml"] = winner_yaml(plan, command, format_race(answer)).encode()
    return write_answer(run_dir, answer, files)


def test_trainings(
    plan: Plan, trainings: CandidateTrainings, test: Callable[[], Part], *, anew: bool
) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """Returns what the test part gives for winner and baseline; opens it if that is not known.

    Args:
        plan: the stages of the run.
        trainings: the final ones.
        test: loads the test part.
        anew: whether to open it also if it is known.

    Returns:
        the entries of winner.json about the test, and what the winner's first seed has kept.

    Raises:
        NoWinner: a final training has failed, or the metric has no value on the test part.
    """
    stored, wanted = plan.search.stored, plan.settings.committee
    known = earlier_test(stored, plan.retraining.stored)
    choice = committee.recall(plan, known and known[0]) if wanted else None
    if anew or known is None or (wanted and choice is None):
        trained = {
            n: [load_or_train(plan, plan.last, n, seed) or {} for seed in range(trainings.seeds)]
            for n in trainings.candidates
        }
        if wanted and choice is None:
            choice = committee.choose(plan, partial(load_or_train, plan))
        stored.count_test_opening()  # before it, should this be killed
        if isinstance(plan.question, FunctionQuestion):
            tested = call_test(plan.question, plan, trainings, trained, test)
        else:
            try:
                tested = measure(plan, trainings, trained, test, choice)
            except UndefinedMetric as error:
                raise NoWinner(f"no value on the test part: {error}; mend the part") from error
        plan.retraining.stored.optuna.set_user_attr(TESTED, tested)
        earlier, kept = False, trained[plan.winner][0]
    else:
        tested, earlier = dict(known[0]), known[1]
        if not wanted:
            tested.pop("committee", None)
        kept = load_or_train(plan, plan.last, plan.winner, 0) or {}
    counted = {"openings": stored.test_openings(), "earlier": earlier}
    return tested | {"test": tested["test"] | counted}, kept


def call_test(
    question: FunctionQuestion,
    plan: Plan,
    trainings: CandidateTrainings,
    trained: Mapping[int, Sequence[dict[str, Any]]],
    test: Callable[[], Part],
) -> dict[str, Any]:
    """Opens the test part, and has `objective.test` test what loops have kept.

    Args:
        question: of the study.
        plan: the stages of the run.
        trainings: the final ones.
        trained: the states that each seed has kept, by candidate.
        test: loads the test part, where there are data.

    Returns:
        the entries of winner.json about the test.

    Raises:
        NoWinner: the user's function has raised an exception, or returned no finite number.
    """
    sealed = None if plan.data.split is None else test()

    def judge(candidate: int, seed: int, states: dict[str, Any]) -> dict[str, float]:
        part = None if sealed is None else sealed.part()
        fresh = trainings.fresh_seed(seed)
        return question.test(plan.candidates[candidate], fresh, states, part)

    judged = {
        n: [judge(n, seed, states) for seed, states in enumerate(by_seed)]
        for n, by_seed in trained.items()
    }
    values = {n: [each[question.metric.name] for each in by_seed] for n, by_seed in judged.items()}
    return {
        "test": compare(values, plan.winner, plan.baseline())
        | {
            "examples": None if sealed is None else len(sealed),
            "references": {},
            "further": judged[plan.winner],
        },
        "note": OWN_TEST,
        "data": None,
        "environment": current_environment(torch.device("cpu")),
    }


def measure(
    plan: Plan,
    trainings: CandidateTrainings,
    networks: Mapping[int, Sequence[Mapping[str, Tensor]]],
    test: Callable[[], Part],
    choice: committee.Choice | None = None,
) -> dict[str, Any]:
    """Opens the test part, and measures networks on it.

    Args:
        plan: the stages of the run.
        trainings: the final ones.
        networks: the weights of each seed, by candidate.
        test: loads the test part.
        choice: the committee, if there is to be one.

    Returns:
        the entries of winner.json about the test.

    Raises:
        UndefinedMetric: the metric has no value there.
    """
    split, metric = plan.data.split, plan.question.metric
    assert split is not None
    sealed = test().to(split.device)
    judged = {
        n: [judge_network(trainings, n, weights, sealed) for weights in by_seed]
        for n, by_seed in networks.items()
    }
    values = {n: [metric(*pair) for pair in each] for n, each in judged.items()}
    job, (outputs, targets) = trainings.job(plan.winner, 0), judged[plan.winner][0]
    # With a train.evaluate of the user's own, outputs and targets may mean something else.
    own = job.evaluate is not None
    seed = trainings.fresh_seed(0)
    resampled = None if own else resample(metric, judged, len(sealed), seed)
    references = {
        rule: metric(predicted.cpu(), targets)
        for rule, predicted in ({} if own else sealed.references).items()
    }
    shown: dict[str, Any] = {}
    if not own:
        shown = report_part(outputs, targets, sealed)
        wrong = [mistake["index"] for mistake in shown.get("wrong", ())]
        network = build_network(job, networks[plan.winner][0], sealed)
        shown |= explain(job, network, metric, outputs, targets, sealed, wrong, seed)
    return {
        "test": compare(values, plan.winner, plan.baseline(), resampled, seed)
        | {"examples": len(sealed), "references": references},
        **shown,
        "epochs": job.last,
        "seeds": [trainings.job(plan.winner, seed).seed for seed in range(trainings.seeds)],
        "data": describe_data(plan, job, split, sealed),
        "environment": current_environment(sealed.device),
        **({} if choice is None else measure_committee(plan, choice, judged, values, sealed)),
    }


def measure_committee(
    plan: Plan,
    choice: committee.Choice,
    judged: Mapping[int, Sequence[tuple[Tensor, Tensor]]],
    values: Mapping[int, Sequence[float]],
    sealed: Part,
) -> dict[str, Any]:
    """Measures a committee on the test part, which is open.

    Args:
        plan: the stages of the run.
        choice: the committee.
        judged: outputs and targets of the final networks, by candidate and seed.
        values: of the same.
        sealed: the test part.

    Returns:
        the entry `committee` of winner.json.
    """
    trainings = plan.reevaluation.asked
    assert isinstance(trainings, CandidateTrainings)

    def outputs_of(member: committee.Member) -> tuple[Tensor, Tensor]:
        if member.stage == RETRAINING:
            return judged[member.trial][member.seed]
        weights = load_or_train(plan, plan.reevaluation, member.trial, member.seed)
        return judge_network(trainings, member.trial, weights or {}, sealed)

    return {"committee": committee.judge(plan, choice, outputs_of, values[plan.winner])}


def load_or_train(plan: Plan, stage: Stage, candidate: int, seed: int) -> dict[str, Any] | None:
    """Loads what a stage has kept of a training; trains again if another host keeps it.

    Args:
        plan: the stages of the run.
        stage: that keeps its networks.
        candidate: the number of the candidate.
        seed: the number of the seed, from 0.

    Returns:
        the weights of a network, or the states of a loop; None if the loop has kept nothing.

    Raises:
        NoWinner: that training has failed.
    """
    trainings = stage.asked
    assert isinstance(trainings, CandidateTrainings)
    assert stage.weights is not None
    by_candidate_and_seed = {
        (t.params["candidate"], t.params["seed"]): t
        for t in stage.stored.trials()
        if "seed" in t.params
    }
    trial = by_candidate_and_seed[candidate, seed]
    if trial.value is None:
        reason = reason_of(trial) or trial.state.name
        raise NoWinner(f"trial {candidate} could not be trained on all data: {reason}")
    try:
        return load_weights(stage.weights / f"trial-{trial.number}.pt")
    except (OSError, ValueError):
        if not plan.question.tested and KEPT not in trial.user_attrs:
            return None
    objective = plan.question.make_objective(
        trainings.candidates[candidate],
        trial.number,
        plan.data,
        Attempt(stage=stage.title),
        trainings.fresh_seed(seed),
        None if plan.data.split is None else trainings.fold(seed),
    )
    objective.run(lambda step: None, Stop())
    return objective.weights()


def judge_network(
    trainings: CandidateTrainings, candidate: int, weights: Mapping[str, Tensor], split: Part
) -> tuple[Tensor, Tensor]:
    """Evaluates a candidate's network on a split.

    Returns:
        the outputs and targets, both (n, …), on the CPU.
    """
    job = trainings.job(candidate, 0)
    outputs, targets = evaluate_network(job, build_network(job, weights, split), split)
    return outputs.cpu(), targets.cpu()


def build_network(job: Job, weights: Mapping[str, Tensor], split: Part) -> nn.Module:
    """Returns the network of a job with these weights."""
    model = job.model(shape=split.shape, outputs=split.outputs)
    model.load_state_dict(weights)
    return model


def describe_candidates(plan: Plan) -> dict[str, Any]:
    """Describes the candidates by what the search and the re-evaluation gave.

    Returns:
        the entries `winner` and `candidates` of winner.json, the best first. A `gap` is above 0 if
        the search flattered the candidate; without a re-evaluation there is none.
    """
    sign, stored, fresh_values = plan.question.metric.sign, plan.search.stored, plan.fresh_values
    searched = {trial.number: trial.values for trial in stored.feasible()}
    rows = []
    for number, point in plan.candidates.items():
        row: dict[str, Any] = {
            "trial": number,
            "params": point.params,
            "search_value": searched[number][0],
        }
        if len(stored.goals) > 1:
            row["costs"] = {
                goal.name: value
                for goal, value in zip(stored.goals[1:], searched[number][1:], strict=True)
            }
        if number == plan.baseline():
            row["baseline"] = True
        if number in fresh_values:
            row |= {"values": fresh_values[number], **summarise(fresh_values[number])}
            row["gap"] = sign * (row["search_value"] - row["mean"])
        rows.append(row)
    # Who left a race early was behind then, whatever its mean on fewer seeds.
    rows.sort(
        key=lambda row: (-len(row.get("values", ())), -sign * row.get("mean", -sign * math.inf))
    )
    winner = next(row for row in rows if row["trial"] == plan.winner)
    race = {}
    if plan.reevaluates and plan.races:
        race["race"] = describe_race(plan.race, plan.reevaluation.stored.trials(), plan.budget)
    return {"winner": winner, "candidates": rows, **race}
