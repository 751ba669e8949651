"""The result of a study, as commands print it and write it below the run directory."""

from collections.abc import Sequence

from optuna.trial import FrozenTrial
from rich.console import Console

from studyloom.commands.plugins import load_plugin
from studyloom.config.values import as_yaml, without_transform
from studyloom.error_display import print_errors
from studyloom.errors import BrokenProcess, UndrawnReport
from studyloom.files import is_newer, write_whole
from studyloom.storage.command_record import store_result
from studyloom.views import terminal
from studyloom.views.result_files import write_result_files
from studyloom.views.words import describe_result
from studyloom.winner.evaluation import evaluate_winner, is_result_of
from studyloom.winner.read_evaluation import Evaluation, read_evaluation
from studyloom.winner.result import Result, move_aside
from studyloom.worker.failure_causes import gpu_is_lost
from studyloom.worker.open_study import OpenStudy


def move_foreign_result(study: OpenStudy, console: Console) -> None:
    """Moves the result of another study aside, such as one of the same name in another database."""

    def is_foreign() -> bool:
        result = Result.read(study.run_dir)
        return result is not None and not result.belongs_to(study.stored)

    if is_foreign():  # checked without the lock first, which may need a connection
        with study.stored.ledger.testing():
            if is_foreign():  # no other command was quicker
                moved = f"belongs to another study; it was moved to {move_aside(study.run_dir)}"
                terminal.say(console, f"the result in {study.run_dir} {moved}")


def write_best(study: OpenStudy, best: FrozenTrial) -> None:
    """Writes the best configuration so far to `best.yaml`."""
    definition = study.definition
    point = definition.space.make_point(best.params)
    sections = without_transform(definition.sections(point))
    sections["train"].pop("loss")
    values = ", ".join(
        f"{objective.name} {value}"
        for objective, value in zip(definition.objectives, best.values, strict=True)
    )
    header = f"# {definition.config.study.name}, trial {best.number}: {values} in the search\n"
    write_whole(study.run_dir / "best.yaml", header + as_yaml(sections))


def print_winner(
    evaluation: Evaluation, command: Sequence[str], console: Console, *, repeat: bool = False
) -> None:
    """Prints the winner with its test.

    Tests it first, unless winner.json has the result already.

    Args:
        evaluation: of a study with a winner.
        command: the command line of the study, without its arguments.
        repeat: whether to test again.

    Raises:
        BrokenProcess: the winner is to be tested, and this process has lost its GPU.
    """
    study = evaluation.study
    with study.stored.ledger.testing() as store:
        result = Result.read(study.run_dir)
        current = read_evaluation(study)  # another command may have tested the winner meanwhile
        if current.trained is not None:
            evaluation = current
        known = result is not None and is_result_of(result, evaluation)
        if result is None or not known or repeat:
            if gpu_is_lost():
                raise BrokenProcess(
                    "a trial has left this process unable to use its GPU, which the test of the "
                    "winner may need; all trainings are stored: repeat it in a new process"
                )
            explain = load_plugin("explain")
            evaluated = evaluate_winner(evaluation, command, store, repeat=known, explain=explain)
            result = write_result_files(evaluated, study.run_dir)
    store_result(study.stored, result.in_short())
    stored = study.stored
    best = next((trial.number for trial in stored.ranked(evaluation.rule)), None)
    strong = "bold" if console.is_jupyter else "bold green"
    sentence = describe_result(result, stored) or ""
    terminal.say(console, sentence, "" if result.test is None else strong)
    for line in terminal.describe_winner(result, best, brief=console.is_jupyter):
        terminal.say(console, line, indent=10)
    if not is_newer(study.run_dir / "report.html", study.run_dir / "winner.json"):
        write_report(study)


def write_report(study: OpenStudy) -> None:
    """Writes report.html; prints why if it cannot be drawn."""
    from studyloom.views import report  # here: no search waits for its templates

    try:
        report.write_report(study.stored, study.run_dir)
    except UndrawnReport as error:
        print_errors(error)
