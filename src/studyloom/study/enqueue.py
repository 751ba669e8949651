"""Queues the points of a warm start as trials, before any worker begins.

Each becomes a waiting trial in a free slot of the ledger. From then on it is like a trial that a
worker released: one worker at a time claims it, and the budget stays the same.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial
from sqlalchemy import Connection

from studyloom.processes import worker_id
from studyloom.space.tree import Parameter, Point, Space
from studyloom.storage import sql
from studyloom.storage.attributes import BASELINE, ENQUEUED, FAILURE, PLANNED, SLOT, SOURCES
from studyloom.storage.database import exclusive, execute
from studyloom.storage.ledger import Entry, enter
from studyloom.storage.sql import fills, set_aside
from studyloom.study.earlier import AUTO, WarmStart
from studyloom.study.failures import NO_REASON, TEACHES, outcome, reason_of
from studyloom.study.stored_study import StoredStudy
from studyloom.study.warm_start import Begun, WarmStarts

LEASE = 60.0  # seconds that a slot is held while its trial is made
AS_COMPOSED = "the configuration as composed"  # where the point of a baseline comes from


def begun(stored: StoredStudy) -> Begun:
    """Returns what a study has taken from earlier studies."""
    attributes = stored.optuna.user_attrs
    return Begun(list(attributes.get(SOURCES, [])), bool(attributes.get(PLANNED)))


def enqueue(
    stored: StoredStudy,
    starts: WarmStarts,
    trials: int,
    url: str,
    *,
    space: Space,
    baseline: Point | None,
) -> int:
    """Queues each point that no trial of the study has tried.

    The baseline is queued before the first point, because it is trial 0. Points of earlier studies
    are written down before the first of them is queued. So they are the same ones if the command is
    killed in the midst, although those studies may have gone on.

    Args:
        stored: the study.
        starts: the points, and the earlier studies they come from.
        trials: the budget of the study.
        url: of its database.
        space: of the study.
        baseline: the point of the baseline; None if the study has none.

    Returns:
        How many points found no free slot.
    """
    left_out = 0
    with exclusive(url):
        tried = [trial.params for trial in stored.trials()]
        points, sources = _settle(stored, starts, space)
        if not tried and baseline is not None and points:
            _enqueue_point(stored, Point(), AS_COMPOSED, trials, **{BASELINE: True})
        if baseline is not None:
            tried.append(baseline.params)
        for start in points:
            if start.point.params not in tried:
                tried.append(start.point.params)
                left_out += not _enqueue_point(stored, start.point, start.source, trials)
        known = begun(stored).sources
        if any(source not in known for source in sources):
            stored.optuna.set_user_attr(SOURCES, [*dict.fromkeys([*known, *sources])])
        if begun(stored).planned:
            stored.optuna.set_user_attr(PLANNED, None)
    return left_out


def _settle(
    stored: StoredStudy, starts: WarmStarts, space: Space
) -> tuple[list[WarmStart], Sequence[str]]:
    """Returns the points to queue and where they come from; writes down those of earlier studies.

    What was written down first counts: a command may have been killed, or another one may have
    looked at the earlier studies at a later moment.
    """
    typed = [start for start in starts.points if not start.taken]
    taken = [start for start in starts.points if start.taken]
    known, plan = begun(stored).sources, stored.optuna.user_attrs.get(PLANNED)
    looked = AUTO in known and AUTO in starts.sources
    if not plan and (not taken or looked or {*starts.sources} <= {*known}):
        return typed, starts.sources
    if not plan:
        points = [{"params": start.point.params, "source": start.source} for start in taken]
        plan = {"sources": [*starts.sources], "points": points}
        stored.optuna.set_user_attr(PLANNED, plan)
    for point in plan["points"]:
        params: Mapping[str, Any] = point["params"]

        def look_up(parameter: Parameter, params: Mapping[str, Any] = params) -> Any:
            return params[parameter.name]

        typed.append(WarmStart(space.walk(look_up), point["source"], taken=True))
    return typed, plan["sources"]


def _enqueue_point(
    stored: StoredStudy, point: Point, source: str, trials: int, **user_attrs: Any
) -> bool:
    """Makes a waiting trial of a point, and returns whether there was a free slot for it."""
    ledger = stored.ledger

    def make(connection: Connection, slot: int) -> int:
        attributes = {SLOT: slot, ENQUEUED: source, **user_attrs}
        return sql.insert(connection, ledger.study_id, attributes, point)._trial_id

    claim = ledger.claim(worker_id(os.getpid()), trials, LEASE, make, fresh=True)
    if claim is None:
        return False
    ledger.release(claim)
    return True


def failed_baseline(stored: StoredStudy) -> FrozenTrial | None:
    """Returns the baseline if it has failed; None if there is one that has not, or none at all."""
    baselines = [trial for trial in stored.trials() if BASELINE in trial.user_attrs]
    failed = [trial for trial in baselines if outcome(trial) == "failed"]
    return failed[-1] if failed and len(failed) == len(baselines) else None


def redo_baseline(stored: StoredStudy, url: str) -> None:
    """Opens the slot of a baseline that has failed for a new trial of the same configuration.

    The failed trial is set aside: it is kept, but no longer counted, so that N trials stay N.
    Nothing changes if the baseline has not failed.

    Args:
        stored: the study.
        url: of its database.
    """
    ledger = stored.ledger

    def replace(connection: Connection, failed: FrozenTrial, slot: int) -> None:
        sql.lock_study(connection, ledger.study_id, ledger.uuid)
        if not fills(connection, ledger.study_id, failed._trial_id, slot):
            return  # an earlier try has done its COMMIT, and only the answer was lost
        sql.write(connection, [set_aside(failed._trial_id)])
        attributes = {SLOT: slot, BASELINE: True, ENQUEUED: AS_COMPOSED}
        trial_id = sql.insert(connection, ledger.study_id, attributes, Point())._trial_id
        enter(connection, ledger.study_id, [Entry(slot, "free", trial_id)])

    with exclusive(url):
        if (failed := failed_baseline(stored)) is not None:
            slot = int(failed.user_attrs[SLOT])
            execute(ledger.storage, lambda connection: replace(connection, failed, slot))
            stored.storage.forget(ledger.study_id)


def missing_baseline(stored: StoredStudy) -> str | None:
    """Words what can be done about a baseline that failed by a bug; None if nothing need be done.

    One whose training diverged, or whose network was too large, would only do so again.
    """
    failed = failed_baseline(stored)
    if failed is None or failed.user_attrs.get(FAILURE) in TEACHES:
        return None
    reason = reason_of(failed) or NO_REASON
    return (
        f"the baseline, trial {failed.number}, has failed ({reason}), so that nothing is compared "
        "with it; once the cause is mended, study.redo_baseline=true trains it again"
    )
