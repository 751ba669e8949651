"""Figures as standalone SVG: complete, with only text and shapes."""

import io
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from made_trials import AXIS
from PIL import Image

from studyloom.errors import ConfigError
from studyloom.extras.image import draw_png
from studyloom.views.drawing import fit_text, share, svg
from studyloom.views.history_figure import draw_history
from studyloom.views.page import FOLDER, Absent, Head
from studyloom.views.report import write_report
from studyloom.views.words import Fact

SVG = "{http://www.w3.org/2000/svg}"
SHAPES = {"svg", "title", "rect", "g", "path", "circle", "text"}
HOSTILE = "</text><script>alert(1)</script>\"'&]]>\x00\x1b[31m\ud800\ufffe\u202e"


def texts_of(root):
    return [text for element in root.iter(f"{SVG}text") if (text := element.text or "")]


@pytest.fixture
def chart(searched):
    trials = searched.trials()
    return draw_history(trials, {"best": trials[37], "baseline": trials[0]}, AXIS)


def test_a_figure_is_wellformed_svg_of_shapes_and_all_its_labels(chart):
    root = ET.fromstring(svg(chart, width=800, height=300))
    assert (root.get("width"), root.get("height")) == ("800", "300")
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == SHAPES
    texts = texts_of(root)
    assert {*chart.names(), chart.y.title, "trial"} <= {*texts}
    assert {tick.label for tick in chart.y.ticks} <= {*texts}
    assert "var(" not in ET.tostring(root, "unicode"), "it has no style sheet"


def test_a_hostile_name_is_text_even_with_characters_outside_of_xml(chart):
    marks = [replace(mark, name=HOSTILE) for mark in chart.marks]
    y = replace(chart.y, title=HOSTILE)
    root = ET.fromstring(svg(replace(chart, marks=marks, y=y, label=HOSTILE)))
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == SHAPES
    hostile = [text for text in texts_of(root) if "alert" in text]
    assert len(hostile) == len(marks) + 1
    assert all("</text><script>" in text and "\x1b" not in text for text in hostile)


def test_all_colors_of_marks_are_in_the_style_sheet(chart):
    style = (FOLDER / "page.css").read_text()
    for mark in chart.marks:
        assert f"--{mark.color}: #" in style


def test_the_image_to_share_has_name_sentence_facts_and_figure(chart):
    facts = [Fact(HOSTILE, HOSTILE, HOSTILE)] * 4
    absent = Absent("No trial has a value yet.")
    for figure, text_of_figure in ((chart, "accuracy"), (absent, "No trial")):
        image = share(Head(HOSTILE, f"{HOSTILE} {'very ' * 60}long.", [], facts), figure)
        root = ET.fromstring(image)
        assert {element.tag.removeprefix(SVG) for element in root.iter()} <= SHAPES
        assert any(text.startswith(text_of_figure) for text in texts_of(root))
        assert sum("alert" in text for text in texts_of(root)) >= 2 + 4 * 3
        png = Image.open(io.BytesIO(draw_png(image)))
        assert (png.format, png.size) == ("PNG", (1200, 630))
        assert len(png.convert("L").crop((56, 180, 300, 280)).getcolors()) > 9, "text is drawn"


def test_the_image_to_share_cuts_no_headline_and_no_interval(chart):
    setting = "dropout_probability_of_the_output_projection 0.097, "
    sentence = f"{3 * setting}validation accuracy 0.9725 ± 0.0040 on 1,000 unseen images."
    explanation = (
        "trial 28, parameters 13,100; difference to the baseline +0.0463, 95% interval "
        "+0.0182 to +0.0744"
    )
    facts = [Fact("Winner, test", "0.9750 ± 0.0017", explanation)]
    root = ET.fromstring(share(Head("toy", sentence, [], facts), chart))
    texts = " ".join(texts_of(root))
    assert " studyloom " in texts
    assert sentence in texts
    assert explanation in texts


def test_a_text_that_is_too_long_loses_whole_clauses_and_no_interval():
    interval = "95% interval +0.0182 to +0.0744"
    text = f"difference +0.0463, {interval} {'over seeds and examples ' * 20}; trial 28"
    fitted = fit_text(text, sizes=(14, 11), width=262, height=58)
    assert (fitted.lines, fitted.size) == (["difference +0.0463 …"], 11)
    one_clause = fit_text("long " * 100 + "end", sizes=(14,), width=262, height=58)
    assert len(one_clause.lines) == 3
    assert "…" in " ".join(one_clause.lines)
    assert one_clause.lines[-1].endswith("end")


def test_a_report_is_also_an_image_if_resvg_is_installed(searched, tmp_path, monkeypatch):
    write_report(searched, tmp_path, draw_png=draw_png)
    with Image.open(tmp_path / "report.png") as image:
        assert image.size == (1200, 630)
    (tmp_path / "report.png").unlink()
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ConfigError, match=r"report --png: .*resvg_py.*; pip install .*\[image\]"):
        write_report(searched, tmp_path, draw_png=draw_png)
    write_report(searched, tmp_path)
    assert not (tmp_path / "report.png").exists()
