"""The log of retries, which no password may reach."""

import pytest
from commands import CANARY
from failures import Lines

from studyloom.storage.retry import log


@pytest.fixture
def lines():
    """The lines that retries log."""
    handler = Lines()
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)
    assert not any(CANARY in line for line in handler.lines)
