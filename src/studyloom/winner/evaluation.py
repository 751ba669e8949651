"""The answer of a study: winner and baseline on the test part, and the files that are written."""

import base64
import io
import logging
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from studyloom.config.values import as_yaml, describe_error, plain_sections, value_at
from studyloom.data.training_data import Part
from studyloom.data.transform import InputRange, Reader, describe_transform
from studyloom.definition.definition import SECTIONS
from studyloom.definition.jobs import kept_name, measure_costs, weights_of
from studyloom.definition.scale import Scale, present
from studyloom.errors import NoWinner, UndefinedMetric
from studyloom.metrics import METRICS, Goal, Metric
from studyloom.plugins import load_plugin
from studyloom.space.tree import Point
from studyloom.storage.attributes import DEFINED, EPOCHS, TESTED
from studyloom.study.provenance import current_environment
from studyloom.text import one_line
from studyloom.training.checkpoint import pack_weights
from studyloom.training.job import Job
from studyloom.winner import statistics
from studyloom.winner.model_card import model_card
from studyloom.winner.result import (
    CARD,
    Candidate,
    DataFacts,
    Predictions,
    RangeFacts,
    Result,
    Tested,
    Transfer,
    Wrong,
    to_document,
    write_result,
)
from studyloom.winner.stages import Origin, Plan
from studyloom.winner.statistics import compare, rank_correlation, resample, summarise
from studyloom.winner.trainings import earlier_test, input_dtype, judge_network, make_network

NO_TEST = "there is no objective.test, so that nothing was tested"
OWN_TEST = "a function of your own has tested it, so that there are no predictions to show"
WRONG = 20  # wrong predictions that are kept, the most confident ones
POINTS = 1000  # predictions of numbers that are kept, at most
CPU = torch.device("cpu")

log = logging.getLogger(__name__)


def evaluate_winner(
    plan: Plan,
    test: Callable[[], Part],
    command: Sequence[str],
    store: Callable[[int, str, Any], None],
    *,
    anew: bool = False,
) -> Result:
    """Tests winner and baseline, and writes winner.{json,yaml,pt} and model_card.md.

    What the test part gave is stored in the database as soon as it is known. If the same networks
    were tested before, the test part stays closed, unless the test is to be made `anew`.

    A loop without `objective.test` is not tested: the re-evaluation has found the winner, and
    winner.pt holds what the loop has kept there.

    Args:
        store: of the command that holds the lease, see `Ledger.testing`.

    Raises:
        NoWinner: a final training or the test has failed.
        StorageError: another command has taken over the lease.
        OSError: a file cannot be written.
    """
    definition, stored = plan.definition, plan.search.stored
    if definition.tested:
        tested, kept = test_trainings(plan, test, store, anew=anew)
    else:
        kept = plan.load_or_train(plan.last, plan.winner, 0)
        trainings = plan.last.trainings
        fresh = tuple(trainings.fresh_seed(seed) for seed in range(trainings.seeds))
        note = getattr(getattr(definition, "adapter", None), "untested", NO_TEST)
        about = describe_data(plan, None) if predicts(plan) else None
        tested = Tested(seeds=fresh, note=note, environment=current_environment(CPU), data=about)
    candidates = describe_candidates(plan)
    winner = next(r for r in candidates if Origin(r.trial, r.factor).number == plan.winner)
    answer = Result(
        **vars(tested),
        study=stored.name,
        stage=plan.last.stored.name,
        trials=plan.trials,
        study_trials=sum(stored.ledger.counts().values()),
        reused=plan.reused(),
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        winner=winner,
        candidates=tuple(candidates),
        metric=Goal(definition.metric.name, definition.metric.direction),
        rule=str(plan.rule),
        keeps=plan.rule.holds(plan.known_values(plan.winner)),
        transfer=describe_transfer(plan, winner, candidates),
        command=tuple(command),
    )
    files = {"winner.yaml": winner_yaml(plan, answer.winner.name, command).encode()}
    if kept is not None:
        files["winner.pt"] = pack_weights(kept)
    if answer.test is not None:
        (stored,) = plan.search.stored.attributes(DEFINED)
        sources = {name: str(stored[name]) for name in stored} if isinstance(stored, dict) else {}
        files[CARD] = model_card(answer, plan.run_dir, plan.data.split, sources).encode()
    return write_result(plan.run_dir, answer, files)


def describe_candidates(plan: Plan) -> list[Candidate]:
    """Describes the candidates by what the search and the re-evaluation gave, the best first."""
    metric, stored, fresh_values = plan.definition.metric, plan.search.stored, plan.fresh_values
    searched = {trial.number: trial.values for trial in stored.feasible()}
    rows = []
    for number, point in plan.candidates.items():
        origin = Origin.of(number)
        value, *costs = searched[origin.trial]
        names = (goal.name for goal in stored.goals[1:])
        row = Candidate(
            trial=origin.trial,
            params=dict(point.params),
            search_value=value,
            costs=dict(zip(names, costs, strict=True)),
            baseline=number == plan.baseline(),
            factor=origin.factor,
        )
        if number in fresh_values:
            known = summarise(fresh_values[number], metric.bounds)
            gap = statistics.difference(metric.sign * value, metric.sign * known.mean)
            row = replace(row, **vars(known), gap=gap)
        rows.append(row)
    return sorted(rows, key=lambda row: (row.mean is None, -metric.sign * (row.mean or 0.0)))


def describe_transfer(
    plan: Plan, winner: Candidate, candidates: Sequence[Candidate]
) -> Transfer | None:
    """Describes how far the small trials told what is good at the target size of a `scale`."""
    if (scale := plan.definition.scale) is None or not scale.target:
        return None
    judged = [(r.search_value, r.mean) for r in candidates if r.factor == 1 and r.mean is not None]
    order, interval = rank_correlation(judged)
    point, small = plan.candidates[plan.winner], plan.definition.space.at(winner.params)
    changed = {key: value for key, value in point.values.items() if small.values.get(key) != value}
    return Transfer(
        small=dict(scale.searched),
        target=dict(scale.target),
        rule=scale.rule,
        values=changed,
        promised=winner.search_value,
        reached=winner.search_value if winner.mean is None else winner.mean,
        candidates=len(judged),
        order=order,
        interval=interval,
        neighbour=winner.factor != 1,
        share=_share_of_operations(plan, scale),
    )


def _share_of_operations(plan: Plan, scale: Scale) -> float | None:
    """Returns how many of the operations were done that all at the target size would have taken.

    Counted is a forward pass of each network by the examples of its training.
    """
    definition, split = plan.definition, plan.data.split
    if split is None or not definition.trains_networks:
        return None
    part, fold = split.for_preflight(), plan.judging_fold(0)
    known: dict[str, tuple[float, int]] = {}

    def operations(point: Point) -> tuple[float, int]:
        """Returns those of an epoch of one job, and the epochs of a training."""
        name = as_yaml(plain_sections(definition.at(point), "model", "train"))
        if name not in known:
            job = definition.job(point, fold, seed=0)
            (flops,) = measure_costs(["flops"], [], job, part)
            known[name] = flops.value * job.samples, job.last
        return known[name]

    small = target = judged = 0.0
    for trial in plan.search.stored.trials():
        run = len(trial.user_attrs.get(EPOCHS, {}).get("value", ()))
        if not run:
            continue
        point = definition.space.at(trial.params)
        each, last = operations(point)
        small += run * each
        each, full = operations(plan.at_target(point))
        target += run * full / last * each
    for stage in plan.later():
        for candidate, _ in stage.trained:
            each, full = operations(plan.candidates[candidate])
            judged += full * each
    return (small + judged) / (target + judged) if target else None


def test_trainings(
    plan: Plan, test: Callable[[], Part], store: Callable[[int, str, Any], None], *, anew: bool
) -> tuple[Tested, Mapping[str, Any] | None]:
    """Returns the results on the test part, opened if need be, and the winner's first weights.

    Raises:
        NoWinner: a final training has failed, or the metric has no value on the test part.
    """
    stored = plan.search.stored
    known = earlier_test(stored, plan.retraining.stored)
    if known is not None and not anew:
        tested, earlier = known
        kept = plan.load_or_train(plan.retraining, plan.winner, 0)
    else:
        trainings = plan.retraining.trainings
        trained: dict[int, list[dict[str, Any]]] = {}
        for n, seed in trainings.trainings:
            weights = plan.load_or_train(plan.retraining, n, seed) or {}
            trained.setdefault(n, []).append(weights)
        stored.count_test_opening(store)  # before it, should this be killed
        judge = measure if plan.definition.trains_networks else call_test
        try:
            tested = judge(plan, trained, test)
        except UndefinedMetric as error:
            raise NoWinner(f"no value on the test part: {error}; mend the part") from error
        store(plan.retraining.stored.ledger.study_id, TESTED, to_document(tested))
        earlier, kept = False, trained[plan.winner][0]
    assert tested.test is not None
    scores = replace(tested.test, openings=stored.test_openings(), earlier=earlier)
    return replace(tested, test=scores), kept


def call_test(
    plan: Plan, trained: Mapping[int, Sequence[dict[str, Any]]], test: Callable[[], Part]
) -> Tested:
    """Opens the test part, and has `objective.test` judge the states of loops for each seed.

    Raises:
        NoWinner: the user's function has raised an exception, or returned no finite number.
    """
    definition, trainings = plan.definition, plan.retraining.trainings
    sealed = None if plan.data.split is None else test()

    def judge(candidate: int, seed: int, states: dict[str, Any]) -> dict[str, float]:
        part = None if sealed is None else sealed.part()
        point = plan.candidates[candidate]
        return definition.test(point, trainings.fresh_seed(seed), states, part)

    judged = {
        n: [judge(n, seed, states) for seed, states in enumerate(by_seed)]
        for n, by_seed in trained.items()
    }
    values = {
        n: [each[definition.metric.name] for each in by_seed] for n, by_seed in judged.items()
    }
    scores = compare(values, plan.winner, plan.baseline(), bounds=definition.metric.bounds)
    shown: dict[str, Any] = {"note": OWN_TEST}
    if sealed is not None and predicts(plan):
        job, metric = trainings.job(plan.winner, 0), METRICS.get(definition.metric.name)
        try:
            kept = kept_name(definition.config.objective.network)
            weights = weights_of(trained[plan.winner][0], kept)
            pair = judge_network(job, weights, sealed)
            shown = explained(job, weights, metric or definition.metric, pair, sealed)
        except Exception as error:  # of the user's own code; the test has been made
            log.warning("the report lacks the winner's predictions: %s", describe_error(error))
        shown["data"] = describe_data(plan, sealed)
    examples = None if sealed is None else len(sealed)
    return Tested(
        test=replace(scores, examples=examples, further=tuple(judged[plan.winner])),
        seeds=tuple(trainings.fresh_seed(seed) for seed in range(trainings.seeds)),
        environment=current_environment(CPU),
        **shown,
    )


def predicts(plan: Plan) -> bool:
    """Whether the network of a loop is known, and the data that it is trained on."""
    return plan.data.split is not None and plan.definition.config.objective.network is not None


def explained(
    job: Job, weights: Mapping[str, Tensor], metric: Metric, pair: tuple[Tensor, Tensor], test: Part
) -> dict[str, Any]:
    """Returns what is shown of a network on the test part, as fields of `Tested`."""
    shown = shown_predictions(*pair, test)
    mistakes = [each.index for each in shown.get("wrong", ())]
    explain, network = load_plugin("explain"), make_network(job, weights, test)
    shown |= explain(job, network, metric, *pair, test, mistakes, job.seed)
    return shown


def measure(
    plan: Plan,
    networks: Mapping[int, Sequence[Mapping[str, Tensor]]],
    test: Callable[[], Part],
) -> Tested:
    """Opens the test part, and measures networks on it, given the weights of each seed.

    Raises:
        UndefinedMetric: the metric has no value there.
    """
    split, metric, trainings = plan.data.split, plan.definition.metric, plan.retraining.trainings
    assert split is not None
    sealed = test().to(split.device)
    judged = {
        n: [judge_network(trainings.job(n, 0), weights, sealed) for weights in by_seed]
        for n, by_seed in networks.items()
    }
    values = {n: [metric(*pair) for pair in each] for n, each in judged.items()}
    job, (outputs, targets) = trainings.job(plan.winner, 0), judged[plan.winner][0]
    seed = trainings.fresh_seed(0)
    resampled, references, shown = None, {}, {}
    if job.evaluate is None:  # with one of the user's own, outputs and targets may mean anything
        resampled = resample(metric, judged, len(sealed), seed)
        references = {
            rule: metric(predicted.cpu(), targets) for rule, predicted in sealed.references.items()
        }
        weights = networks[plan.winner][0]
        shown = explained(job, weights, metric, (outputs, targets), sealed)
    scores = compare(values, plan.winner, plan.baseline(), resampled, seed, metric.bounds)
    return Tested(
        test=replace(scores, examples=len(sealed), references=references),
        data=describe_data(plan, sealed),
        seeds=tuple(trainings.job(plan.winner, seed).seed for seed in range(trainings.seeds)),
        epochs=job.last,
        environment=current_environment(sealed.device),
        **shown,
    )


def describe_data(plan: Plan, test: Part | None) -> DataFacts:
    """Describes the data, as far as one must know them to use the network of the winner."""
    split, job = plan.data.split, plan.last.trainings.job(plan.winner, 0)
    assert split is not None
    sealed = split if test is None else test
    source, section = plan.data.source, value_at(plan.definition.config, "data.transform")
    seen = InputRange.of(split)
    return DataFacts(
        digest=split.digest,
        test_digest="" if test is None else test.digest,
        shape=None if sealed.shape is None else tuple(sealed.shape),
        outputs=sealed.outputs,
        mean=split.mean,
        std=split.std,
        dtype=input_dtype(job, split),
        classifies=sealed.classifies,
        names=tuple(sealed.names),
        columns=tuple(sealed.columns),
        inputs=None if seen is None else RangeFacts(**vars(seen)),
        loaded=not split.in_memory,
        kind=split.kind,
        reads=isinstance(getattr(source, "transform", None), Reader),
        transform=describe_transform(source, section, split),
    )


def shown_predictions(outputs: Tensor, targets: Tensor, split: Part) -> dict[str, Any]:
    """Returns predictions of the winner for the report: mistakes, or numbers.

    Returns:
        fields of `Tested`: for classes `confusion`, `classes` and `wrong`, the most confident
        mistakes first; for numbers `predictions`; none for other targets, such as a class for each
        pixel.
    """
    if split.classifies and outputs.ndim == 2 and targets.ndim == 1:
        return _confusion_and_wrong(outputs.softmax(1), targets, split)
    if split.classifies or outputs.ndim != 2 or targets.shape != outputs.shape:
        return {}
    every = math.ceil(len(split) / POINTS)
    told, came = (tuple(map(tuple, each[::every].tolist())) for each in (outputs, targets))
    return {"predictions": Predictions(told, came, split.ordered)}


def _confusion_and_wrong(probabilities: Tensor, labels: Tensor, split: Part) -> dict[str, Any]:
    classes = probabilities.shape[1]
    confidence, predicted = probabilities.max(1)
    counts = torch.bincount(labels * classes + predicted, minlength=classes * classes)
    wrong = (predicted != labels).nonzero().flatten()
    mistakes = []
    for index in wrong[confidence[wrong].argsort(descending=True)][:WRONG].tolist():
        label, taken = int(labels[index]), int(predicted[index])
        image = picture(split.input_at(index))
        mistakes.append(Wrong(index, label, taken, float(confidence[index]), image))
    return {
        "confusion": tuple(map(tuple, counts.reshape(classes, classes).tolist())),
        "classes": tuple(split.names) or tuple(map(str, range(classes))),
        "wrong": tuple(mistakes),
    }


def picture(image: Tensor | None) -> str | None:
    """Converts an input, if it is a picture, to a PNG in a data URL, its lowest value black.

    Args:
        image: (channels, height, width); None if the input is not one tensor.
    """
    if image is None or image.ndim != 3 or len(image) not in (1, 3):
        return None
    image = image.float()
    low, high = image.min(), image.max()
    return png((image - low) / (high - low).clamp(min=1e-12))


def png(image: Tensor) -> str:
    """Converts a picture to a PNG in a data URL.

    Args:
        image: (1 or 3, height, width), from 0 to 1.
    """
    from PIL import Image  # here: no search waits for it

    pixels = (image * 255).round().to(torch.uint8).cpu().numpy()
    buffer = io.BytesIO()
    shown = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    Image.fromarray(shown).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def winner_yaml(plan: Plan, winner: str, command: Sequence[str]) -> str:
    """Returns winner.yaml: the config of the winner, below the command that does it once more.

    Elsewhere it is read as a config of somebody else, and says then what is to be trusted.
    """
    options = ("--config-dir", str(plan.run_dir), "--config-name", "winner")
    title = f"The winner of {plan.search.stored.name}, {winner}, and this does all of it"
    head = [f"{title} once more:", shlex.join([*command, *options])]
    return "".join(f"# {one_line(line)}\n" for line in head) + as_yaml(winner_config(plan))


def winner_config(plan: Plan) -> dict[str, Any]:
    """Makes a primary config of the winner with nothing to search, so that it wins again."""
    definition, point = plan.definition, plan.candidates[plan.winner]
    choices = {**definition.composer.choices, **point.choices}
    if "space" in choices:  # an option may choose others
        choices["space"] = "none"
    own: dict[str, str | None] = {
        group: option for group, option in choices.items() if not group.startswith("hydra/")
    }
    # A group that the command took away, for a section of its own, with ~GROUP.
    removed = [each.key for each in definition.composer.overrides if each.prefix == "~"]
    own |= dict.fromkeys(key for key in removed if key in SECTIONS)
    sections = definition.sections(point)
    # In full: what is at its default here may be something else in the page's own config.
    sections["train"] = value_at(definition.at(point), "train")
    sections["train"].pop("loss")
    if (network := value_at(definition.config, "objective.network")) is not None:
        sections["objective"]["network"] = network
    study = definition.config.study
    if (scale := definition.scale) is not None:
        # Its network has the target size, and keeps to the rule from the size of the search on.
        sizes = present(scale.rule_sizes, definition.at(point))
        sections["scale"] = {**sizes, "rule": scale.rule} if sizes else None
    if definition.rule is not None:
        # The winner has been chosen already, and the page's own rule may be another.
        sections["winner"] = {"rule": None}
    return {
        "defaults": [
            definition.composer.config_name,
            *({f"override /{group}": option} for group, option in own.items()),
            "_self_",
        ],
        "study": {
            "name": f"{study.name}-winner",
            "seed": study.seed,
            "trials": 1,
            "baseline": True,
        },
        "space": None,
        **sections,
    }
