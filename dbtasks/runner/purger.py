"""The purge of expired rows, in a thread and with a connection of its own.

Owns when it runs, and its pauses. Never claims or runs tasks.
"""

import logging
import random

from django.db import connections

from .. import store
from ..db.service import OUTAGE, Pauses, RoundService
from ..db.timeouts import call_timeout

logger = logging.getLogger("dbtasks.runner")

# Seconds between two purges.
PURGE_INTERVAL = 60.0
# Seconds between two batches of one purge, so that other work can use the database.
PURGE_PAUSE = 0.05


class Purger(RoundService):
    """Purges expired rows every minute, in batches of at most 500."""

    def __init__(self, db: str, backend: str) -> None:
        super().__init__("purger", Pauses(PURGE_INTERVAL, PURGE_INTERVAL), db)
        self._backend = backend
        self._has_told = False

    def first_wait(self) -> float:
        # Runners that started together do not purge together.
        return random.uniform(0, PURGE_INTERVAL / 10)

    def round(self) -> float:
        total = 0
        while not self._stopping.wait(PURGE_PAUSE) and (count := self._purge()):
            total += count
        if total:
            logger.info("Purged %d expired rows of %r", total, self._backend)
        # An idle connection would only count against the server's limit.
        connections.close_all()
        return PURGE_INTERVAL * random.uniform(0.75, 1.25)

    def failed(self, error: Exception) -> None:
        logger.error("The purge failed", exc_info=error, extra=OUTAGE)

    def _purge(self) -> int:
        self.activity.step()
        with call_timeout(connections[self._db]):
            return store.purge(self._db, self._backend, self._on_protected)

    def _on_protected(self, count: int) -> None:
        """Say once that rows are kept because other tables point to them."""
        if not self._has_told:
            self._has_told = True
            warn_of_protected(self._backend, count)


def warn_of_protected(backend: str, count: int) -> None:
    """Log that rows are kept because other tables point to them."""
    logger.warning(
        "%d expired rows of %r were not purged, because a foreign key of another table points to "
        "them. Such rows are tried again once a day.",
        count,
        backend,
    )
