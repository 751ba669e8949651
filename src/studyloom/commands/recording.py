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
    """Stores that a command has begun, and which studies have the trainings of its later stages."""
    settings = winner_settings(study)
    definition = study.definition
    per_hour = definition.config.cost.per_hour
    if per_hour is not None:
        per_hour = float(per_hour)
    record = CommandRecord(
        trials=study.search.trials,
        reevaluated=settings.enabled,
        tested=bool(definition.tested),
        top=settings.top,
        seeds=settings.seeds,
        per_hour=per_hour,
    )
    begin_command(study.stored, record, command.age())
    for stage in read_evaluation(study).later:
        store_stage(study.stored, stage.title, stage.stored.name)


def find_no_winner(evaluation: Evaluation) -> NoWinner | None:
    """Returns why finished stages have no winner; None if they have one."""
    candidates = evaluation.candidates
    if not evaluation.lacks_winner or candidates is None:
        return None
    if not candidates:
        rule = evaluation.rule
        reason = f"none of the first {evaluation.study.search.trials} trials is complete"
        if rule is not None and rule.conditions:
            reason += f" and satisfies {rule}"
        return NoWinner(f"there is no winner: {reason}; raise study.trials")
    contenders = sum(candidate.may_win for candidate in candidates.values())
    failures = "; ".join(
        f"{failure.count} × {failure.kind}, such as: {one_line(failure.first_reason)}"
        for failure in count_failures(evaluation.stages[-1].stored.trials())
    )
    return NoWinner(
        f"there is no winner: none of the {contenders} candidates was trained with all its new "
        f"seeds: {failures or 'trainings are gone'}; raise winner.top, or lower winner.seeds"
    )
