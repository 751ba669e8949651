"""The result of a study, as commands print it and write it below the run directory."""

from collections.abc import Sequence

from optuna.trial import FrozenTrial
from rich.console import Console

from studyloom.commands.plugins import load_plugin
from studyloom.config.values import resolved_as_yaml, without_transform
from studyloom.error_display import print_errors
from studyloom.errors import BrokenProcess, UndrawnReport
from studyloom.files import is_newer, write_whole
from studyloom.storage.command_record import store_result
from studyloom.views.result_files import write_result_files
from studyloom.views.terminal_lines import say
from studyloom.winner.assemble_result import evaluate_winner, is_result_of
from studyloom.winner.evaluation import Evaluation, read_evaluation
from studyloom.winner.result import Result, move_aside
from studyloom.worker.failure_causes import has_lost_gpu
from studyloom.worker.open_study import OpenStudy


def move_result_of_another_study(study: OpenStudy, console: Console) -> None:
    """Moves a result in the run directory aside if it belongs to another study.

    Such a study may have the same name, and be in another database. The lease of the test set keeps
    two commands from moving the result at once.
    """
    if not has_result_of_another_study(study):  # spares the lease, which may need a connection
        return
    with study.stored.ledger.testing():
        # Another command may have moved the result before this one got the lease.
        if has_result_of_another_study(study):
            new_place = move_aside(study.run_dir)
            say(
                console,
                f"the result in {study.run_dir} belongs to another study; it was moved to "
                f"{new_place}",
            )


def has_result_of_another_study(study: OpenStudy) -> bool:
    """Returns True if the run directory of a study has the result of another one."""
    result = Result.read(study.run_dir)
    return result is not None and not result.belongs_to(study.stored)


def write_best(study: OpenStudy, best: FrozenTrial) -> None:
    """Writes the best configuration so far to `best.yaml`, with a comment that names its trial."""
    definition = study.definition
    configuration = definition.space.make_configuration(best.params)
    sections = without_transform(definition.sections(configuration))
    sections["train"].pop("loss")  # the section `loss` has it too
    values = []
    for objective, value in zip(definition.objectives, best.values, strict=True):
        values.append(f"{objective.name} {value}")
    trial = f"{definition.config.study.name}, trial {best.number}"
    header = f"# {trial}: {', '.join(values)} in the search\n"
    write_whole(study.run_dir / "best.yaml", header + resolved_as_yaml(sections))


def make_result(
    evaluation: Evaluation, command: Sequence[str], *, repeats_test: bool = False
) -> Result:
    """Returns the result of a study and writes its files; tests the winner if it is not tested yet.

    If its networks were tested before, but winner.json lacks the result, that test is read from the
    database. If winner.json has the result, only `repeats_test` has the winner tested again. The
    lease of the test set is held meanwhile, so that one command at a time tests.

    Args:
        evaluation: the evaluation of a study with a winner.
        command: the command line of the study, without its arguments.
        repeats_test: whether to test again if winner.json has the result already.

    Raises:
        BrokenProcess: the winner is to be tested, and this process has lost its GPU.
    """
    study = evaluation.study
    with study.stored.ledger.testing() as store:
        result = Result.read(study.run_dir)
        # Another command may have tested the winner before this one got the lease.
        latest_evaluation = read_evaluation(study)
        if latest_evaluation.trained_stage is not None:
            evaluation = latest_evaluation
        is_tested = result is not None and is_result_of(result, evaluation)
        if result is None or not is_tested or repeats_test:
            if has_lost_gpu():
                raise BrokenProcess(
                    "a trial has left this process unable to use its GPU, which the test of the "
                    "winner may need; all trainings are stored: repeat it in a new process"
                )
            evaluated = evaluate_winner(
                evaluation,
                command,
                store,
                repeat=is_tested,  # if so, `repeats_test` is True here
                explain=load_plugin("explain"),
            )
            result = write_result_files(evaluated, study.run_dir)
    stored = study.stored
    store_result(stored, result.in_short())
    if not is_newer(study.run_dir / "report.html", study.run_dir / "winner.json"):
        write_report(study)
    return result


def write_report(study: OpenStudy) -> None:
    """Writes report.html; prints why if it cannot be drawn."""
    from studyloom.views import report  # here: no search waits for its templates

    try:
        report.write_report(study.stored, study.run_dir)
    except UndrawnReport as error:
        print_errors(error)
