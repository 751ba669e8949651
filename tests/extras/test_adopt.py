"""Studies of other programs: the findings of `studyloom adopt`, which changes nothing."""

import hashlib
import io
import json
import math
import os
import random
import re
import shlex
import sqlite3
import time
import zlib
from contextlib import closing
from datetime import datetime, timedelta

import optuna
import pytest
import sqlalchemy
import torch
from commands import documented
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from toy_worker import FOLDER, fresh, work
from toys import ask

from studyloom.cli import main
from studyloom.config.config_sources import register
from studyloom.decisions.placement import place_configuration
from studyloom.decisions.warm_start import WarmStart, WarmStarts, enqueue
from studyloom.errors import DataError, StorageError
from studyloom.extras.adopt import csv_file
from studyloom.extras.adopt.findings import (
    describe_findings,
    estimate_luck,
    examine,
    find_stale_trials,
    group_repeats,
    replay_asha,
)
from studyloom.extras.adopt.pages import print_adopted, render
from studyloom.extras.adopt.reading import (
    AdoptedStudy,
    find_runs,
    read_csv,
    read_database,
    read_runs,
)
from studyloom.extras.adopt.wandb_folder import _read_records
from studyloom.storage.trial_record import TrialRecord
from studyloom.storage.urls import parse_url
from studyloom.views.consoles import SafeConsole

RANGE, EPOCHS = FloatDistribution(0.0, 1.0), 9
LONG_AGO = datetime(2026, 1, 1, 12)


def trial(number, value=None, x=None, state=TrialState.COMPLETE, curve=(), **more):
    made = create_trial(
        state=state,
        value=value,
        params={} if x is None else {"x": x},
        distributions={} if x is None else {"x": RANGE},
        intermediate_values=dict(enumerate(curve)),
        **more,
    )
    made.number = number
    return made


def study_of(trials, sign=1):
    return AdoptedStudy("s", "accuracy", sign, trials)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def adopted(capsys, *arguments):
    """What the command prints for programs."""
    assert main(["adopt", *map(str, arguments), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    documented(document, "adopt")
    return document


# A database


def test_stale_trials_and_the_surplus_are_named_and_the_file_is_unchanged(here, capsys):
    study = optuna.create_study(study_name="s", storage="sqlite:///s.db", direction="maximize")
    for number in range(14):
        study.add_trial(trial(number, number / 20, number / 20, curve=[0.01 * number] * 9))
    study.ask()  # by a process that is killed before it reports
    with sqlite3.connect("s.db") as connection:
        begun = "datetime_start = '2026-01-01 12:00:00.000000'"
        ended = "datetime_complete = '2026-01-01 12:01:00.000000'"
        connection.execute(f"UPDATE trials SET {begun}, {ended} WHERE number < 14")
        connection.execute(f"UPDATE trials SET {begun} WHERE number = 14")
    connection.close()
    before = hashlib.sha256((here / "s.db").read_bytes()).digest()
    findings = adopted(capsys, "s.db", "--trials", 10)["findings"]
    assert hashlib.sha256((here / "s.db").read_bytes()).digest() == before
    assert [path.name for path in here.iterdir() if path.name.startswith("s.db")] == ["s.db"]
    assert findings["trials"] == "15: 14 complete (93%), 1 running (7%)"
    assert findings["stale"].startswith("14: running for")
    assert findings["surplus"] == "5 trials beyond 10"
    assert findings["pruner=asha"].endswith("these trials spent 126")


def test_the_named_study_of_a_database_is_read_or_an_error_explains(here, sqlite_url):
    path = here / "two.db"
    for name, way in (("one", "minimize"), ("two", "maximize")):
        study = optuna.create_study(study_name=name, storage=f"sqlite:///{path}", direction=way)
        study.add_trial(trial(0, 0.5, 0.1))
    assert read_database("two.db", "two").sign == 1
    assert read_database(f"sqlite:///{path}", "one").sign == -1
    (here / "none.db").write_text("no database at all")
    for source, name, words in (
        ("two.db", None, "--study; the database holds: one, two"),
        ("two.db", "three", "the database holds: one, two"),
        ("missing.db", None, "there is no database"),
        ("none.db", None, "cannot|not a database"),
        ("strange://host/name", None, "cannot be read"),
    ):
        with pytest.raises(StorageError, match=words):
            read_database(source, name)


def test_postgresql_is_read_too(postgres_url):
    study = optuna.create_study(study_name="s", storage=postgres_url, direction="maximize")
    study.add_trial(trial(0, 0.5, 0.1))
    assert [trial.value for trial in read_database(postgres_url, "s").trials] == [0.5]


def test_a_hostile_database_does_no_harm(here, capsys):
    """It has names with markup, values that are not numbers, and years far away."""
    name, markup = "<script>alert(1)</script>", "<b>x</b>\x1b[31m\n$(touch harm)'"
    study = optuna.create_study(study_name=name, storage="sqlite:///s.db")
    for number in range(40):
        study.add_trial(
            create_trial(
                value=[1e308, -1e308, math.inf, 0.5][number % 4],
                params={markup: number / 40},
                distributions={markup: RANGE},
                intermediate_values={0: math.nan, 1: -math.inf, 2: 1e308, 7: 0.1},
                system_attrs={"fail_reason": markup},
            )
        )
    study.add_trial(trial(0, state=TrialState.FAIL, system_attrs={"fail_reason": markup}))
    with sqlite3.connect("s.db") as connection:
        for column, year in (("datetime_start", "0001"), ("datetime_complete", "9999")):
            late = f"{year}-06-01 00:00:00.000000"
            connection.execute(f"UPDATE trials SET {column} = ? WHERE number % 3 = 0", (late,))
    connection.close()
    assert main(["adopt", "s.db", "--rename", "a=b.c"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    html = (here / "adopt.html").read_text()
    assert "<script>alert(1)" not in html
    assert "<b>x" not in html
    assert "\x1b" not in html
    steps = [line for line in printed.splitlines() if line.startswith("python -m")]
    assert all(
        "touch" not in word or len(shlex.split(line)) == 4 for line in steps for word in line
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("UPDATE studies SET study_name = x'00ff'", "study_name must be text; got b'.x00.xff'"),
        ("UPDATE trial_intermediate_values SET step = 'z'", "trial_id 1: step must be an integer"),
        ("UPDATE trials SET number = 'one'", "trial_id 1: number must be an integer; got 'one'"),
        ("DELETE FROM study_directions", "the study has no direction"),
        ("UPDATE study_directions SET direction = 'NOT_SET'", "the study has no direction"),
    ],
)
def test_a_cell_of_another_type_is_named_with_its_table(here, change, problem):
    study = optuna.create_study(study_name="s", storage="sqlite:///s.db")
    study.add_trial(trial(0, 0.5, 0.1, curve=[0.1]))
    with sqlite3.connect("s.db") as connection:
        connection.execute(change)
    connection.close()
    with pytest.raises(StorageError, match=f"a cell of the database cannot be read: .*{problem}"):
        read_database("s.db", None)


@pytest.mark.parametrize("names", ["true", "5", '{"a": 1}', "[]"])
def test_names_of_metrics_of_another_type_count_as_missing(here, names):
    optuna.create_study(study_name="s", storage="sqlite:///s.db")
    with sqlite3.connect("s.db") as connection:
        insert = "INSERT INTO study_system_attributes (study_id, key, value_json) VALUES "
        connection.execute(f"{insert} (1, 'study:metric_names', ?)", [names])
    connection.close()
    assert read_database("s.db", None).metric == "value"


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
def test_choices_may_be_lists_or_nan_and_no_command_has_nan(here, capsys):
    study = optuna.create_study(study_name="s", storage="sqlite:///s.db", direction="maximize")
    choices = [[64], [64, 64], {"a": 1}, math.nan, "x"]
    space = {"hidden": CategoricalDistribution(choices)}
    for number, choice in enumerate([*choices, *choices]):
        study.add_trial(
            create_trial(value=number % 5, params={"hidden": choice}, distributions=space)
        )
    document = adopted(capsys, "s.db", "--rename", "hidden=model.hidden")
    start, call, left_out = document["next"]
    assert 'study.enqueue=[{model.hidden:"x"},{model.hidden:"x"},' in start
    assert "{'hidden': {'a': 1}}" in call
    assert "nan" not in start + call
    assert left_out == "left out, since a choice is NaN or infinite: trials 3"


def test_the_path_of_a_database_may_have_any_characters(here, capsys):
    study = optuna.create_study(study_name="s", storage="sqlite:///s.db")
    study.add_trial(trial(0, 0.5, 0.1))
    names = ["a#b.db", "50%.db", "a%3Fb.db"]
    if not sqlalchemy.__version__.startswith("2.0."):  # whose URLs have no ? in a path
        names.append("what?.db")
    for name in names:
        (here / name).write_bytes((here / "s.db").read_bytes())
        start, *_ = adopted(capsys, name)["next"]
        url = shlex.split(start)[-1].removeprefix('study.warm_start=["').removesuffix('#s"]')
        assert parse_url(url).database == str(here / name)


@pytest.mark.parametrize("link", ["same", "symbolic", "hard"])
@pytest.mark.parametrize("name", ["s.db", "s.csv"])
def test_a_page_never_replaces_the_source_even_through_a_link(here, capsys, name, link):
    study = optuna.create_study(study_name="s", storage="sqlite:///s.db")
    study.add_trial(trial(0, 0.5, 0.1))
    (here / "s.csv").write_text("lr,acc\n0.1,0.5\n")
    before = (here / name).read_bytes()
    target = here / (name if link == "same" else "page.html")
    if link == "symbolic":
        target.symlink_to(here / name)
    if link == "hard":
        target.hardlink_to(here / name)
    metric = ["--maximize", "acc"] if name == "s.csv" else []
    assert main(["adopt", name, *metric, "--page", str(target)]) == 2
    assert f"--page {target}: another file is there" in capsys.readouterr().err
    assert (here / name).read_bytes() == target.read_bytes() == before
    assert target.is_symlink() == (link == "symbolic")


# Findings


def test_an_infeasible_trial_is_neither_best_nor_tried_first(here, capsys):
    study = optuna.create_study(study_name="s", storage="sqlite:///s.db", direction="maximize")
    for number in range(8):
        attributes = {"constraints": [number - 3.5]}
        study.add_trial(trial(number, number / 10, number / 10, system_attrs=attributes))
    document = adopted(capsys, "s.db")
    assert document["findings"]["best"] == "value 0.3000, trial 3: x=0.3"
    assert document["findings"]["trials"].endswith("; 4 complete ones break a constraint")
    best = ["{'x': 0.3},", "{'x': 0.2},", "{'x': 0.1},"]
    assert [line.strip() for line in document["next"][1].splitlines()[3:6]] == best
    assert read_database("s.db", None).ranked[0].number == study.best_trial.number


def test_a_study_whose_trials_are_all_infeasible_has_no_best(here, capsys):
    study = optuna.create_study(study_name="s", storage="sqlite:///s.db")
    study.add_trial(trial(0, 0.5, 0.1, system_attrs={"constraints": [1.0]}))
    document = adopted(capsys, "s.db")
    assert document["findings"]["best"].startswith("no trial is complete, with a finite value")
    assert "enqueue" not in document["next"][1]


def test_epochs_of_asha_in_order_and_in_random_orders_are_distinguished():
    curves = [[(n + 1) / 28 * epoch for epoch in range(27)] for n in range(27)]
    study = study_of([trial(n, curve[-1], 0.1, curve=curve) for n, curve in enumerate(curves)])
    replayed = replay_asha(study)
    assert not replayed.low <= replayed.epochs <= replayed.high
    assert describe_findings(study, examine(study), None)["pruner=asha"] == (
        f"it would have spent {replayed.epochs} epochs in the order of these trials, and "
        f"{replayed.low} to {replayed.high} in random orders (95% interval); these trials spent 729"
    )


def test_a_trial_that_runs_much_longer_than_others_took_is_stale():
    minute = timedelta(minutes=1)
    ended = [trial(number, 0.5, 0.1) for number in range(9)]
    for ended_trial in ended:
        ended_trial.datetime_start = LONG_AGO
        ended_trial.datetime_complete = LONG_AGO + minute
    old = trial(20, state=TrialState.RUNNING)
    old.datetime_start = datetime.now() - timedelta(days=1)
    new = trial(21, state=TrialState.RUNNING)
    new.datetime_start = datetime.now()
    assert [stale.number for stale in find_stale_trials([*ended, old, new])] == [20]


def test_trials_of_one_configuration_are_grouped():
    trials = [trial(0, 0.1, 0.5), trial(1, 0.2, 0.6), trial(2, 0.3, 0.5), trial(3, 0.4)]
    assert [[member.number for member in group] for group in group_repeats(trials)] == [[0, 2]]


def test_noise_is_measured_by_repeated_configurations_or_by_neighbors():
    draw = random.Random(0)
    flat = [trial(n, 0.5 + draw.gauss(0, 0.02), draw.random()) for n in range(300)]
    luck = estimate_luck(study_of(flat), group_repeats(flat))
    # The best half is less spread out than all.
    assert 0.005 < luck.noise < 0.02
    assert luck.other > 0.5
    twice = [trial(n, 0.5 + draw.gauss(0, 0.02), n // 2 / 500) for n in range(1000)]
    luck = estimate_luck(study_of(twice), group_repeats(twice))
    assert "repeated" in luck.source
    assert luck.noise == pytest.approx(0.02, rel=0.15)


def test_a_best_value_far_ahead_of_the_noise_is_not_luck():
    certain = [trial(n, n // 2 / 50, n // 2 / 50) for n in range(80)]
    for sign in (1, -1):
        best, *_ = study_of(certain, sign).ranked
        # The best configuration has one trial, the others two equal ones.
        trials = [other for other in certain if other.number // 2 != best.number // 2] + [best]
        luck = estimate_luck(study_of(trials, sign), group_repeats(trials))
        assert (luck.noise, luck.other) == (0.0, 0.0)
        assert luck.lead == pytest.approx(0.02)


def test_asha_spends_the_epochs_of_its_brackets_if_no_curves_cross():
    """Of 27 trials each trains to epoch 2, 9 on to 6, 3 on to 18, and 1 to 27."""
    curves = [[(n + 1) / 28 * epoch for epoch in range(27)] for n in range(27)]
    trials = [trial(n, curve[-1], 0.1, curve=curve) for n, curve in enumerate(curves)]
    promotion = replay_asha(study_of(trials))
    ideal = 27 * 2 + 9 * 4 + 3 * 12 + 1 * 9
    assert ideal <= promotion.low <= promotion.high < promotion.spent
    assert (
        promotion.high < promotion.epochs < promotion.spent
    )  # each trial is better than all before it
    assert promotion.spent == 27 * 27
    assert replay_asha(study_of([trial(0, 0.5, 0.1)])) is None


def curve_of(x):
    """A learning curve with noise that only the configuration decides."""
    draw = random.Random(x)
    best = 0.9 - (x - 0.6) ** 2
    rate = 2 + 6 * draw.random()
    return [
        best * (1 - math.exp(-(epoch + 1) / rate)) + draw.gauss(0, 0.01) for epoch in range(EPOCHS)
    ]


def report_curve(config, run):
    """A loop that reports the curve of its configuration, and that a rung may pause."""
    run.keep(net=torch.nn.Linear(1, 1))
    curve = curve_of(config.params.x)
    for epoch in run.epochs(EPOCHS):
        run.report(accuracy=curve[epoch - 1])
    return run.value


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(5))
def test_predicted_epochs_are_those_of_a_real_search_by_asha(here, seed, monkeypatch):
    """In the order of the trials they are the same; in others, within 30%."""
    monkeypatch.setitem(FOLDER, "checkpoints", here / "checkpoints")
    definition = ask(
        *("space=none", "sampler=random", "pruner=asha", "study.baseline=false"),
        *("objective._target_=test_adopt.report_curve", "objective.direction=maximize"),
        *(f"+params={{x: 0.1, epochs: {EPOCHS}}}", "+space.params.x.float=[0,1]"),
    )
    draw, count = random.Random(seed), 100
    settings = [draw.random() for _ in range(count)]
    trials = [trial(n, curve_of(x)[-1], x, curve=curve_of(x)) for n, x in enumerate(settings)]
    predicted = replay_asha(study_of(trials))
    stored = fresh(f"sqlite:///{here}/real.db", definition, count)
    configurations = (
        place_configuration(definition, {"params.x": x}).configuration for x in settings
    )
    starts = WarmStarts([WarmStart(configuration, "optuna") for configuration in configurations])
    enqueue(stored, starts, count, baseline=None)
    work(definition, stored, count)
    real = sum(TrialRecord(trained).epoch_count for trained in stored.trials())
    assert predicted.epochs == real
    assert 0.7 * real < predicted.low <= predicted.high < 1.3 * real


# The next steps


def test_both_commands_continue_with_the_best_configurations(here, capsys, tmp_path):
    study = optuna.create_study(study_name="s", storage="sqlite:///s.db", direction="maximize")
    for number in range(5):
        study.add_trial(trial(number, number / 10, number / 10))
    first, second, unfit = adopted(capsys, "s.db")["next"]
    url = f"sqlite:///{here}/s.db#s"
    assert shlex.split(first)[-1] == f'study.warm_start=["{url}"]'
    assert "no key of a config is called x" in unfit
    call = eval(second, {"sl": type("sl", (), {"search": staticmethod(dict_of)}), "objective": 0})
    assert call["study"] == {"enqueue": [{"x": 0.4}, {"x": 0.3}, {"x": 0.2}]}
    assert call["maximize"] == "value"
    renamed, _ = adopted(capsys, "s.db", "--rename", "x=optimizer.lr")["next"]
    register()
    override = shlex.split(renamed)[-1]
    assert override == "study.enqueue=[{optimizer.lr:0.4},{optimizer.lr:0.3},{optimizer.lr:0.2}]"
    assert main(["adopt", "s.db", "--rename", "x"]) == 2


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--trials", "-5"], "--trials must be a positive integer; got -5"),
        (["--rename", "x"], "--rename must be OLD=NEW, such as lr=optimizer.adamw.lr; got x"),
        (["--rename", "x=a", "--rename", "y=a"], "y=a: another one is renamed to a"),
        (["--rename", "x=a", "--rename", "x=b"], "x=b: x is renamed twice"),
        (["--rename", "x=y"], "x=y: y is another hyperparameter"),
        (["--page", "/"], "--page /: is not a file"),
        (["--page", "no/page.html"], "there is no folder no; create it"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(here, capsys, arguments, problem):
    study = optuna.create_study(study_name="s", storage="sqlite:///s.db")
    ranges = {"x": RANGE, "y": RANGE}
    study.add_trial(create_trial(value=1, params={"x": 0.1, "y": 0.2}, distributions=ranges))
    assert main(["adopt", "s.db", *arguments]) == 2
    assert problem in capsys.readouterr().err


def dict_of(objective, **settings):
    return settings


def test_importances_are_for_the_first_objective_with_or_without_times(here):
    study = optuna.create_study(storage="sqlite:///s.db", directions=["maximize", "minimize"])
    lines = ["x,y,acc"]
    for number in range(20):
        x, y = number / 20, number * 7 % 20 / 20
        ranges = {"x": RANGE, "y": RANGE}
        values = [x, 1 - y]
        study.add_trial(create_trial(values=values, params={"x": x, "y": y}, distributions=ranges))
        lines.append(f"{x},{y},{x}")
    (here / "s.csv").write_text("\n".join(lines))
    for source in (["s.db"], ["s.csv", "--maximize", "acc"]):
        assert main(["adopt", *source]) == 0
        html = (here / "adopt.html").read_text()
        _, _, rest = html.partition('id="importances"')
        section, _, _ = rest.partition("</section>")
        assert section.count('class="bar"') == 2


# CSV

WANDB = """"Name","State","Notes","Runtime","Sweep","lr","model","val_acc","_step"
"calm-1","finished","-","10","s1","0.1","cnn","0.9","5"
"calm-2","finished","-","11","s1","0.2","mlp","0.8","5"
"calm-3","crashed","-","1","s1","0.3","mlp","","2"
"""
MLFLOW = """run_id,status,start_time,metrics.acc,metrics.loss,params.lr,params.depth,tags.x
a,FINISHED,2026-01-01,0.7,1,0.1,3,y
b,FAILED,2026-01-01,,2,0.2,,y
"""


def test_exported_runs_of_wandb_and_mlflow_are_trials(here, capsys):
    (here / "wandb.csv").write_text(WANDB)
    study = read_csv(here / "wandb.csv", "val_acc", 1)
    assert [(trial.state.name, trial.params) for trial in study.trials] == [
        ("COMPLETE", {"lr": 0.1, "model": "cnn"}),
        ("COMPLETE", {"lr": 0.2, "model": "mlp"}),
        ("FAIL", {"lr": 0.3, "model": "mlp"}),
    ]
    (here / "mlflow.csv").write_text(MLFLOW)
    study = read_csv(here / "mlflow.csv", "acc", 1)
    assert [(trial.values, trial.params) for trial in study.trials] == [
        ([0.7], {"lr": 0.1, "depth": 3.0}),
        (None, {"lr": 0.2}),
    ]
    document = adopted(capsys, "wandb.csv", "--maximize", "val_acc", "--params", "lr")
    assert document["findings"]["failed"] == "1 × crashed"
    call, unfit = document["next"]
    assert call.startswith("sl.search(")
    assert unfit.startswith("no key of a config is called lr; name it with --rename")
    assert main(["adopt", "wandb.csv"]) == 2
    assert "--maximize COLUMN" in capsys.readouterr().err
    assert main(["adopt", "wandb.csv", "--minimize", "val_ac"]) == 2
    assert "did you mean val_acc?" in capsys.readouterr().err


HEADER = b"lr,act,acc\n"
FIRST = b"0.1,relu,0.5\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (HEADER + b"0.1,r\xe9lu,0.5\n", "line 2: the line is not UTF-8 text; .*-f LATIN1"),
        ((HEADER + FIRST).decode().encode("utf-16"), "line 1: .*not UTF-8 text; .*-f UTF-16"),
        (HEADER + b"0.1,re\0lu,0.5\n", "line 2: the line is not UTF-8 text"),
        (HEADER + b"9" * 30 + b",relu,0.5\n", "line 2, column lr: the integer 9{30} is larger"),
        (HEADER + b"9" * 5000 + b",relu,0.5\n", "line 2, column lr: the integer 9+…9+ is larger"),
        (HEADER + FIRST + b"0.1,relu,high\n", "line 3, column acc: must be a number; got high"),
        (HEADER + b'0.1,"relu,0.5\n' + FIRST, "line 3: cannot be read as CSV: unexpected end"),
        (HEADER + b'0.1,"relu\n",0.5\n' + b"1,2,3,4\n", "line 4: 4 cells .* has 3 columns"),
        (HEADER + b"0.1," + b"x" * 6000 + b",0.5\n", "line 2: the line is longer than 6,000"),
        (HEADER + FIRST * 9, "line 10: more than 8 rows follow the header; split the file"),
        (HEADER + b"1,%s,1\n" % (b"x" * 900) * 8, "line 9: the file has more than .* MB"),
        (b"lr,lr,acc\n1,2,3\n", "line 1: 2 columns are called lr"),
        (b"lr,params.lr,acc\n1,2,3\n", "line 1, column params.lr: another column is called lr too"),
        (b"lr,\x1b[2J,acd\n1,2,3\n", "there is no column acc; did you mean acd.; it has lr, ␛"),
        (b"", "there is no column acc; it has none"),
    ],
)
def test_an_unreadable_csv_file_is_named_with_line_and_column(
    here, capsys, monkeypatch, content, problem
):
    for name, limit in (("MAX_ROWS", 8), ("MAX_LINE_BYTES", 6000), ("MAX_BYTES", 7000)):
        monkeypatch.setattr(csv_file, name, limit)
    (here / "s.csv").write_bytes(content)
    names = ["--params", "lr,params.lr"] if b"params" in content else []
    assert main(["adopt", "s.csv", "--maximize", "acc", *names]) == 2
    assert re.search(rf"^error: s\.csv(, |: )({problem})", capsys.readouterr().err)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "missing"])
def test_only_a_regular_csv_file_is_read(here, kind):
    """A FIFO would block the command, and a device would fill the memory."""
    path = here / "s.csv"
    if kind == "fifo":
        os.mkfifo(path)
    if kind == "device":
        path.symlink_to("/dev/zero")
    if kind == "folder":
        path.mkdir()
    with pytest.raises(DataError, match=r"s\.csv: cannot be read: (it is not a reg|Is a|No such)"):
        read_csv(path, "acc", 1)


def test_values_of_a_csv_file_may_be_as_large_as_floats_are(here, capsys):
    rows = [f"{[1e308, -1e308, 0.1, 5][n % 4]},{[1e308, -1e308, 3][n % 3]}" for n in range(40)]
    (here / "s.csv").write_text("\n".join(["lr,acc", *rows]))
    findings = adopted(capsys, "s.csv", "--maximize", "acc")["findings"]
    assert findings["best"].startswith("acc 1e+308, trial 0")
    assert findings["luck"].startswith("unknown, since the values differ by too much")


def test_integers_and_truth_values_of_a_csv_file_are_those_of_the_config(here, capsys):
    (here / "runs.csv").write_text(
        "train.batch_size,optimizer.nesterov,optimizer.lr,loss\n32,true,1,0.5\n64,False,0.1,0.6\n"
    )
    first, second = adopted(capsys, "runs.csv", "--minimize", "loss")["next"]
    configurations = (
        "{train.batch_size:32,optimizer.nesterov:true,optimizer.lr:1.0},"
        "{train.batch_size:64,optimizer.nesterov:false,optimizer.lr:0.1}"
    )
    assert shlex.split(first)[-1] == f"study.enqueue=[{configurations}]"
    assert "'train.batch_size': 32, 'optimizer.nesterov': True" in second


def test_a_csv_file_has_no_times_and_no_stale_trial(here):
    done = "".join(f"finished,0.{n},0.5\n" for n in range(9))
    (here / "runs.csv").write_text(f"State,lr,loss\n{done}running,0.5,\n")
    trials = read_csv(here / "runs.csv", "loss", -1).trials
    assert trials[-1].state == TrialState.RUNNING
    assert {trial.datetime_start for trial in trials} == {None}
    assert find_stale_trials(trials) == []


# Runs of a tracker


def test_the_headline_says_what_was_found_before_the_findings(here, capsys):
    study = optuna.create_study(study_name="s", storage="sqlite:///s.db", direction="maximize")
    for number in range(27):
        curve = [(number + 1) / 28 * epoch for epoch in range(27)]
        study.add_trial(trial(number, curve[-1], number / 27, curve=curve))
    study.add_trial(trial(27, state=TrialState.FAIL))
    headline = adopted(capsys, "s.db")["headline"]
    assert headline.startswith("27 of 28 trials are complete. The best is trial 26; with a prob")
    assert re.search(r" ASHA would have saved \d+ of 729 epochs\.$", headline)
    assert main(["adopt", "s.db"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["s", headline]
    html = (here / "adopt.html").read_text()
    assert f'<p class="result">{headline}</p>' in html
    assert html.count('<button type="button" class="copy">') == 2


def test_lines_of_findings_break_between_words_in_a_terminal(here):
    study = optuna.create_study(study_name="s", storage="sqlite:///s.db")
    for number in range(9):
        study.add_trial(trial(number, number / 7, number / 9))
    console = SafeConsole(force_terminal=True, width=80, file=io.StringIO(), color_system=None)
    print_adopted(console, "s", "A headline.", {"luck": "a probability " * 20}, [])
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert {word for line in lines[3:] for word in line.split()} == {"luck", "a", "probability"}


def test_trials_pruned_at_their_first_report_do_not_squeeze_the_others(here):
    """Half of the trials end after one epoch at a tenth; the others lie between 0.9 and 0.95."""
    trials = [trial(n, 0.9 + n / 400, 0.1, curve=[0.5, 0.9 + n / 400]) for n in range(20)]
    for number in range(20, 40):
        trials.append(trial(number, None, 0.1, TrialState.PRUNED, curve=[number / 400]))
    html = render(study_of(trials), "", {}, [])
    _, _, section = html.partition('id="search"')
    axis = json.loads(re.search(r"data-y='([^']+)'", section)[1])
    assert 1 - 10 ** -axis["low"] > 0.85


def log_runs_by_wandb(folder):
    wandb = pytest.importorskip("wandb")
    settings = wandb.Settings(mode="offline", console="off", silent=True, root_dir=str(folder))
    for number in range(3):
        config = {"lr": 0.1 / (number + 1), "model": {"width": 8 * (number + 1)}, "epochs": 4}
        with wandb.init(project="digits", config=config, settings=settings) as run:
            for epoch in range(4):
                run.log({"acc": 0.5 + 0.1 * epoch, "val": {"f1": math.nan}, "note": "x" * 40_000})
            run.finish(exit_code=number % 2)
    files = sorted(folder.glob("wandb/*/*.wandb"), key=lambda path: path.stat().st_mtime)
    content = files[2].read_bytes()
    files[2].write_bytes(content[: len(content) - 20])  # as if it had been killed


def log_of(*records):
    """A file of W&B with records in pieces of at most a block."""
    content = b":W&B" + (0xBEE1).to_bytes(2, "little") + b"\0"
    for record in records:
        begun = False
        while record or not begun:
            room = 32_768 - len(content) % 32_768
            if room < 7:
                content += b"\0" * room
                room = 32_768
            piece, record = record[: room - 7], record[room - 7 :]
            kind = {(False, False): 1, (False, True): 2, (True, True): 3, (True, False): 4}
            kind = kind[begun, bool(record)].to_bytes(1, "little")
            begun = True
            checksum = zlib.crc32(piece, zlib.crc32(kind))
            content += checksum.to_bytes(4, "little") + len(piece).to_bytes(2, "little")
            content += kind + piece
    return content


def message(number, value):
    """A field of a message of Protocol Buffers: an integer, text or bytes."""

    def varint(value):
        groups = [value & 0x7F]
        while value := value >> 7:
            groups[-1] |= 0x80
            groups.append(value & 0x7F)
        return bytes(groups)

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def items(**values):
    """The items of a history or config, as W&B writes them."""
    made = [message(1, name) + message(16, json.dumps(value)) for name, value in values.items()]
    return b"".join(message(1, item) for item in made)


def make_runs_of_wandb(folder):
    for number in range(3):
        config = items(
            lr=0.1 / (number + 1), model={"width": 8 * (number + 1)}, epochs=4, _wandb={"a": 1}
        )
        start = message(17, message(1, 1_700_000_000 + number))
        run = message(1, f"id{number}") + message(3, "digits") + message(4, config) + start
        records = [message(20, b""), message(17, run)]  # a header, and then the run
        for epoch in range(4):
            values = items(acc=0.5 + 0.1 * epoch, val={"f1": "NaN"}, note="x" * 40_000, _step=epoch)
            records.append(message(2, values))
        if number < 2:
            records.append(message(18, message(1, number) if number else b""))
        path = folder / "wandb" / f"offline-run-{number}" / f"run-id{number}.wandb"
        path.parent.mkdir(parents=True)
        path.write_bytes(log_of(*records))


@pytest.mark.parametrize(
    "write", [make_runs_of_wandb, pytest.param(log_runs_by_wandb, marks=pytest.mark.chaos)]
)
def test_an_offline_folder_of_wandb_is_read_as_data(here, capsys, write):
    """One run finished, one failed, one was killed, so that its file has no end."""
    write(here)
    folder = find_runs(str(here / "wandb"))
    paths = [record.path for record in folder.records]
    assert [record.path for record in find_runs(str(here)).records] == paths
    study = read_runs(folder, None, "acc", 1)
    assert (study.name, study.metric) == ("digits", "acc")
    states = [trial.state.name for trial in study.trials]
    assert sorted(states) == ["COMPLETE", "FAIL", "RUNNING"]
    first = study.trials[states.index("COMPLETE")]
    assert first.params == {"lr": 0.1, "model.width": 8}  # all runs have the same epochs
    assert first.value == pytest.approx(0.8)
    assert [*first.intermediate_values.values()] == pytest.approx([0.5, 0.6, 0.7, 0.8])
    assert first.datetime_start <= first.datetime_complete
    document = adopted(capsys, "wandb", "--maximize", "acc", "--rename", "lr=optimizer.lr")
    assert "study.enqueue=[{optimizer.lr:0.1,model.width:8}]" in document["next"][0]
    for arguments, problem in (
        ([], "name the metric with --maximize METRIC or --minimize METRIC; the runs have acc, "),
        (["--maximize", "ac"], "no run has the metric ac; did you mean acc?; they have acc, val."),
        (["--maximize", "acc", "--study", "x"], "name the project with --study; there is digits"),
        (["--maximize", "acc", "--params", "l"], "no run has the setting l; did you mean lr?"),
    ):
        assert main(["adopt", "wandb", *arguments]) == 2
        assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"PK\3\4", "it does not begin with :W&B"),
        (log_of(b"\x12"), "an integer does not end"),
        (log_of(b"\x12\x7f1"), "a field is longer than its message"),
        (log_of(b"\x13"), "a field has the unknown encoding 3"),
        (log_of(b"\x12\x05\x0a\x03\x0a\x01\xff"), "codec can't decode"),
        (log_of(b"\x12\x0a\x0a\x08\x0a\x01a\x82\x01\x02{{"), "Expecting property name"),
    ],
)
def test_a_file_that_is_no_run_of_wandb_is_named(here, content, problem):
    (here / "run-1.wandb").write_bytes(content)
    with pytest.raises(DataError, match=rf"run-1.wandb: is no run of W&B: .*{re.escape(problem)}"):
        find_runs(str(here))


@pytest.mark.filterwarnings("error")
def test_settings_that_are_lists_are_choices_by_their_text(here, capsys):
    for number in range(24):
        config = items(hidden=[[64, 32], [16]][number % 2], extra=[None, {}][number % 2])
        run = message(1, f"id{number:02}") + message(3, "digits") + message(4, config)
        records = [message(17, run), message(2, items(acc=number / 24)), message(18, b"")]
        (here / f"run-{number}.wandb").write_bytes(log_of(*records))
    study = read_runs(find_runs(str(here)), None, "acc", 1)
    assert study.trials[0].params == {"hidden": "[64, 32]", "extra": None}
    assert study.trials[1].params == {"hidden": "[16]", "extra": "{}"}
    adopted(capsys, str(here), "--maximize", "acc")
    html = (here / "adopt.html").read_text()
    assert "[64, 32]" in html


def test_many_empty_pieces_of_a_record_cost_no_time():
    begin, go_on = (bytes([kind]) for kind in (2, 3))
    content = bytearray(log_of())
    for kind in (begin, *([go_on] * 100_000)):
        if len(content) % 32_768 > 32_761:
            content += bytes(-len(content) % 32_768)
        content += zlib.crc32(b"", zlib.crc32(kind)).to_bytes(4, "little") + bytes(2) + kind
    began = time.perf_counter()
    assert [*_read_records(io.BytesIO(content))] == []
    assert time.perf_counter() - began < 20  # it took minutes, with the square of their number


def test_a_piece_without_a_beginning_is_part_of_no_record():
    whole = log_of(b"a")
    rest = b"b"
    kind = bytes([4])  # the last piece
    head = zlib.crc32(rest, zlib.crc32(kind)).to_bytes(4, "little") + b"\1\0" + kind
    assert [*_read_records(io.BytesIO(whole + head + rest))] == [b"a"]


def test_a_damaged_run_of_wandb_is_read_up_to_the_damage(here):
    history = b"\x12\x0e\x0a\x0c\x0a\x03acc\x82\x01\x040.50"
    (here / "run-1.wandb").write_bytes(log_of(history, history) + b"\0" * 5000)
    (record,) = find_runs(str(here)).records
    assert record.values == {"acc": [0.5, 0.5]}


def test_a_folder_without_runs_is_named(here):
    with pytest.raises(DataError, match=r"no file \*.wandb is below it"):
        find_runs(str(here))


TABLES_OF_MLFLOW = """
CREATE TABLE experiments (experiment_id INTEGER NOT NULL, name VARCHAR(256) NOT NULL);
CREATE TABLE runs (run_uuid VARCHAR(32) NOT NULL, name VARCHAR(250), status VARCHAR(9),
    start_time BIGINT, end_time BIGINT, lifecycle_stage VARCHAR(20), experiment_id INTEGER);
CREATE TABLE params ("key" VARCHAR(250) NOT NULL, value VARCHAR(8000) NOT NULL,
    run_uuid VARCHAR(32) NOT NULL);
CREATE TABLE metrics ("key" VARCHAR(250) NOT NULL, value FLOAT NOT NULL, timestamp BIGINT NOT NULL,
    run_uuid VARCHAR(32) NOT NULL, step BIGINT NOT NULL, is_nan BOOLEAN NOT NULL);
"""
RUNS_OF_MLFLOW = (("FINISHED", "active"), ("FAILED", "active"), ("FINISHED", "deleted"))


def make_runs_of_mlflow(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(TABLES_OF_MLFLOW)
        connection.execute("INSERT INTO experiments VALUES (1, 'digits')")
        for number, (status, stage) in enumerate(RUNS_OF_MLFLOW):
            row = (f"id{number}", f"run {number}", status, 10**12 + number, 2 * 10**12, stage, 1)
            connection.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            for name, value in (("lr", 0.1 * (number + 1)), ("net", "mlp")):
                row = (name, str(value), f"id{number}")
                connection.execute("INSERT INTO params VALUES (?, ?, ?)", row)
            for epoch in (2, 0, 1):
                row = ("acc", 0.5 + 0.1 * epoch, 0, f"id{number}", epoch, False)
                connection.execute("INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)", row)
        connection.commit()


def log_runs_by_mlflow(path):
    tracking = pytest.importorskip("mlflow.tracking")
    client = tracking.MlflowClient(f"sqlite:///{path}")
    experiment = client.create_experiment("digits")
    for number, (status, stage) in enumerate(RUNS_OF_MLFLOW):
        run = client.create_run(experiment, run_name=f"run {number}").info.run_id
        client.log_param(run, "lr", 0.1 * (number + 1))
        client.log_param(run, "net", "mlp")
        for epoch in (2, 0, 1):
            client.log_metric(run, "acc", 0.5 + 0.1 * epoch, step=epoch)
        client.set_terminated(run, status)
        if stage == "deleted":
            client.delete_run(run)


@pytest.mark.parametrize(
    "write", [make_runs_of_mlflow, pytest.param(log_runs_by_mlflow, marks=pytest.mark.chaos)]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy, in MLflow
def test_a_sqlite_file_of_mlflow_is_read_as_data(here, capsys, write):
    mlflow_file = here / "mlflow.db"
    write(mlflow_file)
    before = mlflow_file.read_bytes()
    study = read_runs(find_runs(f"sqlite:///{mlflow_file}"), None, "acc", 1)
    assert (study.name, study.run_names) == ("digits", ["run 0", "run 1"])
    done, failed = study.trials
    assert (done.state, failed.state) == (TrialState.COMPLETE, TrialState.FAIL)
    assert done.params == {"lr": 0.1}
    assert [*done.intermediate_values.values()] == pytest.approx([0.5, 0.6, 0.7])
    document = adopted(capsys, mlflow_file, "--maximize", "acc", "--params", "lr,net")
    assert document["findings"]["best"] == "acc 0.7000, trial 0 (run run 0): lr=0.1  net=mlp"
    assert document["findings"]["failed"] == "1 × failed"
    assert mlflow_file.read_bytes() == before
    assert main(["adopt", str(mlflow_file), "--maximize", "acc", "--study", "x"]) == 2
    assert "name the experiment with --study; there is digits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("CREATE VIEW params AS SELECT 1 AS key, 2 AS value, 3 AS run_uuid", "not a plain table"),
        ("CREATE TABLE params(key, value AS (abs(key)), run_uuid)", "not a plain table"),
        ("CREATE TABLE params(a)", "mlflow.db: cannot be read: .*no such column: key"),
    ],
)
def test_no_code_of_an_mlflow_file_is_executed(here, capsys, change, problem):
    path = here / "mlflow.db"
    make_runs_of_mlflow(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE params")
        connection.execute(change)
        connection.commit()
    assert main(["adopt", "mlflow.db", "--maximize", "acc"]) == 2
    assert re.search(problem, capsys.readouterr().err)
