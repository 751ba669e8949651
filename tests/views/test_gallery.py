"""The pictures of the gallery: one of each study, of a report as it was written."""

import ast
import re

from commands import ROOT
from test_studies import PAGES

SCRIPT = ROOT / "scripts" / "screenshots.py"


def gallery():
    """Which section of its report is shown of each study."""
    for node in ast.parse(SCRIPT.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "GALLERY":
            return ast.literal_eval(node.value)
    raise AssertionError("no GALLERY")


def test_each_study_has_a_picture_that_says_what_it_shows():
    assert {*gallery()} == {*PAGES}
    text = (ROOT / "studies" / "README.md").read_text()
    image = r'<img src="\.\./\.github/gallery/(\w+)\.png"[^>]* alt="([^"]+)"'
    shown = dict(re.findall(image, text))
    assert {*shown} in ({*PAGES}, set())
    assert all(len(alt.split()) > 3 for alt in shown.values())
