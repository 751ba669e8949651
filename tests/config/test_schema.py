import hydra
import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from studyloom.config.schema import check_name


@pytest.mark.parametrize(
    "override",
    [
        "study.trails=3",
        "wrong=3",
        "train.epochs=many",
        "train.epochs=1.5",
        "study.baseline=perhaps",
        "study.trials=null",
        "study.timeout=soon",
        "study.name=[a]",
        "train.l1=none",
    ],
)
def test_the_schema_refuses_unknown_keys_and_wrong_types(composing, override):
    with pytest.raises((HydraException, OmegaConfBaseException)):
        hydra.compose("mnist", [override])


@pytest.mark.parametrize("override", ["+study.trails=3", "++train.epoch=3"])
def test_a_key_that_is_added_to_a_section_of_the_schema_is_refused_too(command, capsys, override):
    assert command(override) == 2
    assert (
        f"error: {override.lstrip('+').partition('=')[0]}: no such key" in capsys.readouterr().err
    )


def test_the_schema_has_a_value_for_every_setting_of_its_own(composing):
    cfg = hydra.compose("mnist")
    assert (cfg.study.seed, cfg.study.baseline, cfg.study.timeout, cfg.study.dry_run) == (
        0,
        True,
        None,
        False,
    )
    assert (cfg.objective.folds, cfg.objective.seeds) == (1, 1)
    assert (cfg.train.l1, cfg.train.clip, cfg.train.precision, cfg.train.samples_per_epoch) == (
        0.0,
        None,
        "fp32",
        None,
    )
    assert cfg.run_dir == "runs/mnist"
    assert cfg.storage.url == "sqlite:///runs/mnist/study.db"
    assert cfg.train.loss == cfg.loss


@pytest.mark.parametrize("name", ["a/b", ""])
def test_a_name_that_is_no_folder_name_ends_the_command_with_2_before_a_folder_is_made(
    command, capsys, tmp_path, name
):
    assert command(f"study.name='{name}'") == 2
    error = capsys.readouterr().err
    assert error == f"error: {check_name(name)}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../up", "/", r"a\b", "a..b", "a\0b", "x" * 201]
)
def test_a_name_that_is_no_folder_name_is_refused_with_what_is_wrong(name):
    assert check_name(name).startswith(f"study.name must be a folder name, not {name[:20]!r}")


def test_a_name_with_nul_in_a_file_is_refused_too(command, capsys, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mine.yaml").write_text('defaults:\n  - mnist\n  - _self_\nstudy:\n  name: "a\\0b"\n')
    assert command("--config-dir", str(folder), "--config-name", "mine") == 2
    assert r"study.name must be a folder name, not 'a\x00b'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    "name", ["mnist", "a b", "ä" * 100, "x" * 200, ".hidden", "a.b", "[red]", "-x", "{x}"]
)
def test_other_names_are_accepted(name):
    assert check_name(name) is None


def test_a_name_is_measured_in_bytes_as_file_systems_do():
    assert "202 bytes" in check_name("ä" * 101)
