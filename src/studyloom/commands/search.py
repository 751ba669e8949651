"""Runs an opened study: launches its workers, shows the progress, and prints the result."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NoReturn

import optuna
from omegaconf import DictConfig
from rich.console import Console

from studyloom.commands import write_result as result
from studyloom.commands.outputs import Outputs
from studyloom.errors import ConfigError, Interrupted, NoWinner
from studyloom.plugins import load_plugin
from studyloom.storage.command_record import (
    StoredCommand,
    begin_command,
    end_command,
    recording_end,
)
from studyloom.storage.failures import count_failures
from studyloom.storage.opening import check_definition
from studyloom.text import format_duration, one_line
from studyloom.views import terminal
from studyloom.views.snapshot import Snapshot, take_snapshot
from studyloom.winner.result import Result
from studyloom.winner.stages import ResultStages
from studyloom.worker.prepare_search import open_search, prepare
from studyloom.worker.stopping import Stop, read_control
from studyloom.worker.task import Command, Prepared, StudyTask, make_task


def search_and_report(task: StudyTask, stop: Stop, outputs: Outputs) -> int:
    """Launches workers for the open trials, shows the progress, and prints the result.

    It does so again if trials were opened meanwhile, such as those of `studyloom redo`.

    Returns:
        The exit code of a command: 1 if there is no result, although it was not stopped.

    Raises:
        NoWinner: a training that the result needs, or the test, has failed.
    """
    plan: ResultStages = task.stages
    stored = plan.search.stored
    record = plan.command_record()
    begin_command(stored, record, task.command.age())
    outputs.attach(stored, task.run_dir)
    if read_control(stored) == "pause":
        folder = shlex.quote(str(task.run_dir))
        words = f"{stored.name} is paused; studyloom resume {folder} resumes it"
        terminal.say(outputs.console, words)
    while True:
        with recording_end(stored):
            code = _search_and_report(task, stop, outputs)
        if code is None or stop():
            break
        if not plan.todo():
            end_command(stored, code)
        # Counted once the end is stored: trials that are opened later are for the next command.
        left = plan.todo()
        if not left:
            break
        words = "trials or trainings were opened meanwhile, as by studyloom redo: they follow"
        terminal.say(outputs.console, f"{left} {words}")
        begin_command(stored, record, task.command.age())
    plan.search.remove_left_files(plan.definition.config.checkpoints.dir)
    return code or 0


def _search_and_report(task: StudyTask, stop: Stop, outputs: Outputs) -> int | None:
    """Does what `search_and_report` says once; returns None if workers continue without it."""
    prepared, plan = task.prepared, task.stages
    began, console = datetime.now(), outputs.console
    stored, trials = plan.search.stored, plan.search.trials
    terminal.print_code_changes(stored, console)
    result.move_foreign_result(plan, console)
    if todo := task.todo():
        notes = [*outputs.notes, *prepared.strategy.notes(), *prepared.starts.notes]
        notes += prepared.definition.notes(prepared.data)
        verb = "resumes" if any(trial.datetime_start for trial in stored.trials()) else "begins"
        open_ = plan.search.todo()
        many = f"{open_} trial{'' if open_ == 1 else 's'}" if open_ else plan.current.title
        where = "" if prepared.launcher.works_here(task, todo) else f", logs in {task.logs}"
        notes.append(f"{stored.name} {verb}: {many} to do{where}")
        follow = launch(task, stop, outputs, notes)
        if stop.alone is not None:  # another process continues
            return None
        if follow is not None:  # the workers continue without this command
            terminal.say(console, follow)
            return None
    snapshot = take_snapshot(stored)
    if snapshot.best is not None:
        result.write_best(plan, snapshot.best)
    elapsed = f", {format_duration(task.command.age())}" if todo else ""  # as the progress says
    terminal.say(console, f"\n{snapshot.headline}{elapsed}")
    if not console.is_jupyter:
        console.print(terminal.compare_with_baseline(snapshot, console.width))
        if snapshot.rule is not None:
            console.print(terminal.front_table(snapshot))
    elif not plan.is_done():
        terminal.say(console, snapshot.sentence)
    missing: NoWinner | None = None
    if plan.is_done():
        result.print_winner(plan, task.command.as_typed, console)
    else:  # stopped, or without a winner
        if snapshot.done:
            result.write_report(plan)
        if snapshot.best is not None and not stop():
            missing = find_no_winner(plan)
    for stage in plan:
        terminal.print_failures(stage.stored, console)
        terminal.print_warnings(stage.stored, console)
    terminal.print_not_kept(stored, console)
    terminal.print_next_steps(plan, task.command, snapshot, console, began)
    for stage in plan:
        stage.stored.check_halted("the study stopped itself, since its trials fail with this: ")
    if stop():
        why = stop.ended_by if stop.requested is None else f"stopped by {stop.requested}"
        terminal.say(console, f"{why}; {task.command.resumes} here")
    elif words := end_of_search(snapshot, trials, todo):
        terminal.say(console, words)
    if trials < snapshot.budget:
        line = f"study.trials={trials}: the winner is chosen from the first {trials} trials"
        terminal.say(console, f"{line}; the study has {snapshot.budget}")
    if prepared.trackers:
        update = load_plugin("update_trackers")
        update(stored, prepared.trackers, prepared.run_dir, ended=not plan.todo())
    if missing is not None:
        raise missing
    return 0 if snapshot.best is not None or stop() else 1


def launch(task: StudyTask, stop: Stop, outputs: Outputs, notes: Sequence[str] = ()) -> str | None:
    """Launches workers for the open trials, again if another program has deleted trials or slots.

    Args:
        notes: lines that are printed first.

    Returns:
        What to print, if the workers continue without this command; else None.
    """
    resumptions = terminal.Resumptions(outputs.read(), outputs.console)
    listeners = [*outputs.listeners, resumptions]
    while True:
        with terminal.Display(outputs.read, outputs.console, stop, listeners, notes):
            notes = ()
            follow = task.prepared.launcher.launch(task, stop)
        if follow is not None or not task.stages.reconcile() or stop():
            return follow


def end_of_search(snapshot: Snapshot, trials: int, todo: int) -> str:
    """Returns why nothing is left to do, if the counts of the trials do not show it."""
    complete = snapshot.outcomes.get("complete")
    if complete and snapshot.best is None and snapshot.rule is not None:
        return f"no trial satisfies winner.rule: {snapshot.rule}; loosen it, or raise study.trials"
    if snapshot.outlook.ending is not None:
        return f"the search {snapshot.outlook.ending.words}"
    return "" if todo else f"the budget of {trials} trials is spent"


def find_no_winner(plan: ResultStages) -> NoWinner | None:
    """Returns why finished stages have no winner; None if they have one."""
    if not plan.settings.enabled or plan.todo() or plan.is_done():
        return None
    if not plan.candidates:
        keeps = f" and satisfies {plan.rule}" if plan.rule.conditions else ""
        which = f"none of the first {plan.search.trials} trials is complete{keeps}"
        return NoWinner(f"there is no winner: {which}; raise study.trials")
    many = sum(candidate.contends for candidate in plan.candidates.values())
    failures = "; ".join(
        f"{failure.count} × {failure.kind}, such as: {one_line(failure.first_reason)}"
        for failure in count_failures(plan.reevaluation.stored.trials())
    )
    return NoWinner(
        f"there is no winner: none of the {many} candidates was trained with all its new seeds: "
        f"{failures or 'trainings are gone'}; raise winner.top, or lower winner.seeds"
    )


# `studyloom winner` and what else works on a search that has ended


@contextmanager
def open_ended(cfg: DictConfig, stop: Stop) -> Iterator[tuple[Prepared, ResultStages]]:
    """Opens the config's study, whose search must have ended, and closes it afterwards.

    Raises:
        ValueError: the search has not ended, or the config or the database cannot be used.
    """
    prepared = prepare(cfg, joins=True)
    with open_search(prepared, stop, ResultStages, create=False) as (prepared, plan):
        stored, trials = plan.search.stored, plan.search.trials
        now = prepared.definition.identity(prepared.data.digest)
        check_definition(stored.name, stored.definition(), now)
        if left := plan.search.todo():
            ways = "run the study to its end, or with a smaller study.trials"
            raise ConfigError(f"{plan.run_dir}: {left} of {trials} trials are open; {ways}")
        yield prepared, plan


def reevaluate(
    cfg: DictConfig, console: terminal.SafeConsole, *, repeat: bool = True
) -> tuple[str, Any]:
    """Chooses and tests the winner of a search that has ended.

    Args:
        repeat: whether to test it again if it was tested before.

    Returns:
        The name of the study, and a summary of its result.

    Raises:
        ValueError: the search has not ended, or the config or the database cannot be used.
        LaunchError: trainings are left, and no worker runs them.
        NoWinner: every candidate has lost a training, or a final training or the test has failed.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with Stop() as stop, open_ended(cfg, stop) as (prepared, plan):
        stored = plan.search.stored
        command, outputs = Command.of_this_process(), Outputs()
        outputs.console = console
        record = plan.command_record()
        begin_command(stored, record, command.age())
        outputs.attach(stored, prepared.run_dir)
        with recording_end(stored):
            with terminal.Display(outputs.read, console, stop):
                prepared.launcher.launch(make_task(prepared, plan, command), stop)
            if stop() and not plan.is_done():
                stop_here(plan, "winner" if repeat else "ablate", stop, console)
            if (missing := find_no_winner(plan)) is not None:
                raise missing
            former = Result.read(plan.run_dir)
            typed = command.as_typed if former is None else former.command
            result.print_winner(plan, typed, console, repeat=repeat)
        if left := plan.todo():
            words = (
                "trials were opened meanwhile, as by studyloom redo: run the study to train them"
            )
            terminal.say(console, f"{left} {words}")
        else:
            end_command(stored, 0)
        return stored.name, StoredCommand.read(stored).result


def stop_here(plan: ResultStages, command: str, stop: Stop, console: Console) -> NoReturn:
    """Prints which command of `studyloom` resumes here, and raises Interrupted."""
    folder = shlex.quote(str(plan.run_dir))
    terminal.say(console, f"{stop.ended_by}; studyloom {command} {folder} resumes here")
    raise Interrupted
