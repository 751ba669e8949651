"""For the tests of retries: calls that write, the contents of the database, and what is logged."""

import contextlib
import logging
import threading
import traceback
from datetime import datetime

from commands import CANARY
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from studyloom.storage import sql
from studyloom.storage.attributes import UUID
from studyloom.storage.ledger import Ledger
from studyloom.storage.slot_table import create_table

MAXIMIZE = [StudyDirection.MAXIMIZE]


def template():
    """A running trial, to be created as it is."""
    trial = create_trial(state=TrialState.RUNNING, user_attrs={"slot": 0})
    trial.datetime_start = datetime.now()
    return trial


def make_study(opened):
    """Creates a study with 99 slots and a running trial."""
    study_id = opened.execute(lambda c: sql.add_study(c, "s", MAXIMIZE, {UUID: "of s"}))
    create_table(opened)
    ledger_of(opened, study_id).extend(99)
    return study_id, opened.create_new_trial(study_id, template())


def ledger_of(opened, study_id):
    return Ledger(opened, study_id, "of s")


def begin(opened, study_id, _=None, owner="w"):
    """Claims a slot with a trial, as a worker does."""
    ledger = ledger_of(opened, study_id)

    def make(connection, slot):
        return sql.insert_trial(connection, study_id, {"slot": slot})._trial_id

    return ledger.claim(owner, 99, 60.0, make)


def check_shown(error, *words):
    """Checks an error as users see it: has these words, no password, no foreign traceback."""
    shown = "".join(traceback.format_exception(error))
    assert all(word in str(error) for word in words), str(error)
    assert CANARY not in shown
    assert "sqlalchemy" not in shown.lower().replace("sqlalchemy.engine.url", "")
    assert "psycopg" not in shown.replace("postgresql+psycopg", "")
    assert "sqlite3" not in shown


class Lines(logging.Handler):
    """Keeps what is logged; `away` is set once a first try has failed."""

    def __init__(self):
        super().__init__()
        self.lines = []
        self.away = threading.Event()

    def emit(self, record):
        self.lines.append(record.getMessage())
        self.away.set()


@contextlib.contextmanager
def in_background(act):
    """Runs `act` in a thread beside the body, and waits for it."""
    failures = []

    def run():
        try:
            act()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(120)
    assert not thread.is_alive()
    assert failures == []


# By what they write: functions of a storage, the id of a study and of its running trial.
WRITES = {
    "a claim with its trial": begin,
    "a trial": lambda s, study, trial: s.create_new_trial(study, template()),
    "a study": lambda s, study, trial: s.create_new_study(MAXIMIZE, "t"),
    "an attribute of the study": lambda s, study, trial: s.set_study_user_attr(study, "k", 1),
    "a parameter": lambda s, study, trial: s.set_trial_param(
        trial, "x", 0.5, FloatDistribution(0, 1)
    ),
    "a report": lambda s, study, trial: s.set_trial_intermediate_value(trial, 1, 0.5),
    "an attribute": lambda s, study, trial: s.set_trial_user_attr(trial, "k", 1),
    "an end": lambda s, study, trial: s.set_trial_state_values(trial, TrialState.COMPLETE, [0.5]),
    "a row of ours": lambda s, study, trial: s.execute(
        lambda c: c.exec_driver_sql(f"UPDATE studies SET study_name='u' WHERE study_id={study}")
    ),
}


def contents(opened):
    """Everything that the writes above may write, in a form to compare."""
    tables = (
        *("studies", "study_user_attributes", "trials", "trial_values", "trial_params"),
        *("trial_intermediate_values", "trial_user_attributes"),
    )
    columns = {
        "states": "SELECT state FROM trials",
        "names": "SELECT study_name FROM studies",
        "numbers": "SELECT number FROM trials",
    }

    def take(connection):
        ask = connection.exec_driver_sql
        counts = {table: ask(f"SELECT count(*) FROM {table}").scalar_one() for table in tables}
        return counts | {name: sorted(ask(query).scalars()) for name, query in columns.items()}

    return opened.read(take)
