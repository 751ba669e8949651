"""The lines of a worker's log."""

import logging
from datetime import datetime, timedelta

from studyloom.text import PrintableFormatter
from studyloom.worker_log import LINE, end_message, read_end


def line_of(message):
    return PrintableFormatter(LINE).format(logging.makeLogRecord({"msg": message}))


def test_the_end_of_a_trial_is_read_as_it_is_written():
    for state, value in (("COMPLETE", 0.97), ("PRUNED", None), ("FAIL", None)):
        found = read_end(line_of(end_message(7, state, value)))
        assert found is not None
        number, ended = found
        assert number == 7
        assert abs(datetime.now() - ended) < timedelta(minutes=1)


def test_no_other_line_is_the_end_of_a_trial():
    lines = (
        "trial 7: complete",
        line_of("trial 7: running"),
        "9999-99-99 99:99:99,999 trial 0: fail",
    )
    assert [read_end(line) for line in lines] == [None] * 3
