import logging
import sys

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from studies import CONF
from studyloom.config.compose import Composer
from studyloom.config.main import hydra_main


@pytest.fixture
def composing():
    GlobalHydra.instance().clear()
    hydra.initialize_config_dir(CONF, version_base=None)


@pytest.fixture
def quiet():
    """Removes the handlers that Hydra adds to the root logger unless a config forbids it."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    for handler in [handler for handler in logging.root.handlers if handler not in handlers]:
        logging.root.removeHandler(handler)
        handler.close()
    logging.root.setLevel(level)


@pytest.fixture
def command(monkeypatch, tmp_path, quiet):
    """Runs a study's command in this process, in a folder of its own.

    Returns its config and composer, or the exit code if it ends before its task.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    tasks = []

    def run(*argv, task=lambda cfg: None):
        monkeypatch.setattr(sys, "argv", ["study.py", *argv])

        @hydra_main(config_path=CONF, config_name="mnist")
        def main(cfg):
            tasks.append((cfg, Composer.from_hydra()))
            task(cfg)

        GlobalHydra.instance().clear()
        try:
            main()
        except SystemExit as end:
            assert tasks == []
            monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # set while Hydra composes
            return end.code
        return tasks.pop()

    return run
