"""The record of a command at work, as a study stores it."""

import pytest

from studyloom.storage.command_record import (
    CommandRecord,
    StoredCommand,
    begin_command,
    end_command,
)
from studyloom.storage.opening import create_study

RECORD = CommandRecord(8, reevaluated=True, tested=True, top=3, seeds=5, per_hour=0.5)


@pytest.fixture
def stored(url):
    return create_study(url, "toy", {"asks": "nothing"}, trials=8)


def test_a_record_is_read_as_it_was_stored_and_ends_once(stored):
    assert StoredCommand.read(stored) == StoredCommand(None, {}, None)
    begin_command(stored, RECORD, 5.0)
    record = StoredCommand.read(stored).record
    assert (record.trials, record.reevaluated, record.tested, record.per_hour) == (
        8,
        True,
        True,
        0.5,
    )
    assert (record.ended, record.at) == (None, None)
    end_command(stored, 1)
    end_command(stored, 0)
    record = StoredCommand.read(stored).record
    assert record.ended == 1
    assert record.began < record.at
    begin_command(stored, RECORD, 0.0)
    assert StoredCommand.read(stored).record.ended is None
