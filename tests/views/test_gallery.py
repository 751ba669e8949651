"""The pictures of the gallery: one of each study, of a report as it was written."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, environment
from PIL import Image
from test_studies import PAGES

SCRIPT = ROOT / "scripts" / "screenshots.py"
REPORT = """<!DOCTYPE html><title>toy</title><nav>the list</nav>
<header><h1>toy</h1><p class="answer">It learns.</p></header>
<main><section id="curves"><h2>Learning curves</h2></section>
<section id="trials" style="height: 9000px; background: red"></section></main>"""


def gallery():
    """Which section of its report is shown of each study."""
    for node in ast.parse(SCRIPT.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "GALLERY":
            return ast.literal_eval(node.value)
    raise AssertionError("no GALLERY")


def test_each_study_has_a_picture():
    assert {*gallery()} == {*PAGES}


@pytest.mark.browser
def test_a_picture_is_taken_of_each_report_that_is_there(browser, tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "report.html").write_text(REPORT)
    (tmp_path / "language").mkdir()
    (tmp_path / "language" / "report.html").write_text("<main></main>")
    command = [sys.executable, SCRIPT, "gallery", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert done.returncode == 1, "not all studies have a report"
    (path,) = done.stdout.split()
    assert path.endswith("gallery/rows.png")
    with Image.open(path) as picture:
        assert picture.width == 800
        assert picture.height <= 400, "what is not shown takes no room"
    shutil.rmtree(Path(path).parents[1])
    said = done.stderr.splitlines()
    assert len(said) == len(PAGES) - 1
    assert f"language: {tmp_path / 'language' / 'report.html'} has no section curves" in said
    wanted = tmp_path / "mnist"
    assert f"mnist: no {wanted / 'report.html'}; python -m studies.mnist run_dir={wanted}" in said


def test_pictures_in_the_gallery_say_what_they_show():
    text = (ROOT / "studies" / "README.md").read_text()
    image = r'<img src="\.\./\.github/gallery/(\w+)\.png"[^>]* alt="([^"]+)"'
    shown = dict(re.findall(image, text))
    assert {*shown} in ({*PAGES}, set())
    assert all(len(alt.split()) > 3 for alt in shown.values())
