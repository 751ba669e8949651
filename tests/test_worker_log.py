"""The lines of a worker's log."""

import logging
from datetime import datetime, timedelta

from studyloom.text import PrintableFormatter
from studyloom.worker_log import LINE, format_trial_end, read_trial_end


def line_of(message):
    return PrintableFormatter(LINE).format(logging.makeLogRecord({"msg": message}))


def test_the_logged_end_of_a_trial_is_parsed():
    for state, value in (("COMPLETE", 0.97), ("PRUNED", None), ("FAIL", None)):
        end = read_trial_end(line_of(format_trial_end(7, state, value)))
        assert end is not None
        assert end.trial == 7
        assert abs(datetime.now() - end.time) < timedelta(minutes=1)


def test_other_lines_of_a_log_are_not_the_end_of_a_trial():
    lines = (
        "trial 7: complete",
        line_of("trial 7: running"),
        "9999-99-99 99:99:99,999 trial 0: fail",
    )
    assert [read_trial_end(line) for line in lines] == [None] * 3
