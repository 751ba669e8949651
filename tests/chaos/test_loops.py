"""Studies that call a loop of one's own, as real commands that are killed at random moments."""

import json
import random

import pytest
import torch
import toys
from commands import QUICK
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
WAYS = {
    "one": ("pruner=none", "data.validation=100"),
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
    tmp_path, undisturbed
):
    lives, folder = random.Random(7), tmp_path / "run"
    run = Run(folder, f"sqlite:///{folder}/study.db", undisturbed.overrides[:-1], trials=4)
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
