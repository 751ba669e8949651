import itertools
import json
import re
import signal
import subprocess
import sys
import warnings
from urllib.parse import urlsplit

import pytest
from commands import environment
from live_processes import until
from made_trials import a_trial
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from optuna_dashboard._importance import param_importance_cache
from results import document_of
from serving import ask, served
from toys import begin, fill

from studyloom.errors import ConfigError
from studyloom.files import mark_trusted
from studyloom.storage.attributes import BASELINE, FAILURE, PAUSED, PROPOSED, REASON, STOP_REQUESTED
from studyloom.storage.opening import create_study
from studyloom.storage.redo import redo_failed
from studyloom.views.dashboard import LivePage, application, bind, guarded, quiet_importances
from studyloom.views.progress import Progress
from studyloom.views.report import write_report
from studyloom.worker.stopping import read_control, set_control

EVIL = "<img src=x onerror=alert(1)>\u2028</script>"
QUICK = 0.05  # seconds between two reads of the study


def other_app(environ, start_response):
    """The application behind the page."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"optuna"]


def live(stored, run_dir=None):
    page = LivePage(stored, run_dir, other_app)
    page.interval = QUICK
    return page


def version_of(page):
    return page.partition('data-version="')[2].partition('"')[0]


def changes(port, since):
    return json.loads(ask(port, f"/changes?since={since}")[2])


def test_requests_are_answered_only_to_localhost_and_from_its_reports():
    with served(guarded(other_app)) as server:
        port = server.server_port
        host = f"localhost:{port}"
        for name in (host, f"127.0.0.1:{port}", f"LOCALHOST:{port}", "[::1]:1", "localhost"):
            status, headers, body = ask(port, "/", Host=name)
            assert (status, body) == (200, "optuna")
            assert headers["X-Frame-Options"] == "SAMEORIGIN"
        for name in ("evil.example", f"127.0.0.1.evil.example:{port}", "192.0.2.1", "", "[::1"):
            assert ask(port, "/", Host=name)[0] == 403
        for origin in ("http://evil.example", "null", f"http://localhost:{port + 1}"):
            assert ask(port, "/", method="POST", Host=host, Origin=origin)[0] == 403
        assert ask(port, "/", method="POST", Host=host, Origin=f"http://{host}")[0] == 200


def test_the_next_free_port_is_used_if_one_is_taken():
    with bind(0) as taken, bind(taken.server_port) as server:
        assert server.server_port > taken.server_port
        assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(ValueError, match="--port must be a number from 0"):
        bind(65536)


def test_a_live_report_receives_only_what_has_changed(study_of):
    stored = study_of([a_trial(n, accuracy=0.5 + n / 100) for n in range(6)])
    page = live(stored)
    page.interval = 0
    with served(page) as server:
        version = version_of(ask(server.server_port, "/")[2])
        same = changes(server.server_port, version)
        assert (same["version"], same["parts"], same["rows"]) == (version, {}, {})
        fill(stored, a_trial(6, accuracy=0.9))
        page.next_refresh = 0
        message = changes(server.server_port, version)
        assert {*message["rows"]} == {"trial-5", "trial-6"}  # trial 5 is no longer the best
        assert {"head", "search", "curves"} <= {*message["parts"]}
        assert {"environment", "failures", "trials", "nav"} & {*message["parts"]} == set()
        assert message["gone"] == []
        fill(stored, a_trial(7, TrialState.FAIL))
        page.next_refresh = 0
        assert {*changes(server.server_port, message["version"])["rows"]} == {"trial-7"}
        redo_failed(stored)
        page.next_refresh = 0
        later = changes(server.server_port, message["version"])
        assert ([*later["rows"]], later["gone"]) == (["trial-8"], ["failures", "trial-7"])
        assert changes(server.server_port, later["version"])["gone"] == []
        for since in ("", "nonsense", "0-0", "abcdef12-3", "-", "x" * 500):
            everything = changes(server.server_port, since)
            assert len(everything["rows"]) == 8
            assert everything["gone"] is None, (
                "the server does not know what an earlier one has sent"
            )
            assert {*everything["order"]} | {"head", "nav", "progress"} == {*everything["parts"]}


def test_a_live_report_receives_a_section_when_it_is_near_the_visible_part(study_of):
    stored = study_of([a_trial(number) for number in range(3)])
    page = live(stored)
    page.refresh()
    version = page.changes_since("")["version"]
    fill(stored, a_trial(3))
    page.refresh()
    changes_near_history = page.changes_since(version, near=["search", "trials"])
    assert {*changes_near_history["parts"]} & {*changes_near_history["order"]} == {"search"}
    assert "curves" in changes_near_history["outdated"]
    assert [*changes_near_history["rows"]] == ["trial-3"]
    version = changes_near_history["version"]
    outdated = changes_near_history["outdated"]
    changes_near_curves = page.changes_since(version, ["curves", "unknown"], [*outdated, "gone"])
    assert [*changes_near_curves["parts"]] == ["curves"]
    assert {*changes_near_curves["outdated"]} == {*outdated} - {"curves"}


def test_the_live_report_shows_when_the_database_is_away_and_back(study_of, monkeypatch):
    page = live(study_of([a_trial(0)]))
    errors = iter([OSError("no answer from postgresql://me:secret@host/db\x1b[31m"), KeyError("k")])
    render = page._render

    def fail_twice():
        if (error := next(errors, None)) is not None:
            raise error
        return render()

    monkeypatch.setattr(page, "_render", fail_twice)
    page.refresh()
    trouble = page.changes_since("")["trouble"]
    assert trouble.startswith("the study cannot be read: no answer from postgresql://me:***@")
    assert "\x1b" not in trouble
    page.refresh()  # also an error that nobody expected
    assert page.changes_since("")["trouble"] == "the study cannot be read: KeyError: 'k'"
    page.refresh()
    assert page.changes_since("")["trouble"] == ""


def test_the_live_report_shows_progress_running_trials_and_the_result(half_done, tmp_path):
    page = live(half_done, tmp_path)
    page.refresh()
    before = page.changes_since("")
    assert before["order"][:2] == ["search", "running"]
    assert "host:4" in before["parts"]["running"]
    assert '<progress value="0.625"' in before["parts"]["progress"]
    assert '> <span class="unbroken">ETA ' in before["parts"]["progress"]
    assert "4 of 8" not in before["parts"]["progress"], "the facts below have the counts"
    trial = half_done.trials()[0]
    row = {"trial": 0, "params": trial.params, "search_value": trial.value, "mean": 0.5, "std": 0.1}
    result = document_of(winner=row | {"values": [0.5]})
    (tmp_path / "winner.json").write_text(json.dumps(result))
    page.refresh()
    after = page.changes_since(before["version"])
    assert "50.0%\u00a0±\u00a010.0 on 1 new seed," in after["parts"]["head"]
    assert after["order"][:4] == ["search", "running", "details", "candidates"]


def test_the_report_is_at_the_root_and_optuna_dashboard_below_it(study_of, tmp_path):
    """A database that goes away does not end the server."""
    with served(application(study_of([a_trial(0)]), tmp_path)) as server:
        port = server.server_port
        status, headers, page = ask(port, "/")
        assert (status, headers["Cache-Control"]) == (200, "no-store")
        assert "connect-src &#39;self&#39;" in page
        assert page.count('<tr id="trial-') == 1
        assert 'href="/dashboard/studies/1"' in page
        assert ask(port, "/dashboard")[0] == 200
        assert json.loads(ask(port, "/api/studies")[2])["study_summaries"][0]["study_name"] == "toy"
        assert ask(port, "/api/studies", Host="evil.example")[0] == 403
        (tmp_path / "study.db").rename(tmp_path / "away.db")
        assert ask(port, "/api/studies")[0] == 500
        (tmp_path / "away.db").rename(tmp_path / "study.db")
        assert ask(port, "/api/studies")[0] == 200


BUTTONS = ("pause", "resume", "stop")


def live_own(stored, folder):
    """The live report of a study that has run in a folder of your own."""
    mark_trusted(folder)
    return live(stored, folder)


def test_buttons_of_a_trusted_report_store_what_the_commands_store(half_done, tmp_path):
    live_page = live_own(half_done, tmp_path)
    token = live_page.token
    with served(guarded(live_page)) as server:
        port = server.server_port
        page = ask(port, "/")[2]
        assert f'data-token="{token}"' in page
        assert re.findall(r'data-request="(\w+)"( disabled)?', page) == [
            ("pause", ""),
            ("resume", " disabled"),
            ("stop", ""),
        ]
        headers = {"X_Report_Token": token, "Origin": f"http://127.0.0.1:{port}"}
        for name, stored, useful in (
            *(("pause", "pause", ["resume", "stop"]), ("resume", None, ["pause", "stop"])),
            ("stop", "stop", []),
        ):
            status, _, message = ask(port, f"/{name}", method="POST", **headers)
            assert (status, message) == (200, f"{name} requested")
            assert read_control(half_done) == stored
            assert re.findall(r'data-request="(\w+)">', ask(port, "/")[2]) == useful


def post(page, path, body=None):
    """Sends a request as the report does; returns the status and the text of the answer."""
    with served(guarded(page)) as server:
        status, _, text = ask(server.server_port, path, "POST", body, X_Report_Token=page.token)
    return status, text


def test_the_view_of_a_trial_stops_it(half_done, tmp_path):
    page = live_own(half_done, tmp_path)
    assert post(page, "/stop_trial?trial=4") == (200, "trial 4 ends at its next report")
    half_done.ledger.record_death("host:4", "killed")
    assert post(page, "/stop_trial?trial=4") == (200, "trial 4 has ended")
    assert half_done.trials()[4].state == TrialState.PRUNED
    status, text = post(page, "/stop_trial?trial=4")
    assert (status, text.partition(";")[0]) == (409, "refused: trial 4 has ended: it is pruned")
    for query in ("", "?trial=", "?trial=-1", "?trial=x", "?trial=" + 20 * "9"):
        assert post(page, f"/stop_trial{query}")[0] == 400


def test_the_view_of_a_trial_proposes_it_with_changes(half_done, tmp_path):
    proposed = []

    def propose_changed(stored, number, changes):
        proposed.append((stored.name, number, changes))
        if "lr" in changes:
            raise ConfigError("lr=2 is outside its range [0, 1]")
        return 41

    mark_trusted(tmp_path)
    page = LivePage(half_done, tmp_path, other_app, propose_changed)
    body = {"trial": "1", "changes": {"width": "8", "bias": "true", "kind": "cnn", "list": "[1]"}}
    assert post(page, "/propose", json.dumps(body)) == (
        200,
        "trial 41 waits for the next free worker",
    )
    changes = {"width": 8, "bias": True, "kind": "cnn", "list": "[1]"}
    assert proposed == [(half_done.name, 1, changes)]
    body = json.dumps({"trial": 1, "changes": {"lr": "2"}})
    assert post(page, "/propose", body) == (409, "refused: lr=2 is outside its range [0, 1]")
    for body in ("", "[]", "no JSON", "{}", '{"trial": 1, "changes": []}', '{"changes": {}}'):
        assert post(page, "/propose", body)[0] == 400
    assert post(live_own(half_done, tmp_path), "/propose", json.dumps({"changes": {}}))[0] == 400


def test_a_stale_report_cannot_withdraw_a_stop(half_done, tmp_path):
    page = live_own(half_done, tmp_path)
    set_control(half_done, "stop")  # as another report or terminal does
    with served(guarded(page)) as server:
        for name in ("resume", "pause"):
            status, _, message = ask(
                server.server_port, f"/{name}", "POST", X_Report_Token=page.token
            )
            assert (status, message) == (
                409,
                "refused: the study is stopped; the command that runs it resumes it",
            )
            assert read_control(half_done) == "stop"


def test_requests_without_the_token_or_from_another_site_store_nothing(half_done, tmp_path):
    page = live_own(half_done, tmp_path)
    token = page.token
    elsewhere = {"REQUEST_METHOD": "POST", "REMOTE_ADDR": "192.0.2.1"}
    assert page.control("stop", {**elsewhere, "HTTP_X_REPORT_TOKEN": token}).status[:3] == "403"
    with served(guarded(page)) as server:
        port = server.server_port
        headers = {"X_Report_Token": token, "Origin": f"http://127.0.0.1:{port}"}
        refused = [
            {"X_Report_Token": ""},
            {"X_Report_Token": token[:-1]},
            {"X_Report_Token": "\u00e9"},
            {"Host": "evil.example"},
            {"Host": "evil.example", "Origin": "http://evil.example"},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            *({"method": method} for method in ("GET", "HEAD", "PUT", "OPTIONS")),
        ]
        for button, different in itertools.product(BUTTONS, refused):
            before = "pause" if button == "resume" else None
            set_control(half_done, before)
            status, _, _ = ask(port, f"/{button}", **{"method": "POST", **headers, **different})
            assert (status, read_control(half_done)) == (403, before), (button, different)
        del headers["X_Report_Token"]
        assert ask(port, "/stop", method="POST", **headers)[0] == 403
        assert ask(port, f"/stop?token={token}", "POST", token, **headers)[0] == 403


def test_only_the_report_of_a_trusted_running_study_has_buttons(half_done, tmp_path, monkeypatch):
    """There are none without a folder, in an untrusted one, in report.html, or after the end."""
    for folder in (None, tmp_path):
        page = live(half_done, folder)
        with served(guarded(page)) as server:
            for token in ("", page.token):
                assert ask(server.server_port, "/stop", "POST", X_Report_Token=token)[0] == 403
            assert "data-request=" not in ask(server.server_port, "/")[2]
    assert "data-request" not in write_report(half_done, tmp_path).read_text()
    monkeypatch.setattr(Progress, "has_ended", True)
    page = live_own(half_done, tmp_path)
    with served(guarded(page)) as server:
        assert "data-request=" not in ask(server.server_port, "/")[2]
        status, _, message = ask(server.server_port, "/stop", "POST", X_Report_Token=page.token)
        assert (status, message) == (409, "the study has ended")
    assert read_control(half_done) is None


def test_importances_of_few_trials_print_no_warning(study_of):
    fraction = FloatDistribution(0.0, 1.0)
    always = {"p": (0.5, fraction)}
    once = {"q": (0.5, fraction)}
    later_trials = [a_trial(number, params=always) for number in (1, 2)]
    stored = study_of([a_trial(0, params=always | once), *later_trials])
    param_importance_cache.clear()  # which knows a study only by its id, in all databases
    path = f"/api/studies/{stored.ledger.study_id}/param_importances"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_importances(), served(application(stored, None)) as server:
            status, _, body = ask(server.server_port, path)
    assert (status, "importance" in body) == (200, True)
    assert caught == []


@pytest.mark.chaos
def test_the_command_serves_a_run_and_ends_quietly(study_of, tmp_path):
    study_of([a_trial(0)])
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("study: {name: toy}\nstorage: {url: null}\n")
    command = [sys.executable, "-m", "studyloom", "dashboard", str(tmp_path)]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        lines = iter(process.stdout.readline, "")
        matches = (re.search(r"http://\S+/", line) for line in lines)
        url = next(match[0] for match in matches if match)
        assert "<h1>toy</h1>" in ask(urlsplit(url).port, "/")[2]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out, err) == (0, "", "")


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


@pytest.mark.browser
def test_a_live_report_keeps_filter_order_and_focus_as_it_changes(page, study_of):
    choices = CategoricalDistribution(["plain", EVIL])
    stored = study_of(
        [a_trial(n, accuracy=0.5 + n / 100, params={"p": ("plain", choices)}) for n in range(4)]
    )
    with served(guarded(live(stored))) as server:
        page.goto(f"http://127.0.0.1:{server.server_port}/")
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
        visible_rows = "#all-trials tbody tr:not([hidden]) th"
        numbers = f"[...document.querySelectorAll('{visible_rows}')].map((c) => +c.textContent)"
        assert page.evaluate(numbers) == [4, 0, 1, 2, 3], "sorted and filtered as before"
        assert page.evaluate("document.querySelector('#search details').open")
        assert page.evaluate("document.activeElement.className") == "plot"
        assert page.evaluate("window.before"), "it was not loaded again"
        page.locator("#failures").scroll_into_view_if_needed()
        page.locator("#failures").get_by_text(EVIL[:28]).first.wait_for()
        assert page.locator("img").count() == 0
        assert re.fullmatch(r"live, \d\d:\d\d:\d\d", page.locator("#live").inner_text())
        redo_failed(stored)
        page.locator("#trial-5").wait_for(state="detached")
        page.locator("#trial-6").wait_for(state="attached")  # it waits
        # As if another server had sent the rows, of which one is gone since.
        page.evaluate("document.getElementById('trial-6').id = 'trial-9'")

        def row_is_gone() -> bool:
            page.evaluate("version = '0-0'")  # again, since an answer under way sets it too
            return page.locator("#trial-9").count() == 0

        until(row_is_gone)
        assert page.evaluate(numbers) == [4, 0, 1, 2, 3]
        page.get_by_role("link", name="optuna-dashboard").click()
        page.get_by_text("optuna").first.wait_for()
    assert page.seen == []


@pytest.mark.browser
def test_printing_and_scrolling_request_a_section_out_of_sight(page, study_of):
    stored = study_of([a_trial(number) for number in range(3)])
    drawn = "[...document.querySelectorAll('#workers [data-trials]')].map((e) => e.dataset.trials)"
    with served(guarded(live(stored))) as server:
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        fill(stored, a_trial(3))
        until(lambda: page.evaluate("outdated.includes('workers')"))
        assert page.evaluate(drawn) == ["0 1 2"]
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate(drawn) == ["0 1 2 3"]
        fill(stored, a_trial(4))
        until(lambda: page.evaluate("outdated.includes('workers')"))
        page.locator("#workers").scroll_into_view_if_needed()
        page.locator("#workers [data-trials='0 1 2 3 4']").wait_for(state="attached")


@pytest.mark.browser
def test_a_click_pauses_the_study_and_another_resumes_it(page, half_done, tmp_path):
    live_page = live_own(half_done, tmp_path)
    live_page.interval = 1.0  # seconds for which the page says that a request has arrived
    with served(guarded(live_page)) as server:
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        for name, stored, message in (
            ("pause", "pause", "pausing: 2 trials"),
            ("resume", None, ""),
        ):
            page.get_by_role("button", name=name, exact=True).click()
            page.get_by_text(f"{name} requested").wait_for()
            assert read_control(half_done) == stored
            if message:
                page.locator("#progress").get_by_text(message).wait_for()
        page.get_by_role("button", name="stop", exact=True).click()  # the fixture dismisses it
        assert page.seen == ["Stop the study? The command that runs it resumes it."]
        assert read_control(half_done) is None
        page.seen.clear()
    assert page.seen == []


@pytest.mark.browser
def test_the_view_of_a_trial_stops_it_and_tries_it_with_changes(page, half_done, tmp_path):
    proposed = []

    def propose_changed(stored, number, changes):
        proposed.append((number, changes))
        if len(proposed) == 1:
            raise ConfigError("lr=3 is outside its range [0, 1]")
        return 5

    mark_trusted(tmp_path)
    live_page = LivePage(half_done, tmp_path, other_app, propose_changed)
    live_page.interval = QUICK
    with served(guarded(live_page)) as server:
        address = f"http://127.0.0.1:{server.server_port}/"
        page.goto(f"{address}#trial-1")
        view = page.get_by_role("dialog")
        assert view.get_by_role("button", name="stop this trial").count() == 0  # it has ended
        view.get_by_role("button", name="try this with changes").click()
        learning_rate = view.get_by_role("textbox", name="lr")
        assert learning_rate.input_value() == f"{half_done.trials()[1].params['lr']:.4g}"
        learning_rate.fill("3")
        learning_rate.press("ArrowLeft")  # moves within the text, and not to another trial
        learning_rate.press("Enter")
        view.get_by_text("refused: lr=3 is outside its range [0, 1]").wait_for()
        learning_rate.fill("0.25")
        view.get_by_role("button", name="propose this configuration").click()
        view.get_by_text("trial 5 waits for the next free worker").wait_for()
        assert proposed == [(1, {"lr": 3}), (1, {"lr": 0.25})]
        assert page.seen.pop().startswith("Failed to load resource")  # Chromium's words of a 409
        page.goto(f"{address}#trial-4")
        button = view.get_by_role("button", name="stop this trial")
        button.click()  # the fixture dismisses the dialog
        assert page.seen == ["Stop trial 4? It ends as pruned, and counts toward the budget."]
        page.evaluate("window.confirm = () => true")
        button.click()
        view.get_by_text("trial 4 ends at its next report").wait_for()
    assert half_done.trials()[4].user_attrs[STOP_REQUESTED]
    assert len(page.seen) == 1


@pytest.mark.browser
def test_a_phone_shows_the_whole_history_while_trials_run(page, sqlite_url, tmp_path):
    """The history has trials of all kinds, and the sentence and facts above it are long."""
    stored = create_study(sqlite_url, "digits", {"asks": "nothing"}, trials=4000)
    choices = CategoricalDistribution(["convolutional", "feed-forward"])
    names = ("model", "optimizer", "train.batch_size")
    params = dict.fromkeys(names, ("convolutional", choices))
    fill(stored, a_trial(0, accuracy=0.8, params=params, **{BASELINE: True}))
    for number in range(1, 60):
        state = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)[number % 3]
        fill(stored, a_trial(number, state, 0.8 + number / 1000, params=params))
    fill(stored, a_trial(60, TrialState.RUNNING, 0.5, params=params, **{PAUSED: 3}))
    for number in range(40):
        trial = begin(stored)
        stored.ledger.claim(f"host:{number}", 4000, 60, lambda *_, trial=trial: trial._trial_id)
        trial.report(0.5, 1)
    page.set_viewport_size({"width": 390, "height": 844})
    with served(guarded(live_own(stored, tmp_path))) as server:
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        assert "40 running" in page.locator(".numbers").inner_text()
        assert page.locator("#search .legend li").count() == 8
        axis_title = page.locator("#search .under").bounding_box()
        assert axis_title["y"] + axis_title["height"] <= 844
    assert page.seen == []


@pytest.mark.browser
def test_the_tip_of_a_mark_is_visible_beyond_the_end_of_its_section(page, study_of):
    params = {f"p{n}": (0.5, FloatDistribution(0, 1)) for n in range(12)}
    stored = study_of(a_trial(n, accuracy=0.5 + n / 100, params=params) for n in range(4))
    fill(stored, a_trial(4, TrialState.PRUNED, 0.1, params=params))
    with served(live(stored)) as server:
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.locator("#trial-4").wait_for(state="attached")
        plot = page.locator("#search .plot")
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.95 * box["height"])
        page.locator(".tip").wait_for()
        page.add_style_tag(content=".tip { pointer-events: auto !important }")
        visible = """() => {
            const tip = document.querySelector(".tip"), at = tip.getBoundingClientRect();
            scrollTo(0, scrollY + at.bottom + 20 - innerHeight);
            const end = tip.getBoundingClientRect();
            const section = tip.closest("section").getBoundingClientRect();
            return [end.bottom - section.bottom,
                document.elementFromPoint(end.left + 20, end.bottom - 6) === tip];
        }"""
        beyond, is_shown = page.evaluate(visible)
        assert beyond > 20, "otherwise the test proves nothing"
        assert is_shown


@pytest.mark.browser
def test_sections_come_and_go_in_order_and_a_missing_server_is_shown(page, sqlite_url):
    stored = create_study(sqlite_url, EVIL, {"asks": "nothing"}, trials=40)
    with served(live(stored)) as server:
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        order = "[...document.querySelectorAll('main > section')].map((s) => s.id)"
        assert "proposers" not in page.evaluate(order)
        proposed = {PROPOSED: {"by": "somebody"}}
        fill(stored, *(a_trial(n, **proposed if n == 7 else {}) for n in range(8)))
        page.locator("#proposers").wait_for(state="attached")
        page.locator("#trial-7").wait_for(state="attached")
        sections = page.evaluate(order)
        assert sections.index("proposers") + 1 == sections.index("workers")
        assert page.locator("#all-trials tbody tr").count() == 8
        links = "[...document.querySelectorAll('nav a')].map((a) => a.hash.slice(1))"
        assert {*page.evaluate(links)} == {*sections}
        assert page.seen == []
    page.get_by_text("the server does not answer; trying again").wait_for()
