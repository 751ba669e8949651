"""A race for the winner in real commands that are killed in the midst of it."""

import json

import pytest
from commands import QUICK
from runs import Run, kill

from studyloom.study.opening import open_study

pytestmark = pytest.mark.chaos

TRIALS = 6
OVERRIDES = (
    *(override for override in QUICK if override != "winner.enabled=false"),
    *("winner.race=true", "winner.top=2", "winner.seeds=3", "model._target_=gate.Net"),
    *(f"study.trials={TRIALS}", "launcher.workers=2", "study.lease=5"),
)


def raced(run):
    """Returns the table of a race, and what winner.json tells of it."""
    stage = open_study(run.url, f"mnist/re-evaluation {TRIALS}-2-3 race")
    table = {(t.params["candidate"], t.params["seed"]): t.value for t in stage.trials()}
    numbers = [trial.number for trial in stage.trials()]
    stage.close()
    assert len(numbers) == len(table), "no training was done twice"
    answer = json.loads((run.folder / "winner.json").read_text())
    return table, answer["winner"], answer["race"], answer["test"] | {"openings": None}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run = Run(folder, f"sqlite:///{folder}/study.db", OVERRIDES, trials=TRIALS)
    run.end(run.start("launcher.workers=1"), 0)
    return raced(run)


@pytest.mark.nightly
def test_a_command_killed_twice_in_a_race_goes_on_to_the_same_winner_and_table(
    undisturbed, tmp_path
):
    """In its first round of four trainings, and in its second; two workers, and one before."""
    folder = tmp_path / "run"
    run = Run(folder, f"sqlite:///{folder}/study.db", OVERRIDES, trials=TRIALS)
    for begun in (1, 5):
        process = run.start()

        def racing(_, least=begun):
            try:
                stage = open_study(run.url, f"mnist/re-evaluation {TRIALS}-2-3 race")
            except ValueError:
                return False
            done = stage.ledger.counts()["done"]
            stage.close()
            return done >= least

        run._until(racing)
        kill([process.pid, *run.processes()])
        process.communicate()
    run.end(run.start(), 0)
    assert raced(run) == undisturbed
