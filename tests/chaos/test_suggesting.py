"""An objective of Optuna's in real commands: killed in the midst, reevaluated and replayed."""

import json

import pytest
import yaml
from commands import studyloom
from harness import outcomes
from runs import Run, kill

pytestmark = [pytest.mark.chaos, pytest.mark.nightly]

TRIALS = 4
PAGE = f"""
defaults: [studyloom, sampler: random, pruner: none, storage: sqlite, launcher: local, _self_]
study: {{name: own, trials: {TRIALS}, lease: 5}}
objective: {{_target_: suggesting.objective, direction: maximize}}
winner: {{top: 1, seeds: 2}}
launcher: {{workers: 2}}
"""


def test_a_killed_study_resumes_with_its_suggestions_to_one_winner(
    sqlite_url, postgres_url, tmp_path
):
    """To the same on both databases, although other workers train other trials."""
    runs = []
    for name, url in (("sqlite", sqlite_url), ("postgresql", postgres_url)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "own.yaml").write_text(PAGE)
        run = Run(folder / "run", url.replace(str(tmp_path), f"{folder}/run"), (), name="own")
        run.page, run.cwd, run.trials = "own.yaml", folder, TRIALS
        begun = []

        def kill_it(run=run, begun=begun):
            begun[:] = [(t.number, t.params) for t in run.stored().trials() if t.params]
            kill([run.latest.pid])

        run.at_work(meanwhile=kill_it).communicate()
        run.until_gone(10)
        printed = run.end(run.start(), 0)
        assert "starts again, and the winner is not tested" in printed
        trials = run.stored().trials()
        assert len(begun) == 2
        assert [(t.number, t.params) for t in trials if t.number in dict(begun)] == begun
        runs.append(run)
    assert outcomes(runs[0].stored()) == outcomes(runs[1].stored())
    answers = [json.loads((run.folder / "winner.json").read_text()) for run in runs]
    assert answers[0]["winner"] == answers[1]["winner"]
    assert len(answers[0]["winner"]["values"]) == 2  # on new seeds
    number, where, folder = answers[0]["winner"]["trial"], runs[0].environment, runs[0].cwd
    replay = studyloom("replay", runs[0].folder, "--trial", number, cwd=folder, **where)
    assert "equal bit for bit" in replay.stdout, replay.stderr
    assert replay.stderr == ""
    page = ("own.yaml", "--config-dir", runs[0].folder, "--config-name", "winner")
    done = studyloom("run", *page, "winner.enabled=false", "run_dir=again", cwd=folder, **where)
    assert done.returncode == 0, done.stderr
    best = [yaml.safe_load(f.read_text()) for f in sorted(folder.glob("*/best.yaml"))]
    assert best[0]["params"] == best[1]["params"] == answers[0]["winner"]["params"]
