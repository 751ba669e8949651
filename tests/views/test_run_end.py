"""The end of a run on a terminal: few lines, the result first."""

import re
from copy import deepcopy
from pathlib import Path

import pytest
from results import result_of
from rich.text import Text
from snapshots import snapshot_of, trial_of
from test_golden import RESULTS

from studyloom.files import ASSETS
from studyloom.views.run_end import MOST_LINES, RunEnd, render_run_end
from studyloom.views.state_colors import STATE_COLORS, color_counts

WIDTH = 80
RUN_DIR = Path("runs/mnist")
HEADLINE = (
    "A CNN with 16 channels, AdamW, learning rate 0.0057: 97.5% ± 0.2 on 1,000 unseen images, "
    "4.2 points over the baseline"
)
ADVICE = (
    "The gain is real: its 95% interval excludes 0.",
    "Most important: learning rate (47%), then model (27%).",
    "19 of 46 trials lie at the upper end of learning rate: widen it.",
)


def end_of(case="tested", **changes):
    document = {"metric": {"name": "value", "direction": "maximize"}, **deepcopy(RESULTS[case])}
    facts = {
        "headline": HEADLINE,
        "snapshot": snapshot_of(best=trial_of(0.98), baseline=trial_of(0.9), complete=5),
        "run_dir": RUN_DIR,
        "result": result_of(**document),
        "seconds": 204.0,
        "has_report": True,
        "next_command": ["python", "-m", "studies.mnist", "study.trials=80"],
    }
    return RunEnd(**{**facts, **changes})


def lines_of(end, width=WIDTH, **options):
    return [line.plain for line in render_run_end(end, width, **options)]


@pytest.mark.parametrize("case", RESULTS)
def test_the_end_has_few_lines_that_fit_with_the_result_first(case):
    notes = [f"error  {count} × such as: RuntimeError: no" for count in range(20)]
    lines = lines_of(end_of(case, notes=notes, advice=ADVICE))
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= WIDTH
    assert " ".join(lines[:2]) == HEADLINE
    assert lines[-1] == "next      python -m studies.mnist study.trials=80"


def test_the_usual_end_has_room_for_three_pieces_of_advice():
    lines = lines_of(end_of(advice=ADVICE))
    assert [line for line in lines if line in ADVICE] == [*ADVICE]
    assert len(lines) <= MOST_LINES


def test_advice_gives_way_to_notes_and_a_sentence_is_never_cut():
    notes = ["error  3 × such as: RuntimeError: no"]
    long_advice = "word " * 60
    lines = lines_of(end_of(notes=notes, advice=[*ADVICE, long_advice]))
    assert notes[0] in lines
    assert not any("word" in line for line in lines)


def test_a_trial_of_two_roles_has_one_row_and_no_empty_column():
    best = trial_of(0.98)
    end = end_of(result=None, snapshot=snapshot_of(best=best, baseline=best, complete=1))
    lines = lines_of(end)
    assert "value           trial  search" in lines
    assert "best, baseline     -1  0.9800" in lines  # the number of a trial made for a test


def test_a_cell_has_no_table_and_no_command_of_a_terminal():
    lines = lines_of(end_of(), in_notebook=True)
    assert f"report    {RUN_DIR}/report.html" in lines
    assert not any("studyloom status" in line or "re-evaluation" in line for line in lines)


def test_a_long_command_can_be_copied():
    command = ["python", "-m", "studies.mnist", *(f"key{n}='a b'" for n in range(9))]
    lines = lines_of(end_of(next_command=command))
    first = next(n for n, line in enumerate(lines) if line.startswith("next "))
    assert all(line.endswith(" \\") for line in lines[first:-1])
    assert not lines[-1].endswith("\\")


def test_states_have_the_colors_of_the_page():
    style = (ASSETS / "report" / "page.css").read_text()
    (light, _) = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    page = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light))
    page["interrupted"] = page["running"]
    assert {state: page[state] for state in STATE_COLORS} == STATE_COLORS


def test_only_counts_above_zero_are_colored():
    text = color_counts(Text("toy: 4 of 8 trials – 6 complete, 1,034 pruned, 0 failed"))
    colored = {text.plain[span.start : span.end]: span.style for span in text.spans}
    assert colored == {
        "6 complete": STATE_COLORS["complete"],
        "1,034 pruned": STATE_COLORS["pruned"],
    }


def test_a_study_that_stopped_itself_shows_one_traceback():
    traceback = "\n".join([*(f"line {n}" for n in range(9)), "RuntimeError: no"])
    headline = "The study stopped itself, since 5 of 6 trials failed alike: RuntimeError: no"
    end = end_of(
        result=None, headline=headline, is_halted=True, traceback=traceback, next_command=()
    )
    lines = lines_of(end)
    assert lines[0] == headline
    assert lines[-2] == "RuntimeError: no"
    assert len(lines) == MOST_LINES
