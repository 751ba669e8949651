"""Events of a job: each once, in order, whoever looks and however often."""

import json
import math
import re
from typing import get_args, get_type_hints

from commands import ROOT, documented
from optuna.trial import TrialState
from rich.console import Console
from toys import begin

from studyloom.storage.attributes import HALTED, REASON, RESUMED, STREAMS
from studyloom.views.events import Event, History, format_event
from studyloom.views.progress_reader import ProgressReader
from studyloom.views.resumptions import Resumptions
from studyloom.worker.stopping import set_control

PAGE = (ROOT / ".github/site/docs/reference/events.md").read_text()
EVENTS = PAGE.partition("## Events")[2].partition("## Documents")[0]
ROWS = re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+) \|$", EVENTS, re.MULTILINE)
COMMON = {"event", "at", "study", "id"}
FIELDS = {kind: COMMON | {*re.findall(r"`(\w+)`", names)} for kind, names in ROWS}
OPTIONAL = {kind: {*re.findall(r"`(\w+)`\?", names)} for kind, names in ROWS}


def test_the_reference_lists_every_event_and_every_field():
    fields = get_type_hints(Event)
    assert {*FIELDS} == {*get_args(fields["event"])}
    assert set.union(*FIELDS.values()) == {*fields}


def look(stored, history):
    events = [*history.record_new(ProgressReader(stored).read())]
    for event in events:
        document = documented(json.loads(format_event(event, "toy", "1f")), "event")
        fields = FIELDS[event["event"]]
        assert fields - OPTIONAL[event["event"]] <= {*document} <= fields
    return [(event["event"], event.get("trial"), event.get("epoch")) for event in events]


def test_begin_report_and_end_of_a_trial_are_each_one_event(stored):
    history = History()
    assert look(stored, history) == []
    trial = begin(stored)
    stored.ledger.claim("host:1", 8, 60, lambda *_: trial._trial_id)
    assert look(stored, history) == []  # its parameters are not there yet
    trial.suggest_float("lr", 0.0, 1.0)
    assert look(stored, history) == [("began", 0, None)]
    trial.report(0.1, 1)
    trial.report(0.2, 2)
    assert look(stored, history) == [("reported", 0, 1), ("reported", 0, 2)]
    assert look(stored, history) == []
    trial.report(math.inf, 3)
    stored.optuna.tell(trial, 0.5)
    assert look(stored, history) == [("reported", 0, 3), ("ended", 0, None), ("best", 0, None)]
    assert look(stored, history) == []


def test_a_resumed_trial_is_one_event_and_one_line_on_the_terminal(
    stored,
):
    history, trial = History(), begin(stored)
    stored.ledger.claim("host:1", 8, 60, lambda *_: trial._trial_id)
    trial.suggest_float("lr", 0.0, 1.0)
    trial.report(0.1, 1)
    kinds, console = look(stored, history), Console(record=True)
    tell = Resumptions(ProgressReader(stored).read(), console)
    for deaths in (1, 2):
        resumed = {"epoch": 1, "deaths": deaths, "death": f"it was killed, {deaths}"}
        trial.set_user_attr(RESUMED, resumed)
        kinds += look(stored, history)
        for _ in range(2):
            tell(ProgressReader(stored).read())
    assert kinds == [("began", 0, None), ("reported", 0, 1), *2 * [("resumed", 0, 1)]]
    start = "trial 0 resumes after epoch 1, since its worker died: it was killed, "
    assert console.export_text().splitlines() == [f"{start}1", f"{start}2"]
    lines = [
        format_event(e, "t", "1f") for e in History().record_new(ProgressReader(stored).read())
    ]
    assert not [*History.read(lines, "1f").record_new(ProgressReader(stored).read())]


def test_a_stream_is_named_at_its_first_report_and_each_resumption(stored):
    trial, console = begin(stored), Console(record=True, width=200)
    stored.ledger.claim("host:1", 8, 60, lambda *_: trial._trial_id)
    trial.suggest_float("lr", 0.0, 1.0)
    tell = Resumptions(ProgressReader(stored).read(), console)
    trial.set_user_attr(STREAMS, ["batches"])
    for epoch in (1, 2):
        trial.report(0.1, epoch)
        tell(ProgressReader(stored).read())
    trial.set_user_attr(RESUMED, {"epoch": 2, "deaths": 1, "death": "it was killed"})
    tell(ProgressReader(stored).read())
    assert console.export_text().splitlines() == [
        "stream batches: its position is not kept, so that a resumed trial reads it from its start "
        "and may get another value; create it in each epoch, or keep it as "
        "run.keep(stream=studyloom.Stream(…))",
        "trial 0 resumes after epoch 2, since its worker died: it was killed; stream batches "
        "starts again, so the value may be another",
    ]


def test_a_command_that_finds_its_files_does_not_start_from_scratch(stored):
    trial, console = begin(stored), Console(record=True)
    stored.ledger.claim("host:1", 8, 60, lambda *_: trial._trial_id)
    trial.suggest_float("lr", 0.0, 1.0)
    tell = Resumptions(ProgressReader(stored).read(), console)
    resumed = {"epoch": None, "deaths": 1, "death": "it was killed", "has_files": True}
    trial.set_user_attr(RESUMED, resumed)
    assert look(stored, History()) == [("began", 0, None), ("resumed", 0, None)]
    tell(ProgressReader(stored).read())
    line = "trial 0 runs its command again, in the same folder, since its worker died: it was"
    assert console.export_text().startswith(line)


def test_a_new_reader_gets_all_events_and_a_returning_one_the_rest(half_done):
    events = look(half_done, History())
    assert [event[0] for event in events].count("began") == 5
    assert [event[0] for event in events].count("ended") == 4
    assert events[-1] == ("best", 1, None)
    for number in range(5):
        kinds = [kind for kind, trial, _ in events if trial == number and kind != "best"]
        assert kinds == sorted(kinds, key=["began", "reported", "ended"].index)

    # A history that is read back tells the rest alone.
    history = History()
    progress = ProgressReader(half_done).read()
    lines = [format_event(event, "toy", "1f") for event in history.record_new(progress)]
    for cut in range(len(lines)):
        read = History.read([*lines[:cut], "half a li", "[]", '{"event": "began"}'], "1f")
        later_lines = [format_event(event, "toy", "1f") for event in read.record_new(progress)]
        assert [strip(line) for line in later_lines] == [strip(line) for line in lines[cut:]]
    other = History.read(lines, "of another study")
    assert len([*other.record_new(progress)]) == len(lines)


def strip(line):
    return {key: value for key, value in json.loads(line).items() if key != "at"}


def test_aborts_requests_and_reasons_are_events(stored):
    history = History()
    trial = begin(stored)
    claim = stored.ledger.claim("host:1", 8, 60, lambda *_: trial._trial_id)
    trial.set_user_attr(REASON, "OSError: cannot reach postgresql://bob:hunter2@db/x")
    stored.optuna.tell(trial, state=TrialState.FAIL)
    stored.ledger.finish(claim)
    stored.optuna.set_user_attr(HALTED, "ValueError: no")
    set_control(stored, "pause")
    events = [*History().record_new(ProgressReader(stored).read())]
    assert "hunter2" not in str(events)
    kinds = [kind for kind, *_ in look(stored, history)]
    assert kinds == ["began", "ended", "control", "halted"]
    set_control(stored, None)
    assert [kind for kind, *_ in look(stored, history)] == ["control"]


def test_an_event_is_one_line_whatever_text_it_holds():
    for text in ("a\nb", "\x1b[2J", "=1+1", "\ud800"):
        line = format_event({"event": "halted", "reason": text}, text, None)
        assert line.count("\n") == 1
        assert line.isascii()
        assert "\x1b" not in line
        assert json.loads(line)["reason"] == text
