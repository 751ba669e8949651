"""Studies of each way to train that are killed in the midst come to the same values and winner."""

import json
import signal
from pathlib import Path

import psutil
import pytest
import torch
import toys
import yaml
from commands import QUICK, studyloom
from harness import outcomes
from live_processes import until
from optuna.trial import TrialState
from runs import Run, holder, kill
from test_readme import PAPERS, SITE, blocks

from studyloom.storage.opening import open_study
from studyloom.storage.trial_record import TrialRecord

pytestmark = pytest.mark.chaos
SMALL = (
    *(way for way in QUICK if not way.startswith("winner")),
    *("winner.top=1", "winner.seeds=1", "launcher.workers=2", "study.lease=5"),
    *("model._target_=gate.Net", "model.dropout=0.1"),
)
DATASETS = (
    *(way for way in SMALL if not way.startswith(("data", "train"))),
    "~data",
    "+data={_target_: studyloom.data.Datasets, validation: 15, train: {_target_: drawn.Drawn}, "
    "evaluate: {_target_: drawn.Drawn, noise: 0.0}, test: {_target_: drawn.Drawn, count: 12}}",
    *("train.epochs=8", "train.batch_size=23"),
)
LOOP = (
    *(way for way in SMALL if not way.startswith(("train", "pruner"))),
    *(*toys.LOOP, "pruner=none", "train.epochs=4", "train.batch_size=2450"),
)


TRIALS = 3
WAYS = {
    "everything at once": (
        *(*SMALL, "train.epochs=12", "objective.folds=2"),
        "train.step={_target_: mixup.step, _partial_: true, strength: 0.4}",
        *("train.accumulate=2", "train.ema=0.9", "train.precision=fp16"),
        *("train.drop_last=true", "train.weights=best", "train.patience=4", "train.batch_size=20"),
        "~scheduler",
        "+scheduler={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, patience: 1}",
        "+optimizer.groups={first: {match: 1.bias, weight_decay: 0.5}}",
        "+space.optimizer.groups.first.weight_decay.float=[0,1]",
        "+space.train.step.strength.float=[0.1,1]",
    ),
    "processes that load": DATASETS,
    "a loop over folds and seeds": (*LOOP, "objective.folds=2", "objective.seeds=2"),
}
# What the study that is killed does otherwise.
OTHER = {"processes that load": ("+data.num_workers=2", "+data.persistent_workers=true")}


def run_of(folder, url, way, *overrides):
    (code,) = blocks(PAPERS[f"{SITE}/guides/training.md"], "python")
    folder.mkdir()
    (folder / "mixup.py").write_text(code)
    asked = (*WAYS[way], f"study.trials={TRIALS}", *overrides)
    run = Run(folder / "run", url, asked, trials=TRIALS)
    run.environment["PYTHONPATH"] += f":{folder}"
    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A function: the run of a way that nothing disturbs."""
    known = {}

    def run(way):
        if way not in known:
            folder = tmp_path_factory.mktemp("undisturbed") / "here"
            known[way] = run_of(folder, f"sqlite:///{folder}/run/study.db", way)
            known[way].end(known[way].start(), 0)
        known[way].stored().close()  # its connections are those of another test
        return known[way]

    return run


def curves(run):
    names = ("value", "train_loss", "valid_loss")
    return [[trial.user_attrs["epochs"][name] for name in names] for trial in run.stored().trials()]


@pytest.mark.parametrize(
    "way",
    [
        "processes that load",
        pytest.param("everything at once", marks=pytest.mark.nightly),
        pytest.param("a loop over folds and seeds", marks=pytest.mark.nightly),
    ],
)
def test_a_study_killed_in_the_midst_has_the_same_values_winner_and_test(
    way, undisturbed, request, tmp_path
):
    expected = undisturbed(way)
    url = f"sqlite:///{tmp_path}/here/run/study.db"
    if way == "everything at once":
        url = request.getfixturevalue("postgres_url")
    run = run_of(tmp_path / "here", url, way, *OTHER.get(way, ()))
    process = run.at_work(meanwhile=lambda: kill([run.latest.pid]))
    process.communicate()
    run.until_gone(10)  # no worker or loader outlives the command
    run.end(run.start(), 0)
    assert outcomes(run.stored()) == outcomes(expected.stored())
    assert curves(run) == curves(expected)
    assert [*run.folder.glob("checkpoints/**/*.pt")] == []
    answers = [json.loads((r.folder / "winner.json").read_text()) for r in (run, expected)]
    for key in ("winner", "candidates", "epochs", "test"):
        assert answers[0].get(key) == answers[1].get(key)
    weights = [torch.load(r.folder / "winner.pt", weights_only=True) for r in (run, expected)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


ABLATED = (
    *(*SMALL, "train.epochs=30", "winner.seeds=2", "winner.ablation=true"),
    *("space=none", "study.baseline=false"),
    *("+space.optimizer.lr.float=[0.0005,0.1]", "+space.model.dropout.float=[0.0,0.4]"),
)


def test_an_ablation_whose_processes_are_all_killed_has_the_same_table(tmp_path):
    tables = {}
    for name in ("calm", "killed"):
        folder = tmp_path / name / "run"
        folder.parent.mkdir()
        run = Run(folder, f"sqlite:///{folder}/study.db", ABLATED, trials=TRIALS)
        process = run.start(f"study.trials={TRIALS}")
        if name == "killed":
            run.until_done(TRIALS)
            until(lambda run=run: is_halted_in(run, "ablation"), 180, pause=0.05)
            kill(run.processes())
            process.communicate()
            process = run.start(f"study.trials={TRIALS}")
        run.end(process, 0)
        tables[name] = json.loads((folder / "winner.json").read_text())
        run.stored().close()
    for key in ("ablation", "test"):
        assert tables["calm"][key] == tables["killed"][key]
    assert tables["calm"]["ablation"]["rows"]


def is_halted_in(run, title):
    """Halts all processes of a run if a trial of a later stage is in the midst of its training."""
    processes = run.processes()
    kill(processes, signal.SIGSTOP)
    if trains(run, title):
        return True
    kill(processes, signal.SIGCONT)
    return False


def trains(run, title):
    """Whether a trial of a later stage is in the midst of its training."""
    stages = run.stored().later_stages()
    for stage in stages:
        if stage.name is not None and stage.name.title == title:
            for trial in run.stored().storage.get_all_trials(stage.study._study_id, False):
                if trial.state == TrialState.RUNNING and trial.intermediate_values:
                    return True
    return False


@pytest.mark.nightly
def test_the_best_epoch_counts_as_selected_and_sets_the_final_training(undisturbed):
    run = undisturbed("everything at once")
    result = json.loads((run.folder / "winner.json").read_text())
    train = yaml.safe_load((run.folder / "winner.yaml").read_text())["train"]
    trial = run.stored().trials()[result["winner"]["trial"]]
    curve = trial.user_attrs["epochs"]["value"]
    best = 1 + curve.index(max(curve))
    assert result["epochs"] == best
    wanted = {"until": best, "weights": "last", "patience": None, "epochs": 12}
    assert train.items() >= wanted.items()
    assert trial.value >= max(curve), "the mean of each fold's best"
    stage = open_study(run.url, result["stage"])
    assert {len(t.user_attrs["epochs"]["value"]) for t in stage.trials()} <= {
        1 + value.index(max(value)) for value, *_ in curves(run)
    }
    trust = ("--trust", "mixup", "--trust", "gate")
    done = studyloom("replay", run.folder, "--trial", 2, *trust, **run.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal bit for bit" in done.stdout


@pytest.mark.nightly
def test_a_loading_process_that_is_killed_costs_only_its_trial(tmp_path):
    way, url = "processes that load", f"sqlite:///{tmp_path}/here/run/study.db"
    more = ("winner.enabled=false", "study.max_failures=9")
    run = run_of(tmp_path / "here", url, way, *OTHER[way], *more)

    def kill_one():
        """Not that of trial 0, whose error would stop the study."""
        first = {t._trial_id for t in run.stored().trials() if t.number == 0}
        held = [slot for slot in run.stored().ledger.held() if slot.trial_id not in first]
        owner = psutil.Process(holder(held[0]))
        kill([each.pid for each in owner.children(recursive=True) if is_loader(each.pid)])

    run.end(run.at_work(meanwhile=kill_one), 0)
    trials = run.stored().trials()
    (failed,) = [trial for trial in trials if TrialRecord(trial).outcome == "failed"]
    assert "a process that loads batches (data.num_workers=2)" in failed.user_attrs["reason"]
    assert len(trials) == TRIALS


def is_loader(pid):
    return Path(f"/proc/{pid}/comm").read_text().strip() == "pt_data_worker"
