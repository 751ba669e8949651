"""What a study, its winner and its predictions show in a notebook's cell."""

import xml.etree.ElementTree as ET
from pathlib import Path

import torch
from made_trials import a_trial
from optuna.distributions import CategoricalDistribution
from results import document_of, result_of
from test_drawing import HOSTILE, SVG

from studyloom.api import Winner
from studyloom.storage.attributes import BASELINE
from studyloom.storage.trial_tables import Rows
from studyloom.views.notebook import render_study
from studyloom.winner.predictor import Prediction

WON = {
    "trial": 31,
    "params": {"lr": 0.1},
    "search_value": 0.931,
    "mean": 0.9212,
    "std": 0.0034,
    "selection_gap": 0.0098,
}
BASELINE_ROW = {"trial": 0, "search_value": 0.9, "baseline": True, "mean": 0.9012, "std": 0.0045}
BEST_ROW = {"trial": 37, "search_value": 0.937, "mean": 0.911, "std": 0.02}
SEEDS = {"values": (1.0, 2.0, 3.0)}
TEST = {
    "examples": 1000,
    "winner": SEEDS | {"mean": 0.9233, "std": 0.0021},
    "baseline": SEEDS | {"mean": 0.9, "std": 0.0123},
    "difference": {"mean": 0.0233, "interval": [0.01, 0.03]},
}
WINNER = {
    "winner": WON | SEEDS,
    "candidates": [row | SEEDS for row in (WON, BEST_ROW, BASELINE_ROW)],
    "test": TEST,
    "seeds": [1, 2, 3],
}
TAGS = {"body", "p", "b", "a", "table", "tr", "td", "th"}
SHAPES = {"svg", "title", "rect", "g", "path", "circle", "text"}


def parse(shown):
    """The elements of a display, which is well-formed and has no others."""
    body = ET.fromstring(f"<body>{shown}</body>")
    tags = {element.tag for element in body.iter()}
    assert tags <= TAGS | {f"{SVG}{shape}" for shape in SHAPES}
    assert not any(name.startswith("on") for element in body.iter() for name in element.attrib)
    return body


def winner_of(document):
    number, params = document["winner"]["trial"], document["winner"]["params"]
    return Winner(number, 0.5, params, None, None, details=document, run_dir=Path())


def rows_of(body):
    return [
        ["".join(cell.itertext()).replace("\xa0", " ") for cell in row] for row in body.iter("tr")
    ]


def test_a_study_shows_winner_best_and_baseline_with_their_values(searched, tmp_path):
    body = parse(render_study(searched, tmp_path, result_of(**WINNER)))
    head, *rows = [row[:-1] for row in rows_of(body)]
    assert head == ["", "trial", "search", "re-evaluation", "test"]
    assert rows == [
        ["winner", "31", "93.1%", "92.1% ± 0.3", "92.3% ± 0.2"],
        ["best", "37", "93.7%", "91.1% ± 2.0", ""],
        ["baseline", "0", "90.0%", "90.1% ± 0.5", "90.0% ± 1.2"],
    ]
    assert (
        body.find("p/b").text
        == "learning rate 0.1: 92.3% ± 0.2 on 1,000 unseen examples, 2.3 points over the baseline."
    )
    assert [*body.iter("a")] == []


def test_before_a_result_a_study_shows_the_search_and_its_history(searched, study_of):
    body = parse(render_study(searched, None, None))
    assert rows_of(body)[0][:3] == ["", "trial", "search"]
    (figure,) = body.iter(f"{SVG}svg")
    texts = [text.text for text in figure.iter(f"{SVG}text")]
    assert {"accuracy, more is better, log", "trial", "best so far", "baseline"} <= {*texts}


def test_a_study_without_a_value_shows_its_counts(study_of):
    body = parse(render_study(study_of(), None, None))
    assert ["".join(p.itertext()) for p in body.iter("p")] == [
        "No trial is complete yet, after 0 of 40 trials.",
        "toy: 0 of 40 trials – 0 complete, 0 pruned, 0 failed",
    ]


def test_the_report_is_linked_from_the_folder_of_the_notebook(searched, tmp_path, monkeypatch):
    folder = tmp_path / 'it"s & <b>'
    folder.mkdir()
    (folder / "report.html").touch()
    inside = "it%22s%20%26%20%3Cb%3E/report.html"
    for here, address in (
        (tmp_path, inside),
        (folder, "report.html"),
        (tmp_path.parent / "other", f"../{tmp_path.name}/{inside}"),
    ):
        here.mkdir(exist_ok=True)
        monkeypatch.chdir(here)
        (link,) = parse(render_study(searched, folder, None)).iter("a")
        assert link.get("href") == address


def test_a_winner_shows_its_facts_and_hyperparameters():
    assert rows_of(parse(winner_of(document_of(**WINNER))._repr_html_())) == [
        ["trial", "31"],
        ["winner", "accuracy 0.9233 ± 0.0021: 3 seeds, 1,000 examples"],
        ["baseline", "0.9000 ± 0.0123"],
        ["difference", "+0.0233, 95% interval +0.0100 to +0.0300 over seeds only"],
        ["selection gap", "+0.0098: 0.9212 ± 0.0034 on new seeds and validation splits"],
        ["", "± is the standard deviation over 3 seeds"],
        ["hyperparameters", "lr=0.1"],
    ]


LIKELY = torch.tensor([[0.06, 0.5, 0.04, 0.1, 0.2, 0.01, 0.09], [0.9, 0.1, 0, 0, 0, 0, 0]])


def test_a_prediction_shows_five_classes_of_an_input_or_the_class_of_each():
    names = tuple("abcdefg")
    one = Prediction(probabilities=LIKELY[:1], class_names=names, notes=("resized",))
    assert rows_of(parse(one._repr_html_())) == [
        ["class", "probability", "note"],
        *(["b", "0.5000", "resized"], ["e", "0.2000", "resized"], ["d", "0.1000", "resized"]),
        *(["g", "0.0900", "resized"], ["a", "0.0600", "resized"]),
    ]
    assert rows_of(parse(Prediction(probabilities=LIKELY)._repr_html_())) == [
        ["input", "class", "probability"],
        *(["0", "1", "0.5000"], ["1", "0", "0.9000"]),
    ]
    numbers = Prediction(values=torch.arange(46.0).reshape(23, 2))._repr_html_()
    rows, (more,) = rows_of(parse(numbers)), parse(numbers).findall("p")
    assert rows[:2] == [["input", "numbers"], ["0", "0 1"]]
    assert (len(rows), more.text) == (21, "and 3 more")
    assert Prediction(values=torch.zeros(1, 2, 3))._repr_html_() is None


def test_untrusted_text_is_shown_and_never_interpreted(study_of):
    nasty = HOSTILE.replace("\x00", "").replace("\ud800", "")  # which a database does not store
    params = {nasty: (nasty, CategoricalDistribution([nasty]))}
    stored = study_of([a_trial(0, params=params, **{BASELINE: True})], name=nasty)
    result = document_of(winner={"params": {HOSTILE: HOSTILE}}, test=TEST, rule=HOSTILE)
    prediction = Prediction(probabilities=LIKELY, class_names=(HOSTILE,) * 7, notes=(HOSTILE,) * 2)
    for shown in (
        render_study(stored, None, None),
        winner_of(result)._repr_html_(),
        prediction._repr_html_(),
        Rows((HOSTILE,), ((HOSTILE,),))._repr_html_(),
    ):
        texts = " ".join(parse(shown).itertext())
        assert "</text><script>alert(1)</script>" in texts
        assert not {"\x1b", "\u202e", "\x00"} & {*texts}
