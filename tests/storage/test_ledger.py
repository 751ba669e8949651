"""The budget of a study: slots are claimed once, leases end, deaths count, and trials decide."""

import os
import socket
import sqlite3
import subprocess
import threading
import time
from functools import partial

import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from sqlalchemy import delete, event, insert, select, update

from studyloom.errors import ClaimLost, StorageError, TrialDeleted
from studyloom.processes import worker_id
from studyloom.storage import connections, redo, sql
from studyloom.storage import ledger as module
from studyloom.storage.attributes import UUID
from studyloom.storage.database import connect
from studyloom.storage.ledger import Ledger
from studyloom.storage.slot_table import SLOTS, create_table
from studyloom.storage.standings import RungReport, Standing

LEASE = 60.0


@pytest.fixture
def ledger(sqlite_url):
    return open_ledger(sqlite_url)


@pytest.fixture
def either(url):
    """The ledger on both databases, for what their statements differ in."""
    return open_ledger(url)


def open_ledger(url):
    backend = connect(url, create=True)
    create_table(backend)
    return make(backend, "s")


def make(backend, name):
    """Creates a study, and returns its ledger."""
    uuid = f"of {name}"
    add = partial(sql.add_study, directions=[StudyDirection.MAXIMIZE], user_attrs={UUID: uuid})
    return Ledger(backend, backend.execute(lambda connection: add(connection, name)), uuid)


def maker(ledger):
    """Makes the trial of a claim, as a worker does."""
    return lambda connection, slot: (
        sql.insert_trial(connection, ledger.study_id, {"slot": slot})._trial_id
    )


def pass_time(ledger, seconds):
    """Has time pass on the database's clock: all that is stored moves back."""
    moved = {name: SLOTS.c[name] - seconds for name in ("since", "expires")}
    ledger.storage.execute(lambda connection: connection.execute(update(SLOTS).values(**moved)))


def test_every_slot_is_claimed_once_by_any_number_of_workers(either, url):
    either.extend(40)
    claimed = []

    def work(owner):
        own = Ledger(connect(url), either.study_id, either.uuid)
        while (claim := own.claim(owner, 40, LEASE)) is not None:
            claimed.append(claim.slot)
            own.finish(claim)

    workers = [threading.Thread(target=work, args=(f"w{k}",)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(claimed) == list(range(40))


def test_a_budget_grows_and_never_shrinks_and_a_smaller_one_bounds_claims(ledger):
    for trials in (3, 5, 2):
        ledger.extend(trials)
    assert ledger.counts() == {"free": 5, "held": 0, "done": 0}
    assert [ledger.claim(owner, 2, LEASE).slot for owner in ("a", "b")] == [0, 1]
    assert ledger.claim("c", 2, LEASE) is None
    assert (ledger.count_open(2), ledger.count_open(5)) == (2, 5)


def test_a_released_slot_is_claimed_next_with_its_trial_and_no_death(ledger):
    ledger.extend(3)
    ledger.finish(ledger.claim("a", 3, LEASE))
    claim = ledger.claim("a", 3, LEASE, lambda *_: 17)
    ledger.release(claim)
    again = ledger.claim("b", 3, LEASE)
    assert (again.slot, again.trial_id, again.token) == (claim.slot, 17, claim.token + 1)
    assert again.deaths == 0


def test_a_claim_and_its_trial_begin_and_end_together_or_not_at_all(either):
    either.extend(2)
    make = maker(either)

    def die(connection, slot):
        make(connection, slot)
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        either.claim("a", 2, LEASE, die)
    assert either.counts()["free"] == 2
    assert either.storage.get_all_trials(either.study_id) == []
    claims = [either.claim(owner, 2, LEASE, make) for owner in "aba"]  # a lost its first result
    trials = either.storage.get_all_trials(either.study_id)
    assert [(t.number, t.user_attrs) for t in trials] == [(0, {"slot": 0}), (1, {"slot": 1})]
    assert [claim.trial_id for claim in claims] == [trials[n]._trial_id for n in (0, 1, 0)]
    assert (claims[2].token, claims[2].deaths) == (claims[0].token + 1, 0)
    with pytest.raises(ConnectionAbortedError):
        either.finish(claims[2], lambda connection: die(connection, 3))
    assert either.counts() == {"free": 0, "held": 2, "done": 0}
    assert len(either.storage.get_all_trials(either.study_id)) == 2


def test_a_trial_that_another_program_has_ended_or_deleted_gets_no_rows(either):
    either.extend(2)
    make = maker(either)
    ended, deleted = (either.claim(owner, 2, LEASE, make) for owner in "ab")
    either.storage.set_trial_state_values(ended.trial_id, TrialState.COMPLETE, [1.0])
    gone = sql.USER_ATTRIBUTES.delete().where(sql.USER_ATTRIBUTES.c.trial_id == deleted.trial_id)
    either.storage.execute(lambda connection: connection.execute(gone))
    for claim, error in ((ended, ClaimLost), (deleted, TrialDeleted)):
        for change in (partial(either.renew, lease=LEASE), either.finish, either.release):
            with pytest.raises(error):
                change(claim, write=pytest.fail)
    assert either.counts() == {"free": 0, "held": 2, "done": 0}
    assert either.release(deleted), "so that the next claim makes another trial"


def test_the_late_holder_of_an_expired_lease_can_write_nothing(either):
    either.extend(1)
    late = either.claim("late", 1, LEASE, lambda *_: 7)
    pass_time(either, LEASE - 10)
    assert either.claim("heir", 1, LEASE) is None
    pass_time(either, 20)
    heir = either.claim("heir", 1, LEASE)
    assert (heir.slot, heir.trial_id, heir.token, heir.deaths) == (0, 7, late.token + 1, 1)
    assert heir.last_death == "it was silent too long"
    written = []
    for late_call in (
        lambda: either.renew(late, LEASE, written.append),
        lambda: either.finish(late, written.append),
        lambda: either.release(late, written.append),
    ):
        assert not late_call()
    assert written == []
    assert [(held.owner, held.trial_id) for held in either.held()] == [("heir", 7)]


@pytest.fixture
def lose_next_reply(ledger, monkeypatch):
    """A function after whose call the database does the next COMMIT, but its reply is lost.

    Its first argument is called before the COMMIT is tried again. With `is_done=False` the COMMIT
    is not done, and only its reply says so: the caller cannot tell these two failures apart.
    """
    dialect = ledger.storage.engine.dialect

    def fail_at_commit(meanwhile, is_done, connection):
        if is_done:
            connection.commit()
        else:
            connection.rollback()
        monkeypatch.undo()
        meanwhile()
        failure = sqlite3.OperationalError("database is locked")
        failure.sqlite_errorcode = sqlite3.SQLITE_BUSY  # a transient failure: the call is repeated
        raise failure

    def lose(meanwhile, *, is_done=True):
        monkeypatch.setattr(dialect, "do_commit", partial(fail_at_commit, meanwhile, is_done))

    return lose


def replace_trial(ledger, claim, connection):
    """Ends the trial of a claim as failed, and queues another one, as a worker does."""
    (trial,) = sql.read_by_ids(connection, [claim.trial_id])
    ended = sql.TRIALS.update().where(sql.TRIALS.c.trial_id == claim.trial_id)
    connection.execute(ended.values(state=TrialState.FAIL))
    redo.replace_trial(ledger, connection, trial, {"repeats": trial.number})


@pytest.mark.parametrize(
    ("change", "state"), [("renew", "held"), ("finish", "done"), ("release", "free")]
)
def test_a_change_of_a_claim_whose_reply_was_lost_is_seen_as_done(
    ledger, lose_next_reply, change, state
):
    ledger.extend(1)
    claim = ledger.claim("w", 1, LEASE)
    changes = {
        "renew": partial(ledger.renew, lease=LEASE),
        "finish": ledger.finish,
        "release": ledger.release,
    }
    lose_next_reply(lambda: None)
    assert changes[change](claim)
    assert ledger.counts()[state] == 1


@pytest.mark.parametrize("is_done", [True, False])
def test_a_release_whose_reply_was_lost_is_told_from_a_lost_claim(ledger, lose_next_reply, is_done):
    """Also if another worker has claimed the slot before the call is repeated."""
    ledger.extend(1)
    lease = LEASE if is_done else -1.0  # another worker claims it once its lease has ended
    claim = ledger.claim("w", 1, lease, maker(ledger))

    def claim_slot():
        assert ledger.claim("other", 1, LEASE).trial_id == claim.trial_id

    lose_next_reply(claim_slot, is_done=is_done)
    assert ledger.release(claim) == is_done
    assert [held.owner for held in ledger.held()] == ["other"]
    assert not ledger.release(claim, pytest.fail), "no reply to this call was lost"


@pytest.mark.parametrize("is_claimed", [False, True])
def test_a_replaced_trial_is_recognized_although_the_reply_was_lost(
    ledger, lose_next_reply, is_claimed
):
    """Also if another worker has claimed the new trial before the call is repeated."""
    ledger.extend(1)
    claim = ledger.claim("w", 1, LEASE, maker(ledger))

    def claim_new_trial():
        if is_claimed:
            assert ledger.claim("other", 1, LEASE).trial_id != claim.trial_id

    lose_next_reply(claim_new_trial)
    assert ledger.finish_and_queue(claim, partial(replace_trial, ledger, claim))
    assert len(ledger.storage.get_all_trials(ledger.study_id)) == 2
    assert [held.owner for held in ledger.held()] == ["other"] * is_claimed
    assert not ledger.finish_and_queue(claim, pytest.fail), "no reply to this call was lost"


def test_an_expired_lease_that_nobody_claims_stays_with_its_holder(ledger):
    ledger.extend(1)
    claim = ledger.claim("w", 1, -1.0)
    assert ledger.renew(claim, LEASE)
    assert ledger.claim("other", 1, LEASE) is None


def test_a_supervisor_renews_and_shortens_no_lease_of_a_long_epoch(ledger):
    ledger.extend(2)
    ledger.claim("a", 2, -1.0)
    ledger.renew_for(["a"], LEASE)
    assert ledger.claim("b", 1, LEASE) is None
    assert 50 < ledger.held()[0].seconds_left <= 60
    ledger.renew(ledger.claim("slow", 2, LEASE), 3600.0)
    ledger.renew_for(["slow"], LEASE)
    assert ledger.held()[1].seconds_left > 3500


def test_leases_are_on_the_databases_clock(ledger, monkeypatch):
    """A worker whose clock is an hour off neither loses its slots nor takes others'."""
    ledger.extend(2)
    ledger.claim("w", 2, LEASE)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert ledger.claim("ahead", 1, LEASE) is None
    assert 50 < ledger.held()[0].seconds_left <= 60


def test_only_the_slots_of_a_dead_worker_are_released(ledger):
    ledger.extend(4)
    ledger.finish(ledger.claim("dead", 4, LEASE))
    ledger.claim("dead", 4, LEASE, lambda *_: 3)
    ledger.claim("alive", 4, LEASE)
    assert ledger.record_death("dead", "signal SIGKILL") == 1
    assert ledger.counts() == {"free": 2, "held": 1, "done": 1}
    assert [held.owner for held in ledger.held()] == ["alive"]
    heir = ledger.claim("heir", 4, LEASE)
    assert (heir.trial_id, heir.deaths, heir.last_death, heir.fatal) == (
        3,
        1,
        "signal SIGKILL",
        False,
    )


def test_deaths_of_workers_of_this_host_are_recorded(ledger):
    gone = subprocess.Popen(["true"])
    gone.wait()
    ledger.extend(3)
    # Another host, or a container on this one, may have the same name.
    here, elsewhere = worker_id(os.getpid()), f"{socket.gethostname()}-0000x:{gone.pid}"
    for owner in (worker_id(gone.pid), here, elsewhere):
        ledger.claim(owner, 3, LEASE)
    ledger.record_gone()
    assert [held.owner for held in ledger.held()] == sorted([here, elsewhere])


def test_a_death_is_fatal_to_the_overdue_trial_and_not_to_a_later_one(either):
    either.extend(2)
    first = either.claim("w", 2, LEASE)
    assert either.overdue(["v", "w"], 100.0) == []
    pass_time(either, 101.0)
    assert either.overdue(["v"], 100.0) == []
    (overdue,) = either.overdue(["v", "w"], 100.0)
    assert (overdue.owner, overdue.slot) == ("w", first.slot)
    either.finish(first)
    second = either.claim("w", 2, LEASE)
    either.record_death("w", "too long", overdue=overdue)
    heir = either.claim("heir", 2, LEASE)
    assert (heir.slot, heir.deaths, heir.fatal) == (second.slot, 1, False)
    (overdue,) = either.overdue(["heir"], -1.0)
    either.record_death("heir", "too long", overdue=overdue)
    assert either.claim("next", 2, LEASE).fatal


def test_a_study_with_the_id_of_a_deleted_one_has_none_of_its_slots(ledger):
    ledger.extend(2)
    ledger.finish(ledger.claim("w", 2, LEASE))
    ledger.storage.execute(lambda connection: connection.execute(SLOTS.delete()))
    ledger.extend(3)
    assert ledger.counts() == {"free": 3, "held": 0, "done": 0}


class Order:
    """Compares trials at the steps 2 and 4, by their value and one cost."""

    costs = ("parameters",)

    def rungs(self, longest):
        return [rung for rung in (2, 4) if rung <= longest]


def test_standings_hold_each_trials_reports_at_rungs_and_its_costs(either):
    either.extend(4)

    def claim(owner, cost, *steps):
        attributes = {"parameters": cost, "other": 1.0}
        made = partial(sql.insert_trial, study_id=either.study_id, user_attrs=attributes)
        claim = either.claim(owner, 4, LEASE, lambda c, _: made(c)._trial_id)
        for step in steps:
            either.storage.set_trial_intermediate_value(claim.trial_id, step, step / 10)
        return claim

    either.finish(claim("a", 7.0, 1, 3, 4))
    released = claim("a", 8.0, 1)
    claim("b", 9.0, 2)
    either.release(released)
    order = Order()
    done, handed_back, other, fresh = either.standings("a", 4, order)
    reports = {2: RungReport(3, 0.3), 4: RungReport(4, 0.4)}
    assert done == Standing(0, "done", 4, reports, costs={"parameters": 7.0})
    assert handed_back == Standing(1, "open", 1, costs={"parameters": 8.0})
    assert other == Standing(2, "held", 2, {2: RungReport(2, 0.2)}, costs={"parameters": 9.0})
    assert fresh == Standing(3, "unclaimed")
    either.storage.set_trial_intermediate_value(either.held()[0].trial_id, 5, 0.5)
    again = either.standings("b", 4, order)
    assert [standing.state for standing in again] == ["done", "open", "own", "unclaimed"]
    assert again[2].reports == {2: RungReport(2, 0.2), 4: RungReport(5, 0.5)}
    anew = Ledger(either.storage, either.study_id, either.uuid)
    assert again == anew.standings("b", 4, order)


# What others have changed: each slot is what its trial says.


def fill(ledger, slot, state=TrialState.COMPLETE):
    trial = create_trial(state=state, value=1.0 if state == TrialState.COMPLETE else None)
    trial.user_attrs["slot"] = slot
    return ledger.storage.create_new_trial(ledger.study_id, trial)


def rows(ledger):
    columns = (SLOTS.c.slot, SLOTS.c.state, SLOTS.c.trial_id)
    statement = select(*columns).order_by(SLOTS.c.slot)
    return ledger.storage.read(lambda c: [tuple(row) for row in c.execute(statement)])


def test_each_slot_is_repaired_to_agree_with_its_trial(either):
    either.extend(6)
    ended, running = fill(either, 0), fill(either, 1, TrialState.RUNNING)
    waiting, far = fill(either, 3, TrialState.WAITING), fill(either, 8)
    fill(either, None)  # another program's
    for slot, state, trial_id in (
        (0, "free", None),
        (1, "done", running),
        (2, "done", 99),
        (3, "held", 99),
        (4, "odd", None),
    ):
        values = {"state": state, "trial_id": trial_id, "expires": 0.0, "owner": "w"}
        either.storage.execute(
            lambda c, slot=slot, values=values: c.execute(
                update(SLOTS).where(SLOTS.c.slot == slot).values(**values)
            ),
        )
    before, found = rows(either), either.compare()
    assert found.startswith("slots 0-4, 8: differ from their trials")
    assert rows(either) == before
    assert either.reconcile("s", 6)
    assert rows(either) == [
        *((0, "done", ended), (1, "free", running), (2, "free", None), (3, "free", waiting)),
        *((4, "free", None), (5, "free", None), (8, "done", far)),
    ]
    assert either.compare() is None
    assert not either.reconcile("s", 6)
    either.storage.execute(lambda c: c.execute(delete(SLOTS).where(SLOTS.c.slot.in_([4, 5]))))
    assert either.reconcile("s", 6), "work is left, also where no trial differs"
    assert [slot for slot, *_ in rows(either)] == [0, 1, 2, 3, 4, 5, 8]


def test_a_repaired_slot_is_lost_to_its_holder_unless_the_lease_is_valid(ledger):
    ledger.extend(2)
    claims = [ledger.claim(owner, 2, LEASE, lambda *_: 99) for owner in "ab"]
    assert ledger.compare() is None
    pass_time(ledger, 2 * LEASE)
    ledger.renew(claims[1], LEASE)
    assert ledger.compare(repair=True).startswith("slots 0: ")
    assert [ledger.renew(claim, LEASE) for claim in claims] == [False, True]


@pytest.mark.parametrize("what", ["slot", "number"])
def test_two_trials_with_one_slot_or_number_are_refused_and_unchanged(ledger, what):
    ledger.extend(2)
    fill(ledger, 0)
    twice = fill(ledger, 0 if what == "slot" else 1)
    if what == "number":
        renumber = sql.TRIALS.update().where(sql.TRIALS.c.trial_id == twice).values(number=0)
        ledger.storage.execute(lambda connection: connection.execute(renumber))
    before = rows(ledger)
    with pytest.raises(StorageError, match=f"several trials have the {what} 0; delete all but one"):
        ledger.reconcile("s", 2)
    assert rows(ledger) == before


# Statements about open slots go by indexes: what they read does not grow with other slots.

CALLS = {
    "claim": lambda ledger, trials: ledger.claim("w", trials, LEASE),
    "claim of a begun one": lambda ledger, trials: ledger.claim(
        "w", trials, LEASE, search_ended=True
    ),
    "count_open": lambda ledger, trials: ledger.count_open(trials),
    "held": lambda ledger, trials: ledger.held(),
    "overdue": lambda ledger, trials: ledger.overdue(["w"], 0.0),
    "renew_for": lambda ledger, trials: ledger.renew_for(["w"], LEASE),
    "record_gone": lambda ledger, trials: ledger.record_gone(),
}


class Steps:
    """Counts the instructions that SQLite's machine runs for the statements of an engine."""

    def __init__(self, engine):
        self.count = 0
        event.listen(engine, "before_cursor_execute", self.begin)

    def begin(self, connection, *_):
        connection.connection.driver_connection.set_progress_handler(self.step, 1)

    def step(self):
        self.count += 1


@pytest.mark.parametrize("state", ["done", "free"])
def test_the_cost_of_a_call_does_not_grow_with_the_number_of_slots(sqlite_url, state):
    backend = connect(sqlite_url, create=True)
    create_table(backend)
    ledgers = {}
    for count in (20, 2000):
        ledgers[count] = make(backend, f"{count}")
        columns = {"study_id": ledgers[count].study_id, "state": state}
        columns |= {"token": 0, "deaths": 0, "fatal": 0}
        slots = [
            columns | {"slot": slot, "trial_id": -slot if state == "done" else None}
            for slot in range(count)
        ]
        backend.execute(lambda c, slots=slots: c.execute(insert(SLOTS), slots))
        ledgers[count].extend(count + 3)
    steps = Steps(backend.engine)
    for name, call in CALLS.items():
        if (state, name) == ("free", "count_open"):  # which counts them
            continue
        taken = []
        for count, grown in ledgers.items():
            steps.count = 0
            call(grown, count + 3)
            taken.append(steps.count)
        assert 0 < taken[1] < 1.5 * taken[0], (name, taken)


# The lease to test a winner


@pytest.fixture
def commands_are_threads(monkeypatch):
    monkeypatch.setattr(module, "worker_id", lambda _: f"w:{threading.get_ident()}")


@pytest.fixture
def waiting(monkeypatch):
    """Is set once a command says that it waits for another one."""
    said = threading.Event()
    monkeypatch.setattr(module.log, "warning", lambda *_: said.set())
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    return said


def stored_under(ledger, key):
    return ledger.storage.read(lambda c: sql.study_attrs(c, ledger.study_id, key))


def test_one_command_at_a_time_tests_a_winner_and_another_one_waits(
    either, url, commands_are_threads, waiting
):
    order = []

    def second():
        with Ledger(connect(url), either.study_id, either.uuid).testing() as store:
            store(either.study_id, "tested", "second")
            order.append("second")

    other = make(either.storage, "another study")
    with either.testing() as store, other.testing():
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(60)
        store(either.study_id, "tested", "first")
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
    assert stored_under(either, "tested") == ["second"]


def test_a_command_that_lost_its_lease_stores_no_test(ledger, commands_are_threads):
    taken = threading.Event()

    def second():
        with ledger.testing() as store:
            store(ledger.study_id, "tested", "second")
            taken.set()

    with ledger.testing() as store_late:
        pass_time(ledger, ledger.storage.retry.deadline + connections.LEASE + 1)
        thread = threading.Thread(target=second)
        thread.start()
        assert taken.wait(60)
        with pytest.raises(StorageError, match="another one has taken over; run this one"):
            store_late(ledger.study_id, "tested", "late")
    thread.join(60)
    assert stored_under(ledger, "tested") == ["second"]


def test_the_lease_of_a_process_that_is_gone_is_free_at_once(ledger, monkeypatch, waiting):
    gone = subprocess.Popen(["true"])
    gone.wait()
    with monkeypatch.context() as patch:
        patch.setattr(module, "worker_id", lambda _: worker_id(gone.pid))
        patch.setattr(Ledger, "release", lambda *_: None)
        with ledger.testing():
            pass
    with ledger.testing() as store:
        store(ledger.study_id, "tested", "by another")
    assert stored_under(ledger, "tested") == ["by another"]


def test_the_lease_to_test_is_not_part_of_the_budget(ledger):
    ledger.extend(2)
    with ledger.testing():
        assert (ledger.counts(), ledger.held()) == ({"free": 2, "held": 0, "done": 0}, [])
        assert (ledger.compare(), ledger.count_open(2)) == (None, 2)
        assert [ledger.claim(owner, 9, LEASE).slot for owner in ("a", "b")] == [0, 1]
        assert ledger.claim("c", 9, LEASE) is None
