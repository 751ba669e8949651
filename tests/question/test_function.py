"""A function as the objective, from its call to the winner, on toy functions and real storages."""

import json
import math
import os
import random
import re
import runpy
import sys
from contextlib import contextmanager

import numpy as np
import optuna
import pytest
import torch
from commands import ROOT, study
from optuna.trial import TrialState
from toys import Never, Signal, compose

from studyloom.config.schema import WinnerSection
from studyloom.data.training_data import TrainingData
from studyloom.errors import ConfigError, Halted, NoWinner, QuestionError, Stopped, UndefinedMetric
from studyloom.metrics import Goal
from studyloom.question.loop import Loop, LoopJob, LoopObjective
from studyloom.question.question import FunctionQuestion, place_of
from studyloom.question.validation import validate
from studyloom.seeds import derive
from studyloom.storage.attributes import BASELINE, EPOCHS, FAILURE, REASON
from studyloom.study.opening import create_study
from studyloom.study.reporter import Limits
from studyloom.study.worker import Worker
from studyloom.views.report import write_report
from studyloom.views.terminal import winner_lines
from studyloom.winner.answer import is_answer_of
from studyloom.winner.evaluation import NO_TEST, evaluate_winner
from studyloom.winner.stages import Plan, Stage

OWN = """
defaults:
  [studyloom, sampler: random, pruner: none, storage: sqlite, launcher: local, space: none, _self_]
study: {name: own}
objective: {_target_: test_function.parabola, metric: height, direction: maximize}
params: {x: 0.0, curve: 1.0}
space: {params: {x: {float: [-2, 2]}}}
"""


def parabola(config, report):
    """A parabola that is highest at x = 1, with noise from the trial's own seed."""
    height = -config.params.curve * (config.params.x - 1) ** 2
    for step in range(3):
        report(height - 3 + step, step)
    return height + 1e-3 * random.Random(config.seed).random()


def gives(value):
    return lambda config, report: value


def no_function(config):
    return 0.0


@pytest.fixture
def ask(tmp_path):
    (tmp_path / "own.yaml").write_text(OWN)

    def ask(*overrides):
        return FunctionQuestion.ask(*compose(*overrides, name="own", folder=tmp_path))

    return ask


@pytest.fixture
def objective(monkeypatch):
    """Replaces the function that the config names."""
    return lambda function: monkeypatch.setattr(sys.modules[__name__], "parabola", function)


def work(question, url, folder, trials, stopping=None, **limits):
    stored = create_study(url, "own", question.identity(""), trials, goals=question.goals)
    Worker(question, stored, TrainingData(), stopping or Never(), folder, Limits(**limits)).run(
        trials
    )
    return stored


def test_a_trial_is_what_the_function_gives_for_its_configuration_and_seed(
    ask, sqlite_url, tmp_path
):
    question = ask()
    stored = work(question, sqlite_url, tmp_path, 4)
    for trial in stored.trials():
        noise = 1e-3 * random.Random(derive(0, trial.number)).random()
        assert trial.value == -((trial.params["params.x"] - 1) ** 2) + noise
        assert list(trial.intermediate_values) == [0, 1, 2]
        assert trial.user_attrs[EPOCHS]["number"] == [0, 1, 2]
    assert stored.trials()[0].user_attrs[BASELINE]
    assert stored.optuna.direction.name == "MAXIMIZE"
    assert stored.metric == "height"


def test_all_random_numbers_start_from_the_trials_seed_and_the_callers_stay(ask, objective):
    def draw(config, report):
        return random.random() + float(np.random.rand()) + float(torch.rand(()))

    objective(draw)
    question = ask()
    before = random.getstate()
    values = [
        question.make_objective(question.baseline, number, TrainingData()).run(print, Never())
        for number in (0, 1, 0)
    ]
    assert values[0] == values[2] != values[1]
    assert random.getstate() == before


def test_the_function_cannot_change_its_configuration(ask, objective):
    def meddle(config, report):
        config.params.x = 3

    objective(meddle)
    with pytest.raises(Exception, match="read-only"):
        ask().make_objective(ask().baseline, 0, TrainingData()).run(print, Never())


def test_a_report_may_raise_the_pruning_which_no_function_can_swallow(
    ask, objective, sqlite_url, tmp_path
):
    reported = []

    def stubborn(config, report):
        for step in range(1, 6):
            try:
                report(config.params.x, step)
            except Exception:
                reported.append(step)
        return 1.0

    objective(stubborn)
    pruner = (
        "pruner=percentile",
        "pruner.percentile=100",
        "pruner.n_startup_trials=0",
        "pruner.n_warmup_steps=0",
    )
    question = ask(*pruner, "study.enqueue=[]", "params.x=2")
    question.config.pruner = {"_target_": "optuna.pruners.ThresholdPruner", "lower": 1.9}
    stored = work(question, sqlite_url, tmp_path, 4)
    states = [trial.state for trial in stored.trials()]
    assert states[0] == TrialState.COMPLETE
    assert TrialState.PRUNED in states
    pruned = next(trial for trial in stored.trials() if trial.state == TrialState.PRUNED)
    assert list(pruned.intermediate_values) == [1]
    assert pruned.user_attrs[EPOCHS]["number"] == [1]
    assert reported[:5] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, "0.5", None, True, [1.0], 1j], ids=str
)
def test_a_value_that_is_no_finite_number_is_named_and_stops_the_study(
    ask, objective, sqlite_url, tmp_path, value
):
    objective(gives(value))
    with pytest.raises(Halted, match="expected a finite number"):
        work(ask(), sqlite_url, tmp_path, 3)
    stored = create_study(sqlite_url, "own", ask().identity(""), 3)
    (trial,) = stored.trials()
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs[FAILURE] == "undefined"
    assert f"the objective returned {value!r}" in trial.user_attrs[REASON]


@pytest.mark.parametrize(
    "ask_for", [lambda c: c.params.curv, lambda c: c["params"]["curv"], lambda c: c.parms.curve]
)
def test_a_key_that_the_config_lacks_is_named_in_trial_0(
    ask, objective, sqlite_url, tmp_path, ask_for
):
    objective(lambda config, run: ask_for(config))
    with pytest.raises(Halted, match=r"par.*ms.* no such key; .*did you mean (curve|params)\?"):
        work(ask(), sqlite_url, tmp_path, 3)
    (trial,) = create_study(sqlite_url, "own", ask().identity(""), 3).trials()
    assert trial.user_attrs[REASON].startswith(("params.curv: no", "parms: no"))
    assert "section params of its YAML" in trial.user_attrs[REASON]


@pytest.mark.parametrize(
    "value",
    [1, 0.5, np.float32(0.5), torch.tensor(0.5), np.int64(3)],
    ids=lambda v: type(v).__name__,
)
def test_numbers_of_all_libraries_are_values(ask, objective, value):
    objective(gives(value))
    result = ask().make_objective(ask().baseline, 0, TrainingData()).run(print, Never())
    assert type(result) is float
    assert result == float(value)


@pytest.mark.parametrize(
    ("value", "step"), [(math.nan, 1), ("x", 1), (1.0, 1.5), (1.0, -1), (1.0, True)]
)
def test_a_report_that_is_none_is_named(ask, objective, value, step):
    objective(lambda config, report: report(value, step))
    with pytest.raises(UndefinedMetric, match="reported"):
        ask().make_objective(ask().baseline, 0, TrainingData()).run(lambda step: None, Never())


def test_a_step_may_not_be_reported_twice(ask, objective):
    objective(lambda config, report: [report(1.0, 2), report(1.0, 2)])
    with pytest.raises(UndefinedMetric, match="step 2: expected a whole number of at least 3"):
        ask().make_objective(ask().baseline, 0, TrainingData()).run(lambda step: None, Never())


class Guarded(Never):
    """Records whether it may be interrupted."""

    within = False

    @contextmanager
    def interruptible(self):
        self.within = True
        try:
            yield
        finally:
            self.within = False


def test_a_signal_may_end_the_function_and_not_what_is_done_with_a_report(ask):
    stopping, calls = Guarded(), []

    def function(config, report):
        calls.append(("function", stopping.within))
        report(1.0, 1)
        calls.append(("function", stopping.within))
        return 1.0

    loop = Loop(function, ask().config, ask().goals)
    LoopObjective(loop, [LoopJob(0, 0)]).run(
        lambda step: calls.append(("report", stopping.within)), stopping
    )
    assert calls == [("function", True), ("report", False), ("function", True)]
    assert not stopping.within


def test_a_stopped_trial_is_handed_back_and_begins_anew(ask, sqlite_url, tmp_path, objective):
    class Once(Never):
        asked = 0

        def __call__(self):
            return self.asked > 1

        @contextmanager
        def interruptible(self):
            self.asked += 1
            if self.asked == 2:
                raise Stopped
            yield

    question = ask()
    stored = work(question, sqlite_url, tmp_path, 1, Once())
    assert [list(trial.intermediate_values) for trial in stored.trials()] == [[0]]
    stored = work(question, sqlite_url, tmp_path, 1)
    (trial,) = stored.trials()
    assert list(trial.intermediate_values) == [0, 1, 2]
    assert trial.state == TrialState.COMPLETE


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["objective.direction=null"],
            "objective.direction must be maximize or minimize, since a function does not say which "
            "is better; got null",
        ),
        (
            ["objective.direction=up"],
            "objective.direction must be maximize or minimize, since a function does not say which "
            "is better; got up",
        ),
        (["objective._target_=test_function.parabula"], "did you mean parabola?"),
        (["objective._target_=test_function.no_function"], "(config, run) -> value"),
        (["+params.y=1", "space.params.x.float=[1,2]"], "params.x=0.0 is outside its range"),
        (["+space.params.z.int=[1,2]"], "params.z: no such key; params has x, curve"),
        (["objective.folds=2"], "objective.folds=2: the data are the function's own"),
        (["winner.seeds=0"], "winner.seeds must be at least 1; got 0"),
    ],
)
def test_a_question_of_a_function_is_checked_before_the_first_trial(ask, overrides, words):
    with pytest.raises(ConfigError) as caught:
        validate(ask(*overrides), TrainingData())
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["objective.metric=[height,epochs]", "objective.direction=[maximize,minimize]"],
            "objective.metric: epochs is a name of ours; choose another",
        ),
        (
            ["objective.constraints={slot: '<= 3'}"],
            "objective.constraints: slot is a name of ours; choose another",
        ),
        (
            ["objective.metric=[a,a]", "objective.direction=[maximize,minimize]"],
            "objective.metric: a is there twice",
        ),
    ],
)
def test_a_cost_with_the_name_of_what_we_store_is_refused(ask, overrides, words):
    """Else it would take the place of the learning curve, or of the slot of its trial."""
    with pytest.raises(ConfigError, match=re.escape(words)):
        validate(ask(*overrides), TrainingData())


def test_a_study_of_before_goes_on_whose_config_names_data_that_its_function_did_not_use(ask, url):
    """An earlier version did not read them, and called each value by another name."""
    question = ask("+data={_target_: studyloom.data.Embedded}")
    create_study(url, "own", question.identity(""), 3, goals=[Goal("value", "maximize")])
    stored = create_study(url, "own", question.identity("abc"), 3, goals=question.goals)
    assert stored.metric == "height"
    assert optuna.load_study(study_name="own", storage=stored.storage).metric_names == ["height"]
    assert stored.code_changes() == []
    with pytest.raises(QuestionError, match=r"data\.digest: abc → other"):
        create_study(url, "own", question.identity("other"), 3)
    with pytest.raises(QuestionError, match=r"data\._target_"):
        create_study(url, "own", ask("+data={_target_: mine.Other}").identity("abc"), 3)


def test_the_folder_of_a_trial_is_there_for_the_next_attempt_and_gone_when_it_has_ended(
    ask, objective, sqlite_url, tmp_path
):
    seen = []

    def function(config, run):
        seen.append([path.name for path in run.dir.iterdir()])
        (run.dir / "weights").touch()
        run(1.0, run.attempt)
        return 1.0

    objective(function)
    stored = work(ask(), sqlite_url, tmp_path / "c", 1, Signal(2))
    assert stored.ledger.counts()["free"] == 1
    work(ask(), sqlite_url, tmp_path / "c", 2)
    assert seen == [[], ["weights"], []]
    assert [*(tmp_path / "c").iterdir()] == []


def test_a_trial_that_is_given_up_leaves_no_files(ask, objective, sqlite_url, tmp_path):
    objective(lambda config, run: (run.dir / "weights").touch() or run(1.0, 1))
    stored = work(ask(), sqlite_url, tmp_path / "c", 1, Signal(2))
    for _ in range(3):
        stored.ledger.claim("w", 1, 60.0)
        stored.ledger.record_death("w", "the worker ended with signal SIGKILL")
    assert [*(tmp_path / "c").glob("*/weights")] != []
    stored = work(ask(), sqlite_url, tmp_path / "c", 1)
    assert stored.trials()[0].user_attrs[FAILURE] == "crashed"
    assert [*(tmp_path / "c").iterdir()] == []


def test_a_loop_that_prunes_itself_is_pruned_also_with_two_objectives(
    ask, objective, sqlite_url, tmp_path
):
    def function(config, run):
        run.cost(size=3)
        for epoch in run.epochs(3):
            run.report(height=epoch)
            if run.trial == 1 and epoch == 2:
                raise optuna.TrialPruned
        return {"height": run.value, "size": 4}

    objective(function)
    two = ("objective.metric=[height,size]", "objective.direction=[maximize,minimize]")
    stored = work(ask(*two), sqlite_url, tmp_path, 3)
    assert [trial.state.name for trial in stored.trials()] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert stored.trials()[0].values == [3.0, 4.0]
    assert stored.trials()[1].intermediate_values == {1: 1.0, 2: 2.0}


def test_a_cost_beyond_its_limit_teaches_the_sampler_and_never_wins(
    ask, objective, sqlite_url, tmp_path
):
    def function(config, run):
        run.cost(size=10 if run.trial == 1 else 1)
        return 5.0 if run.trial == 1 else 1.0

    objective(function)
    stored = work(ask("objective.constraints={size: '<= 3'}"), sqlite_url, tmp_path, 3)
    beyond = stored.trials()[1]
    assert (beyond.state, beyond.user_attrs[FAILURE]) == (TrialState.PRUNED, "infeasible")
    assert beyond.constraints["size"] > 0
    assert 1 not in [trial.number for trial in stored.feasible()]


def test_a_loop_that_takes_too_long_is_ended_at_its_next_report(
    ask, objective, sqlite_url, tmp_path
):
    steps = []

    def function(config, run):
        for epoch in run.epochs(3):
            steps.append(epoch)
            run.report(height=epoch)
        return run.value

    objective(function)
    stored = work(ask(), sqlite_url, tmp_path, 2, trial_timeout=1e-9)
    assert {trial.user_attrs[FAILURE] for trial in stored.trials()} == {"timeout"}
    assert steps == [1, 1]


def test_hyperband_counts_the_epochs_of_the_loop(ask, objective, sqlite_url, tmp_path):
    def function(config, run):
        for epoch in run.epochs(4):
            run.report(height=epoch)
        return run.value

    objective(function)
    told = "objective has 4; set pruner.max_resource=4"
    with pytest.raises(Halted, match=told):
        work(ask("pruner=hyperband", "train.epochs=3"), sqlite_url, tmp_path, 1)
    stored = work(
        ask("pruner=hyperband", "train.epochs=3", "pruner.max_resource=4"), sqlite_url, tmp_path, 3
    )
    assert stored.ledger.counts()["done"] == 3
    assert TrialState.COMPLETE in [trial.state for trial in stored.trials()]


def test_what_a_function_is_told_is_part_of_the_question(ask):
    asked, other = ask().identity(""), ask("params.curve=2").identity("")
    assert asked == ask().identity("")
    assert {key for key in other if other[key] != asked[key]} == {"params.curve"}
    assert asked["objective._target_"] == "test_function.parabola"
    assert asked["study.direction"] == "maximize"


@pytest.fixture
def evaluated(ask, tmp_path, sqlite_url):
    """The plan of a study whose winner is evaluated, and the answer."""
    question = ask()
    stored = work(question, sqlite_url, tmp_path, 6)
    plan = Plan(
        Stage("search", stored, question, 6),
        question,
        TrainingData(),
        sqlite_url,
        tmp_path,
        WinnerSection(top=2, seeds=3),
    )
    assert plan.todo() > 0
    for stage in plan:
        folder = tmp_path / stage.title
        folder.mkdir(exist_ok=True)
        Worker(
            stage.asked, stage.stored, TrainingData(), Never(), folder, weights=stage.weights
        ).run(stage.trials)
    assert [stage.title for stage in plan] == ["search", "re-evaluation"]
    assert plan.is_done()
    assert plan.todo() == 0
    return plan, evaluate_winner(plan, pytest.fail, ["python", "-m", "studies.own"])


def test_the_winner_is_judged_on_fresh_seeds_by_the_same_function(evaluated):
    plan, answer = evaluated
    values = plan.values(plan.reevaluation)
    assert {*values} == {*plan.candidates}
    for number, of_seeds in values.items():
        height = -((plan.candidates[number].values["params.x"] - 1) ** 2)
        noise = [1e-3 * random.Random(derive(0, seed, 0, 0)).random() for seed in range(3)]
        assert of_seeds == pytest.approx([height + drawn for drawn in noise], abs=1e-12)
    assert answer["winner"]["trial"] == plan.winner
    assert answer["test"] is None
    assert is_answer_of(answer, plan)


def test_page_report_and_file_say_that_there_is_nothing_to_test_and_no_weights(evaluated):
    plan, answer = evaluated
    printed = "\n".join(winner_lines(answer))
    assert "height" in printed
    assert NO_TEST in printed
    assert json.loads((plan.run_dir / "winner.json").read_text())["note"] == NO_TEST
    assert not (plan.run_dir / "winner.pt").exists()
    page = write_report(plan.search.stored, plan.run_dir).read_text()
    assert NO_TEST in page
    assert "confusion matrix" not in page


def test_optuna_knows_the_study_too(evaluated, sqlite_url):
    study = optuna.load_study(study_name="own", storage=sqlite_url)
    assert study.best_value == max(trial.value for trial in study.trials)


def divides(config, run, part):
    return 1 / 0


def leaves(config, run, part):
    sys.exit("3")


def names_another(config, run, part):
    return {"depth": 1.0}


@pytest.mark.parametrize(
    ("test", "words"),
    [
        (divides, f"ZeroDivisionError: division by zero ({__file__}:"),
        (leaves, f"SystemExit: 3 ({__file__}:"),
        (names_another, "must return a number, or a dict with height; got depth; mend it"),
        (lambda *_: "high", "returned 'high' from objective.test"),
    ],
)
def test_a_test_that_fails_is_said_with_its_place_and_how_to_go_on(ask, monkeypatch, test, words):
    monkeypatch.setattr("studyloom.question.question.build_test", lambda named: test)
    question = ask("objective.test=test_function.divides")
    with pytest.raises(NoWinner) as caught:
        question.test(question.baseline, 0, {}, None)
    assert "objective.test=test_function.divides: " in str(caught.value)
    assert words in str(caught.value)
    assert "study.accept_code_change=true, which keeps the search" in str(caught.value)


def test_the_place_is_named_whatever_the_folder_of_the_code_is_called(tmp_path):
    path = tmp_path / "studyloom" / "tests.py"
    path.parent.mkdir()
    path.write_text("import json\n\njson.loads('{')\n")
    with pytest.raises(json.JSONDecodeError) as caught:
        runpy.run_path(str(path))
    assert place_of(caught.value) == f" ({path}:3)"


@pytest.mark.parametrize("value", ["'high'", "float('nan')"])
def test_a_command_whose_function_gives_no_number_ends_with_2_and_names_it(tmp_path, value):
    (tmp_path / "bad.py").write_text(f"def objective(config, report):\n    return {value}\n")
    (tmp_path / "own.yaml").write_text(OWN.replace("test_function.parabola", "bad.objective"))
    overrides = (
        "--config-dir",
        str(tmp_path),
        "--config-name",
        "own",
        "trust=[bad]",
        f"run_dir={tmp_path / 'run'}",
    )
    done = study(*overrides, "launcher.workers=1", PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    assert done.returncode == 2, done.stderr
    assert "expected a finite number" in done.stderr
    assert "Traceback" not in done.stderr
