"""Rows whose worker was lost, or whose claim never reached its worker.

Owns which of these rows start again, and which fail. Never decides that a worker is lost, and never
runs a task.
"""

from collections.abc import Iterable
from typing import Any

from . import store
from .backend import DatabaseBackend
from .base.result import READY
from .exceptions import PolicyUnreadable
from .execution import outcomes
from .models import ScheduledTask
from .store import workers

# A row with this many lost workers fails, because it may be what ends them.
MAX_LOST = 3


def rescue(backend: DatabaseBackend) -> list[ScheduledTask]:
    """Settle up to 500 rows of the backend's lost workers; return those, as they were before.

    A row fails if it was cancelled, if its policy is on_lost="fail", or if this is the third worker
    that was lost with it. Otherwise it is READY again. Each write is guarded by the fence that was
    seen, so a row that has moved on is left alone.
    """
    db = backend.database
    rows = workers.lost_rows(db, backend.alias)
    if not rows:
        return []
    at = store.now(db)
    ends = [_lost(backend, row, at) for row in rows]
    written = store.settle(db, ends)
    rescued = [(row, end) for row, end in zip(rows, ends, strict=True) if end.id in written]
    backend.rows_due(
        store.Place(row.queue_name, row.priority, end.id, attempt=end.attempt)
        for row, end in rescued
        if end.status == READY
    )
    return [row for row, _ in rescued]


def _lost(backend: DatabaseBackend, row: ScheduledTask, at: Any) -> store.Outcome:
    db = backend.database
    fails, more = row.cancel_requested or row.lost + 1 >= MAX_LOST, ""
    try:
        fails = fails or not backend.may_retry_lost(row)
    except PolicyUnreadable as error:
        # It may say that the task must not run twice.
        fails, more = True, f"{error} So the task is not started again."
    return outcomes.lost(
        db,
        workers.claim_of(db, row),
        row.worker_id or "",
        fails=fails,
        is_cancelled=row.cancel_requested,
        more=more,
        at=at,
        stay=backend.retain_failed(row) if fails else None,
    )


def release_orphans(backend: DatabaseBackend, claims: Iterable[tuple[Any, int]]) -> int:
    """Requeue claims that never reached their worker; return how many of them still stood.

    Each claim is given as id and fence. No task code has run, so the attempt that was counted is
    subtracted. A row that was cancelled meanwhile fails.
    """
    db = backend.database
    at = store.now(db)
    found = workers.claimed_rows(db, claims)
    ends = []
    for row, claim in found:
        outcome = outcomes.not_started(db, claim)
        if row.cancel_requested:
            outcome = outcomes.cancelled(outcome, at, backend.retain_failed(row))
        ends.append(outcome)
    written = store.settle(db, ends)
    backend.rows_due(
        store.Place(claim.queue_name, claim.priority, claim.id, attempt=claim.attempt - 1)
        for row, claim in found
        if claim.id in written and not row.cancel_requested
    )
    return len(written)
