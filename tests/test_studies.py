"""Everything that ships composes and builds: every option of every group, every study and page."""

import ast
import functools
import importlib
import inspect
import shlex
import shutil
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from PIL import Image
from toys import ask, compose, validate_search

from studies import CONF, characters, clothes, pairs, speech
from studyloom import files
from studyloom.config.build import build
from studyloom.config.compose import Composer
from studyloom.config.study_config import StudyConfig
from studyloom.data.sources import ASSET, Embedded, read_csv
from studyloom.data.split import Split, make_folds
from studyloom.data.training_data import TrainingData
from studyloom.decisions.samplers import GridSampler
from studyloom.decisions.strategy import Strategy
from studyloom.definition.network import NetworkDefinition
from studyloom.errors import DataError
from studyloom.extras.ray import Ray
from studyloom.extras.slurm import Slurm
from studyloom.objectives.jobs import build_jobs
from studyloom.storage.urls import embedded_server_folder, parse_url
from studyloom.worker.local import Join, Local

ROOT = Path(CONF).parent
MODULES = sorted(path.stem for path in (ROOT / "studies").glob("*.py") if path.stem != "__init__")
PAGES = [name for name in MODULES if "hydra_main" in (ROOT / "studies" / f"{name}.py").read_text()]
GROUPS = sorted(folder for folder in Path(CONF).iterdir() if folder.is_dir())
MISSING = set() if hasattr(torch.optim, "Muon") else {"muon"}  # it came with torch 2.9
OPTIONS = {
    folder.name: sorted({path.stem for path in folder.glob("*.yaml")} - MISSING)
    for folder in GROUPS
}
CLASSES = torch.arange(6000) % 10
IMAGES = Split(torch.zeros(1, 1, 28, 28).expand(6000, -1, -1, -1), CLASSES, 10, "images")


def groups_of(page: str) -> set[str]:
    """The groups that a study has an option of; a study of a function needs only a few."""
    return {*OPTIONS} & {*compose(name=page)[1].choices}


def options(*groups: str):
    cases = [(group, option) for group in groups for option in OPTIONS[group]]
    return pytest.mark.parametrize(("group", "option"), cases, ids=map("=".join, cases))


@functools.cache
def composed(number: int) -> tuple[StudyConfig, Composer]:
    """The main study with one option of each group and no space; `number` says which options."""
    chosen = {group: names[number % len(names)] for group, names in OPTIONS.items()}
    chosen |= {"space": "none"}
    known = groups_of("mnist")
    return compose(*(f"{group}={name}" for group, name in chosen.items() if group in known))


def composed_with(group: str, option: str) -> tuple[StudyConfig, Composer]:
    """A composed study with an option; tests share it, since composing takes 70 ms."""
    return composed(OPTIONS[group].index(option))


@pytest.fixture(scope="module")
def folds():
    """The indices of 6 000 images, at which no test here looks."""
    return make_folds(CLASSES, 1, 800, 0)


def test_every_option_of_a_group_composes():
    for group in {*OPTIONS} & groups_of("mnist") - {"space"}:
        for option in OPTIONS[group]:
            cfg, composer = composed_with(group, option)
            assert composer.choices[group] == option
            assert group in cfg
    assert {*compose("track=[" + ",".join(OPTIONS["track"]) + "]")[0]["track"]} == {
        *OPTIONS["track"]
    }
    for option in OPTIONS["space"]:
        name = option if option in PAGES else "mnist"
        assert bool(ask(f"space={option}", name=name).space.nodes) == (option != "none")


@options("model", "optimizer", "scheduler", "loss")
def test_every_option_of_training_builds_and_works(group, option, folds):
    cfg, composer = composed_with(group, option)
    (job,) = build_jobs(cfg, folds, seed=0)
    model = job.model(shape=(1, 8, 8), outputs=10)
    optimizer = job.optimizer(model.parameters())
    targets = (
        torch.zeros(2, 10)
        if composer.choices["loss"] in ("mae", "huber")
        else torch.zeros(2, dtype=torch.int64)
    )
    job.loss(model(torch.zeros(2, 1, 8, 8)), targets).backward()
    optimizer.step()
    assert all(0 <= job.schedule(progress / 10) <= 1 for progress in range(10))


@options("sampler", "pruner")
def test_every_sampler_and_pruner_builds_and_is_of_optuna(group, option):
    strategy = Strategy(NetworkDefinition.from_config(*composed_with(group, option)))
    built = strategy.sampler(3) if group == "sampler" else strategy.pruner()
    assert isinstance(built, BaseSampler if group == "sampler" else BasePruner)
    assert isinstance(built, GridSampler) == (option == "grid")


def test_every_launcher_builds():
    kinds = {"local": Local, "join": Join, "ray": Ray, "slurm": Slurm}
    for option in OPTIONS["launcher"]:
        launcher = build(composed_with("launcher", option)[0]["launcher"], "launcher")
        assert isinstance(launcher, kinds[option])


@options("storage")
def test_every_storage_names_a_database_or_none(group, option, monkeypatch):
    url = compose(f"{group}={option}")[0].storage.url
    assert (url is None) == (option == "postgres")
    monkeypatch.setenv("STUDYLOOM_STORAGE", "postgresql://user@host/name")
    url = compose(f"{group}={option}", folder=Path(CONF))[0].storage.url
    if option == "embedded_postgres":  # below the run directory, whatever the environment says
        assert embedded_server_folder(url) == Path("runs/mnist/postgres").absolute()
    else:
        assert parse_url(url).get_backend_name() == "postgresql"


@options("space")
def test_every_space_gives_a_valid_study_definition(group, option, folds):
    page = option if option in PAGES else "mnist"
    definition, split = ask(f"{group}={option}", name=page), IMAGES
    if page not in ("mnist", "fashion"):  # the data of the others come with the package
        source = build(definition.config["data"], "data")
        split = source.train()
        count = definition.config.objective.folds
        folds = split.folds(count, source.validation, 0)
    validate_search(definition, TrainingData(None, split, folds))
    assert definition.baseline is not None
    assert Strategy(definition).trials == (
        definition.config.study.trials if definition.space.nodes else 1
    )


@pytest.mark.parametrize("page", PAGES)
def test_every_study_module_has_a_config_and_a_manual_that_composes(page):
    source = (ROOT / "studies" / f"{page}.py").read_text()
    lines = [line.strip() for line in ast.get_docstring(ast.parse(source)).splitlines()]
    commands = [line for line in lines if line.startswith("python -m")]
    assert len([line for line in commands if f"studies.{page}" in line]) >= 2
    for line in commands:
        compose(*shlex.split(line, comments=True)[3:], name=page)
    assert importlib.import_module(f"studies.{page}").main.__module__ == f"studies.{page}"


def test_photos_are_shifted_and_cropped_only_in_training(monkeypatch, tmp_path):
    with np.load(ASSET) as whole:
        few = {name: array[:100] for name, array in whole.items()}
    np.savez(tmp_path / "mnist5k.npz", **few)
    monkeypatch.setattr(files, "ASSETS", tmp_path)
    monkeypatch.chdir(tmp_path)
    source = build(ask("data.validation=10", name="photos").config["data"], "data")
    train, test = source.train(), source.test()
    (folder,) = tmp_path.rglob("train")
    paths = sorted(folder.rglob("*.png"))
    assert (len(paths), len(train), len(test)) == (100, 100, 100)
    assert (train.shape, train.outputs) == ((1, 28, 28), 10)
    number = int(paths[7].stem)
    assert (np.array(Image.open(paths[7])) == few["train_images"][number]).all()
    drawn = [train.training.load_batch([7], seed)[0] for seed in (1, 1, 2)]
    seen = [train.evaluation.load_batch([7], seed)[0] for seed in (1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(*seen)
    shutil.rmtree(tmp_path / "runs/photos/data/test")
    assert source.test().digest == test.digest, "written again, it is the same data"


def test_every_primary_config_has_a_study_module():
    assert sorted(path.stem for path in Path(CONF).glob("*.yaml")) == PAGES


def test_a_config_has_only_keys_that_its_target_takes():
    """A setting that nothing reads is a trap; `shape` and `outputs` are passed later."""
    for group in ("model", "optimizer", "scheduler", "loss", "data"):
        for option in OPTIONS[group]:
            section = composed_with(group, option)[0][group]
            keys = {key for key in section if not key.startswith("_")}
            target = hydra.utils.get_object(section["_target_"])
            assert keys <= {*inspect.signature(target).parameters}, (group, option)


def write_photos(folder):
    from studies import images  # it imports torchvision, which takes two seconds

    images.write_images(folder / "digits", "test")


# What reads each file that came with the package, past what a process keeps of it.
READERS = {
    "reviews.csv.bz2": lambda folder: clothes.reviews.__wrapped__(),
    "spoken.npz": lambda folder: speech.Spoken("train", "theo"),
    "mnist5k.npz": lambda folder: Embedded().test(),
    "mnist5k.npz for pairs": lambda folder: pairs.Pairs("test", "theo"),
    "mnist5k.npz for images": write_photos,
    "alice.txt": lambda folder: characters.characters("train"),
}


def test_a_damaged_or_missing_file_is_named_with_a_fix(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ASSETS", tmp_path)
    for what, read in READERS.items():
        name = what.partition(" ")[0]
        whole = ASSET if name == ASSET.name else files.GALLERY / name
        content = whole.read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError) as caught:
            read(tmp_path)
        assert str(caught.value).startswith(f"{tmp_path / name}: cannot be read: ")
        assert str(caught.value).endswith("is damaged; install studyloom again")
        assert not [*tmp_path.glob("digits*")]
        (tmp_path / name).unlink()
    monkeypatch.setattr(files, "GALLERY", tmp_path)  # as in a wheel
    for read in (*READERS.values(), lambda _: read_csv("studyloom:sunspots.csv")):
        with pytest.raises(DataError, match=r"is neither in .* nor in .*; install a checkout"):
            read(tmp_path)
