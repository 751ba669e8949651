"""The site has a place for each page, and each generated part has all that the code has."""

import importlib.util
import re
import tomllib

import pytest
from commands import ROOT
from test_readme import SITE

import studyloom
import studyloom.data
from studyloom import environment
from studyloom.commands.parser import COMMANDS
from studyloom.config.schema import describe_keys


@pytest.fixture(scope="module")
def site():
    """scripts/site.py; its name is also that of a module of Python."""
    spec = importlib.util.spec_from_file_location("site_script", ROOT / "scripts/site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_navigation_has_every_page_once(site):
    text = (ROOT / ".github/site/zensical.toml").read_text()
    listed = re.findall(
        r'"([\w/-]+\.md)"', str(tomllib.loads(text)["project"]["nav"]).replace("'", '"')
    )
    written = {str(path.relative_to(ROOT / SITE)) for path in (ROOT / SITE).rglob("*.md")}
    assert sorted(listed) == sorted(written | {*site.ELSEWHERE.values()})


def test_every_generated_part_has_its_mark(site):
    texts = [path.read_text() for path in (ROOT / SITE).rglob("*.md")]
    assert sorted(mark for text in texts for mark in site.MARK.findall(text)) == sorted(
        site.GENERATED
    )


def test_the_reference_has_all_that_the_code_has(site):
    keys = [key for key, _, _ in describe_keys() if key != "train.loss"]
    assert [*re.findall(r"^\| `([\w.]+)`", site.keys_page(), re.MULTILINE)] == keys
    commands = [entry.act.__name__ for entry in COMMANDS]
    assert re.findall(r"^## studyloom (\w+)$", site.commands_page(), re.MULTILINE) == commands
    python = site.python_page()
    for module in (studyloom, studyloom.data):
        for name in {*module.__all__} - {"__version__"}:
            assert re.search(rf"{module.__name__}\.{name}$", python, re.MULTILINE), name
    variables = [each.name for each in environment.PUBLIC]
    assert re.findall(r"^\| `(\w+)`", site.environment_page(), re.MULTILINE) == variables


def test_a_page_from_elsewhere_keeps_its_links(site, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "BUILD", tmp_path)
    (tmp_path / "docs").mkdir()
    text = site.moved(".github/CHANGELOG.md")
    assert "](troubleshooting.md#what-is-not-guaranteed)" in text
    gallery = site.moved("studies/README.md")
    assert 'src="images/mnist.png"' in gallery
    assert (tmp_path / "docs/images/mnist.png").is_file()
    assert "](benchmarks.md)" in gallery
    assert "notebook.ipynb" not in gallery  # it is no page of the site
