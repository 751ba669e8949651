"""From the open slots to the answer: the search is shown, the winner chosen, tested and printed."""

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import optuna
from omegaconf import DictConfig
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.text import Text

from studyloom.commands.outputs import Outputs
from studyloom.commands.plans import job_of, open_ended, task_of
from studyloom.config.values import plain_sections, without_transform, write_yaml
from studyloom.errors import CompressError, Halted, Interrupted, NoWinner, StorageLost, UserError
from studyloom.extras.export.stage import compress_winner, compresses
from studyloom.files import is_newer
from studyloom.launch.command import Command
from studyloom.launch.prepare import (
    Prepared,
)
from studyloom.launch.task import Task
from studyloom.question.question import SECTIONS
from studyloom.storage.connections import exclusive
from studyloom.study.control import read_control
from studyloom.study.failures import count_failures
from studyloom.study.files import TrialFiles
from studyloom.study.job import begin_job, end_job, note_answer, read_job
from studyloom.study.stopping import Stop
from studyloom.study.stored_study import StoredStudy
from studyloom.text import format_duration, one_line
from studyloom.views.sentence import answer_sentence
from studyloom.views.snapshot import Snapshot, take_snapshot
from studyloom.views.status import Display
from studyloom.views.terminal import (
    answers_table,
    front_table,
    headline,
    print_code_changes,
    print_failures,
    print_next_steps,
    winner_lines,
)
from studyloom.winner.answer import belongs_to, is_answer_of, move_aside, read_answer, stated_page
from studyloom.winner.committee import remove_others
from studyloom.winner.evaluation import evaluate_winner
from studyloom.winner.stages import Plan
from studyloom.winner.telling import tell_trackers


def search_and_report(
    prepared: Prepared,
    plan: Plan,
    task: Task,
    stop: Stop,
    console: Console,
    outputs: Outputs | None = None,
) -> int:
    """Has the open slots worked on, shows the progress, and prints the answer.

    Args:
        prepared: the objects of the config.
        plan: what is to be done.
        task: what the launcher gets.
        stop: whether to stop.
        console: where to print.
        outputs: what else is told; None for the heartbeat alone.

    Returns:
        The exit code of a command: 1 if there is no result, although it was not stopped.

    Raises:
        Halted: the study has stopped itself.
        NoWinner: a training that the answer needs, or the test, has failed.
        CompressError: the winner cannot be made small; all else is done.
    """
    stored = plan.search.stored
    config = prepared.question.config
    begin_job(stored, job_of(prepared, plan), task.command.age())
    outputs = outputs or Outputs()
    outputs.attach(stored, prepared.run_dir)
    if read_control(stored) == "pause":
        folder = shlex.quote(str(prepared.run_dir))
        line = f"{config.study.name} is paused; studyloom resume {folder} goes on with it"
        console.print(Text(line), soft_wrap=True)
    with ending_job(stored, not_small=1):
        code = _search_and_report(prepared, plan, task, stop, console, outputs)
    if not stop() and not plan.todo():
        end_job(stored, code)
    return code


@contextmanager
def ending_job(stored: StoredStudy, not_small: int = CompressError.exit_code) -> Iterator[None]:
    """Stores that nothing is left to do of the job if the body raises an error that says so.

    Args:
        stored: the study of the search.
        not_small: the exit code of the command if the winner cannot be made small.
    """
    try:
        yield
    except StorageLost:
        raise  # nothing can be stored
    except (Halted, NoWinner, UserError) as error:
        end_job(stored, not_small if isinstance(error, CompressError) else error.exit_code)
        raise


def _search_and_report(
    prepared: Prepared, plan: Plan, task: Task, stop: Stop, console: Console, outputs: Outputs
) -> int:
    started, began = time.monotonic(), datetime.now()
    stored, trials = plan.search.stored, plan.search.trials
    print_code_changes(stored, console)
    move_foreign_answer(plan, prepared, console)
    if todo := task.todo():
        for note in prepared.starts.notes:
            console.print(Text(note), soft_wrap=True)
        verb = "goes on" if any(trial.datetime_start for trial in stored.trials()) else "begins"
        open_ = plan.search.todo()
        many = (
            f"{open_} trial{'' if open_ == 1 else 's'} to do"
            if open_
            else f"{plan.current.title} to do"
        )
        console.print(f"{stored.name} {verb}: {many}, logs in {task.logs}", soft_wrap=True)
        follow = launch(prepared, plan, task, stop, console, outputs)
        if stop.alone is not None:  # another process goes on
            return 0
        if follow is not None:  # the work goes on without this command
            console.print(Text(follow), soft_wrap=True)
            return 0
    snapshot = take_snapshot(stored)
    if snapshot.best is not None:
        write_best(prepared, snapshot.best)
    took = f", {format_duration(time.monotonic() - started)}" if todo else ""
    console.print(f"\n{headline(snapshot)}{took}", soft_wrap=True)
    console.print(answers_table(snapshot, console.width))
    if snapshot.rule is not None:
        console.print(front_table(snapshot, console.width))
    failure: CompressError | NoWinner | None = None
    if plan.is_done():
        print_winner(plan, prepared, task.command, console)
        failure = compress_winner(prepared, plan, stop, console, outputs)
    else:  # stopped, or without a winner
        if snapshot.done:
            write_report_so_far(plan)
        if snapshot.best is not None and not stop():
            failure = find_no_winner(plan)
    for stage in plan:
        print_failures(stage.stored, console)
    print_next_steps(prepared, plan, task.command, snapshot, console, began)
    for stage in plan:
        stage.stored.check_halted("the study has stopped, since its trials fail with this: ")
    if stop():
        why = stop.ended_by if stop.requested is None else f"stopped by {stop.requested}"
        console.print(f"{why}; the same command goes on from here")
    elif words := end_of_search(snapshot, trials, todo):
        console.print(Text(words), soft_wrap=True)
    if trials < snapshot.budget:
        line = f"the study has {snapshot.budget} trials; the winner is one of the first {trials}"
        console.print(f"{line}, as study.trials={trials} says", soft_wrap=True)
    tell_trackers(prepared.trackers, plan)
    if failure is not None:
        raise failure
    return 0 if snapshot.best is not None or stop() else 1


def end_of_search(snapshot: Snapshot, trials: int, todo: int) -> str:
    """Returns why there is nothing left to do, if the counts of the trials do not say it.

    Args:
        snapshot: of the search, which has ended.
        trials: its budget.
        todo: how many trials the command had to do.
    """
    if snapshot.best is None and snapshot.rule is not None:
        return f"no trial keeps to winner.rule: {snapshot.rule}; loosen it, or raise study.trials"
    if snapshot.outlook.ending is not None:
        return f"the search {snapshot.outlook.ending.words}"
    return "" if todo else f"the budget of {trials} trials is spent"


def find_no_winner(plan: Plan) -> NoWinner | None:
    """Returns why a plan that has nothing left to do has no winner; None if it has, or wants none.

    Args:
        plan: the stages of the run.
    """
    if not plan.settings.enabled or plan.todo() or plan.is_done():
        return None
    if not plan.candidates:
        keeps = f" and keeps to {plan.rule}" if plan.rule.conditions else ""
        which = f"none of the first {plan.search.trials} trials is complete{keeps}"
        return NoWinner(f"there is no winner: {which}; raise study.trials")
    many = len(plan.entrants)
    failures = "; ".join(
        f"{failure.count} × {failure.kind}, such as: {one_line(failure.first_reason)}"
        for failure in count_failures(plan.reevaluation.stored.trials())
    )
    return NoWinner(
        f"there is no winner: none of the {many} candidates was trained with all its fresh seeds: "
        f"{failures or 'trainings are gone'}; raise winner.top or study.trials, so that there are "
        "other candidates, or lower winner.seeds, so that each needs fewer trainings"
    )


def remove_left(plan: Plan, prepared: Prepared) -> None:
    """Removes the checkpoints of trials whose worker died after their end."""
    folder, stored = prepared.question.config.checkpoints.dir, plan.search.stored
    if folder is not None:
        files = TrialFiles(Path(folder), stored.name, prepared.question.seed)
        files.remove_left(stored.trials, prepared.question.space)


def launch(
    prepared: Prepared, plan: Plan, task: Task, stop: Stop, console: Console, outputs: Outputs
) -> str | None:
    """Has the open slots worked on, again if another program has deleted trials or slots.

    Returns:
        What to print, if the work goes on without this command; else None.
    """
    while True:
        with Display(outputs.read, console, stop, outputs.listeners):
            follow = prepared.launcher.launch(task, stop)
        if follow is not None or not plan.reconcile() or stop():
            return follow


def move_foreign_answer(plan: Plan, prepared: Prepared, console: Console) -> None:
    """Moves the answer of another study aside, such as one of the same name in another database."""

    def is_foreign() -> bool:
        answer = read_answer(plan.run_dir)
        return answer is not None and not belongs_to(answer, plan.search.stored)

    if not is_foreign():  # no lock, which may mean a connection, for what nearly always holds
        return
    with exclusive(prepared.url, deadline=float(prepared.question.config.storage.deadline)):
        if not is_foreign():  # another command was quicker
            return
        folder = move_aside(plan.run_dir)
    line = f"the answer in {plan.run_dir} is that of another study; it was moved to {folder}"
    console.print(Text(line), soft_wrap=True)


def print_winner(plan: Plan, prepared: Prepared, command: Command, console: Console) -> None:
    """Prints the winner on the test part.

    The test part is opened for it now, unless winner.json has the answer already.
    """
    from studyloom.views.report import write_report  # here: no search waits for templates

    # Of commands that finish together, one opens the test part; the others read its answer.
    with exclusive(prepared.url, deadline=float(prepared.question.config.storage.deadline)):
        answer = read_answer(plan.run_dir)
        if answer is None or not is_answer_of(answer, plan):
            answer = evaluate_winner(plan, prepared.data.test, command.page)
        remove_others(plan, answer)
        if not is_newer(plan.run_dir / "report.html", plan.run_dir / "winner.json"):
            write_report(plan.search.stored, plan.run_dir)  # unless the command was killed here
    note_answer(plan.search.stored, answer)
    lines = [answer_sentence(answer, plan.search.stored), *winner_lines(answer)]
    for number, line in enumerate(filter(None, lines)):  # the first has what the test gave
        style = "" if number or answer["test"] is None else "bold green"
        console.print(Text(line, style=style), soft_wrap=True)


def write_report_so_far(plan: Plan) -> None:
    """Writes the report of a study that has no answer, or none yet."""
    from studyloom.views.report import write_report  # here: no search waits for its templates

    write_report(plan.search.stored, plan.run_dir)


def judge(cfg: DictConfig, console: Console) -> tuple[str, dict[str, Any] | None]:
    """Chooses and tests the winner of a search that has ended, in this process.

    It does so also if it was done before.

    Args:
        cfg: as composed.
        console: where to print.

    Returns:
        The name of the study, and its answer in short.

    Raises:
        ValueError: the search has not ended, or the config or the database cannot be used.
        OSError: a file cannot be read or written.
        Halted: the trainings all fail for the same reason.
        Interrupted: it was stopped.
        LaunchError: trainings are left, and nobody works on them.
        NoWinner: every candidate has lost a training, or a final training or the test has failed.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with Stop() as stop:
        prepared, plan = open_ended(cfg, stop)
        stored = plan.search.stored
        command = Command.of_this_process()
        task, outputs = task_of(prepared, plan, command), Outputs()
        begin_job(stored, job_of(prepared, plan), command.age())
        outputs.attach(stored, prepared.run_dir)
        with ending_job(stored):
            with Display(outputs.read, console, stop):
                prepared.launcher.launch(task, stop)
            if stop() and not plan.is_done():
                stop_here(plan, "winner", stop, console)
            if (missing := find_no_winner(plan)) is not None:
                raise missing
            judge_again(plan, prepared, command)
            print_winner(plan, prepared, command, console)
            failure = compress_winner(prepared, plan, stop, console, outputs)
            if stop() and compresses(prepared):  # who comes again need not judge again
                stop_here(plan, "compress", stop, console)
            if failure is not None:
                raise failure
        end_job(stored, 0)
        _, _, answered = read_job(stored)
        return stored.name, answered


def judge_again(plan: Plan, prepared: Prepared, command: Command) -> None:
    """Writes the answer; opens the test part for it also if winner.json is of the same winner."""
    # Another command may be writing its own.
    with exclusive(prepared.url, deadline=float(prepared.question.config.storage.deadline)):
        before = read_answer(plan.run_dir) or {}
        anew = bool(before) and is_answer_of(before, plan)
        page = stated_page(before) or command.page
        evaluate_winner(plan, prepared.data.test, page, anew=anew)


def stop_here(plan: Plan, command: str, stop: Stop, console: Console) -> NoReturn:
    """Says which command of `studyloom` goes on from here, and raises Interrupted."""
    folder = shlex.quote(str(plan.run_dir))
    words = f"{stop.ended_by}; studyloom {command} {folder} goes on from here"
    console.print(Text(words), soft_wrap=True)
    raise Interrupted


def write_best(prepared: Prepared, best: FrozenTrial) -> None:
    """Writes the best configuration so far to `best.yaml`."""
    question = prepared.question
    point = question.space.walk(lambda parameter: best.params[parameter.name])
    names = (name for name in SECTIONS if name != "space")
    sections = without_transform(plain_sections(question.at(point), *names))
    sections["train"].pop("loss")
    values = ", ".join(
        f"{goal.name} {value}" for goal, value in zip(question.goals, best.values, strict=True)
    )
    header = f"# {question.config.study.name}, trial {best.number}: validation {values}\n"
    write_yaml(prepared.run_dir / "best.yaml", sections, header)
