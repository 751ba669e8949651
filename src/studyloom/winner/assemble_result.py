"""Assembles the result of a study from its stages, and the configs that train its winner again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from studyloom.config.values import value_at
from studyloom.data.examples import Part
from studyloom.definition.definition import SECTIONS, Definition
from studyloom.space.tree import Configuration
from studyloom.storage.attributes import DEFINED
from studyloom.storage.ledger import Store
from studyloom.storage.stored_study import FINAL_TRAINING, StoredStudy
from studyloom.training.checkpoint import pack_weights
from studyloom.winner.candidates import CandidateId, CandidateTrainings, Training
from studyloom.winner.evaluation import Evaluation
from studyloom.winner.measurement import MeasuredWinner, describe_untested, measure_winner
from studyloom.winner.predictions import Explain
from studyloom.winner.reevaluation import Reevaluated
from studyloom.winner.result import STAGES, Candidate, Result
from studyloom.winner.statistics import difference, summarize


@dataclass(frozen=True)
class EvaluatedWinner:
    """A result, and what its files are made of.

    Args:
        config: the primary config that trains the winner again.
        simple_config: the primary config of the simple configuration; None without one.
        weights: the content of winner.pt; None if a loop kept nothing.
        training_set: the training set; None if a loop loads its data itself.
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

    If the same networks were tested before, that test is reused, so that the test set is used once.
    A custom training loop without `objective.test` is not tested: the result then has the states
    that the loop kept in the re-evaluation.

    Args:
        evaluation: the evaluation of a study whose stages have all ended, with a winner.
        command: the command line of the study, without its arguments.
        store: writes to the database for the only command that may test the winner now.
        repeat: whether to test again although the same networks were tested before.
        explain: explains the winner's predictions on the test set; None for a result without
            explanations.

    Raises:
        NoWinner: a final training or the test has failed.
        StorageError: another command has taken over the lease.
    """
    study = evaluation.study
    definition = study.definition
    search = study.stored
    reevaluated = evaluation.reevaluated
    last_stage = evaluation.trained_stage
    assert reevaluated is not None
    assert last_stage is not None
    winner = reevaluated.winner

    if definition.tested:
        measured = measure_winner(evaluation, store, repeat=repeat, explain=explain)
    else:
        first_seed = min(reevaluated.values_by_seed(winner))
        measured = MeasuredWinner(
            tested=describe_untested(last_stage.source, winner),
            state=last_stage.load_or_train(Training(winner, first_seed)),
        )

    candidates = describe_candidates(reevaluated, definition.metric.bounds)
    result = Result(
        **vars(measured.tested),
        study=search.name,
        stage=last_stage.stored.name,
        trials=evaluation.trials,
        study_trials=sum(search.ledger.counts().values()),
        reused_trainings=count_reused_trainings(evaluation),
        written_at=datetime.now(UTC).isoformat(timespec="seconds"),
        winner=candidates[winner],
        candidates=tuple(candidates.values()),
        metric=search.objectives[0],
        rule=str(evaluation.rule),
        satisfies_rule=reevaluated.satisfies_rule,
        comparison=reevaluated.comparison,
        ablation=evaluation.ablation,
        command=tuple(command),
    )
    weights = None
    if measured.state is not None:
        weights = pack_weights(measured.state)
    return EvaluatedWinner(
        result=result,
        config=make_winner_config(
            definition, reevaluated.candidates[winner].configuration, last_stage.source
        ),
        simple_config=make_simple_config(evaluation),
        weights=weights,
        training_set=study.data.split,
        sources=read_sources(search),
    )


def count_reused_trainings(evaluation: Evaluation) -> dict[str, tuple[int, int]]:
    """Counts the trainings of each stage that were reused from earlier results, and all of them.

    The final training of an Optuna objective is not counted: its test trains again by itself.
    """
    counts = {}
    for stage in evaluation.later:
        is_counted = stage.title in STAGES
        if stage.title == FINAL_TRAINING and evaluation.study.definition.has_optuna_objective:
            is_counted = False
        if is_counted:
            counts[stage.title] = stage.count_reused()
    return counts


def make_simple_config(evaluation: Evaluation) -> dict[str, Any] | None:
    """Makes the primary config of the simple configuration; None without one."""
    ablation = evaluation.ablation
    defaults = evaluation.defaults
    if ablation is None or defaults is None or ablation.simple_defaults is None:
        return None
    assert evaluation.trained_stage is not None
    return make_winner_config(
        evaluation.study.definition,
        defaults.put_back(ablation.simple_defaults),
        evaluation.trained_stage.source,
    )


def read_sources(search: StoredStudy) -> dict[str, str]:
    """Reads the source code that a notebook or script defined, by name."""
    (sources,) = search.attributes(DEFINED)
    if not isinstance(sources, dict):
        return {}
    return {name: str(source) for name, source in sources.items()}


def describe_candidates(
    reevaluated: Reevaluated, bounds: tuple[float, float]
) -> dict[CandidateId, Candidate]:
    """Describes the candidates by their values, the best mean on new seeds first.

    Those with failed trainings come after the others, and those without values come last.

    Args:
        bounds: the lowest and the highest value of the metric.
    """
    sign = reevaluated.search.sign  # 1 if more of the metric is better, else -1
    candidates = {}
    for candidate_id in reevaluated.candidates:
        candidates[candidate_id] = describe_candidate(reevaluated, candidate_id, bounds)
    best_first = sorted(candidates, key=lambda key: _rank_candidate(candidates[key], sign))
    return {candidate_id: candidates[candidate_id] for candidate_id in best_first}


def _rank_candidate(candidate: Candidate, sign: int) -> tuple[bool, bool, float]:
    """Returns the key by which candidates are sorted: its faults, then its mean on new seeds.

    False sorts before True, so that a candidate without a fault comes first.

    Args:
        sign: 1 if more of the metric is better, else -1.
    """
    lacks_values = candidate.mean is None
    has_failed_trainings = candidate.failed_trainings > 0
    return lacks_values, has_failed_trainings, -sign * (candidate.mean or 0.0)


def describe_candidate(
    reevaluated: Reevaluated, candidate_id: CandidateId, bounds: tuple[float, float]
) -> Candidate:
    """Describes a candidate by its values in the search and on new seeds.

    Args:
        bounds: the lowest and the highest value of the metric.
    """
    search = reevaluated.search
    source = reevaluated.candidates[candidate_id]
    # The values of a trial in the search: the metric, then the costs that are objectives too.
    search_value = source.trial.values[0]
    costs = {}
    for objective, cost in zip(search.objectives[1:], source.trial.values[1:], strict=True):
        costs[objective.name] = cost
    candidate = Candidate(
        trial=candidate_id.trial,
        params=dict(source.configuration.params),
        search_value=search_value,
        costs=costs,
        baseline=source.is_baseline,
        stopped_at_epoch=source.stopped,
    )
    new_values = list(reevaluated.values_by_seed(candidate_id).values())
    if reevaluated.values is not None:
        failed_trainings = reevaluated.seeds - len(new_values)
        candidate = replace(candidate, failed_trainings=failed_trainings)
    if new_values:
        summary = summarize(new_values, bounds)
        selection_gap = None
        if source.stopped is None:
            selection_gap = difference(search.sign * search_value, search.sign * summary.mean)
        candidate = replace(
            candidate,
            values=summary.values,
            mean=summary.mean,
            std=summary.std,
            interval=summary.interval,
            selection_gap=selection_gap,
        )
    return candidate


def is_result_of(result: Result, evaluation: Evaluation) -> bool:
    """Returns whether a result is up to date: a command then need not make it again.

    Compares the last stage, whose name contains budget and rule, the candidates with their values
    on new seeds, how the winner was chosen, and the class of a loop's network, which the user may
    have named meanwhile.
    """
    study = evaluation.study
    reevaluated = evaluation.reevaluated
    last_stage = evaluation.trained_stage
    if reevaluated is None or last_stage is None:
        return False
    if result.stage != last_stage.stored.name or not result.belongs_to(study.stored):
        return False
    if result.trials != evaluation.trials:  # the search had ended early, and continued since
        return False
    if result.ablation is None and evaluation.ablation is not None:
        return False
    for candidate in result.candidates:
        new_values = reevaluated.values_by_seed(CandidateId(candidate.trial)).values()
        if list(candidate.values) != list(new_values):
            return False
    if result.winner.trial != reevaluated.winner.trial:
        return False
    # Results of older versions have no comparison.
    was_compared = result.comparison is not None
    if was_compared and result.comparison != reevaluated.comparison:  # as by another margin
        return False
    network = value_at(study.definition.config, "objective.network")
    return network is None or network == result.read_network(study.run_dir)


def make_winner_config(
    definition: Definition, configuration: Configuration, trainings: CandidateTrainings
) -> dict[str, Any]:
    """Makes the primary config of a study with one trial, which trains a winner again.

    It is written to winner.yaml. It builds on the config of the study module, with the options and
    values of the winner and without a search space.

    Args:
        trainings: the last trainings of the winner.
    """
    config = definition.config
    sections = definition.sections(configuration)
    # The section is written in full: a value that is at its default here may have another default
    # in the study module's own config.
    sections["train"] = value_at(definition.compose_config(configuration), "train")
    sections["train"].pop("loss")
    network = value_at(config, "objective.network")
    if network is not None:
        sections["objective"]["network"] = network
    winner_settings: dict[str, object] = {}
    if definition.rule is not None:
        # The winner is chosen already, and the study module may have another rule.
        winner_settings["rule"] = None
    if definition.tested and trainings.has_examples_of_reevaluation:
        winner_settings["retrain"] = trainings.has_final_seeds  # so that the seeds are the same
    if winner_settings:
        sections["winner"] = winner_settings
    # Entries of Hydra's defaults list, such as {"override /optimizer": "adamw"}.
    option_overrides: list[str | dict[str, str | None]] = []
    for group, option in choose_winner_options(definition, configuration).items():
        option_overrides.append({f"override /{group}": option})
    return {
        "defaults": [definition.composer.config_name, *option_overrides, "_self_"],
        "study": {
            "name": f"{config.study.name}-winner",
            "seed": config.study.seed,
            "trials": 1,
            "baseline": True,
        },
        "space": None,
        **sections,
    }


def choose_winner_options(
    definition: Definition, configuration: Configuration
) -> dict[str, str | None]:
    """Returns the option of each Hydra group for a winner's config; None removes the group."""
    composer = definition.composer
    choices = {**composer.choices, **configuration.choices}
    if "space" in choices:  # an option of `space` could search again
        choices["space"] = "none"
    options: dict[str, str | None] = {}
    for group, option in choices.items():
        if not group.startswith("hydra/"):
            options[group] = option
    for override in composer.overrides:
        # The command removed a group with ~GROUP, to give the section itself.
        if override.deletes and override.key in SECTIONS:
            options[override.key] = None
    return options
