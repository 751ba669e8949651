import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from commands import documented
from made_trials import a_trial, forty
from optuna.trial import TrialState
from results import document_of
from toys import fill

from studyloom.cli import main
from studyloom.errors import ConfigError
from studyloom.metrics import ACCURACY, ObjectiveValue
from studyloom.storage.attributes import BASELINE, FORMER_SLOT, TIMES
from studyloom.storage.opening import create_study
from studyloom.storage.stored_study import StoredStudy
from studyloom.views.comparison import (
    best_so_far,
    describe_lead,
    draw_curves,
    find_differences,
    list_winners,
    make_table,
    read_studies,
    render,
)


@dataclass
class Run:
    """A study in its run directory."""

    run_dir: Path
    stored: StoredStudy


def store_run(run_dir, trials, sampler="tpe", objectives=(ACCURACY,), result=None):
    """Stores a study in a folder, as a command leaves it."""
    (run_dir / ".hydra").mkdir(parents=True)
    config = {"sampler": {"_target_": sampler, "seed": 3}, "study": {"name": "toy", "trials": 40}}
    (run_dir / ".hydra" / "config.yaml").write_text(json.dumps(config))
    url = f"sqlite:///{run_dir / 'study.db'}"
    stored = create_study(url, "toy", {"asks": "nothing"}, 40, objectives=objectives)
    fill(stored, *trials)
    if result is not None:
        (run_dir / "winner.json").write_text(json.dumps(document_of(**result)))
    return Run(run_dir, stored)


def values(*accuracies, seconds=2.0):
    times = {TIMES: {"training": seconds, "start-up": 9.0}}
    baseline = {BASELINE: True}
    return [
        a_trial(n, accuracy=value, **times | (baseline if n == 0 else {}))
        for n, value in enumerate(accuracies)
    ]


def read_runs(*runs):
    return read_studies([(run.run_dir, run.stored) for run in runs])


def test_studies_of_one_definition_differ_only_in_their_samplers(tmp_path):
    """Their curves are the best so far over trials, and over the time of workers."""
    first_run = store_run(tmp_path / "a", values(0.5, 0.7, 0.6, 0.8))
    second_run = store_run(tmp_path / "b", values(0.9, seconds=5.0), "random")
    studies = read_runs(first_run, second_run)
    assert [study.label for study in studies] == ["a", "b"], "their names are the same"
    assert find_differences(studies) == {"sampler._target_": ["tpe", "random"]}
    assert "They have the same definition." in render(studies)
    first, _ = studies
    assert best_so_far(first, over_time=False) == [(1, 0.5), (2, 0.7), (4, 0.8), (4, 0.8)]
    assert best_so_far(first, over_time=True) == [(2, 0.5), (4, 0.7), (8, 0.8), (8, 0.8)]
    chart = draw_curves(studies, over_time=True)
    assert chart.names() == ["a", "b"]
    (line,) = next(mark for mark in chart.marks if mark.name == "a").parts
    assert line[0][0] == 2
    heights = [y for _, y in line]
    assert heights == sorted(heights)
    assert len({mark.color for mark in chart.marks}) == 2


def test_a_comparison_says_which_study_leads_and_shows_the_winners(tmp_path):
    first = store_run(tmp_path / "a", values(0.5, 0.8))
    second = store_run(tmp_path / "b", values(0.9), "random")
    studies = read_runs(first, second)
    lead = "b leads: accuracy 0.9000 in the search, 0.1000 better than a"
    assert describe_lead(studies) == f"{lead}. They have the same definition."
    assert f">{lead}" in render(studies)
    assert list_winners(studies) == {"lr": ["0.01", "0.1"]}
    equal = read_runs(first, store_run(tmp_path / "c", values(0.8)))
    assert describe_lead(equal).startswith("a and c are equal: accuracy 0.8000 in the search.")
    empty = read_runs(first, store_run(tmp_path / "d", []))
    assert "a leads: accuracy 0.8000 in the search; the others" in describe_lead(empty)
    tests = []
    for name, value in (("e", 0.7), ("f", 0.6)):
        row = {"params": a_trial(0).params, "search_value": 0.9}
        result = {"winner": row, "test": {"winner": {"mean": value}}}
        tests.append(store_run(tmp_path / name, values(0.9), result=result))
    tested = describe_lead(read_runs(*tests))
    assert tested.startswith("e leads: accuracy 0.7000 on the test set, 0.1000 better than f.")


def test_a_comparison_counts_the_trials_that_have_begun_and_not_ended(tmp_path):
    paused = [a_trial(number, TrialState.RUNNING) for number in range(2, 8)]
    stopped = store_run(tmp_path / "a", [*values(0.5, 0.6), *paused])
    _, *rows = make_table(read_runs(stopped, store_run(tmp_path / "b", values(0.9)))).rows
    cells = {row[0]: row[1:] for row in rows}
    assert cells["trials"] == ("2 of 40", "1 of 40")
    assert cells["begun, not ended"] == ("6", "0")


def test_replaced_and_external_trials_take_no_place_on_the_axis_of_trials(tmp_path):
    run = store_run(tmp_path / "a", values(0.5, 0.6))
    run.stored.optuna.add_trial(a_trial(2, TrialState.FAIL, **{FORMER_SLOT: 2}))
    run.stored.optuna.add_trial(a_trial(3, accuracy=0.9))
    fill(run.stored, *values(0.7, 0.8))
    first, _ = read_runs(run, store_run(tmp_path / "b", values(0.9)))
    steps = [(1, 0.5), (2, 0.6), (3, 0.7), (4, 0.8), (4, 0.8)]
    assert best_so_far(first, over_time=False) == steps


def test_different_metrics_share_no_axis_and_one_study_is_not_compared(tmp_path):
    first = store_run(tmp_path / "a", values(0.5))
    loss = ObjectiveValue("loss", "minimize")
    second = store_run(tmp_path / "b", values(0.5), objectives=(loss,))
    studies = read_runs(first, second)
    assert isinstance(draw_curves(studies, over_time=False), str)
    assert "measure different things" in render(studies)
    same_folder = replace(first, run_dir=first.run_dir / ".." / "a")
    for runs, reason in (
        ([first], "2 to 7 run directories; got 1"),
        ([first] * 8, "2 to 7 run directories; got 8"),
        ([first, same_folder], "named twice"),
    ):
        with pytest.raises(ConfigError, match=reason):
            read_runs(*runs)


def test_compare_prints_the_same_as_json_and_writes_html(tmp_path, capsys):
    trial = a_trial(0)
    row = {"params": trial.params, "search_value": trial.value, "mean": 0.9, "std": 0.01}
    test = {"winner": {"mean": 0.88, "std": 0.02}, "difference": {"mean": 0.1}}
    tested = store_run(tmp_path / "a", values(0.9, 0.8), result={"winner": row, "test": test})
    untested = store_run(tmp_path / "b", [*forty()][:5], "random")
    command = ["compare", str(tested.run_dir), str(untested.run_dir), "--trust-config"]
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    documented(document, "compare")
    first, second = document["studies"]
    assert [first[key] for key in ("best", "test", "difference", "std")] == [0.9, 0.88, 0.1, 0.02]
    assert (first["epochs"], first["worker_seconds"]) == (8, 4.0)
    assert (second["test"], second["pruned"], second["budget"]) == (None, 1, 40)
    assert document["differences"] == {"sampler._target_": ["tpe", "random"]}
    assert main(command) == 0
    assert capsys.readouterr().out.endswith(f"{tested.run_dir / 'compare.html'}\n")
    assert "Differences" in (tested.run_dir / "compare.html").read_text()


def test_a_comparison_replaces_only_an_html_file_of_studyloom(tmp_path, capsys):
    """A mistyped name could be that of the database or of the weights."""
    run_dirs = [store_run(tmp_path / name, values(0.9)).run_dir for name in "ab"]
    before = (run_dirs[0] / "study.db").read_bytes()
    command = ["compare", *map(str, run_dirs), "--trust-config", "--page"]
    for name, reason in (
        ("a/study.db", "another file is there"),
        ("a", "is not a file"),
        ("missing/page.html", "there is no folder"),
    ):
        assert main([*command, str(tmp_path / name)]) == 2
        assert reason in capsys.readouterr().err
    assert (run_dirs[0] / "study.db").read_bytes() == before
    (tmp_path / "link.html").symlink_to(tmp_path / "page.html")
    for name in ("page.html", "page.html", "link.html"):
        assert main([*command, str(tmp_path / name)]) == 0
    assert (tmp_path / "link.html").is_symlink()
