"""The first and the last lines of a run: what is to do, and what repeats or continues it."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from reevaluated import SPACE, SPLIT, stages_of, train, work
from toys import ask

from studyloom.commands.announcement import describe_stage
from studyloom.commands.end_of_run import has_finished, print_end
from studyloom.commands.tuned_command import TunedCommand
from studyloom.views.consoles import make_console
from studyloom.views.halted_study import Halt, suggest_redo, suggest_repetition
from studyloom.views.snapshot import take_snapshot
from studyloom.views.words import announce_later_stages
from studyloom.worker.local import Local
from studyloom.worker.stopping import Stop
from studyloom.worker.task import Command

FEWER = "--set winner.top=1 --set winner.seeds=1"


def print_lines(stages, stop, **outcomes):
    """Prints the end of a run without a result; returns its lines."""
    console = make_console(io.StringIO(), width=200)
    snapshot = take_snapshot(stages.search.stored)
    evaluation = stages.evaluation
    prepared = replace(stages.study.prepared, launcher=Local())
    evaluation.study = replace(stages.study, prepared=prepared)
    print_end(
        evaluation,
        replace(snapshot, outcomes={**snapshot.outcomes, **outcomes}),
        None,
        command=Command(("-m", "studyloom"), ("run", "a.yaml")),
        has_run_workers=True,
        stop=stop,
        console=console,
    )
    return console.file.getvalue().splitlines()


def test_only_a_run_without_open_work_is_continued_by_a_larger_limit(
    sqlite_url, tmp_path, clean_hydra
):
    definition = ask(*SPACE, "study.trials=2")
    stages = stages_of(definition, sqlite_url, tmp_path, 2, top=1, seeds=2)
    train(stages.search, SPLIT, 2)
    assert describe_stage(stages.evaluation) == "re-evaluation to do"
    train(stages.reevaluation, SPLIT, 3)
    assert describe_stage(stages.evaluation) == "re-evaluation to do, 1 of 4 trainings left"
    stopped = Stop()
    stopped.requested = "studyloom stop"
    lines = print_lines(stages, stopped, failed=2)
    assert lines[-1] == "stopped by studyloom stop; the same command resumes here"
    assert not any(line.startswith("next ") for line in lines)
    assert suggest_repetition(2, tmp_path, "command") in lines

    work(stages)
    assert stages.is_done()
    assert not has_finished(stages.evaluation, None, Stop())  # the test has failed
    assert has_finished(stages.evaluation, object(), Stop())


def test_a_run_that_has_finished_is_continued_by_a_larger_limit(sqlite_url, tmp_path, clean_hydra):
    definition = ask(*SPACE, "study.trials=2")
    stages = stages_of(definition, sqlite_url, tmp_path, 2, enabled=False)
    train(stages.search, SPLIT, 2)
    lines = print_lines(stages, Stop())
    assert lines[-1] == "next      studyloom run a.yaml study.trials=4"
    assert not any("failed:" in line for line in lines)


def test_one_sum_says_how_many_trainings_follow_and_how_to_have_fewer():
    tested = announce_later_stages(3, 3, is_tested=True, shortening=FEWER)
    assert tested.startswith("then up to 18 trainings: 12 to choose the winner (the best 3 and ")
    assert tested.endswith(f", and 6 to test it and the baseline; {FEWER} makes it 4 in all")
    untested = announce_later_stages(3, 3, is_tested=False, shortening=FEWER)
    assert untested.startswith("then up to 12 trainings to choose the winner: the best 3 and ")
    assert untested.endswith(f"; {FEWER} makes it 2 in all")


def test_failed_trials_come_with_the_command_that_repeats_them():
    redo = "studyloom redo 'runs/a b' --failed"
    line = suggest_repetition(2, Path("runs/a b"), "command")
    assert line == f"2 failed: {redo}, then the same command, repeats them"
    assert suggest_repetition(1, Path("runs/a b"), "call").endswith("the same call, repeats it")


@pytest.mark.parametrize(
    ("command", "correction"),
    [
        (Command((), ()), "with another metric, space or argument it is another study"),
        (
            TunedCommand((), ()),
            "if a name or an argument is wrong, type the same command with the right one",
        ),
    ],
)
def test_a_wrong_name_needs_no_other_study_on_the_command_line_of_a_script(command, correction):
    suggestion = suggest_redo(Path("runs/a"), "accept", command.correction)
    assert suggestion.startswith(f"; {correction}; if you fix your code: then studyloom redo ")


def test_the_lines_of_a_command_are_shown_once():
    printed = "step 1\nval_acc=0.96"
    halt = Halt("", "no value of loss; it printed step 1 | val_acc=0.96; name another", printed)
    assert halt.further_lines == ""
    more = Halt("", "no value of loss; it printed val_acc=0.96", printed)
    assert more.further_lines == printed
