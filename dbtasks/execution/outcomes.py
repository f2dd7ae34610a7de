"""What each end of an attempt means for its row.

Owns every Outcome that is settled: the status, the counts, the times and the errors of a row after
each way an attempt can end. Never reads a clock and never writes to the database.
"""

from contextlib import suppress
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from .. import store
from ..base import payload
from ..base.result import FAILED, MAX_WORKER_IDS, READY, ErrorEntry, error_entry, with_error
from ..exceptions import TaskCancelled, TaskReleased, WorkerLost
from ..store import Claim, Outcome

# The error of a running task that was cancelled.
CANCELLED = "The task was cancelled while it ran."


def ended(
    db: str,
    claim: Claim,
    worker_id: str,
    status: str,
    *,
    began: datetime,
    at: datetime,
    stay: timedelta | None,
    errors: str | None,
    failures: int,
    return_value: str | None = None,
) -> Outcome:
    """Return the outcome of a task that succeeded or failed for good.

    `began` and `at` are the times of its start and its end. `stay` is how long the row is kept;
    None is for ever.
    """
    return Outcome(
        claim.id,
        claim.fence,
        status,
        claim.attempt,
        failures,
        claim.lost,
        claim.releases,
        store.to_datetime(db, claim.run_after),
        store.to_datetime(db, claim.started_at) or began,
        began,
        at,
        store.delete_after(at, stay),
        errors,
        worker_ids(claim, worker_id),
        return_value,
    )


def _ready(db: str, claim: Claim, **values: Any) -> Outcome:
    """Return the outcome of a row that is READY again, as it was claimed but for `values`."""
    return Outcome(
        claim.id,
        claim.fence,
        READY,
        claim.attempt,
        claim.failures,
        claim.lost,
        claim.releases,
        store.to_datetime(db, claim.run_after),
        store.to_datetime(db, claim.started_at),
        claim.claimed_at,
        None,
        None,
        claim.errors,
        claim.worker_ids,
        None,
    )._replace(**values)


def unfinished(db: str, claim: Claim, worker_id: str, *, began: datetime, **values: Any) -> Outcome:
    """Return the outcome of a task that is READY again: retried, snoozed or released.

    `values` are the columns that differ from the claim.
    """
    outcome = _ready(
        db, claim, last_attempted_at=began, worker_ids=worker_ids(claim, worker_id), **values
    )
    return outcome if outcome.started_at else outcome._replace(started_at=began)


def released(
    db: str,
    claim: Claim,
    worker_id: str,
    *,
    began: datetime,
    at: datetime,
    stay: timedelta | None,
    limit: int | None,
) -> Outcome:
    """Return the outcome of a task that still ran when its runner stopped.

    It is READY again, or FAILED if this release is one more than `limit`; None is no limit.
    """
    releases = claim.releases + 1
    fails = limit is not None and releases > limit
    words = f"{TaskReleased()} The task was released {releases} times; max_releases is {limit}."
    error = TaskReleased(words) if fails else TaskReleased()
    errors = payload.text(with_error(listed(claim.errors), error_entry(error)))
    outcome = unfinished(db, claim, worker_id, began=began, releases=releases, errors=errors)
    return _fail(outcome, at, stay) if fails else outcome


def stopped(
    db: str,
    claim: Claim,
    worker_id: str,
    *,
    began: datetime,
    at: datetime,
    stay: timedelta | None,
) -> Outcome:
    """Return the outcome of a task that must not run twice and still ran when its runner stopped.

    It is FAILED, as if the runner had been lost.
    """
    error = WorkerLost(f"The runner stopped while it ran the task. It was {worker_id}.")
    outcome = _lost(db, claim, worker_id, error, began=began)
    return _fail(outcome, at, stay)


def not_started(db: str, claim: Claim, run_after: datetime | None = None) -> Outcome:
    """Return the outcome of a claimed row whose task never started.

    The row is due at `run_after`, or at once. The attempt that the claim counted is subtracted.
    """
    last = claim.claimed_at if claim.started_at else None
    return _ready(db, claim, attempt=claim.attempt - 1, run_after=run_after, last_attempted_at=last)


def cancelled(
    outcome: Outcome, at: datetime, stay: timedelta | None, run_after: datetime | None = None
) -> Outcome:
    """Return the outcome of a row that would be READY again, but was cancelled meanwhile."""
    errors = with_error(listed(outcome.errors), error_entry(TaskCancelled()))
    return outcome._replace(
        status=FAILED,
        run_after=run_after,
        finished_at=at,
        delete_after=store.delete_after(at, stay),
        errors=payload.text(errors),
    )


def lost(
    db: str,
    claim: Claim,
    worker_id: str,
    *,
    fails: bool,
    is_cancelled: bool,
    more: str = "",
    at: datetime,
    stay: timedelta | None,
) -> Outcome:
    """Return the outcome of a row whose worker was lost: READY again, or FAILED.

    `more` is added to the text of the error.
    """
    why = f"{WorkerLost()} It was {worker_id}. {more}".rstrip()
    error = TaskCancelled(f"{CANCELLED} {why}") if is_cancelled else WorkerLost(why)
    outcome = _lost(db, claim, worker_id, error, began=claim.claimed_at)
    return _fail(outcome, at, stay) if fails else outcome


def _lost(db: str, claim: Claim, worker_id: str, error: Exception, *, began: datetime) -> Outcome:
    errors = payload.text(with_error(listed(claim.errors), error_entry(error)))
    return unfinished(db, claim, worker_id, began=began, lost=claim.lost + 1, errors=errors)


def _fail(outcome: Outcome, at: datetime, stay: timedelta | None) -> Outcome:
    """Return the outcome as FAILED at that time."""
    return outcome._replace(
        status=FAILED, finished_at=at, delete_after=store.delete_after(at, stay)
    )


def broken(claim: Claim, worker_id: str, at: datetime, error: ErrorEntry) -> Outcome:
    """Return a FAILED outcome of plain values, so that making it cannot fail."""
    counts = (claim.attempt, claim.failures + 1, claim.lost, claim.releases)
    times = (None, at, at, at, None)
    texts = (payload.text([error]), payload.text([worker_id]), None)
    return Outcome(claim.id, claim.fence, FAILED, *counts, *times, *texts)


def unstorable(outcome: Outcome) -> Outcome:
    """Return the outcome as FAILED, without the value and the texts that the database refused."""
    error = ("builtins.ValueError", "The database refused the task's result or error text.")
    return outcome._replace(status=FAILED, return_value=None, errors=payload.text([error]))


def worker_ids(claim: Claim, worker_id: str) -> str:
    """Return the JSON list of the last workers that started the row, this one included."""
    if claim.worker_ids is None:
        return _only(worker_id)
    return payload.text([*listed(claim.worker_ids), worker_id][-MAX_WORKER_IDS:])


@lru_cache(16)
def _only(worker_id: str) -> str:
    """Return the JSON list for a row that was started once, as most are."""
    return payload.text([worker_id])


def listed(text: str | None) -> list[Any]:
    """Return the list that a row's JSON text holds; [] if there is none or it is damaged."""
    with suppress(ValueError):
        found = payload.load(text) if text else []
        return found if isinstance(found, list) else []
    return []
