import csv
import json
import re
from copy import deepcopy
from html.parser import HTMLParser

import pytest
from answers import answer_of, document_of
from commands import CANARY
from made_trials import MODEL, RATE, a_trial, forty
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from toys import fill, two_sided

from studyloom.metrics import Goal
from studyloom.question.rule import parse_rule
from studyloom.storage.attributes import (
    BASELINE,
    FAILURE,
    HALTED,
    REASON,
    TRACEBACK,
)
from studyloom.study.opening import create_study
from studyloom.text import mask_passwords
from studyloom.views.figures import NO_PARAMETERS
from studyloom.views.page import Absent, Section, environment, section_html
from studyloom.views.report import (
    decided,
    read_parts,
    write_report,
)
from studyloom.views.report import render as render_page

IMAGE = "<img src=x onerror=alert(1)>"
SCRIPT = "</script><script>alert(2)</script>"
COMMENT = "<!--<script>"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAA"
    "DUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
WINNER = {
    "study": "toy",
    "trials": 8,
    "winner": {
        "trial": 4,
        "params": {"lr": 0.1},
        "search_value": 0.97,
        "values": [0.96],
        "mean": 0.965,
        "std": 0.001,
    },
    "candidates": [
        {
            "trial": 0,
            "baseline": True,
            "params": {},
            "search_value": 0.9,
            "values": [0.9],
            "mean": 0.9,
            "std": 0.002,
        },
        {
            "trial": 4,
            "params": {"lr": 0.1},
            "search_value": 0.97,
            "values": [0.96],
            "mean": 0.965,
            "std": 0.001,
        },
    ],
    "test": {
        "examples": 1000,
        "winner": {"values": [0.96, 0.97], "mean": 0.9612, "std": 0.0034, "interval": [0.95, 0.97]},
        "baseline": {
            "values": [0.9, 0.91],
            "mean": 0.9012,
            "std": 0.0045,
            "interval": [0.89, 0.92],
        },
        "difference": {"mean": 0.06, "interval": [0.0456, 0.0789]},
    },
    "confusion": [[98, 2], [0, 100]],
    "wrong": [{"index": 115, "label": 4, "predicted": 9, "confidence": 0.9987, "image": PIXEL}],
    "environment": {"python": "3.11.2", "torch": "2.13.0", "device": "cpu", "commit": "c0ffee"},
    "data": {"digest": "sha"},
    "seeds": [1, 2],
}


def render(stored, winner, text):
    """The page of a study with an answer, or without one."""
    return render_page(stored, winner and answer_of(**winner), None, text)


WINNER["winner"]["gap"] = 0.0056


class Reader(HTMLParser):
    """What a browser would find in a page.

    `elements` holds each tag with its attributes, `words` the text outside of scripts and styles,
    and `scripts` the text of scripts.
    """

    def __init__(self, page):
        super().__init__()
        self.elements, self.words, self.scripts = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        within = self.elements[-1][0] if self.elements else ""
        {"script": self.scripts, "style": []}.get(within, self.words).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def count(self, tag, **attributes):
        return sum(
            all(own.get(key) == value for key, value in attributes.items())
            for name, own in self.elements
            if name == tag
        )


# What is shown, and when.


def test_a_full_study_has_every_plot(study_of):
    page = Reader(render(study_of(forty()), WINNER, "a: 1"))
    slices = 3  # cnn.channels is always 8
    assert page.count("div", **{"class": "plot"}) == 7 + slices
    assert page.count("p", **{"class": "absent"}) == 0
    titles = (
        "All trials",
        "The parts of this study",
        "Search",
        "Learning curves",
        "Over-fitting",
        "Workers",
        "Failures",
        "Candidates",
        "Confusion",
    )
    assert all(title in page.text for title in titles)
    assert all(name in page.text for name in ("model", "lr", "mlp.momentum"))


def test_the_headline_numbers(study_of):
    page = Reader(render(study_of(forty()), WINNER, ""))
    words = (
        "0.9370",
        "0.9000",
        "+0.0370",
        "0.9612 ± 0.0034",
        "0.9012 ± 0.0045",
        "+0.0600",
        "+0.0456 to +0.0789",
    )
    words = (*words, "+0.0056", "trial 4, 2 seeds", "1000 test examples")
    assert [word for word in words if word not in page.text] == []
    assert "24 complete · 8 pruned · 7 failed" in page.text
    assert "Winner: lr=0.1" in page.text
    assert "commit c0ffee" in page.text


def test_a_baseline_that_won_is_not_compared_with_itself(study_of):
    test = WINNER["test"] | {"baseline": None, "difference": None}
    page = Reader(render(study_of(forty()), WINNER | {"test": test}, ""))
    assert "Winner, test 0.9612 ± 0.0034" in page.text
    assert "1000 test examples" in page.text
    assert "Baseline, test" not in page.text
    assert "Difference, test" not in page.text


def row(trial, *values):
    return {"trial": trial, "values": values, "mean": sum(values) / len(values), "params": {}}


@pytest.mark.parametrize(
    ("won", "others", "said"),
    [
        (row(4, 0.9, 0.96), [row(0, 0.8, 0.8)], ["it had the best mean of 2", "best has 0.8000"]),
        (row(4, 0.9, 0.9), [row(0, 0.8, 0.8), row(1, 0.99)], ["best mean of 3", "best has 0.8000"]),
        (
            row(4, 0.9, 0.9),
            [row(0, 0.95, 0.95), row(1, 0.7, 0.7)],
            ["it is the best of 3 candidates by min image, on 2 fresh seeds", "best has 0.7000"],
        ),
        (row(4, 0.9, 0.9), [row(0, 0.95, 0.95)], ["it is the best of 2 candidates by min image"]),
    ],
)
def test_the_winner_had_the_best_mean_only_if_no_other_has_a_better_one(
    study_of, won, others, said
):
    rows = [won, *others]
    answer = WINNER | {"winner": won, "candidates": rows, "rule": "min image", "test": None}
    text = " ".join(decided(study_of(forty()), answer_of(**answer), 40))
    assert all(words in text for words in said)
    assert ("The next best" in text) is any("best has" in words for words in said)


def test_examples_to_validate_are_said_where_no_folds_decide_them(study_of, sqlite_url):
    for folds, said in ((1, True), (5, False)):
        asked = {"data.validation": 800, "objective.folds": folds}
        stored = create_study(sqlite_url, f"of {folds}", asked, trials=1)
        text = Reader(render(stored, None, "")).text
        assert ("800 examples to validate" in text) is said


def test_an_empty_study_says_what_is_not_there_yet(study_of):
    page = Reader(render(study_of(), None, ""))
    assert page.count("div", **{"class": "plot"}) == 0
    for line in (
        "No trial is complete yet.",
        "No trial has begun yet.",
        "No trial has failed.",
        "no winner.json yet",
    ):
        assert line in page.text


def test_a_page_says_that_no_complete_trial_keeps_to_the_rule(study_of):
    stored = study_of(forty())
    stored.state(parse_rule("max accuracy where accuracy >= 2", stored.goals))
    page = Reader(render(stored, None, ""))
    assert "No complete trial keeps to max accuracy where accuracy >= 2." in page.text
    assert "no complete trial keeps to max accuracy where accuracy >= 2" in page.text
    assert "no trial is complete yet" not in page.text.lower()


def test_one_trial_is_drawn_without_its_parameters(study_of):
    page = Reader(render(study_of([a_trial(0, **{BASELINE: True})]), None, ""))
    assert page.count("div", **{"class": "plot"}) == 4  # history, curves, losses, workers
    assert page.text.count(NO_PARAMETERS) == 3


def test_a_study_without_parameters_and_one_with_one(study_of):
    page = Reader(render(study_of([a_trial(number, params={}) for number in range(6)]), None, ""))
    assert page.text.count(NO_PARAMETERS) == 3
    page = Reader(
        render(study_of([a_trial(n, accuracy=0.8 + n / 100) for n in range(6)], "other"), None, "")
    )
    assert page.count("div", **{"class": "plot"}) == 6  # all but two parameters together
    assert "No two parameters" in page.text


def test_failures_only_are_told_by_class_with_their_messages(study_of):
    attrs = {FAILURE: "error", REASON: "ValueError: one", TRACEBACK: "line 1\nline 2"}
    trials = [a_trial(number, TrialState.FAIL, params={}, **attrs) for number in range(2)]
    trials += [
        a_trial(n, TrialState.PRUNED, **{FAILURE: "diverged", REASON: "loss is nan"})
        for n in range(2, 5)
    ]
    trials.append(create_trial(state=TrialState.FAIL))
    stored = study_of(trials)
    stored.optuna.set_user_attr(HALTED, "ValueError: one")
    page = Reader(render(stored, None, ""))
    assert (
        "diverged 3 × loss is nan trial 2, 3, 4 error 2 × ValueError: one trial 0, 1" in page.text
    )
    assert "unexplained 1 × no reason is stored" in page.text
    assert "line 1 line 2" in page.text
    assert "The study has stopped, since its trials fail with this: ValueError: one" in page.text


def test_many_messages_are_cut(study_of):
    trials = [
        a_trial(n, TrialState.FAIL, **{FAILURE: "error", REASON: f"no {n}"}) for n in range(12)
    ]
    assert "and 2 other messages" in Reader(render(study_of(trials), None, "")).text


def test_a_running_study_shows_the_epochs_that_were_reported(study_of):
    page = Reader(render(study_of([a_trial(0, TrialState.RUNNING, epochs=2)]), None, ""))
    assert page.count("div", **{"class": "plot"}) == 2  # curves and workers
    assert "0 running 3 0.8000 0.9000 0.9000" in page.text  # the table behind the curves


def test_trials_that_wait_or_lack_everything_break_nothing(study_of):
    trials = [
        create_trial(state=state)
        for state in (TrialState.WAITING, TrialState.RUNNING, TrialState.PRUNED)
    ]
    trials.append(create_trial(value=0.0))
    Reader(render(study_of(trials), None, ""))


def test_equal_accuracies_and_accuracy_1_are_drawn(study_of):
    page = Reader(
        render(study_of([a_trial(number, accuracy=1.0) for number in range(6)]), None, "")
    )
    assert page.count("div", **{"class": "plot"}) == 6


def test_complete_trials_that_broke_a_constraint_are_drawn(study_of):
    params = [
        {"lr": (0.1 / (n + 1), RATE), "model": (MODEL.choices[n % 2], MODEL)} for n in range(6)
    ]
    trials = [
        a_trial(n, params=params[n], accuracy=0.8 + n / 100, **{FAILURE: "diverged"})
        for n in range(6)
    ]
    page = Reader(render(study_of(trials), None, ""))
    assert page.count("div", **{"class": "plot"}) == 7
    assert "No two trials differ in rank" in page.text  # all of them diverged


def test_many_parameters_and_long_texts_fit(study_of):
    long = CategoricalDistribution(["x" * 300 + "a", "x" * 300 + "b"])
    params = [
        {f"p{i}." + "y" * 100: (long.choices[(n >> i % 3) % 2], long) for i in range(12)}
        for n in range(8)
    ]
    trials = [
        a_trial(n, params=params[n], accuracy=0.8 + n / 100, worker="w" * 200) for n in range(8)
    ]
    page = Reader(render(study_of(trials), None, ""))
    assert page.count("div", **{"class": "plot"}) == 6 + 12


def test_forty_trials_make_less_than_200_kilobytes(study_of, tmp_path):
    path = write_report(study_of(forty()), tmp_path)
    assert path == tmp_path / "report.html"
    assert 50_000 < path.stat().st_size < 200_000


def test_the_answer_comes_first_in_one_sentence_and_then_what_decided_it(study_of):
    page = Reader(render(study_of(forty()), WINNER, ""))
    second = "Trial 4 was chosen from the first 8 of 40 trials"
    assert page.text.index("lr 0.1: 96.1") < page.text.index("it had the best mean of 2 candidates")
    assert "96.1 % ± 0.3 on 1 000 unseen examples, 6.0 points over the baseline." in page.text
    assert page.text.index(second) < page.text.index("took") < page.text.index("Candidates")


def test_a_table_has_every_trial_with_its_parameters(study_of):
    page = render(study_of(forty()), WINNER, "")
    rows = re.findall(r'<tr id="trial-(\d+)" data-state="(\w+)">(.*?)</tr>', page, re.DOTALL)
    assert [int(number) for number, *_ in rows] == [*range(40)]
    assert {state for _, state, _ in rows} == {"complete", "pruned", "failed", "running"}
    assert "complete, <b>winner</b>" not in rows[4][2]  # trial 4 has failed here
    assert "complete, <b>best</b>" in rows[37][2]
    assert "<td>cnn</td>" in rows[1][2]


def test_the_parts_are_listed_in_plain_words(study_of, sqlite_url):
    stored = study_of(forty())
    later = create_study(sqlite_url, "toy/re-evaluation 40-3-5", {"a": 1}, trials=2)
    fill(later, a_trial(0), a_trial(1))
    create_study(sqlite_url, "toy/of another kind", {"a": 2}, trials=2)
    create_study(sqlite_url, "toys/retraining 40-3-5", {"a": 3}, trials=2)
    assert [part.title for part in read_parts(stored)] == [
        "search",
        "re-evaluation",
        "of another kind",
    ]
    text = Reader(render(stored, None, "")).text
    assert "the best, judged again of the first 40 trials, on 5 fresh seeds each 2 of 2" in text
    assert "toy/re-evaluation 40-3-5" in text
    assert "retraining" not in text


def test_each_option_of_a_group_is_counted_and_compared(study_of):
    def of(number):
        option = "ab"[number % 2]
        group = CategoricalDistribution(["a", "b"])
        return a_trial(
            number,
            accuracy=0.8 + number / 100,
            params={
                "model": (option, group),
                f"model.{option}.width": (number, IntDistribution(0, 9)),
            },
        )

    text = Reader(render(study_of(of(number) for number in range(8)), None, "")).text
    assert "model chosen: a by 4, b by 4" in text
    assert "a 4 0.8600 0.8300 b 4 0.8700 0.8400" in text


def test_what_is_drawn_is_also_a_table(study_of):
    page = Reader(render(study_of(forty()), WINNER, ""))
    plots = page.count("div", **{"class": "plot"})
    assert page.count("details", **{"class": "behind"}) == plots
    labels = [own["aria-label"] for tag, own in page.elements if own.get("class") == "plot"]
    assert len(labels) == plots
    assert all(label.startswith("Figure: ") for label in labels)


def test_an_interval_that_covers_0_is_not_called_a_gain(study_of):
    winner = deepcopy(WINNER)
    winner["test"]["difference"] = {"mean": 0.001, "std": 0.004, "interval": [-0.002, 0.004]}
    text = Reader(render(study_of(forty()), winner, "")).text
    assert "0.1 points over the baseline (the 95 % interval includes 0)." in text
    assert "−0.0020 to +0.0040 over seeds alone, shows no difference." in text


# The winner.


@pytest.mark.parametrize(
    "image",
    [
        "https://example.org/x.png",
        "data:image/svg+xml;base64,AAAA",
        f'{PIXEL}" onload="alert(1)',
        f"{PIXEL}\n",
        "",
        None,
    ],
)
def test_only_embedded_pictures_are_shown(study_of, image):
    winner = WINNER | {"wrong": [{**WINNER["wrong"][0], "image": image}]}
    assert Reader(render(study_of(), winner, "")).count("img") == 0
    assert Reader(render(study_of(), WINNER, "")).count("img", src=PIXEL) == 1


@pytest.mark.parametrize("content", [None, "", "{", "[]", "7", '"x"'])
def test_a_winner_json_that_cannot_be_read_is_no_winner(study_of, tmp_path, content):
    if content is not None:
        (tmp_path / "winner.json").write_text(content)
    assert "There is no winner.json yet." in write_report(study_of(), tmp_path).read_text()


# Writing.


def test_the_report_is_written_anew_with_what_lies_in_the_folder(study_of, tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(
        f"storage:\n  url: postgresql://me:{CANARY}@host/db\nöl: 1\n"
    )
    (tmp_path / "best.yaml").write_text("model: <best>\n")
    (tmp_path / "winner.json").write_text(json.dumps(document_of(**WINNER)))
    stored = study_of([a_trial(0)])
    before = {*tmp_path.iterdir()}
    for _ in range(2):
        page = Reader(write_report(stored, tmp_path).read_text())
    assert {*tmp_path.iterdir()} - before == {tmp_path / "report.html"}
    assert (
        "# best.yaml model: <best> # .hydra/config.yaml storage: "
        "url: postgresql://me:***@host/db öl: 1" in page.text
    )
    assert CANARY not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (
            "url: postgresql+psycopg://me:secret@host:1/db",
            "url: postgresql+psycopg://me:***@host:1/db",
        ),
        ("postgresql://me:se@cr:et/@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me@org:secret@host/db", "postgresql://me@org:***@host/db"),
        ("postgresql://:secret@host/db", "postgresql://:***@host/db"),
        ("postgresql://me:sec ret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://host/db?password=secret&x=1", "postgresql://host/db?password=***&x=1"),
        ("host=h password='se cret' user=me", "host=h password=*** user=me"),
        ("PGPASSWORD=secret x", "PGPASSWORD=*** x"),
        ("  password: secret\n  user: me", "  password: ***\n  user: me"),
        ("{'password': 'secret', 'user': 'me'}", "{'password': ***, 'user': 'me'}"),
        (
            "sqlite:////data/runs/study.db, https://example.org:80/x",
            "sqlite:////data/runs/study.db, https://example.org:80/x",
        ),
    ],
)
def test_passwords_are_masked_and_nothing_else(words, shown):
    assert mask_passwords(words) == shown


def test_no_password_is_in_the_page_wherever_it_comes_from(study_of):
    url = f"postgresql://me:{CANARY}@host/db"
    attrs = {FAILURE: "error", REASON: f"no answer from {url}", TRACEBACK: url}
    stored = study_of([a_trial(0, TrialState.FAIL, **attrs)])
    stored.optuna.set_user_attr(HALTED, url)
    assert CANARY not in render(stored, None, url)


# Text is text.


def nasty(study_of):
    choices = CategoricalDistribution([IMAGE, SCRIPT, "c"])
    trials = [
        a_trial(
            number,
            accuracy=0.8 + number / 100,
            worker=(IMAGE, SCRIPT)[number % 2],
            params={
                IMAGE: (choices.choices[number % 3], choices),
                SCRIPT: (number / 10, FloatDistribution(0.0, 1.0)),
                COMMENT: (0.1 + number, FloatDistribution(0.1, 100.0, log=True)),
            },
        )
        for number in range(8)
    ]
    attrs = {FAILURE: IMAGE, REASON: SCRIPT, TRACEBACK: COMMENT}
    trials.append(a_trial(8, TrialState.FAIL, worker=COMMENT, **attrs))
    winner = json.loads(json.dumps(WINNER).replace('"abc"', json.dumps(SCRIPT)))
    winner["candidates"][0] |= {"params": {IMAGE: IMAGE}}
    winner["environment"] |= {IMAGE: SCRIPT}
    stored = study_of(trials, name=IMAGE)
    stored.optuna.set_user_attr(HALTED, IMAGE)
    return render(stored, winner, f"{IMAGE}\n{SCRIPT}")


def test_what_looks_like_html_is_shown_as_text(study_of):
    text = nasty(study_of)
    page = Reader(text)
    assert page.count("img") == page.count("img", src=PIXEL) == 1
    assert not [
        attributes
        for _, attributes in page.elements
        if any(name.startswith("on") for name in attributes)
    ]
    assert page.count("div", **{"class": "plot"}) == 6 + 3
    assert page.count("script") == 1
    for words in (IMAGE, SCRIPT, COMMENT):
        assert words in page.text
    assert "<img src=x" not in text
    assert "alert(2)</script>" not in text


def test_templates_escape_and_mask_whatever_they_are_given():
    made = environment()
    assert made.autoescape is True
    for template in made.list_templates():
        source = made.loader.get_source(made, template)[0]
        assert "|safe" not in source.replace(" ", "")
        assert "autoescape" not in source
    words = f"{IMAGE}{SCRIPT}\x1b[31m postgresql://me:{CANARY}@host/db"
    page = section_html(Section("a", words, [Absent(words)], words))
    assert page.count("&lt;img src=x") == 2
    assert CANARY not in page
    assert "\x1b" not in page


# In a browser.


@pytest.fixture
def open_page(browser, tmp_path):
    """Returns a function that opens a page.

    At the end of the test no page may have logged anything, sent a request, or shown a dialog.
    """
    seen, contexts = [], []

    def open_(text, width=1200, scheme="light"):
        path = tmp_path / "page.html"
        path.write_text(text)
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: seen.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on(
            "dialog", lambda dialog: (seen.append(f"dialog: {dialog.message}"), dialog.dismiss())
        )
        page.on(
            "request",
            lambda request: request.url == path.as_uri() or seen.append(f"request: {request.url}"),
        )
        page.goto(path.as_uri())
        return page

    open_.seen = seen
    yield open_
    for context in contexts:
        context.close()
    assert [line for line in seen if not line.startswith("request: data:")] == []


OVERLAPPING = """() => {
  const bad = [];
  for (const plot of document.querySelectorAll(".plot")) {
    for (const kind of [".x-label", ".y-label"]) {
      const boxes = [...plot.querySelectorAll(kind)]
        .map((e) => e.getBoundingClientRect()).filter((b) => b.width);
      for (const [n, a] of boxes.entries()) for (const b of boxes.slice(n + 1)) {
        if (a.left < b.right && b.left < a.right && a.top < b.bottom - 1 && b.top < a.bottom - 1)
          bad.push(plot.getAttribute("aria-label"));
      }
    }
  }
  return bad;
}"""


# Its parameters, names and settings are as long and as many as they come.
def crowded(study_of):
    long = CategoricalDistribution([f"an.option-of-{letter * 20}" for letter in "abcde"])
    rate = FloatDistribution(1e-6, 1e6, log=True)
    for number in range(30):
        params = {
            "optimizer.adamw.weight_decay_of_all": (10.0 ** (number % 13 - 6), rate),
            "choice": (long.choices[number % 5], long),
            "count": (1 + number * 997, IntDistribution(1, 40000)),
            "small": (0.123456 + number * 1e-6, FloatDistribution(0.0, 1.0)),
        }
        yield a_trial(number, accuracy=0.5 + 0.4999 * number / 30, params=params)


def test_a_browser_draws_all_figures_and_asks_for_nothing(study_of, open_page):
    page = open_page(render(study_of(forty()), WINNER, "a: 1"))
    assert page.locator(".plot").count() == 10
    drawn = page.evaluate(
        "[...document.querySelectorAll('.plot path')].map((p) => p.getTotalLength())"
    )
    assert len(drawn) > 40
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


@pytest.mark.parametrize("full", [True, False], ids=["full", "empty"])
def test_a_phone_scrolls_down_only(study_of, open_page, full):
    page = open_page(
        render(study_of(forty() if full else ()), WINNER if full else None, "a" * 500), width=360
    )
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    wide = page.evaluate(
        "[...document.querySelectorAll('.plot')].filter((p) => p.offsetWidth > 360).length"
    )
    assert wide == (1 if full else 0)  # the parallel axes, which scroll in their own box


@pytest.mark.parametrize("width", [390, 1280])
def test_no_two_labels_overlap(study_of, open_page, width):
    for trials in (forty(), crowded(study_of)):
        stored = study_of(trials, name=f"toy{width}{id(trials)}")
        page = open_page(render(stored, None, ""), width=width)
        assert page.evaluate(OVERLAPPING) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_in_the_dark_page_and_figures_are_dark_and_on_paper_light(study_of, open_page):
    page = open_page(render(study_of(forty()), WINNER, ""), scheme="dark")

    def brightness(selector, what):
        colour = page.locator(selector).first.evaluate(
            f"(element) => getComputedStyle(element).{what}"
        )
        return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 765

    assert brightness("body", "backgroundColor") < 0.2
    assert brightness(".plot .words", "color") > 0.7
    assert brightness(".plot .grid", "stroke") < 0.3
    page.emulate_media(color_scheme="light")
    assert brightness("body", "backgroundColor") == 1
    assert brightness(".plot .words", "color") < 0.3
    page.emulate_media(color_scheme="dark", media="print")
    assert brightness("body", "backgroundColor") == 1
    assert not page.locator(".tools").is_visible()


def test_the_pointer_and_the_keyboard_read_a_point_with_its_parameters(study_of, open_page):
    page = open_page(render(study_of(forty()), WINNER, ""))
    plot = page.locator("#search .plot")
    plot.focus()
    page.keyboard.press("Home")
    first = page.locator(".tip").inner_text()
    assert "trial 0: complete, baseline" in first
    assert "validation accuracy 0.9" in first
    assert "model: mlp" in first
    page.keyboard.press("End")
    assert "trial 39: running" in page.locator(".tip").inner_text()
    page.keyboard.press("Escape")
    assert page.locator(".tip").count() == 0
    box = plot.bounding_box()
    x, y = page.evaluate(
        """() => {
        const path = document.querySelector('#search path.c-complete');
        const [, x, y] = path.getAttribute('d').match(/M([\\d.]+) ([\\d.]+)/);
        return [Number(x), Number(y)]; }"""
    )
    page.mouse.move(box["x"] + x * box["width"] / 1000 + 2, box["y"] + y * box["height"] / 1000)
    assert page.locator(".tip").inner_text() == first


def test_the_table_is_sorted_filtered_and_saved_without_formulas(study_of, open_page, tmp_path):
    choices = CategoricalDistribution(["=1+1", '@a,"b"', "-2", "plain"])
    trials = [
        a_trial(
            n, accuracy=0.5 + (n * 3 % 4) / 10, params={"=p": (choices.choices[n % 4], choices)}
        )
        for n in range(8)
    ]
    page = open_page(render(study_of(trials), None, ""))
    shown = "#all-trials tbody tr:not([hidden]) th"
    numbers = f"[...document.querySelectorAll('{shown}')].map((c) => +c.textContent)"
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
    assert head[:4] == ["trial", "state", "accuracy", "'=p"]
    assert {row[3] for row in rows} == {"'=1+1", '\'@a,"b"', "-2", "plain"}
    assert {row[2] for row in rows} == {"0.5", "0.6", "0.7", "0.8"}


def test_a_browser_shows_what_looks_like_html_as_text(study_of, open_page):
    page = open_page(nasty(study_of))
    assert page.locator("h1").inner_text() == IMAGE
    assert page.title() == IMAGE
    assert page.locator("img").count() == 1
    labels = page.evaluate(
        "[...document.querySelectorAll('.plot span, h3')].map((text) => text.textContent)"
    )
    assert {IMAGE, SCRIPT} <= {label for label in labels if "·" not in label}
    assert any(label.startswith("<img") and "…" in label for label in labels)  # a choice, cut
    assert any(label.startswith(IMAGE) and "idle" in label for label in labels)
    page.locator("#search .plot").focus()
    page.keyboard.press("End")
    assert SCRIPT in page.locator(".tip").inner_text()


def test_the_pages_policy_lets_no_other_script_run_and_no_request_out(study_of, open_page):
    intruder = (
        "<img src=x onerror=\"document.title = 'taken'\"><script>document.title = 'taken'</script>"
    )
    page = open_page(render(study_of(), None, "").replace("<footer>", f"{intruder}<footer>"))
    assert page.title() == "toy"
    refusals = [line for line in open_page.seen if "Content Security Policy" in line]
    assert len(refusals) >= 2
    open_page.seen.clear()


def test_a_page_of_two_objectives_has_the_front_and_what_matters_for_each(sqlite_url):
    stored = two_sided(
        sqlite_url,
        *((0.5 + number % 7 / 20, 100.0 + 50 * (number % 7)) for number in range(30)),
        None,
    )
    page = render(stored, None, "")
    read = Reader(page)
    words = " ".join(" ".join(read.words).split())
    assert "The Pareto front" in words
    assert "The best is chosen by max accuracy where parameters <= 100" in words
    for heading in ("What matters for accuracy", "What matters for parameters", "parameters, best"):
        assert heading in words
    rows = re.findall(r'<tr><td class="number">([^<]*)</td><td class="number">([^<]*)</td>', page)
    assert ("0.8000", "400") in rows
    legends = re.findall(r'<li class="c-[\w-]+"><i[^>]*></i>([^<]*)</li>', page)
    assert {"front", "staircase", "baseline", "best"} <= {*legends}


def test_on_a_page_of_two_objectives_all_is_text(sqlite_url):
    goals = (Goal(IMAGE, "maximize"), Goal(f"{SCRIPT}{COMMENT}", "minimize"))
    stored = create_study(sqlite_url, SCRIPT, {"asks": "nothing"}, 4, goals=goals)
    for number in range(12):
        params = {"a": number % 3, "b": number % 4}
        asked = {"a": IntDistribution(0, 2), "b": IntDistribution(0, 3)}
        fill(stored, create_trial(values=[number, -number % 5], params=params, distributions=asked))
    winner = deepcopy(WINNER)
    for row in (winner["winner"], *winner["candidates"]):
        row["costs"] = {IMAGE: 3.0}
    page = render(stored, winner, "")
    read = Reader(page)
    assert "onerror" not in {name for _, attributes in read.elements for name in attributes}
    assert sum(tag == "script" for tag, _ in read.elements) == page.count("<script")
    assert IMAGE in " ".join(read.words)
    assert "alert(2)" in " ".join(read.words)


def test_a_page_of_two_objectives_stands_while_nothing_is_complete(sqlite_url):
    page = render(two_sided(sqlite_url, None), None, "")
    assert "No trial is complete yet." in page
