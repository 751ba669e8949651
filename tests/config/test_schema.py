import math

import pytest

from studyloom.config.schema import RANGES, SCHEMA, check_name, find_out_of_range


def test_an_unknown_key_that_plus_adds_to_a_section_is_refused(command, capsys):
    assert command("+study.trails=3") == 2
    assert "error: study.trails: no such key" in capsys.readouterr().err


def test_a_study_name_that_no_folder_can_have_ends_the_command_with_2(command, capsys, tmp_path):
    assert command("study.name='a/b'") == 2
    assert capsys.readouterr().err == f"error: {check_name('a/b')}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_study_name_must_be_a_folder_name():
    for name in ("", ".", "..", "../up", r"a\b", "a\0b", "x" * 201, "a\nb", "a\x1bb"):
        assert check_name(name).startswith(f"study.name must be a folder name, not {name[:20]!r}")
    assert "202 bytes" in check_name("ä" * 101)
    for name in ("mnist", "a b", "ä" * 100, "x" * 200, ".hidden", "a.b", "[red]", "-x", "{x}"):
        assert check_name(name) is None


NAMES = [(name, allowed) for allowed, names in RANGES.items() for name in names]


def test_each_key_with_a_range_is_a_number_and_its_default_is_in_the_range():
    assert [*find_out_of_range(SCHEMA)] == []
    for name, _ in NAMES:
        section, _, key = name.partition(".")
        node = type(SCHEMA[section]._get_node(key)).__name__
        assert node in ("IntegerNode", "FloatNode"), name


@pytest.mark.parametrize(("name", "allowed"), NAMES, ids=[name for name, _ in NAMES])
def test_a_number_out_of_range_is_an_error_that_names_the_range(name, allowed):
    low, high = allowed.least, allowed.greatest
    section, _, key = name.partition(".")
    is_whole = type(SCHEMA[section]._get_node(key)).__name__ == "IntegerNode"
    inside = [low] if math.isinf(high) else [low, high]
    too_low = math.nextafter(low, -math.inf)
    too_high = math.nextafter(high, math.inf)
    outside = [low - 1] if is_whole else [too_low, too_high, math.nan, math.inf]
    for value in (*inside, *outside):
        config = SCHEMA.copy()
        config[section][key] = value if is_whole else float(value)
        errors = [*find_out_of_range(config)]
        assert len(errors) == (value in outside), (value, errors)
        assert all(line.startswith(f"{name} must be {allowed.text}") for line in errors)
