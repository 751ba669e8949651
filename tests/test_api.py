"""The Python API: what it exports, that it does what the command does, and how it ends."""

import csv
import io
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback

import hydra
import numpy as np
import optuna
import pandas
import pytest
import torch
import yaml
from commands import QUICK, ROOT, environment, study, studyloom
from hydra.core.global_hydra import GlobalHydra
from live_processes import until
from results import result_of

import studyloom as api
from studyloom.cli import main
from studyloom.errors import Halted
from studyloom.files import mark_trusted
from studyloom.storage.attributes import TRIAL_KEYS
from studyloom.storage.opening import create_study, open_study
from studyloom.storage.trial_tables import Rows, as_json, curve_rows

CONF = ROOT / "conf"
ONE = ("launcher.workers=1", "study.trials=3")


def search(run_dir, *overrides, **options):
    every = [*QUICK, *ONE, f"run_dir={run_dir}", *overrides]
    return api.run(CONF / "mnist.yaml", every, quiet=True, **options)


def facts(run_dir):
    """What a search decides: parameters, values and curves of its trials, to the last digit."""
    with api.open_study(run_dir) as study:
        curves = [tuple(row.values()) for row in curve_rows(study._stored).to_dicts()]
        return [(t.number, t.state, t.params, t.values) for t in study._stored.trials()], curves


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small study with a winner that Python has run, by one worker; and its folder."""
    run_dir = tmp_path_factory.mktemp("finished")
    overrides = ("winner.enabled=true", "winner.top=1", "winner.seeds=2", "study.trials=4")
    with search(run_dir, *overrides) as study:
        yield study


# What is exported


def test_every_exported_name_exists_and_is_documented():
    assert {*api.__all__} <= {*dir(api)}
    assert all(getattr(api, name).__doc__ for name in {*api.__all__} - {"__version__"})
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        api.serach  # noqa: B018


# The same as the command


@pytest.fixture(scope="module")
def by_command(tmp_path_factory):
    """The trials of the command, which two workers have made."""
    run_dir = tmp_path_factory.mktemp("command")
    done = study(*QUICK, *ONE, "launcher.workers=2", f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    return facts(run_dir)


@pytest.mark.chaos
def test_a_search_from_python_gives_the_trials_of_the_command(by_command, tmp_path):
    with search(tmp_path) as study:
        line = "mnist: 3 of 3 trials"
        assert line in repr(study)
        assert f">{study.best.number}</td>" in study._repr_html_()
    assert facts(tmp_path) == by_command
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    written = {".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml", "best.yaml"}
    assert written <= names
    assert studyloom("status", tmp_path).returncode == 0


@pytest.mark.chaos
def test_a_composed_config_gives_the_trials_of_the_command(by_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with hydra.initialize_config_dir(str(CONF), version_base=None):
        config = hydra.compose("mnist", [*QUICK, *ONE, "run_dir=run"])
    api.run(config, ["launcher.workers=2"], quiet=True).close()
    assert facts(tmp_path / "run") == by_command
    config.study.name = "other"
    with api.run(config, ["model=cnn", "space=none", "optimizer.lr=0.01"], quiet=True) as study:
        assert study.best.config["model"]["_target_"] == "studyloom.models.CNN"
        assert study.best.config["optimizer"]["lr"] == 0.01


def square(trial):
    return trial.suggest_float("x", -1, 1) ** 2


@pytest.mark.chaos
def test_notes_on_all_trials_are_printed_before_the_first(tmp_path, capsys):
    few = {"trials": 1, "workers": 1, "winner": False}
    api.search(square, minimize="y", run_dir=tmp_path / "it", **few).close()
    before, _, _ = capsys.readouterr().out.partition("square begins")
    assert "square(trial) is an Optuna objective: a trial whose worker dies starts again" in before


@pytest.mark.chaos
def test_the_output_names_a_command_that_resumes_the_study(tmp_path, capsys):
    overrides = [*QUICK, *ONE, f"run_dir={tmp_path}"]
    api.run(CONF / "mnist.yaml", overrides).close()
    shown = capsys.readouterr().out
    assert "3 of 3 trials" in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("next ")]
    _, program, *arguments = line.split()
    assert program == "studyloom"
    command = [sys.executable, "-m", "studyloom", *[each.strip("'") for each in arguments]]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "6 of 6 trials" in done.stdout


# What belongs to the process stays as it was


@pytest.mark.chaos
def test_a_run_restores_hydra_environment_signals_and_random_states(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "mine")
    numbers = [random.getstate()[1][:5], np.random.get_state()[1][:5].tolist()]
    state = torch.get_rng_state()
    before = (dict(os.environ), list(sys.path), logging.getLogger().handlers[:], os.getcwd())
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    verbosity = optuna.logging.get_verbosity()
    with hydra.initialize_config_dir(str(CONF), job_name="mine", version_base="1.2"):
        app = GlobalHydra.instance().hydra
        search(tmp_path).close()
        assert GlobalHydra.instance().hydra is app
        assert hydra.compose("pareto").study.name == "pareto"
    after = (dict(os.environ), list(sys.path), logging.getLogger().handlers[:], os.getcwd())
    assert after == before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert optuna.logging.get_verbosity() == verbosity
    assert [random.getstate()[1][:5], np.random.get_state()[1][:5].tolist()] == numbers
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.chaos
def test_a_study_runs_in_a_thread_and_one_at_a_time(tmp_path):
    results, refused = [], []

    def work():
        with search(tmp_path / "a", "study.trials=3", "train.epochs=50") as study:
            results.append(len(study.to_dicts()))

    thread = threading.Thread(target=work)
    thread.start()
    end = time.monotonic() + 60
    while thread.is_alive() and not refused and time.monotonic() < end:
        if (tmp_path / "a" / "study.db").exists():
            with pytest.raises(api.LaunchError, match="runs a study already"):
                search(tmp_path / "b")
            refused.append(True)
        time.sleep(0.01)
    thread.join()
    assert (results, refused) == ([3], [True])


def test_a_study_of_plain_optuna_is_read_like_one_of_studyloom(sqlite_url, tmp_path):
    """Also if its attributes are called like ours."""

    def objective(trial):
        for name in TRIAL_KEYS:
            trial.set_user_attr(name, 7)
        trial.report(0.5, 1)
        return trial.suggest_float("x", 0.0, 1.0)

    plain = optuna.create_study(storage=sqlite_url, study_name="plain")
    plain.optimize(objective, n_trials=3)
    with api.open_study(sqlite_url) as study:
        assert [row["value"] for row in study.to_dicts()] == [t.value for t in plain.trials]
        assert len(study.trials) == len(study.curves()) == 3
        assert study.best.value == plain.best_value
        assert (study.baseline, study.best.config, study.winner) == (None, None, None)
        assert "3 complete" in repr(study)
        assert study.report(tmp_path).exists()
        assert study.optuna.trials[0].user_attrs == dict.fromkeys(TRIAL_KEYS, 7)


# Errors


def test_all_errors_of_a_config_are_in_one_exception(tmp_path):
    with pytest.raises(api.ConfigError, match=r"did you mean trials\?") as caught:
        search(tmp_path / "run", "study.trails=3", "optimizer=adan", "model.hiden=[3]")
    assert len(caught.value.errors) == 3
    assert not (tmp_path / "run").exists()


def test_an_object_that_cannot_be_run_is_a_config_error(monkeypatch):
    monkeypatch.chdir(ROOT)
    for source, overrides, words in (
        ("conf/nothing.yaml", [], "there is no such file"),
        ("mine", [], "one of studyloom's"),
        ("studies/__init__.py", [], "must have one function decorated"),
        ("conf/mnist.yaml", "study.trials=3", "must be a list"),
        ("conf/mnist.yaml", ["storage.url=postgresql://u:p@h/d"], "must not have a password"),
        ("conf/mnist.yaml", ["study.dry_run=true"], "study.dry_run is for a shell"),
    ):
        with pytest.raises(api.ConfigError, match=words):
            api.run(source, overrides, quiet=True)


def test_another_definition_under_the_same_name_is_an_exception(finished, tmp_path):
    run_dir = shutil.copytree(finished.run_dir, tmp_path / "run")  # its config is written anew
    with pytest.raises(api.DefinitionError, match=r"train\.epochs: 2 → 3"):
        search(run_dir, "train.epochs=3")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.chaos)])
def test_a_study_whose_first_trial_fails_halts_with_an_exception(tmp_path, workers):
    function = ("objective._target_=test_api.broken", "objective.direction=minimize")
    with pytest.raises(api.Halted, match="it is broken"):
        search(tmp_path, *function, f"launcher.workers={workers}")


def broken(config, report):
    raise RuntimeError("it is broken")


SCRIPT = """\
import sys
import studyloom

def call(*overrides):
    every = {quick!r} + ["launcher.workers={workers}", "run_dir=" + sys.argv[1], *overrides]
    return studyloom.run({conf!r} + "/mnist.yaml", every)

if __name__ == "__main__":
    try:
        study = call("study.trials=2", "train.epochs=100000")
    except KeyboardInterrupt as interrupt:
        print("KeyboardInterrupt:", interrupt, flush=True)
        sys.exit(7)
"""


@pytest.mark.chaos
@pytest.mark.filterwarnings("ignore")  # of a database that is being made
@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_an_interrupt_releases_the_trials_and_is_raised(tmp_path, workers, number):
    script, run_dir = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SCRIPT.format(quick=[*QUICK], conf=str(CONF), workers=workers))
    command = [sys.executable, script, str(run_dir)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)

    def at_work():
        assert process.poll() is None
        if not (run_dir / "study.db").exists():
            return False
        try:
            stored = open_study(f"sqlite:///{run_dir}/study.db", "mnist", deadline=5.0)
        except api.StorageError:  # not made yet
            return False
        held = sum(bool(trial.intermediate_values) for trial in stored.trials())
        stored.close()
        return held == workers

    until(at_work)
    process.send_signal(number)
    shown, _ = process.communicate(timeout=30)
    assert process.returncode == (7 if number == signal.SIGINT else -signal.SIGTERM), shown
    assert ("KeyboardInterrupt" in shown) == (number == signal.SIGINT)
    stored = open_study(f"sqlite:///{run_dir}/study.db", "mnist")
    assert stored.ledger.counts()["held"] == 0
    stored.close()


# How errors are shown


def frames_of(error):
    """The functions of a traceback."""
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def ended_by_itself(trial):
    signal.raise_signal(signal.SIGINT)  # as a Ctrl-C within the first trial
    return trial.suggest_float("x", 0, 1)


def test_an_error_is_shown_only_where_the_user_calls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = (
        lambda: search(tmp_path, "study.trails=3"),
        lambda: api.search(ended_by_itself, metric="x", quiet=True),
        lambda: api.open_study(tmp_path),
    )
    for call in calls:
        with pytest.raises(api.ConfigError) as caught:
            call()
        (_, asked, *own, last) = frames_of(caught.value)
        assert (asked, [name for name in own if name != "search"]) == ("<lambda>", [])
        assert last in ("call", "run"), "the function that the user has called"
        assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(api.ConfigError) as caught:
        api.open_study(tmp_path)
    assert "read_run" in frames_of(caught.value)


@pytest.mark.parametrize(
    ("resumes", "kernel"),
    [("the same call resumes", False), ("run the cell again to resume", True)],
)
def test_an_interrupt_ends_a_call_or_a_cell_with_a_sentence(
    resumes, kernel, tmp_path, monkeypatch, capsys
):
    if kernel:
        monkeypatch.setitem(sys.modules, "ipykernel", sys)
    options = {"trials": 2, "workers": 1, "sampler": "random", "run_dir": tmp_path / "run"}
    words = f"^the study was stopped; {resumes} it$"
    with pytest.raises(KeyboardInterrupt, match=words) as caught:
        api.search(ended_by_itself, **options)
    assert frames_of(caught.value)[1:] == ["call"]
    assert f"stopped; {resumes} here" in capsys.readouterr().out


# A study of one's own


OWN = """\
import pytest
import studyloom
from torch import nn

class Net(nn.Sequential):
    def __init__(self, shape, outputs, width=4):
        super().__init__(nn.Flatten(), nn.Linear(2, width), nn.ReLU(), nn.Linear(width, outputs))

few = ["study.trials=2", "train.epochs=2", "winner.top=1", "winner.seeds=1"]
study = studyloom.run("studies/spirals.py", [*few, "launcher.workers=2"])
assert list(study.trials["state"]) == ["complete", "complete"], study.trials
assert study.best.config["model"]["_target_"] == "studies.spirals.Net"
winner = studyloom.load_winner(study.run_dir)  # one's own run, so that nothing is to be trusted
assert type(winner.network).__name__ == "Net"
study.close()
for workers in (1, 2):
    here = ["model._target_=__main__.Net", f"study.name=here{workers}"]
    study = studyloom.run("studies/spirals.py", [*few, *here, f"launcher.workers={workers}"])
    assert list(study.trials["state"]) == ["complete", "complete"], study.trials
    study.close()
print("all is well")
"""


@pytest.mark.chaos
def test_a_script_runs_a_study_module_with_its_network(tmp_path):
    assert studyloom("new", "spirals", tmp_path).returncode == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "script.py").write_text(OWN)
    command = [sys.executable, "mine/script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all is well" in done.stdout


BREAKS_GPU = """
import studyloom as sl

BROKEN = []  # what has broken the GPU for this process

def objective(trial):
    if BROKEN or trial.number == 2:
        BROKEN.append(trial.number)
        raise RuntimeError("CUDA error: device-side assert triggered")
    return trial.suggest_float("x", 0, 1)

if __name__ == "__main__":
    study = sl.search(
        objective, trials=5, minimize="x", workers=1, winner=False, name="s", sampler="random"
    )
    print([row["state"] for row in study.to_dicts()])
"""


@pytest.mark.chaos
def test_a_script_whose_trial_breaks_the_gpu_continues_in_a_worker_process(tmp_path):
    (tmp_path / "script.py").write_text(BREAKS_GPU)
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "unable to use its GPU" in done.stderr
    assert "['complete', 'complete', 'failed', 'complete', 'complete']" in done.stdout


@pytest.mark.chaos
def test_a_study_module_whose_package_is_another_one_is_named(tmp_path):
    import studies

    assert studies.CONF
    assert studyloom("new", "spirals", tmp_path).returncode == 0
    with pytest.raises(api.ConfigError, match=r"cannot be imported as studies\.spirals"):
        api.run(tmp_path / "studies" / "spirals.py", quiet=True)


# A look at a study


def test_trials_are_a_data_frame(finished):
    frame, curves = finished.trials, finished.curves()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == [
        *("number", "state", "value", "params.optimizer.lr", "standard_error", "started"),
        *("seconds", "epochs", "worker", "baseline", "proposed_by", "failure", "reason"),
    ]
    assert list(frame["number"]) == [0, 1, 2, 3]
    assert frame["started"].dtype.kind == "M"
    assert frame["seconds"].between(0, 30, inclusive="neither").all()
    assert list(frame["baseline"]) == [True, False, False, False]
    assert list(curves.columns) == ["trial", "epoch", "value", "train_loss", "valid_loss"]
    assert list(curves[curves.epoch == 2].value) == list(frame["value"])
    assert finished.best.value == frame["value"].max()
    assert finished.best.params == {"optimizer.lr": finished.best.config["optimizer"]["lr"]}
    assert finished.optuna.best_trial.number == finished.best.number


def test_without_pandas_trials_are_rows(finished, monkeypatch):
    expected = finished.trials
    monkeypatch.setitem(sys.modules, "pandas", None)
    rows = finished.trials
    assert rows.to_dicts() == finished.to_dicts() == [*rows]
    assert list(rows[0]) == list(expected.columns)
    assert rows[1:][0]["number"] == 1
    assert ">params.optimizer.lr</th>" in rows._repr_html_()


def test_the_winner_has_the_fields_of_winner_json(finished):
    winner = finished.winner
    written = json.loads((finished.run_dir / "winner.json").read_text())
    assert (winner.details, winner.number) == (written, written["winner"]["trial"])
    assert winner.value == written["winner"]["mean"]
    # The cell names all roles of the trial: this winner may be the best and the baseline too.
    row = rf">winner(, best)?(, baseline)?</td><td[^>]*>{winner.number}</td>"
    assert re.search(row, finished._repr_html_())
    assert f">{winner.number}<" in winner._repr_html_()
    assert winner.test == written["test"]["winner"]["mean"]
    assert winner.params == {"optimizer.lr": winner.config["optimizer"]["lr"]}


def test_the_report_is_written_into_the_run_directory(finished, tmp_path):
    assert finished.report() == finished.run_dir / "report.html"
    elsewhere = finished.report(tmp_path).read_text()
    assert "Learning curves" in elsewhere
    assert "Winner, test" in elsewhere
    assert "best.yaml" in elsewhere
    with api.open_study(f"sqlite:///{finished.run_dir}/study.db", "mnist") as study:
        assert study.winner is None
        with pytest.raises(api.ConfigError, match="folder must be given"):
            study.report()
        assert study.report(tmp_path) == tmp_path / "report.html"


def test_a_study_that_does_not_exist_is_named(tmp_path, finished):
    url = f"sqlite:///{tmp_path}/both.db"
    for name in ("one", "two"):
        create_study(url, name, {}, 1).close()
    for where, words in (
        ((tmp_path,), "no study has run there"),
        ((finished.run_dir, "x"), "holds no study 'x'"),
        ((f"sqlite:///{finished.run_dir}/other.db", "mnist"), "there is no database"),
        ((url,), r"name must be given.*2 studies: one, two"),
    ):
        with pytest.raises((api.ConfigError, api.StorageError), match=words):
            api.open_study(*where)


def test_the_name_of_a_study_opens_its_folder_in_runs(tmp_path, finished, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mid").symlink_to(finished.run_dir)
    monkeypatch.chdir(tmp_path)
    with api.open_study("mid") as study:
        assert study.run_dir == tmp_path / "runs/mid"
    with pytest.raises(api.ConfigError, match="no study has run there"):
        api.open_study("other")


def test_trials_shows_one_trial_next_to_the_baseline(finished, capsys):
    assert main(["trials", str(finished.run_dir), "3"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("trial 3")
    for text in ("It is complete, after ", "accuracy 0.", "hyperparameter", "baseline"):
        assert text in shown
    assert main(["trials", str(finished.run_dir), "9"]) == 2
    assert "has no trial 9; it has 0-3" in capsys.readouterr().err
    assert main(["trials", str(finished.run_dir), "3", "--csv"]) == 2
    assert "NUMBER shows one trial" in capsys.readouterr().err


def test_trials_lists_the_trials(finished, capsys):
    def trials(*options):
        assert main(["trials", str(finished.run_dir), *options]) == 0
        return capsys.readouterr().out

    head, *lines = trials().splitlines()
    assert head.split() == ["trial", "state", "accuracy", "time", "hyperparameters"]
    assert sorted(line.split()[:2] for line in lines) == [[str(n), "complete"] for n in range(4)]
    rows = finished.to_dicts()
    listed = json.loads(trials("--json"))
    assert [row["value"] for row in listed] == [row["value"] for row in rows]
    table = [*csv.DictReader(io.StringIO(trials("--csv")))]
    name = "params.optimizer.lr"
    assert [float(row[name]) for row in table] == [row[name] for row in rows]
    epochs = [*csv.DictReader(io.StringIO(trials("--csv", "--curves")))]
    curves = finished.curves()
    assert [(int(row["trial"]), float(row["value"])) for row in epochs] == [
        *zip(curves["trial"], curves["value"], strict=True)
    ]
    assert main(["trials", str(finished.run_dir), "--curves"]) == 2
    assert "--curves needs --csv" in capsys.readouterr().err


def test_json_has_null_for_numbers_that_are_not_finite():
    rows = Rows(("a", "b"), ((float("nan"), 1.5), (None, float("inf"))))
    assert json.loads(as_json(rows)) == [{"a": None, "b": 1.5}, {"a": None, "b": None}]


# The winner


def test_the_winner_predicts(finished):
    winner = api.load_winner(finished.run_dir)
    assert (winner.network.training, winner.shape) == (False, (1, 28, 28))
    pixels = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    prediction = winner.predict(pixels)
    assert prediction.probabilities.shape == (5, 10)
    assert torch.equal(prediction.probabilities.argmax(1), prediction.classes)
    data = finished.winner.details["data"]
    unit = pixels.float() / 255
    with torch.no_grad():
        probabilities = winner.network((unit - data["mean"]) / data["std"]).softmax(1)
    for found in (prediction, winner.predict(unit.numpy())):
        assert torch.allclose(found.probabilities, probabilities, atol=1e-6)
    alone = winner.predict(unit[0].tolist()).probabilities
    assert torch.allclose(alone, probabilities[:1], atol=1e-6)
    assert repr(winner).startswith(f"Winner(number={finished.winner.number}, ")
    assert winner.params == finished.winner.params


def test_the_winner_of_an_untrusted_loop_names_only_its_loop(tmp_path):
    def load(params, **options):
        whole = {"objective": {"_target_": "mine.train"}, "params": params}
        files = {"winner.yaml": yaml.safe_dump(whole).encode()}
        result_of(untested="not tested").write(tmp_path, files)
        return api.load_winner(tmp_path, **options)

    assert load({"lr": 0.1}).config.params == {"lr": 0.1}
    assert "mine" not in sys.modules
    own = {"net": {"_target_": "test_api.broken"}}
    for params, words in (({"lr": "${oc.env:HOME}"}, "an interpolation"), (own, "is not")):
        with pytest.raises(api.ConfigError, match=words):
            load(params)
    assert load(own, trust=["test_api"]).config.params == own
    mark_trusted(tmp_path)
    assert load(own).config.params == own


# A study that stops itself


def fail_always(run, *, width=32):
    for _ in run.epochs(2):
        raise RuntimeError("no kernel")


def test_a_study_that_stops_itself_says_where_and_what_to_do(tmp_path, capsys):
    space = {"width": api.Int(4, 256)}
    advice = r"RuntimeError: no kernel; .*; if you fix your code: then studyloom redo"
    with pytest.raises(Halted, match=advice):
        api.search(
            fail_always, space=space, maximize="accuracy", trials=4, workers=1, run_dir=tmp_path
        )
    _, _, end = capsys.readouterr().out.partition("The study stopped itself, since its first trial")
    assert "in fail_always" in end
    assert end.count("Traceback") == 1
    assert "studyloom/" not in end.partition("report ")[0]
    report = (tmp_path / "report.html").read_text()
    assert report.index('id="failures"') < report.index('id="details"')
    assert 'id="slices"' not in report
