"""The thread that rescues the rows of lost workers.

Owns when it looks for them, and how often it tries again. Never decides that a worker is lost: the
heartbeat does, and must not wait for a row that somebody has locked.
"""

import logging
from collections.abc import Callable

from django.db import connections

from .. import rescue
from ..backend import DatabaseBackend
from ..db.service import Pauses, RoundService
from ..db.timeouts import call_timeout
from ..events import RESCUED, Events

logger = logging.getLogger("dbtasks.runner")

# Seconds between two rounds if nobody asks.
IDLE_INTERVAL = 3600.0


class Rescuer(RoundService):
    """Rescues rows when asked to, in batches; `poll_now` is called after each."""

    def __init__(
        self, backend: DatabaseBackend, events: Events, poll_now: Callable[[], None]
    ) -> None:
        super().__init__("rescuer", Pauses(0.1, 5.0), backend.database)
        self._backend, self._events, self._poll_now = backend, events, poll_now
        # How often it was asked, and how many of these requests are done with.
        self._asked = self._answered = 0

    def ask(self) -> None:
        """Rescue the rows of lost workers now. Can be called from any thread."""
        self._asked += 1
        self._wakeup.set()

    @property
    def is_behind(self) -> bool:
        """Whether there may be rows to rescue. Can be read from any thread."""
        return self._answered < self._asked

    def round(self) -> float:
        asked = self._asked
        if self.is_behind:
            while not self._stopping.is_set() and self._rescue():
                self.activity.step()
            self._answered = asked
            # An idle connection would only count against the server's limit.
            connections.close_all()
        return 0.0 if self.is_behind else IDLE_INTERVAL

    def failed(self, error: Exception) -> None:
        logger.warning("The rescue failed: %s", error)

    def _rescue(self) -> bool:
        """Rescue up to 500 rows; return whether there were any."""
        with call_timeout(connections[self._db]):
            rows = rescue.rescue(self._backend)
        if rows:
            self._poll_now()
            self._events.publish(RESCUED, rows)
            for row in rows:
                logger.warning("%s %s of %s was rescued", row.task_path, row.pk, row.worker_id)
        return bool(rows)
