"""Schedules of a test, and what they have fired."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from django.tasks import task_backends
from django.test import override_settings

from dbtasks.models import PeriodicTask, ScheduledTask
from dbtasks.store import periodic as store

from .backends import backend
from .rows import DB

REMEMBER, TELL = "tests.support.tasks.remember", "tests.support.tasks.tell_tick"


@contextmanager
def schedules(specs: Any, **params: Any) -> Iterator[Any]:
    """Let the backend have those schedules; its instance."""
    with override_settings(TASKS=backend(OPTIONS={"periodic": specs}, **params)):
        yield task_backends["default"]


def fired(**values: Any) -> list[datetime]:
    """Return the ticks of the rows there are, in order."""
    rows = ScheduledTask.objects.filter(schedule_key__isnull=False, **values)
    return [row.tick for row in rows.order_by("tick") if row.tick]


def overdue(by: timedelta, **values: Any) -> PeriodicTask:
    """Let the only schedule be due since then; return it."""
    PeriodicTask.objects.update(next_tick=store.now(DB) - by, **values)
    return PeriodicTask.objects.get()
