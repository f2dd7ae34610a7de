"""Every write about workers: who is alive, and what becomes of the rows of those who are not.

Owns the transitions of Worker rows, and the rescue. Never compares clocks: a worker is lost when
its beat stands still, which the caller has watched, and the guard on the beat makes that exact.

    register    ∅ → live
    beat        live → live, beat + 1
    give_up     live → lost, if the beat is still the one seen
    rescue      rows of lost workers: RUNNING → READY, or FAILED, above all if it was cancelled
    disown      rows of this worker that it does not hold: RUNNING → READY, or FAILED if cancelled
    leave       → deleted
"""

import zlib
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

from django.db import connections

from .. import payload
from ..exceptions import TaskCancelled, WorkerLost
from ..models import FAILED, READY, WORKERS, ScheduledTask, Worker
from . import BATCH, Outcome, _unit, class_path, key, now, settle

LIVE, LOST = Worker.State.LIVE, Worker.State.LOST
# Starts whose runner was lost before the task itself is suspected.
MAX_LOST = 3
# Class of the advisory locks by which PostgreSQL tells that a worker's session is there.
SESSIONS = 0x64627461
# How long a lost worker is remembered: should it wake, it must find that it was given up.
REMEMBERED = timedelta(days=1)


def register(db: str, worker_id: str, backend: str, place: str, pid: int, pid_started: int) -> None:
    """Make the worker known as live."""
    at = now(db)
    row = Worker(
        worker_id=worker_id,
        backend=backend,
        state=LIVE,
        started_at=at,
        beat_at=at,
        place=place,
        pid=pid,
        pid_started=pid_started,
    )
    _unit(db, lambda *_: row.save(using=db, force_insert=True))


def beat(db: str, worker_id: str) -> bool:
    """Raise the worker's beat; return False if it was given up, or nobody knows it."""

    def unit(connection: Any, sql: Any) -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE {WORKERS} SET beat = beat + 1, beat_at = {sql.now(connection)} "
                "WHERE worker_id = %s AND state = 'live'",
                [worker_id],
            )
            return bool(cursor.rowcount)

    return _unit(db, unit)


def others(db: str, worker_id: str, backend: str) -> list[Worker]:
    """Return the backend's workers, live and lost, this one aside."""
    return list(Worker.objects.using(db).filter(backend=backend).exclude(pk=worker_id))


def give_up(db: str, worker_id: str, beat: int) -> bool:
    """Declare the worker lost unless its beat has moved on; return whether that was done."""
    silent = Worker.objects.using(db).filter(pk=worker_id, state=LIVE, beat=beat)
    return bool(_unit(db, lambda *_: silent.update(state=LOST)))


def leave(db: str, worker_id: str) -> None:
    """Forget the worker, which has stopped; should it hold a row still, let it be missed."""
    if not running(db, worker_id):
        own = Worker.objects.using(db).filter(pk=worker_id)
        _unit(db, lambda *_: own.delete())


def rescue(
    db: str,
    backend: str,
    retain: Callable[[ScheduledTask], timedelta | None],
    may_retry: Callable[[ScheduledTask], bool],
) -> list[ScheduledTask]:
    """Give back up to 500 rows of the backend's lost workers; return those that were, as they were.

    A row that may not be retried is FAILED, and so is one whose runner was lost for the third
    time: it may be what kills them. One that was to be cancelled is. Each row is guarded by the
    fence that was seen, so a run that ended meanwhile, or began, is left alone. `retain` tells how
    long a FAILED row stays.
    """
    silent = Worker.objects.using(db).filter(state=LOST, backend=backend)
    lost = list(silent.values_list("pk", flat=True))
    if not lost:
        return []
    at = now(db)
    rows = ScheduledTask.objects.using(db).running().filter(worker_id__in=lost)
    seen = list(rows.order_by("worker_id", "id")[:BATCH])
    if not seen:
        # Only those that hold no row any more.
        silent.filter(pk__in=lost, beat_at__lt=at - REMEMBERED).delete()
        return []
    failed = [
        row.cancel_requested or row.lost + 1 >= MAX_LOST or not may_retry(row) for row in seen
    ]
    stays = [retain(row) if ends else None for row, ends in zip(seen, failed, strict=True)]
    written = settle(db, [_lost(db, *row, at) for row in zip(seen, failed, stays, strict=True)])
    return [row for row in seen if key(db, row.pk) in written]


def session_key(worker_id: str) -> int:
    """Return the number of the advisory lock that a worker's session with PostgreSQL holds."""
    return zlib.crc32(worker_id.encode())


def sessions(db: str) -> tuple[datetime, set[int]] | None:
    """Return when PostgreSQL started, and the keys of the workers with a session; None elsewhere.

    A hint, no more: a worker that lives may have none, behind a pooler or after a restart.
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


def running(db: str, worker_id: str) -> set[tuple[Any, int]]:
    """Return key and fence of each row that is RUNNING in the worker's name."""
    rows = ScheduledTask.objects.using(db).running().filter(worker_id=worker_id)
    return {(key(db, id), fence) for id, fence in rows.values_list("id", "fence")}


def disown(
    db: str,
    claims: Iterable[tuple[Any, int]],
    retain: Callable[[ScheduledTask], timedelta | None],
) -> int:
    """Give back claims, as key and fence, that their worker never heard of; return how many stood.

    The reply was lost, and no code has run: the start that was counted is taken back. A row that
    was to be cancelled is. `retain` tells how long it stays then.
    """
    fences, at = dict(claims), now(db)
    rows = list(ScheduledTask.objects.using(db).filter(pk__in=fences))
    stays = [retain(row) if row.cancel_requested else None for row in rows]
    return len(
        settle(
            db,
            [
                _unheard(db, row, fences[key(db, row.pk)], stay, at)
                for row, stay in zip(rows, stays, strict=True)
            ],
        )
    )


def _unheard(
    db: str, row: ScheduledTask, fence: int, stay: timedelta | None, at: datetime
) -> Outcome:
    """Return what becomes of a row that was claimed, and never started."""
    ends = row.cancel_requested
    cancel = (class_path(TaskCancelled), str(TaskCancelled()))
    errors = [*(row.errors or []), cancel][-10:] if ends else row.errors
    return Outcome(
        id=key(db, row.pk),
        fence=fence,
        status=FAILED if ends else READY,
        attempt=row.attempt - 1,
        failures=row.failures,
        lost=row.lost,
        run_after=None,
        started_at=row.started_at,
        last_attempted_at=row.started_at and row.last_attempted_at,
        finished_at=at if ends else None,
        delete_after=stay and at + stay,
        errors=None if errors is None else payload.text(errors),
        worker_ids=None if row.worker_ids is None else payload.text(row.worker_ids),
        return_value=None,
    )


def _lost(
    db: str, row: ScheduledTask, failed: bool, stay: timedelta | None, at: datetime
) -> Outcome:
    """Return what becomes of a row whose runner was lost."""
    error = (class_path(WorkerLost), f"{WorkerLost()} It was {row.worker_id}.")
    if row.cancel_requested:
        text = f"The task was cancelled while it ran. {WorkerLost()} It was {row.worker_id}."
        error = (class_path(TaskCancelled), text)
    return Outcome(
        id=key(db, row.pk),
        fence=row.fence,
        status=FAILED if failed else READY,
        attempt=row.attempt,
        failures=row.failures,
        lost=row.lost + 1,
        run_after=row.run_after,
        started_at=row.started_at or row.last_attempted_at,
        last_attempted_at=row.last_attempted_at,
        finished_at=at if failed else None,
        delete_after=stay and at + stay,
        errors=payload.text([*(row.errors or []), error][-10:]),
        worker_ids=payload.text([*(row.worker_ids or []), row.worker_id]),
        return_value=None,
    )
