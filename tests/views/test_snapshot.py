from studyloom.views.snapshot import WorkerStatus, take_snapshot


def test_a_study_is_taken_with_all_its_slots_trials_and_workers(half_done):
    snapshot = take_snapshot(half_done)
    assert snapshot.slots == {"free": 2, "held": 2, "done": 4}
    assert (snapshot.budget, snapshot.done) == (8, 4)
    assert snapshot.outcomes == {"complete": 2, "pruned": 1, "failed": 1, "running": 1}
    assert (snapshot.best.number, snapshot.best.value) == (1, 0.9)
    assert (snapshot.baseline.number, snapshot.baseline.value) == (0, 0.8)
    params = half_done.trials()[4].params
    running = WorkerStatus("host:4", 4, 2, value=0.2, params=params)
    assert snapshot.workers == (running, WorkerStatus("host:9"))
