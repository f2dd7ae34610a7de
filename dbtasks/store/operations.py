"""Manual operations: retry, run now, cancel and delete.

Owns their transitions. Never wakes a runner or writes messages: `dbtasks.operations` does.
"""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import IntegrityError, connections, transaction
from django.db.models.expressions import RawSQL

from ..base.result import FAILED, READY, RUNNING, error_entry, with_error
from ..exceptions import TaskCancelled
from ..models import TABLE, Hold, ScheduledTask, ScheduledTaskQuerySet
from .rows import delete_after, hold_of
from .unit import dialect, now, pk_text, unit_of_work


def retry(db: str, ids: Iterable[UUID]) -> int:
    """Make those of the rows that are FAILED due again; return how many there were.

    Errors, attempts and the fence are kept. The counts that limit attempts start from 0.
    """
    rows = _rows_by_id(db, ids).filter(status=FAILED)
    fresh = {"failures": 0, "lost": 0, "releases": 0, "cancel_requested": False}
    never = {"run_after": None, "finished_at": None, "delete_after": None}
    return unit_of_work(
        db, lambda *_: rows.update(status=READY, hold=_hold(db, "0"), **fresh, **never)
    )


def run_now(db: str, ids: Iterable[UUID]) -> int:
    """Make those of the rows that are scheduled due; return how many there were."""
    rows = _rows_by_id(db, ids).filter(status=READY, hold=Hold.SCHEDULED)
    return unit_of_work(db, lambda *_: rows.update(hold=_hold(db, "lost"), run_after=None))


def _hold(db: str, lost: str) -> RawSQL:
    """Return the hold of a row without run_after that becomes READY."""
    connection = connections[db]
    return RawSQL(hold_of("NULL", lost, dialect(connection).now(connection)), ())


def cancel(
    db: str, ids: Iterable[UUID], retain: Callable[[ScheduledTask], timedelta | None]
) -> int:
    """Finish those of the rows that are READY as FAILED; return how many there were.

    TaskCancelled is added to their errors. `retain` returns how long a row is kept; None is for
    ever.
    """
    ids, at = list(ids), now(db)

    def work(*_: Any) -> int:
        with transaction.atomic(db):
            rows = _rows_by_id(db, ids).filter(status=READY)
            return sum(_cancel(db, row, at, retain(row)) for row in rows)

    return unit_of_work(db, work)


def _cancel(db: str, row: ScheduledTask, at: datetime, stay: timedelta | None) -> int:
    untouched = _rows_by_id(db, [row.pk]).filter(status=READY, fence=row.fence)
    return untouched.update(
        status=FAILED,
        hold=Hold.NONE,
        finished_at=at,
        delete_after=delete_after(at, stay),
        errors=with_error(row.errors, error_entry(TaskCancelled())),
    )


def request_cancel(db: str, ids: Iterable[UUID]) -> int:
    """Ask those of the rows that are RUNNING to end; return how many there were.

    A row that was asked before counts as well. Its runner reads this with cancel_requests().
    """
    rows = _rows_by_id(db, ids).filter(status=RUNNING)
    return unit_of_work(db, lambda *_: rows.update(cancel_requested=True))


def cancel_requests(db: str, worker_id: str) -> list[tuple[Any, int]]:
    """Return id and fence, as claims hold them, of the worker's running rows that must end."""
    connection = connections[db]
    rows = dialect(connection).read(
        connection,
        f"SELECT id, fence FROM {TABLE} WHERE status = '{RUNNING}' AND worker_id = %s "
        "AND cancel_requested",
        [worker_id],
    )
    return [(pk_text(db, id), fence) for id, fence in rows]


def delete(db: str, ids: Iterable[UUID], *, expired: bool = False) -> int:
    """Delete those of the rows that have finished; return how many there were.

    With `expired`, delete only those whose retention is over.
    """
    ids = list(ids)
    rows = _rows_by_id(db, ids).finished()
    if expired:
        rows = rows.filter(delete_after__lte=now(db))
    return delete_unprotected(db, rows, list(ids))


def delete_unprotected(db: str, rows: ScheduledTaskQuerySet, ids: list[UUID]) -> int:
    """Delete those of the rows that have one of the ids; return how many there were.

    Rows that a foreign key of the project protects stay. In a caller's transaction they raise
    IntegrityError.
    """
    doomed = rows.filter(id__in=ids)
    try:
        # Django returns None if there were no rows.
        return unit_of_work(db, lambda *_: int(doomed._raw_delete(db) or 0))
    except IntegrityError:
        if connections[db].in_atomic_block:
            raise
    half = len(ids) // 2
    if not half:
        return 0
    return sum(delete_unprotected(db, rows, part) for part in (ids[:half], ids[half:]))


def _rows_by_id(db: str, ids: Iterable[UUID]) -> ScheduledTaskQuerySet:
    return ScheduledTask.objects.using(db).filter(id__in=list(ids))
