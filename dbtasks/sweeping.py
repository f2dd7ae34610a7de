"""One turn of what a runner does all the time, for hosts where no runner lives.

Owns the order of a sweep and its budget: ticks, due rows, the rescue of lost rows, the purge. Never
opens a transaction, never relies on being alone, and raises nothing for a task.
"""

import logging
import math
import threading
import time
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Self

from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import connections

from . import store
from .backend import DatabaseBackend
from .base import registry
from .base.result import FAILED, READY, SUCCESSFUL, TaskResult
from .door import Crowded, Door
from .execution.bounds import RELEASE_BEFORE
from .firing import GRACE
from .inline import Inline
from .runner.purger import PURGE_PAUSE, warn_of_protected
from .runner.scheduler import Scheduler
from .wakeup import hints

logger = logging.getLogger("dbtasks.sweep")

# Seconds before the deadline of a caller at which nobody is watched any more, so that it gets its
# answer.
ANSWER_BEFORE = 3.0
# Ticks of a schedule with missed="skip" fire up to this many intervals between sweeps late.
GRACE_INTERVALS = 1.5


class Swept(NamedTuple):
    """What one sweep has done."""

    # Attempts that ended; how many of them succeeded, failed for good, or are to be run again.
    ran: int
    succeeded: int
    failed: int
    again: int
    # Rows of lost workers that were requeued, or failed.
    rescued: int
    # Rows that ticks of schedules became.
    fired: int
    # Hints that were sent for rows that are due for long.
    hinted: int
    # Expired rows that were deleted.
    purged: int
    seconds: float
    # Whether rows are due now that were not run.
    is_due_left: bool
    # When the next scheduled row will be due; None if there is none.
    next_due: datetime | None
    # The result of each attempt, in their order.
    results: list[TaskResult]


def sweep(
    backend: str = "default",
    *,
    max_tasks: int | None = None,
    max_seconds: float = 25.0,
    queue_name: str | None = None,
    interval: float = 60.0,
) -> Swept:
    """Do once what a runner does all the time, in this thread; return what was done.

    Fire the ticks that are due, run due rows one after the other, best first, rescue rows of
    workers that were lost, and delete expired rows. Call it every minute where no runner lives.
    Sweeps may overlap, with each other and with runners. If the backend has a push, and this
    process sends hints, rows that are due for long get another hint instead of being run here.

    `max_tasks` limits the number of tasks. `max_seconds` says when the last one may start. If a
    worker looks lost, it is watched until that is certain, which may take longer, about a third of
    the option `worker_timeout`. With `queue_name` only rows of that queue are run. `interval` is
    the number of seconds between two sweeps: a schedule with missed="skip" fires up to 1.5 times as
    late, or 10 seconds.

    A task is interrupted at its timeout, and starts without the caller's language, time zone and
    other context variables. Errors of tasks are in `results`; errors of the database are raised.
    Raise RuntimeError inside a transaction, RunnerError if the backend is immediate or not a
    DatabaseBackend.
    """
    return sweep_through(
        Door(interrupts=True, fresh_context=True),
        backend,
        max_tasks=max_tasks,
        max_seconds=max_seconds,
        queue_name=queue_name,
        interval=interval,
    )


def sweep_through(
    door: Door,
    backend: str = "default",
    *,
    max_tasks: int | None = None,
    max_seconds: float = 25.0,
    queue_name: str | None = None,
    interval: float = 60.0,
) -> Swept:
    """Do what sweep() does, with what that way into the process allows."""
    if not interval > 0:
        raise ValueError(f"interval must be above 0, not {interval!r}.")
    with _Turn(door, backend, max_tasks, max_seconds, queue_name) as turn:
        turn.rescue()
        turn.fire(timedelta(seconds=interval * GRACE_INTERVALS))
        turn.run_or_hint()
        turn.watch()
        turn.purge()
        return turn.swept()


def run_due(
    door: Door,
    backend: str = "default",
    *,
    max_tasks: int | None = None,
    max_seconds: float = 25.0,
    queue_name: str | None = None,
) -> Swept:
    """Run due rows as sweep() does, and do nothing else; return what was done."""
    with _Turn(door, backend, max_tasks, max_seconds, queue_name) as turn:
        turn.run()
        return turn.swept()


class _Turn:
    """One sweep, from its start to its result. Used by one thread."""

    def __init__(
        self,
        door: Door,
        backend: str,
        max_tasks: int | None,
        max_seconds: float,
        queue_name: str | None,
    ) -> None:
        if max_tasks is not None and max_tasks < 1:
            raise ValueError(f"max_tasks must be at least 1, not {max_tasks!r}.")
        if not max_seconds > 0:
            raise ValueError(f"max_seconds must be above 0, not {max_seconds!r}.")
        self._began = time.monotonic()
        self._end = self._began + max_seconds
        self._watch_end = math.inf
        if door.deadline is not None:
            self._watch_end = door.deadline - ANSWER_BEFORE
            # What starts later would be asked to end at once.
            self._end = min(self._end, door.deadline - RELEASE_BEFORE)
        self._inline = Inline(backend, door)
        self._db, self._alias = self._inline.db, self._inline.backend.alias
        self._max_tasks, self._queue = max_tasks, queue_name
        self._results: list[TaskResult] = []
        self._rescued = self._fired = self._hinted = self._purged = 0
        # Inside the transaction of a TestCase no other worker can be seen to beat.
        self._is_tested = connections[self._db].in_atomic_block
        # When workers that look lost were last checked, on the monotonic clock.
        self._checked_at = 0.0

    def __enter__(self) -> Self:
        self._inline.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._inline.__exit__(*error)

    @property
    def _seconds_left(self) -> float:
        return self._end - time.monotonic()

    def rescue(self) -> bool:
        """Check the other workers, and rescue rows of those that are lost; return whether any."""
        if self._is_tested:
            return False
        rows = self._inline.rescue()
        self._checked_at = time.monotonic()
        self._rescued += len(rows)
        return bool(rows)

    def fire(self, grace: timedelta) -> None:
        """Fire the ticks that are due."""
        self._fired += _ticks.fire(self._inline.backend, max(GRACE, grace))

    def run_or_hint(self) -> None:
        """Run due rows; if hints are sent from here, send those that late rows need instead.

        If the service takes none of them, the rows are run here all the same. If it takes some, it
        keeps its own pace, and the next sweep sends the others.
        """
        push = hints.sending_push_of(self._alias)
        if push is None:
            self.run()
            return
        self._inline.promote()
        late = hints.late_hints(self._db, self._alias, push)
        sent = hints.tell(push, late)
        self._hinted += sent
        if late and not sent:
            self.run()

    def run(self) -> None:
        """Run due rows, best first, as long as that is allowed."""
        while self._seconds_left > 0 and not self._is_full:
            self._check_again()
            try:
                claim = self._inline.claim(self._queue)
            except Crowded:
                # Only quarantined rows are left.
                return
            if claim is None:
                return
            if result := self._inline.result(claim):
                self._results.append(result)

    @property
    def _is_full(self) -> bool:
        return self._max_tasks is not None and len(self._results) >= self._max_tasks

    def _check_again(self) -> None:
        """Check workers that look lost once more, between two tasks, unless that was just done."""
        silent = self._inline.silent
        if silent and time.monotonic() >= self._checked_at + silent.interval:
            self.rescue()

    def watch(self) -> None:
        """Wait until workers that look lost have beaten or are lost.

        Run what was rescued, while the time lasts. A sweep that watched only until then would begin
        anew each time, and rescue nothing for ever.
        """
        silent = self._inline.silent
        end = min(max(self._end, time.monotonic() + silent.needed), self._watch_end)
        while silent and (left := end - time.monotonic()) > 0:
            time.sleep(min(silent.interval, left))
            if self.rescue() and self._seconds_left > 0:
                self.run_or_hint()

    def purge(self) -> None:
        """Delete expired rows: one batch, and more while the time lasts."""
        while count := store.purge(self._db, self._alias, self._on_protected):
            self._purged += count
            if self._seconds_left < PURGE_PAUSE:
                return
            time.sleep(PURGE_PAUSE)

    def _on_protected(self, count: int) -> None:
        warn_of_protected(self._alias, count)

    def swept(self) -> Swept:
        """Return what was done."""
        queues = None if self._queue is None else [self._queue]
        left = store.peek(self._db, self._alias, queues)
        is_late = left.next_due is not None and left.next_due <= 0
        next_due = None
        if left.next_due is not None and not is_late:
            next_due = store.now(self._db) + timedelta(seconds=left.next_due)
        statuses = [result.status.value for result in self._results]
        return Swept(
            ran=len(statuses),
            succeeded=statuses.count(SUCCESSFUL),
            failed=statuses.count(FAILED),
            again=statuses.count(READY),
            rescued=self._rescued,
            fired=self._fired,
            hinted=self._hinted,
            purged=self._purged,
            seconds=time.monotonic() - self._began,
            is_due_left=left.due or left.quarantined or is_late,
            next_due=next_due,
            results=self._results,
        )


class _Ticks:
    """The schedulers of this process, one for each backend, made at the first sweep."""

    def __init__(self) -> None:
        self._schedulers: dict[str, Scheduler] = {}
        self._locks: dict[str, threading.Lock] = {}
        setting_changed.connect(self._forget)

    def fire(self, backend: DatabaseBackend, grace: timedelta) -> int:
        """Fire the backend's ticks that are due; return how many rows they became.

        If another thread of this process does that now, leave it to that.
        """
        lock = self._locks.setdefault(backend.alias, threading.Lock())
        if not lock.acquire(blocking=False):
            return 0
        try:
            scheduler = self._scheduler(backend)
            return 0 if scheduler is None else scheduler.catch_up(grace)
        finally:
            lock.release()

    def _scheduler(self, backend: DatabaseBackend) -> Scheduler | None:
        if backend.alias not in self._schedulers:
            registry.discover(backend.config.task_modules)
            try:
                self._schedulers[backend.alias] = Scheduler(backend)
            except ImproperlyConfigured as error:
                # Due rows are run and lost ones rescued all the same.
                logger.error("No ticks are fired: %s", error)
        return self._schedulers.get(backend.alias)

    def _forget(self, *, setting: str, **_: Any) -> None:
        if setting in {"INSTALLED_APPS", "ROOT_URLCONF", "TASKS"}:
            self._schedulers.clear()


_ticks = _Ticks()
