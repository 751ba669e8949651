"""The command that adds an extra works as printed, however studyloom was installed."""

import json
import shlex
from importlib.metadata import PackageNotFoundError

import pytest

from studyloom import installation
from studyloom.installation import pip_install


class Noted:
    """What pip notes of an installation."""

    def __init__(self, noted):
        self.noted = noted

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.noted and json.dumps(self.noted)


CHECKOUT = {"url": "file:///srv/my%20code/studyloom", "dir_info": {"editable": True}}
WHEEL = {"url": "file:///tmp/studyloom-0.1.0-py3-none-any.whl", "archive_info": {}}


@pytest.mark.parametrize(
    ("noted", "command"),
    [
        (CHECKOUT, "pip install -e '/srv/my code/studyloom[ray]'"),
        (WHEEL, "pip install '/tmp/studyloom-0.1.0-py3-none-any.whl[ray]'"),
        (None, "pip install 'studyloom[ray]'"),
    ],
    ids=["checkout", "wheel", "index"],
)
def test_an_extra_is_installed_from_where_studyloom_was(monkeypatch, noted, command):
    monkeypatch.setattr(installation, "distribution", lambda name: Noted(noted))
    assert pip_install("ray") == command
    assert shlex.split(command)[-1].endswith("[ray]")


def test_a_checkout_that_is_not_installed_names_the_package_index(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installation, "distribution", missing)
    assert pip_install("mcp") == "pip install 'studyloom[mcp]'"
