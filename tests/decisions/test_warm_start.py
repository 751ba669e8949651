"""Configurations to begin with: placed in the space, queued once, taken from earlier studies."""

import threading

import optuna
import pytest
from earlier import finished_run
from optuna.trial import TrialState
from toy_worker import RANDOM, fresh, work
from toys import TINY, ask

from studyloom.decisions.placement import place_configuration
from studyloom.decisions.strategy import Strategy
from studyloom.decisions.warm_start import (
    WarmStarts,
    enqueue,
    find_warm_starts,
    read_used_labels,
)
from studyloom.errors import ConfigError
from studyloom.storage.attributes import BASELINE, ENQUEUED, WORKER
from studyloom.storage.opening import open_study

CNN = (
    "{model:cnn,model.cnn.channels:16,"
    "optimizer:sgd,optimizer.sgd.lr:0.1,optimizer.sgd.momentum:0.5}"
)
MLP = "{model.mlp.hidden:[32,64],model.mlp.dropout:0.25,train.batch_size:16}"


@pytest.fixture
def definition():
    return ask(*RANDOM)


def begun(url, definition, trials):
    """Creates a study with its warm starts enqueued, before any worker starts."""
    stored = fresh(url, definition, trials)
    starts = find_warm_starts(definition, read_used_labels(stored))
    enqueue(stored, starts, trials, baseline=definition.baseline)
    return stored


def errors_of(*overrides):
    with pytest.raises(ConfigError) as caught:
        find_warm_starts(ask(*RANDOM, *overrides), ())
    return caught.value.errors


# Placing given parameters


def test_a_missing_hyperparameter_has_its_default_value(definition):
    placed = place_configuration(definition, {"optimizer.adamw.lr": 0.005})
    assert placed.configuration.params == definition.baseline.params | {"optimizer.adamw.lr": 0.005}
    assert (placed.errors, placed.unknown) == ([], {})
    other = place_configuration(
        definition, {"model": "cnn", "optimizer": "sgd", "optimizer.sgd.lr": 0.2}
    )
    assert other.configuration.choices == {"model": "cnn", "optimizer": "sgd"}
    assert other.configuration.values["model.channels"] == 16, "as that option has it"
    assert not other.errors


def test_a_number_that_equals_a_choice_is_that_choice():
    asked = ask(*TINY[:-1], "space=none", "+space.model.dropout.choice=[0.5,0]")
    for given in ({}, {"model.dropout": 0.0}):
        placed = place_configuration(asked, given)
        assert (str(placed.configuration.values["model.dropout"]), placed.errors) == ("0", [])


def test_hyperparameters_may_be_named_by_path_config_key_or_tree(definition):
    for parameters in (
        {"model.mlp.hidden": [32, 64]},
        {"model.hidden": [32, 64]},
        {"model": {"mlp": {"hidden": [32, 64]}}},
        {"model.mlp.hidden.length": 2, "model.mlp.hidden.0": 32, "model.mlp.hidden.1": 64},
    ):
        placed = place_configuration(definition, parameters)
        assert placed.configuration.values["model.hidden"] == [32, 64]
        assert (placed.errors, placed.unknown) == ([], {})
    configuration = definition.space.suggest(
        optuna.create_study(sampler=Strategy(definition).sampler(3)).ask()
    )
    assert place_configuration(definition, configuration.params).configuration == configuration


def test_all_errors_of_configurations_are_listed_at_once():
    errors = errors_of(
        "study.enqueue=[{model:rnn,train.batch_size:17},{optimizer.sgd.lr:0.1,model.mlp.hiden:[3]},"
        "{model.mlp.hidden:[8,8,8,8],optimizer.adamw.lr:fast},{model:cnn,model.mlp.dropout:0.1}]"
    )
    for words in (
        "study.enqueue[0]: model=rnn is not among [mlp, cnn]",
        "study.enqueue[0]: train.batch_size=17 is not among [16, 32, 64]",
        "study.enqueue[1]: optimizer.sgd.lr=0.1 is not a hyperparameter of this configuration",
        "study.enqueue[1]: model.mlp.hiden.0=3 is not a hyperparameter of this configuration; "
        "did you mean model.mlp.hidden.0?",
        "study.enqueue[2]: model.mlp.hidden.length=4 is outside its range [1, 3]",
        "study.enqueue[2]: model.mlp.hidden.0=8 is outside its range [16, 512]",
        "study.enqueue[2]: optimizer.adamw.lr=fast is a string",
        "study.enqueue[3]: model.mlp.dropout=0.1 is not a hyperparameter of this configuration",
    ):
        assert any(line.startswith(words) for line in errors), (words, errors)


def test_a_warm_start_that_cannot_be_tried_is_refused():
    configurations = f"study.enqueue=[{CNN},{MLP}]"
    for overrides, words in (
        (["study.enqueue=[1]"], "study.enqueue must be a list of configurations, such as"),
        (
            [configurations, "study.trials=2"],
            "1 of 2 configurations do not fit into study.trials=2; raise",
        ),
    ):
        assert any(words in line for line in errors_of(*overrides))


# Trials of these configurations


@pytest.mark.usefixtures("threads_are_workers")
def test_each_queued_configuration_has_one_owner(url):
    definition = ask(*RANDOM, f"study.enqueue=[{CNN},{MLP}]")
    stored = begun(url, definition, 6)
    assert [trial.state for trial in stored.trials()] == [TrialState.WAITING] * 3

    def command():
        work(definition, begun(url, definition, 6), 6)

    commands = [threading.Thread(target=command) for _ in range(3)]
    for thread in commands:
        thread.start()
    for thread in commands:
        thread.join()
    trials = stored.trials()
    assert [trial.number for trial in trials] == [*range(6)]
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert trials[0].params == definition.baseline.params
    assert [trial.number for trial in trials if BASELINE in trial.user_attrs] == [0]
    sources = [trial.user_attrs.get(ENQUEUED) for trial in trials[1:]]
    assert sources == ["study.enqueue[0]", "study.enqueue[1]", None, None, None]
    assert trials[1].params["model.cnn.channels"] == 16
    assert [trials[2].params[f"model.mlp.hidden.{item}"] for item in (0, 1)] == [32, 64]
    assert len({tuple(sorted(trial.params.items())) for trial in trials}) == 6
    assert stored.ledger.counts() == {"free": 0, "held": 0, "done": 6}
    assert all(trial.datetime_start and trial.user_attrs[WORKER] for trial in trials)


def test_configurations_added_to_a_running_study_are_tried_once(sqlite_url, definition):
    stored = begun(sqlite_url, definition, 3)
    work(definition, stored, 2)
    later = ask(*RANDOM, f"study.enqueue=[{CNN}]")
    for _ in range(2):
        stored = begun(sqlite_url, later, 3)
        work(later, stored, 3)
    sources = [trial.user_attrs.get(ENQUEUED) for trial in stored.trials()]
    assert sources == [None, None, "study.enqueue[0]"]


# From an earlier study


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """The run directory of a finished study."""
    return finished_run(tmp_path_factory.mktemp("runs") / "earlier", trials=6)


@pytest.fixture
def ranked(earlier):
    """Its trials, the best first."""
    return open_study(f"sqlite:///{earlier}/study.db", "earlier").ranked()


def test_the_best_of_an_earlier_study_are_tried_first(earlier, ranked, sqlite_url):
    definition = ask(
        *RANDOM, f"study.warm_start={earlier}", "study.warm_start_top=2", "study.seed=2"
    )
    stored, best = begun(sqlite_url, definition, 4), ranked[:2]
    baseline, *queued = stored.trials()
    assert baseline.user_attrs[BASELINE]
    assert read_used_labels(stored) == [str(earlier)]
    for trial, other in zip(queued, best, strict=True):
        assert trial.user_attrs[ENQUEUED] == f"{earlier}, trial {other.number}"
    work(definition, stored, 3)
    assert [trial.params for trial in stored.trials()[1:3]] == [trial.params for trial in best]
    numbers = ", ".join(str(trial.number) for trial in best)
    assert find_warm_starts(definition, ()).notes == [
        f"{earlier}: begins with its trials {numbers}"
    ]
    assert find_warm_starts(definition, [str(earlier)]) == WarmStarts([], [str(earlier)], [])


def test_the_note_says_why_an_earlier_trial_is_left_out(earlier):
    overrides = (*RANDOM, f"study.warm_start={earlier}", "~space.train")
    narrow = ask(*overrides, "space.model.mlp.hidden.length.int=[1,1]", "study.warm_start_top=6")
    starts = find_warm_starts(narrow, ())
    for start in starts.configurations:
        params = start.configuration.params
        again = narrow.space.walk(lambda parameter, params=params: params[parameter.name])
        assert again.params == params
    assert starts.configurations
    assert "train.batch_size is not searched here" in starts.notes[0]
    other = ("train.batch_size=7", "space.train.batch_size.choice=[7]")
    (note,) = find_warm_starts(ask(*overrides[:-1], *other), ()).notes
    assert note.startswith(f"{earlier}: none of its trials is taken: train.batch_size=")


def test_a_trial_of_other_options_is_placed_by_shared_config_keys(earlier, ranked):
    other = ask(*TINY[:-1], f"study.warm_start={earlier}", "space=lr", "study.warm_start_top=6")
    rates = [
        trial.params["optimizer.adamw.lr"]
        for trial in ranked
        if (trial.params["optimizer"], trial.params["model"]) == ("adamw", "mlp")
    ]
    assert rates
    starts = find_warm_starts(other, ())
    assert [start.configuration.params["optimizer.lr"] for start in starts.configurations] == rates


def test_a_note_says_that_a_configuration_breaks_a_relation(tmp_path):
    tight = "+space.where=['optimizer.sgd.lr * optimizer.sgd.momentum < .01']"
    definition = ask(*RANDOM, tight, f"study.enqueue=[{CNN},{MLP}]")
    starts = find_warm_starts(definition, ())
    assert [start.origin for start in starts.configurations] == ["study.enqueue[1]"]
    assert starts.notes == [
        "study.enqueue[0]: is left out, since it breaks space.where 'optimizer.sgd.lr * "
        "optimizer.sgd.momentum < .01' with optimizer.sgd.lr=0.1, optimizer.sgd.momentum=0.5"
    ]
    source = finished_run(tmp_path / "earlier")
    never = ask(*RANDOM, "+space.where=['train.batch_size < 1']", f"study.warm_start={source}")
    taken = find_warm_starts(never, ())
    assert (taken.configurations, len(taken.notes)) == ([], 1)
    assert (
        "none of its trials is taken: breaks space.where 'train.batch_size < 1'" in taken.notes[0]
    )
