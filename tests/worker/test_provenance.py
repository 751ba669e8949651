"""What a trial stores about its making."""

import json
import subprocess

import torch
from toy_worker import RANDOM, fresh, work
from toys import ask

from studyloom.seeds import derive
from studyloom.storage.attributes import PROVENANCE
from studyloom.worker import provenance
from studyloom.worker.provenance import Provenance


def test_a_trial_stores_its_provenance(sqlite_url):
    definition = ask(*RANDOM, "study.seed=3")
    stored = fresh(sqlite_url, definition, 2)
    work(definition, stored, 2)
    for trial in stored.trials():
        made = Provenance.read(trial.user_attrs[PROVENANCE])
        assert (made.seed, made.study_seed) == (derive(3, trial.number), 3)
        assert (made.data, made.device, made.claims) == ("toy", "cpu", 1)
        assert made.config["train"]["batch_size"] == trial.params["train.batch_size"]
        assert made.config["train"]["loss"]["_target_"] == "studyloom.losses.CrossEntropy"
        assert made.config["optimizer"]["lr"] in trial.params.values()
        assert {*made.config} == {"data", "model", "optimizer", "scheduler", "objective", "train"}
        assert "root" not in made.config["data"]
        assert made.environment["torch"] == torch.__version__
        assert made.environment["threads"] == 1  # its steps are small
        assert made.as_json() == trial.user_attrs[PROVENANCE]
        assert len(json.dumps(trial.user_attrs[PROVENANCE])) < 2000


def test_the_commit_is_that_of_the_folder_and_says_when_it_is_dirty(tmp_path, monkeypatch):
    def commit():
        provenance.read_commit.cache_clear()
        return provenance.read_commit()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() is None
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert commit() is None
    (tmp_path / "page.py").write_text("a")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    assert commit() == head
    (tmp_path / "page.py").write_text("b")
    assert commit() == f"{head}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None  # no git
    provenance.read_commit.cache_clear()
