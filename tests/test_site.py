"""The site has a place for each page, and each generated part has all that the code has."""

import http.server
import importlib.util
import re
import subprocess
import sys
import threading
import tomllib
from functools import partial

import pytest
from commands import ROOT
from test_readme import SITE

import studyloom
import studyloom.data
from studyloom import environment
from studyloom.commands.documents import DOCUMENTS
from studyloom.commands.parser import COMMANDS
from studyloom.config.schema import describe_keys

HTML = ROOT / "build/site/html"


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


def test_every_generated_part_of_the_site_has_its_mark(site):
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
        names = site.public_names(module)
        assert {*names} == {*module.__all__} - {"__version__"}
        for name in names:
            assert f"[`{name}`](" in python
            assert f"::: {module.__name__}.{name}" in site.directive(module, name)
    variables = [each.name for each in environment.PUBLIC]
    assert re.findall(r"^\| `(\w+)`", site.environment_page(), re.MULTILINE) == variables
    documents, _, objects = site.documents_page().partition("| object ")
    first_cells = re.findall(r"^\| (`.+?`) \|", documents, re.MULTILINE)
    assert {*re.findall(r"\w+", " ".join(first_cells))} == {*DOCUMENTS}
    assert re.search(r"^\| `workers` \| `owner` `trial` ", objects, re.MULTILINE)


def test_each_public_name_has_a_page_and_search_is_the_first(site, tmp_path):
    entries = site.write_python_pages(tmp_path)
    assert site.PYTHON_ENTRY in (ROOT / ".github/site/zensical.toml").read_text()
    assert re.findall(r'"([\w.]+)" = ', entries)[0] == "search"
    listed = re.findall(r'"(reference/python/[\w/]+\.md)"', entries)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.md")}
    assert written == {*listed}
    assert "reference/python/search.md" in written


def test_a_copied_document_keeps_its_links(site, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "BUILD", tmp_path)
    (tmp_path / "docs").mkdir()
    text = site.moved(".github/CHANGELOG.md")
    assert "](troubleshooting.md#what-is-not-guaranteed)" in text
    gallery = site.moved("studies/README.md")
    assert 'src="images/mnist.png"' in gallery
    assert (tmp_path / "docs/images/mnist.png").is_file()
    assert "](benchmarks.md)" in gallery
    assert "notebook.ipynb" not in gallery  # it is no page of the site


# In a browser.


@pytest.fixture(scope="module")
def served_site():
    """The address of the site, built strictly from nothing."""
    pytest.importorskip("zensical")
    subprocess.run([sys.executable, "scripts/site.py"], cwd=ROOT, check=True, capture_output=True)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = partial(Handler, directory=str(HTML))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def page(browser):
    """A page that collects its errors, warnings and requests to other hosts in `page.seen`."""
    context = browser.new_context()
    page = context.new_page()
    page.seen = []
    page.on("console", lambda m: m.type in ("error", "warning") and page.seen.append(m.text))
    page.on("pageerror", lambda error: page.seen.append(str(error)))
    elsewhere = re.compile(r"https?://(?!127\.0\.0\.1:)")
    page.on("request", lambda r: elsewhere.match(r.url) and page.seen.append(r.url))
    yield page
    context.close()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_fits_its_window_without_errors(served_site, page, width, scheme):
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    paths = sorted(path.relative_to(HTML) for path in HTML.rglob("index.html"))
    assert len(paths) > 30
    for path in paths:
        page.goto(f"{served_site}{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        dark = page.evaluate("document.body.dataset.mdColorScheme") == "slate"
        assert (dark, page.seen) == (scheme == "dark", []), path


@pytest.mark.browser
@pytest.mark.parametrize(
    ("words", "target"),
    [
        ("study.warm_start", "guides/search/#warm-starts"),
        ("studyloom replay", "reference/command-line/#studyloom-replay"),
        ("already exists with a different definition", "troubleshooting/#frequent-errors"),
        ("learning rate", "guides/training/#learning-rate"),
        ("early stopping", "guides/which-sampler/#early-stopping-which-pruner"),
        ("gpu", "guides/gpus/"),
        ("resume", "guides/what-happens-if/#resume"),
        ("lightning", "guides/lightning-hugging-face/#lightning"),
    ],
)
def test_the_search_box_finds_keys_commands_errors_and_topics(served_site, page, words, target):
    page.goto(served_site)
    page.locator(".md-search__button").click()
    page.keyboard.type(words)
    path, _, anchor = target.partition("#")
    ends = f"[href*='{served_site}{path}?']"
    if anchor:
        ends += f"[href$='#{anchor}']"
    page.locator(f"a:is([aria-posinset='1'], [aria-posinset='2']){ends}").first.click()
    page.locator(f"[id='{anchor}']" if anchor else "h1").wait_for()
    assert page.seen == []
