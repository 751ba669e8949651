"""Posting in order: a sender goes on while the database is away, and learns of failures later."""

import threading

import pytest

from studyloom.storage import outbox
from studyloom.storage.outbox import Outbox


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


def test_what_is_sent_is_posted_when_send_returns(database):
    with Outbox(database.post, database.is_away) as box:
        for item in range(3):
            box.send(item)
            assert database.posted == [*range(item + 1)]


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
    monkeypatch.setattr(outbox, "SEND_TIMEOUT", 0.05)
    database.here.clear()
    with Outbox(database.post, lambda: False) as box:
        box.send(0)
        assert database.posted == []
        database.here.set()
    assert database.posted == [0]


def test_the_end_waits_for_the_rest(database):
    with Outbox(database.post, database.is_away) as box:
        database.here.clear()
        box.send(0)
        threading.Timer(0.1, database.here.set).start()
    assert database.posted == [0]


def outcome(database, body):
    """The exception that leaves a `with` with this body, if any."""
    try:
        with Outbox(database.post, database.is_away) as box:
            body(box)
    except BaseException as error:
        return error
    return None


def test_a_failure_is_raised_and_what_came_after_it_is_dropped(database):
    def body(box):
        database.here.clear()
        for item in (0, KeyError("first"), 1):
            box.send(item)
        database.here.set()
        box.send(2)

    assert isinstance(outcome(database, body), KeyError)
    assert database.posted == [0]


def test_a_failure_after_the_last_item_is_raised_at_the_end(database):
    def body(box):
        database.here.clear()
        box.send(KeyError("late"))
        database.here.set()

    assert isinstance(outcome(database, body), KeyError)


def test_what_was_sent_before_an_exception_of_the_body_came_first(database):
    """A trial that pruning stops at epoch 3 is pruned, even if it diverges at epoch 5 meanwhile."""

    def body(box, item):
        database.here.clear()
        box.send(item)
        database.here.set()
        raise ArithmeticError("diverged")

    assert isinstance(outcome(database, lambda box: body(box, KeyError("pruned"))), KeyError)
    assert isinstance(outcome(database, lambda box: body(box, 0)), ArithmeticError)
    assert database.posted == [0]


def test_a_body_that_is_stopped_does_not_wait(database):
    def body(box):
        database.here.clear()
        box.send(0)
        raise KeyboardInterrupt

    assert isinstance(outcome(database, body), KeyboardInterrupt)
    assert database.posted == []
    database.here.set()
