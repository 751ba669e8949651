"""The budget of a study: slots are claimed once, leases end, and deaths are recorded."""

import os
import socket
import subprocess
import threading
import time

import optuna
import pytest
from optuna.storages import get_storage
from sqlalchemy import update

from studyloom.processes import worker_id
from studyloom.storage import sql
from studyloom.storage.database import connect, execute
from studyloom.storage.leases import LEASE_FACTOR
from studyloom.storage.ledger import Ledger
from studyloom.storage.slots import SLOTS, clear, create_table

LEASE = 60.0
HOURS = 5 * 3600.0


class Observer:
    """Another worker, which looks at the slots every ten seconds of its own clock."""

    def __init__(self, ledger):
        self.now = 0.0
        self.ledger = Ledger(ledger.storage, ledger.study_id, clock=lambda: self.now)

    def claim(self, seconds=0.0, owner="heir"):
        """Claims a slot as soon as there is one, within so many seconds."""
        end = self.now + seconds
        while (claim := self.ledger.claim(owner, 1, LEASE)) is None and self.now < end:
            self.now += 10.0
        return claim


def set_clock(ledger, ahead):
    """Sets the database's clock: all that is stored moves the other way."""
    moved = {name: SLOTS.c[name] - ahead for name in ("since", "expires")}
    execute(ledger.storage, lambda connection: connection.execute(update(SLOTS).values(**moved)))


@pytest.fixture
def ledger(url):
    backend = connect(url, create=True)
    storage = get_storage(backend)
    optuna.create_study(study_name="s", storage=storage)
    ledger = Ledger(backend, storage.get_study_id_from_name("s"))
    create_table(backend)
    return ledger


def test_every_slot_is_claimed_once_whoever_asks(ledger, url):
    ledger.extend(40)
    claimed = []

    def work(owner):
        own = Ledger(connect(url), ledger.study_id)
        while (claim := own.claim(owner, 40, LEASE)) is not None:
            claimed.append(claim.slot)
            own.finish(claim)

    workers = [threading.Thread(target=work, args=(f"w{k}",)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(claimed) == list(range(40))


def test_a_budget_grows_and_never_shrinks(ledger):
    ledger.extend(3)
    ledger.extend(5)
    ledger.extend(2)
    assert ledger.counts() == {"free": 5, "held": 0, "done": 0}


def test_a_smaller_budget_claims_only_its_own_slots(ledger):
    ledger.extend(5)
    assert [ledger.claim(owner, 2, LEASE).slot for owner in ("a", "b")] == [0, 1]
    assert ledger.claim("c", 2, LEASE) is None
    assert ledger.todo(2) == 2
    assert ledger.todo(5) == 5


def test_a_slot_handed_back_is_next_and_keeps_its_trial(ledger):
    ledger.extend(3)
    ledger.finish(ledger.claim("a", 3, LEASE))
    claim = ledger.claim("a", 3, LEASE, lambda *_: 17)
    ledger.release(claim)
    again = ledger.claim("b", 3, LEASE)
    assert (again.slot, again.trial_id, again.token) == (claim.slot, 17, claim.token + 1)


def test_a_claim_and_its_trial_are_made_together_or_not_at_all(ledger):
    ledger.extend(2)

    def die(connection, slot):
        sql.add(connection, ledger.study_id, {"slot": slot})
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        ledger.claim("a", 2, LEASE, die)
    assert ledger.counts()["free"] == 2
    assert ledger.storage.get_all_trials(ledger.study_id) == []

    claims = [
        ledger.claim(
            owner,
            2,
            LEASE,
            lambda connection, slot: sql.add(connection, ledger.study_id, {"slot": slot}),
        )
        for owner in ("a", "b", "a")  # a lost its first answer
    ]
    trials = ledger.storage.get_all_trials(ledger.study_id)
    assert [(trial.number, trial.user_attrs) for trial in trials] == [
        (0, {"slot": 0}),
        (1, {"slot": 1}),
    ]
    assert [claim.trial_id for claim in claims] == [
        trials[0]._trial_id,
        trials[1]._trial_id,
        trials[0]._trial_id,
    ]


def test_what_comes_with_a_lost_claim_is_not_written(ledger):
    ledger.extend(1)
    late = ledger.claim("late", 1, -1.0)
    assert Observer(ledger).claim(LEASE / 2)
    written = []
    assert not ledger.renew(late, LEASE, written.append)
    assert not ledger.finish(late, written.append)
    assert written == []


def test_a_claim_stays_as_it_was_where_what_comes_with_it_fails(ledger):
    ledger.extend(1)
    claim = ledger.claim("w", 1, LEASE)

    def fail(connection):
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        ledger.finish(claim, fail)
    assert ledger.counts() == {"free": 0, "held": 1, "done": 0}


def test_an_old_token_changes_nothing(ledger):
    ledger.extend(1)
    old = ledger.claim("a", 1, LEASE)
    ledger.release(old)
    new = ledger.claim("b", 1, LEASE)
    ledger.finish(old)
    assert not ledger.renew(old, LEASE)
    assert [(held.owner, held.trial_id) for held in ledger.held()] == [("b", None)]
    ledger.finish(new)
    assert ledger.counts() == {"free": 0, "held": 0, "done": 1}


def test_what_a_dead_worker_held_is_handed_back_and_nothing_else(ledger):
    ledger.extend(4)
    ledger.finish(ledger.claim("dead", 4, LEASE))
    ledger.claim("dead", 4, LEASE, lambda *_: 3)
    ledger.claim("alive", 4, LEASE)
    assert ledger.record_death("dead", "signal SIGKILL") == 1
    assert ledger.counts() == {"free": 2, "held": 1, "done": 1}
    assert [held.owner for held in ledger.held()] == ["alive"]
    heir = ledger.claim("heir", 4, LEASE)
    assert (heir.trial_id, heir.deaths, heir.death, heir.fatal) == (3, 1, "signal SIGKILL", False)


def test_two_studies_share_a_database_and_no_slot(ledger):
    ledger.extend(2)
    optuna.create_study(study_name="other", storage=get_storage(ledger.storage))
    other = Ledger(ledger.storage, ledger.study_id + 1)
    other.extend(1)
    assert other.claim("w", 9, LEASE).slot == 0
    assert other.claim("x", 9, LEASE) is None
    assert ledger.counts()["free"] == 2


def test_a_study_that_takes_the_id_of_a_deleted_one_has_no_slots_of_it(ledger):
    ledger.extend(2)
    ledger.finish(ledger.claim("w", 2, LEASE))
    execute(ledger.storage, lambda connection: clear(connection, ledger.study_id))
    ledger.extend(3)
    assert ledger.counts() == {"free": 3, "held": 0, "done": 0}


def test_a_lease_that_has_ended_is_adopted_and_the_late_holder_has_lost_the_slot(ledger):
    ledger.extend(1)
    late = ledger.claim("late", 1, -1.0, lambda *_: 7)
    heir = Observer(ledger).claim(LEASE / 2)
    assert (heir.slot, heir.trial_id, heir.token, heir.deaths) == (0, 7, late.token + 1, 1)
    assert heir.death == "its lease ended"
    assert not ledger.renew(late, LEASE)
    ledger.finish(late)
    ledger.release(late)
    assert [held.owner for held in ledger.held()] == ["heir"]


def test_a_lease_that_has_ended_and_that_nobody_wants_is_still_its_holders(ledger):
    ledger.extend(1)
    claim = ledger.claim("w", 1, -1.0)
    assert ledger.renew(claim, LEASE)
    assert ledger.claim("other", 1, LEASE) is None


def test_a_claim_that_a_supervisor_renews_is_not_adopted(ledger):
    ledger.extend(2)
    ledger.claim("a", 2, -1.0)
    other = Observer(ledger)
    assert other.claim() is None
    ledger.renew_for(["a"], LEASE)
    assert other.claim(LEASE / 2) is None
    assert 50 < ledger.held()[0].left <= 60


def test_a_slot_handed_back_in_order_counts_no_death(ledger):
    ledger.extend(1)
    for _ in range(4):
        claim = ledger.claim("w", 1, LEASE)
        ledger.release(claim)
    assert (claim.token, claim.deaths) == (4, 0)


def test_leases_are_on_the_databases_clock(ledger, monkeypatch):
    """A worker whose clock is an hour off neither loses its slots nor takes others'."""
    ledger.extend(2)
    ledger.claim("w", 2, LEASE)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert ledger.claim("ahead", 1, LEASE) is None
    assert 50 < ledger.held()[0].left <= 60


@pytest.mark.parametrize("age", [0.0, 1800.0])
def test_a_clock_that_goes_back_keeps_no_slot(ledger, age):
    """The lease ends five hours ahead now, which none can: then LEASE is left from now on."""
    ledger.extend(1)
    lost = ledger.claim("lost", 1, LEASE)
    set_clock(ledger, age)
    ledger.renew(lost, LEASE)
    set_clock(ledger, -HOURS)
    assert ledger.held()[0].left > HOURS
    heir = Observer(ledger)
    assert heir.claim(LEASE - 10) is None
    assert heir.claim(10).deaths == 1


def test_a_clock_that_goes_back_while_others_wait_delays_nothing(ledger):
    ledger.extend(1)
    ledger.claim("lost", 1, LEASE)
    heir = Observer(ledger)
    assert heir.claim(LEASE / 2) is None
    set_clock(ledger, -HOURS)
    assert heir.claim(HOURS) is not None
    assert heir.now < 2.5 * LEASE


@pytest.mark.parametrize("hours", [HOURS, -HOURS], ids=["ahead", "back"])
@pytest.mark.parametrize("before", [True, False])
def test_a_clock_that_leaps_buries_nobody_who_renews(ledger, hours, before):
    """Whether the other has looked before the clock leapt or has only come to work."""
    ledger.extend(1)
    claim = ledger.claim("living", 1, LEASE)
    other = Observer(ledger)
    if before:
        assert other.claim(10) is None
    set_clock(ledger, hours)
    for _ in range(10):
        assert other.claim(LEASE / 4) is None
        ledger.renew_for(["living"], LEASE)
        assert 50 < ledger.held()[0].left <= 60
    assert ledger.renew(claim, LEASE)
    assert ledger.claim("living", 1, LEASE).deaths == 0


def test_others_that_were_stopped_with_the_holder_give_it_time_to_renew(ledger):
    """As when a container is paused: all wake up at once, an hour later."""
    ledger.extend(1)
    claim = ledger.claim("living", 1, LEASE)
    other = Observer(ledger)
    assert other.claim() is None
    set_clock(ledger, 3600.0)
    other.now += 3600.0
    assert other.claim() is None
    ledger.renew(claim, LEASE)
    assert other.claim(10) is None


def test_a_long_lease_of_a_long_epoch_stays_as_it_is(ledger):
    ledger.extend(1)
    claim = ledger.claim("slow", 1, LEASE)
    set_clock(ledger, 1000.0)
    ledger.renew(claim, LEASE_FACTOR * 900.0)
    ledger.renew_for(["slow"], LEASE)
    assert ledger.held()[0].left > 3500
    heir = Observer(ledger)
    assert heir.claim(3500) is None
    assert heir.claim(200) is not None


def test_the_deaths_of_this_hosts_workers_whose_process_is_gone_are_recorded(ledger):
    gone = subprocess.Popen(["true"])
    gone.wait()
    ledger.extend(3)
    # Another host, or a container on this one, may have the same name.
    here, elsewhere = worker_id(os.getpid()), f"{socket.gethostname()}-0000x:{gone.pid}"
    for owner in (worker_id(gone.pid), here, elsewhere):
        ledger.claim(owner, 3, LEASE)
    ledger.record_gone()
    assert [held.owner for held in ledger.held()] == sorted([here, elsewhere])


def test_claims_older_than_a_limit_are_overdue_whatever_the_clock_does(ledger):
    ledger.extend(2)
    ledger.claim("a", 2, LEASE)
    watcher = Observer(ledger)
    overdue = watcher.ledger.overdue
    assert overdue(["a", "b"], 100.0) == []
    set_clock(ledger, HOURS)
    assert overdue(["a", "b"], 100.0) == []
    set_clock(ledger, -2 * HOURS)
    watcher.now += 101.0
    assert [claim.owner for claim in overdue(["a", "b"], 100.0)] == ["a"]
    assert overdue(["b"], -1.0) == []
    ledger.claim("a", 2, LEASE)  # anew
    assert overdue(["a", "b"], 100.0) == []


def test_a_fatal_death_is_told_to_the_heir(ledger):
    ledger.extend(1)
    ledger.claim("w", 1, LEASE)
    (overdue,) = ledger.overdue(["w"], -1.0)
    ledger.record_death("w", "too long", overdue=overdue)
    heir = ledger.claim("heir", 1, LEASE)
    assert (heir.fatal, heir.death) == (True, "too long")


def test_a_death_is_fatal_to_the_overdue_trial_and_not_to_one_that_was_begun_since(ledger):
    ledger.extend(2)
    first = ledger.claim("w", 2, LEASE)
    (overdue,) = ledger.overdue(["w"], -1.0)
    ledger.finish(first)
    second = ledger.claim("w", 2, LEASE)
    assert second.slot != first.slot
    ledger.record_death("w", "too long", overdue=overdue)
    heir = ledger.claim("heir", 2, LEASE)
    assert (heir.slot, heir.deaths, heir.fatal) == (second.slot, 1, False)


def test_a_claim_whose_answer_was_lost_is_taken_again(ledger):
    ledger.extend(2)
    lost = ledger.claim("w", 2, LEASE)
    again = ledger.claim("w", 2, LEASE)
    assert (again.slot, again.token, again.deaths) == (lost.slot, lost.token + 1, 0)
    assert ledger.counts()["held"] == 1


def test_a_fresh_claim_takes_no_slot_with_a_trial_that_its_worker_held_before(ledger):
    """No answer was lost: another process may have had the id of the worker."""
    ledger.extend(2)
    held = ledger.claim("w", 2, LEASE, lambda *_: 3)
    fresh = ledger.claim("w", 2, LEASE, fresh=True)
    assert (fresh.slot, fresh.trial_id) == (held.slot + 1, None)
