"""Notices: sent to services and commands, never in the way, never with a secret."""

import http.server
import json
import logging
import re
import sys
import threading

import pytest
from snapshots import snapshot_of, trial_of

from studyloom.errors import ConfigError
from studyloom.extras import notify
from studyloom.extras.notify import Notices
from studyloom.installation import pip_install
from studyloom.views.progress import Progress, StageProgress

SECRET = "canary-secret"


def progress_of(best=None, **more):
    trial = None if best is None else trial_of(best, params={"lr": 0.1})
    if trial is not None:
        trial.number = int(best * 1000)
    snapshot = snapshot_of("--toy", best=trial)
    stage = StageProgress("search", 5, 3, snapshot)
    return Progress(snapshot, (stage,), "search", **more)


@pytest.fixture
def program(tmp_path):
    """A command that keeps the notices that it gets, and a function that reads them."""
    path = tmp_path / "notice.py"
    path.write_text(
        f"#!{sys.executable}\n"
        "import json, sys, pathlib\n"
        f"notices = pathlib.Path({str(tmp_path / 'notices')!r})\n"
        "with notices.open('a') as file:\n"
        "    print(json.dumps([sys.argv[1:], json.load(sys.stdin)]), file=file)\n"
    )
    path.chmod(0o755)

    def read_notices():
        file = tmp_path / "notices"
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text().splitlines()]

    return str(path), read_notices


@pytest.fixture
def service():
    """A service on loopback, in apprise's terms json://, and the list of notices that it got."""
    notices = []

    class Handler(http.server.BaseHTTPRequestHandler):
        result = 200

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            notices.append(json.loads(body))
            self.send_response(self.result)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"json://user:{SECRET}@127.0.0.1:{server.server_port}/{SECRET}", notices, Handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_command_gets_each_new_best_a_halt_and_the_end(program, monkeypatch):
    """The name of a study is none of its options."""
    command, read_notices = program
    sender = Notices([f"{command} first"])
    sender(progress_of(0.8))  # the first best trial is older than the command
    sender(progress_of(0.9))
    sender(progress_of(0.95))  # it is not sent so soon after the one before
    monkeypatch.setattr(notify, "BEST_INTERVAL", 0.0)
    for _ in range(2):
        sender(progress_of(0.96, halted="ValueError: no"))
    sender.finish(1, "the study has stopped")
    assert [(first, subject) for (first, subject), _ in read_notices()] == [
        ("first", "toy: best value 0.9000"),
        ("first", "toy: halted"),
        ("first", "toy: best value 0.9600"),
        ("first", "toy: ended with exit code 1"),
    ]
    best, halted, _, end = (document for _, document in read_notices())
    assert (best["study"], best["trial"], best["params"]) == ("--toy", 900, {"lr": 0.1})
    assert halted["reason"] == "ValueError: no"
    assert (end["exit_code"], end["body"]) == (1, "the study has stopped")


def test_a_service_of_apprise_gets_the_result_as_text(service):
    pytest.importorskip("apprise")
    url, notices, _ = service
    result = {"metric": "accuracy", "trial": 3, "test": {"mean": 0.97, "std": None}}
    for target, code, reason in ((url, 0, None), (f"{url}?format=html", 1, "<img src=x> \x1b[2J")):
        sender = Notices([target])
        sender(progress_of(0.9, result=result))
        sender.finish(code, reason)
    ended, failed = notices
    assert ended["title"] == "toy: test accuracy 0.9700, trial 3"
    assert "<img" not in failed["message"]
    assert "&lt;img" in failed["message"]
    assert "\x1b" not in json.dumps(failed)


def test_a_failed_notice_is_logged_without_its_secret(service, caplog, tmp_path):
    pytest.importorskip("apprise")
    url, _, handler = service
    handler.result = 500
    failing = tmp_path / "fail"
    failing.write_text("#!/bin/sh\nexit 7\n")
    failing.chmod(0o755)
    with caplog.at_level(logging.DEBUG):
        sender = Notices([url, f"{failing} --token {SECRET}"])
        sender(progress_of(0.9))
        sender.finish(0, None)
    records = [record for record in caplog.records if record.name.startswith("studyloom")]
    messages = [record.getMessage() for record in records]
    assert messages == [
        "notify: json://…: the service did not accept the notice",
        f"notify: {failing}: the command has ended with exit code 7",
    ]
    assert SECRET not in "\n".join(messages)


def test_a_service_that_does_not_answer_delays_nothing(program, monkeypatch):
    monkeypatch.setattr(notify, "END_LIMIT", 0.2)
    monkeypatch.setattr(notify, "BEST_INTERVAL", 0.0)
    gate = threading.Event()
    monkeypatch.setattr(notify, "send", lambda *_: gate.wait(30))
    sender = Notices([program[0]])
    for number in range(40):
        sender(progress_of(0.5 + number / 1000))
    sender.finish(0, None)
    assert not gate.is_set()
    gate.set()
    sender._feed._thread.join(30)  # the notices that are left go to `send` of this test


def test_an_unusable_target_is_an_error_before_the_study(monkeypatch):
    pytest.importorskip("apprise")
    for target, reason in (
        ("no-such-program-here --x", "no-such-program-here: there is no such program"),
        (f"nosuchscheme://{SECRET}", "nosuchscheme://…: apprise knows no such URL"),
        (f"mailto:me:{SECRET}@host", "mailto: there is no such program"),
    ):
        with pytest.raises(ConfigError) as caught:
            Notices([target])
        assert reason in str(caught.value)
        assert SECRET not in str(caught.value)

    def missing():
        raise ImportError

    monkeypatch.setattr(notify, "load_apprise", missing)
    with pytest.raises(ConfigError, match=re.escape(pip_install("notify"))):
        Notices(["ntfy://topic"])
