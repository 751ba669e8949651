"""The list of the studies in a folder: their headlines, and their live reports below it."""

import shutil

import pytest
from made_trials import a_trial
from serving import ask, served
from toys import fill

from studyloom.errors import StorageError
from studyloom.files import mark_trusted
from studyloom.storage.opening import create_study, open_study
from studyloom.views import overview
from studyloom.views.overview import Overview, find_runs, overview_application
from studyloom.worker.stopping import read_control

EVIL = "<b>study"


def add_run(folder, name, values=()):
    """Makes a run directory with a study of these values."""
    run_dir = folder / name
    (run_dir / ".hydra").mkdir(parents=True)
    (run_dir / ".hydra" / "config.yaml").write_text("study: {name: toy}\n")
    stored = create_study(f"sqlite:///{run_dir}/study.db", "toy", {"asks": "nothing"}, trials=4)
    fill(stored, *(a_trial(number, accuracy=value) for number, value in enumerate(values)))
    mark_trusted(run_dir)
    return stored


def open_run(run_dir):
    if run_dir.name == "broken":
        raise StorageError("storage.url: postgresql://user:secret-9@host/db cannot be reached")
    return open_study(f"sqlite:///{run_dir}/study.db", "toy")


@pytest.fixture
def runs(tmp_path):
    """A folder with two studies, one that cannot be opened, and what is no run directory."""
    folder = tmp_path / "runs"
    add_run(folder, "mnist", [0.8, 0.9])
    add_run(folder, EVIL, [0.7])
    (folder / "broken" / ".hydra").mkdir(parents=True)
    (folder / "broken" / ".hydra" / "config.yaml").write_text("")
    (folder / "figures").mkdir()
    (folder / "notes.txt").write_text("")
    return folder


def test_a_run_directory_that_is_made_again_is_read_again(tmp_path):
    add_run(tmp_path, "mnist", [0.8])
    studies = Overview(tmp_path, open_run)
    studies.refresh()
    shutil.rmtree(tmp_path / "mnist")
    add_run(tmp_path, "mnist", [0.9])
    studies.refresh()
    assert "the file was deleted" in studies.summaries[0].trouble
    studies.refresh()
    assert studies.summaries[0].trouble == ""
    assert "90.0%" in studies.summaries[0].sentence


def test_only_run_directories_are_listed(runs, tmp_path):
    assert [path.name for path in find_runs(runs)] == [EVIL, "broken", "mnist"]
    assert find_runs(tmp_path / "nowhere") == []


def test_each_study_has_its_headline_and_a_link_and_errors_hide_no_other(runs):
    with served(overview_application(runs, open_run)) as server:
        status, headers, html = ask(server.server_port, "/")
        assert status == 200
        assert headers["X-Frame-Options"] == "SAMEORIGIN"
        assert '<a href="mnist/">mnist</a>' in html
        assert "Learning rate 0.01: 90.0% in the search" in html
        assert '<a href="broken/' not in html
        assert "2 of 4 trials" in html
        assert '<a href="%3Cb%3Estudy/">&lt;b&gt;study</a>' in html
        assert "cannot be reached" in html
        assert "secret-9" not in html
        assert "<script" not in html
        assert ask(server.server_port, "/", Host="evil.example")[0] == 403


def test_a_live_report_is_below_the_name_of_its_folder(runs):
    app = Overview(runs, open_run)
    with served(app) as server:
        port = server.server_port
        page = ask(port, "/mnist/")[2]
        assert "<h1>toy</h1>" in page
        assert '<a href="../">all studies</a>' in page
        assert ask(port, "/mnist/changes?since=")[0] == 200
        assert ask(port, "/%3Cb%3Estudy/")[0] == 200
        for missing in ("/other/", "/mnist", "/mnist/dashboard", "/broken/"):
            assert ask(port, missing)[0] == 404
        headers = {"X_Report_Token": app.reports["mnist"].token}
        assert ask(port, "/mnist/pause", "POST", **headers)[0] == 200
        assert read_control(app.reports["mnist"].stored) == "pause"
        assert read_control(app.reports[EVIL].stored) is None
        assert ask(port, "/%3Cb%3Estudy/pause", "POST", **headers)[0] == 403, "each has its token"


def test_a_new_study_appears(runs, monkeypatch):
    monkeypatch.setattr(overview, "INTERVAL", 0)
    with served(overview_application(runs, open_run)) as server:
        assert "3 studies" in ask(server.server_port, "/")[2]
        add_run(runs, "later", [0.6])
        assert "4 studies" in ask(server.server_port, "/")[2]


@pytest.mark.browser
def test_the_list_leads_to_a_report_and_back(browser, runs):
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    seen = []
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("console", lambda m: m.type in ("error", "warning") and seen.append(m.text))
    with served(overview_application(runs, open_run)) as server:
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.get_by_role("link", name="mnist").click()
        page.get_by_role("heading", name="toy").wait_for()
        page.get_by_text("live, ").wait_for()
        page.get_by_role("link", name="all studies").click()
        page.get_by_text("3 studies").wait_for()
    assert seen == []
    context.close()
