"""The record of a command at work, as a study stores it."""

import pytest
from results import result_of

from studyloom.study.command_record import (
    CommandRecord,
    StoredCommand,
    begin_command,
    end_command,
    store_compressed,
    store_result,
)
from studyloom.study.opening import create_study

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


def test_what_is_stored_of_a_compressed_winner_stays_with_that_winner(stored):
    result = result_of(winner={"trial": 2}).in_short()
    compressed = {"name": "unchanged", "bytes": 3, "interval": [-1, 1]}
    store_compressed(stored, compressed)
    assert StoredCommand.read(stored).result is None, "of no answer"
    store_result(stored, result)
    store_compressed(stored, compressed)
    known = StoredCommand.read(stored).result
    assert (known["compressed"]["bytes"], known["compressed"]["interval"]) == (3, [-1, 1])
    store_result(stored, result)
    assert StoredCommand.read(stored).result == known
    store_result(stored, result | {"trial": 3})
    assert "compressed" not in StoredCommand.read(stored).result
