"""A command from its config to its answer: it prepares, opens, launches, judges, tests, reports."""

import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import optuna
from omegaconf import DictConfig
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.text import Text

from studyloom.commands.outputs import Outputs, prepare_logging, take_environment
from studyloom.commands.prepare import (
    Prepared,
    compresses,
    open_ended,
    open_plan,
    prepare,
    task_of,
)
from studyloom.config.values import as_yaml, without_transform
from studyloom.environment import WORKER
from studyloom.error_display import exit_with, print_errors
from studyloom.errors import (
    CompressError,
    Halted,
    Interrupted,
    LaunchError,
    NoWinner,
    StudyloomError,
    UndrawnReport,
)
from studyloom.files import is_newer, write_whole
from studyloom.launch.forks import Death, ForkServer, can_fork, print_line, watch
from studyloom.launch.line import Line
from studyloom.launch.ranks import start_ranks
from studyloom.launch.task import Command, Task, launcher_class
from studyloom.pickled import receive
from studyloom.plugins import load_plugin
from studyloom.processes import collect_as_usual, worker_id
from studyloom.study.command_record import (
    StoredCommand,
    begin_command,
    end_command,
    recording_end,
    store_result,
)
from studyloom.study.failures import count_failures
from studyloom.study.stopping import Stop, following, read_control
from studyloom.study.trial_files import TrialFiles
from studyloom.text import format_duration, one_line
from studyloom.training.ranks import Ranks
from studyloom.views import terminal
from studyloom.views.sentence import result_sentence
from studyloom.views.snapshot import Snapshot, take_snapshot
from studyloom.views.status import Display, Resumptions
from studyloom.winner.evaluation import evaluate_winner
from studyloom.winner.result import belongs_to, move_aside, read_result
from studyloom.winner.stages import Plan, is_result_of
from studyloom.winner.tracking import update_trackers

STOPPED = 3  # the exit code of a command that `studyloom stop` has stopped


# The processes of a command


def run_study(cfg: DictConfig, command: Command | None = None) -> NoReturn:
    """Runs the command of a study, see `studyloom.run.run`."""
    command = command or Command.of_this_process()
    began = time.monotonic() - command.age()  # a fork is younger than the command
    command = replace(command, age=lambda: time.monotonic() - began)
    told = take_environment()  # before any fork, and in workers that a launcher starts
    if WORKER.get() is not None:
        run_here(cfg, replace(command, is_worker=True), Line.of_launcher())
    watch(lambda line, death: run_here(cfg, command, line, death, told))


def run_here(
    cfg: DictConfig,
    command: Command,
    line: Line,
    death: Death | None = None,
    told: Mapping[str, str] | None = None,
) -> NoReturn:
    """Runs a command, or one of its workers, in this process.

    Args:
        line: to the process that watches this one, or has started it.
        death: of the process in whose place this one goes on.
        told: the variables that say what is told and to whom; a worker tells nothing.
    """
    worker, code = command.is_worker, 0
    WORKER.take()  # a command that a trial starts is no worker
    run_worker = partial(run_here, cfg, replace(command, is_worker=True))
    may_fork = not worker and not cfg.study.dry_run and can_fork()
    with ExitStack() as ending, line.ending(), Stop(cfg.study.timeout, line.is_asked) as stop:
        outputs, server = Outputs(told), None
        if may_fork and getattr(launcher_class(cfg), "may_fork", False):
            server = ending.enter_context(closing(ForkServer(run_worker)))
        prepare_logging(logging.INFO if worker else logging.WARNING)
        try:
            receive()
            peers = start_ranks(cfg, command, line, lambda ranks: follower(cfg, ranks))
            ending.enter_context(peers)
            line.follow()
            outputs.open()
            prepared = prepare(cfg, peers.connect(), joins=worker)
            if cfg.study.dry_run:
                terminal.print_dry_run(prepared.definition, outputs.console)
                outputs.finish(0)
                sys.exit()
            prepared, plan = open_plan(prepared, stop, create=not worker)
        except (ValueError, OSError, LaunchError) as error:
            outputs.finish(2, str(error))
            exit_with(error, 2)
        except Interrupted:  # the second signal; no trial is held yet
            outputs.finish(128 + (stop.signal or 2), "stopped at once")
            sys.exit(128 + (stop.signal or 2))
        task = task_of(prepared, plan, command, line, server)
        stops = not (worker and line.is_connected)  # else the launcher stops its workers
        try:
            with telling_end(outputs, stop), following(plan.search.stored, stop, stops=stops):
                if death is not None:
                    task.ledger.record_death(worker_id(death.pid), death.words)
                if worker:
                    prepared.launcher.launch(task, stop)
                else:
                    code = search_and_report(prepared, plan, task, stop, outputs)
                    outputs.finish(exit_code(code, stop), stop.ended_by if stop() else None)
        finally:
            plan.close()
        sys.exit(exit_code(code, stop))


def follower(cfg: DictConfig, ranks: Ranks) -> Callable[[Any], None]:
    """Prepares another rank than the first, which takes part in what that one calls."""
    prepared = prepare(cfg, ranks, joins=True)
    collect_as_usual()
    return lambda call: prepared.definition.take_part(call, prepared.data)


def exit_code(code: int, stop: Stop) -> int:
    """Returns the exit code of a process: 128 and the signal that stopped it, or else `code`."""
    if stop.signal is not None:
        return 128 + stop.signal
    return STOPPED if stop.requested is not None else code


@contextmanager
def telling_end(outputs: Outputs, stop: Stop) -> Iterator[None]:
    """Ends the process by the error that the body raises, and tells of its end in any case."""
    try:
        yield
    except Interrupted:  # the second signal; the trials have been released
        outputs.finish(128 + (stop.signal or 2), "stopped at once")
        print_line("stopped at once; the same command goes on from here")
    except (StudyloomError, OSError) as error:
        # The search is done, and what remains can be done later.
        unfinished = isinstance(error, OSError | CompressError)
        code = 1 if unfinished else error.exit_code  # type: ignore[union-attr]
        code = code if isinstance(error, Halted) else exit_code(code, stop)
        outputs.finish(code, str(error))
        exit_with(error, code)
    except BaseException as error:
        outputs.finish(1, type(error).__name__)
        if isinstance(error, Exception):
            raise
        exit_with(LaunchError(f"the user's code has ended the command: {error!r}"), 1)


# From the open slots to the answer


def search_and_report(
    prepared: Prepared, plan: Plan, task: Task, stop: Stop, outputs: Outputs
) -> int:
    """Has the open slots worked on, shows the progress, and prints the answer.

    Returns:
        The exit code of a command: 1 if there is no result, although it was not stopped.

    Raises:
        NoWinner: a training that the answer needs, or the test, has failed.
        CompressError: the winner cannot be made small; all else is done.
    """
    stored = plan.search.stored
    record = plan.command_record(compresses=compresses(plan.definition))
    begin_command(stored, record, task.command.age())
    outputs.attach(stored, prepared.run_dir)
    if read_control(stored) == "pause":
        folder = shlex.quote(str(prepared.run_dir))
        say(outputs.console, f"{stored.name} is paused; studyloom resume {folder} goes on with it")
    with recording_end(stored, not_small=1):
        code = _search_and_report(prepared, plan, task, stop, outputs)
    if not stop() and not plan.todo():
        end_command(stored, code)
    folder = plan.definition.config.checkpoints.dir
    if folder is not None:  # of trials whose worker died after their end
        files = TrialFiles(Path(folder), stored.name, plan.definition.seed)
        files.remove_left(stored.trials, plan.definition.space)
    return code


def say(console: Console, words: str) -> None:
    console.print(Text(words), soft_wrap=True)


def _search_and_report(
    prepared: Prepared, plan: Plan, task: Task, stop: Stop, outputs: Outputs
) -> int:
    began, console = datetime.now(), outputs.console
    stored, trials = plan.search.stored, plan.search.trials
    terminal.print_code_changes(stored, console)
    move_foreign_result(plan, console)
    if todo := task.todo():
        for note in [*prepared.definition.notes(prepared.data), *prepared.starts.notes]:
            say(console, note)
        verb = "goes on" if any(trial.datetime_start for trial in stored.trials()) else "begins"
        open_ = plan.search.todo()
        many = f"{open_} trial{'' if open_ == 1 else 's'}" if open_ else plan.current.title
        works_here = getattr(prepared.launcher, "works_here", None)
        where = "" if works_here and works_here(task, todo) else f", logs in {task.logs}"
        say(console, f"{stored.name} {verb}: {many} to do{where}")
        follow = launch(prepared, plan, task, stop, outputs)
        if stop.alone is not None:  # another process goes on
            return 0
        if follow is not None:  # the work goes on without this command
            say(console, follow)
            return 0
    snapshot = take_snapshot(stored)
    if snapshot.best is not None:
        write_best(plan, snapshot.best)
    elapsed = f", {format_duration(task.command.age())}" if todo else ""  # as the progress says
    console.print(f"\n{terminal.headline(snapshot)}{elapsed}", soft_wrap=True)
    console.print(terminal.answers_table(snapshot, console.width))
    if snapshot.rule is not None:
        console.print(terminal.front_table(snapshot, console.width))
    failure: CompressError | NoWinner | None = None
    if plan.is_done():
        print_winner(plan, task.command, console)
        failure = compress_winner(plan, stop, outputs)
    else:  # stopped, or without a winner
        if snapshot.done:
            write_report(plan)
        if snapshot.best is not None and not stop():
            failure = find_no_winner(plan)
    for stage in plan:
        terminal.print_failures(stage.stored, console)
    terminal.print_forgotten(stored, console)
    terminal.print_next_steps(plan, task.command, snapshot, console, began)
    for stage in plan:
        stage.stored.check_halted("the study has stopped, since its trials fail with this: ")
    if stop():
        why = stop.ended_by if stop.requested is None else f"stopped by {stop.requested}"
        say(console, f"{why}; the same {task.command.kind} goes on from here")
    elif words := end_of_search(snapshot, trials, todo):
        say(console, words)
    if trials < snapshot.budget:
        line = f"the study has {snapshot.budget} trials; the winner is one of the first {trials}"
        say(console, f"{line}, as study.trials={trials} says")
    if prepared.trackers:
        update_trackers(stored, prepared.trackers, prepared.run_dir, ended=not plan.todo())
    if failure is not None:
        raise failure
    if stop():
        return 0
    if left := plan.todo():
        again = f"the same {task.command.kind} goes on with them"
        say(console, f"{left} trials or trainings are left; {again}")
    return 0 if snapshot.best is not None and not left else 1


def launch(prepared: Prepared, plan: Plan, task: Task, stop: Stop, outputs: Outputs) -> str | None:
    """Has the open slots worked on, again if another program has deleted trials or slots.

    Returns:
        What to print, if the work goes on without this command; else None.
    """
    resumptions = Resumptions(outputs.read(), outputs.console)
    while True:
        with Display(outputs.read, outputs.console, stop, [*outputs.listeners, resumptions]):
            follow = prepared.launcher.launch(task, stop)
        if follow is not None or not plan.reconcile() or stop():
            return follow


def move_foreign_result(plan: Plan, console: Console) -> None:
    """Moves the answer of another study aside, such as one of the same name in another database."""

    def is_foreign() -> bool:
        answer = read_result(plan.run_dir)
        return answer is not None and not belongs_to(answer, plan.search.stored)

    if is_foreign():  # no lock, which may mean a connection, for what nearly always holds
        with plan.search.stored.ledger.testing():
            if is_foreign():  # no other command was quicker
                moved = f"it was moved to {move_aside(plan.run_dir)}"
                say(console, f"the answer in {plan.run_dir} is that of another study; {moved}")


def write_best(plan: Plan, best: FrozenTrial) -> None:
    """Writes the best configuration so far to `best.yaml`."""
    definition = plan.definition
    point = definition.space.at(best.params)
    sections = without_transform(definition.sections(point))
    sections["train"].pop("loss")
    values = ", ".join(
        f"{goal.name} {value}" for goal, value in zip(definition.goals, best.values, strict=True)
    )
    header = f"# {definition.config.study.name}, trial {best.number}: {values} in the search\n"
    write_whole(plan.run_dir / "best.yaml", header + as_yaml(sections))


def print_winner(plan: Plan, command: Command, console: Console, *, anew: bool = False) -> None:
    """Prints the winner on the test part.

    The test part is opened for it now, unless winner.json has the answer already. If it is opened
    `anew`, the answer keeps the page that winner.json names.
    """
    with plan.search.stored.ledger.testing() as store:
        answer = read_result(plan.run_dir)
        known = answer is not None and is_result_of(answer, plan)
        if answer is None or not known or anew:
            page = answer.command if answer is not None and anew else command.page
            answer = evaluate_winner(plan, plan.data.test, page, store, anew=known)
        if not is_newer(plan.run_dir / "report.html", plan.run_dir / "winner.json"):
            write_report(plan)  # unless the command was killed here
    store_result(plan.search.stored, answer.in_short())
    lines = [result_sentence(answer, plan.search.stored), *terminal.winner_lines(answer)]
    for number, line in enumerate(filter(None, lines)):  # the first has what the test gave
        style = "" if number or answer.test is None else "bold green"
        console.print(Text(line, style=style), soft_wrap=True)


def compress_winner(plan: Plan, stop: Stop, outputs: Outputs) -> CompressError | None:
    """Makes the winner small if the config says so and it was not done yet.

    Returns:
        Why it could not be done, to be raised once all else is told; None if there is no reason.
    """
    if not compresses(plan.definition) or stop():
        return None
    compress = load_plugin("compress_winner")
    failure: CompressError | None = compress(plan, stop, outputs.console, outputs.look)
    return failure


def write_report(plan: Plan) -> None:
    from studyloom.views import report  # here: no search waits for its templates

    try:
        report.write_report(plan.search.stored, plan.run_dir)
    except UndrawnReport as error:
        print_errors(error)


def end_of_search(snapshot: Snapshot, trials: int, todo: int) -> str:
    """Returns why there is nothing left to do, if the counts of the trials do not say it."""
    if snapshot.best is None and snapshot.rule is not None:
        return f"no trial keeps to winner.rule: {snapshot.rule}; loosen it, or raise study.trials"
    if snapshot.outlook.ending is not None:
        return f"the search {snapshot.outlook.ending.words}"
    return "" if todo else f"the budget of {trials} trials is spent"


def find_no_winner(plan: Plan) -> NoWinner | None:
    """Returns why a plan that has nothing left to do has none; None if it has one."""
    if not plan.settings.enabled or plan.todo() or plan.is_done():
        return None
    if not plan.candidates:
        keeps = f" and keeps to {plan.rule}" if plan.rule.conditions else ""
        which = f"none of the first {plan.search.trials} trials is complete{keeps}"
        return NoWinner(f"there is no winner: {which}; raise study.trials")
    many = len(plan.contenders)
    failures = "; ".join(
        f"{failure.count} × {failure.kind}, such as: {one_line(failure.first_reason)}"
        for failure in count_failures(plan.reevaluation.stored.trials())
    )
    return NoWinner(
        f"there is no winner: none of the {many} candidates was trained with all its fresh seeds: "
        f"{failures or 'trainings are gone'}; raise winner.top, or lower winner.seeds"
    )


# `studyloom winner`


def judge(cfg: DictConfig, console: terminal.SafeConsole) -> tuple[str, Any]:
    """Chooses and tests the winner of a search that has ended, also if it was done before.

    Returns:
        The name of the study, and its answer in short.

    Raises:
        ValueError: the search has not ended, or the config or the database cannot be used.
        LaunchError: trainings are left, and nobody works on them.
        NoWinner: every candidate has lost a training, or a final training or the test has failed.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with Stop() as stop, open_ended(cfg, stop) as (prepared, plan):
        stored = plan.search.stored
        command, outputs = Command.of_this_process(), Outputs()
        outputs.console = console
        record = plan.command_record(compresses=compresses(plan.definition))
        begin_command(stored, record, command.age())
        outputs.attach(stored, prepared.run_dir)
        with recording_end(stored):
            with Display(outputs.read, console, stop):
                prepared.launcher.launch(task_of(prepared, plan, command), stop)
            if stop() and not plan.is_done():
                stop_here(plan, "winner", stop, console)
            if (missing := find_no_winner(plan)) is not None:
                raise missing
            print_winner(plan, command, console, anew=True)
            failure = compress_winner(plan, stop, outputs)
            if stop() and compresses(plan.definition):  # who comes again need not judge again
                stop_here(plan, "compress", stop, console)
            if failure is not None:
                raise failure
        end_command(stored, 0)
        return stored.name, StoredCommand.read(stored).result


def stop_here(plan: Plan, command: str, stop: Stop, console: Console) -> NoReturn:
    """Says which command of `studyloom` goes on from here, and raises Interrupted."""
    folder = shlex.quote(str(plan.run_dir))
    say(console, f"{stop.ended_by}; studyloom {command} {folder} goes on from here")
    raise Interrupted
