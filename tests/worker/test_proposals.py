"""Configurations that people, programs and agents propose while the search runs."""

import asyncio
import contextlib
import json
import math
import os
import random
import re
import signal
import statistics
import sys
import threading
from dataclasses import replace

import jsonschema
import optuna
import pytest
import sqlalchemy
from commands import FORKS
from earlier import run_of
from optuna.trial import TrialState
from results import result_of
from toy_worker import RANDOM, fresh, work, work_side_by_side
from toys import ask as asked

from studyloom.cli import main
from studyloom.decisions.early_end import Bounds, set_bounds
from studyloom.decisions.placement import place_configuration
from studyloom.decisions.warm_start import find_warm_starts, store_space
from studyloom.errors import ConfigError
from studyloom.extras.proposals.asking import ask, curve_points
from studyloom.extras.proposals.queue import propose, propose_changed
from studyloom.extras.proposals.stored_space import json_schema, read_space
from studyloom.storage.attributes import BASELINE, PROPOSED
from studyloom.storage.command_record import CommandRecord, begin_command, store_result, store_stage
from studyloom.storage.opening import open_study
from studyloom.storage.stored_study import FINAL_TRAINING
from studyloom.storage.trial_record import TrialRecord

CNN = {"model": "cnn", "model.cnn.channels": 8}
SECRET, SHOWN = 0.98765432, re.compile(r"0\.987|0\.988|98\.[78]")  # of a test part
HILL = (
    *("space=none", "pruner=none", "objective._target_=test_proposals.height"),
    *("objective.direction=maximize", "+params={x: 0.1, y: 0.1, z: 0.1}"),
    *(f"+space.params.{name}.float=[0,1]" for name in "xyz"),
)


def height(config, run):
    """A loop that takes no time: a hill whose top has the value 1."""
    x, y, z = config.params.x, config.params.y, config.params.z
    return 1 - (x - 0.7) ** 2 - (y - 0.3) ** 2 - abs(z - 0.6) ** 1.5


def begun(url, definition, trials=10):
    """A study as its command leaves it to the workers."""
    stored = fresh(url, definition, trials)
    set_bounds(stored, Bounds(None, None, trials))
    store_space(stored, definition)
    return stored


@pytest.fixture(params=["sqlite_url", "postgres_url"])
def url(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def definition():
    return asked(*RANDOM)


@pytest.fixture(scope="module")
def hill():
    return asked(*HILL, "sampler=random")


@pytest.fixture
def stored(sqlite_url, definition):
    return begun(sqlite_url, definition)


def refused(stored, configuration, words, by="anna", why=""):
    with pytest.raises(ConfigError) as caught:
        propose(stored, configuration, by, why)
    assert words in str(caught.value)
    return caught.value.errors


# One proposer


def test_a_proposal_takes_the_next_free_slot_and_is_trained_next(url, hill):
    stored = begun(url, hill, 6)
    work(hill, stored, 2)
    assert propose(stored, {"params.x": 0.7, "params": {"y": 0.3}}, "anna", "a guess") == 2
    told = ask(stored)
    assert (told["trials_left"], told["proposals_left"]) == (3, 0)
    work(hill, stored, 6)
    trials = stored.trials()
    assert [trial.number for trial in trials] == [*range(6)]
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert [TrialRecord(trial).proposer for trial in trials] == [
        None,
        None,
        "anna",
        None,
        None,
        None,
    ]
    assert trials[2].user_attrs[PROPOSED]["why"] == "a guess"
    assert trials[2].params == {"params.x": 0.7, "params.y": 0.3, "params.z": 0.1}, "as composed"
    assert stored.ledger.counts() == {"free": 0, "held": 0, "done": 6}


def test_before_any_worker_begins_the_baseline_stays_trial_0(url, definition):
    stored = begun(url, definition, 4)
    refused(stored, {}, "trial 0 has this configuration already, and is waiting")
    assert stored.trials() == []
    assert propose(stored, CNN, "anna") == 1
    assert [BASELINE in trial.user_attrs for trial in stored.trials()] == [True, False]
    work(definition, stored, 4)
    assert stored.trials()[0].params == definition.baseline.params


def test_a_proposal_that_enqueue_refuses_is_refused_with_its_message(stored):
    configurations = (
        {"model": "rnn", "train.batch_size": 17},
        {"optimizer.sgd.lr": 0.1, "model.mlp.hiden": [3]},
        {"model": {"mlp": {"hidden": [8, 8, 8, 8]}}, "optimizer.adamw.lr": "fast"},
        {**CNN, "model.mlp.dropout": 0.1},
    )
    for configuration in configurations:
        definition = asked(*RANDOM)
        config = definition.config.with_values({"study.enqueue": [configuration]})
        definition = replace(definition, config=config)
        with pytest.raises(ConfigError) as caught:
            find_warm_starts(definition, ())
        words = [line.removeprefix("study.enqueue[0]: ") for line in caught.value.errors]
        assert refused(stored, configuration, words[0]) == words


def test_invalid_proposals_are_refused_in_short_lines(stored):
    for configuration, words in (
        ('{"model":', "must be an object in JSON, such as"),
        ("[1]", "it is a list"),
        ("null", "it is null"),
        ('{"a":' * 5000, "recursion"),
        ({"a": "x" * 100_000}, "it has more than 100000 characters"),
        ('{"optimizer.adamw.lr": NaN}', "optimizer.adamw.lr=nan is outside its range"),
        ('{"optimizer.adamw.lr": 1e999}', "optimizer.adamw.lr=inf is outside its range"),
        ({"optimizer.adamw.lr": True}, "is true or false, but must be a number"),
        ({"train.batch_size": "\x1b[2J" + "x" * 1000}, "train.batch_size=␛[2Jxxx"),
        ({"study.trials": 10_000}, "study.trials=10000 is not a hyperparameter"),
        ({"..train": 1}, "..train=1 is not a hyperparameter"),
        ({"winner": {"test": 1}, "__class__": 1}, "winner.test=1 is not a hyperparameter"),
        ({f"p{n}": n for n in range(1000)}, "p0=0 is not a hyperparameter"),
    ):
        lines = refused(stored, configuration, words)
        assert max(map(len, lines)) <= 300
        assert len(lines) <= 20
    for by, why in (("", ""), ("a" * 41, ""), ("a\nb", ""), ("a", "\x1b]0;"), ("a", "x" * 501)):
        refused(stored, CNN, "must be a line of at most", by, why)
    assert stored.trials() == []
    assert ask(stored)["trials_left"] == 10


def test_proposals_are_unique_and_limited_and_end_with_the_search(sqlite_url, hill):
    stored = begun(sqlite_url, hill)
    work(hill, stored, 2)
    for trial in stored.trials():
        words = (
            f"trial {trial.number} has this configuration already, and is complete "
            f"with {trial.value:.4f}"
        )
        refused(stored, trial.params, words)
    for number in range(3):
        assert propose(stored, {"params.x": number / 8}, "anna") == number + 2
        words = f"trial {number + 2} has this configuration already"
        refused(stored, {"params.x": number / 8}, words)
    refused(stored, {"params.x": 0.9}, "study.proposal_share: 3 of 10 trials may be proposed")
    work(hill, stored, 10)
    more = asked(*HILL, "sampler=random", "study.proposal_share=1")
    store_space(stored, more)
    refused(
        stored, {"params.x": 0.9}, "all 10 trials have begun; raise study.trials to propose more"
    )


def test_a_search_that_has_ended_early_takes_no_proposal(stored, definition):
    work(definition, stored, 2)
    set_bounds(stored, Bounds(None, 4, 10))
    refused(stored, CNN, "4 epochs of study.epochs=4 are spent; a proposal comes too late")
    told = ask(stored)
    assert (told["trials_left"], told["proposals_left"]) == (0, 0)
    assert "are spent" in told["end_reason"]


def test_after_the_test_no_proposal_is_taken_even_with_more_trials(tmp_path, hill, capsys):
    run_dir = run_of(tmp_path / "run", name="s")
    stored = begun(f"sqlite:///{run_dir}/study.db", hill, 2)
    work(hill, stored, 2)
    assert main(["ask", str(run_dir)]) == 0
    assert "all 2 trials have begun; 0 may be proposed now" in capsys.readouterr().out
    with stored.ledger.testing() as store:
        stored.count_test_use(store)
    set_bounds(stored, Bounds(None, None, 10))
    stored.ledger.extend(10)
    why = "the test set of s has been used, and its result could bias a proposal"
    refused(stored, {"params.x": 0.7}, why)
    told = ask(stored)
    assert (told["trials_left"], told["proposals_left"]) == (8, 0)
    assert why in told["end_reason"]
    assert main(["propose", str(run_dir), '{"params.x": 0.7}']) == 2
    assert why in capsys.readouterr().err


def test_a_study_whose_space_is_not_stored_takes_no_proposals(sqlite_url):
    grid = asked(*HILL, "sampler=grid", *(f"+space.params.{n}.step=0.5" for n in "xyz"))
    stored = begun(sqlite_url, grid)
    refused(stored, {}, "its space is not stored")


# What a proposer is told


COMMAND = CommandRecord(10, reevaluated=True, tested=True, top=1, seeds=1)


def write_tested(stored, run_dir, stage="s/final-training 4-1-1"):
    """Leaves a result whose test is a secret, by default one of an earlier and smaller budget."""
    trial = stored.trials()[1]
    chosen = {"trial": 1, "params": trial.params, "search_value": trial.value}
    test = {"winner": {"mean": SECRET, "values": [SECRET]}}
    result = result_of(study="s", stage=stage, winner=chosen, test=test)
    result.write(run_dir, {})
    store_result(stored, result.in_short())
    begin_command(stored, COMMAND, 0.0)
    store_stage(stored, FINAL_TRAINING, result.stage)


@pytest.mark.parametrize(
    "more",
    [
        (),
        (
            *("space.model.mlp.hidden.length=1", "~space.model.mlp.dropout"),
            "+space.model.mlp.dropout={list: {float: [0, 0.5]}, length: hidden}",
        ),
    ],
)
def test_exactly_what_the_json_schema_allows_is_accepted(sqlite_url, more):
    definition = asked(*RANDOM, *more)
    known = read_space(begun(sqlite_url, definition))
    schema = json_schema(known)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    choose, rng = optuna.create_study(sampler=optuna.samplers.RandomSampler(0)), random.Random(0)
    for number in range(50):
        configuration = definition.space.suggest(choose.ask())
        written = dict(configuration.params)
        for above in ("model.mlp.hidden", "model.mlp.dropout"):
            written.pop(f"{above}.length", None)
            if items := [
                written.pop(f"{above}.{n}") for n in range(3) if f"{above}.{n}" in written
            ]:
                written[above] = items
        placed = place_configuration(known, written)
        assert validator.is_valid(written)
        assert (placed.configuration, placed.errors, placed.unknown) == (configuration, [], {})
        for name in written:
            wrong = {**written, name: rng.choice([-1e9, "x", [], None])}
            placed = place_configuration(known, wrong)
            assert not validator.is_valid(wrong), wrong
            assert placed.errors or placed.unknown, wrong
        few = {name: written[name] for name in written if name in known.choices or number % 2}
        assert validator.is_valid(few)
        assert not place_configuration(known, few).errors
        assert (
            place_configuration(definition, few).configuration
            == place_configuration(known, few).configuration
        )


def test_ask_returns_the_trials_and_no_value_of_the_test_set(tmp_path, hill, capsys):
    run_dir = run_of(tmp_path / "run", name="s")
    stored = begun(f"sqlite:///{run_dir}/study.db", hill)
    work(hill, stored, 2)
    write_tested(stored, run_dir)
    propose(stored, {"params.x": 0.7}, "anna")
    for options in ([], ["--json"]):
        assert main(["ask", str(run_dir), *options]) == 0
        out = capsys.readouterr().out
        assert not SHOWN.search(out)
    told = json.loads(out)
    assert told["definition"]["metric"] == "accuracy"
    assert told["definition"]["direction"] == "maximize"
    assert told["definition"]["baseline"] == stored.trials()[0].value
    assert (told["budget"], told["trials_left"], told["proposals_left"]) == (10, 7, 2)
    rows = told["trials"]
    assert [(row["number"], row["state"]) for row in rows[1:]] == [(1, "complete"), (2, "waiting")]
    assert rows[1]["params"] == stored.trials()[1].params
    assert [row["proposed_by"] for row in rows] == [None, None, "anna"]


def test_ask_returns_the_curve_of_each_trial(sqlite_url, definition):
    stored = begun(sqlite_url, definition)
    work(definition, stored, 2)
    for row, trial in zip(ask(stored)["trials"], stored.trials(), strict=True):
        assert row["curve"] == [*zip((1, 2), TrialRecord(trial).curve["value"], strict=True)]
    long = optuna.trial.create_trial(
        value=1.0, intermediate_values={n: math.nan if n == 7 else float(n) for n in range(101)}
    )
    points = curve_points(long)
    assert len(points) == 20
    assert points[-1] == (100, 100.0)
    assert all(value == at for at, value in points)


def test_the_best_region_is_where_the_best_tenth_of_the_trials_is(sqlite_url, hill):
    stored = begun(sqlite_url, hill, 40)
    work(hill, stored, 9)
    assert ask(stored)["best_region"] is None
    work(hill, stored, 40)
    best = sorted(stored.trials(), key=lambda trial: -trial.value)[:4]
    assert ask(stored)["best_region"] == {
        name: {
            "low": min(trial.params[name] for trial in best),
            "high": max(trial.params[name] for trial in best),
        }
        for name in best[0].params
    }


def test_the_command_line_takes_a_proposal_as_text_and_prints_its_trial(
    tmp_path, definition, capsys
):
    run_dir = run_of(tmp_path / "run", name="s")
    stored = begun(f"sqlite:///{run_dir}/study.db", definition)
    command = ["propose", str(run_dir)]
    assert main([*command, json.dumps(CNN), "--by", "anna", "--why", "small", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"study": "s", "trial": 1}
    assert main([*command, json.dumps(CNN)]) == 2
    assert "trial 1 has this configuration already" in capsys.readouterr().err
    for words in (["trials", str(run_dir)], ["trials", str(run_dir), "--csv"]):
        assert main(words) == 0
        assert "anna" in capsys.readouterr().out
    assert stored.trials()[1].user_attrs[PROPOSED]["why"] == "small"


# Over the Model Context Protocol


def talk(run_dirs, *calls):
    """The tools of a server and what they result, by the package's own client over stdio."""
    mcp = pytest.importorskip("mcp") if "CI" not in os.environ else __import__("mcp")
    command = ["-m", "studyloom", "mcp", *map(str, run_dirs), "--by", "claude"]
    server = mcp.StdioServerParameters(command=sys.executable, args=command)

    async def converse():
        async with mcp.Client(server) as client:
            tools = (await client.list_tools()).tools
            found = {tool.name: {*tool.input_schema["properties"]} for tool in tools}
            return found, [await client.call_tool(*call) for call in calls]

    tools, results = asyncio.run(converse())
    return tools, [(each.is_error, each.content[0].text) for each in results]


@pytest.mark.chaos
def test_an_agent_proposes_and_sees_no_test_value_during_the_search(tmp_path, hill):
    run_dir, other = (run_of(tmp_path / name, name="s") for name in ("run", "other"))
    for folder in (run_dir, other):
        stored = begun(f"sqlite:///{folder}/study.db", hill)
        work(hill, stored, 4)
        write_tested(stored, folder)
    stored = open_study(f"sqlite:///{run_dir}/study.db", "s")
    reads = [(name, {}) for name in ("ask", "status", "compare", "report")]
    nonsense = [
        *(
            {"x": 2},
            {"configuration": {"params.x": 2}},
            {"configuration": "no JSON"},
            {"configuration": [1]},
        ),
        *(
            {"configuration": {"winner.test": 1}},
            {"configuration": {}, "why": "\x1b[2J"},
            {"configuration": {}},
            {},
        ),
        {"configuration": {"params.x": "x" * 200_000}},
    ]
    top = {"configuration": oracle(None), "why": "the top"}
    asked_for_the_test = {"latest": 1, "path": f"{run_dir}/winner.json"}
    calls = [("propose", each) for each in (*nonsense, top, top)]
    tools, answers = talk(
        [run_dir, other],
        *(*reads, *calls, ("ask", asked_for_the_test), ("winner", {}), *reads),
        ("stop_trial", {"trial": 4}),
    )
    assert tools == {
        **{name: set() for name in ("status", "compare", "report")},
        "ask": {"latest"},
        "propose": {"configuration", "why"},
        "stop_trial": {"trial"},
    }
    assert not [text for _, text in answers if SHOWN.search(text)]
    assert [is_error for is_error, _ in answers[4:13]] == [True] * 9
    assert max(len(text) for _, text in answers[4:13]) < 1000
    assert "params.x=2 is outside its range [0, 1]" in answers[5][1]
    assert json.loads(answers[13][1]) == {"trial": 4}
    assert "trial 4 has this configuration already, and is waiting" in answers[14][1]
    assert [trial.number for trial in stored.trials()] == [*range(5)]
    assert TrialRecord(stored.trials()[4]).proposer == "claude"
    assert len(json.loads(answers[15][1])["trials"]) == 1
    assert answers[16][0], "there is no such tool"
    told = [json.loads(text) for _, text in answers[-5:-2]]
    assert told[0]["proposals_left"] == 2
    assert told[1]["trials"]["waiting"] == 1
    assert [each["test"] for each in told[2]["studies"]] == [None, None]
    assert "proposed by claude" in answers[-2][1]
    assert json.loads(answers[-1][1]) == {"trial": 4, "outcome": "ended"}
    work(hill, stored, 10)
    final = COMMAND.stage_of("s", FINAL_TRAINING)
    fresh(f"sqlite:///{run_dir}/study.db", hill, 1, final)
    write_tested(stored, run_dir, final)
    *told, (is_error, text) = talk([run_dir], ("report", {}), ("status", {}), ("compare", {}))[1]
    assert all(SHOWN.search(text) for _, text in told), "once the search has ended"
    assert is_error
    assert "compare needs two run directories or more, and this server has one" in text


# Several at once, and faults


def test_a_trial_is_proposed_with_changes(stored, definition):
    number = propose(stored, CNN, "anna")
    changed = propose_changed(stored, number, {"model.cnn.channels": 16}, "anna")
    work(definition, stored, changed + 1)
    (first, second) = stored.trials()[-2:]
    assert second.params == first.params | {"model.cnn.channels": 16}
    assert TrialRecord(second).proposal_reason == f"trial {number} with changes"
    with pytest.raises(ConfigError, match=f"trial {number} has this configuration already"):
        propose_changed(stored, number, {}, "anna")
    with pytest.raises(ConfigError, match="1000000 is not among"):
        propose_changed(stored, number, {"model.cnn.channels": 10**6}, "anna")
    with pytest.raises(ConfigError, match="there is no trial 99"):
        propose_changed(stored, 99, {}, "anna")


def test_the_values_of_an_option_that_is_changed_are_left_out(stored, definition):
    number = propose(stored, CNN, "anna")
    other = {"model": "mlp", "optimizer.adamw.lr": 0.002}
    changed = propose_changed(stored, number, other, "anna")
    work(definition, stored, changed + 1)
    assert stored.trials()[changed].params["model"] == "mlp"
    with pytest.raises(ConfigError, match=r"model\.cnn\.channels=16 is not a hyperparameter"):
        propose_changed(stored, number, {"model": "mlp", "model.cnn.channels": 16}, "anna")


@pytest.mark.usefixtures("threads_are_workers")
def test_concurrent_proposers_and_workers_make_exactly_n_trials(url, hill):
    stored = begun(url, hill, 20)
    told, done = [], threading.Event()

    def keep_proposing(name):
        other, fate = open_study(url, "s"), random.Random(name)
        while not done.is_set():
            with contextlib.suppress(ConfigError):
                number = propose(other, {"params.x": fate.choice([0.1, 0.2, 0.3, 0.4])}, name)
                told.append((name, number))

    proposers = [threading.Thread(target=keep_proposing, args=(name,)) for name in ("a", "b")]
    for thread in proposers:
        thread.start()
    work_side_by_side(hill, url, 20, 3)
    done.set()
    for thread in proposers:
        thread.join()
    trials = stored.trials()
    assert [trial.number for trial in trials] == [*range(20)]
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    proposed = {
        (TrialRecord(trial).proposer, trial.number)
        for trial in trials
        if TrialRecord(trial).proposer
    }
    assert {*told} == proposed
    assert len(told) == len(proposed) <= 4, "each configuration once"


def propose_until_killed(url, statement):
    """Proposes a configuration, and is killed before a statement, or after the last."""
    stored, seen = open_study(url, "s"), [0]

    def count(*_):
        seen[0] += 1
        if seen[0] == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", count)
    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", count)
    with contextlib.suppress(ConfigError):
        propose(stored, {"params.x": 0.5}, "anna")


def propose_and_be_killed_anywhere(url):
    """Forks a proposer for each of its statements; the last of them comes to its end."""
    for statement in range(1, 100):
        if not (pid := os.fork()):
            propose_until_killed(url, statement)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        with contextlib.closing(open_study(url, "s")) as stored:
            assert stored.ledger.compare() is None
            assert len(stored.trials()) in (1, 2)
        if status == 0:
            break
    assert 10 < statement < 99


@pytest.mark.chaos
def test_a_proposer_that_is_killed_at_any_statement_costs_nothing(url, hill):
    stored = begun(url, hill, 4)
    work(hill, stored, 1)
    process = FORKS.Process(target=propose_and_be_killed_anywhere, args=(url,))
    process.start()
    process.join()
    assert process.exitcode == 0
    work(hill, stored, 4)
    told = [(trial.number, TrialRecord(trial).proposer) for trial in stored.trials()]
    assert told == [(0, None), (1, "anna"), (2, None), (3, None)]
    assert stored.ledger.counts() == {"free": 0, "held": 0, "done": 4}


# What proposals do to a search


def regret(folder, seed, proposer):
    """What the best of 40 trials is below the top of the hill, with a proposer beside TPE."""
    definition = asked(*HILL, "sampler=tpe", f"study.seed={seed}")
    stored = begun(f"sqlite:///{folder}/{seed}-{proposer.__name__}.db", definition, 40)
    fate = random.Random(seed)
    for trials in range(1, 41):
        work(definition, stored, trials)
        with contextlib.suppress(ConfigError):
            propose(stored, proposer(fate), proposer.__name__)
    return 1 - max(trial.value for trial in stored.trials())


def nobody(fate):
    raise ConfigError("proposes nothing")


def useless(fate):
    """Proposes configurations at the foot of the hill, each another one."""
    return {
        "params.x": 0.1 * fate.random(),
        "params.y": 1 - 0.1 * fate.random(),
        "params.z": 0,
    }


def oracle(fate):
    return {"params.x": 0.7, "params.y": 0.3, "params.z": 0.6}


@pytest.mark.nightly
def test_good_proposals_win_and_useless_proposals_cost_little(tmp_path):
    found = {
        proposer: statistics.fmean(regret(tmp_path, seed, proposer) for seed in range(8))
        for proposer in (nobody, useless, oracle)
    }
    assert found[oracle] == pytest.approx(0, abs=1e-9)
    assert found[useless] <= found[nobody] + 0.05
