import io
import json
import math
import re
import subprocess
import time
from dataclasses import replace

import optuna
import pytest
from commands import documented
from optuna.trial import TrialState
from rich.console import Console
from snapshots import joined, snapshot_of, trial_of
from toys import begin, two_sided

from studyloom.cli import main
from studyloom.errors import StorageLost
from studyloom.processes import worker_id
from studyloom.storage.attributes import HALTED, PAUSED, PROPOSED
from studyloom.views.headline import make_headline
from studyloom.views.importances import Importances
from studyloom.views.live_display import watch, watch_json
from studyloom.views.progress import Progress, StageProgress
from studyloom.views.progress_reader import ProgressReader
from studyloom.views.report import write_report
from studyloom.views.snapshot import WorkerStatus
from studyloom.views.status import Status
from studyloom.views.terminal import print_trials, render_status
from studyloom.views.words import describe_counts


def shown(stands, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(render_status(stands, width))
    return console.file.getvalue()


def test_the_best_trial_is_named_once(half_done):
    text = shown(ProgressReader(half_done).status())
    assert re.findall("^best.*", text, re.MULTILINE) == re.findall(".*0.9000.*", text)
    assert len(re.findall(r"\bbest\b", text)) == 1


def test_a_trial_that_ends_between_two_reads_counts_nowhere(half_done, monkeypatch):
    ledger, count = type(half_done.ledger), half_done.ledger.counts

    def end_trials_first(_):
        spend(half_done)
        return count()

    monkeypatch.setattr(ledger, "counts", end_trials_first)
    progress = ProgressReader(half_done).read()
    assert describe_counts(progress.search).startswith("toy: 4 of 8 trials – 2 complete, 1 pruned")
    assert progress.stage_text == "search: 4 of 8 trials, 1 pruned"


def test_paused_trials_count_as_paused_where_a_trial_is_trained(half_done):
    """The sampler of a worker takes them for pruned ones."""
    half_done.storage.set_trial_user_attr(half_done.trials()[4]._trial_id, PAUSED, 2)
    own = begin(half_done)
    half_done.ledger.claim("host:5", 8, 60, lambda *_: own._trial_id)
    half_done.storage.load(half_done.ledger.study_id, own._trial_id)
    progress = ProgressReader(half_done).read()
    assert progress.stage_text == "search: 4 of 8 trials, 1 pruned, 1 paused"
    assert "2 complete, 1 pruned, 1 failed" in describe_counts(progress.search)


def test_a_running_trial_that_no_worker_holds_is_shown_as_interrupted(half_done, tmp_path):
    with half_done.ledger.storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE studyloom_slots SET state = 'free' WHERE state = 'held'")
    status = ProgressReader(half_done).status()
    text = shown(status)
    assert "toy: 4 of 8 trials – 2 complete, 1 pruned, 1 failed, 1 interrupted\n" in text
    assert re.search("4 +interrupted +2 +0.2000", text)
    console = Console(file=io.StringIO(), width=80)
    print_trials(half_done, console)
    assert "    4  interrupted, resumes at epoch 3" in console.file.getvalue()
    page = write_report(half_done, tmp_path).read_text()
    assert 'id="trial-4" data-state="interrupted"' in page
    assert "It is interrupted, resumes at epoch 3: it has trained 2 epochs, at 0.2000." in page
    figures = re.findall("</i>(interrupted|running)</li>", page)
    assert len(figures) == 3
    assert {*figures} == {"interrupted"}


def test_the_trial_of_a_dead_worker_is_shown_as_interrupted_at_once(half_done):
    gone = subprocess.Popen(["true"])
    gone.wait()
    with half_done.ledger.storage.engine.begin() as connection:
        rename = "UPDATE studyloom_slots SET owner = ? WHERE owner = 'host:4'"
        connection.exec_driver_sql(rename, (worker_id(gone.pid),))
    text = shown(ProgressReader(half_done).status())
    assert "2 complete, 1 pruned, 1 failed, 1 running, 1 interrupted\n" in text
    assert "budget left: 3 trials\n" in text
    assert joined("its process has ended: the next worker resumes it") in joined(text)


def test_counts_have_a_comma_from_a_thousand_on():
    search = snapshot_of(free=900, done=1100, best=trial_of(0.5), complete=1047, paused=1200)
    assert describe_counts(search).startswith(
        "toy: 1,100 of 2,000 trials – 1,047 complete, 0 pruned"
    )
    assert "the best after 1,100 of 2,000 trials" in make_headline(search)
    progress = Progress(search, (StageProgress("search", 1100, 900, search),), "search")
    assert progress.stage_text == "search: 1,100 of 2,000 trials, 1,200 paused"


def test_the_proposer_of_the_best_trial_is_shown_as_plain_text(half_done):
    stands = ProgressReader(half_done).status()
    stands.progress.search.best.user_attrs[PROPOSED] = {"by": "an\x1b[2J\nna", "why": "a guess"}
    for width in (40, 80):
        assert ", proposed by an␛[2J na: a guess" in " ".join(shown(stands, width).split())
    document = json.loads(stands.as_json())
    documented(document, "status")
    assert document["best"]["proposed_by"] == "an\x1b[2J\nna"
    assert document["baseline"]["proposed_by"] is None


def test_nothing_is_cut_off_and_no_line_is_wider_than_the_terminal(half_done):
    half_done.optuna.set_user_attr(HALTED, "RuntimeError: " + "because " * 20)
    shares = {"optimizer.adamw.weight_decay": 0.625, "x" * 30: 0.375}
    stands = replace(ProgressReader(half_done).status(), importances=Importances(shares))
    params = {f"model.some_network.a_parameter_{n}": f"value-number-{n}" for n in range(12)}
    stands.progress.search.best.params = params | {"x": "y" * 300}
    for width in (40, 80):
        text = shown(stands, width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        assert "62%" in text
        assert "x" * 30 in text
        assert text.count("because") == 20
        assert all(f"{name}={value}" in joined(text) for name, value in params.items())


def test_importances_are_shown_after_enough_trials(stored):
    for number in range(22):
        trial = begin(stored)
        lr, width = trial.suggest_float("lr", 0.0, 1.0), trial.suggest_int("width", 1, 9)
        trial.suggest_categorical("fixed", ["one"])
        if number % 2:
            trial.suggest_float("sgd.momentum", 0.0, 1.0)
        stored.optuna.tell(trial, lr + 0.01 * width)
        if number == 18:
            text = shown(ProgressReader(stored).status())
            assert "shows from 20 trials with a value on; 19 have one." in text
            assert "what matters" not in text
    status = ProgressReader(stored).status()
    shares = status.list_largest_shares()
    assert {"lr", "width"} <= {*shares} <= {"lr", "width", "sgd.momentum"}
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert re.search(rf"learning rate +{100 * shares['lr']:.0f}%", shown(status))


def test_json_has_stable_keys_and_unrounded_numbers(half_done):
    document = json.loads(ProgressReader(half_done).status().as_json())
    documented(document, "status")
    assert document["slots"] == {"free": 2, "held": 2, "done": 4}
    counts = {"complete": 2, "pruned": 1, "failed": 1, "paused": 0, "running": 1, "waiting": 0}
    assert document["trials"] == counts
    best = half_done.trials()[1]
    known = {"trial": 1, "value": 0.9, "params": best.params, "proposed_by": None}
    assert document["best"] == known
    assert document["baseline"]["trial"] == 0
    why = {"count": 1, "reason": "train loss is nan at epoch 1 of 2"}
    assert document["failures"] == {"diverged": why}
    first, second = document["workers"]
    assert [*first.values()][:5] == ["host:4", 4, 2, None, 0.2]
    assert second["trial"] is None
    assert 0 <= first["held_seconds"] < 10
    assert 50 < first["lease_seconds"] <= 60
    assert 10 < document["eta"] <= 25


def test_numbers_that_are_not_finite_are_null():
    worker = WorkerStatus("w:1", 1, 1, value=-math.inf, lease_seconds=1.0, held_seconds=1.0)
    snapshot = snapshot_of(workers=[worker], best=trial_of(0.5, params={"lr": math.nan}))
    stage = StageProgress("search", 0, 1, snapshot)
    progress = Progress(snapshot, (stage,), "search", eta=math.inf)
    document = json.loads(Status(progress, Importances({"lr": math.nan}), []).as_json())
    assert document["workers"][0]["value"] is document["importances"]["lr"] is None
    assert document["eta"] is None
    assert document["best"]["params"] == {"lr": None}
    documented(document, "status")


# Watching


def watched(stored, monkeypatch, *steps, terminal=False, write=None, errors=()):
    """What a watch prints of a study while one step is done after each look.

    The first looks raise `errors`; the last step spends the budget.
    """
    left, wrong, seen = list(steps), iter(errors), ProgressReader.status

    def look(reader):
        if (error := next(wrong, None)) is not None:
            raise error
        return seen(reader)

    monkeypatch.setattr(ProgressReader, "status", look)
    monkeypatch.setattr(time, "sleep", lambda _: left.pop(0)())
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal, color_system=None)
    if write is None:
        watch(ProgressReader(stored), console)
    else:
        watch_json(ProgressReader(stored), write)
    assert not left
    return console.file.getvalue()


def spend(stored):
    """Ends the trials that run, and fills the slots that are left."""
    for _ in range(3):
        begin(stored)
    for trial in stored.trials():
        if not trial.state.is_finished():
            stored.optuna.tell(trial.number, state=TrialState.PRUNED)
    with stored.ledger.storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE studyloom_slots SET state = 'done'")


def nothing():
    pass


AWAY = [StorageLost("storage.url: cannot use it")]  # which is told, and looked at again


def test_a_pipe_gets_a_line_for_each_change_and_no_control_codes(half_done, monkeypatch):
    tell = half_done.optuna.tell
    steps = (nothing, nothing, lambda: tell(4, 0.95), nothing, lambda: spend(half_done))
    first, *lines = watched(half_done, monkeypatch, *steps, errors=AWAY).splitlines()
    assert "storage.url: cannot use it" in first
    assert all(re.match(r"\d\d:\d\d:\d\d  toy  .*  ETA ", line) for line in lines)
    assert [line[10:].rpartition("  ETA")[0] for line in lines] == [
        "toy  search: 4 of 8 trials, 1 pruned  best 0.9000 (trial 1)  2 running",
        "toy  search: 5 of 8 trials, 1 pruned  best 0.9500 (trial 4)  1 running",
        "toy  done  best 0.9500 (trial 4)",
    ]


def test_json_gets_an_object_for_each_change(half_done, monkeypatch):
    lines = []
    report = optuna.Trial(half_done.optuna, 5).report
    steps = (nothing, lambda: report(0.5, 3), lambda: spend(half_done))
    watched(half_done, monkeypatch, *steps, write=lines.append)
    documents = [json.loads(line) for line in lines]
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines)
    assert [document["done"] for document in documents] == [4, 4, 8]
    assert [document["workers"][0]["epoch"] for document in documents[:2]] == [2, 3]


def test_a_terminal_gets_a_view_that_is_redrawn(half_done, monkeypatch):
    steps = (nothing, lambda: half_done.optuna.tell(4, 0.95), lambda: spend(half_done))
    text = watched(half_done, monkeypatch, *steps, terminal=True, errors=AWAY)
    assert "\x1b[" in text
    assert text.index("storage.url: cannot use it") < text.index("toy: 4 of 8")
    assert text.index("best      accuracy 0.9000") < text.index("best      accuracy 0.9500")
    assert text.index("toy: 4 of 8") < text.index("toy: 8 of 8")


def test_ctrl_c_ends_a_watch_quietly(half_done, tmp_path, monkeypatch, capsys):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("study: {name: toy}\nstorage: {url: null}\n")

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    assert main(["status", str(tmp_path), "--watch"]) == 0
    out, err = capsys.readouterr()
    assert ("toy  search: 4 of 8" in out, err) == (True, "")


def test_two_objectives_show_the_front_with_best_baseline_and_rule(sqlite_url):
    stored = two_sided(sqlite_url, (0.9, 3000), (0.95, 2000), (0.8, 100), None, (0.79, 101))
    status = ProgressReader(stored).status()
    assert "best 0.9500, 2,000 (trial 1)" in status.progress.line
    document = json.loads(status.as_json())
    best = document["best"]
    assert (best["trial"], best["value"], best["parameters"]) == (1, 0.95, 2000)
    assert [trial["trial"] for trial in document["front"]] == [1, 2]
    assert document["rule"] == "max accuracy where parameters <= 3_000"
    assert max(map(len, shown(status, 40).splitlines())) <= 40
