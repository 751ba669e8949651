"""Posting in order: a sender goes on while the database is away, and learns of failures later."""

import threading

import pytest

from studyloom.study import reporter
from studyloom.study.reporter import Outbox


class Database:
    """Keeps what is posted; while it is away, posting waits."""

    def __init__(self):
        self.posted = []
        self.here = threading.Event()
        self.here.set()

    def post(self, item):
        assert self.here.wait(10)
        if isinstance(item, BaseException):
            raise item
        self.posted.append(item)

    def is_away(self):
        return not self.here.is_set()


@pytest.fixture
def database():
    return Database()


def test_a_sender_goes_on_while_the_database_is_away_and_all_is_posted_in_order(database):
    with Outbox(database.post, database.is_away) as box:
        database.here.clear()
        for item in range(5):
            box.send(item)
        assert database.posted == []
        database.here.set()
        box.send(5)
        assert database.posted == [*range(6)]


def test_a_sender_goes_on_when_there_is_no_answer_for_a_while(database, monkeypatch):
    monkeypatch.setattr(reporter, "SEND_TIMEOUT", 0.05)
    database.here.clear()
    with Outbox(database.post, lambda: False) as box:
        box.send(0)
        assert database.posted == []
        database.here.set()
        box.flush()
        assert database.posted == [0]


def test_a_failure_is_raised_once_and_for_all_and_what_came_after_it_is_dropped(database):
    with Outbox(database.post, database.is_away) as box:
        database.here.clear()
        for item in (0, KeyError("first"), 1):
            box.send(item)
        database.here.set()
        for call in (box.flush, lambda: box.send(2)):
            with pytest.raises(KeyError):
                call()
    assert database.posted == [0]


def test_the_end_of_the_body_drops_what_is_not_posted(database):
    with Outbox(database.post, database.is_away) as box:
        database.here.clear()
        box.send(0)
        box.send(1)
    database.here.set()
    assert 1 not in database.posted
