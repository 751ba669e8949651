"""A report of an epoch and the renewal of its lease, as one statement that is its own transaction.

On PostgreSQL the same in a transaction of several statements takes seven round trips to the server
instead of one. SQLite, which knows no such statement, has no round trips.
"""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import text

from studyloom.storage.attributes import SLOT, UUID
from studyloom.storage.database import RetryingStorage
from studyloom.storage.slots import Claim

# The slot first and then the trial, in the order of all who lock both.
POST = text(
    f"""
    WITH slot AS (
        UPDATE studyloom_slots
        SET expires = extract(epoch from clock_timestamp()) + :lease
        WHERE study_id = :study AND slot = :slot AND token = :token AND state = 'held'
        AND EXISTS (
            SELECT 1 FROM studies WHERE study_id = :study AND (
                CAST(:uuid AS text) = '' OR EXISTS (
                    SELECT 1 FROM study_user_attributes AS a
                    WHERE a.study_id = :study AND a.key = '{UUID}' AND a.value_json = :uuid
                )
            )
        )
        RETURNING slot
    ), trial AS (
        SELECT trials.trial_id FROM slot, trials
        WHERE trials.trial_id = :trial_id AND trials.state = 'RUNNING'
        AND EXISTS (
            SELECT 1 FROM trial_user_attributes AS a
            WHERE a.trial_id = trials.trial_id AND a.key = '{SLOT}'
            AND a.value_json = CAST(slot.slot AS text)
        )
        FOR UPDATE OF trials
    )
    INSERT INTO trial_intermediate_values
        (trial_id, step, intermediate_value, intermediate_value_type)
    SELECT trial_id, CAST(:step AS integer), CAST(:intermediate_value AS double precision),
        CAST(:intermediate_value_type AS trialintermediatevaluetype) FROM trial
    ON CONFLICT (trial_id, step) DO UPDATE
    SET intermediate_value = excluded.intermediate_value,
        intermediate_value_type = excluded.intermediate_value_type
    """
)


def post(
    storage: RetryingStorage,
    study_id: int,
    uuid: str | None,
    claim: Claim,
    lease: float,
    report: Mapping[str, Any],
) -> bool:
    """Stores a report and renews the lease, if the claim holds and the trial runs.

    Args:
        storage: The database.
        study_id: The study.
        uuid: Its attribute UUID; None for a study of an earlier version.
        claim: The claim on the slot of the trial.
        lease: Seconds from now until it ends.
        report: The row of the report, as `sql.report` makes it.

    Returns:
        False if nothing was stored: on SQLite, or for a reason that a transaction of several
        statements finds out.
    """
    if storage.engine.dialect.name != "postgresql":
        return False
    own = {"study": study_id, "slot": claim.slot, "token": claim.token, "lease": float(lease)}
    values = own | {"uuid": "" if uuid is None else json.dumps(uuid)} | dict(report)

    def work() -> bool:
        with storage.single.connect() as connection:
            # An answer that is lost may be that of a report which was stored; twice is the same.
            return bool(connection.execute(POST, values).rowcount)

    return storage.call(work, writes=True)
