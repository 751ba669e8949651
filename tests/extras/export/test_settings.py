"""Laws of what one may say to `studyloom compress`."""

import pytest

from studyloom.errors import ConfigError
from studyloom.extras.export.settings import Settings


def test_values_are_read_as_yaml_and_the_rest_stays_at_its_default():
    words = ["rule=min bytes where accuracy > 0.9", "ratios=[0.5]", "widths=[]", "threads=2"]
    expected = Settings("min bytes where accuracy > 0.9", ratios=(0.5,), widths=(), threads=2)
    assert Settings.parse(words) == expected
    assert Settings.parse([]) == Settings()
    assert Settings.parse(["threads=2"], {"margin": 0.1}) == Settings(margin=0.1, threads=2)


def test_all_mistakes_are_told_at_once():
    words = ["margn=1", "ratios=[1.5]", "threads=0", "margin=-1", "small", "rule=3", "widths=0.5"]
    with pytest.raises(ConfigError) as caught:
        Settings.parse(words)
    said = caught.value.errors
    assert len(said) == len(words)
    assert any("did you mean margin?" in line for line in said)
    assert any(line.startswith("ratios must be a list of numbers above 0") for line in said)


def test_a_config_says_the_same_as_a_command_line():
    assert [Settings.of(section) for section in (None, False, True, {})] == [
        *(None, None, Settings(), Settings())
    ]
    section = {"margin": 0.01, "ratios": [0.5]}
    words = ["margin=0.01", "ratios=[0.5]"]
    settings = Settings.parse(words)
    assert Settings.of(section) == settings == Settings.of(settings.document())
    with pytest.raises(ConfigError) as caught:
        Settings.of({"margn": 1, "margin": True, "widths": 0.5})
    keys = [line.partition(" ")[0].rstrip(":") for line in caught.value.errors]
    assert keys == ["compress.margn", "compress.margin", "compress.widths"]
