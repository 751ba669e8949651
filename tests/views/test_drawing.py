"""Figures as standalone SVG: whole, and of nothing but text and shapes."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from made_trials import AXIS

from studyloom.views.drawing import svg
from studyloom.views.figures import history
from studyloom.views.page import FOLDER

SVG = "{http://www.w3.org/2000/svg}"
SHAPES = {"svg", "title", "rect", "g", "path", "circle", "text"}
HOSTILE = "</text><script>alert(1)</script>\"'&]]>\x00\x1b[31m\ud800\ufffe\u202e"


def texts_of(root):
    return [text for element in root.iter(f"{SVG}text") if (text := element.text or "")]


@pytest.fixture
def chart(searched):
    trials = searched.trials()
    return history(trials, {"best": trials[37], "baseline": trials[0]}, AXIS)


def test_a_figure_is_wellformed_svg_of_shapes_and_text_with_all_its_labels(chart):
    root = ET.fromstring(svg(chart, width=800, height=300))
    assert (root.get("width"), root.get("height")) == ("800", "300")
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == SHAPES
    texts = texts_of(root)
    assert {*chart.names(), "accuracy", "trial"} <= {*texts}
    assert {tick.label for tick in chart.y.ticks} <= {*texts}
    assert "var(" not in ET.tostring(root, "unicode"), "it has no style sheet"


def test_a_hostile_name_is_text_in_it_also_where_xml_has_no_such_character(chart):
    marks = [replace(mark, name=HOSTILE) for mark in chart.marks]
    y = replace(chart.y, title=HOSTILE)
    root = ET.fromstring(svg(replace(chart, marks=marks, y=y, label=HOSTILE)))
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == SHAPES
    shown = [text for text in texts_of(root) if "alert" in text]
    assert len(shown) == len(marks) + 1
    assert all("</text><script>" in text and "\x1b" not in text for text in shown)


def test_all_colors_of_marks_are_in_the_style_sheet(chart):
    style = (FOLDER / "page.css").read_text()
    for mark in chart.marks:
        assert f"--{mark.color}: #" in style
