"""Real commands: a study from question to stored result, and every bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import yaml
from commands import (
    CANARY,
    QUICK,
    ROOT,
    environment,
    shows_test,
    start,
    study,
    study_here,
    studyloom,
)
from optuna.trial import TrialState

from studyloom.cli import main
from studyloom.errors import ConfigError
from studyloom.storage import reach
from studyloom.storage.opening import open_study
from studyloom.storage.reach import check_connections, check_database_reach
from studyloom.worker.local import Join, Local


def trials_of(run_dir, name="mnist"):
    return open_study(f"sqlite:///{run_dir}/study.db", name).trials()


# The study, end to end


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small study that two workers have finished, typed as a user does, and its output."""
    run_dir = tmp_path_factory.mktemp("finished")
    overrides = (*QUICK, "study.trials=5", "launcher.workers=2", f"run_dir={run_dir}")
    command = [sys.executable, "-m", "studies.mnist", *overrides]
    return run_dir, subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True
    )


def test_a_study_ends_with_its_result_and_the_next_command(finished, capsys):
    run_dir, done = finished
    assert (done.returncode, done.stderr) == (0, "")
    for words in (
        *("5 of 5 trials", "baseline", "best", f"studyloom status {run_dir}"),
        f"run_dir={run_dir} study.trials=10",
    ):
        assert words in done.stdout
    assert main(["status", str(run_dir)]) == 0
    details = capsys.readouterr().out
    for words in ("best.yaml", "s per epoch", "training", f"sqlite:///{run_dir}/study.db"):
        assert words in details


def test_the_folder_of_the_logs_is_named_only_if_workers_write_some(finished, tmp_path):
    run_dir, done = finished
    assert f"5 trials to do, logs in {run_dir}/logs\n" in done.stdout
    alone = study_here(*QUICK, "study.trials=1", "launcher.workers=1", f"run_dir={tmp_path}")
    assert "begins: 1 trial to do\n" in alone.stdout
    assert not (tmp_path / "logs").exists()


def test_a_study_writes_only_below_its_run_directory(finished):
    run_dir, _ = finished
    names = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}
    logs = {name for name in names if name.startswith("logs/")}
    assert len(logs) == 2
    assert names - logs == {
        *(".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"),
        *("best.yaml", "report.html", "study.db", "study.lock"),
        "made-by",  # tells one's own folder from that of somebody else
    }
    trials = trials_of(run_dir)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 5
    best = max(trials, key=lambda trial: trial.value)
    written = (run_dir / "best.yaml").read_text()
    assert f"trial {best.number}" in written
    assert best.params == {"optimizer.lr": yaml.safe_load(written)["optimizer"]["lr"]}


def test_the_same_command_does_nothing_until_it_has_more_trials(finished):
    run_dir, _ = finished
    before = [(trial.number, trial.params, trial.value) for trial in trials_of(run_dir)]
    done = study_here(*QUICK, "study.trials=5", "launcher.workers=2", f"run_dir={run_dir}")
    assert done.returncode == 0
    assert "the budget of 5 trials is spent" in done.stdout
    done = study_here(*QUICK, "study.trials=7", "launcher.workers=1", f"run_dir={run_dir}")
    assert done.returncode == 0
    assert "resumes: 2 trials to do" in done.stdout
    after = [(trial.number, trial.params, trial.value) for trial in trials_of(run_dir)]
    assert (after[:5], len(after)) == (before, 7)
    assert len(list((run_dir / "logs").iterdir())) == 2  # one worker needs no process


def test_another_definition_under_the_same_name_is_refused_with_both(finished, tmp_path):
    run_dir = shutil.copytree(finished[0], tmp_path / "run")  # Hydra writes down what was asked
    done = study_here(*QUICK, "train.epochs=3", f"run_dir={run_dir}")
    assert done.returncode == 2
    assert "train.epochs: 2 → 3" in done.stderr
    assert "study.name=" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.chaos
def test_a_password_is_in_no_file_and_no_output(tmp_path, postgres_url):
    """The server trusts everybody, so the canary opens the study as any other password would."""
    reevaluated = (
        "winner.enabled=true",
        "winner.top=1",
        "winner.seeds=2",
    )  # nor in the result's files
    where = (f"run_dir={tmp_path}", "storage=postgres")
    overrides = (*QUICK, *reevaluated, "study.trials=2", "launcher.workers=2", *where)
    done = study(*overrides, STUDYLOOM_STORAGE=postgres_url)
    assert done.returncode == 0, done.stderr
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 11
    assert not any(CANARY.encode() in content for content in written)
    assert CANARY not in done.stdout + done.stderr
    shown = studyloom("status", tmp_path, STUDYLOOM_STORAGE=postgres_url)
    assert CANARY not in shown.stdout + shown.stderr
    assert "***" in shown.stdout


@pytest.mark.chaos
def test_three_commands_at_once_on_one_run_directory_make_exactly_n_trials(tmp_path):
    def command(workers):
        return study(
            *QUICK, "study.trials=6", f"launcher.workers={workers}", f"run_dir={tmp_path}"
        ).returncode

    with ThreadPoolExecutor() as commands:
        assert [*commands.map(command, (2, 1, 1))] == [0, 0, 0]
    trials = trials_of(tmp_path)
    assert [trial.number for trial in trials] == list(range(6))
    assert not [trial for trial in trials if not trial.state.is_finished()]
    assert len({tuple(trial.params.items()) for trial in trials}) == 6


def test_a_time_limit_ends_the_command_and_releases_its_trials(tmp_path):
    limited = ("train.epochs=2000", "study.trials=2", "study.timeout=1", "launcher.workers=1")
    done = study_here(*QUICK, *limited, f"run_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "the time is up; the same command resumes here" in done.stdout
    assert open_study(f"sqlite:///{tmp_path}/study.db", "mnist").ledger.counts()["held"] == 0


def test_a_study_in_which_every_trial_fails_ends_with_1_and_says_why(tmp_path):
    diverges = ("optimizer=sgd", "optimizer.lr=1e30", "space.optimizer.lr.float=[1e29,1e31]")
    two = ("study.trials=2", "launcher.workers=1", f"run_dir={tmp_path}")
    done = study_here(*QUICK, *diverges, *two)
    assert done.returncode == 1
    assert "diverged  2 × such as" in done.stdout


def test_a_dry_run_shows_the_space_and_a_configuration_and_leaves_nothing(tmp_path):
    done = study_here("--dry-run", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    for words in ("infinitely many configurations", "momentum: 0 … 0.99", "_target_:"):
        assert words in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def reevaluated(tmp_path_factory):
    """A small study with a winner, and what the command printed."""
    run_dir = tmp_path_factory.mktemp("reevaluated")
    overrides = (*QUICK, "winner.enabled=true", "winner.top=2", "winner.seeds=2", "study.trials=3")
    return run_dir, overrides, study(*overrides, "launcher.workers=2", f"run_dir={run_dir}")


def test_a_study_ends_with_a_winner_that_is_tested_and_a_report(reevaluated, capsys):
    run_dir, _, done = reevaluated
    assert (done.returncode, done.stderr) == (0, "")
    assert shows_test(done.stdout)
    for words in ("on 1,000 unseen images", " and 0.", "report.html"):
        assert words in done.stdout
    assert main(["status", str(run_dir)]) == 0
    details = capsys.readouterr().out
    for words in ("2 seeds, 1,000 examples", "selection gap", "winner.yaml"):
        assert words in details
    names = {path.name for path in run_dir.iterdir()}
    assert names >= {"winner.json", "winner.yaml", "winner.pt", "model_card.md", "report.html"}


def test_the_same_command_prints_the_winner_and_does_not_test_again(reevaluated):
    run_dir, overrides, first = reevaluated
    written = (run_dir / "winner.json").read_bytes()
    done = study_here(*overrides, f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    told = [line for line in first.stdout.splitlines() if line.startswith("winner")]
    assert told
    assert told[0] in done.stdout
    assert (run_dir / "winner.json").read_bytes() == written


@pytest.mark.chaos
def test_a_command_under_nohup_outlives_its_terminal(tmp_path):
    """When a terminal closes, all that was started in it gets SIGHUP."""
    overrides = ("study.trials=6", "launcher.workers=2", f"run_dir={tmp_path}")
    process = start(*QUICK, *overrides, within=["nohup"])
    assert process.stdout.readline() == "mnist: starting\n"
    assert "begins: 6 trials to do" in process.stdout.readline()
    os.kill(process.pid, signal.SIGHUP)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "6 of 6 trials" in output


@pytest.mark.chaos
def test_the_result_of_another_study_in_the_folder_is_moved_and_not_shown(tmp_path):
    """Name, stage and budget are the same; the database was deleted and the seed changed."""
    reevaluated = ("winner.enabled=true", "winner.top=1", "winner.seeds=2", "study.trials=2")
    overrides = (*QUICK, *reevaluated, "launcher.workers=1", f"run_dir={tmp_path}")
    first = study_here(*overrides)
    assert first.returncode == 0, first.stderr
    was = json.loads((tmp_path / "winner.json").read_text())
    for path in tmp_path.glob("study.db*"):
        path.unlink()
    assert studyloom("report", tmp_path).returncode == 2
    second = study_here(*overrides, "study.seed=1")
    assert second.returncode == 0, second.stderr
    now = json.loads((tmp_path / "winner.json").read_text())
    assert now["seeds"] != was["seeds"]
    assert "belongs to another study; it was moved to" in second.stdout
    assert f"{now['test']['winner']['mean']:.4f}" in second.stdout
    moved = tmp_path / "earlier" / "result-1"
    assert json.loads((moved / "winner.json").read_text()) == was
    assert {"winner.yaml", "winner.pt"} <= {path.name for path in moved.iterdir()}


@pytest.mark.chaos
def test_winner_yaml_gives_the_same_weights_again(reevaluated, tmp_path):
    run_dir, _, _ = reevaluated
    again = ("winner.seeds=2", "launcher.workers=2", "data.validation=100", f"run_dir={tmp_path}")
    done = study("--config-dir", str(run_dir), "--config-name", "winner", *again)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "winner.pt").read_bytes() == (run_dir / "winner.pt").read_bytes()


# Bad input: exit code 2, the value and the way out, no traceback, no trial


def refused(*overrides, words, tmp_path):
    run_dir = f"run_dir={tmp_path / 'run'}"
    has_own = any(override.startswith("run_dir=") for override in overrides)
    done = study_here(*overrides, *([] if has_own else [run_dir]))
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, (word, done.stderr)
    assert not (tmp_path / "run" / "study.db").exists()
    return done


def test_everything_that_a_space_names_is_built_before_trial_0(tmp_path):
    refused(
        "space.model.mlp.activation.choice=[relu,tahn]",
        "space.train.batch_size.choice=[64,-3]",
        words=("tahn", "tanh", "train.batch_size", "-3"),
        tmp_path=tmp_path,
    )


@pytest.mark.chaos
def test_an_unreachable_database_is_named_without_its_password(tmp_path):
    url = f"postgresql://user:{CANARY}@127.0.0.1:1/db"
    done = study(*QUICK, "storage=postgres", cwd=tmp_path, STUDYLOOM_STORAGE=url)
    assert done.returncode == 2
    assert "user:***@127.0.0.1:1/db" in done.stderr
    assert CANARY not in done.stdout + done.stderr
    refused(
        *QUICK,
        "storage=postgres",
        words=("storage.url must be set", "STUDYLOOM_STORAGE"),
        tmp_path=tmp_path,
    )


def test_a_database_on_this_host_is_refused_where_workers_do_not_reach_it(tmp_path, monkeypatch):
    def places(url, launcher):
        several, away = launcher.count_workers(2) > 1, launcher.leaves_host
        return " ".join(check_database_reach(url, several=several, leaves_host=away))

    away = SimpleNamespace(leaves_host=True, count_workers=lambda slots: 4)
    sqlite, embedded = f"sqlite:///{tmp_path}/study.db", f"embedded_postgres:///{tmp_path}/postgres"
    assert "a file on this host" in places(sqlite, away)
    assert "storage=postgres" in places(sqlite, away)
    assert "a server on 127.0.0.1 is out of reach" in places(embedded, away)
    assert places("postgresql://user@host/name", away) == ""
    assert places(sqlite, Local(workers=4)) == places(embedded, Local(workers=4)) == ""
    monkeypatch.setattr(reach, "filesystem_of", lambda path: "nfs4")
    assert "several workers would damage" in places(sqlite, Local(workers=2))
    assert places(sqlite, Local(workers=1)) == ""
    assert "two hosts would damage" in places(embedded, Join())


def test_more_workers_than_free_connections_are_refused_before_they_start(
    postgres_url,
):
    check_connections(postgres_url, 8)
    with pytest.raises(
        ConfigError,
        match=r"300 workers take 600 connections, and the server has \d+ left .*workers=",
    ):
        check_connections(postgres_url, 300)
    check_connections("sqlite:///study.db", 300)
    check_connections(postgres_url, 1)  # is this process
