"""The trial buffer: a trial's changes are written together, and the others read on demand."""

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import get_storage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import event

from studyloom.storage import sql
from studyloom.storage.attributes import PAUSED, SLOT
from studyloom.storage.database import connect
from studyloom.storage.trial_buffer import TrialBuffer


@pytest.fixture
def backend(sqlite_url):
    """The statements are tested on both databases in `test_sql` and `test_ledger`."""
    backend = connect(sqlite_url, create=True)
    backend.create_new_study([StudyDirection.MAXIMIZE], "s")
    return backend


@pytest.fixture
def buffer(backend):
    return TrialBuffer(backend)


@pytest.fixture
def study(buffer):
    return optuna.load_study(study_name="s", storage=buffer)


def begin(backend, slot=0):
    return backend.execute(
        lambda connection: sql.insert_trial(connection, 1, {SLOT: slot})._trial_id
    )


def stored(backend, trial_id):
    return backend.get_trial(trial_id)


class Statements:
    """Counts the statements and commits of an engine."""

    def __init__(self, engine):
        self.count, self.commits = 0, 0
        event.listen(engine, "before_cursor_execute", self._statement)
        event.listen(engine, "commit", self._commit)

    def _statement(self, *_):
        self.count += 1

    def _commit(self, _):
        self.commits += 1


def test_all_changes_of_a_workers_trial_are_written_together(buffer, study, backend):
    trial_id = begin(backend)
    buffer.load(1, trial_id)
    trial = optuna.Trial(study, trial_id)
    assert len(study.get_trials()) == 1  # reads the others
    statements = Statements(backend.engine)
    values = [trial.suggest_float(name, 0, 1) for name in "abc"]
    trial.report(0.5, 1)
    trial.set_user_attr("k", [1])
    buffer.set_trial_system_attr(trial_id, "s", 2)
    assert statements.count == 0
    assert stored(backend, trial_id).params == {}
    backend.execute(buffer.write)
    buffer.mark_written()
    assert statements.commits == 1
    seen, here = stored(backend, trial_id), buffer.get_trial(trial_id)
    assert seen == here
    assert seen.params == dict(zip("abc", values, strict=True))
    assert seen.intermediate_values == {1: 0.5}
    study.tell(trial, 0.5)
    assert stored(backend, trial_id).state == TrialState.RUNNING
    backend.execute(buffer.write)
    buffer.clear()
    assert stored(backend, trial_id).value == 0.5
    assert study.trials == optuna.load_study(study_name="s", storage=get_storage(backend)).trials


def test_a_change_during_a_write_stays_to_be_written(buffer, study, backend):
    """As when the objective goes on while the database is away."""
    trial_id = begin(backend)
    buffer.load(1, trial_id)
    buffer.set_trial_user_attr(trial_id, "first", 1)
    backend.execute(buffer.write)
    buffer.set_trial_user_attr(trial_id, "second", 2)
    buffer.mark_written()
    assert "second" not in stored(backend, trial_id).user_attrs
    backend.execute(buffer.write)
    buffer.mark_written()
    assert stored(backend, trial_id) == buffer.get_trial(trial_id)
    assert stored(backend, trial_id).user_attrs == {SLOT: 0, "first": 1, "second": 2}


def test_other_trials_stay_the_same_until_a_refresh(buffer, study, backend):
    own, other = begin(backend), begin(backend)
    buffer.load(1, own)
    assert len(study.get_trials()) == 2
    statements = Statements(backend.engine)
    for _ in range(9):
        assert [trial.state for trial in study.get_trials()] == [TrialState.RUNNING] * 2
    assert statements.count == 0
    backend.set_trial_state_values(other, TrialState.COMPLETE, [1.0])
    buffer.set_trial_intermediate_value(own, 1, 0.5)
    assert [trial.state for trial in study.get_trials()] == [TrialState.RUNNING] * 2
    buffer.refresh(1)
    assert [trial.state for trial in study.get_trials()] == [
        TrialState.RUNNING,
        TrialState.COMPLETE,
    ]
    assert study.trials[0].intermediate_values == {1: 0.5}  # not written yet
    buffer.clear()
    assert study.trials[0].intermediate_values == {}


def test_a_trial_that_was_read_does_not_change(buffer, study, backend):
    trial_id = begin(backend)
    before = buffer.load(1, trial_id)
    (listed,) = study.get_trials(deepcopy=False)
    buffer.set_trial_intermediate_value(trial_id, 1, 0.5)
    buffer.set_trial_param(trial_id, "x", 0.5, FloatDistribution(0, 1))
    assert before.intermediate_values == listed.intermediate_values == {}
    assert before.params == listed.params == {}
    buffer.get_trial(trial_id).user_attrs["mine"] = 1
    assert buffer.get_trial(trial_id).user_attrs == {SLOT: 0}


def test_samplers_and_pruners_see_a_paused_trial_as_pruned(buffer, study, backend):
    ids = [begin(backend, n) for n in range(4)]
    paused, undefined, promoted, own = ids
    for trial_id, value in ((paused, 0.5), (undefined, float("nan")), (promoted, 0.75)):
        backend.set_trial_intermediate_value(trial_id, 1, value)
        backend.set_trial_user_attr(trial_id, PAUSED, None if trial_id == promoted else 1)
    running, pruned = TrialState.RUNNING, TrialState.PRUNED
    assert [trial.state for trial in study.trials] == [running] * 4
    buffer.load(1, own)
    seen = study.get_trials()
    assert [trial.state for trial in seen] == [pruned, pruned, running, running]
    assert [trial.values for trial in seen] == [[0.5], None, None, None]
    assert [trial.number for trial in study.get_trials(states=[running])] == [2, 3]
    assert seen[0].intermediate_values == {1: 0.5}
    assert seen[0].last_step == 1
    backend.execute(buffer.write)
    buffer.clear()
    assert [trial.state for trial in study.trials] == [running] * 4
    assert stored(backend, paused).values is None


def test_the_cost_of_a_trial_does_not_grow_with_finished_trials(
    buffer, study, backend, monkeypatch
):
    read, answers = sql.read_light, []
    monkeypatch.setattr(sql, "read_light", lambda *args: answers.append(read(*args)) or answers[-1])
    counts, complete = [], (TrialState.COMPLETE,)
    for finished in (3, 30):
        while len(study.trials) < finished:
            backend.set_trial_state_values(begin(backend), TrialState.COMPLETE, [1.0])
        trial_id = begin(backend)
        buffer.load(1, trial_id)
        assert len(study.get_trials(states=complete)) == finished
        answers.clear()
        statements = Statements(backend.engine)
        buffer.refresh(1)
        assert len(study.get_trials(states=complete)) == finished
        assert not any(answers)
        counts.append(statements.count)
        buffer.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])
        backend.execute(buffer.write)
        buffer.clear()
    assert counts[0] == counts[1] <= 2  # SQLite's BEGIN is one


def test_a_new_trial_equals_the_stored_one(buffer, study, backend):
    def make(connection):
        return buffer.create(connection, 1, {SLOT: 0, "worker": "w", "baseline": True})

    trial_id = backend.execute(make)
    statements = Statements(backend.engine)
    loaded = buffer.load(1, trial_id)
    assert statements.count <= 3  # for the study's direction, once
    assert loaded == stored(backend, trial_id)
    assert buffer.load(1, trial_id) == loaded  # read this time


def test_the_trial_of_a_worker_counts_once_it_has_ended(buffer, study, backend):
    """Also where a later one has ended before it."""
    own, later, next_one = (begin(backend, n) for n in range(3))
    buffer.load(1, own)
    assert len(study.get_trials()) == 3
    backend.set_trial_state_values(later, TrialState.COMPLETE, [0.5])
    buffer.refresh(1)
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 1
    buffer.set_trial_state_values(own, TrialState.COMPLETE, [1.0])
    backend.execute(buffer.write)
    buffer.clear()
    buffer.load(1, next_one)
    states = [trial.state for trial in study.get_trials()]
    assert states == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.RUNNING]


def test_attributes_for_people_are_not_read_of_other_trials(buffer, study, backend):
    other, own = (begin(backend, n) for n in range(2))
    for key in (*sql.HEAVY_KEYS, "kept"):
        backend.set_trial_user_attr(other, key, {})
    backend.set_trial_state_values(other, TrialState.COMPLETE, [1.0])
    buffer.load(1, own)
    assert study.get_trials()[0].user_attrs == {SLOT: 0, "kept": {}}
    buffer.clear()
    assert study.get_trials()[0].user_attrs.keys() == {SLOT, "kept", *sql.HEAVY_KEYS}


def test_a_snapshot_has_every_trial_that_ends_meanwhile(url):
    backend, elsewhere = connect(url, create=True), connect(url, create=True)
    backend.create_new_study([StudyDirection.MAXIMIZE], "s")
    own, *left = begin(backend), begin(backend, 1)
    buffer = TrialBuffer(backend)
    buffer.reads_snapshots = True
    buffer.load(1, own)

    @event.listens_for(backend.engine, "after_cursor_execute")
    def end(*_):
        if left:
            elsewhere.set_trial_state_values(left.pop(), TrialState.COMPLETE, [1.0])

    assert [trial.number for trial in buffer.get_all_trials(1)] == [0, 1]
    assert left == []
    for each in (backend, elsewhere):
        each.close()
