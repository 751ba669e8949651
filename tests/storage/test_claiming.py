"""Statements about open slots go by indexes: what they read does not grow with other slots."""

import optuna
import pytest
from optuna.storages import get_storage
from sqlalchemy import event, insert

from studyloom.storage.database import connect, execute
from studyloom.storage.ledger import Ledger
from studyloom.storage.slots import SLOTS, create_table

LEASE, OPEN = 60.0, 3
CALLS = {
    "claim": lambda ledger, trials: ledger.claim("w", trials, LEASE),
    "claim of a begun one": lambda ledger, trials: ledger.claim("w", trials, LEASE, begun=True),
    "claim of a fresh one": lambda ledger, trials: ledger.claim("w", trials, LEASE, fresh=True),
    "todo": lambda ledger, trials: ledger.todo(trials),
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


class Plans:
    """Asks PostgreSQL for the plan of each statement of an engine."""

    def __init__(self, engine):
        self.lines = []
        event.listen(engine, "before_cursor_execute", self.explain)

    def explain(self, connection, cursor, statement, parameters, context, many):
        if statement.startswith(("SELECT", "UPDATE", "WITH")):
            explaining = connection.connection.driver_connection.cursor()
            explaining.execute("EXPLAIN " + statement, parameters)
            self.lines += [line for (line,) in explaining.fetchall()]


@pytest.fixture
def grown(url):
    """Gives a function that makes a study with so many slots in a state, and some free ones."""
    backend = connect(url, create=True)
    storage = get_storage(backend)
    create_table(backend)

    def make(state, count):
        name = f"with {count}"
        optuna.create_study(study_name=name, storage=storage)
        study_id = storage.get_study_id_from_name(name)
        columns = {"study_id": study_id, "state": state, "token": 0, "deaths": 0, "fatal": 0}
        if state == "done":
            columns |= {"token": 1, "owner": "w"}
        trial = (lambda slot: -slot) if state == "done" else (lambda slot: None)
        rows = [columns | {"slot": slot, "trial_id": trial(slot)} for slot in range(count)]
        execute(backend, lambda connection: connection.execute(insert(SLOTS), rows))
        ledger = Ledger(backend, study_id)
        ledger.extend(count + OPEN)
        return ledger

    return make


@pytest.mark.parametrize(
    ("state", "call"),
    [("done", call) for call in CALLS]
    + [("free", call) for call in CALLS if call != "todo"],  # which counts them
)
def test_what_a_call_reads_does_not_grow_with_the_other_slots(grown, state, call):
    few, many = 20, 2000
    ledgers = {count: grown(state, count) for count in (few, many)}
    for count, ledger in ledgers.items():
        ledger.claim("another", count + OPEN, LEASE)
    engine = ledgers[few].storage.engine
    if engine.dialect.name == "sqlite":
        steps, taken = Steps(engine), []
        for count, ledger in ledgers.items():
            steps.count = 0
            CALLS[call](ledger, count + OPEN)
            taken.append(steps.count)
        assert 0 < taken[1] < 1.5 * taken[0], taken
    else:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE studyloom_slots")
        plans = Plans(engine)
        CALLS[call](ledgers[many], many + OPEN)
        assert plans.lines
        assert not [line for line in plans.lines if "Seq Scan on studyloom_slots" in line]
