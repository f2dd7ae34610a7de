"""Reads for people: counts, and the last run of a schedule.

Owns these queries, each served by an index. Never changes a row.
"""

from datetime import datetime, timedelta

from django.db.models import QuerySet
from django.utils import timezone

from .base.queues import AllBut, Queues
from .base.result import READY
from .models import Hold, PeriodicTask, ScheduledTask, ScheduledTaskQuerySet, Worker
from .store import now, periodic

# Time in which a runner that has started reports the schedules in its settings.
DECLARED_WITHIN = timedelta(minutes=1)


def due_rows(db: str, backend: str, queues: Queues) -> ScheduledTaskQuerySet:
    """Return the rows that a runner of the backend may claim now, in those queues or in all."""
    rows = ScheduledTask.objects.using(db).due().filter(backend=backend)
    if isinstance(queues, AllBut):
        return rows.exclude(queue_name__in=queues)
    return rows if queues is None else rows.filter(queue_name__in=list(queues))


def pending_count(
    db: str, backend: str, queue_name: str | None = None, at_most: int | None = None
) -> int:
    """Return how many rows could be run now, of that queue or of all; count up to `at_most`."""
    rows = ScheduledTask.objects.using(db).filter(backend=backend)
    if queue_name is not None:
        rows = rows.filter(queue_name=queue_name)
    has_come = rows.filter(status=READY, hold=Hold.SCHEDULED, run_after__lte=now(db))
    # Three counts, because an index serves each of them, but none serves their union.
    parts = (rows.due(), rows.quarantined(), has_come)
    if at_most is None:
        return sum(part.count() for part in parts)
    total = 0
    for part in parts:
        total += part[: at_most - total].count() if total < at_most else 0
    return total


def last_run(db: str, schedule: PeriodicTask) -> ScheduledTask | None:
    """Return the row that the schedule fired last; None if there is none, or it was purged."""
    if schedule.last_tick is None:
        return None
    rows = ScheduledTask.objects.using(db).filter(backend=schedule.backend)
    return rows.filter(schedule_key=schedule.key, tick=schedule.last_tick).first()


def is_orphaned(db: str, schedule: PeriodicTask) -> bool:
    """Return whether no live runner has the schedule in its settings.

    Each of them reports its schedules when it starts.
    """
    if schedule.seen_at is None:
        return False
    runners = Worker.objects.using(db).filter(backend=schedule.backend, state=Worker.State.LIVE)
    started = [at if timezone.is_aware(at) else timezone.make_aware(at) for at in _starts(runners)]
    newest = periodic.now(db) - DECLARED_WITHIN
    return all(schedule.seen_at < at < newest for at in started)


def _starts(runners: QuerySet[Worker]) -> list[datetime]:
    return list(runners.values_list("started_at", flat=True))
