"""The ends of the command of a study: their exit codes, messages and reports."""

import json
import os
from dataclasses import replace

import pytest
from commands import ROOT, study
from snapshots import snapshot_of

from studyloom.commands.end_of_run import end_of_search
from studyloom.errors import (
    DataError,
    Halted,
    Interrupted,
    LaunchError,
    StorageError,
    StorageLost,
)
from studyloom.worker.process import ProcessReporting, exiting_on_errors, find_exit_code
from studyloom.worker.stopping import Stop


class RecordedEnd(ProcessReporting):
    """Keeps the exit code and reason with which the command of an open study ends."""

    study = object()

    def __init__(self):
        self.ends = []

    def end(self, code, reason):
        self.ends.append((code, reason))


def test_a_second_ctrl_c_prints_that_the_study_resumes(capfd):
    stop = Stop()
    reporting = RecordedEnd()
    stop.signal = 2
    with pytest.raises(SystemExit) as caught, exiting_on_errors(stop, reporting):
        raise Interrupted
    assert caught.value.code == 130
    assert "stopped at once; the same command resumes here" in capfd.readouterr().err
    assert reporting.ends == [(130, "stopped at once")]


def test_a_second_ctrl_c_within_an_import_ends_the_command_as_any_other():
    """Until Python 3.12 what `__set_name__` raises is the cause of a RuntimeError."""
    wrapped = RuntimeError("Error calling __set_name__ on 'Field' instance 'more' in 'Row'")
    stop = Stop()
    stop.signal = 2
    with pytest.raises(SystemExit) as caught, exiting_on_errors(stop, RecordedEnd()):
        raise wrapped from Interrupted()
    assert caught.value.code == 130


def test_an_error_is_printed_and_ends_the_command(capsys):
    for error, code in (
        (Halted("no value"), 1),
        (LaunchError("no worker"), 1),
        (OSError("full"), 1),
        (StorageError("a person must decide"), 2),
        (DataError("damaged"), 2),
        (StorageLost("away"), 1),
    ):
        reporting = RecordedEnd()
        with pytest.raises(SystemExit) as caught, exiting_on_errors(Stop(), reporting):
            raise error
        assert caught.value.code == code
        assert reporting.ends == [(code, str(error))]
        assert f"error: {error}" in capsys.readouterr().err


def test_signal_stop_and_end_have_different_exit_codes():
    stop = Stop()
    assert find_exit_code(1, stop) == 1
    stop.requested = "studyloom stop"
    assert find_exit_code(0, stop) == 3
    stop.signal = 15
    assert find_exit_code(0, stop) == 143


def test_the_end_of_a_search_names_a_reason_that_counts_do_not_show():
    none_satisfies = replace(snapshot_of(complete=2), rule="max accuracy where parameters < 9")
    reason = "no trial satisfies winner.rule: max accuracy where parameters < 9; loosen it"
    assert end_of_search(none_satisfies, 5, has_run_workers=False).startswith(reason)
    all_failed = replace(snapshot_of(failed=5), rule="max accuracy")  # of two objectives
    assert end_of_search(all_failed, 5, has_run_workers=False) == "the budget of 5 trials is spent"
    assert (
        end_of_search(snapshot_of(), 5, has_run_workers=False) == "the budget of 5 trials is spent"
    )
    assert end_of_search(snapshot_of(), 5, has_run_workers=True) == ""


@pytest.mark.chaos
def test_workers_do_not_find_the_outputs_of_the_command(tmp_path):
    """A notify URL often holds a secret, and each event would be reported twice."""
    (tmp_path / "loop_of_test.py").write_text(
        "import os\n\n\ndef train(config, run):\n"
        "    names = ('STUDYLOOM_NOTIFY', 'STUDYLOOM_EVENTS', 'STUDYLOOM_JSON')\n"
        "    return float(sum(name in os.environ for name in names))\n"
    )
    loop = ("objective._target_=loop_of_test.train", "objective.metric=variables")
    shared = ("objective.direction=minimize", "space=lr", "sampler=random", "pruner=none")
    where = (f"run_dir={tmp_path / 'run'}", "winner.enabled=false", "study.trials=2")
    outputs = ("--json", f"--events={tmp_path / 'events'}", "notify=cat")
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    done = study(
        *(*loop, *shared, *where, "launcher.workers=2", *outputs), PYTHONPATH=path, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["best"]["value"] == 0
    assert (tmp_path / "events").read_text().count("\n") > 2
    assert len([*(tmp_path / "run" / "logs").iterdir()]) == 2, "the workers were forked"
