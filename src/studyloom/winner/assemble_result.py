"""Assembles the result of a study from its stages."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from studyloom.config.values import value_at
from studyloom.data.examples import Part
from studyloom.definition.definition import SECTIONS, Definition
from studyloom.space.tree import Point
from studyloom.storage.attributes import DEFINED
from studyloom.storage.ledger import Store
from studyloom.training.checkpoint import pack_weights
from studyloom.winner.candidates import Origin
from studyloom.winner.measurement import describe_untested, measure_winner
from studyloom.winner.predictions import Explain
from studyloom.winner.evaluation import Evaluation
from studyloom.winner.reevaluation import Reevaluated
from studyloom.winner.result import STAGES, Candidate, Result
from studyloom.winner.statistics import difference, summarize


@dataclass(frozen=True)
class EvaluatedWinner:
    """A result, and what its files are made of.

    Args:
        config: trains the winner again, as a primary config.
        simple_config: trains the simple configuration; None without one.
        weights: the content of winner.pt; None if a loop kept nothing.
        training_set: None if a loop has its own.
        sources: the source code that a notebook or script defined, by name.
    """

    result: Result
    config: dict[str, Any]
    simple_config: dict[str, Any] | None
    weights: bytes | None
    training_set: Part | None
    sources: dict[str, str]


def evaluate_winner(
    evaluation: Evaluation,
    command: Sequence[str],
    store: Store,
    *,
    repeat: bool = False,
    explain: Explain | None = None,
) -> EvaluatedWinner:
    """Tests winner and baseline, and assembles the result.

    A stored test of the same networks is reused, and the test set not used again, except with
    `repeat`. A loop without `objective.test` is not tested: the result then has what the loop
    kept in the re-evaluation.

    Args:
        evaluation: of a study whose stages have all ended, with a winner.
        store: the connection of the command that holds the lease, see `Ledger.testing`.
        repeat: whether to test again.
        explain: explains the winner's predictions on the test set; None for a result without
            explanations.

    Raises:
        NoWinner: a final training or the test has failed.
        StorageError: another command has taken over the lease.
    """
    study, found = evaluation.study, evaluation.reevaluated
    last = evaluation.trained
    assert found is not None
    assert last is not None
    definition, search = study.definition, study.stored
    if definition.tested:
        tested, kept = measure_winner(evaluation, store, repeat=repeat, explain=explain)
    else:
        first = min(found.values_by_seed(found.winner))
        kept = last.load_or_train(found.winner, first)
        tested = describe_untested(last.source, found.winner)
    candidates = describe_candidates(found, definition.metric.bounds)
    winner, point = candidates[found.winner], found.candidates[found.winner].point
    rows = tuple(candidates.values())
    result = Result(
        **vars(tested),
        study=search.name,
        stage=last.stored.name,
        trials=evaluation.trials,
        study_trials=sum(search.ledger.counts().values()),
        reused={stage.title: stage.reused() for stage in evaluation.later if stage.title in STAGES},
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        winner=winner,
        candidates=rows,
        metric=search.objectives[0],
        rule=str(evaluation.rule),
        keeps=found.keeps_to_rule,
        ablation=evaluation.ablation,
        command=tuple(command),
    )
    (defined,) = search.attributes(DEFINED)
    sources = {name: str(defined[name]) for name in defined} if isinstance(defined, dict) else {}
    simple_config = None
    ablation, defaults = evaluation.ablation, evaluation.defaults
    if ablation is not None and defaults is not None and ablation.simple is not None:
        simple_config = winner_config(definition, defaults.put_back(ablation.simple))
    return EvaluatedWinner(
        result=result,
        config=winner_config(definition, point),
        simple_config=simple_config,
        weights=None if kept is None else pack_weights(kept),
        training_set=study.data.split,
        sources=sources,
    )


def describe_candidates(found: Reevaluated, bounds: tuple[float, float]) -> dict[Origin, Candidate]:
    """Describes the candidates by their values, the best first.

    Args:
        bounds: the lowest and the highest value of the metric.
    """
    search, rows = found.search, dict[Origin, Candidate]()
    names = [objective.name for objective in search.objectives[1:]]
    for origin, source in found.candidates.items():
        value, *costs = source.trial.values
        row = Candidate(
            trial=origin.trial,
            params=dict(source.point.params),
            search_value=value,
            costs=dict(zip(names, costs, strict=True)),
            baseline=source.is_baseline,
        )
        new_values = [*found.values_by_seed(origin).values()]
        if found.values is not None:
            row = replace(row, failed=found.seeds - len(new_values))
        if new_values:
            known = summarize(new_values, bounds)
            gap = difference(search.sign * value, search.sign * known.mean)
            row = replace(row, **vars(known), gap=gap)
        rows[origin] = row

    def rank(row: Candidate) -> tuple[bool, bool, float]:
        return row.mean is None, row.failed > 0, -search.sign * (row.mean or 0.0)

    return dict(sorted(rows.items(), key=lambda item: rank(item[1])))


def is_result_of(result: Result, evaluation: Evaluation) -> bool:
    """Whether a result comes from the last stage of an evaluation.

    Compares the name of the stage, which contains budget and rule, the candidates with their
    seeds, and what makes the network of a loop, which `predict` needs.
    """
    study, found, last = evaluation.study, evaluation.reevaluated, evaluation.trained
    if found is None or last is None:
        return False
    network = value_at(study.definition.config, "objective.network")
    return (
        result.stage == last.stored.name
        and result.belongs_to(study.stored)
        and result.trials == evaluation.trials  # else the search had ended, and was extended since
        and (result.ablation is not None or evaluation.ablation is None)
        and all(
            [*row.values] == [*found.values_by_seed(Origin(row.trial)).values()]
            for row in result.candidates
        )
        and (network is None or network == result.named_network(study.run_dir))
    )


def winner_config(definition: Definition, point: Point) -> dict[str, Any]:
    """Makes a primary config that trains a configuration without a search, so that it wins."""
    choices = {**definition.composer.choices, **point.choices}
    if "space" in choices:  # an option may choose others
        choices["space"] = "none"
    own: dict[str, str | None] = {
        group: option for group, option in choices.items() if not group.startswith("hydra/")
    }
    # A group that the command removed with ~GROUP, to give the section itself.
    removed = [each.key for each in definition.composer.overrides if each.deletes]
    own |= dict.fromkeys(key for key in removed if key in SECTIONS)
    sections = definition.sections(point)
    # In full: what is at its default here may be something else in the study module's own config.
    sections["train"] = value_at(definition.at(point), "train")
    sections["train"].pop("loss")
    if (network := value_at(definition.config, "objective.network")) is not None:
        sections["objective"]["network"] = network
    study = definition.config.study
    if definition.rule is not None:
        # The winner is chosen already, and the study module may have another rule.
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
