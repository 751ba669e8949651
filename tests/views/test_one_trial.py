"""One trial at a glance: what the page holds of it, and the view that its address opens."""

import json
import re
from datetime import timedelta

import pytest
from made_trials import a_trial
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from serving import served
from toys import fill

from studyloom.storage.attributes import (
    BASELINE,
    FAILURE,
    PLANNED_EPOCHS,
    PLANNED_JOBS,
    PROVENANCE,
    REASON,
    RESUMED,
    RUNGS,
    TIMES,
    TRACEBACK,
)
from studyloom.storage.opening import create_study
from studyloom.views import drawn_trials, trial_details
from studyloom.views.dashboard import LivePage, guarded
from studyloom.views.report import write_report
from studyloom.views.trial_details import describe_end, read_logs

HOSTILE = "<img src=x onerror=alert(1)>'\"</script>"
RATE = FloatDistribution(1e-4, 1.0, log=True)


def ended_line(trial, later=0.1):
    moment = trial.datetime_complete + timedelta(seconds=later)
    stamp = moment.strftime("%Y-%m-%d %H:%M:%S,%f")[:-3]
    return f"{stamp} trial {trial.number}: {trial.state.name.lower()}"


def write_log(folder, name, *lines):
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "logs" / name).write_text("".join(f"{line}\n" for line in lines))


def numbered(*trials):
    for number, trial in enumerate(trials):
        trial.number = number
    return [*trials]


def test_the_end_of_a_trial_is_described_with_reason_and_epochs():
    planned = {PLANNED_EPOCHS: 20}
    for trial, sentence in (
        (a_trial(0, epochs=19, **planned), "It is complete, after 20 of 20 epochs."),
        (
            a_trial(0, TrialState.RUNNING, 0.5, 1, **{PLANNED_JOBS: 3}),
            "It runs, and has trained 2 of 3 folds and seeds, at 0.5000.",
        ),
        (a_trial(1, TrialState.PRUNED, 0.5, 2), "It was pruned after 3 epochs, at 0.5000."),
        (
            a_trial(1, TrialState.PRUNED, 0.5, 0, **{RUNGS: [1]}),
            "It was pruned after 1 epoch, at 0.5000: it waited at a rung, and others were "
            "promoted.",
        ),
        (
            a_trial(2, TrialState.FAIL, 0.5, 0, **planned, **{REASON: "ValueError: no"}),
            "It failed after 1 of 20 epochs, at 0.5000: ValueError: no",
        ),
        (a_trial(3, TrialState.RUNNING, 0.5, 0), "It runs, and has trained 1 epoch, at 0.5000."),
        (
            a_trial(4, epochs=0, **{RESUMED: {"epoch": 1, "death": "killed", "claims": 2}}),
            "It is complete, after 1 epoch. Trial 4 resumes after epoch 1, since its worker died: "
            "killed.",
        ),
    ):
        trial.number = int(sentence[sentence.find("Trial ") + 6]) if "Trial " in sentence else 0
        assert describe_end(trial) == sentence


def test_an_infinite_time_is_left_out():
    details = trial_details.collect_details(
        a_trial(0, **{TIMES: {"a": float("inf"), "b": 0.0}}), ""
    )
    json.dumps(details, allow_nan=False)
    assert "times" not in details


def test_a_trial_has_the_last_lines_of_its_logs_up_to_a_limit_for_all(tmp_path, monkeypatch):
    trials = numbered(*(a_trial(n) for n in range(4)), a_trial(4, TrialState.FAIL))
    noise = [f"line {n}" for n in range(60)]
    worker = ["hello", ended_line(trials[0]), ended_line(trials[1]), *noise, ended_line(trials[2])]
    reevaluated = ["of a re-evaluation", ended_line(trials[1], 500)]
    write_log(
        tmp_path,
        "host-1-worker1.log",
        *worker,
        *reevaluated,
        "9999-99-99 99:99:99,999 trial 0: fail",
    )
    write_log(tmp_path, "trial-3.log", "$ python main.py", "x" * 1000)
    write_log(tmp_path, "trial-99.log", "of no trial")
    logs = read_logs(tmp_path, trials)
    assert {*logs} == {0, 2, 3}, "how one ended is known without its log"
    assert logs[0].splitlines() == ["hello", ended_line(trials[0])]
    assert logs[2].splitlines() == [*noise[-39:], ended_line(trials[2])]
    assert len(logs[3].splitlines()[1]) == trial_details.MOST_CHARACTERS
    write_log(tmp_path, "trial-4.log", "why it failed")
    monkeypatch.setattr(trial_details, "MOST_LOGGED", 400)
    assert {*read_logs(tmp_path, trials)} == {4, 3}, "what failed comes first, then the latest"


def test_no_log_is_read_from_outside_the_run_directory(tmp_path):
    outside = tmp_path.parent / "secret.log"
    outside.write_text("a secret\n")
    run_dir = tmp_path / "run"
    (run_dir / "logs").mkdir(parents=True)
    (run_dir / "logs" / "trial-0.log").symlink_to(outside)
    (run_dir / "logs" / "worker1.log").symlink_to(outside)
    assert read_logs(run_dir, [a_trial(0)]) == {}
    (run_dir / "logs" / "trial-0.log").unlink()
    (run_dir / "logs" / "worker1.log").unlink()
    (run_dir / "logs").rmdir()
    (run_dir / "logs").symlink_to(tmp_path.parent)
    (tmp_path.parent / "trial-0.log").write_text("another\n")
    assert read_logs(run_dir, [a_trial(0)]) == {}
    assert read_logs(tmp_path / "nowhere", [a_trial(0)]) == {}


# In a browser.


def settings(number):
    choice = CategoricalDistribution(["plain", HOSTILE])
    return {
        "lr": (10.0 ** -(1 + number % 3), RATE),
        f"p.{HOSTILE}": (["plain", HOSTILE][number % 2], choice),
    }


def study_with_a_log(sqlite_url, tmp_path):
    stored = create_study(sqlite_url, "toy", {"asks": "nothing"}, trials=12)
    times = {TIMES: {"training": 8.0, "storage": 2.0}, PROVENANCE: {"config": {}}}
    trials = [
        a_trial(0, accuracy=0.8, params=settings(0), **times, **{BASELINE: True}),
        *(a_trial(n, accuracy=0.8 + n / 100, params=settings(n), **times) for n in range(1, 8)),
        a_trial(8, TrialState.PRUNED, 0.7, 1, params=settings(8), **times),
        a_trial(
            9,
            TrialState.FAIL,
            0.5,
            1,
            params=settings(9),
            worker=HOSTILE,
            **{FAILURE: "error", REASON: f"ValueError: {HOSTILE}", TRACEBACK: f"line 1\n{HOSTILE}"},
        ),
    ]
    fill(stored, *trials)
    write_log(tmp_path, "trial-9.log", "begins", f"{HOSTILE}\x1b[31m")
    (tmp_path / ".hydra").mkdir(exist_ok=True)
    (tmp_path / ".hydra" / "config.yaml").write_text("a: 1\n")
    return stored


@pytest.fixture
def page(browser):
    """A page that may log nothing, show no dialog and ask for nothing."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page, seen = context.new_page(), []
    page.on("dialog", lambda dialog: (seen.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("console", lambda message: seen.append(message.text))
    page.on("request", lambda r: r.url.startswith("http://127.") or seen.append(r.url))
    page.asked = seen
    yield page
    context.close()
    assert [line for line in seen if not line.startswith(("file:", "data:"))] == []


@pytest.fixture
def opened(page, sqlite_url, tmp_path):
    """The report of a study, with the function that opens it at an address."""
    path = write_report(study_with_a_log(sqlite_url, tmp_path), tmp_path)

    def open_(address=""):
        page.goto("about:blank")
        page.goto(path.as_uri() + address)
        return page

    return open_


def shown(page):
    """The number of the trial in view; None if there is none."""
    if not page.locator("#trial").evaluate("(dialog) => dialog.open"):
        return None
    return int(re.match(r"Trial (\d+):", page.locator("#trial-title").inner_text())[1])


@pytest.mark.browser
def test_the_address_of_a_trial_opens_its_details(opened, tmp_path):
    page = opened("#trial-9")
    assert shown(page) == 9
    assert page.locator("#trial img").count() == 0, "what is stored is text"
    text = page.locator("#trial").inner_text()
    for line in (
        f"It failed after 2 epochs, at 0.5000: ValueError: {HOSTILE}",
        f"line 1\n{HOSTILE}",
        f"begins\n{HOSTILE}\N{SYMBOL FOR ESCAPE}[31m",
        f"worker\t{HOSTILE}",
        "It cannot be replayed",
    ):
        assert line in text
    page = opened("#trial-3")
    text = page.locator("#trial").inner_text()
    assert f"studyloom replay {tmp_path} --trial 3" in text
    assert re.search(r"training\s+8 s\s+80%\s+storage\s+2 s\s+20%", text)
    rows = page.locator("#trial tr.differs th").all_inner_texts()
    assert rows == [f"p.{HOSTILE}"], "what differs from the baseline comes first"
    names = page.locator("#trial table:not(.facts, .bars) tbody th").all_inner_texts()
    assert names == [f"p.{HOSTILE}", "lr"]
    assert page.locator("#trial path.own").count() == 1
    assert shown(opened("#trial-77")) is shown(opened("#trials")) is None


def sort_by_number(page):
    """Sorts the table by the numbers of the trials; the best trial is first otherwise."""
    page.get_by_role("button", name="trial", exact=True).click()


@pytest.mark.browser
def test_keys_and_the_back_button_step_through_trials_and_close_them(opened):
    page = opened()
    sort_by_number(page)
    page.evaluate("scrollTo(0, 500)")
    page.locator("#all-trials a").nth(4).click()
    assert shown(page) == 4
    page.keyboard.press("ArrowRight")
    assert (shown(page), page.url.partition("#")[2]) == (5, "trial-5")
    for _ in range(8):
        page.keyboard.press("Tab")
        behind = (
            "!view.contains(document.activeElement) && document.activeElement !== document.body"
        )
        assert not page.evaluate(behind)
    page.locator("#trial-title").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert shown(page) == 3
    page.go_back()
    assert shown(page) is None
    assert "#" not in page.url
    page.go_forward()
    assert shown(page) == 3
    page.keyboard.press("Escape")
    page.wait_for_url(lambda url: "#" not in url)
    assert shown(page) is None
    page = opened()
    page.locator("#all-trials tbody a").first.click()
    assert page.get_by_label("the trial above").is_disabled()
    page.get_by_label("close").click()
    page.wait_for_url(lambda url: "#" not in url)
    assert shown(page) is None


FIGURES = ("#search", "#curves", "#slices", "#together", "#parallel", "#workers")


@pytest.mark.browser
def test_every_point_line_and_row_leads_to_its_trial(opened):
    page = opened()
    sort_by_number(page)
    page.locator("#all-trials tbody tr").nth(6).locator("td").nth(1).click()
    assert shown(page) == 6
    page.keyboard.press("Escape")
    for figure in FIGURES:
        plot = page.locator(f"{figure} .plot").first
        page.mouse.move(0, 0)  # what scrolls below a pointer is told too
        plot.focus()
        page.keyboard.press("Home")
        number = int(re.match(r"trial (\d+)", page.locator(".tip").inner_text())[1])
        page.keyboard.press("Enter")
        assert shown(page) == number
        page.keyboard.press("Escape")
        spots = plot.evaluate(
            "(plot) => reading(plot).points.filter((p) => p.trial).map((p) => [p.x, p.y, p.trial])"
        )
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        x, y, _ = spots[len(spots) // 2]
        page.mouse.click(box["x"] + x * box["width"] / 1000, box["y"] + y * box["height"] / 1000)
        here = {int(trial) for a, b, trial in spots if abs(a - x) < 1 and abs(b - y) < 1}
        assert shown(page) in here
        page.keyboard.press("Escape")
    # Between two epochs too: a line is more than its points.
    plot = page.locator("#curves .plot")
    plot.scroll_into_view_if_needed()
    middle = plot.evaluate(
        "(plot) => { const [a, b] = reading(plot).points.filter((p) => p.trial === '7');"
        "return [(a.x + b.x) / 2, (a.y + b.y) / 2]; }"
    )
    box = plot.bounding_box()
    x, y = (at * box[size] / 1000 for at, size in zip(middle, ("width", "height"), strict=True))
    page.mouse.click(box["x"] + x, box["y"] + y)
    assert shown(page) == 7
    page.keyboard.press("Escape")
    links = page.locator("a[href^='#trial-']").evaluate_all("(all) => all.map((a) => a.hash)")
    rows = page.locator("tr[id^=trial-]").evaluate_all("(all) => all.map((row) => '#' + row.id)")
    assert {*links} == {*rows}


def visible(page):
    visible_rows = "#all-trials tbody tr:not([hidden]) th"
    return [int(text) for text in page.locator(visible_rows).all_inner_texts()]


def emphasised(page, figure):
    """The trials whose marks stand out in a figure: those of which a chosen copy has a part."""
    return page.evaluate(
        """(figure) => [...document.querySelectorAll(`${figure} [data-trials]`)].flatMap((path) => {
          const next = path.nextElementSibling;
          const kept = next?.matches(".chosen") ? new Set(partsOf(next)) : new Set();
          return partsOf(path).flatMap((part, n) => (kept.has(part) ? [+trialsOf(path)[n]] : []));
        })""",
        figure,
    )


def brush(page, plot, *shares):
    """Draws a rectangle in a figure, from one place over others to the last."""
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    corners = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in shares]
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner)
    page.mouse.up()


@pytest.mark.browser
def test_a_brush_and_the_filter_select_trials_in_table_and_figures(opened):
    page = opened()
    plot = page.locator("#together .plot")
    upright = json.loads(plot.get_attribute("data-y"))["title"] == "lr"
    ends = [(0.01, 0.01), (0.1, 0.5), (0.25, 0.99)]
    if upright:
        ends = [(0.01, 0.75), (0.5, 0.8), (0.99, 0.99)]
    brush(page, plot, *ends)
    assert shown(page) is None, "the end of a rectangle is no click"
    assert sorted(visible(page)) == [2, 5, 8], "the smallest of three rates"
    assert page.locator("#chosen").inner_text().startswith("3 of 10 trials")
    for figure in FIGURES:
        assert {*emphasised(page, figure)} == {2, 5, 8}
    page.locator("#filter").fill("state=complete lr<0.02 accuracy>=0.85")
    assert visible(page) == [5]
    for figure in FIGURES:
        assert {*emphasised(page, figure)} == {5}
    page.get_by_role("button", name="accuracy", exact=True).click()
    page.keyboard.press("Enter")
    page.locator("#filter").fill("")
    assert visible(page) == [5, 2, 8], "sorted down; what has no value comes last"
    page.keyboard.press("Escape")
    assert len(visible(page)) == 10
    assert page.locator("#chosen").is_hidden()
    assert page.locator(".chosen, .brush").count() == 0
    page.locator("#filter").fill("lr>=0.1")
    assert sorted(visible(page)) == [0, 3, 6, 9]
    page.get_by_role("button", name="show all").click()
    assert len(visible(page)) == 10
    brush(page, page.locator("#workers .plot"), (0.995, 0.01), (0.98, 0.5), (0.97, 0.99))
    assert visible(page) == [9], "a rectangle over the end of its bar"


@pytest.mark.browser
def test_a_trial_shows_its_curve_even_if_no_figure_draws_it(page, study_of, tmp_path, monkeypatch):
    monkeypatch.setattr(drawn_trials, "MOST_BEST", 1)
    monkeypatch.setattr(drawn_trials, "MOST_LATEST", 1)
    trials = [a_trial(n, accuracy=0.9 - n / 100) for n in range(4)]
    path = write_report(study_of(trials), tmp_path)
    page.goto(f"{path.as_uri()}#trial-0")
    drawn = page.locator("#trial path.own").get_attribute("d")
    monkeypatch.undo()
    page.goto(f"{write_report(study_of(trials, 'all'), tmp_path).as_uri()}#trial-0")
    page.reload()
    assert page.locator("#trial path.own").get_attribute("d").count("L") == drawn.count("L") == 3


@pytest.mark.browser
def test_an_open_trial_is_updated_with_the_study(page, study_of):
    stored = study_of([a_trial(0), a_trial(1, TrialState.RUNNING, 0.5, 0)])
    live = LivePage(stored, None, lambda *_: [])
    live.interval = 0.05
    with served(guarded(live)) as server:
        page.goto(f"http://127.0.0.1:{server.server_port}/#trial-1")
        assert "It is interrupted" in page.locator("#trial").inner_text()  # it has no worker
        stored.optuna.tell(1, 0.875)
        page.locator("#trial", has_text="It is complete").wait_for()
        assert "0.8750" in page.locator("#trial").inner_text()
        page.goto("about:blank")


@pytest.mark.browser
def test_a_selection_remains_as_the_study_continues(page, study_of):
    trials = [a_trial(n, accuracy=0.5 + n / 20, params=settings(n)) for n in range(6)]
    stored = study_of(trials[:4])
    live = LivePage(stored, None, lambda *_: [])
    live.interval = 0.05
    with served(guarded(live)) as server:
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.locator("#filter").fill("lr<0.002")
        fill(stored, *trials[4:])
        page.locator("#trial-5").wait_for()
        assert visible(page) == [5, 2], "the best first"
        for figure in ("#search", "#curves", "#workers"):
            page.locator(figure).scroll_into_view_if_needed()
            page.locator(f"{figure} [data-trials~='5']").first.wait_for(state="attached")
            assert {*emphasised(page, figure)} == {2, 5}
        page.goto("about:blank")
