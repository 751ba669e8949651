"""The record of a command in the database, and why a study has no winner."""

from studyloom.errors import NoWinner
from studyloom.storage.command_record import CommandRecord, begin_command, store_stage
from studyloom.storage.failures import count_failures
from studyloom.text import one_line
from studyloom.winner.evaluation import Evaluation, read_evaluation
from studyloom.winner.stages import winner_settings
from studyloom.worker.open_study import OpenStudy
from studyloom.worker.task import Command


def begin_recording(study: OpenStudy, command: Command) -> None:
    """Stores that a command has begun, and the names of its later stages' studies.

    The trainings of each stage after the search are the trials of a separate study, from which
    `studyloom status` and the dashboard read the progress.
    """
    settings = winner_settings(study)
    definition = study.definition
    cost_per_hour = definition.config.cost.per_hour
    if cost_per_hour is not None:
        cost_per_hour = float(cost_per_hour)
    record = CommandRecord(
        trials=study.search.trials,
        reevaluated=settings.enabled,
        tested=bool(definition.tested),
        top=settings.top,
        seeds=settings.seeds,
        per_hour=cost_per_hour,
        is_call=command.is_call,
    )
    begin_command(study.stored, record, command.age())
    for stage in read_evaluation(study).later:
        store_stage(study.stored, stage.title, stage.stored.name)


def explain_missing_winner(evaluation: Evaluation) -> NoWinner | None:
    """Returns an error that says why finished stages have no winner; None if they have one."""
    candidates = evaluation.candidates
    if not evaluation.lacks_winner or candidates is None:
        return None
    if not candidates:
        rule = evaluation.rule
        reason = f"none of the first {evaluation.study.search.trials} trials is complete"
        if rule is not None and rule.conditions:
            reason += f" and satisfies {rule}"
        return NoWinner(f"there is no winner: {reason}; raise study.trials")
    contenders = [candidate for candidate in candidates.values() if candidate.may_win]
    last_stage = evaluation.stages[-1]  # in which their trainings have failed
    causes = []  # none if the database has no failed training of the stage
    for failure in count_failures(last_stage.stored.trials()):
        example = one_line(failure.first_reason)
        causes.append(f"{failure.count} × {failure.kind}, such as: {example}")
    cause = "; ".join(causes) or "trainings are gone"
    return NoWinner(
        f"there is no winner: none of the {len(contenders)} candidates was trained with all its "
        f"new seeds: {cause}; raise winner.top, or lower winner.seeds"
    )
