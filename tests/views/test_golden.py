"""Each longer output has one file in `golden/`, so that a change of wording is one diff.

    pytest tests/views/test_golden.py --write-golden     # then: git diff tests/views/golden

Dates, clock times, durations that depend on the machine, folders and the version are replaced by
their names. A report is stored as text, without figures and the tables behind them.
"""

import html
import io
import re
from copy import deepcopy
from pathlib import Path

import pytest
from made_trials import a_trial, forty
from results import result_of
from rich.console import Console
from snapshots import shown
from test_advice import make_tested, narrow_trials
from test_comparison import store_run
from test_report import WINNER
from toys import ask, two_sided

from studyloom.cli import main
from studyloom.views import doctor
from studyloom.views.advice_lines import list_for_end
from studyloom.views.dry_run import print_dry_run
from studyloom.views.headline import make_headline
from studyloom.views.page import render_report
from studyloom.views.progress_reader import ProgressReader
from studyloom.views.report import read_report
from studyloom.views.result_files import write_model_card
from studyloom.views.run_details import describe_winner
from studyloom.views.snapshot import take_snapshot
from studyloom.views.terminal import print_trials, render_status
from studyloom.views.words import explain_decision
from studyloom.winner.assemble_result import EvaluatedWinner

GOLDEN = Path(__file__).parent / "golden"
REPLACED = {
    r"\b\d\d:\d\d(:\d\d)?\b": "CLOCK",
    r"\b(ETA|for|expires in)( \d+ (s|min|h))+": r"\1 TIME",
    r"\nTook\n.*": "\nTook\nTIME",
    r"\b20\d\d-\d\d-\d\d\b": "DATE",
    r"\bstudyloom \d+\.\d+\.\S+": "studyloom VERSION",
}
# Parts of a page that are no text of their own.
DROPPED = re.compile(r"<(script|style|svg|nav)\b.*?</\1>", re.DOTALL)
BEHIND = re.compile(r'<details class="behind".*?</details>', re.DOTALL)
INLINE = re.compile(r"</?(a|b|code|em|i|li|small|span|strong|td|th)\b[^>]*>")
TAG = re.compile(r"<[^>]*>")


@pytest.fixture
def check_golden(request):
    """Returns a function that compares an output with its file, or writes the file."""

    def check(name, output):
        for pattern, replacement in REPLACED.items():
            output = re.sub(pattern, replacement, output)
        output = "\n".join(line.rstrip() for line in output.splitlines()) + "\n"
        path = GOLDEN / name
        if request.config.getoption("write_golden"):
            path.write_text(output)
        assert output == path.read_text()

    return check


def read_texts(page):
    """Returns the texts of an HTML page, each block or table row on a line."""
    page = BEHIND.sub("", DROPPED.sub("", page)).replace("\n", " ")
    page = TAG.sub("\n", INLINE.sub(" ", page))
    lines = [" ".join(line.split()) for line in html.unescape(page).splitlines()]
    return "\n".join(line for line in lines if line)


def render_page(stored, result=None):
    report = read_report(stored, result, "")
    return read_texts(render_report(report.head, report.sections))


def test_the_status_of_a_study_reads_as_stored(half_done, check_golden):
    status = ProgressReader(half_done).status()
    check_golden("status.txt", shown(render_status(status, 80)))


def test_the_status_of_two_objectives_reads_as_stored(sqlite_url, check_golden):
    stored = two_sided(sqlite_url, (0.9, 3000), (0.95, 2000), (0.8, 100), None, (0.79, 101))
    status = ProgressReader(stored).status()
    check_golden("status_two_objectives.txt", shown(render_status(status, 80)))


def test_the_advice_at_the_end_of_a_run_reads_as_stored(study_of, check_golden):
    stored = study_of(narrow_trials())
    advice = list_for_end(stored, take_snapshot(stored), make_tested((0.03, 0.05)))
    check_golden("advice.txt", "\n".join(advice))


def test_the_list_of_trials_reads_as_stored(searched, check_golden):
    console = Console(file=io.StringIO(), width=100)
    print_trials(searched, console)
    check_golden("trials.txt", console.file.getvalue())


def test_the_report_of_a_tested_study_reads_as_stored(searched, check_golden):
    check_golden("report.txt", render_page(searched, result_of(**deepcopy(WINNER))))


def test_the_report_of_an_unfinished_search_reads_as_stored(searched, check_golden):
    check_golden("report_without_result.txt", render_page(searched))


def test_the_report_of_a_study_without_trials_reads_as_stored(study_of, check_golden):
    check_golden("report_without_trials.txt", render_page(study_of()))


def test_the_report_of_two_objectives_reads_as_stored(sqlite_url, check_golden):
    values = ((0.5 + number % 7 / 20, 100.0 + 50 * (number % 7)) for number in range(14))
    stored = two_sided(sqlite_url, *values, None)
    check_golden("report_two_objectives.txt", render_page(stored))


def test_the_model_card_of_a_winner_reads_as_stored(check_golden):
    result = result_of(**deepcopy(WINNER))
    winner = EvaluatedWinner(
        result=result,
        config={},
        simple_config=None,
        weights=b"",
        training_set=None,
        sources={"__main__.train": "def train(params, run):\n    return params['lr']"},
    )
    check_golden("model_card.md", write_model_card(winner, result.test, Path("runs/toy")))


def test_a_dry_run_reads_as_stored(check_golden):
    console = Console(file=io.StringIO(), width=100)
    print_dry_run(ask("study.seed=1"), console)
    check_golden("dry_run.txt", console.file.getvalue())


def test_what_doctor_finds_reads_as_stored(tmp_path, capsys, check_golden):
    """Other checks name what this machine has."""
    doctor.show(f"sqlite:///{tmp_path}/new/study.db")
    doctor.show(f"sqlite:///{tmp_path}/study.db", tmp_path)
    lines = capsys.readouterr().out.replace(str(tmp_path), "FOLDER").splitlines()
    kept = [line for line in lines if {"database", "permission"} & {*line.split()}]
    check_golden("doctor.txt", "\n".join(kept))


def test_a_comparison_reads_as_stored(tmp_path, capsys, check_golden):
    first = store_run(tmp_path / "a", forty(), result=deepcopy(WINNER))
    second = store_run(tmp_path / "b", [a_trial(0, accuracy=0.9)], sampler="random")
    assert main(["compare", str(first.run_dir), str(second.run_dir), "--trust-config"]) == 0
    check_golden("compare.txt", capsys.readouterr().out.replace(str(tmp_path), "FOLDER"))


# The result of a study, in each case that is described in another way.

TEST = WINNER["test"]
BASELINE = {
    "trial": 0,
    "baseline": True,
    "selection_gap": 0.0,
    "mean": 0.9,
    "values": [0.91, 0.89],
    "std": 0.01,
}
BEST = {
    "trial": 1,
    "selection_gap": 0.0,
    "mean": 0.95,
    "values": [0.94, 0.96],
    "search_value": 0.98,
    "std": 0.01,
}
OTHER = {
    "trial": 2,
    "selection_gap": 0.0,
    "mean": 0.96,
    "values": [0.95, 0.97],
    "search_value": 0.97,
    "std": 0.01,
}
UNTESTED = {"winner": OTHER, "candidates": [BASELINE, BEST, OTHER], "seeds": [1, 2]}
FAILED = BASELINE | {"failed_trainings": 1}
COMPARISON = {
    "trial": 2,
    "gain": 0.06,
    "error": 0.01,
    "margin": 0.012,
    "margin_is_set": False,
    "seeds": 2,
}
STOPPED = OTHER | {"search_value": 0.91, "selection_gap": None, "stopped_at_epoch": 3}


def change_test(**keys):
    return WINNER | {"test": TEST | keys}


RESULTS = {
    "tested": WINNER,
    "tested without a baseline": change_test(baseline=None, difference=None),
    "no difference shown": change_test(difference={"mean": 0.001, "interval": [-0.01, 0.012]}),
    "an interval over examples, of two seeds": change_test(intervals_cover="examples"),
    "an interval over seeds and examples": change_test(intervals_cover="seeds and examples"),
    "without validation splits": change_test(examples=None),
    "used before, for the same networks": change_test(tested_before=True),
    "chosen from the first trials": WINNER | {"trials": 8, "study_trials": 20},
    "with earlier trainings": WINNER
    | {"reused_trainings": {"re-evaluation": [20, 20], "final-training": [0, 10]}},
    "not tested": UNTESTED | {"untested": "data.test is missing"},
    "another trial than the best of the search": UNTESTED,
    "better than the baseline": UNTESTED | {"comparison": COMPARISON},
    "better by the margin of the user": UNTESTED
    | {"comparison": COMPARISON | {"margin": 0.05, "margin_is_set": True}},
    "the baseline, within chance": UNTESTED
    | {"winner": BASELINE, "comparison": COMPARISON | {"margin": 0.07}},
    "the baseline, within the margin of the user": UNTESTED
    | {"winner": BASELINE, "comparison": COMPARISON | {"margin": 0.08, "margin_is_set": True}},
    "a trial that the search had stopped": UNTESTED
    | {"winner": STOPPED, "candidates": [BASELINE, BEST, STOPPED]},
    "tested on the networks that it was chosen for": change_test(used_in_selection=True),
    "chosen by a rule": UNTESTED | {"winner": BEST, "rule": "max accuracy where parameters <= 9"},
    "the only candidate": UNTESTED | {"winner": BEST, "candidates": [BEST]},
    "the same value with each seed": UNTESTED
    | {"winner": BEST | {"values": [0.95, 0.95], "std": 0.0}},
    "a baseline that failed on one seed": UNTESTED
    | {"candidates": [FAILED | {"values": [0.9]}, OTHER], "seeds": [1, 2]},
    "a baseline that failed on all seeds": UNTESTED
    | {"candidates": [{"trial": 0, "baseline": True, "failed_trainings": 2}, OTHER]},
}


def test_a_result_reads_as_stored(searched, check_golden):
    parts = []
    snapshot = take_snapshot(searched)
    for case, document in RESULTS.items():
        result = result_of(**deepcopy(document))
        sentence = make_headline(snapshot, result)
        decision = " ".join(explain_decision(result, 40, searched.sign))
        lines = [f"== {case}", "", sentence, "", *describe_winner(result, 1), "", decision, ""]
        parts.append("\n".join(lines))
    check_golden("result.txt", "\n".join(parts))
