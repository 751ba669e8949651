"""Studies with a step of one's own and all other ways of training at once, as real commands."""

import json

import pytest
import torch
import yaml
from commands import QUICK, studyloom
from harness import outcomes
from runs import Run, kill
from test_readme import PAPERS, blocks

from studyloom.study.opening import open_study

pytestmark = pytest.mark.chaos
WAYS = (
    *(way for way in QUICK if not way.startswith("winner.enabled")),
    *("winner.top=1", "winner.seeds=2", "study.trials=4", "launcher.workers=2", "study.lease=5"),
    *("model._target_=gate.Net", "train.epochs=12", "objective.folds=2", "model.dropout=0.1"),
    "train.step={_target_: mixup.step, _partial_: true, strength: 0.4}",
    *("train.accumulate=2", "train.ema=0.9", "train.precision=fp16", "train.drop_last=true"),
    *("train.keep=best", "train.patience=4", "train.batch_size=20"),
    "~scheduler",
    "+scheduler={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, patience: 1}",
    "+optimizer.groups={first: {match: 1.bias, weight_decay: 0.5}}",
    "+space.optimizer.groups.first.weight_decay.float=[0,1]",
    "+space.train.step.strength.float=[0.1,1]",
)


def run_of(folder, url, overrides=WAYS):
    (code,) = (b for b in blocks(PAPERS["conf/README.md"], "python") if "def step" in b)
    folder.mkdir()
    (folder / "mixup.py").write_text(code)
    run = Run(folder / "run", url, overrides)
    run.environment["PYTHONPATH"] = f"{run.environment['PYTHONPATH']}:{folder}"
    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nothing disturbed, and its outcomes."""
    folder = tmp_path_factory.mktemp("undisturbed") / "here"
    run = run_of(folder, f"sqlite:///{folder}/run/study.db")
    run.end(run.start(), 0)
    return run, outcomes(run.stored())


def curves(stored):
    return {trial.number: trial.user_attrs["epochs"]["value"] for trial in stored.trials()}


def test_a_study_killed_in_the_midst_of_all_ways_at_once_comes_to_the_same_winner(
    postgres_url, tmp_path, undisturbed
):
    expected, values = undisturbed
    folder = tmp_path / "here"
    run = run_of(folder, postgres_url)
    process = run.at_work(meanwhile=lambda: kill([run.latest.pid, *run.processes()]))
    process.communicate()
    run.end(run.start(), 0)
    assert outcomes(run.stored()) == values
    assert curves(run.stored()) == curves(expected.stored())
    answers = [json.loads((r.folder / "winner.json").read_text()) for r in (run, expected)]
    assert answers[0]["test"] == answers[1]["test"]
    weights = [torch.load(r.folder / "winner.pt", weights_only=True) for r in (run, expected)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_the_best_epoch_counts_as_chosen_and_is_retrained_for(undisturbed):
    run, _ = undisturbed
    answer = json.loads((run.folder / "winner.json").read_text())
    winner = yaml.safe_load((run.folder / "winner.yaml").read_text())
    number = answer["winner"]["trial"]
    trial = run.stored().trials()[number]
    curve = trial.user_attrs["epochs"]["value"]
    best = 1 + curve.index(max(curve))
    assert (winner["train"]["until"], winner["train"]["keep"]) == (best, "last")
    assert (winner["train"]["patience"], winner["train"]["epochs"]) == (None, 12)
    assert answer["epochs"] == best
    assert trial.value >= max(curve), "the mean of each fold's best"
    stage = open_study(run.url, answer["stage"])
    assert {len(t.user_attrs["epochs"]["value"]) for t in stage.trials()} <= {
        1 + c.index(max(c)) for c in curves(run.stored()).values()
    }


def test_the_step_of_the_readme_is_trained_replayed_and_used(undisturbed, tmp_path):
    run, _ = undisturbed
    for number in (0, 3):
        trust = ["--trust", "mixup", "--trust", "gate"]
        done = studyloom("replay", run.folder, "--trial", number, *trust, **run.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "equal bit for bit" in done.stdout
    network = torch.load(run.folder / "winner.pt", weights_only=True)
    assert all(torch.isfinite(weight).all() for weight in network.values())
    again = run_of(tmp_path / "again", f"sqlite:///{tmp_path}/again/run/study.db", ())
    overrides = ("trust=[mixup,gate]", "winner.seeds=2", "launcher.workers=1")
    named = ("--config-dir", str(run.folder), "--config-name", "winner")
    again.name = "mnist-winner"
    again.end(again.start(*overrides, *named), 0)
    weights = torch.load(again.folder / "winner.pt", weights_only=True)
    assert all(torch.equal(weights[name], network[name]) for name in network)
