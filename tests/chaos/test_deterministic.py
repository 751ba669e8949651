"""A search in rounds is the same for any number of workers, and through kills of any of them."""

import hashlib
import json

import pytest
import toys
from live_processes import until
from runs import Run, kill

pytestmark = pytest.mark.chaos
TRIALS = 22  # the last few are chosen by the Gaussian process
EPOCHS = 9
STUDY = (
    *("study.deterministic=true", "winner.top=2", "winner.seeds=1", "data.validation=100"),
    *(f"study.trials={TRIALS}", f"train.epochs={EPOCHS}", "sampler=auto", "pruner=asha"),
    *("model._target_=gate.Net", "model.hidden=[16]", "space=lr", "model.dropout=0.1"),
    *("+space.model.hidden.list.int=[4,64]", "+space.model.hidden.length=1"),
    *("study.lease=5", "study.max_attempts=99", "checkpoints.interval=0"),
)
WAYS = {
    "networks": (*STUDY, "train.samples_per_epoch=256", "train.batch_size=32"),
    "a loop that calls run.keep": (*STUDY, *toys.LOOP, "train.batch_size=2450"),
}


def digest(run):
    """The SHA-256 of all that a search has come to, and of its winner."""
    trials, rows = run.stored().trials(), []
    assert len(trials) == TRIALS
    assert {trial.state.name for trial in trials} == {"COMPLETE", "PRUNED"}
    for trial in trials:
        reports, rungs = sorted(trial.intermediate_values.items()), trial.user_attrs.get("rungs")
        rows.append([trial.number, sorted(trial.params.items()), trial.state.name, trial.values])
        rows.append([reports, rungs])
    result = json.loads((run.folder / "winner.json").read_text())
    rows.append([result[key] for key in ("winner", "candidates", "test")])
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def undisturbed(folder, url, way, workers):
    run = Run(folder / "run", url, (*WAYS[way], f"launcher.workers={workers}"), trials=TRIALS)
    run.end(run.start(), 0)
    found = digest(run)
    run.stored().close()
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A function: what one worker comes to that nothing disturbs."""
    known = {}

    def found(way):
        if way not in known:
            folder = tmp_path_factory.mktemp("alone")
            known[way] = undisturbed(folder, f"sqlite:///{folder}/run/study.db", way, 1)
        return known[way]

    return found


def reports(run):
    return sum(len(trial.intermediate_values) for trial in run.stored().trials())


def kill_five(run):
    """Kills a worker three times, once both, and then the command with all its workers."""
    process = run.start()
    run.until_stored(lambda stored: len(stored.trials()) > 1)
    for count in (1, 1, 1, 2):
        before = reports(run)
        until(lambda n=before: reports(run) > n and len(run.workers()) == 2, 60)
        kill(run.workers()[:count])
    before = reports(run)
    until(lambda: reports(run) > before, 60)
    assert run.stored().ledger.count_open(TRIALS), "it still runs"
    kill([process.pid])
    process.communicate()
    run.until_gone(10)


@pytest.mark.parametrize(
    "way", ["networks", pytest.param("a loop that calls run.keep", marks=pytest.mark.nightly)]
)
def test_five_kills_change_nothing_of_a_deterministic_search(way, alone, request, tmp_path):
    name = "sqlite_url" if way == "networks" else "postgres_url"
    url = request.getfixturevalue(name).replace("study.db", "run/study.db")
    run = Run(tmp_path / "run", url, (*WAYS[way], "launcher.workers=2"), trials=TRIALS)
    kill_five(run)
    run.end(run.start(), 0)
    assert digest(run) == alone(way)


@pytest.mark.nightly
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("way", WAYS)
def test_a_deterministic_search_is_the_same_for_any_number_of_workers(
    workers, way, alone, url, tmp_path
):
    place = url.replace("study.db", "run/study.db")
    assert undisturbed(tmp_path, place, way, workers) == alone(way)
