"""How a run has ended, as its command prints it: the result, what else to know, what comes next."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress

from rich.console import Console

from studyloom.definition.definition import Definition
from studyloom.errors import Halted
from studyloom.storage.failures import count_failures
from studyloom.views import advice_lines, run_details, terminal, words
from studyloom.views.halted_study import explain_halt, suggest_redo, suggest_repetition
from studyloom.views.headline import make_headline
from studyloom.views.run_end import RunEnd, print_run_end
from studyloom.views.snapshot import Snapshot
from studyloom.winner.evaluation import Evaluation
from studyloom.winner.result import Result
from studyloom.worker.open_study import OpenStudy
from studyloom.worker.stopping import Stop
from studyloom.worker.task import Command


def print_end(
    evaluation: Evaluation,
    snapshot: Snapshot,
    result: Result | None,
    *,
    command: Command,
    has_run_workers: bool,
    stop: Stop,
    console: Console,
) -> None:
    """Prints how a run has ended: its result first.

    Args:
        result: the result; None without a winner.
        has_run_workers: whether the command has run workers, and not only read what was stored.
    """
    study = evaluation.study
    notes: list[str] = []
    failed = snapshot.outcomes.get("failed", 0)
    if failed > 0 and study.stored.halted() is None:  # else the error of the command says how
        notes.append(suggest_repetition(failed, study.run_dir, command.kind))
    for stage in evaluation.stages:
        if stage.stored.halted() is None:  # else the headline has the reason
            notes += terminal.list_failures(count_failures(stage.stored.trials()))
    if result is not None:
        notes += words.list_remarks(result)
    notes += run_details.list_not_kept(study.stored)
    for stage in evaluation.stages:
        notes += run_details.list_warnings(stage.stored)
    seconds = None
    if has_run_workers:
        seconds = command.age()
    reasons = [*_explain_end(study, snapshot, command, stop, has_run_workers=has_run_workers)]
    headline = make_headline(snapshot, result)
    halt = explain_halt(study.stored)
    traceback = ""
    if halt is not None:
        headline = halt.summary  # `check_halted` raises an error with the reason
        traceback = halt.further_lines
    override = ""
    if has_finished(evaluation, result, stop):
        override = find_continuation(snapshot, study.definition)
    next_command: list[str] = []
    next_call = ""
    if override and command.is_call:
        next_call = f"{command.again} with {write_argument(override)}"
    elif override:
        next_command = command.continue_with(override)
    end = RunEnd(
        headline=headline,
        snapshot=snapshot,
        run_dir=study.run_dir,
        result=result,
        seconds=seconds,
        is_halted=halt is not None,
        traceback=traceback,
        notes=notes,
        advice=advice_lines.list_for_end(study.stored, snapshot, result),
        has_report=(study.run_dir / "report.html").exists(),
        next_command=next_command,
        next_call=next_call,
        last="\n".join(reasons),
    )
    print_run_end(end, console)


def deferring_halt() -> AbstractContextManager[object]:
    """Suppresses Halted, which a worker in this process raises in the body.

    `check_halted` raises it again once the end of the run is printed.
    """
    return suppress(Halted)


def check_halted(evaluation: Evaluation, command: Command) -> None:
    """Raises an error that says what to do if a stage of the study has stopped itself.

    Args:
        command: the command that has run the study.

    Raises:
        Halted: its trials all fail for the same reason.
        UndefinedObjective: the metric of its trials is not a finite number.
    """
    for stage in evaluation.stages:
        suggestion = ""
        if stage.is_search:  # the same command trains failed trainings of later stages again
            setting = command.write_settings("study", {"accept_code_change": True})
            suggestion = suggest_redo(evaluation.study.run_dir, setting, command.correction)
        prefix = "the study stopped itself, since its trials fail with this: "
        stage.stored.check_halted(prefix, suggestion)


def has_finished(evaluation: Evaluation, result: Result | None, stop: Stop) -> bool:
    """Returns whether a run has done all of its work, so that only a larger limit continues it.

    A run that was stopped has not: its last line says what resumes it. Nor has one with open
    trainings, or whose test failed.
    """
    if stop() or evaluation.remaining:
        return False
    lacks_test = evaluation.trained_stage is not None and result is None
    return not lacks_test


def _explain_end(
    study: OpenStudy, snapshot: Snapshot, command: Command, stop: Stop, *, has_run_workers: bool
) -> Iterator[str]:
    """Yields why a study was stopped, or why nothing is left to do."""
    trials = study.search.trials
    if stop():
        reason = stop.reason
        if stop.requested is not None:
            reason = f"stopped by {stop.requested}"
        resumption = command.resumes  # such as "the same command resumes"
        if not study.prepared.launcher.begins:  # such as a task of SLURM
            resumption = "the command that began the study resumes"
        yield f"{reason}; {resumption} here"
    else:
        reason = end_of_search(snapshot, trials, has_run_workers=has_run_workers)
        if reason:
            yield reason
    if trials < snapshot.budget:
        line = f"study.trials={trials}: the winner is chosen from the first {trials} trials"
        yield f"{line}; the study has {snapshot.budget}"


def end_of_search(snapshot: Snapshot, trials: int, *, has_run_workers: bool) -> str:
    """Returns why nothing is left to do, if the counts of the trials do not show it.

    Args:
        trials: the budget of the command.
        has_run_workers: whether the command has run workers, whose trials were counted then.
    """
    complete = snapshot.outcomes.get("complete")
    if complete and snapshot.best is None and snapshot.rule is not None:
        return f"no trial satisfies winner.rule: {snapshot.rule}; loosen it, or raise study.trials"
    if snapshot.forecast.ending is not None:
        return f"the search {snapshot.forecast.ending.reason}"
    if has_run_workers:  # the counts printed for them show that the budget is spent
        return ""
    return f"the budget of {trials} trials is spent"


def write_argument(override: str) -> str:
    """Writes an override as an argument of `search`.

    For study.trials=80 it is trials=80, and for study.target=null it is study={'target': None}.
    """
    key, _, value = override.partition("=")
    if value == "null":
        value = "None"
    section, name = key.split(".")
    if key == "study.trials":
        return f"{name}={value}"
    return f"{section}={{'{name}': {value}}}"


def find_continuation(snapshot: Snapshot, definition: Definition) -> str:
    """Returns the override that continues a search that has ended.

    It is empty if the search has not ended, or has tried all of the search space.

    The override doubles the limit that ended the search, such as "study.trials=80" after 40 trials:
    the number of trials, the cost, or the epochs. A limit of the expected gain is halved, and a
    target that was reached is taken away.
    """
    if definition.space.size() <= 1:
        return ""
    study = definition.config.study
    ending = snapshot.forecast.ending
    if ending is None:
        # The budget is larger than this command's trials if another command has raised it.
        if snapshot.done == snapshot.budget == study.trials:
            return f"study.trials={2 * snapshot.budget}"
        return ""
    if ending.reached is not None:
        return "study.target=null"
    if ending.gain is not None:
        assert study.min_improvement is not None
        return f"study.min_improvement={study.min_improvement / 2:g}"
    if ending.spent is not None:
        limit = definition.config.cost.limit
        assert limit is not None
        return f"cost.limit={2 * limit:g}"
    return f"study.epochs={2 * ending.epochs}"  # the only limit that is left
