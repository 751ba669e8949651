"""Programs and shells: JSON of every command, events that drive a study, completion."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from commands import (
    QUICK,
    ROOT,
    documented,
    environment,
    start,
    study,
    study_here,
    studyloom,
)
from test_readme import PAPERS, SITE, blocks

from studyloom.cli import main
from studyloom.commands.documents import DOCUMENTS
from studyloom.commands.parser import COMMANDS, make_parser, options_of
from studyloom.commands.studies import SHELLS
from studyloom.config.overrides import study_help
from studyloom.environment import variables_help

REEVALUATED = ("winner.enabled=true", "winner.top=1", "winner.seeds=2", "launcher.workers=1")
SECRET = "canary-secret"


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    """The program of the guide, which has driven a study of six trials by its events alone."""
    folder = tmp_path_factory.mktemp("driven")
    (program,) = blocks(PAPERS[f"{SITE}/guides/overnight.md"], "python")
    assert len(program.splitlines()) <= 20
    (folder / "drive.py").write_text(program)
    run_dir = folder / "run"
    command = [sys.executable, folder / "drive.py", *QUICK, *REEVALUATED, f"run_dir={run_dir}"]
    env = environment(PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "src")]))
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    return run_dir, done


def valid(text, name):
    """The JSON document that a command has printed."""
    return documented(json.loads(text), name)


@pytest.mark.chaos
def test_twenty_lines_run_a_study_by_its_events_and_read_its_winner(driven):
    run_dir, done = driven
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[:6]] == [f"trial {n}" for n in range(6)]
    result = json.loads((run_dir / "winner.json").read_text())
    winner, test = result["winner"]["trial"], result["test"]["winner"]["mean"]
    assert lines[6:] == [f"winner {winner}: {test}"]


@pytest.mark.chaos
def test_commands_print_one_json_document_with_the_documented_fields(driven, capsys):
    run_dir, _ = driven
    written = json.loads((run_dir / "winner.json").read_text())
    for arguments in (
        *(["status"], ["trials"], ["report"], ["replay", "--trial", "1"], ["doctor"]),
        *(["doctor", "--repair"], ["winner"], ["stop"], ["resume"], ["ask"]),
    ):
        command, *options = arguments
        assert main([command, str(run_dir), *options, "--json"]) == 0
        document = valid(capsys.readouterr().out, command)
        if command in ("status", "winner"):
            mean = written["test"]["winner"]["mean"]
            assert document["result"]["test"]["mean"] == pytest.approx(mean)


def test_commands_without_a_study_print_json_too(tmp_path, capsys):
    def printed(*arguments, code=0):
        assert main([*arguments]) == code
        return capsys.readouterr()

    new = valid(printed("new", "mine", str(tmp_path), "--json").out, "new")
    assert str(tmp_path / "studies" / "mine.py") in new["files"]
    keys = valid(printed("keys", "--json").out, "keys")
    assert {each["key"]: each["default"] for each in keys}["study.trials"] == "40"
    script = valid(printed("completion", "bash", "--json").out, "completion")["script"]
    assert "studyloom" in script
    out, err = printed("status", str(tmp_path / "nowhere"), "--json", code=2)
    assert "no study has run there" in valid(out, "errors")["errors"][0]
    assert "error: " in err


def test_every_command_has_a_documented_document():
    assert {entry.act.__name__ for entry in COMMANDS} - {"mcp", "tune"} <= {*DOCUMENTS}
    commands = make_parser().commands
    without = {name for name, each in commands.items() if "--json" not in options_of(each)}
    # The overrides of run have its --json, tune prints the run that it is, and mcp speaks JSON.
    assert without == {"run", "tune", "mcp"}


@pytest.mark.chaos
def test_a_run_prints_one_object_and_the_rest_on_standard_error(tmp_path):
    run = (*QUICK, "study.trials=1", "launcher.workers=1", f"run_dir={tmp_path}")
    done = study_here(*run, "--json")
    document = valid(done.stdout, "run")
    assert (document["exit_code"], document["study"], document["done"]) == (0, "mnist", 1)
    assert "mnist begins" in done.stderr
    done = study_here("trials=3", "--json")
    assert (done.returncode, valid(done.stdout, "run")["exit_code"]) == (2, 2)
    assert "did you mean study.trials?" in done.stderr


@pytest.mark.chaos
def test_predict_answers_in_json_and_names_files_that_hold_no_input(driven, tmp_path):
    from PIL import Image

    run_dir, _ = driven
    Image.new("L", (28, 28), 255).save(tmp_path / "blank.png")
    (tmp_path / "text.png").write_text("no image")
    done = studyloom("predict", run_dir, tmp_path / "blank.png", "--json")
    assert len(valid(done.stdout, "predict")["predictions"]) == 1
    done = studyloom("predict", run_dir, tmp_path / "text.png", "--json")
    assert done.returncode == 2
    assert len(valid(done.stdout, "predict")["errors"]) == 1


@pytest.mark.chaos
def test_a_secret_of_notify_is_in_no_file_and_no_output(tmp_path):
    tell = tmp_path / "tell.sh"
    tell.write_text(f'#!/bin/sh\nprintf "%s\\n" "$1" "$2" > {tmp_path}/told\n')
    tell.chmod(0o755)
    run_dir, told = tmp_path / "run", tmp_path / "told"
    overrides = (*QUICK, "study.trials=1", "launcher.workers=1", f"run_dir={run_dir}")
    done = study(*overrides, f"notify='{tell} {SECRET}'", "--events", str(run_dir) + ".jsonl")
    assert done.returncode == 0, done.stderr
    assert told.read_text().splitlines()[0] == SECRET
    told.unlink()
    assert SECRET not in done.stdout + done.stderr
    for file in [path for path in tmp_path.rglob("*") if path.is_file()]:
        assert SECRET.encode() not in file.read_bytes(), file
    done = study(*overrides, f"notify=nosuch://{SECRET}")
    assert done.returncode == 2
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.chaos
def test_stop_in_another_terminal_releases_the_trial_for_later(tmp_path):
    run_dir, events = tmp_path / "run", tmp_path / "events.jsonl"
    long = [item for item in QUICK if not item.startswith("train.epochs")]
    command = (*long, "study.trials=2", "launcher.workers=1", f"run_dir={run_dir}")
    env = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    os.mkfifo(events)
    reader = os.open(events, os.O_RDWR)  # also for writing, so that it never ends
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 1 << 20)  # nobody reads while `studyloom stop` runs
    running = start(*command, "train.epochs=100000", "--events", str(events), **env)
    with os.fdopen(reader) as lines:
        wait_for(lines, "reported")
        done = studyloom("stop", run_dir, "--json")
        assert done.returncode == 0, done.stderr
        document = valid(done.stdout, "stop")
        assert (document["was_running"], document["workers"]) == (True, [])
        last = wait_for(lines, "exit")
    out, err = running.communicate(timeout=60)
    assert (running.returncode, last["exit_code"]) == (3, 3)
    assert "stopping, as studyloom stop says" in err
    assert "stopped by studyloom stop; the same command resumes here" in out
    assert studyloom("status", run_dir, "--check").returncode == 4
    again = start(*command, "train.epochs=100000", **env)
    assert "resumes" in [again.stdout.readline(), again.stdout.readline()][1]
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=60)
    assert again.returncode == 130
    assert studyloom("status", run_dir, "--check").returncode in (0, 3)  # no longer stopped


def wait_for(lines, kind):
    for line in lines:
        event = valid(line, "event")
        if event["event"] == kind:
            return event
    raise AssertionError(f"no event {kind}")


# The shell


def test_every_help_has_a_description_and_valid_examples(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("", *(entry.act.__name__ for entry in COMMANDS)):
        with pytest.raises(SystemExit):
            main([*filter(None, [name]), "--help"])
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 80
        assert re.search(r"^examples?:\n  \S*.*studyloom", text, re.MULTILINE)
        described = text.split("\n\n")[1]
        assert described.endswith((".", ".\n")) or name == ""
        assert len(described.split()) >= 5
    for entry in COMMANDS:
        for example in entry.examples:
            words = example.removeprefix('eval "$(').removesuffix(')"').split(" > ")[0].split()
            assert words[0] == "studyloom"
            assert make_parser().parse_args(words[1:]).act == entry.act


def test_help_lists_commands_in_groups_and_options_of_trust_last(capsys):
    def help_of(*words):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        return capsys.readouterr().out

    text = help_of()
    heads = re.findall(r"^(create and run|monitor|results|maintenance): .+", text, re.MULTILINE)
    assert heads == ["create and run", "monitor", "results", "maintenance"]
    found = [re.search(rf"^  {e.act.__name__} +\w", text, re.MULTILINE).start() for e in COMMANDS]
    assert found == sorted(found)
    assert text.index("maintenance: ") < text.index("\noptions:\n")
    for name, command in make_parser().commands.items():
        text = help_of(name)
        untrusted = [o for o in options_of(command) if o.startswith("--trust")]
        assert ("an untrusted folder" in text) == bool(untrusted)
        order = re.findall(r"^  (?:-h, )?(--[\w-]+)", text, re.MULTILINE)
        assert order == sorted(order, key=untrusted.__contains__)


def test_the_help_of_a_module_shows_keys_that_are_null():
    text = study_help("About.", str(ROOT / "conf"), "mnist", [])
    for key in (
        "study.timeout",
        "study.stop",
        "train.clip_norm",
        "train.patience",
        "cost.per_hour",
    ):
        section, name = key.split(".")
        assert re.search(rf"^  {section}:\n(?:   .*\n)*    {name}: null$", text, re.MULTILINE), key
    assert max(map(len, text.splitlines())) <= 80


def test_the_help_of_run_is_that_of_the_study_it_names():
    done = study_here("--help", "study.trials=7")
    assert done.stdout.startswith("Runs the study conf/mnist.yaml: studyloom run conf/mnist.yaml")
    assert "    trials: 7\n" in done.stdout


def test_the_completion_script_is_valid_and_names_every_command(capsys, tmp_path):
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert all(entry.act.__name__ in script for entry in COMMANDS)
        if shutil.which(shell) is not None:
            (tmp_path / "script").write_text(script)
            done = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True)
            assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.chaos
def test_a_study_module_that_is_run_as_a_file_is_the_same_study(tmp_path):
    env = environment(PYTHONPATH=str(ROOT / "src"))
    command = [sys.executable, ROOT / "studies" / "autoencoder.py"]
    dry = subprocess.run(
        [*command, "--dry-run"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert dry.returncode == 0, dry.stderr
    assert dry.stdout == study("--dry-run", page="autoencoder").stdout
    version = subprocess.run([*command, "--version"], env=env, capture_output=True, text=True)
    assert re.fullmatch(r"studyloom \d+\.\d+\.\d+\n", version.stdout)


@pytest.mark.chaos
def test_the_help_of_a_study_module_has_options_groups_and_keys():
    done = study("--help", "study.trials=7")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    for words in (
        *("Search MLPs and CNNs on MNIST", "--dry-run", "--events FILE"),
        *("model=cnn, gru, lstm, mlp", "    trials: 7", variables_help()),
    ):
        assert words in done.stdout
    assert "study:" in study_help("About.", str(ROOT / "conf"), "mnist", ["no.such=key"])
