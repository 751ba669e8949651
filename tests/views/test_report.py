import csv
import html
import json
import re
from copy import deepcopy
from datetime import timedelta

import pytest
from commands import CANARY
from made_trials import a_trial, branching
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image
from results import document_of, result_of
from toys import fill, two_sided

from studyloom.errors import UndrawnReport
from studyloom.metrics import ObjectiveValue
from studyloom.storage.attributes import BASELINE, FAILURE, HALTED, PROPOSED, REASON, TRACEBACK
from studyloom.storage.opening import create_study
from studyloom.storage.stored_study import StoredStudy, rank_by_value
from studyloom.views import page as pages
from studyloom.views import parameter_sections, sampled_study, trials_section
from studyloom.views.importances import compute_importances
from studyloom.views.report import read_report, write_report
from studyloom.views.sampled_study import sample_trials
from studyloom.views.snapshot import take_snapshot
from studyloom.views.words import explain_decision, make_winner_fact

IMAGE = "<img src=x onerror=alert(1)>"
SCRIPT = "</script><script>alert(2)</script>"
COMMENT = "<!--<script>"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAA"
    "DUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def row(trial, *values, **more):
    return {"trial": trial, "values": values, "mean": sum(values) / len(values), **more}


WON = row(4, 0.96, params={"lr": 0.1}, search_value=0.97, std=0.001, selection_gap=0.0056)
WINNER = {
    "study": "toy",
    "trials": 8,
    "winner": WON,
    "candidates": [row(0, 0.9, params={}, baseline=True, search_value=0.9, std=0.002), WON],
    "test": {
        "examples": 1000,
        "winner": {"values": [0.96, 0.97], "mean": 0.9612, "std": 0.0034, "interval": [0.95, 0.97]},
        "baseline": {"values": [0.9, 0.91], "mean": 0.9012, "std": 0.0045, "interval": [0.8, 0.92]},
        "difference": {"mean": 0.06, "interval": [0.0456, 0.0789]},
    },
    "confusion": [[98, 2], [0, 100]],
    "wrong": [{"index": 115, "label": 4, "predicted": 9, "confidence": 0.9987, "image": PIXEL}],
    "environment": {"python": "3.11.2", "torch": "2.13.0", "device": "cpu", "commit": "c0ffee"},
    "data": {"digest": "sha"},
    "seeds": [1, 2],
}


def render(stored, winner, text):
    """The page of a study with a result, or without one."""
    whole = read_report(stored, winner and result_of(**winner), text)
    return pages.render_report(whole.head, whole.sections)


def text_of(page):
    """What a page says, without its tags, scripts and styles."""
    page = re.sub(r"</?a\b[^>]*>", "", page)
    bare = re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(bare).split())


def test_a_report_has_every_trial_and_a_table_for_each_figure(searched):
    page = render(searched, WINNER, "")
    rows = re.findall(r'<tr id="trial-(\d+)" data-state="(\w+)"[^>]*>(.*?)</tr>', page, re.DOTALL)
    assert sorted(int(number) for number, *_ in rows) == [*range(40)]
    assert {state for _, state, _ in rows} == {"complete", "pruned", "failed", "interrupted"}
    cells = {int(number): text for number, _, text in rows}
    assert "complete, <b>best</b>" in cells[37]
    assert re.search(r"<td[^>]*>cnn</td>", cells[1])
    figures = re.findall(r'class="plot"[^>]* aria-label="Figure: ', page)
    assert len(figures) == page.count('class="plot"') == page.count('class="behind"') > 0


def test_a_reason_names_the_best_mean_only_if_no_other_is_better(searched):
    for won, others, reason in (
        (row(4, 0.9, 0.9), [row(0, 0.8, 0.8), {"trial": 1}], "since it had the best mean on 2"),
        (row(4, 0.9, 0.9), [row(0, 0.95, 0.95), row(1, 0.8, 0.8)], "by min image, on 2 new seeds"),
    ):
        result = {"winner": won, "candidates": [won, *others], "rule": "min image", "test": None}
        text = " ".join(explain_decision(result_of(**WINNER | result), 40, searched.sign))
        assert reason in text


def test_the_first_screen_has_the_sentence_four_facts_and_a_figure(searched):
    alone = WINNER | {"test": WINNER["test"] | {"baseline": None, "difference": None}}
    spread = "trial 4; ± standard deviation of 2 seeds;"
    first = alone | {"winner": WON | {"baseline": True}}
    for winner, facts in (
        (WINNER, ("0.9612 ± 0.0034", f"{spread} difference to the baseline +0.0600, 95% interval")),
        (alone, ("0.9612 ± 0.0034", f"{spread} no baseline to compare with")),
        (first, ("0.9612 ± 0.0034", f"{spread} the baseline")),
        (WINNER | {"test": None, "untested": "no"}, ("0.9600", "trial 4; 1 new seed, untested")),
        (None, ("–", "not yet: ")),
    ):
        result = winner and result_of(**winner)
        whole = read_report(searched, result)
        head = whole.head
        sections = whole.sections
        assert len(head.facts) == 4
        tried, best, winner_fact, took = head.facts
        assert tried.value == "39 of 40", "one runs"
        assert tried.explanation.startswith("4 hyperparameters; 24 complete, 8 pruned, 7 failed")
        assert best.value == "0.9370"
        assert best.explanation == (
            "trial 37; the baseline (trial 0, the first enqueued) has 0.9000"
        )
        assert winner_fact.value == facts[0]
        assert winner_fact.explanation.startswith(facts[1])
        assert (took.label, took.value) == ("Took", "7 min 8 s")
        first, details, *_ = sections
        assert (first.key, details.key) == ("search", "details")
        rows = dict(next(block.items for block in details.blocks if isinstance(block, pages.Facts)))
        assert rows["values"] == "accuracy, more is better"
        assert ("selection gap" in rows) == bool(winner)
        if winner:
            assert rows["data"].endswith("SHA-256 sha…")


def test_a_share_of_0_percent_has_no_bar():
    shares = pages.Bars([("lr", 0.996), ("width", 0.004)])
    section = pages.Section("importances", "Importances", [shares])
    page = pages.render_report(pages.Head("toy", "A sentence.", []), [section])
    bars = re.findall(r'<div class="bar">(?:<i style="width:([^"]*)%"></i>)?</div>', page)
    assert bars == ["99.6", ""]


def test_a_winner_without_randomness_has_the_same_value_with_each_seed():
    same = row(4, 0.9, 0.9, 0.9)
    fact = make_winner_fact(result_of(**WINNER | {"winner": same, "test": None}))
    assert fact.explanation == "trial 4; the same with each of 3 new seeds, untested"


def first_chart(stored, winner=None):
    """The figure at the top of a report."""
    sections = read_report(stored, winner).sections
    return next(sections).blocks[0]


def test_a_loss_axis_is_logarithmic_if_pruned_trials_differ_by_factors(
    sqlite_url,
):
    least = [ObjectiveValue("distance", "minimize")]
    stored = create_study(sqlite_url, "toy", {"asks": "nothing"}, trials=4, objectives=least)
    fill(stored, a_trial(0, accuracy=0.2), a_trial(1, accuracy=0.5))
    assert first_chart(stored).y.kind == "plain"
    fill(stored, a_trial(2, TrialState.PRUNED, 3.0))
    assert first_chart(stored).y.kind == "tens"


def test_best_trial_and_winner_are_one_ring_with_the_costs(sqlite_url):
    stored = two_sided(sqlite_url, (0.5, 100), (0.75, 90))
    winner_trial = {"trial": 1, "search_value": 0.75, "costs": {"parameters": 90.0}}
    result = result_of(winner=winner_trial)
    rings = [(m.name, m.width) for m in first_chart(stored, result).marks if m.shape == "ring"]
    assert {name for name, _ in rings} == {"winner", "best", "baseline"}
    widths = [width for _, width in rings]
    assert widths == sorted(widths, reverse=True), "a hole in a larger one would hide it"
    head = read_report(stored, result).head
    assert head.facts[2].explanation.startswith("trial 1, parameters 90; ")


def test_trials_without_a_value_draw_a_report(study_of):
    states = (TrialState.WAITING, TrialState.RUNNING, TrialState.PRUNED)
    trials = [create_trial(state=state) for state in states]
    page = render(study_of([*trials, create_trial(value=0.0)]), None, "")
    assert "All trials" in page


def test_a_validation_set_is_not_mentioned_as_some_objectives_have_none(study_of):
    lr = {"params": {"lr": 0.1}, "distributions": {"lr": FloatDistribution(0, 1)}}
    html = render(study_of(create_trial(value=n / 10, **lr) for n in range(3)), None, "")
    assert "validation" not in html
    assert "Best, search" in html


def test_proposers_are_compared_with_the_sampler_and_their_names_are_text(study_of):
    by = {"by": f"anna{IMAGE}", "why": SCRIPT}
    marks = [{BASELINE: True}, {}, {}, {PROPOSED: by}, {PROPOSED: by}, {PROPOSED: {"by": "bo"}}]
    states = [TrialState.COMPLETE] * 5 + [TrialState.FAIL]
    values = (0.95, 0.5, 0.6, 0.7, 0.65, 0.99)
    trials = [
        a_trial(number, state, value, **mark)
        for number, (state, value, mark) in enumerate(zip(states, values, marks, strict=True))
    ]
    assert "Proposals" not in render(study_of(trials[:3], name="alone"), None, "")
    stored = study_of(trials)
    rows = [row(2, 0.61, search_value=0.6), row(3, 0.58, 0.6, search_value=0.7), row(4, 0.6)]
    for winner, fresh in (
        (None, ("–", "–")),
        (WINNER | {"candidates": rows}, ("0.6100", "0.6000")),
    ):
        page = render(stored, winner, "")
        assert IMAGE not in page
        text = text_of(page)
        assert f"sampler 2 0.6000 +0.0000 {fresh[0]}" in text
        assert f"proposed by anna{IMAGE} 2 0.7000 +0.1000 {fresh[1]}" in text
        assert "proposed by bo 1 – – –" in text


def test_failures_are_listed_by_kind_with_their_messages(study_of):
    attrs = {FAILURE: "error", REASON: "ValueError: one", TRACEBACK: "line 1\nline 2"}
    trials = [a_trial(number, TrialState.FAIL, params={}, **attrs) for number in range(2)]
    trials += [
        a_trial(n, TrialState.PRUNED, **{FAILURE: "diverged", REASON: "loss is nan"})
        for n in range(2, 5)
    ]
    trials.append(create_trial(state=TrialState.FAIL))
    stored = study_of(trials)
    stored.optuna.set_user_attr(HALTED, "ValueError: one")
    text = text_of(render(stored, None, ""))
    for message in (
        "diverged 3 × loss is nan trial 2, 3, 4 error 2 × ValueError: one trial 0, 1",
        "unexplained 1 × no reason is stored",
        "line 1 line 2",
        "The study stopped itself, since 2 of 6 trials failed alike. Searched:",
        "1e-4 to 1 ValueError: one Trials 6 of 40",
        "Winner – none, since the study stopped itself",
    ):
        assert message in text


def test_the_first_screen_of_a_failed_study_says_how_to_repair_it(study_of, tmp_path):
    trials = []
    for number in range(3):  # the numbers of the errors depend on the hyperparameters
        attrs = {
            FAILURE: "error",
            REASON: f"ValueError: width {number}",
            TRACEBACK: f"line {number}",
        }
        trials.append(a_trial(number, TrialState.FAIL, **attrs))
    stored = study_of(trials)
    stored.optuna.set_user_attr(HALTED, "ValueError: width 0")
    page = write_report(stored, tmp_path / "a run", tmp_path).read_text()
    head, _, rest = page.partition('<section id="failures"')
    assert "The study stopped itself, since 3 of 3 trials failed alike." in head
    assert f"<code>studyloom redo &#39;{tmp_path}/a run&#39; --failed</code>" in head
    assert re.findall("<details( open)?><summary>traceback", rest) == [" open", "", ""]
    assert "no trial is complete;" not in head
    assert ">no trial is complete<" in head, "without the word yet, since no trial follows"


def test_two_objectives_have_a_front_and_importances_for_each(sqlite_url):
    values = ((0.5 + number % 7 / 20, 100.0 + 50 * (number % 7)) for number in range(14))
    page = render(two_sided(sqlite_url, *values, None), None, "")
    assert "What matters for accuracy" in page
    assert "What matters for parameters" in page
    rows = re.findall(r'<tr><td class="number">([^<]*)</td><td class="number">([^<]*)</td>', page)
    assert ("0.8000", "400") in rows
    legends = re.findall(r'<li class="c-[\w-]+"><i[^>]*></i>([^<]*)</li>', page)
    assert {"front: not beaten in both", "baseline", "best"} <= {*legends}


def test_a_large_study_is_sampled_at_even_distances_with_notable_trials(
    study_of, monkeypatch, tmp_path
):
    """Values fall, but for one that is the best of all."""
    values = {number: 1 - number / 40 for number in range(40)} | {27: 2.0}
    stored = study_of([a_trial(number, accuracy=value) for number, value in values.items()])
    assert sample_trials(stored, take_snapshot(stored), None) is None
    monkeypatch.setattr(sampled_study, "MOST_TRIALS", 10)
    monkeypatch.setattr(sampled_study, "MOST_RANKED", 3)
    sampled = sample_trials(stored, take_snapshot(stored), 35)
    numbers = [trial.number for trial in sampled.trials()]
    # Every fourth; the three best, of which 0 was the best before 27; and the winner.
    assert numbers == sorted({*range(0, 40, 4), 27, 0, 1, 35})
    assert sampled.note.startswith(f"{len(numbers)} of 40 trials are shown")
    assert next(trial.number for trial in sampled.ranked()) == 27
    page = write_report(stored, tmp_path).read_text()
    assert "of 40 trials are shown: 10 at even distances" in page
    assert "40 complete" in page


def test_only_the_most_important_of_many_hyperparameters_are_shown(study_of, monkeypatch):
    monkeypatch.setattr(trials_section, "MOST_COLUMNS", 2)
    monkeypatch.setattr(parameter_sections, "MOST_SLICES", 3)
    space = {f"p{n}": FloatDistribution(0.0, 1.0) for n in range(6)}
    at = [{f"p{n}": (7 * number + 3 * n) % 10 / 10 for n in range(6)} for number in range(24)]
    stored = study_of(
        create_trial(value=params["p1"] + params["p4"] / 3, params=params, distributions=space)
        for params in at
    )
    page = render(stored, None, "")
    note = "Of 6 hyperparameters the 2 most important are shown; studyloom trials --csv has all."
    assert note in text_of(page)
    assert [name for name in heads(page) if name in space] == [*compute_importances(stored).shares][
        :2
    ]


def heads(page):
    """The titles of the columns of the table of trials."""
    head = re.search(r'<table id="all-trials">.*?</thead>', page, re.DOTALL)[0]
    return re.findall(r"<th[^>]*>([^<]*)</th>", head)


def test_the_table_begins_with_important_hyperparameters_in_short_names(study_of):
    unit, group = FloatDistribution(0.0, 1.0), CategoricalDistribution(["sgd", "adamw"])

    def settings(number):
        kind = ["sgd", "adamw"][number % 2]
        return {
            "optimizer": (kind, group),
            f"optimizer.{kind}.lr": (number / 40, unit),
            "optimizer.adamw.weight_decay": (number * 7 % 40 / 40, unit),
            "train.epochs": (number * 3 % 4, IntDistribution(0, 4)),
        }

    trials = [a_trial(n, accuracy=n * 7 % 40 / 40, params=settings(n)) for n in range(40)]
    stored = study_of(trials)
    page = render(stored, None, "")
    shares = compute_importances(stored).shares
    assert next(iter(shares)) == "optimizer.adamw.weight_decay"
    short = {
        "optimizer": "optimizer",
        "optimizer.sgd.lr": "sgd.lr",
        "optimizer.adamw.lr": "adamw.lr",
        "optimizer.adamw.weight_decay": "weight_decay",
        "train.epochs": "train.epochs",
    }
    first = ["trial", "state", "accuracy", "epochs"]
    assert heads(page) == [*first, *(short[name] for name in shares), "time"]
    assert 'title="optimizer.adamw.weight_decay">weight_decay</th>' in page


def test_a_figure_that_cannot_be_drawn_is_a_line_in_the_report(study_of, monkeypatch, tmp_path):
    huge = [
        a_trial(n, accuracy=(-1) ** n * 1.7e308, epochs=0, params=branching(n)) for n in range(30)
    ]
    monkeypatch.setattr(StoredStudy, "objectives", (ObjectiveValue("score", "maximize"),))
    text = text_of(render(study := study_of(huge), None, ""))
    assert "It cannot be drawn: OverflowError" in text
    assert "Hyperparameter importance" in text
    assert "All trials" in text
    monkeypatch.setattr("studyloom.views.words.make_trials_fact", lambda *_: 1 / 0)
    with pytest.raises(UndrawnReport, match=r"report\.html is not written: .* ZeroDivisionError"):
        write_report(study, tmp_path)
    assert UndrawnReport.exit_code == 0


def test_only_embedded_images_are_shown(study_of):
    stored = study_of()
    for image, count in (
        (PIXEL, 2),
        ("https://example.org/x.png", 0),
        ("javascript:alert(1)", 0),
        ("data:image/svg+xml;base64,AAAA", 0),
        (f"{PIXEL}\n", 0),
    ):
        wrong = WINNER["wrong"][0] | {"image": image}
        misled = {"index": 3, "label": 4, "predicted": 9, "image": image, "largest_loss": 0.4}
        explained = {"wrong": [wrong], "explanations": {"occlusions": [misled]}}
        page = render(stored, WINNER | explained, "")
        assert page.count("<img ") == page.count(f'src="{PIXEL}"') == count, image


def test_report_rewrites_the_report_of_a_folder_without_passwords(study_of, tmp_path):
    url = f"postgresql://me:{CANARY}@host/db"
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(f"storage:\n  url: {url}\nöl: 1\n")
    (tmp_path / "best.yaml").write_text("model: <best>\n")
    (tmp_path / "winner.json").write_text(json.dumps(document_of(**WINNER)))
    attrs = {FAILURE: "error", REASON: f"no answer from {url}", TRACEBACK: url}
    stored = study_of([a_trial(0, TrialState.FAIL, **attrs)])
    stored.optuna.set_user_attr(HALTED, url)
    before = {*tmp_path.iterdir()}
    for _ in range(2):
        page = write_report(stored, tmp_path).read_text()
    assert {*tmp_path.iterdir()} - before == {tmp_path / "report.html"}
    line = "# best.yaml model: <best> # .hydra/config.yaml storage: url: postgresql://me:***@host"
    assert f"{line}/db öl: 1" in text_of(page)
    assert CANARY not in page


def nasty(study_of):
    choices = CategoricalDistribution([IMAGE, SCRIPT, "c"])
    trials = []
    for number in range(8):
        params = {
            IMAGE: (choices.choices[number % 3], choices),
            SCRIPT: (number / 10, FloatDistribution(0.0, 1.0)),
            COMMENT: (0.1 + number, FloatDistribution(0.1, 100.0, log=True)),
        }
        worker = (IMAGE, SCRIPT)[number % 2]
        trials.append(a_trial(number, accuracy=0.8 + number / 100, params=params, worker=worker))
    attrs = {FAILURE: IMAGE, REASON: SCRIPT, TRACEBACK: COMMENT}
    trials.append(a_trial(8, TrialState.FAIL, worker=COMMENT, **attrs))
    winner = deepcopy(WINNER)
    winner["candidates"][0] |= {"params": {IMAGE: IMAGE}}
    winner["environment"] |= {IMAGE: SCRIPT}
    stored = study_of(trials, name=IMAGE)
    stored.optuna.set_user_attr(HALTED, IMAGE)
    return render(stored, winner, f"{IMAGE}\n{SCRIPT}")


# In a browser.


@pytest.fixture
def open_page(browser, tmp_path):
    """Returns a function that opens a page.

    At the end of the test no page may have logged anything, sent a request, or shown a dialog.
    """
    seen, contexts, path = [], [], tmp_path / "page.html"

    def note(kind):
        return lambda said: seen.append(f"{kind}: {getattr(said, 'url', said)}")

    def open_(text, width=1200):
        path.write_text(text)
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: seen.append(f"{message.type}: {message.text}"))
        page.on("pageerror", note("error"))
        page.on("dialog", lambda dialog: (seen.append(dialog.message), dialog.dismiss()))
        page.on("request", note("request"))
        page.goto(path.as_uri())
        return page

    open_.seen = seen
    yield open_
    for context in contexts:
        context.close()
    own = ("request: data:", f"request: {path.as_uri()}")
    assert [line for line in seen if not line.startswith(own)] == []


@pytest.mark.browser
def test_a_browser_draws_figures_reads_points_and_requests_nothing(searched, open_page):
    page = open_page(render(searched, WINNER, "a: 1"))
    assert page.locator(".plot").count() == 9
    drawn = page.evaluate(
        "[...document.querySelectorAll('.plot path')].map((p) => p.getTotalLength())"
    )
    assert len(drawn) > 40
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    plot = page.locator("#search .plot")
    plot.focus()
    page.keyboard.press("Home")
    first = page.locator(".tip").inner_text()
    for words in ("trial 0: complete, baseline", "accuracy 0.9000", "model mlp"):
        assert words in first
    assert first.count("accuracy") == 1, "the table's value is that of the axis"
    for key, said in (
        ("End", "test\naccuracy 0.9612"),
        ("ArrowLeft", "re-evaluation\naccuracy 0.96"),
        ("ArrowLeft", "trial 39: interrupted"),
    ):
        page.keyboard.press(key)
        assert page.locator(".tip").inner_text().startswith(said)
    page.keyboard.press("Escape")
    assert page.locator(".tip").count() == 0
    box = plot.bounding_box()
    path = page.locator("#search path.c-complete").get_attribute("d")
    x, y = map(float, re.match(r"M([\d.]+) ([\d.]+)", path).groups())
    page.mouse.move(box["x"] + x * box["width"] / 1000 + 2, box["y"] + y * box["height"] / 1000)
    assert page.locator(".tip").inner_text() == first


@pytest.mark.browser
def test_the_history_is_by_time_and_on_another_axis_on_request(study_of, open_page, tmp_path):
    """Places are those of the values and times; each rectangle selects as before."""
    values = (0.5, 0.9, 0.95, 0.99)
    trials = [a_trial(number, accuracy=value) for number, value in enumerate(values)]
    trials[3].datetime_start += timedelta(seconds=60)
    trials[3].datetime_complete += timedelta(seconds=60)
    report = write_report(study_of(trials), tmp_path).read_text()
    page = open_page(report)
    plot = page.locator("#search .plot")
    by_time = page.get_by_role("button", name="by time")
    log = page.get_by_role("button", name="log axis")

    def places(axis):
        points = "reading(plot).points.filter((p) => p.trial)"
        return dict(
            plot.evaluate(f"(plot, axis) => {points}.map((p) => [+p.trial, p[axis]])", axis)
        )

    def paths():
        return page.locator("#search path").evaluate_all("(all) => all.map((p) => p.outerHTML)")

    before = paths()
    x = places("x")
    assert x[1] - x[0] == pytest.approx(x[3] - x[2], abs=0.2), "by number"
    by_time.click()
    assert by_time.get_attribute("aria-pressed") == "true"
    times = places("x")
    assert (times[0], times[3]) == pytest.approx((x[0], x[3]), abs=0.2)
    seconds = [(trial.datetime_start - trials[0].datetime_start).seconds for trial in trials]
    share = seconds[1] / seconds[3]
    assert times[1] - times[0] == pytest.approx(share * (x[3] - x[0]), abs=0.2)
    assert page.locator("#search .x-label").last.inner_text().endswith(" s")
    assert page.locator("#search .under").inner_text() == "time since the first trial began"
    assert log.get_attribute("aria-pressed") == "true", "the axis of an accuracy"
    title = page.locator("#search .axis").first
    assert title.inner_text() == "accuracy, more is better, log"
    log.click()
    assert title.inner_text() == "accuracy, more is better"
    y = places("y")
    assert (y[0] - y[1]) / (y[1] - y[3]) == pytest.approx(0.4 / 0.09, abs=0.1), "linear"
    plot.focus()
    page.keyboard.press("End")
    assert page.locator(".tip").inner_text().startswith("trial 3: complete, best\naccuracy 0.99")
    box = plot.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + box["height"] - 5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] - 20)
    page.mouse.up()
    assert page.locator("#matching").inner_text() == "1 of 4 trials"
    page.get_by_role("button", name="show all").click()
    by_time.click()
    log.click()
    assert paths() == before


@pytest.mark.browser
def test_a_phone_scrolls_only_down(searched, open_page):
    for width in (1280, 360):
        page = open_page(render(searched, WINNER, "a" * 500), width=width)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        table = page.locator("#candidates .scroll")
        assert table.evaluate("(box) => box.scrollWidth <= box.clientWidth"), "nor the candidates"
        page.locator("#slices .plot").first.focus()
        page.keyboard.press("End")
        tip = page.locator(".tip").bounding_box()
        assert tip["width"] > 100, "wider than what is left of a small figure"
        assert tip["x"] + tip["width"] <= width


@pytest.mark.browser
def test_the_table_is_sorted_filtered_and_saved_without_formulas(study_of, open_page, tmp_path):
    choices = CategoricalDistribution(["=1+1", '@a,"b"', "-2", "plain"])
    trials = [
        a_trial(
            n, accuracy=0.5 + (n * 3 % 4) / 10, params={"=p": (choices.choices[n % 4], choices)}
        )
        for n in range(8)
    ]
    page = open_page(render(study_of(trials), None, ""))
    visible_rows = "#all-trials tbody tr:not([hidden]) th"
    numbers = f"[...document.querySelectorAll('{visible_rows}')].map((c) => +c.textContent)"
    assert page.evaluate(numbers) == [1, 5, 2, 6, 3, 7, 0, 4], "the best first"
    page.get_by_role("button", name="accuracy", exact=True).click()
    assert page.evaluate(numbers) == [0, 4, 3, 7, 2, 6, 1, 5]
    assert page.locator("#all-trials th[aria-sort=ascending]").inner_text() == "accuracy"
    page.keyboard.press("Enter")  # the button keeps the focus
    assert page.evaluate(numbers) == [1, 5, 2, 6, 3, 7, 0, 4]
    page.locator("#filter").fill("COMPLETE plain")
    assert page.evaluate(numbers) == [3, 7]
    assert page.locator("#count").inner_text() == "2 of 8 trials"
    page.locator("#filter").fill("")
    with page.expect_download() as saved:
        page.locator("#csv").click()
    saved.value.save_as(tmp_path / "trials.csv")
    head, *rows = csv.reader((tmp_path / "trials.csv").read_text().splitlines())
    assert head[:5] == ["trial", "state", "accuracy", "epochs", "'=p"]
    assert {row[4] for row in rows} == {"'=1+1", '\'@a,"b"', "-2", "plain"}
    assert {row[2] for row in rows} == {"0.5", "0.6", "0.7", "0.8"}


@pytest.mark.browser
def test_a_filter_hides_empty_columns_and_knows_whole_names(searched, open_page, tmp_path):
    page = open_page(render(searched, None, ""))
    visible_titles = """[...document.querySelectorAll("#all-trials th[scope=col]")]
        .filter((cell) => cell.offsetWidth).map((cell) => cell.textContent)"""
    everything = page.evaluate(visible_titles)
    assert {"channels", "momentum", "why"} <= {*everything}
    page.locator("#filter").fill("cnn complete")
    assert {*everything} - {*page.evaluate(visible_titles)} == {"momentum", "why"}
    page.locator("#filter").fill("mlp.momentum<0.3")
    assert page.locator("#count").inner_text().startswith("15 of 40")
    assert "channels" not in page.evaluate(visible_titles)
    with page.expect_download() as saved:
        page.locator("#csv").click()
    saved.value.save_as(tmp_path / "trials.csv")
    head, *rows = csv.reader((tmp_path / "trials.csv").read_text().splitlines())
    assert {"mlp.momentum", "cnn.channels"} <= {*head}
    assert len(rows) == 15
    page.locator("#filter").fill("")
    assert page.evaluate(visible_titles) == everything


@pytest.mark.browser
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_first_screen_holds_the_figure_and_is_saved_as_an_image(
    searched, open_page, tmp_path, width, height
):
    page = open_page(render(searched, WINNER, ""), width=width)
    page.set_viewport_size({"width": width, "height": height})
    assert page.locator(".numbers > div").count() == 4
    for selector in (".result", ".numbers", "#search h2", "#search .plot"):
        box = page.locator(selector).bounding_box()
        assert box["y"] + box["height"] <= height, selector
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as image").click()
    saved.value.save_as(tmp_path / "saved.png")
    image = Image.open(tmp_path / "saved.png").convert("L")
    assert image.size == (1200, 630)
    assert image.getextrema()[0] < 64
    assert image.getextrema()[1] == 255


@pytest.mark.browser
def test_a_browser_shows_what_looks_like_html_as_text(study_of, open_page):
    page = open_page(nasty(study_of))
    assert page.locator("h1").inner_text() == IMAGE
    assert page.title() == IMAGE
    assert page.locator("img").count() == 1
    labels = page.evaluate(
        "[...document.querySelectorAll('.plot span, h3')].map((text) => text.textContent)"
    )
    assert {IMAGE, SCRIPT} <= {label for label in labels if "·" not in label}
    assert any(label.startswith(IMAGE) and "idle" in label for label in labels)
    page.locator("#search .plot").focus()
    page.keyboard.press("Home")
    assert SCRIPT in page.locator(".tip").inner_text()


@pytest.mark.browser
def test_the_security_policy_blocks_other_scripts_and_all_requests(study_of, open_page):
    taken = "document.title = 'taken'"
    intruder = f'<img src=x onerror="{taken}"><script>{taken}</script>'
    bare = str(render(study_of(), None, ""))  # a Markup would escape what replaces
    page = open_page(bare.replace("<footer>", f"{intruder}<footer>"))
    assert page.title() == "toy"
    refusals = [line for line in open_page.seen if "Content Security Policy" in line]
    assert len(refusals) >= 2
    open_page.seen.clear()


def test_the_table_has_the_best_trial_first_and_those_without_a_value_last(study_of):
    values = {0: 0.5, 1: 0.7, 2: 0.6}
    trials = [a_trial(number, accuracy=value) for number, value in values.items()]
    trials.append(a_trial(3, TrialState.FAIL))
    stored = study_of(trials)
    for sign, order in ((1, [1, 2, 0, 3]), (-1, [0, 2, 1, 3])):
        assert [trial.number for trial in rank_by_value(stored.trials(), sign)] == order
    page = render(stored, None, "")
    assert re.findall(r'<tr id="trial-(\d+)"', page) == ["1", "2", "0", "3"]
    assert 'aria-sort="descending"' in page


def test_the_navigation_has_six_groups_that_lead_to_every_section(searched):
    page = render(searched, WINNER, "")
    nav = re.search(r"<nav.*?</nav>", page, re.DOTALL)[0]
    groups = re.findall(r'<li><a href="#([\w-]+)">([^<]*)</a>(?=<ul>|</li>\n)', nav)
    titles = [title for _, title in groups]
    assert titles == ["Result", "Search", "Hyperparameters", "Errors", "Trials", "Setup"]
    sections = re.findall(r'<section id="([\w-]+)"', page)
    assert list(dict.fromkeys(re.findall(r'href="#([\w-]+)"', nav))) == sections


def test_each_section_of_a_report_belongs_to_a_group_of_the_navigation():
    parts = {"misled", "words", "calibration", "groups", "columns"}  # of the explanations
    of_comparison = {"found", "winners", "differs", "over-trials", "over-time"}
    groups = {name: entry.get("group") for name, entry in pages.SECTIONS.items()}
    assert {name for name, group in groups.items() if group is None} == parts | of_comparison
    known = {"Result", "Search", "Hyperparameters", "Errors", "Trials", "Setup"}
    assert {*groups.values()} - {None} == known


@pytest.mark.browser
def test_the_navigation_marks_the_present_section_and_opens_by_keyboard(searched, open_page):
    page = open_page(render(searched, WINNER, ""))
    marked = "[...document.querySelectorAll('nav [aria-current]')].map((a) => a.textContent)"
    assert page.evaluate(marked)[0] == "Result"
    page.evaluate("document.getElementById('slices').scrollIntoView()")
    page.wait_for_function(f"{marked}.includes('Slice plot')")
    assert page.evaluate(marked)[0] == "Hyperparameters"
    menu = page.locator("nav li:has(> a[href='#importances']) > ul")
    assert menu.bounding_box()["height"] <= 1
    focused = "document.activeElement.textContent"
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate(focused) == "Slice plot":
            break
    assert page.evaluate(focused) == "Slice plot"
    assert menu.bounding_box()["height"] > 50
    page.keyboard.press("Escape")
    assert menu.bounding_box()["height"] <= 1
