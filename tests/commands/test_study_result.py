"""From the search to the result: what a study says and how it ends if there is none."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import QUICK
from omegaconf import OmegaConf
from optuna.trial import TrialState
from toys import LOOP

import studyloom as api
from studyloom.cli import main
from studyloom.commands import write_result as result
from studyloom.decisions.early_end import read_forecast
from studyloom.errors import ConfigError, Diverged, NoWinner, StorageError
from studyloom.files import mark_trusted
from studyloom.storage.attributes import RESULT
from studyloom.storage.command_record import StoredCommand
from studyloom.storage.redo import redo_failed
from studyloom.views import report
from studyloom.winner import evaluation as winner_evaluation
from studyloom.winner.candidates import CandidateTrainings
from studyloom.winner.result import Result
from studyloom.worker import driver

CONF = Path(__file__).parents[2] / "conf"
REEVALUATED = ("winner.enabled=true", "winner.top=2", "winner.seeds=2", "study.trials=2")


def search(run_dir, *overrides):
    """Runs a small study in this process."""
    overrides = [*QUICK, *REEVALUATED, "launcher.workers=1", f"run_dir={run_dir}", *overrides]
    return api.run(CONF / "mnist.yaml", overrides, quiet=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder whose study has ended its search, without a re-evaluation."""
    folder = tmp_path_factory.mktemp("done") / "run"
    with search(folder, "winner.enabled=false"):
        return folder


@pytest.fixture
def searched(done, tmp_path):
    """A copy of it, with the result of an earlier budget in the database."""
    run_dir = shutil.copytree(done, tmp_path / "run")
    mark_trusted(run_dir)
    with api.open_study(run_dir) as study:
        study.optuna.set_user_attr(RESULT, {"trial": 7})
    return run_dir


@pytest.fixture
def make_objective(monkeypatch):
    """Returns a function that lets another one be called before each training of a candidate."""
    make = CandidateTrainings.make_objective

    def call_before(function):
        def make_after(self, configuration, *arguments):
            function(configuration)
            return make(self, configuration, *arguments)

        monkeypatch.setattr(CandidateTrainings, "make_objective", make_after)

    return call_before


BUG = {"above": 2.0}
BEFORE_TEST = {"call": lambda: None}


def buggy(run, *, x=0.1):
    """A loop that takes no time, and has a bug for large values, which are the best."""
    if x > BUG["above"]:
        raise RuntimeError("a bug")
    run.keep(net=torch.nn.Linear(1, 1))
    for _ in run.epochs(1):
        run.report(score=x)
    return run.value


def score(config, run, part):
    BEFORE_TEST["call"]()
    return {"score": config.params.x}


@pytest.mark.parametrize("moment", [pytest.param("re-evaluation", marks=pytest.mark.chaos), "test"])
def test_trials_opened_after_the_search_are_trained_before_it_returns(
    moment, monkeypatch, make_objective, tmp_path
):
    """The trials had failed, and one of them wins: they were the best."""
    monkeypatch.setitem(BUG, "above", 0.4)
    opened = []

    def redo(*_):
        if not opened:
            BUG["above"] = 2.0
            with api.open_study(tmp_path / "run") as study:
                opened.extend(redo_failed(study._stored))

    if moment == "re-evaluation":
        make_objective(redo)
    else:
        monkeypatch.setitem(BEFORE_TEST, "call", redo)
    with api.search(
        buggy,
        space={"x": api.Float(0, 1)},
        maximize="score",
        trials=8,
        workers=1,
        quiet=True,
        sampler="random",
        winner={"top": 2, "seeds": 1},
        run_dir=tmp_path / "run",
        name="s",
        objective={"test": f"{__name__}.score"},
        study={"max_failures": 9},
    ) as study:
        assert opened
        trials = study._stored.trials()
        assert [trial.state for trial in trials] == 8 * [TrialState.COMPLETE]
        best = max(trial.value for trial in trials)
        assert study.winner.value == study.winner.test == best > 0.4
        assert StoredCommand.read(study._stored).record.ended == 0


@pytest.mark.chaos
def test_a_process_that_lost_its_gpu_does_not_use_the_test_set(searched, monkeypatch, capsys):
    def fail():
        raise RuntimeError("CUDA error: device-side assert triggered")

    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "synchronize", fail)
        assert main(["winner", str(searched)]) == 75
    assert "repeat it in a new process" in capsys.readouterr().err
    with api.open_study(searched) as study:
        assert study._stored.test_uses() == 0
    assert main(["winner", str(searched)]) == 0


@pytest.mark.chaos
def test_a_study_whose_candidates_all_failed_says_why_it_has_no_winner(
    make_objective, searched, capsys
):
    def diverge(configuration):
        if configuration.values["seed"] == 0:
            raise Diverged(0, 1, 2, "train", float("inf"))

    make_objective(diverge)
    for _ in range(2):  # the second has nothing to do, and still no result
        with pytest.raises(NoWinner) as caught:
            search(searched)
        assert "none of the 2 candidates was trained with all its new seeds" in str(caught.value)
        assert "2 × diverged, such as: train loss is inf at epoch 1 of 2" in str(caught.value)
        assert "winner.top" in str(caught.value)
    assert not (searched / "winner.json").exists()
    assert (searched / "report.html").exists()
    assert main(["status", str(searched), "--check"]) == 1
    assert main(["winner", str(searched)]) == 1
    assert "error: there is no winner: none of the " in capsys.readouterr().err
    assert read_exit_code(searched, capsys) == 1


def test_a_study_without_a_result_says_why_and_records_its_end(searched, monkeypatch, capsys):
    def contradict(stages):
        raise StorageError("the database is inconsistent")

    with monkeypatch.context() as patch:
        patch.setattr(driver, "reconcile", contradict)
        with pytest.raises(StorageError, match="inconsistent"):
            search(searched)
    assert read_exit_code(searched, capsys) == 2
    # A smaller budget has only trials that failed; a later one of the study is complete.
    monkeypatch.setattr(winner_evaluation, "choose_candidates", lambda *_: {})
    with pytest.raises(NoWinner, match="none of the first 2 trials is complete; raise study"):
        search(searched)


# `studyloom winner`


def read_exit_code(run_dir, capsys):
    """Returns the exit code with which the study has ended."""
    capsys.readouterr()
    assert main(["status", str(run_dir), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["exit_code"]


@pytest.mark.chaos
def test_a_stopped_winner_has_no_result_and_prints_no_earlier_one(
    searched, make_objective, monkeypatch, capsys
):
    make_objective(lambda configuration: signal.raise_signal(signal.SIGINT))
    assert main(["winner", str(searched), "--json"]) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert f"stopped; studyloom winner {searched} resumes here" in err
    assert read_exit_code(searched, capsys) is None
    monkeypatch.undo()
    assert main(["winner", str(searched), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["trial"] != 7
    assert read_exit_code(searched, capsys) == 0


@pytest.mark.chaos
def test_a_search_at_its_cost_limit_continues_with_a_higher_one(tmp_path):
    for limit, trials in ((1e-9, 1), (1e9, 4)):
        priced = ("study.trials=4", "cost.per_hour=1", f"cost.limit={limit}")
        with search(tmp_path / "run", *priced) as study:
            assert len(study.trials) == trials
            assert study.winner is not None
            ended = read_forecast(study._stored).ending
    assert ended is None


@pytest.mark.chaos
def test_a_text_with_a_dollar_and_a_brace_stays_in_the_files_of_a_result(tmp_path):
    short = ("study.trials=1", "winner.top=1", "winner.seeds=1")
    search(tmp_path / "run", *LOOP, *short, r"+params.note='\${{HOME}}'").close()
    for name in ("best.yaml", "winner.yaml"):
        config = OmegaConf.load(tmp_path / "run" / name)
        assert config.params.note == "${{HOME}}"


def test_a_winner_whose_trainings_all_raise_halts(searched, make_objective, capsys):
    make_objective(lambda configuration: {}["error"])
    assert main(["winner", str(searched)]) == 1
    assert "KeyError: 'error'" in capsys.readouterr().err
    assert not [*searched.glob("study.db-*")], "the database was closed"
    assert read_exit_code(searched, capsys) == 1


def test_winner_closes_the_database_of_a_study_that_it_refuses(searched, monkeypatch, capsys):
    def refuse(*_):
        raise ConfigError("another study definition")

    monkeypatch.setattr("studyloom.worker.open_study.check_definition", refuse)
    assert main(["winner", str(searched)]) == 2
    assert "another study definition" in capsys.readouterr().err
    assert not [*searched.glob("study.db-*")]


@pytest.mark.chaos
def test_a_winner_is_tested_under_the_lease_and_a_late_stop_is_ignored(
    searched, monkeypatch, capsys
):
    """No other command uses the test set meanwhile."""
    evaluate = result.evaluate_winner

    def evaluate_and_stop(evaluation, *arguments, **options):
        assert evaluation.study.stored.ledger.testing_commands()
        evaluated = evaluate(evaluation, *arguments, **options)
        signal.raise_signal(signal.SIGINT)
        return evaluated

    monkeypatch.setattr(result, "evaluate_winner", evaluate_and_stop)
    assert main(["winner", str(searched)]) == 0
    out, _ = capsys.readouterr()
    assert "test      winner accuracy" in out
    assert read_exit_code(searched, capsys) == 0


def test_a_report_that_cannot_be_drawn_keeps_the_exit_code(searched, monkeypatch, capsys):
    monkeypatch.setattr(report, "collect_trials_of_stages", lambda *_: 1 / 0)
    search(searched, "winner.enabled=false", "study.trials=3").close()
    errors = capsys.readouterr().err
    assert "report.html is not written: It cannot be drawn: ZeroDivisionError" in errors
    assert "Traceback" not in errors
    assert main(["report", str(searched)]) == 0
    assert "report.html is not written" in capsys.readouterr().err


# `--network`


@pytest.mark.chaos
def test_a_network_named_later_predicts_and_the_test_is_not_repeated(tmp_path, capsys):
    run_dir = tmp_path / "run"
    search(run_dir, *LOOP).close()
    mark_trusted(run_dir)
    before = Result.load(run_dir)
    inputs = tmp_path / "inputs.npy"
    np.save(inputs, np.zeros((3, 1, 28, 28)))
    assert main(["predict", str(run_dir), str(inputs)]) == 2
    assert "--network mine.Net" in capsys.readouterr().err
    assert main(["winner", str(run_dir), "--network", "toys.make_flatt"]) == 2
    assert "toys.make_flatt: AttributeError" in capsys.readouterr().err
    with_network = ["--network", "toys.make_flat"]
    assert main(["predict", str(run_dir), str(inputs), *with_network]) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 3
    assert main(["winner", str(run_dir), *with_network]) == 0
    capsys.readouterr()
    assert main(["predict", str(run_dir), str(inputs)]) == 0
    assert [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()] == [
        line.split("\t")[1] for line in printed.splitlines()
    ]
    after = Result.load(run_dir)
    assert after.data.shape == (1, 28, 28)
    assert after.command == before.command
    assert after.test == before.test
    search(run_dir, *LOOP, "objective.network={network:toys.make_network}").close()
    assert main(["predict", str(run_dir), str(inputs)]) == 0
    with api.open_study(run_dir) as study:
        assert study._stored.test_uses() == 1


# `studyloom ablate`


@pytest.mark.chaos
def test_ablate_prints_json_and_uses_the_test_set_at_most_once(searched, capsys):
    for _ in range(2):  # the second has nothing to train
        assert main(["ablate", str(searched), "--json"]) == 0
        printed = capsys.readouterr()
        ablation = json.loads(printed.out)
        assert ablation == Result.load(searched).document()["ablation"]
        assert "changes to the default configuration" in printed.err
    with api.open_study(searched) as study:
        assert study._stored.test_uses() == 1
    assert all(row["values"] for row in ablation["rows"])
    assert ("Ablation of the winner" in (searched / "report.html").read_text()) == bool(
        ablation["rows"]
    )
