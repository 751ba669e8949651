"""Reconciles the ledger with Optuna's tables, whenever a command begins and ends."""

import logging
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, text

from studyloom.errors import StorageError
from studyloom.storage import sql
from studyloom.storage.compare import Difference, Entry, compare
from studyloom.storage.database import execute
from studyloom.storage.heads import heads, renumber, set_aside
from studyloom.storage.ledger import Ledger
from studyloom.storage.slots import METADATA, lacking
from studyloom.storage.studies import lock_study

# A new token takes the slot from whoever held it before.
ENTRY = text(
    "INSERT INTO studyloom_slots (study_id, slot, state, token, deaths, fatal, trial_id) "
    "VALUES (:study, :slot, :state, 0, 0, 0, :trial_id) ON CONFLICT (study_id, slot) DO UPDATE "
    "SET state = excluded.state, trial_id = excluded.trial_id, token = studyloom_slots.token + 1, "
    "deaths = 0, death = NULL, fatal = 0, owner = NULL, expires = NULL"
)
log = logging.getLogger(__name__)


def reconcile(
    ledger: Ledger, mends: Callable[[Difference], bool] = lambda _: False
) -> list[Difference]:
    """Compares the ledger of a study with its trials, and mends differences.

    Args:
        ledger: Of the study.
        mends: Returns whether a difference is mended; by default none is.

    Returns:
        All differences, as they were before.

    Raises:
        StorageLost: The study was deleted.
    """

    def work(connection: Connection) -> list[Difference]:
        lock_study(connection, ledger.study_id, ledger.uuid)
        exists = lacking(connection) is not None
        rows = ledger.rows(connection) if exists else []
        found = compare(rows, heads(connection, ledger.study_id))
        mended = [difference for difference in found if mends(difference)]
        if mended and not exists:
            METADATA.create_all(connection)
        for difference in mended:
            sql.write(connection, map(set_aside, difference.aside))
            sql.write(connection, (renumber(*change) for change in difference.numbers))
            enter(connection, ledger.study_id, difference.entries)
        return found

    return execute(ledger.storage, work)


def enter(connection: Connection, study_id: int, entries: Sequence[Entry]) -> None:
    """Writes rows of the ledger; whoever holds one of the slots has lost it."""
    if entries:
        connection.execute(ENTRY, [{"study": study_id, **entry._asdict()} for entry in entries])


def reconcile_unasked(ledger: Ledger, name: str, trials: int) -> bool:
    """Mends the differences that can be mended in one way only, and logs what it found.

    Args:
        ledger: Of the study.
        name: Of the study.
        trials: The number of slots that the study has afterwards at least.

    Returns:
        Whether there were any.

    Raises:
        StorageError: A person must decide on the others.
    """
    found = reconcile(ledger, lambda difference: difference.safe)
    for difference in found:
        if difference.safe:
            log.warning("%s: %s", name, difference.words)
    if unsafe := [difference.words for difference in found if not difference.safe]:
        raise StorageError(
            f"study.name: ledger and trials of {name!r} contradict each other: "
            f"{'; '.join(unsafe)}: `studyloom doctor --repair RUN_DIR` does that"
        )
    ledger.extend(trials)
    return bool(found)
