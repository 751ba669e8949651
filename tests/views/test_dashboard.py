import contextlib
import csv
import io
import json
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import optuna
import pytest
from commands import CANARY, ROOT, environment
from optuna.trial import TrialState, create_trial
from optuna_dashboard import get_note
from rich.console import Console
from serving import ask, served
from toys import begin, fill, two_sided

from studyloom.errors import StorageError
from studyloom.storage.attributes import EPOCHS, FAILURE, REASON
from studyloom.study.opening import create_study
from studyloom.views.dashboard import (
    MARGIN,
    Server,
    application,
    as_code,
    bind,
    curves_csv,
    open_only_study,
    publish,
    serve,
)
from studyloom.views.snapshot import take_snapshot
from studyloom.views.terminal import headline

EVIL = "<img src=x onerror=alert(1)> [a](javascript:alert(2)) `b` *c*"
REASON_TEXT = "ValueError: <b>width</b>\n# 3 is *no* power of `2`"
HTML = "<!doctype html><title>report</title><h1>Report</h1><script>document.title = 'ran'</script>"
CURVE = {
    "number": [1, 2],
    "train_loss": [0.5, 0.25],
    "valid_loss": [0.6, 0.3],
    "value": [0.8, 0.9],
    "seconds": [1, 1],
}


def filled(url: str, name: str = "toy"):
    """A study with a complete trial, a failed one, one that diverged, and one that runs."""
    stored = create_study(url, name, {"asks": "nothing"}, trials=8)
    for value, state, failure in [
        (0.9, None, None),
        (None, TrialState.FAIL, ("error", REASON_TEXT)),
        (None, TrialState.PRUNED, ("diverged", "the loss was NaN in epoch 2")),
        (None, TrialState.RUNNING, None),
    ]:
        trial = begin(stored)
        trial.suggest_float("lr", 0.0, 1.0)
        trial.report(0.5, 1)
        if failure is not None:
            trial.set_user_attr(FAILURE, failure[0])
            trial.set_user_attr(REASON, failure[1])
        if state is None:
            trial.set_user_attr(EPOCHS, CURVE)
        if state is not TrialState.RUNNING:
            stored.optuna.tell(trial, value, state)
    return stored


def headline_of(stored) -> str:
    return headline(take_snapshot(stored))


def unescaped(markdown: str) -> str:
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", markdown)


def note_of(stored, number: int) -> str:
    return get_note(optuna.Trial(stored.optuna, stored.trials()[number]._trial_id))


def everything(stored) -> str:
    """All that the database holds of a study except the values of its trials, as text."""
    storage = stored.storage
    trials = [
        (trial.user_attrs, storage.get_trial_system_attrs(trial._trial_id))
        for trial in stored.trials()
    ]
    return json.dumps(
        [storage.get_study_system_attrs(stored.ledger.study_id), stored.optuna.user_attrs, trials]
    )


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "run dir"
    folder.mkdir()
    (folder / "best.yaml").write_text("model: {hidden: [16]}\n")
    (folder / "report.html").write_text(HTML)
    return folder


def test_another_host_than_loopback_has_a_token_even_if_none_is_given(sqlite_url, monkeypatch):
    made = []
    monkeypatch.setattr(Server, "serve_forever", lambda server: made.append(server.get_app().token))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    stored, name = filled(sqlite_url), socket.gethostname()
    for host, token in (
        (name, None),
        (name, "mine"),
        ("127.0.0.1", None),
        ("localhost", "mine"),
        ("127.0.0.2", None),
    ):
        shown = io.StringIO()
        serve(stored, None, "toy: 4 of 8", host, 0, token, Console(file=shown))
        if token is None and host == name:
            assert len(made[-1]) >= 32
            assert f"?token={made[-1]}" in shown.getvalue()
            assert shown.getvalue().count(made[-1]) == 1
        else:
            assert made[-1] == token
            assert ("?token=" in shown.getvalue()) == (token is not None)
    assert made[0] != "mine"


def test_an_empty_token_is_refused(sqlite_url):
    with pytest.raises(ValueError, match="--token must not be empty"):
        serve(filled(sqlite_url), None, "toy", "127.0.0.1", 0, "", Console(file=io.StringIO()))


def test_the_only_study_needs_no_name_and_several_are_listed(url):
    stored = filled(url, "first")
    assert open_only_study(url, None).name == stored.name
    filled(url, "second")
    assert open_only_study(url, "second").name == "second"
    with pytest.raises(
        StorageError, match=r"--study must name the study.*2 studies: first, second"
    ):
        open_only_study(url, None)
    with pytest.raises(StorageError, match="no study 'third'; it holds first, second"):
        open_only_study(url, "third")


def test_the_note_says_where_the_study_stands_and_what_can_be_typed(url, run_dir):
    stored = filled(url)
    publish(stored, run_dir, headline_of(stored))
    note = get_note(stored.optuna)
    assert headline_of(stored) in unescaped(note)
    assert f"```\nstudyloom status '{run_dir}'\n" in note
    publish(stored, None, headline_of(stored))
    assert 'studyloom doctor --storage "$STUDYLOOM_STORAGE"\n' in get_note(stored.optuna)


def test_a_trial_that_came_to_nothing_has_its_reason_and_no_other_has_a_note(url):
    stored = filled(url)
    publish(stored, None, "toy")
    notes = [unescaped(note_of(stored, number)) for number in range(4)]
    assert notes == [
        "",
        "**error**\n\nValueError: <b>width</b> # 3 is *no* power of `2`",
        "**diverged**\n\nthe loss was NaN in epoch 2",
        "",
    ]


def test_publishing_again_is_as_once(url, run_dir):
    stored = filled(url)
    publish(stored, run_dir, "toy: 1 of 8")
    once, files = (
        everything(stored),
        sorted(path.name for path in (run_dir / "artifacts").iterdir()),
    )
    publish(stored, run_dir, "toy: 1 of 8")
    assert everything(stored) == once
    assert sorted(path.name for path in (run_dir / "artifacts").iterdir()) == files
    assert len(files) == 3  # best.yaml, report.html and curves.csv: there is no winner yet
    (run_dir / "best.yaml").write_text("model: {hidden: [32]}\n")
    (run_dir / "winner.yaml").write_text("model: {hidden: [64]}\n")
    publish(stored, run_dir, "toy: 2 of 8")
    assert "toy: 2 of 8" in unescaped(get_note(stored.optuna))
    assert "toy: 1 of 8" not in unescaped(get_note(stored.optuna))
    texts = [path.read_text() for path in (run_dir / "artifacts").iterdir()]
    assert len(texts) == 4
    assert sum("[32]" in text for text in texts) == 1
    assert not any("[16]" in text for text in texts)


def test_what_a_user_wrote_into_notes_stays(sqlite_url):
    from optuna_dashboard import save_note

    stored = filled(sqlite_url)
    save_note(stored.optuna, "# my own\n\nwords")
    save_note(optuna.Trial(stored.optuna, stored.trials()[1]._trial_id), "I know why")
    for number in range(3):
        publish(stored, None, f"toy: {number} of 8")
    assert get_note(stored.optuna).endswith(f"{MARGIN}\n\n# my own\n\nwords")
    assert get_note(stored.optuna).count("of 8") == 1
    save_note(stored.optuna, get_note(stored.optuna) + "\n\nand more")
    publish(stored, None, "toy: 3 of 8")
    assert get_note(stored.optuna).endswith("# my own\n\nwords\n\nand more")
    assert note_of(stored, 1) == "I know why"


def test_a_name_is_text_in_the_note_whatever_is_in_it(sqlite_url):
    stored = filled(sqlite_url, EVIL)
    publish(stored, None, headline_of(stored))
    text, code = get_note(stored.optuna).split("\n\n")[:2]
    assert EVIL in unescaped(text)
    assert not re.search(r"(?<!\\)[<>\[\]()`*_#&!$~]", text)
    assert code.startswith("```\n")
    assert as_code("a\n````\nb") == "`````\na\n````\nb\n`````"


def test_curves_have_a_line_for_each_epoch(sqlite_url):
    lines = curves_csv(filled(sqlite_url).trials(), "accuracy").splitlines()
    assert lines == [
        "trial,epoch,accuracy,train_loss,valid_loss",
        "0,1,0.8,0.5,0.6",
        "0,2,0.9,0.25,0.3",
    ]
    assert curves_csv([], "accuracy") == ""


def test_the_curves_of_a_loop_have_a_column_for_each_quantity_that_it_told():
    curves = (
        {"number": [1, 2], "value": [0.5, 0.6], "seconds": [1, 1], "loss": [2.0, 1.0]},
        {"number": [5], "value": [0.7], "seconds": [1], "recall": [0.1]},
        {"number": [0], "value": [0.8], "seconds": [1]},
    )
    trials = [
        create_trial(value=0.5, user_attrs={EPOCHS: curve}, system_attrs={}) for curve in curves
    ]
    for number, trial in enumerate(trials):
        trial.number = number
    assert curves_csv(trials, "f1").splitlines() == [
        "trial,epoch,f1,loss,recall",
        "0,1,0.5,2.0,",
        "0,2,0.6,1.0,",
        "1,5,0.7,,0.1",
        "2,0,0.8,,",
    ]


def test_no_name_of_a_metric_or_quantity_is_a_formula_to_a_spreadsheet():
    curve = {"number": [1], "value": [0.5], "=cmd|x": [1.0]}
    trial = create_trial(value=0.5, user_attrs={EPOCHS: curve})
    trial.number = 0
    head, _ = curves_csv([trial], "@f1").splitlines()
    assert head == "trial,epoch,'@f1,'=cmd|x"


def test_no_cell_is_a_formula_to_a_spreadsheet_in_the_curves_nor_in_the_file_of_the_dashboard(url):
    curve = {"number": [1, "-1"], "value": ["=1+1", -0.5]}
    stored = filled(url)
    trial = create_trial(value=0.5, user_attrs={EPOCHS: curve, "@a": "=cmd", "long": "x" * 200_000})
    fill(stored, trial)
    trial.number = 0
    assert curves_csv([trial], "f1") == "trial,epoch,f1\n0,1,'=1+1\n0,-1,-0.5\n"
    with served(application(stored, None, "127.0.0.1", None)) as server:
        status, headers, body = ask(server.server_port, f"/csv/{stored.ledger.study_id}")
    assert (status, headers["Content-Length"]) == (200, str(len(body.encode())))
    _, *rows = csv.reader(io.StringIO(body))
    assert "'=cmd" in rows[-1]
    assert len(rows) == len(stored.optuna.trials)
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "@"))]


def test_artifacts_are_listed_and_downloaded_and_cannot_touch_the_dashboard(url, run_dir):
    stored = filled(url)
    publish(stored, run_dir, "toy")
    number = stored.ledger.study_id
    with served(application(stored, run_dir, "127.0.0.1", None)) as server:
        detail = json.loads(ask(server.server_port, f"/api/studies/{number}")[2])
        listed = {artifact["filename"]: artifact["artifact_id"] for artifact in detail["artifacts"]}
        assert sorted(listed) == ["best.yaml", "curves.csv", "report.html"]
        for name, identity in listed.items():
            status, headers, body = ask(server.server_port, f"/artifacts/{number}/{identity}")
            assert status == 200
            assert headers["Content-Security-Policy"] == "sandbox allow-scripts"
            assert headers["Access-Control-Allow-Origin"] is None
            if name != "curves.csv":
                assert body == (run_dir / name).read_text()
        assert (
            ask(server.server_port, f"/api/artifacts/{number}/{listed['report.html']}", "DELETE")[0]
            == 204
        )
        publish(stored, run_dir, "toy")
        detail = json.loads(ask(server.server_port, f"/api/studies/{number}")[2])
        assert len(detail["artifacts"]) == 3


def test_the_dashboard_shows_the_study_to_many_at_once(url, run_dir):
    stored = filled(url)
    publish(stored, run_dir, headline_of(stored))
    number = stored.ledger.study_id
    paths = [
        "/api/meta",
        "/api/studies",
        f"/api/studies/{number}",
        f"/api/studies/{number}/param_importances",
    ] * 8
    with (
        served(application(stored, run_dir, "127.0.0.1", None)) as server,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = [*pool.map(lambda path: ask(server.server_port, path), paths)]
        assert {status for status, *_ in answers} <= {200, 400}  # too few trials for importances
        assert not any(CANARY in body + str(headers) for _, headers, body in answers)
        detail = json.loads(answers[2][2])
        assert detail["name"] == "toy"
        assert "studyloom status" in detail["note"]["body"]
        assert len(detail["trials"]) == 4
        status, headers, _ = ask(server.server_port, "/dashboard")
        assert status == 200
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert "<h1>toy</h1>" in ask(server.server_port, "/")[2]
        assert ask(server.server_port, "/dashboard")[0] == 200


def test_no_password_is_in_notes_or_artifacts(postgres_url, run_dir):
    stored = filled(postgres_url)
    publish(stored, run_dir, headline_of(stored))
    assert CANARY not in everything(stored)
    assert not any(CANARY in path.read_text() for path in run_dir.rglob("*") if path.is_file())


# The command itself.


@contextlib.contextmanager
def started(*arguments: str, **extra: str):
    """Yields the running command, the first URL that it prints, and its lines up to there."""
    command = [
        sys.executable,
        "-c",
        "from studyloom.cli import main; raise SystemExit(main())",
        "dashboard",
        *arguments,
    ]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if address := re.search(r"http://\S+", line):
                    yield process, address[0], lines
                    return
            pytest.fail(f"{lines} {process.stderr.read()}")
        finally:
            process.kill()


def write_run(folder, name: str, url: str) -> None:
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text(
        f"study: {{name: {name}}}\nstorage: {{url: '{url}'}}\n"
    )


def test_the_command_serves_a_run_and_ends_quietly(run_dir):
    filled(f"sqlite:///{run_dir / 'study.db'}")
    write_run(run_dir, "toy", "null")
    with (
        bind("127.0.0.1", 0) as taken,
        started(str(run_dir), "--port", str(taken.server_port)) as (process, url, lines),
    ):
        port = urlsplit(url).port
        assert port > taken.server_port
        assert lines[0].startswith("toy: 0 of 8 trials")
        detail = json.loads(ask(port, "/api/studies/1")[2])
        assert "studyloom status" in detail["note"]["body"]
        assert len(detail["artifacts"]) == 3
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.chaos
def test_the_command_shows_no_password_anywhere(postgres_url, run_dir):
    filled(postgres_url)
    write_run(run_dir, "toy", "${oc.env:STUDYLOOM_STORAGE,null}")
    for location in ([str(run_dir)], []):
        secrets = {"STUDYLOOM_STORAGE": postgres_url, "STUDYLOOM_DASHBOARD_TOKEN": "token-canary"}
        with started(*location, "--port", "8300", **secrets) as (process, url, lines):
            with open(f"/proc/{process.pid}/cmdline") as file:
                command = file.read()
            port, bearer = urlsplit(url).port, {"Authorization": "Bearer token-canary"}
            assert ask(port, "/api/studies/1")[0] == 401
            bodies = [
                ask(port, path, **bearer)
                for path in ("/api/studies", "/api/studies/1", "/dashboard", "/nowhere")
            ]
            process.terminate()
            out, err = process.communicate(timeout=120)
            assert (process.returncode, out, err) == (0, "", "")
        assert bodies[1][0] == 200
        assert CANARY not in command + "".join(lines) + out + err + str(
            [(str(h), body) for _, h, body in bodies]
        )
        assert "token-canary" not in command + str([body for *_, body in bodies])


def test_a_database_that_goes_away_is_no_end_and_shows_no_password(sqlite_url, run_dir, tmp_path):
    stored = filled(sqlite_url)
    with served(application(stored, run_dir, "127.0.0.1", None)) as server:
        assert ask(server.server_port, "/api/studies")[0] == 200
        (tmp_path / "study.db").rename(tmp_path / "away.db")
        assert ask(server.server_port, "/api/studies")[0] == 500
        (tmp_path / "away.db").rename(tmp_path / "study.db")
        assert ask(server.server_port, "/api/studies")[0] == 200


@pytest.mark.parametrize("arguments", [["--port", "x"], ["runs/x", "--storage", "sqlite:///x.db"]])
def test_a_command_that_is_wrong_shows_how_it_is_used(arguments, capsys):
    from studyloom.cli import main

    with pytest.raises(SystemExit) as caught:
        main(["dashboard", *arguments])
    assert caught.value.code == 2
    assert "usage: studyloom dashboard" in capsys.readouterr().err


def test_a_command_without_a_study_names_the_ways_to_name_one(capsys):
    from studyloom.cli import main

    assert main(["dashboard"]) == 2
    assert (
        "name a RUN_DIR, or a database with --storage or STUDYLOOM_STORAGE"
        in capsys.readouterr().err
    )
    assert main(["dashboard", "--storage", "sqlite:///nowhere.db"]) == 2
    assert "nowhere.db" in capsys.readouterr().err


# In a browser.


@pytest.fixture
def page(browser):
    """A page that collects its dialogs and errors in `page.seen`."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.seen = []
    page.on("dialog", lambda dialog: (page.seen.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: page.seen.append(str(error)))
    yield page
    context.close()


def test_a_browser_shows_study_trial_and_note(page, sqlite_url, run_dir):
    stored = filled(sqlite_url, EVIL)
    publish(stored, run_dir, headline_of(stored))
    with served(application(stored, run_dir, "127.0.0.1", "s3cret")) as server:
        base = f"http://127.0.0.1:{server.server_port}"
        assert page.goto(f"{base}/api/studies").status == 401
        page.goto(f"{base}/?token=s3cret")
        page.get_by_text(EVIL).first.wait_for()
        assert "token" not in page.url
        page.goto(f"{base}/dashboard/studies/1")
        page.get_by_text("report.html").first.wait_for()
        page.goto(f"{base}/dashboard/studies/1/note")
        page.get_by_text(headline_of(stored)).first.wait_for()
        page.get_by_text(f"studyloom status '{run_dir}'").first.wait_for()
        page.goto(f"{base}/dashboard/studies/1/trials?numbers=1")
        page.get_by_text(" ".join(REASON_TEXT.split())).first.wait_for()
    assert page.seen == []


def test_in_a_browser_its_own_pages_may_write_and_an_artifact_may_not(page, sqlite_url, run_dir):
    stored = filled(sqlite_url)
    publish(stored, run_dir, "toy")
    with served(application(stored, run_dir, "127.0.0.1", None)) as server:
        base = f"http://127.0.0.1:{server.server_port}"
        write = """async version => {
            const body = JSON.stringify({version, body: 'written'});
            const headers = {'Content-Type': 'application/json'};
            const request = {method: 'PUT', headers, body};
            try { return (await fetch('/api/studies/1/note', request)).status }
            catch (error) { return String(error) }
        }"""
        listed = json.loads(ask(server.server_port, "/api/studies/1")[2])["artifacts"]
        (report,) = (
            artifact["artifact_id"] for artifact in listed if artifact["filename"] == "report.html"
        )
        page.goto(f"{base}/artifacts/1/{report}")
        assert page.title() == "ran"  # its scripts run, in an origin of their own
        assert page.evaluate("window.origin") == "null"
        assert "TypeError" in str(page.evaluate(write, 2))
        assert "TypeError" in page.evaluate("fetch('/api/studies').then(String, String)")
        assert get_note(stored.optuna) != "written"
        page.goto(f"{base}/dashboard")
        assert page.evaluate(write, 2) == 204
        assert get_note(stored.optuna) == "written"


def test_a_page_of_another_site_reaches_nothing(page, sqlite_url, run_dir):
    stored = filled(sqlite_url)
    publish(stored, run_dir, "toy")

    def evil(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/html")])
        return [b"<title>evil</title>"]

    with served(evil) as other, served(application(stored, run_dir, "127.0.0.1", None)) as server:
        base = f"http://127.0.0.1:{server.server_port}"
        page.goto(f"http://127.0.0.1:{other.server_port}/")
        read = "url => fetch(url).then(answer => answer.text(), String)"
        assert "TypeError" in page.evaluate(read, f"{base}/api/studies")
        send = (
            "url => fetch(url, {method: 'POST', mode: 'no-cors', body: '{}'})"
            ".then(answer => answer.status, String)"
        )
        assert page.evaluate(send, f"{base}/api/studies/1/rename") in (
            0,
            "TypeError: Failed to fetch",
        )
        assert stored.storage.get_study_name_from_id(1) == "toy"


def test_the_note_shows_the_front_of_two_objectives_as_a_table(url, run_dir):
    stored = two_sided(url, (0.9, 3000), (0.95, 2000), (0.8, 100), None)
    publish(stored, run_dir, headline_of(stored))
    note = unescaped(get_note(stored.optuna))
    assert (
        "| accuracy | parameters | trial |  |\n| ---: | ---: | ---: | ---: |\n"
        "| 0.8000 | 100 | 2 |  |\n"
        "| 0.9500 | 2_000 | 1 | best |\n| 0.9000 | 3_000 | 0 | baseline, beaten |\n\n"
        "The best by *max accuracy where parameters <= 3_000*"
    ) in note


def test_a_browser_shows_two_objectives_with_learning_curves(page, sqlite_url):
    """Optuna's own `report` refuses values of several objectives; the dashboard shows them."""
    stored = two_sided(sqlite_url, (0.9, 3000), (0.95, 2000), (0.8, 100))
    fill(stored, create_trial(values=[0.85, 50], intermediate_values={1: 0.5, 2: 0.85}))
    publish(stored, None, headline_of(stored))
    with served(application(stored, None, "127.0.0.1", None)) as server:
        base = f"http://127.0.0.1:{server.server_port}"
        page.goto(f"{base}/dashboard/studies/1")
        page.get_by_text("Pareto Front").first.wait_for()
        page.goto(f"{base}/dashboard/studies/1/trials?numbers=3")
        page.get_by_text("Best Trial").first.wait_for()
        page.goto(f"{base}/dashboard/studies/1/note")
        page.get_by_text("baseline, beaten").first.wait_for()
    assert page.seen == []
