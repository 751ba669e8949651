import threading

import optuna
import pytest
from optuna.storages import get_storage

from studyloom.ledger import Ledger
from studyloom.storage import connect


@pytest.fixture
def ledger(url):
    backend = connect(url, create=True)
    storage = get_storage(backend)
    optuna.create_study(study_name="s", storage=storage)
    ledger = Ledger(backend, storage.get_study_id_from_name("s"))
    ledger.create()
    return ledger


def test_every_slot_is_claimed_once_whoever_asks(ledger, url):
    ledger.extend(40)
    claimed = []

    def work(owner):
        own = Ledger(connect(url), ledger.study_id)
        while (claim := own.claim(owner, 40)) is not None:
            claimed.append(claim.slot)

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
    assert [ledger.claim("w", 2).slot, ledger.claim("w", 2).slot] == [0, 1]
    assert ledger.claim("w", 2) is None
    assert ledger.open(2) == 0
    assert ledger.open(5) == 3


def test_a_slot_handed_back_is_next_and_keeps_its_trial(ledger):
    ledger.extend(3)
    ledger.finish(ledger.claim("a", 3))
    claim = ledger.claim("a", 3)
    ledger.attach(claim, 17)
    ledger.release(claim)
    again = ledger.claim("b", 3)
    assert (again.slot, again.trial_id, again.token) == (claim.slot, 17, claim.token + 1)


def test_an_old_token_changes_nothing(ledger):
    ledger.extend(1)
    old = ledger.claim("a", 1)
    ledger.release(old)
    new = ledger.claim("b", 1)
    ledger.finish(old)
    ledger.attach(old, 5)
    assert [(held.owner, held.trial_id) for held in ledger.held()] == [("b", None)]
    ledger.finish(new)
    assert ledger.counts() == {"free": 0, "held": 0, "done": 1}


def test_what_a_dead_worker_held_is_handed_back_and_nothing_else(ledger):
    ledger.extend(4)
    ledger.finish(ledger.claim("dead", 4))
    ledger.attach(ledger.claim("dead", 4), 3)
    ledger.claim("alive", 4)
    ledger.release_owner("dead")
    assert ledger.counts() == {"free": 2, "held": 1, "done": 1}
    assert [held.owner for held in ledger.held()] == ["alive"]
    assert ledger.claim("heir", 4).trial_id == 3


def test_two_studies_share_a_database_and_no_slot(ledger):
    ledger.extend(2)
    other = Ledger(ledger.storage, ledger.study_id + 1)
    other.create()
    other.extend(1)
    assert other.claim("w", 9).slot == 0
    assert other.claim("w", 9) is None
    assert ledger.counts()["free"] == 2


def test_a_study_that_takes_the_id_of_a_deleted_one_has_no_slots_of_it(ledger):
    ledger.extend(2)
    ledger.finish(ledger.claim("w", 2))
    ledger.create()
    ledger.extend(3)
    assert ledger.counts() == {"free": 3, "held": 0, "done": 0}
