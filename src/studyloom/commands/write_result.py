"""The result of a study, as commands print it and write it below the run directory."""

from collections.abc import Sequence

from optuna.trial import FrozenTrial
from rich.console import Console

from studyloom.config.values import as_yaml, without_transform
from studyloom.error_display import print_errors
from studyloom.errors import BrokenProcess, UndrawnReport
from studyloom.files import is_newer, write_whole
from studyloom.plugins import load_plugin
from studyloom.storage.command_record import store_result
from studyloom.views import terminal
from studyloom.views.snapshot import result_sentence
from studyloom.winner.evaluation import evaluate_winner, is_result_of
from studyloom.winner.result import Result, move_aside
from studyloom.winner.stages import ResultStages
from studyloom.worker.failure_causes import gpu_is_lost


def move_foreign_result(plan: ResultStages, console: Console) -> None:
    """Moves the result of another study aside, such as one of the same name in another database."""

    def is_foreign() -> bool:
        result = Result.read(plan.run_dir)
        return result is not None and not result.belongs_to(plan.search.stored)

    if is_foreign():  # checked without the lock first, which may need a connection
        with plan.search.stored.ledger.testing():
            if is_foreign():  # no other command was quicker
                moved = f"belongs to another study; it was moved to {move_aside(plan.run_dir)}"
                terminal.say(console, f"the result in {plan.run_dir} {moved}")


def write_best(plan: ResultStages, best: FrozenTrial) -> None:
    """Writes the best configuration so far to `best.yaml`."""
    definition = plan.definition
    point = definition.space.make_point(best.params)
    sections = without_transform(definition.sections(point))
    sections["train"].pop("loss")
    values = ", ".join(
        f"{objective.name} {value}"
        for objective, value in zip(definition.objectives, best.values, strict=True)
    )
    header = f"# {definition.config.study.name}, trial {best.number}: {values} in the search\n"
    write_whole(plan.run_dir / "best.yaml", header + as_yaml(sections))


def print_winner(
    plan: ResultStages, command: Sequence[str], console: Console, *, repeat: bool = False
) -> None:
    """Prints the winner with its test.

    Tests it first, unless winner.json has the result already.

    Args:
        command: the command line of the study, without its arguments.
        repeat: whether to test again.

    Raises:
        BrokenProcess: the winner is to be tested, and this process has lost its GPU.
    """
    with plan.search.stored.ledger.testing() as store:
        result = Result.read(plan.run_dir)
        known = result is not None and is_result_of(result, plan)
        if result is None or not known or repeat:
            if gpu_is_lost():
                raise BrokenProcess(
                    "a trial has left this process unable to use its GPU, which the test of the "
                    "winner may need; all trainings are stored: repeat it in a new process"
                )
            explain = load_plugin("explain")
            result = evaluate_winner(plan, command, store, repeat=known, explain=explain)
    store_result(plan.search.stored, result.in_short())
    stored = plan.search.stored
    best = next((trial.number for trial in stored.ranked(plan.rule)), None)
    strong = "bold" if console.is_jupyter else "bold green"
    sentence = result_sentence(result, stored) or ""
    terminal.say(console, sentence, "" if result.test is None else strong)
    for line in terminal.winner_lines(result, best, brief=console.is_jupyter):
        terminal.say(console, line, indent=10)
    if not is_newer(plan.run_dir / "report.html", plan.run_dir / "winner.json"):
        write_report(plan)


def write_report(plan: ResultStages) -> None:
    """Writes report.html; prints why if it cannot be drawn."""
    from studyloom.views import report  # here: no search waits for its templates

    try:
        report.write_report(plan.search.stored, plan.run_dir)
    except UndrawnReport as error:
        print_errors(error)
