"""Studies that call a loop of one's own, as real commands that are killed at random moments."""

import json
import random

import pytest
import torch
import toys
from commands import QUICK, studyloom
from harness import outcomes, until
from runs import Run, kill, nap

import studyloom as api

pytestmark = pytest.mark.chaos
LOOP = (
    *(way for way in QUICK if not way.startswith(("winner.enabled", "train.", "pruner", "data."))),
    *toys.LOOP,
    *("train.epochs=8", "train.batch_size=100", "study.trials=4", "study.lease=5"),
    *("winner.top=1", "winner.seeds=2", "launcher.workers=2", "study.max_attempts=99"),
)
DATASETS = (
    "~data",
    "+data={_target_: studyloom.data.Datasets, validation: 300, train: {_target_: drawn.Drawn, "
    "count: 2000}, evaluate: {_target_: drawn.Drawn, count: 2000, noise: 0.0}, "
    "test: {_target_: drawn.Drawn, count: 60, noise: 0.0}}",
)
WAYS = {
    "one": ("pruner=none", "data.validation=100"),
    "datasets": ("pruner=none", *DATASETS),
    "folds and seeds": (
        *("pruner=none", "objective.folds=2", "objective.seeds=2", "data.validation=100"),
        *("train.epochs=3", "winner.enabled=false"),
    ),
}


@pytest.fixture(scope="module", params=WAYS)
def undisturbed(request, tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run = Run(folder, f"sqlite:///{folder}/study.db", (*LOOP, *WAYS[request.param]), trials=4)
    run.end(run.start(), 0)
    run.stored()  # open for all tests
    return run


def curves(run):
    return {
        trial.number: {
            name: values for name, values in trial.user_attrs["epochs"].items() if name != "seconds"
        }
        for trial in run.stored().trials()
    }


def test_a_loop_killed_at_random_moments_comes_to_the_same_values_winner_and_test(
    url, tmp_path, undisturbed
):
    lives, folder = random.Random(7), tmp_path / "run"
    url = url if "postgres" in url else f"sqlite:///{folder}/study.db"
    run = Run(folder, url, undisturbed.overrides[:-1], trials=4)
    for _ in range(3):
        process = run.start()
        until(lambda p=process: [*folder.glob("checkpoints/*.pt")] or p.poll() is not None, 180)
        nap(2 * lives.random())  # somewhere in a trial
        kill([process.pid, *run.processes()])
        process.communicate()
    run.end(run.start(), 0)
    assert outcomes(run.stored()) == outcomes(undisturbed.stored())
    assert curves(run) == curves(undisturbed)
    assert [*folder.glob("checkpoints/**/*.pt")] == []
    if "winner.enabled=false" in run.overrides:
        return
    answers = [json.loads((r.folder / "winner.json").read_text()) for r in (run, undisturbed)]
    for key in ("winner", "candidates", "epochs"):
        assert answers[0].get(key) == answers[1].get(key)
    assert answers[0]["test"]["winner"] == answers[1]["test"]["winner"]
    states = [api.load_winner(r.folder).states for r in (run, undisturbed)]
    for name, weight in states[1]["network"].items():
        assert torch.equal(states[0]["network"][name], weight)


def test_its_trials_are_replayed_and_its_winner_is_loaded_tested_again_and_not_predicted(
    undisturbed,
):
    run, trust = undisturbed, ("--trust", "toys", "--trust", "drawn")
    for trial in run.stored().trials():
        done = studyloom("replay", run.folder, "--trial", trial.number, *trust, **run.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "equal bit for bit" in done.stdout
    shown = studyloom("status", run.folder, **run.environment)
    assert shown.returncode == 0, shown.stderr
    if "winner.enabled=false" in run.overrides:
        return
    before = json.loads((run.folder / "winner.json").read_text())
    winner = api.load_winner(run.folder)
    size = 4 if "train" in winner.config.data else 28
    network = toys.build(winner.config, [(torch.zeros(1, size, size), 0)])
    winner.restore(network=network)
    weights = winner.states["network"]
    assert all(torch.equal(weights[name], held) for name, held in network.state_dict().items())
    refused = studyloom("predict", run.folder, "picture.png", **run.environment)
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
    assert "load_winner" in refused.stderr
    again = studyloom("winner", run.folder, **run.environment)
    assert again.returncode == 0, again.stdout + again.stderr
    after = json.loads((run.folder / "winner.json").read_text())
    assert after["winner"] == before["winner"]
    assert after["test"]["winner"] == before["test"]["winner"]
