"""Definitions that several tests share, composed once for all tests of a module."""

from dataclasses import replace

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from toys import ask, compose, toy_split

from studies import CONF
from studyloom.data.split import make_folds
from studyloom.definition.definition import Definition
from studyloom.definition.network import NetworkDefinition


@pytest.fixture
def composing(clean_hydra):
    """Starts Hydra for each test: the definitions of a module live longer than a test."""
    GlobalHydra.instance().clear()
    hydra.initialize_config_dir(CONF, version_base=None)


@pytest.fixture(scope="module")
def folds():
    return make_folds(toy_split(500).targets, 1, 100, 0)


@pytest.fixture(scope="module")
def main():
    return ask()


@pytest.fixture(scope="module")
def composed():
    return compose("space=none")


@pytest.fixture
def define_with(composed):
    """Makes a definition with values by key, as if they were composed, and with `key=range`."""

    def define(*searches: str, **values: object) -> Definition:
        cfg, composer = composed
        tree = OmegaConf.to_container(OmegaConf.from_dotlist(list(searches)))
        cfg = cfg.with_values(
            {key.replace("__", "."): value for key, value in values.items()} | {"space": tree}
        )
        return NetworkDefinition.from_config(cfg, replace(composer, _completed={}))

    return define
