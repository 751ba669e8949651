import math

import pytest

from studyloom.config.schema import RANGES, SCHEMA, check_name, out_of_range


def test_a_key_that_is_added_to_a_section_of_the_schema_is_refused_too(command, capsys):
    assert command("+study.trails=3") == 2
    assert "error: study.trails: no such key" in capsys.readouterr().err


def test_a_name_that_is_no_folder_name_ends_the_command_with_2_before_a_folder_is_made(
    command, capsys, tmp_path
):
    assert command("study.name='a/b'") == 2
    assert capsys.readouterr().err == f"error: {check_name('a/b')}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_one_that_a_folder_can_have():
    for name in ("", ".", "..", "../up", r"a\b", "a\0b", "x" * 201, "a\nb", "a\x1bb"):
        assert check_name(name).startswith(f"study.name must be a folder name, not {name[:20]!r}")
    assert "202 bytes" in check_name("ä" * 101)
    for name in ("mnist", "a b", "ä" * 100, "x" * 200, ".hidden", "a.b", "[red]", "-x", "{x}"):
        assert check_name(name) is None


def test_the_defaults_are_in_their_ranges_and_each_range_is_of_a_number():
    assert [*out_of_range(SCHEMA)] == []
    for name in (name for names in RANGES.values() for name in names):
        section, _, key = name.partition(".")
        kind = type(SCHEMA[section]._get_node(key))
        assert kind.__name__ in ("IntegerNode", "FloatNode"), name


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [(name, *ends) for (_, *ends), names in RANGES.items() for name in names],
)
def test_a_number_outside_of_its_range_is_told_with_the_range(name, low, high):
    section, _, key = name.partition(".")
    is_whole = type(SCHEMA[section]._get_node(key)).__name__ == "IntegerNode"
    inside = [low] if math.isinf(high) else [low, high]
    outside = [low - 1] if is_whole else [low - 1, low - 1e-9, high + 1, math.nan, math.inf]
    for value in (*inside, *outside):
        config = SCHEMA.copy()
        config[section][key] = value if is_whole else float(value)
        errors = [*out_of_range(config)]
        assert len(errors) == (value in outside), (value, errors)
        assert all(line.startswith(f"{name} must be ") for line in errors)
