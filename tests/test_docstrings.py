"""The docstrings of the public API are its manual: every parameter is there, and examples run."""

import doctest
import functools
import inspect
import re
import subprocess
import sys
from types import ModuleType

import pytest
from omegaconf import OmegaConf

import studyloom
import studyloom.data
from studyloom.config.config_sources import DEFAULT_OPTIONS, GROUPS, NETWORK_OPTIONS
from studyloom.config.schema import StudySection, TrainSection, WinnerSection

PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (studyloom, studyloom.data)
    for name in module.__all__
    if not isinstance(getattr(module, name), ModuleType | str)
}
# An entry of a section, as mkdocstrings and editors read it.
ENTRY = re.compile(r"^    \*{0,2}(\w+): \S", re.MULTILINE)
SECTION = re.compile(r"^(?:Args|Attributes):\n((?:    .*\n|\n)+)", re.MULTILINE)


def members():
    """Yields (name, object, docstring) of each public function, class, method and property."""
    for name, member in PUBLIC.items():
        yield name, member, member.__doc__
        if not inspect.isclass(member):
            continue
        for cls in member.__mro__:
            if not cls.__module__.startswith("studyloom."):
                continue
            for own, each in vars(cls).items():
                if own.startswith("_") and own != "__call__":
                    continue
                inner = each.func if isinstance(each, functools.cached_property) else each
                inner = inner.fget if isinstance(inner, property) else inner
                inner = getattr(inner, "__func__", inner)
                if inspect.isfunction(inner):
                    yield f"{name}.{own}", inner, inner.__doc__


MEMBERS = {name: (member, text) for name, member, text in members()}


def documented(text):
    """Returns the names of the parameters that a docstring documents."""
    sections = SECTION.findall(f"{inspect.cleandoc(text or '')}\n")
    return {name for section in sections for name in ENTRY.findall(section)}


def parameters(name, member):
    if inspect.isclass(member):
        is_error = issubclass(member, BaseException)  # only studyloom raises it
        if is_error or member.__init__ is object.__init__:
            return set()
    return {*inspect.signature(member).parameters} - {"self", "cls"}


@pytest.mark.parametrize("name", MEMBERS)
def test_every_parameter_of_the_public_api_is_documented(name):
    member, text = MEMBERS[name]
    assert text, f"{name} has no docstring"
    missing = parameters(name, member) - documented(text)
    assert missing == set(), f"{name}: describe {', '.join(sorted(missing))} under Args"


@pytest.mark.parametrize("name", MEMBERS)
def test_no_docstring_documents_a_parameter_that_is_gone(name):
    member, text = MEMBERS[name]
    if not inspect.isfunction(member):
        return  # a class documents its attributes too
    assert documented(text) - parameters(name, member) == set()


def examples(name):
    """Returns the examples of a docstring, as a person types them."""
    return doctest.DocTestParser().get_examples(inspect.cleandoc(MEMBERS[name][1] or ""))


IN_PROCESS = [name for name in MEMBERS if examples(name) and name != "studyloom.search"]


@pytest.mark.parametrize("name", IN_PROCESS)
def test_the_example_of_a_docstring_gives_what_it_shows(name):
    known = {each.rpartition(".")[2]: member for each, member in PUBLIC.items()}
    parser = doctest.DocTestParser()
    test = parser.get_doctest(inspect.cleandoc(MEMBERS[name][1]), known, name, None, None)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said = []
    runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)


@pytest.mark.chaos
def test_the_example_of_search_runs_as_a_script(tmp_path):
    shown = examples("studyloom.search")
    (tmp_path / "example.py").write_text("".join(each.source for each in shown))
    ran = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "runs").is_dir()
    assert ran.stdout == "".join(each.want for each in shown)


def test_help_of_search_names_the_defaults_that_the_config_has():
    text = " ".join((studyloom.search.__doc__ or "").split())
    study, train, winner = StudySection(), TrainSection(), WinnerSection()
    assert f"None: {study.trials}." in text
    assert f"None: {study.seed}." in text
    assert f"trained for {train.epochs} epochs in batches of {train.batch_size}" in text
    assert f"the best {winner.top} trials and the baseline again" in text
    assert f"({winner.top} + 1) × {winner.seeds} trainings" in text
    assert f"2 × {winner.seeds} trainings" in text
    optimizer = OmegaConf.load(GROUPS / "optimizer" / f"{NETWORK_OPTIONS['optimizer']}.yaml")
    name = optimizer._target_.rpartition(".")[2]
    assert f"{name} (learning rate {optimizer.lr:.0e}".replace("e-0", "e-") in text
    assert f"{NETWORK_OPTIONS['scheduler']} decay" in text
    assert f'None: "{DEFAULT_OPTIONS["sampler"]}"' in text
    assert DEFAULT_OPTIONS == {
        "sampler": "auto",
        "pruner": "auto",
        "storage": "sqlite",
        "launcher": "local",
    }
