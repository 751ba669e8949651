"""Optuna objectives without a change, and loops that get hyperparameters by name."""

import sys
import time

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState
from test_function import run_search
from torch import nn
from toys import Never, Signal, define_own_loop, validate_search

from studyloom.data.training_data import TrainingData
from studyloom.decisions.warm_start import enqueue, find_warm_starts
from studyloom.errors import ConfigError, Halted, Interrupted
from studyloom.objectives.user_functions import FunctionSource
from studyloom.storage.attributes import PROVENANCE, TIMES
from studyloom.storage.opening import create_study, open_study
from studyloom.storage.trial_record import TrialRecord
from studyloom.storage.trial_tables import trial_rows

CONFIG = """
defaults: [studyloom, sampler: random, pruner: none, storage: sqlite, launcher: local, _self_]
study: {name: own, trials: 8}
objective: {_target_: test_optuna_objective.called, metric: height, direction: maximize}
"""


@pytest.fixture
def define(tmp_path, monkeypatch):
    (tmp_path / "own.yaml").write_text(CONFIG)

    def define(function, *overrides):
        monkeypatch.setattr(sys.modules[__name__], "called", function)
        return define_own_loop(tmp_path, *overrides)

    return define


def called(trial):
    """The objective that the config names; each test replaces it."""


def hills(trial):
    """The sum of the widths of layers, whose number decides which widths are suggested."""
    height = 0.0
    for layer in range(trial.suggest_int("layers", 1, 3)):
        height += trial.suggest_float(f"width.{layer}", 0, 1)
        trial.report(height, layer)
        if trial.should_prune():
            raise optuna.TrialPruned
    return height


def describe_trials(stored):
    return [(trial.number, trial.params, trial.value, trial.state) for trial in stored.trials()]


def test_suggested_hyperparameters_follow_from_seed_and_number(define, url, tmp_path):
    definition = define(hills)
    validate_search(definition, TrainingData())
    stored = run_search(definition, url, None, 8)
    assert [trial.state for trial in stored.trials()] == [TrialState.COMPLETE] * 8
    assert describe_trials(stored) == describe_trials(
        run_search(definition, f"sqlite:///{tmp_path}/other.db", None, 8)
    )
    for trial in stored.trials():
        assert trial.params.keys() == {"layers", *(f"width.{n}" for n in trial.intermediate_values)}
        assert trial.distributions["layers"] == IntDistribution(1, 3)
        assert trial.user_attrs[PROVENANCE]["config"]["params"] == trial.params
    assert len({len(trial.params) for trial in stored.trials()}) > 1


def test_a_trial_that_starts_again_has_the_same_hyperparameters(define, url):
    """Although the sampler would suggest others by now."""
    seen = []

    def crashes(trial):
        seen.append({**trial.params, "x": trial.suggest_float("x", 0, 1)})
        if len(seen) == 1:
            raise Interrupted
        return trial.suggest_float("y", 0, 1)

    with pytest.raises(Interrupted):
        run_search(define(crashes), url, None, 1)
    (trial,) = open_study(url, "own").trials()
    assert (trial.params, trial.state) == ({"x": seen[0]["x"]}, TrialState.RUNNING)
    (trial,) = run_search(define(crashes, "sampler=tpe", "+sampler.seed=7"), url, None, 1).trials()
    assert seen[1] == seen[0]
    assert trial.params == {**seen[0], "y": trial.value}


def test_a_crash_does_not_change_what_a_trial_suggests_next(define, sqlite_url, tmp_path):
    crashes_left = [0]

    def crashes(trial):
        x = trial.suggest_float("x", 0, 1)
        kind = trial.suggest_categorical("kind", ["a", "b"])
        if crashes_left:
            crashes_left.pop()
            raise Interrupted
        return x + trial.suggest_float(f"y.{kind}", 0, 1)

    with pytest.raises(Interrupted):
        run_search(define(crashes), sqlite_url, None, 2)
    again = run_search(define(crashes), sqlite_url, None, 2)
    assert describe_trials(again) == describe_trials(
        run_search(define(crashes), f"sqlite:///{tmp_path}/other.db", None, 2)
    )


def test_the_time_to_suggest_and_store_does_not_count_as_training(define, sqlite_url):
    spent = []

    def computes_nothing(trial):
        began = time.perf_counter()
        for name in "abcd":
            trial.suggest_float(name, 0, 1)
        trial.set_user_attr("note", "kept")
        spent.append(time.perf_counter() - began)
        trial.report(0.5, 1)
        return 0.5

    trials = run_search(define(computes_nothing), sqlite_url, None, 4).trials()
    trained = sum(trial.user_attrs[TIMES]["training"] for trial in trials)
    assert 0 <= trained < sum(spent) / 3


def test_the_pruner_ends_an_objective_that_never_calls_should_prune(define, sqlite_url):
    reports = []

    def runs_on(trial):
        trial.suggest_float("x", 0, 1)
        for step in range(4):
            reports.append((trial.number, step))
            trial.report(step / 2, step)
            if trial.number and trial.should_prune():
                raise optuna.TrialPruned
        return 1.0

    stored = run_search(define(runs_on, *PRUNER), sqlite_url, None, 2)
    assert [trial.state for trial in stored.trials()] == [TrialState.PRUNED] * 2
    assert reports == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)]
    assert [trial.value for trial in stored.trials()] == [1.0, 1.0]


# Prunes what reports more than half.
PRUNER = (
    "~pruner",
    "+pruner={_target_: optuna.pruners.ThresholdPruner, upper: 0.6}",
)


def test_a_repeated_trial_has_its_hyperparameters_and_is_not_pruned(define, sqlite_url):
    seen = []

    def notes(trial):
        seen.append((trial.number, trial.user_attrs))
        trial.set_user_attr("seen", 1)
        height = hills(trial)
        assert (isinstance(trial, optuna.Trial), trial.should_prune()) == (True, False)
        return height

    definition = define(notes, *PRUNER)
    trial = next(t for t in run_search(definition, sqlite_url, None, 8).trials() if t.value > 1)
    configuration = definition.space.make_configuration(trial.params)
    again = definition.make_objective(configuration, 70, TrainingData(), seed=3)
    assert again.run(lambda step: None, Never()) == trial.value
    assert [step.number for step in again.steps()] == [*trial.intermediate_values]
    assert seen[-1] == (70, {})
    two_layers = definition.space.make_configuration({"layers": 2})
    other = definition.make_objective(two_layers, 0, TrainingData(), seed=3)
    with pytest.raises(ValueError, match=r"no hyperparameter width\.0, it has layers; suggest"):
        other.run(lambda step: None, Never())


def test_values_of_params_and_of_the_queue_are_not_sampled(define, sqlite_url):
    """A winner.yaml gives all parameters; so its only trial is the winner's once more."""
    first = "study.enqueue=[{layers: 2, width.1: 0.25}]"
    definition = define(hills, "+params={width.0: 0.5}", first)
    for _ in range(2):  # the second command queues nothing again
        stored = create_study(
            sqlite_url, "own", definition.identity(""), 8, objectives=definition.objectives
        )
        enqueue(stored, find_warm_starts(definition, ()), 8, baseline=definition.baseline)
    trials = run_search(definition, sqlite_url, None, 8).trials()
    assert trials[0].params == {"layers": 2, "width.0": 0.5, "width.1": 0.25}
    assert {trial.params["width.0"] for trial in trials} == {0.5}
    assert len({trial.params["layers"] for trial in trials}) > 1


@pytest.mark.filterwarnings("ignore:Choices for a categorical:UserWarning")
def test_a_value_that_cannot_be_stored_fails_its_trial_with_a_fix(define, sqlite_url):
    def other_choices(trial):
        return float(trial.suggest_categorical("n", [1, 2] if trial.number else [1, 2, 3]))

    def own_name(trial):
        trial.set_user_attr("epochs", 3)

    def own_name_of_the_study(trial):
        trial.study.set_user_attr("defined", 3)

    def other_range(trial):
        return trial.suggest_float("x", 0, 1 + trial.number)

    stored = run_search(define(other_choices), sqlite_url, None, 2)
    assert "Give another hyperparameter another name" in TrialRecord(stored.trials()[1]).reason
    for number, (objective, words) in enumerate(
        {
            own_name: "trial.set_user_attr: epochs is reserved; choose another name",
            own_name_of_the_study: "study.set_user_attr: defined is reserved",
            lambda trial: trial.suggest_categorical("n", [(1, 2)]): "the choices of n must be",
            lambda trial: trial.report(float("nan"), 0): "reported height=nan: expected a finite",
            lambda trial: trial.study.tell(trial, 1.0): "trial.study.tell: studyloom ends each tri",
            lambda trial: trial.study.add_trial(trial.study.trials[0]): "trial.study.add_trial: ",
            lambda trial: trial.study.stop(): "study.stop: other workers search too",
        }.items()
    ):
        with pytest.raises(Halted, match=words):
            run_search(define(objective), f"{sqlite_url}{number}", None, 1)
    ranges = run_search(define(other_range), f"{sqlite_url}-ranges", None, 3).trials()
    assert [trial.distributions["x"].high for trial in ranges] == [1, 2, 3]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_optunas_retry_history_shows_a_later_attempt_as_a_retry(define, sqlite_url):
    histories = []

    def resumes(trial):
        histories.append(RetryHeartbeatStaleTrialCallback.retry_history(trial))
        trial.set_user_attr("artifact", len(histories))
        trial.report(0.5, len(histories))
        if len(histories) == 1:
            raise Interrupted
        return trial.study.trials[histories[-1][-1]].user_attrs["artifact"]

    with pytest.raises(Interrupted):
        run_search(define(resumes), sqlite_url, None, 1)
    (trial,) = run_search(define(resumes), sqlite_url, None, 1).trials()
    assert (histories, trial.intermediate_values) == ([[], [0]], {1: 0.5, 2: 0.5})


def test_settings_that_an_optuna_objective_cannot_have_are_refused(define):
    for override, words in {
        "sampler=grid": "narrow its ranges, or set sampler=tpe",
        "pruner=asha": "which this objective lacks; call run.keep",
        "+space={params: {x: {int: [1, 3]}}}": "suggests its own values; leave space out",
        "objective.folds=2": "objective.folds=2: the function loads its data itself",
    }.items():
        with pytest.raises(ConfigError) as caught:
            validate_search(define(hills, override), TrainingData())
        assert words in str(caught.value)
    definition = define(hills)
    (note,) = definition.notes(TrainingData())
    assert "is an Optuna objective: a trial whose worker dies starts again" in note


def test_a_note_says_that_a_time_limit_of_optunas_optimize_is_unused(define, monkeypatch):
    source = f"study.{'optimize'}(called, n_trials=100, timeout=600)"  # not in this module's
    monkeypatch.setattr(
        "studyloom.definition.custom_loop.read_source", lambda _: FunctionSource("", source)
    )
    *_, note = define(hills).notes(TrainingData())
    assert note.endswith(
        "has timeout=600 for Optuna's optimize, which is not called; study.timeout=600 limits the "
        "search"
    )
    assert len(define(hills, "study.timeout=60").notes(TrainingData())) == 1


def test_all_seeds_of_a_trial_have_the_same_hyperparameters(define, sqlite_url):
    suggested = []

    def notes(trial):
        suggested.append((trial.number, trial.suggest_float("x", 0, 1)))
        trial.report(1.0, 0)
        return float(len(suggested))

    trials = run_search(define(notes, "objective.seeds=2"), sqlite_url, None, 2).trials()
    assert suggested == [(t.number, t.params["x"]) for t in trials for _ in range(2)]
    assert [trial.value for trial in trials] == [1.5, 3.5]


def test_an_optuna_objective_may_return_several_values(define, sqlite_url):
    two = ("objective.metric=[height,size]", "objective.direction=[maximize,minimize]")
    stored = run_search(define(lambda trial: (hills(trial), 2.0), *two), sqlite_url, None, 2)
    assert [trial.values[1] for trial in stored.trials()] == [2.0, 2.0]


# A loop that gets its parameters by name


def by_name(run, *, width=32, lr=1e-3, act=max, depth: int = 2):
    run(width * lr, depth)
    return run.value


def test_the_default_arguments_of_a_loop_are_the_baseline(define, sqlite_url):
    definition = define(by_name, "+params={depth: 3}", "+space={params: {width: {int: [8, 64]}}}")
    validate_search(definition, TrainingData())
    assert definition.config["params"] == {"width": 32, "lr": 1e-3, "depth": 3}
    assert definition.identity("")["params.width"] == 32
    stored = run_search(definition, sqlite_url, None, 2)
    trials = stored.trials()
    assert [name for name in trial_rows(stored).columns if "width" in name] == ["params.width"]
    assert [trial.params["params.width"] * 1e-3 for trial in trials] == [t.value for t in trials]
    assert (trials[0].value, trials[0].intermediate_values) == (0.032, {3: 0.032})


@pytest.mark.parametrize("function", [by_name, hills])
def test_settings_of_networks_are_refused_for_a_loop_without_config(define, function):
    """However they are set."""
    settings = "++train.epochs=77", "train.clip_norm=null", "+optimizer=sgd", "+model.width=4"
    with pytest.raises(ConfigError) as caught:
        validate_search(define(function, *settings), TrainingData())
    refused = [error.partition(":")[0] for error in caught.value.errors]
    assert refused == ["train.epochs=77", "train.clip_norm=null", "model", "optimizer"]
    words = "train.epochs=77: the loop reads nothing of the section train; its settings are in para"
    assert words in caught.value.errors[0]


def keeps(run, *, steps=2):
    run.keep(net=nn.Linear(1, 1))
    for step in range(steps):
        run.report(height=1.0, step=step)
    return run.value


def hands_on(run, *, steps=2):
    run.keep(net=nn.Linear(1, 1))
    return keeps(run, steps=steps)


def test_a_note_says_that_a_loop_without_epochs_starts_again(define, sqlite_url, tmp_path, caplog):
    words = "called calls run.keep and not run.epochs: a trial whose worker dies starts again"
    assert words in define(keeps).notes(TrainingData())[0]
    assert not define(hands_on).notes(TrainingData()), "what it calls may call run.epochs"
    assert not define(keeps, "objective._target_=looped.train").notes(TrainingData())
    for stopping in (Signal(2), Never()):
        stored = run_search(define(keeps), sqlite_url, tmp_path, 1, stopping)
    words = f"trial 0: its reports up to step 0 have no checkpoint in {tmp_path}; it starts again"
    assert words in caplog.text
    assert stored.trials()[0].value == 1.0


def by_lists(run, *, hidden=[16], drops=(0.1,), widths=(99,)):  # noqa: B006
    return float(len(hidden))


def test_a_default_list_of_a_loop_is_the_baseline_of_a_searched_list(define):
    space = (
        "+space.params.hidden={list:{int:[4,32]},length:{int:[1,3]}}",
        "+space.params.drops={list:{float:[0,0.4]},length:hidden}",
        "+space.params.widths={list:{int:[4,8]},length:{int:[1,3]}}",
    )
    params = {"hidden": [16], "drops": [0.1], "widths": [6, 6]}
    assert define(by_lists, *space, "+params.widths=[6,6]").config["params"] == params
    for overrides, problem in {
        (): "params.widths=[99] is outside its range [4, 8]",
        ("+params.widths=[6,6]", "+params.hidden=[4,8]"): "[0.1] is not as long as params.hidden",
    }.items():
        with pytest.raises(ConfigError) as caught:
            validate_search(define(by_lists, *space, *overrides), TrainingData())
        (line,) = caught.value.errors
        assert problem in line


def test_all_errors_in_the_params_of_a_loop_are_reported_together(define):
    def needs(run, width, *, lr=0.1):
        return lr

    with pytest.raises(ConfigError) as caught:
        define(
            needs,
            "+params={widht: 3}",
            "+space={params: {l: {int: [1, 2]}}, train: {epochs: {int: [1, 2]}}}",
        )
    who = "objective._target_=test_optuna_objective.called"
    assert caught.value.errors == [
        f"params.width must be given: {who} has no default for it",
        f"params.widht: {who} has no parameter widht; it has width, lr; did you mean width?",
        f"space.params.l: {who} has no parameter l; it has width, lr; did you mean lr?",
        f"space.train.epochs: {who} gets only the values of params",
    ]
    anything = define(lambda run, **rest: sum(rest.values()), "+params={a: 1.0, b: 2.0}")
    validate_search(anything, TrainingData())
    run = anything.make_objective(anything.baseline, 0, TrainingData())
    assert run.run(lambda step: None, Never()) == 3.0
