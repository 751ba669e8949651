from pathlib import Path

import pytest

from studyloom.config.compose import note_run, recompose
from studyloom.config.runs import read_run, read_storage_url
from studyloom.config.study_config import StudyConfig
from studyloom.errors import ConfigError
from studyloom.files import MARK

SECRET = "postgresql://user:hunter2@host/name"


@pytest.fixture
def strange(command, tmp_path):
    """Makes a run directory that is not known as the user's own, and returns its config."""

    def make(*overrides):
        def note(cfg):
            note_run(Path(cfg.run_dir), StudyConfig.of(cfg))
            Path(cfg.run_dir, MARK).unlink()

        return command(*overrides, "run_dir=run", task=note)[0]

    return make


@pytest.fixture
def finished(strange, tmp_path):
    strange("study.name=x")
    return tmp_path / "run"


def test_a_run_directory_names_its_database_and_study(finished, tmp_path):
    assert read_run(finished, trusted=True) == ("sqlite:///run/study.db", "x")
    (finished / "study.db").write_text("")
    assert read_run(finished) == (f"sqlite:///{finished}/study.db", "x")
    finished.rename(tmp_path / "moved")
    assert read_run(tmp_path / "moved") == (f"sqlite:///{tmp_path}/moved/study.db", "x")


def test_a_url_from_the_environment_is_not_kept_in_the_run_directory(
    strange, tmp_path, monkeypatch
):
    monkeypatch.setenv("STUDYLOOM_STORAGE", SECRET)
    strange("storage=postgres")
    assert read_run(tmp_path / "run") == (SECRET, "mnist")
    monkeypatch.delenv("STUDYLOOM_STORAGE")
    with pytest.raises(ConfigError, match="put the URL into STUDYLOOM_STORAGE"):
        read_run(tmp_path / "run")


def test_a_moved_run_directory_finds_its_embedded_server(strange, tmp_path):
    strange("storage=embedded_postgres")
    (tmp_path / "run" / "study.db").touch()  # of an earlier run
    (tmp_path / "run").rename(tmp_path / "moved")
    assert read_run(tmp_path / "moved") == (
        f"embedded_postgres:///{tmp_path}/moved/postgres",
        "mnist",
    )


def test_a_url_file_must_be_readable_by_its_owner_only(strange, tmp_path):
    file = tmp_path / "url"
    for content, mode, expected in (
        (SECRET, 0o640, "url must be readable by its owner only, .* mode 0640; run chmod 600"),
        ("\n", 0o600, "url is empty"),
        (None, 0o600, "cannot be read: No such file"),
    ):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content)
            file.chmod(mode)
        cfg = strange("storage=postgres", f"storage.file={file}")
        with pytest.raises(ConfigError, match=f"storage.file: .*{expected}") as caught:
            read_storage_url(cfg)
        assert "hunter2" not in str(caught.value)
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)
    assert read_storage_url(cfg) == SECRET
    assert read_run(tmp_path / "run", trusted=True) == (SECRET, "mnist")
    assert "hunter2" not in "".join(
        path.read_text() for path in (tmp_path / "run" / ".hydra").iterdir()
    )


def test_an_error_names_a_folder_in_which_no_study_has_run(tmp_path):
    for folder in (tmp_path, tmp_path / "run"):
        with pytest.raises(ConfigError, match=f"{folder}: no study has run there"):
            read_run(folder)


def test_a_run_directory_is_trusted_once_the_user_says_so(finished):
    config = finished / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("${oc.env:STUDYLOOM_STORAGE,", "${oc.env:OTHER,"))
    with pytest.raises(ConfigError, match="add --trust-config"):
        read_run(finished)
    read_run(finished, trusted=True)
    read_run(finished)  # said once


def test_a_config_that_hydra_did_not_write_is_explained(tmp_path):
    (tmp_path / ".hydra").mkdir()
    for content, words in {
        "a: [": "cannot be read",
        "!!python/object/apply:os.mkdir [x]": "cannot be read",
        "storage: 3": "storage.url has no value",
        "study: [1]": "storage.url has no value",
    }.items():
        (tmp_path / ".hydra" / "config.yaml").write_text(content)
        with pytest.raises(ValueError, match=words):
            read_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".hydra"]


def test_recompose_drops_overrides_of_the_keys_that_it_replaces(strange, tmp_path):
    typed = ("~launcher.per_gpu", "++launcher.workers=2", "+params.margin=0.1", "train.epochs=3")
    strange(*typed, "params={}")
    with recompose(tmp_path / "run", "launcher=join", "params=null", trusted=True) as cfg:
        assert cfg["launcher"]["_target_"] == "studyloom.worker.Join"
        assert (cfg["params"], cfg.train.epochs) == (None, 3)
