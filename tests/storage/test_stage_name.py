"""The name of a later stage: what is made of its parts is read back as them."""

import pytest

from studyloom.storage.stored_study import StageName, owner_of

PLAIN = StageName("toy", "re-evaluation", trials=40, top=5, seeds=3)
RULED = PLAIN.with_detail("max accuracy where parameters <= 10000").with_detail("of 1, 2, -3")


@pytest.mark.parametrize("name", [PLAIN, RULED])
def test_a_stage_name_is_parsed_as_it_was_made(name):
    assert StageName.parse(str(name)) == name
    assert owner_of(str(name)) == "toy"


def test_stage_names_are_stored_in_a_fixed_form():
    assert str(PLAIN) == "toy/re-evaluation 40-5-3"
    assert str(RULED) == f"{PLAIN} max accuracy where parameters <= 10000 of 1, 2, -3"


@pytest.mark.parametrize(("name", "owner"), [("toy", None), ("toy/of another program", "toy")])
def test_any_other_name_is_not_a_stage_name(name, owner):
    assert StageName.parse(name) is None
    assert owner_of(name) == owner
