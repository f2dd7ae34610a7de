"""Workers: which are alive, and which rows they hold.

Owns the transitions of Worker rows. Never compares clocks: the caller watches that a worker's beat
does not change, and a guard on the beat makes that exact. `dbtasks.rescue` settles the rows of a
lost worker.

    register      ∅ → live
    beat          live → live, beat + 1
    declare_lost  live → lost, if the beat is still the one seen
    forget        lost, and without a row → deleted
    leave         → deleted
"""

import zlib
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.db import connections

from ..base import payload
from ..models import WORKERS, ScheduledTask, Unreadable, Worker
from .rows import Claim
from .unit import BATCH, dialect, now, pk_text, unit_of_work

LIVE, LOST = Worker.State.LIVE, Worker.State.LOST
# Class of the PostgreSQL advisory locks that show that a worker's session is open.
SESSIONS = 0x64627461
# How long a lost worker is kept. If it wakes up, it must find that it was declared lost.
REMEMBERED = timedelta(days=1)


def register(
    db: str, worker_id: str, backend: str, host_key: str, pid: int, pid_started: int
) -> None:
    """Insert the worker as live; raise ImproperlyConfigured if its database is too old."""
    connection = connections[db]
    dialect(connection).check_version(connection)
    at = now(db)
    row = Worker(
        worker_id=worker_id,
        backend=backend,
        state=LIVE,
        started_at=at,
        beat_at=at,
        host_key=host_key,
        pid=pid,
        pid_started=pid_started,
    )
    unit_of_work(db, lambda *_: row.save(using=db, force_insert=True))


def beat(db: str, worker_id: str) -> bool:
    """Add 1 to the worker's beat; return False if it was declared lost or is unknown."""

    def work(connection: Any, sql: Any) -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE {WORKERS} SET beat = beat + 1, beat_at = {sql.now(connection)} "
                "WHERE worker_id = %s AND state = 'live'",
                [worker_id],
            )
            return bool(cursor.rowcount)

    return unit_of_work(db, work)


def others(db: str, worker_id: str, backend: str) -> list[Worker]:
    """Return the backend's other workers, live and lost."""
    return list(Worker.objects.using(db).filter(backend=backend).exclude(pk=worker_id))


def declare_lost(db: str, worker_id: str, beat: int) -> bool:
    """Declare the worker lost unless its beat has changed; return whether that was done."""
    silent = Worker.objects.using(db).filter(pk=worker_id, state=LIVE, beat=beat)
    return bool(unit_of_work(db, lambda *_: silent.update(state=LOST)))


def leave(db: str, worker_id: str) -> None:
    """Delete the worker, which has stopped, unless a row is RUNNING in its name.

    Others declare it lost then, and rescue the row.
    """
    if not running(db, worker_id):
        own = Worker.objects.using(db).filter(pk=worker_id)
        unit_of_work(db, lambda *_: own.delete())


def lost_rows(db: str, backend: str) -> list[ScheduledTask]:
    """Return up to 500 RUNNING rows of the backend's lost workers.

    If there are none, delete the lost workers whose last beat is more than a day old.
    """
    silent = Worker.objects.using(db).filter(state=LOST, backend=backend)
    lost = list(silent.values_list("pk", flat=True))
    if not lost:
        return []
    rows = ScheduledTask.objects.using(db).running().filter(worker_id__in=lost)
    found = list(rows.order_by("worker_id", "id")[:BATCH])
    if not found:
        old = silent.filter(pk__in=lost, beat_at__lt=now(db) - REMEMBERED)
        unit_of_work(db, lambda *_: old.delete())
    return found


def running(db: str, worker_id: str) -> set[tuple[Any, int]]:
    """Return id, as claims hold it, and fence of each row that is RUNNING in the worker's name."""
    rows = ScheduledTask.objects.using(db).running().filter(worker_id=worker_id)
    return {(pk_text(db, id), fence) for id, fence in rows.values_list("id", "fence")}


def claimed_rows(db: str, claims: Iterable[tuple[Any, int]]) -> list[tuple[ScheduledTask, Claim]]:
    """Return the rows of those claims, given as id and fence, each with its Claim."""
    fences = dict(claims)
    rows = ScheduledTask.objects.using(db).filter(pk__in=fences)
    return [(row, claim_of(db, row)._replace(fence=fences[pk_text(db, row.pk)])) for row in rows]


def claim_of(db: str, row: ScheduledTask) -> Claim:
    """Return the claim of the row, as the worker that claimed it received it."""

    def text(value: Any) -> str | None:
        # Damaged text stays as it is.
        return value if value is None or isinstance(value, Unreadable) else payload.text(value)

    return Claim(
        id=pk_text(db, row.pk),
        fence=row.fence,
        task_path=row.task_path,
        queue_name=row.queue_name,
        priority=row.priority,
        args=text(row.args) or "",
        kwargs=text(row.kwargs) or "",
        policy=text(row.policy),
        meta=text(row.meta),
        enqueued_at=row.enqueued_at,
        run_after=row.run_after,
        started_at=row.started_at,
        attempt=row.attempt,
        failures=row.failures,
        lost=row.lost,
        releases=row.releases,
        errors=text(row.errors),
        worker_ids=text(row.worker_ids),
        return_value=None,
        tick=None,
        claimed_at=row.last_attempted_at,
        clock=0.0,
    )


def session_key(worker_id: str) -> int:
    """Return the number of the advisory lock that a worker's PostgreSQL session holds."""
    return zlib.crc32(worker_id.encode())


def sessions(db: str) -> tuple[datetime, set[int]] | None:
    """Return when PostgreSQL started, and the keys of the workers with a session; None elsewhere.

    This is only a hint: behind a pooler or after a restart, a live worker may have no session.
    """
    connection: Any = connections[db]
    if connection.vendor != "postgresql":
        return None
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_postmaster_start_time(), ARRAY(SELECT objid::bigint FROM pg_locks "
            "WHERE locktype = 'advisory' AND classid = %s AND objsubid = 2 AND granted AND "
            "database = (SELECT oid FROM pg_database WHERE datname = current_database()))",
            [SESSIONS],
        )
        started, keys = cursor.fetchone()
    return started, set(keys)
