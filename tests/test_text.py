"""Text for people: values, shapes, names and ranges as they are written."""

import html
import re
import unicodedata

import pytest

from studyloom.text import (
    code_in_markdown,
    escape_formula,
    format_value,
    in_markdown,
    indented,
    mask_passwords,
    one_line,
    printable,
    shorten_names,
)


def test_values_have_four_digits_and_small_ones_are_not_zero():
    formatted = {
        0.9725: "0.9725",
        0.0: "0.0000",
        1523.4: "1523.4",
        0.000379485: "0.000379",
        2.1e-05: "2.1e−05",
        -0.5: "−0.5000",
    }
    for value, text in formatted.items():
        assert format_value(value) == text


def test_only_passwords_are_masked():
    for text in (
        *("postgresql://u:hunter2@h/d", "postgresql://u:hun:ter@2@h/d", "PASSWORD: 'hunter2'"),
        *("postgresql://u@h/d?sslpassword=hunter2&x=1", "oauth_client_secret=hunter2"),
    ):
        assert "hunter2" not in mask_passwords(text)
        assert "***" in mask_passwords(text)
    for text in ("sqlite:///folder/study.db", "postgresql://u@h/d?sslmode=require", "runs/mnist"):
        assert mask_passwords(text) == text


def test_printable_text_has_no_control_character():
    planes = (range(0x3000), range(0xD800, 0x10000), range(0xE0000, 0xE0200))
    everything = "".join(chr(code) for plane in planes for code in plane)
    shown = printable(everything)
    assert len(shown) == len(everything)
    kinds = {char: unicodedata.category(char) for char in shown}
    obeyed = {char for char, kind in kinds.items() if kind in ("Cc", "Cs", "Zl", "Zp")}
    assert obeyed == {"\n", "\t"}
    directions = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    assert not [char for char in shown if unicodedata.bidirectional(char) in directions]
    shown.encode()


def test_printable_leaves_harmless_text_unchanged():
    for text in ("Größe × 2 – „ok“ … ±", "日本語", "עברית", "👨\u200d👩\u200d👧", "a\tb\nc"):
        assert printable(text) == text


def test_printable_shows_control_characters():
    assert printable("\x00\x1b[2J\r\x7f\x9b\ud800\u202e") == "␀␛[2J␍␡���"


def test_only_the_first_line_of_a_text_begins_at_the_margin():
    assert one_line(" a \n\t error: b\r\nc") == "a error: b␍ c"
    assert indented("a\nerror: b\n  c\n") == "a\n  error: b\n  c\n"


def test_a_formula_becomes_text_and_numbers_stay_numbers():
    for formula in ("=1+1", "+cmd|x", "-2+3", "@SUM(A1)", "\t=1", "\r=1"):
        assert escape_formula(formula) == f"'{formula}"
    for cells, safe in (("a;=1", "a;'=1"), ("a\t-b", "a\t'-b"), ("a\r\n@b", "a\r\n'@b")):
        assert escape_formula(cells) == safe  # the separator of cells depends on the language
    for harmless in ("-2", "+0.5", "-1e-5", "a=1", "", "-inf", 7, -2.5, None, True):
        assert escape_formula(harmless) is harmless


def test_markdown_shows_any_text_literally():
    """Rendered by the library of TensorBoard, which is as lenient as those of others."""
    markdown = pytest.importorskip("markdown")
    for text in ("<img src=x>", "![a](http://b)", "a\n\n# b", "a | b", "`a`", "**a**", "&lt;"):
        for escaped in (in_markdown(text), code_in_markdown(text).replace("\\|", "|")):
            page = markdown.markdown(f"name: {escaped}")
            assert {*re.findall("</?([a-z0-9]+)", page)} <= {"p", "code"}
            plain = html.unescape(re.sub("</?(p|code)>", "", page))
            assert plain.removeprefix("name: ").replace("\\", "") == " ".join(text.split())
            assert "\n" not in escaped
        assert re.search(r"(?<!\\)\|", in_markdown(text) + code_in_markdown(text)) is None


def test_shortened_names_are_unique_and_items_name_their_list():
    names = ["optimizer.adamw.lr", "optimizer.adamw.weight_decay", "model", "model.hidden.0"]
    assert [*shorten_names(names).values()] == ["lr", "weight_decay", "model", "hidden.0"]
    assert shorten_names(["a.sgd.lr", "a.adamw.lr", "lr"]) == {
        "a.sgd.lr": "sgd.lr",
        "a.adamw.lr": "adamw.lr",
        "lr": "lr",
    }
    assert shorten_names(["train.epochs", "a.hidden.length"], ["epochs"]) == {
        "train.epochs": "train.epochs",
        "a.hidden.length": "hidden.length",
    }
    deep = ".".join("abcdefgh")
    assert shorten_names([f"x.{deep}", f"y.{deep}"]) == {n: n for n in (f"x.{deep}", f"y.{deep}")}
