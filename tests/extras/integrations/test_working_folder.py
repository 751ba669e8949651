"""The folders in which the trials of a command run, and files that trials share."""

import os
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from projects import write_project

from studyloom.errors import CommandFailed
from studyloom.extras.integrations import shared_files, working_folder
from studyloom.extras.integrations.command import Command
from studyloom.extras.integrations.shared_files import SharedFiles
from studyloom.extras.integrations.working_folder import WorkingFolder

# As multigpu_torchrun.py of pytorch/examples: it resumes from a snapshot in the current folder.
RESUMING = """
    import os
    import sys

    first = int(open("snapshot.pt").read()) if os.path.exists("snapshot.pt") else 0
    for epoch in range(first, 4):
        print(f"epoch {epoch} loss {1 / (epoch + 1)}")
        with open("snapshot.pt", "w") as file:
            file.write(str(epoch + 1))
        if epoch == 1 and "dies" in sys.argv[1:]:
            sys.exit(1)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = write_project(tmp_path / "project", {"train.py": RESUMING})
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def config(project):
    return OmegaConf.create({"run_dir": "runs/own", "params": {}})


@pytest.fixture
def make_trial(project, make_run):
    """Makes the run of a trial, with its folder below the run directory."""
    made = type(make_run())

    def make_trial(number):
        run = made(project / f"runs/own/checkpoints/trial-{number}-abc")
        run.trial = number
        return run

    return make_trial


def command(*words, **keys):
    run = " ".join([sys.executable, "train.py", *words])
    return Command(run, r"loss (\S+)", r"epoch (\d+)", **keys)


def steps(run):
    return [step for step, _ in run.reports]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_trial_does_not_resume_from_the_snapshot_of_another(project, config, make_trial):
    for number in range(3):
        run = make_trial(number)
        command()(config, run)
        assert steps(run) == [0, 1, 2, 3]
    assert names(project) == ["runs", "train.py"]


def test_a_resumed_trial_finds_its_folder_again(project, config, make_trial):
    run = make_trial(0)
    with pytest.raises(CommandFailed, match="exit code 1"):
        command("dies")(config, run)
    assert steps(run) == [0, 1]
    again = make_trial(0)
    command()(config, again)
    assert steps(again) == [0, 1, 2, 3], "those of before are read from what it printed"
    printed = (again.dir / ".output").read_text()
    assert printed.count("epoch") == 4, "none was trained twice"


def test_a_kept_folder_is_in_the_run_directory_and_used_again(project, config, make_trial):
    run = make_trial(0)
    with pytest.raises(CommandFailed, match="exit code 1"):
        command("dies", keep=True)(config, run)
    command(keep=True)(config, make_trial(0))
    kept = project / "runs/own/work"
    assert names(kept) == ["trial-0"]
    assert (kept / "trial-0/project/snapshot.pt").read_text() == "4"
    command(keep=True)(config, make_trial(1))
    assert names(kept) == ["trial-0", "trial-1"]


def test_a_second_study_in_a_run_directory_does_not_see_kept_files(project, config, make_trial):
    for folder in ("trial-0-abc", "trial-0-other"):
        run = make_trial(0)
        run.dir = run.dir.with_name(folder)
        run.dir.mkdir(exist_ok=True)
        command(keep=True)(config, run)
        assert steps(run) == [0, 1, 2, 3]
    assert names(project / "runs/own/work") == ["trial-0", "trial-0.2"]


def test_a_trial_does_not_resume_from_files_of_an_earlier_run(project, config, make_trial):
    Path("snapshot.pt").write_text("3")
    Path("out").mkdir()
    Path("out/ckpt.pt").touch()
    run = make_trial(0)
    (_, note, *_) = command().notes(config)
    assert note == (
        "the trials do not see out/ckpt.pt, snapshot.pt, from which they would resume; if the "
        "command reads it, set objective.inputs=[out/ckpt.pt]"
    )
    command()(config, run)
    assert steps(run) == [0, 1, 2, 3]
    assert Path("snapshot.pt").read_text() == "3"
    run = make_trial(1)
    command(inputs=["snapshot.pt"])(config, run)
    assert steps(run) == [3]
    assert Path("snapshot.pt").read_text() == "3", "the trial has a copy"


FILES = {
    "project/data/a.csv": "1",
    "project/package/part.py": "x = 1",
    "project/package/weights/net.pth": "",
    "project/.env": "KEY=1",
    "project/runs/other/study.db": "",
    "data/b.csv": "2",
}


@pytest.fixture
def work(tmp_path):
    """The folder of a trial in a project with data within it and next to it."""
    folder = write_project(tmp_path, FILES) / "project"
    trial = folder / "runs/own/checkpoints/trial-0-abc"
    trial.mkdir(parents=True)
    return WorkingFolder(folder, [folder / "runs"]).prepare(trial)


def test_relative_paths_lead_to_files_of_the_project_and_next_to_it(work):
    texts = {path: (work / path).read_text() for path in ("data/a.csv", "../data/b.csv", ".env")}
    assert texts == {"data/a.csv": "1", "../data/b.csv": "2", ".env": "KEY=1"}
    assert names(work) == [".env", "data", "package"], "no run directory, and no saved state"
    assert names(work / "package") == ["part.py", "weights"]


def test_files_written_below_a_folder_stay_in_the_trials_folder(work, tmp_path):
    (work / "data/a.csv").write_text("changed")
    (work / "package/new.py").touch()
    assert (tmp_path / "project/data/a.csv").read_text() == "1"
    assert names(tmp_path / "project/package") == ["part.py", "weights"]


def test_large_files_and_folders_of_many_files_are_links(tmp_path, monkeypatch):
    monkeypatch.setattr(working_folder, "MAX_MIRRORED_FILES", 3)
    monkeypatch.setattr(working_folder, "MAX_COPIED_BYTES", 10)
    files = {f"project/data/{name}": "" for name in "abcd"}
    folder = write_project(tmp_path, files | {"project/large": "x" * 11}) / "project"
    work = WorkingFolder(folder).prepare(tmp_path / "trial")
    assert (work / "data").readlink() == folder / "data"
    assert (work / "large").readlink() == folder / "large"


def test_no_link_leads_to_the_run_directory(tmp_path):
    """Nor to the checkpoints, if they are elsewhere."""
    folder = write_project(tmp_path, {"project/out/a": "", "states/b": ""}) / "project"
    hidden_folders = [folder / "out/own", tmp_path / "states"]
    work = WorkingFolder(folder, hidden_folders).prepare(folder / "out/own/trial")
    assert not (work / "out").is_symlink()
    assert names(work.parent) == ["project"]


def test_a_half_made_folder_is_made_again(tmp_path):
    folder = write_project(tmp_path, {"project/a": "", "trial/.work.new/project/half": ""})
    work = WorkingFolder(folder / "project").prepare(tmp_path / "trial")
    assert names(work) == ["a"]


def test_two_trials_that_wrote_a_file_of_the_project_are_named(
    project, config, make_trial, monkeypatch
):
    monkeypatch.setattr(
        shared_files, "CLOCK_TOLERANCE", 0.0
    )  # the programs end within milliseconds
    runs = [make_trial(number) for number in range(3)]
    first, second, third = runs
    command(cwd="project")(config, first)
    assert first.warnings == []
    Path("snapshot.pt").write_text("1")
    os.utime("snapshot.pt", (1, 1))
    command(cwd="project")(config, second)
    assert steps(second) == [1, 2, 3]
    (warning,) = second.warnings
    assert warning.startswith(f"trial-0 and trial-1 wrote snapshot.pt in {project}, so that one")
    Path("snapshot.pt").unlink()
    command(cwd="project")(config, third)
    assert third.warnings == [], "it has been said"


def test_parallel_trials_do_not_share_a_file_that_only_one_has_written(tmp_path, monkeypatch):
    """A file of its own that one writes again and again while others begin and end."""
    clock = iter(range(1000, 10_000, 10))
    monkeypatch.setattr(shared_files.time, "time", lambda: next(clock))
    (tmp_path / "project").mkdir()
    own, common = tmp_path / "project/own", tmp_path / "project/common"
    files = SharedFiles(tmp_path / "project", tmp_path / "written.jsonl", tmp_path / "run")

    def write(file):
        file.touch()
        now = next(clock)
        os.utime(file, (now, now))

    long, short = files.begin("long"), files.begin("short")
    write(own)
    write(common)
    assert files.end("short", short) == {}
    other = files.begin("other")
    write(own)
    assert files.end("other", other) == {}
    assert files.end("long", long) == {}
    last = files.begin("last")
    write(common)
    assert files.end("last", last) == {"common": ["long", "short", "last"]}


WRONG = {
    "objective.cwd must be trial or project; got 'there'": {"cwd": "there"},
    "objective.keep must be true or false; got 'all'": {"keep": "all"},
    "objective.inputs must be a list of paths, such as [a.pth]; got 'a.pth'": {"inputs": "a.pth"},
    "objective.inputs: there is no a.pth in ": {"inputs": ["a.pth"]},
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_key_of_the_folder_is_refused(project, words):
    (error,) = command(**WRONG[words])._check_folders()
    assert error.startswith(words)


def test_notes_on_seed_and_digits_are_printed_before_trial_0(project, config):
    Path("train.py").write_text('print(f"epoch {e} loss {loss:.2f}")\n')
    *_, seed, digits = command().notes(config)
    assert seed.startswith("objective.run has no {seed}: if the script sets its seed itself")
    assert digits.startswith("train.py, line 1: the value is rounded to .2f, so that trials may")
    for text in ('"loss {:5.2f}"', '"loss %.1f" % x'):
        Path("train.py").write_text(f"import random\n\nprint({text})")
        assert "line 3" in command().notes(config)[-1]
    for text in ('f"loss {x:.4f}"', 'f"loss {x:.2f}%"', "STUDYLOOM_SEED"):
        Path("train.py").write_text(f"print({text})")
        assert "line 1" not in command().notes(config)[-1]
    assert not any("{seed}" in note for note in command().notes(config))
    assert not any("\n" in note for note in command().notes(config))
