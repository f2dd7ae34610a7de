"""Purging: finished → deleted, when the retention is over or by age.

Owns which finished rows are deleted, in batches. Never deletes a row that has not finished.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import IntegrityError, connections

from ..base.result import FINISHED
from ..models import TABLE, ScheduledTask, ScheduledTaskQuerySet
from .operations import delete_unprotected
from .rows import Change, Pick
from .unit import BATCH, now, pk_text, unit_of_work

_FINISHED = f"status IN {FINISHED}"
_DELETE = f"DELETE FROM {TABLE}"


# How long the purge leaves a row alone that a foreign key protects.
PROTECTED = timedelta(days=1)


# Rows that one call purges one by one.
SINGLY = 100


def purge(db: str, backend: str, on_protected: Callable[[int], None] = lambda count: None) -> int:
    """Delete up to 500 finished rows whose retention is over; return how many there were.

    A row that a foreign key of the project protects is left alone for a day, so that it never keeps
    the purge from the others. `on_protected` is called with the number of such rows.
    """
    try:
        return _change_expired(db, backend, _DELETE, BATCH)
    except IntegrityError:
        return _purge_singly(db, backend, on_protected)


def _purge_singly(db: str, backend: str, on_protected: Callable[[int], None]) -> int:
    rows = ScheduledTask.objects.using(db).finished().filter(backend=backend)
    expired = rows.filter(delete_after__lte=now(db)).order_by("delete_after")
    later = f"UPDATE {TABLE} SET delete_after = %s"
    at = connections[db].ops.adapt_datetimefield_value(now(db) + PROTECTED)
    deleted = protected = 0
    for id in expired.values_list("pk", flat=True)[:SINGLY]:
        try:
            deleted += _change_expired(db, backend, _DELETE, 1, id=id)
        except IntegrityError:
            protected += _change_expired(db, backend, later, 1, at, id=id)
    if protected:
        on_protected(protected)
    return deleted


def _change_expired(
    db: str, backend: str, verb: str, limit: int, *params: Any, id: UUID | None = None
) -> int:
    """Change up to `limit` rows whose retention is over, or only the one with that id."""

    def work(connection: Any, sql: Any) -> int:
        where = f"delete_after <= {sql.now(connection)} AND {_FINISHED} AND backend = %s"
        pick = Pick(where, (backend,), "dbtasks_expired")
        if id is not None:
            pick = Pick(f"{where} AND id = %s", (backend, pk_text(db, id)), "PRIMARY")
        return len(sql.change(connection, Change(verb, params, (pick,), "delete_after", limit)))

    return unit_of_work(db, work)


def purge_older(db: str, age: timedelta, *, batch: int = BATCH, **chosen: Any) -> Iterator[int]:
    """Delete rows that finished longer ago than `age`, oldest first, whatever their retention.

    With an age of 0 all finished rows are deleted.

    Yield the number deleted after each batch of at most `batch` rows. Each batch is a transaction
    of its own. `chosen` are the further arguments of older().
    """
    rows = older(db, age, **chosen).order_by("id")
    # The key is in order of age: what finished before the limit was enqueued before it. So walking
    # along the key needs no further index and never reads a row twice.
    last = UUID(int=0)
    while ids := list(rows.filter(id__gt=last).values_list("id", flat=True)[:batch]):
        last = ids[-1]
        yield delete_unprotected(db, rows, ids)


def older(
    db: str,
    age: timedelta,
    *,
    backend: str | None = None,
    statuses: Iterable[str] = FINISHED,
    queues: Iterable[str] | None = None,
    tasks: Iterable[str] | None = None,
) -> ScheduledTaskQuerySet:
    """Return the rows with one of those final statuses that finished longer ago than `age`.

    With an age of 0 return all of them. `backend`, `queues` and the paths in `tasks` limit them
    further; None is any.
    """
    rows = ScheduledTask.objects.using(db).finished().filter(status__in=list(statuses))
    if age:
        rows = rows.filter(finished_at__lt=now(db) - age)
    wanted = {"backend": backend, "queue_name__in": queues, "task_path__in": tasks}
    return rows.filter(**{name: value for name, value in wanted.items() if value is not None})
