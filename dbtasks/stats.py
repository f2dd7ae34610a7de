"""Reads for people: counts, and the last run of a schedule.

Owns these queries, each served by an index. Never changes a row.
"""

from datetime import datetime, timedelta
from typing import NamedTuple

from django.db.models import Count, Min, Q, QuerySet
from django.db.models.expressions import RawSQL
from django.utils import timezone

from .base.queues import AllBut, Queues
from .models import PeriodicTask, ScheduledTask, ScheduledTaskQuerySet, Worker
from .store import now, periodic

# Each of the two indexes on due rows has a condition that is always true. A query that does not
# repeat it reads the whole table on PostgreSQL.
_ZERO = RawSQL("0", ())

# Time in which a runner that has started reports the schedules in its settings.
DECLARED_WITHIN = timedelta(minutes=1)


def due_rows(db: str, backend: str, queues: Queues) -> ScheduledTaskQuerySet:
    """Return the rows that a runner of the backend may claim now, in those queues or in all."""
    rows = ScheduledTask.objects.using(db).due().filter(backend=backend)
    if queues is None or isinstance(queues, AllBut):
        rows = rows.filter(attempt__gte=_ZERO)
        return rows if queues is None else rows.exclude(queue_name__in=queues)
    return rows.filter(queue_name__in=list(queues), fence__gte=_ZERO)


def pending_count(
    db: str, backend: str, queue_name: str | None = None, at_most: int | None = None
) -> int:
    """Return how many rows could be run now, of that queue or of all; count up to `at_most`."""
    rows = ScheduledTask.objects.using(db).filter(backend=backend)
    if queue_name is not None:
        rows = rows.filter(queue_name=queue_name)
    has_come = rows.scheduled().filter(run_after__lte=now(db))
    due = due_rows(db, backend, None if queue_name is None else [queue_name])
    # Three counts, because an index serves each of them, but none serves their union.
    parts = (due, rows.quarantined(), has_come)
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


# The most rows that one count reads.
MAX_READ = 100_000
# Rows of one priority in which the oldest due row is looked for, and priorities.
HEAD, PRIORITIES = 100, 20


class Summary(NamedTuple):
    """What a backend, or one of its queues, has to do. Times are aware."""

    due: int
    # These stop at MAX_READ rows.
    scheduled: int
    running: int
    failed: int
    # Since when the longest waiting of the first due rows of each priority has been due.
    oldest_due_seconds: float | None
    next_due: datetime | None
    # Live workers, whatever their queues.
    workers: int
    time: datetime


def summary(db: str, backend: str, queue_name: str | None = None) -> Summary:
    """Return the counts of the backend, or of that queue of it, as they stand now.

    An index finds the rows of each count. Rows that have succeeded are never read.
    """
    rows, at = ScheduledTask.objects.using(db), now(db)
    waiting = rows.scheduled().filter(backend=backend, run_after__gt=at).order_by("run_after")
    wanted = Q(backend=backend) if queue_name is None else Q(backend=backend, queue_name=queue_name)
    count, next_due = Count("pk", filter=wanted), Min("run_after", filter=wanted)
    # The limit comes before the condition, so that it limits what is read.
    scheduled = waiting[:MAX_READ].aggregate(count=count, next_due=next_due)
    running = rows.running()[:MAX_READ].aggregate(count=count)
    failed = rows.failed().order_by("-id")[:MAX_READ].aggregate(count=count)
    live = Worker.objects.using(db).filter(backend=backend, state=Worker.State.LIVE)
    since = _due_since(db, backend, queue_name)
    return Summary(
        due=pending_count(db, backend, queue_name),
        scheduled=scheduled["count"],
        running=running["count"],
        failed=failed["count"],
        oldest_due_seconds=None if since is None else max(0.0, (at - since).total_seconds()),
        next_due=scheduled["next_due"],
        workers=live.count(),
        time=at,
    )


def _due_since(db: str, backend: str, queue_name: str | None) -> datetime | None:
    """Return when the first of those became due that are claimed first; None if none is due.

    The first rows of each priority are looked at. No index is in order of that time.
    """
    queues = None if queue_name is None else [queue_name]
    rows = due_rows(db, backend, queues).order_by("-priority", "id")
    since: list[datetime] = []
    lowest = None
    for _ in range(PRIORITIES):
        below = rows if lowest is None else rows.filter(priority__lt=lowest)
        head = list(below.values_list("priority", "run_after", "enqueued_at")[:HEAD])
        since += [run_after or enqueued_at for _, run_after, enqueued_at in head]
        if len(head) < HEAD:
            break
        lowest = head[-1][0]
    return min(since, default=None)
