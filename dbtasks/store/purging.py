"""Purging: finished → deleted, when the retention is over or by age.

Owns which finished rows are deleted, in batches. Never deletes a row that has not finished.
"""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

from ..base.result import FINISHED
from ..models import TABLE, ScheduledTask, ScheduledTaskQuerySet
from .rows import Change, Pick
from .unit import BATCH, now, unit_of_work

_FINISHED = f"status IN {FINISHED}"


def purge(db: str, backend: str) -> int:
    """Delete up to 500 finished rows whose retention is over; return how many there were."""

    def work(connection: Any, sql: Any) -> int:
        where = f"delete_after <= {sql.now(connection)} AND {_FINISHED} AND backend = %s"
        pick = Pick(where, (backend,), "dbtasks_expired")
        change = Change(f"DELETE FROM {TABLE}", (), (pick,), "delete_after", BATCH)
        return len(sql.change(connection, change))

    return unit_of_work(db, work)


def purge_older(
    db: str,
    age: timedelta,
    *,
    backend: str | None = None,
    statuses: Iterable[str] = FINISHED,
    batch: int = BATCH,
) -> Iterator[int]:
    """Delete rows that finished longer ago than `age`, oldest first, whatever their retention.

    Yield the number deleted after each batch of at most `batch` rows. Each batch is a transaction
    of its own. Without `backend`, rows of all backends are deleted.
    """
    rows = older(db, age, backend=backend, statuses=statuses).order_by("id")
    # The key is in order of age: what finished before the limit was enqueued before it. So walking
    # along the key needs no further index and never reads a row twice.
    last = UUID(int=0)
    while ids := list(rows.filter(id__gt=last).values_list("id", flat=True)[:batch]):
        last = ids[-1]
        doomed = rows.filter(id__in=ids)
        yield unit_of_work(db, lambda *_, doomed=doomed: int(doomed._raw_delete(db)))


def older(
    db: str, age: timedelta, *, backend: str | None = None, statuses: Iterable[str] = FINISHED
) -> ScheduledTaskQuerySet:
    """Return the rows with one of those final statuses that finished longer ago than `age`."""
    rows = ScheduledTask.objects.using(db).finished().filter(status__in=list(statuses))
    rows = rows.filter(finished_at__lt=now(db) - age)
    return rows if backend is None else rows.filter(backend=backend)
