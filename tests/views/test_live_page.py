import http.client
import json

import pytest
from made_trials import a_trial, forty
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from serving import ask, served
from toys import fill

from studyloom.storage.attributes import FAILURE, REASON
from studyloom.study.opening import create_study
from studyloom.views import dashboard
from studyloom.views.dashboard import LOOPBACK, Guard, LivePage, Parts
from studyloom.views.page import Rendered

EVIL = "<img src=x onerror=alert(1)>\u2028</script>"
QUICK = 0.05  # seconds between two looks


def other(environ, start_response):
    """What lies behind the page."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"optuna"]


def live(stored, run_dir=None, token=None):
    return Guard(LivePage(stored, run_dir, other, QUICK), LOOPBACK, token)


class Events:
    """A browser that listens, without a browser."""

    def __init__(self, port, since="", **headers):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.connection.request("GET", f"/events?since={since}", headers=headers)
        self.answer = self.connection.getresponse()

    def next(self):
        """The name and the data of the next event."""
        name = None
        while True:
            line = self.answer.readline().decode().rstrip("\n")
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                return name, json.loads(line.removeprefix("data: "))

    def until(self, row, *parts):
        """All that is sent until a row is, and parts, as one message.

        A look may see a trial in one part and not yet in another, which the next look then mends.
        """
        got = {"parts": {}, "rows": {}}
        while row not in got["rows"] or not {*parts} <= {*got["parts"]}:
            name, message = self.next()
            assert name == "changed"
            message["parts"] = got["parts"] | message["parts"]
            message["rows"] = got["rows"] | message["rows"]
            got = message
        return got

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.answer.close()
        self.connection.close()


def version_of(page):
    return page.partition('data-version="')[2].partition('"')[0]


def test_the_first_address_is_the_page_of_the_study_and_the_rest_is_behind_it(study_of):
    with served(live(study_of(forty()))) as server:
        status, headers, page = ask(server.server_port, "/")
        assert (status, headers["Cache-Control"]) == (200, "no-store")
        assert "connect-src &#39;self&#39;" in page
        assert page.count('<tr id="trial-') == 40
        assert 'href="/dashboard/studies/1"' in page
        assert ask(server.server_port, "/anything")[2] == "optuna"
        assert ask(server.server_port, "/", method="POST")[2] == "optuna"


def rendered(*keys):
    return [Rendered(key, key, key) for key in keys]


def test_what_is_sent_makes_of_any_earlier_page_the_page_of_now():
    parts, pages = Parts(), []
    steps = [
        ({"a": "1", "b": "1"}, {"r0": "x"}),
        ({"a": "2", "b": "1"}, {"r0": "x", "r1": "y"}),
        ({"a": "2", "b": "1"}, {"r0": "x", "r1": "y"}),
        ({"a": "2", "c": "3"}, {"r0": "z", "r1": "y"}),
    ]
    changed = []
    for pieces, rows in steps:
        changed.append(parts.take(pieces, rows, rendered(*pieces)))
        pages.append((parts.version, dict(pieces), dict(rows)))
    assert changed == [True, True, False, True]
    _, now, table = pages[-1]
    for version, pieces, rows in pages:
        sent = parts.since(version)
        after = {k: v for k, v in (pieces | sent["parts"]).items() if k in sent["order"]}
        assert (after, rows | sent["rows"]) == (now, table)
    assert parts.since(parts.version)["parts"] == {}
    assert [*parts.since(pages[1][0])["parts"]] == ["c"]


def test_a_page_is_sent_what_has_changed_and_nothing_else(study_of):
    stored = study_of([a_trial(n, accuracy=0.5 + n / 100) for n in range(6)])
    with served(live(stored)) as server:
        version = version_of(ask(server.server_port, "/")[2])
        with Events(server.server_port, version) as events:
            assert events.answer.headers["Content-Type"].startswith("text/event-stream")
            fill(stored, a_trial(6, accuracy=0.9))
            message = events.until("trial-6", "head", "search", "curves")
        assert {*message["rows"]} <= {"trial-5", "trial-6"}  # trial 5 is the best no longer
        assert {"environment", "failures", "trials", "nav"} & {*message["parts"]} == set()
        assert version_of(ask(server.server_port, "/")[2]) == message["version"]


@pytest.mark.parametrize("since", ["", "nonsense", "0-0", "abcdef12-3", "-", "x" * 500])
def test_who_has_no_version_of_this_server_is_sent_everything(study_of, since):
    with served(live(study_of(forty()))) as server:
        ask(server.server_port, "/")
        with Events(server.server_port, since) as events:
            _, message = events.next()
        assert len(message["rows"]) == 40
        assert {*message["order"]} | {"head", "nav", "progress"} == {*message["parts"]}


def test_a_browser_that_comes_back_says_which_event_it_saw_last(study_of):
    stored = study_of([a_trial(0)])
    with served(live(stored)) as server:
        ask(server.server_port, "/")
        with Events(server.server_port) as events:
            _, message = events.next()
        fill(stored, a_trial(1))
        header = {"Last-Event-ID": message["version"]}
        with Events(server.server_port, "", **header) as events:
            assert [*events.until("trial-1")["rows"]] == ["trial-1"]


def test_a_database_that_is_away_is_told_and_its_return_too(study_of, monkeypatch):
    stored = study_of([a_trial(0)])
    page = LivePage(stored, None, other, QUICK)
    with served(Guard(page, LOOPBACK)) as server:
        version = version_of(ask(server.server_port, "/")[2])
        read = page._read
        with Events(server.server_port, version) as events:

            def away():
                raise OSError("no answer from postgresql://me:secret@host/db\x1b[31m")

            monkeypatch.setattr(page, "_read", lambda: {}["key"])  # also what nobody thought of
            assert events.next() == ("away", "the study cannot be read: KeyError: 'key'")
            monkeypatch.setattr(page, "_read", away)
            name, why = events.next()
            assert name == "away"
            assert why.startswith("the study cannot be read: no answer from postgresql://me:***@")
            assert "\x1b" not in why
            fill(stored, a_trial(1))
            monkeypatch.setattr(page, "_read", read)
            assert [*events.until("trial-1")["rows"]] == ["trial-1"]


def test_it_shows_how_far_the_whole_job_has_come_and_what_runs(half_done):
    page = LivePage(half_done, None, other, QUICK)
    page.look()
    assert page.parts.order[0] == "running"
    assert "host:4" in page.parts.pieces["running"].html
    told = page.parts.pieces["progress"].html
    assert '<progress value="4" max="8"' in told
    assert "search 4/8, 1 pruned" in told
    before = page.parts.version
    half_done.optuna.tell(4, 0.95)
    page.look()
    assert {"head", "search", "curves"} <= {*page.parts.since(before)["parts"]}


def test_nobody_looks_at_the_study_while_no_page_is_open(study_of, monkeypatch):
    monkeypatch.setattr(dashboard, "BEAT", QUICK)  # what is written finds that nobody is there
    page = LivePage(study_of([a_trial(0)]), None, other, QUICK)
    with served(Guard(page, LOOPBACK)) as server:
        ask(server.server_port, "/")
        assert page.listeners == 0
        with Events(server.server_port) as first, Events(server.server_port) as second:
            first.next(), second.next()
            assert page.listeners == 2
        with page.changed:
            page.changed.wait_for(lambda: not page.listeners, timeout=60)
            assert not page.listeners
            page.changed.wait_for(lambda: page.follower is None, timeout=60)
            assert page.follower is None


def test_a_server_that_ends_lets_its_pages_go(study_of):
    guard = live(study_of([a_trial(0)]))
    with served(guard) as server, Events(server.server_port) as events:
        events.next()
        guard.close()
        assert events.answer.read().decode().strip() in ("", ": still here")
        assert guard.app.follower is None


def test_the_guard_stands_before_the_page_and_its_events(study_of):
    with served(live(study_of([a_trial(0)]), token="s3cret")) as server:
        for path in ("/", "/events", "/events?since=x"):
            assert ask(server.server_port, path)[0] == 401
            assert ask(server.server_port, path, Host="evil.example")[0] == 403
            origin = ask(server.server_port, path, Origin="http://evil.example")
            assert origin[0] == 403
        assert ask(server.server_port, "/", Authorization="Bearer s3cret")[0] == 200


def test_the_page_shows_the_answer_once_it_is_there(study_of, tmp_path):
    stored = study_of([a_trial(0)])
    page = LivePage(stored, tmp_path, other, QUICK)
    page.look()
    assert "winner" in page.parts.order
    trial = stored.trials()[0]
    row = {"trial": 0, "params": trial.params, "search_value": trial.value, "mean": 0.5, "std": 0.1}
    answer = {"study": "toy", "winner": row | {"values": [0.5]}, "candidates": [row], "trials": 1}
    (tmp_path / "winner.json").write_text(json.dumps(answer))
    version = page.parts.version
    page.look()
    assert "50.0\xa0% ± 10.0 on 1 fresh seeds" in page.parts.since(version)["parts"]["head"]
    assert page.parts.order.index("candidates") == 0


# In a browser.


@pytest.fixture
def page(browser):
    """A page that collects its dialogs and errors in `page.seen`."""
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    page = context.new_page()
    page.seen = []
    page.on("dialog", lambda dialog: (page.seen.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: page.seen.append(str(error)))
    page.on("console", lambda m: m.type in ("error", "warning") and page.seen.append(m.text))
    yield page
    context.close()


def test_a_page_follows_the_study_and_keeps_what_a_hand_has_done(page, study_of):
    choices = CategoricalDistribution(["plain", EVIL])
    stored = study_of(
        [a_trial(n, accuracy=0.5 + n / 100, params={"p": ("plain", choices)}) for n in range(4)]
    )
    with served(live(stored, token="s3cret")) as server:
        page.goto(f"http://127.0.0.1:{server.server_port}/?token=s3cret")
        page.evaluate("window.before = true")
        page.locator("#search summary").click()
        page.locator("#filter").fill("plain complete")
        page.get_by_role("button", name="accuracy", exact=True).click()
        page.locator("#search .plot").focus()
        fill(
            stored,
            a_trial(4, accuracy=0.1, params={"p": ("plain", choices)}),
            a_trial(5, TrialState.FAIL, params={"p": (EVIL, choices)}, worker=EVIL,
                    **{FAILURE: EVIL, REASON: EVIL}),
        )  # fmt: skip
        page.locator("#trial-5").wait_for(state="attached")
        shown = "#all-trials tbody tr:not([hidden]) th"
        numbers = f"[...document.querySelectorAll('{shown}')].map((c) => +c.textContent)"
        assert page.evaluate(numbers) == [4, 0, 1, 2, 3], "sorted and filtered as before"
        assert page.evaluate("document.querySelector('#search details').open")
        assert page.evaluate("document.activeElement.className") == "plot"
        assert page.evaluate("window.before"), "it was not loaded again"
        page.locator("#failures").scroll_into_view_if_needed()
        page.locator("#failures").get_by_text(EVIL[:28]).first.wait_for()
        assert page.locator("img").count() == 0
        page.get_by_role("link", name="optuna-dashboard").click()
        page.get_by_text("optuna").first.wait_for()
    assert page.seen == []


def test_sections_come_and_go_in_their_place(page, sqlite_url):
    stored = create_study(sqlite_url, EVIL, {"asks": "nothing"}, trials=40)
    with served(live(stored)) as server:
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        order = "[...document.querySelectorAll('main > section')].map((s) => s.id)"
        assert "choices" not in page.evaluate(order)
        assert page.locator("#all-trials").count() == 0
        group = CategoricalDistribution(["a", "b"])
        fill(
            stored,
            *(
                a_trial(
                    n,
                    accuracy=0.5 + n / 50,
                    params={"model": ("ab"[n % 2], group), f"model.{'ab'[n % 2]}": ("a", group)},
                )
                for n in range(8)
            ),
        )
        page.locator("#choices").wait_for(state="attached")
        page.locator("#trial-7").wait_for(state="attached")
        sections = page.evaluate(order)
        assert sections.index("importances") + 1 == sections.index("choices")
        assert page.locator("#all-trials tbody tr").count() == 8
        assert [
            *page.evaluate("[...document.querySelectorAll('nav a')].map((a) => a.hash.slice(1))")
        ] == sections
        page.locator("#csv").wait_for()
    assert page.seen == []


def test_a_server_that_ends_is_told(page, study_of):
    with served(live(study_of([a_trial(0)]))) as server:
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        # The page says so as it comes, and once more when the stream is open.
        page.evaluate(
            "new Promise((done) => source.readyState === EventSource.OPEN ? done()"
            " : source.addEventListener('open', () => done()))"
        )
        page.evaluate("source.dispatchEvent(new Event('error'))")
        page.get_by_text("the server does not answer; trying again").wait_for()
