"""The line between a worker and its launcher."""

import os
import sys

import pytest

from studyloom.launch import line as module
from studyloom.launch.line import Line, open_line


@pytest.fixture
def pair():
    listener, descriptor = open_line()
    line = Line(descriptor)
    yield listener, line, descriptor
    listener.close()
    line._close()


def test_a_launcher_hears_what_its_process_says_and_with_which_code_it_ends(pair):
    listener, line, _ = pair
    line.say_claimed()
    line.say_released()
    with pytest.raises(SystemExit), line.saying_end():
        sys.exit(99)  # which is the letter of another word
    while listener.listen():
        pass
    heard = listener.heard
    assert (heard.claimed, heard.released, heard.code, heard.unable) == (True, True, 99, False)


@pytest.mark.parametrize("end", ["said", "closed"])
def test_a_process_that_has_come_to_its_end_or_closed_its_line_has_seconds_left(
    pair, end, monkeypatch
):
    listener, line, _ = pair
    assert listener.listen() is None
    assert not listener.heard.lingers
    monkeypatch.setattr(module, "LINGER", 0.0)
    if end == "said":
        with line.saying_end():
            pass
    else:
        line._close()
    listener.listen()
    assert listener.heard.lingers


def test_nothing_is_written_into_a_file_that_has_got_the_lines_number(pair, tmp_path):
    """An objective may close all descriptors, and SQLite opens its file again."""
    listener, line, descriptor = pair
    with (tmp_path / "study.db").open("wb") as file:
        os.dup2(file.fileno(), descriptor)
        line.say_claimed()
    assert (tmp_path / "study.db").read_bytes() == b""
    assert listener.listen() == b""
    line._close()
    os.close(descriptor)  # which is still the file's


def test_a_signal_counts_once_for_each_time_that_the_launcher_asks(pair, monkeypatch):
    listener, line, _ = pair
    line.follow()
    pid = os.getpid()
    listener.ask(pid, 0)
    assert line.is_asked()
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    assert not line.is_asked()  # a Ctrl-C comes from the terminal too
    listener.ask(pid, 0)
    monkeypatch.setattr(module, "PATIENCE", 60.0)
    assert line.is_asked()


def test_without_a_launcher_every_signal_counts():
    assert Line(None).is_asked()
