"""Fires the ticks of schedules, in a thread and with a connection of its own.

Owns when ticks are looked for and fired. Never relies on being alone: any runner may fire a tick,
and the store's guard lets one succeed. The database's clock decides what is due.
"""

import logging
import random
import time
from collections.abc import Mapping
from datetime import datetime

from django.core.exceptions import ImproperlyConfigured
from django.db import connections, reset_queries

from ..backend import DatabaseBackend
from ..db.connections import leave_clean
from ..db.service import Pauses, RoundService
from ..firing import due_ticks, entries_of, entry_of, make, problems
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
# Seconds until a schedule that could not be fired is tried again.
BROKEN_PAUSE = 5.0


class Scheduler(RoundService):
    """Declares a runner's schedules and fires the due ticks of its backend.

    Raise ImproperlyConfigured if one of its schedules cannot be fired.
    """

    def __init__(self, backend: DatabaseBackend) -> None:
        if wrong := problems(backend):
            raise ImproperlyConfigured(" ".join(wrong))
        super().__init__("scheduler", Pauses(0.1, 1.0))
        self._backend, self._db = backend, backend.database
        self._entries: Mapping[str, ScheduleEntry] = entries_of(backend)
        self._declared, self._seen_at = False, 0.0
        # By id of a schedule that could not be fired: when to try again, on the monotonic clock.
        self._broken: dict[int, float] = {}

    def failed(self, error: Exception) -> None:
        logger.warning("Ticks wait for the database: %s", error)

    def round(self) -> float:
        # With DEBUG a connection would remember every statement.
        reset_queries()
        self._keep_declared()
        began = time.monotonic()
        found = periodic.peek(self._db, self._backend.alias, self._entries)
        if found.now is None:
            return random.uniform(0.75, 1.0) * IDLE_INTERVAL
        due = [row for row in found.due if began >= self._broken.get(row.pk, 0.0)]
        for row in due:
            self._try(row, found.now)
        if due:
            # More ticks may have come due meanwhile.
            return 0.0
        wait = random.uniform(0.75, 1.0) * LOOK_INTERVAL
        if found.next_tick is not None:
            until = (found.next_tick - found.now).total_seconds() + random.uniform(0, SPREAD)
            wait = min(wait, until - (time.monotonic() - began))
        return max(0.0, wait)

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

    def catch_up(self) -> None:
        """Fire the ticks that are due now, in this thread."""
        while not self.round():
            pass

    def _try(self, row: PeriodicTask, now: datetime) -> None:
        """Fire the due ticks of one schedule. An error in it must not stop the others."""
        inside = connections[self._db].in_atomic_block
        try:
            schedule = row.schedule
            ticks, skipped = due_ticks(schedule, row, now)
            entry = self._entries[row.key] if row.origin == periodic.SETTINGS else entry_of(row)
            made = [(at, *make(self._backend, entry)) for at in ticks]
            next_tick = schedule.next(now)
        except Exception:  # a project's function for arguments, or a value written in the admin
            logger.exception("%s cannot be fired; its tick waits", row.key)
            self._broken[row.pk] = time.monotonic() + BROKEN_PAUSE
            return
        finally:
            # A transaction that a project's function left open must not roll back the tick.
            if not inside:
                leave_clean(row.task_path, keep=True)
        runs = [periodic.Tick(at, new) for at, new, _ in made]
        fired = periodic.fire(self._db, row, runs, next_tick, skipped)
        if fired is None:
            return
        if fired.overlaps:
            logger.warning("%s skipped %s: the run before has not finished", row.key, ticks[-1])
        elif skipped is not None:
            logger.warning("%s skipped what it missed up to %s", row.key, skipped)
        written = {tick.row.id for tick in fired.ticks}
        fresh = [(new, result) for _, new, result in made if new.id in written]
        self._backend.announce([new for new, _ in fresh], [result for _, result in fresh])
