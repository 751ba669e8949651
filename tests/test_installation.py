"""The command that adds an extra works as printed, however studyloom was installed."""

import json
import shlex
from importlib.metadata import PackageNotFoundError

import pytest

from studyloom import installation
from studyloom.installation import pip_install


class Distribution:
    """An installed package of which pip has recorded the origin, or not."""

    def __init__(self, origin):
        self.origin = origin

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.origin and json.dumps(self.origin)


CHECKOUT = {"url": "file:///srv/my%20code/studyloom", "dir_info": {"editable": True}}
WHEEL = {"url": "file:///tmp/studyloom-0.1.0-py3-none-any.whl", "archive_info": {}}


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (CHECKOUT, "pip install -e '/srv/my code/studyloom[ray]'"),
        (WHEEL, "pip install '/tmp/studyloom-0.1.0-py3-none-any.whl[ray]'"),
        (None, "pip install 'studyloom[ray]'"),
    ],
    ids=["checkout", "wheel", "index"],
)
def test_an_extra_is_installed_from_the_origin_of_studyloom(monkeypatch, origin, command):
    monkeypatch.setattr(installation, "distribution", lambda name: Distribution(origin))
    assert pip_install("ray") == command
    assert shlex.split(command)[-1].endswith("[ray]")


def test_without_an_installation_an_extra_is_installed_from_the_index(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installation, "distribution", missing)
    assert pip_install("mcp") == "pip install 'studyloom[mcp]'"
