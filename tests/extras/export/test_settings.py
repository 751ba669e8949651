"""Laws of the settings of `studyloom compress`."""

import pytest

from studyloom.errors import ConfigError
from studyloom.extras.export.settings import Settings


def test_values_are_read_as_yaml_and_the_rest_stays_at_its_default():
    words = ["rule=min bytes where accuracy > 0.9", "ratios=[0.5]", "widths=[]", "threads=2"]
    expected = Settings("min bytes where accuracy > 0.9", ratios=(0.5,), widths=(), threads=2)
    assert Settings.parse(words) == expected
    assert Settings.parse([]) == Settings()


def test_all_errors_are_reported_at_once():
    words = ["margn=1", "ratios=[1.5]", "threads=0", "margin=-1", "small", "rule=3", "widths=0.5"]
    with pytest.raises(ConfigError) as caught:
        Settings.parse(words)
    errors = caught.value.errors
    assert len(errors) == len(words)
    assert any("did you mean margin?" in line for line in errors)
    assert any(line.startswith("ratios must be a list of numbers above 0") for line in errors)
