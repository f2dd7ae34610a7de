"""Reads for people: counts, and the last run of a schedule.

Owns these queries, each served by an index. Never changes a row.
"""

from collections.abc import Sequence

from .base.result import READY
from .models import Hold, PeriodicTask, ScheduledTask, ScheduledTaskQuerySet
from .store import now


def due_rows(db: str, backend: str, queues: Sequence[str] | None) -> ScheduledTaskQuerySet:
    """Return the rows that a runner of the backend may claim now, in those queues or in all."""
    rows = ScheduledTask.objects.using(db).due().filter(backend=backend)
    return rows if queues is None else rows.filter(queue_name__in=queues)


def pending_count(db: str, backend: str, queue_name: str | None = None) -> int:
    """Return how many rows could be run now, of that queue or of all."""
    rows = ScheduledTask.objects.using(db).filter(backend=backend)
    if queue_name is not None:
        rows = rows.filter(queue_name=queue_name)
    has_come = rows.filter(status=READY, hold=Hold.SCHEDULED, run_after__lte=now(db))
    # Three counts, because an index serves each of them, but none serves their union.
    return rows.due().count() + rows.quarantined().count() + has_come.count()


def last_run(db: str, schedule: PeriodicTask) -> ScheduledTask | None:
    """Return the row that the schedule fired last; None if there is none, or it was purged."""
    if schedule.last_tick is None:
        return None
    rows = ScheduledTask.objects.using(db).filter(backend=schedule.backend)
    return rows.filter(schedule_key=schedule.key, tick=schedule.last_tick).first()
