"""Running tasks in the test's own thread.

Owns run_tasks() and immediate(). Never starts a thread.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from django.conf import settings
from django.db.models import Min
from django.tasks import task_backends
from django.test.utils import TestContextDecorator, override_settings
from django.utils import timezone

from .. import store
from ..backend import DatabaseBackend
from ..base.result import FAILED, READY, SUCCESSFUL
from ..exceptions import RunnerError
from ..inline import Inline
from ..models import Hold, ScheduledTask, ScheduledTaskQuerySet
from ..store import Claim


@dataclass(frozen=True, slots=True)
class Ran:
    """How many tasks run_tasks() has run, by how they ended.

    A task that was retried counts once. `waiting` tasks have not finished: they will be retried
    later, or have snoozed.
    """

    successful: int = 0
    failed: int = 0
    waiting: int = 0

    @property
    def total(self) -> int:
        """The sum of these."""
        return self.successful + self.failed + self.waiting


def run_tasks(
    *,
    queue: str | None = None,
    until: datetime | timedelta | None = None,
    limit: int = 1000,
    recursive: bool = True,
    reraise: bool = True,
    backend: str = "default",
) -> Ran:
    """Run due tasks in this thread, on its connections, in claim order; return the counts.

    `queue` limits it to one queue. `until`, an aware datetime or a timedelta from now, also runs
    tasks scheduled up to then: after all due tasks, in the order of their run_after. `limit` is the
    largest number of attempts to run. With `recursive`, tasks that are enqueued by tasks run too.
    With `reraise`, the first exception of a task is raised, the same object, after its outcome is
    written; otherwise look at `failed` and at the results. Works inside the transaction of a
    TestCase: the on_commit callbacks of a task run when it ends. Raise RunnerError if the backend
    is not a DatabaseBackend, or is immediate; RuntimeError inside any other transaction.
    """
    inline = Inline(backend)
    claims = (_all if recursive else _those_there)(inline, queue, _moment("until", until))
    statuses: dict[Any, str] = {}
    for claim in islice(claims, limit):
        attempt, outcome = inline.run(claim)
        if reraise and attempt.error is not None:
            raise attempt.error
        statuses[claim.id] = outcome.status
    count = Counter(statuses.values())
    return Ran(count[SUCCESSFUL], count[FAILED], count[READY])


def _all(inline: Inline, queue: str | None, until: datetime | None) -> Iterator[Claim]:
    """Claim the rows one by one, including those that are enqueued meanwhile."""
    while True:
        if claim := inline.claim(queue):
            yield claim
        elif not _bring_forward(inline, queue, until):
            return


def _bring_forward(inline: Inline, queue: str | None, until: datetime | None) -> bool:
    """Make the rows that are scheduled next due, up to `until`; return whether there were any."""
    rows = _scheduled(inline, queue, until)
    first = rows.aggregate(first=Min("run_after"))["first"]
    return bool(store.run_now(inline.db, rows.filter(run_after=first).values_list("pk", flat=True)))


def _those_there(inline: Inline, queue: str | None, until: datetime | None) -> Iterator[Claim]:
    """Claim the rows that exist now, one by one, but none that are enqueued later."""
    due = _rows(inline.backend, queue).due().order_by("-priority", "id")
    scheduled = _scheduled(inline, queue, until or timezone.now())
    ids = [row.pk for rows in (due, scheduled.order_by("run_after", "id")) for row in rows]
    for id in ids:
        store.run_now(inline.db, [id])
        if claim := inline.claim_one(id):
            yield claim


def _scheduled(inline: Inline, queue: str | None, until: datetime | None) -> ScheduledTaskQuerySet:
    rows = _rows(inline.backend, queue).filter(status=READY, hold=Hold.SCHEDULED)
    return rows.none() if until is None else rows.filter(run_after__lte=until)


def _rows(backend: DatabaseBackend, queue: str | None = None) -> ScheduledTaskQuerySet:
    rows = ScheduledTask.objects.using(backend.database).filter(backend=backend.alias)
    return (rows if queue is None else rows.filter(queue_name=queue)).order_by("id")


class immediate(TestContextDecorator):
    """Run tasks inside enqueue(): a context manager, and a decorator of tests and test cases.

    It applies in every thread, also to tasks that were imported before. Rows are still written. A
    row whose run_after is in the future stays READY. Raise RunnerError if TASKS[backend] is not a
    DatabaseBackend.
    """

    def __init__(self, backend: str = "default") -> None:
        self.backend = backend
        super().__init__()

    def enable(self) -> None:
        """Override TASKS."""
        ours(self.backend)
        entry: dict[str, Any] = settings.TASKS[self.backend]
        options = {**entry.get("OPTIONS", {}), "immediate": True}
        # When this setting changes, every thread makes new backends.
        self._override = override_settings(
            TASKS={**settings.TASKS, self.backend: {**entry, "OPTIONS": options}}
        )
        self._override.enable()

    def disable(self) -> None:
        """Restore TASKS."""
        self._override.disable()


def _moment(name: str, value: datetime | timedelta | None) -> datetime | None:
    """Return the datetime; a timedelta counts from now, by the clock that enqueue() uses."""
    if isinstance(value, timedelta):
        return timezone.now() + value
    if value is not None and settings.USE_TZ and timezone.is_naive(value):
        raise ValueError(f"{name} must be an aware datetime or a timedelta, not {value!r}.")
    return value


def ours(alias: str) -> DatabaseBackend:
    """Return the backend of that alias; raise RunnerError if it is not a DatabaseBackend."""
    backend = task_backends[alias]
    if not isinstance(backend, DatabaseBackend):
        raise RunnerError(
            f"TASKS[{alias!r}] uses {type(backend).__name__}; these helpers work with "
            "DatabaseBackend only. Use it in the settings of your tests."
        )
    return backend
