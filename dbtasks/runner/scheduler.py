"""Fires the ticks of schedules, in a thread and with a connection of its own.

Owns when ticks are looked for and fired. Never relies on being alone: any runner may fire a tick,
and the store's guard lets one succeed. The database's clock decides what is due.
"""

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections, reset_queries

from ..backend import DatabaseBackend
from ..db.connections import leave_clean
from ..db.service import OUTAGE, Pauses, RoundService
from ..db.timeouts import call_timeout
from ..firing import GRACE, due_ticks, entries_of, entry_of, make, problems
from ..models import PeriodicTask
from ..schedule.periodic import ScheduleEntry
from ..store import periodic

logger = logging.getLogger("dbtasks.periodic")

# Seconds between two peeks, to see schedules that other processes changed.
LOOK_INTERVAL = 5.0
# Seconds between two peeks while there is no schedule.
IDLE_INTERVAL = 10.0
# Seconds between two updates of `seen_at` for the schedules in this process's settings.
SEEN_INTERVAL = 3600.0
# Seconds by which runners differ at the same tick, so that most find it fired already.
SPREAD = 0.05
# Seconds until a schedule that could not be fired is tried again, at first and at most.
BROKEN_PAUSE = 5.0
LONGEST_BROKEN_PAUSE = 60.0
# Seconds for which the scheduler waits for a project's function that makes arguments. After that
# the others are fired, and this one when the function has returned.
MAKE_TIMEOUT = 0.5

# A tick, its row, and its result.
Made = tuple[datetime, Any, Any]


class Scheduler(RoundService):
    """Declares a runner's schedules and fires the due ticks of its backend.

    Raise ImproperlyConfigured if one of its schedules cannot be fired.
    """

    def __init__(self, backend: DatabaseBackend) -> None:
        if wrong := problems(backend):
            raise ImproperlyConfigured(" ".join(wrong))
        super().__init__("scheduler", Pauses(0.1, 1.0), backend.database)
        self._backend = backend
        self._entries: Mapping[str, ScheduleEntry] = entries_of(backend)
        self._declared, self._seen_at = False, 0.0
        self._grace = GRACE
        # How many rows ticks have become, and whether the last peek showed a schedule.
        self._fired, self._has_found = 0, False
        # By id of a schedule that could not be fired: when to try again, on the monotonic clock,
        # and how long to wait after that.
        self._broken: dict[int, float] = {}
        self._pauses_of: dict[int, Pauses] = {}
        # By id of a schedule whose arguments take long.
        self._making: dict[int, Making] = {}

    def failed(self, error: Exception) -> None:
        logger.warning("Ticks wait for the database: %s", error, extra=OUTAGE)

    def round(self) -> float:
        # With DEBUG a connection would remember every statement.
        reset_queries()
        with call_timeout(connections[self._db]):
            self._keep_declared()
        began = time.monotonic()
        self._broken = {pk: at for pk, at in self._broken.items() if at > began}
        busy = [pk for pk, making in self._making.items() if not making.has_ended]
        with call_timeout(connections[self._db]):
            # Schedules that cannot be fired now must not hide others.
            found = periodic.peek(
                self._db, self._backend.alias, self._entries, but=[*self._broken, *busy]
            )
        self._has_found = found.now is not None
        wait = random.uniform(0.75, 1.0) * (IDLE_INTERVAL if found.now is None else LOOK_INTERVAL)
        if found.now is not None:
            for row in found.due:
                self.activity.step()
                self._try(row, found.now)
            if found.due:
                # More ticks may have come due meanwhile.
                return 0.0
        if found.now is not None and found.next_tick is not None:
            until = (found.next_tick - found.now).total_seconds() + random.uniform(0, SPREAD)
            wait = min(wait, until - (time.monotonic() - began))
        until_retry = min(self._broken.values(), default=math.inf) - time.monotonic()
        return max(0.0, min(wait, until_retry))

    def _keep_declared(self) -> None:
        """Keep the schedules of this process up to date in the table."""
        now = time.monotonic()
        if self._declared and now < self._seen_at + SEEN_INTERVAL:
            return
        alias, entries = self._backend.alias, self._entries
        if not self._declared or not periodic.see(self._db, alias, entries):
            for taken in periodic.declare(self._db, alias, entries.values()):
                logger.error("%r is the key of a schedule made in the admin; rename one", taken)
        self._declared, self._seen_at = True, now

    def catch_up(self, grace: timedelta = GRACE) -> int:
        """Fire the ticks that are due now, in this thread; return how many rows they became.

        With missed="skip" a tick that is more than `grace` late is skipped.
        """
        self._grace, before = grace, self._fired
        while not self.round():
            pass
        if self._entries and not self._has_found:
            # All are paused, or the table was emptied since they were declared.
            self._declared = False
            with call_timeout(connections[self._db]):
                self._keep_declared()
        return self._fired - before

    def _try(self, row: PeriodicTask, now: datetime) -> None:
        """Fire the due ticks of one schedule. An error in it must not stop the others."""
        try:
            making = self._making.pop(row.pk, None)
            if making is None or making.row != _state(row):
                making = self._make(row, now)
            if making.is_slow(MAKE_TIMEOUT):
                logger.warning("The arguments of %s take long; other schedules go on", row.key)
                self._making[row.pk] = making
                return
            made = making.result()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a project's function, or a value written in the admin
            self._put_off(row, error)
            return
        self._pauses_of.pop(row.pk, None)
        self._fire(row, making, made)

    def _make(self, row: PeriodicTask, now: datetime) -> "Making":
        """Begin to make the rows of the schedule's due ticks."""
        schedule = row.schedule
        ticks, skipped = due_ticks(schedule, row, now, self._grace)
        entry = self._entries[row.key] if row.origin == periodic.SETTINGS else entry_of(row)
        making = Making(self._backend, entry, ticks, _state(row), on_end=self._wakeup.set)
        # The connection of a caller of catch_up() is left to the caller.
        making.keeps_connections = self.is_alive
        making.skipped, making.next_tick = skipped, schedule.next(now)
        # Only a project's own function may take long, or leave a transaction open.
        making.start(in_thread=self.is_alive and (callable(entry.args) or callable(entry.kwargs)))
        return making

    def _put_off(self, row: PeriodicTask, error: BaseException) -> None:
        """Try a schedule that could not be fired again later, each time after a longer pause."""
        pauses = self._pauses_of.setdefault(row.pk, Pauses(BROKEN_PAUSE, LONGEST_BROKEN_PAUSE))
        self._broken[row.pk] = time.monotonic() + pauses.next()
        logger.error("%s cannot be fired; its tick waits", row.key, exc_info=error)

    def _fire(self, row: PeriodicTask, making: "Making", made: list[Made]) -> None:
        runs = [periodic.Tick(at, new) for at, new, _ in made]
        with call_timeout(connections[self._db]):
            fired = periodic.fire(self._db, row, runs, making.next_tick, making.skipped)
        if fired is None:
            return
        if fired.overlaps:
            logger.warning(
                "%s skipped %s: the run before has not finished", row.key, making.ticks[-1]
            )
        elif making.skipped is not None:
            logger.warning("%s skipped what it missed up to %s", row.key, making.skipped)
        self._fired += len(fired.ticks)
        written = {tick.row.id for tick in fired.ticks}
        fresh = [(new, result) for _, new, result in made if new.id in written]
        with call_timeout(connections[self._db]):
            self._backend.announce([new for new, _ in fresh], [result for _, result in fresh])


def _state(row: PeriodicTask) -> tuple[Any, ...]:
    """Return what the rows of the schedule's ticks are made from."""
    return row.next_tick, row.spec, row.timezone, row.task_path, str(row.args), str(row.kwargs)


class Making:
    """The rows of some ticks of one schedule while they are made."""

    def __init__(
        self,
        backend: DatabaseBackend,
        entry: ScheduleEntry,
        ticks: list[datetime],
        row: tuple[Any, ...],
        on_end: Callable[[], None],
    ) -> None:
        self._backend, self._entry, self._on_end = backend, entry, on_end
        self.ticks, self.row = ticks, row
        self.skipped: datetime | None = None
        self.next_tick: Any = None
        self.keeps_connections = True
        self._made: list[Made] = []
        self._error: BaseException | None = None
        self._ended = threading.Event()

    def start(self, *, in_thread: bool) -> None:
        """Make the rows, in a thread of their own if a function of the project has to be called."""
        if not in_thread:
            self._work()
            return
        name = "dbtasks-arguments"
        threading.Thread(target=self._work_in_thread, name=name, daemon=True).start()

    def is_slow(self, seconds: float) -> bool:
        """Wait up to `seconds`; return whether the rows are not made yet."""
        return not self._ended.wait(seconds)

    @property
    def has_ended(self) -> bool:
        """Whether result() returns at once."""
        return self._ended.is_set()

    def result(self) -> list[Made]:
        """Return each tick with its row and its result; raise what the function raised."""
        if self._error is not None:
            raise self._error
        return self._made

    def _work(self) -> None:
        db = self._backend.database
        is_free = not connections[db].in_atomic_block
        try:
            self._made = [(at, *make(self._backend, self._entry)) for at in self.ticks]
        except BaseException as error:  # whatever the project's function raises
            self._error = error
        finally:
            # A transaction that a project's function left open must not roll back the tick.
            if is_free:
                leave_clean(self._entry.task_path, keep=self.keeps_connections)
            self._ended.set()

    def _work_in_thread(self) -> None:
        try:
            self._work()
        finally:
            self._on_end()
            connections.close_all()
