"""The duties with an interval, in a thread and with a connection of their own.

Owns when they are done: beside the running work, never in its way. Never claims or runs tasks.
"""

import logging
import random
import threading

from django.db import connections

from . import store
from .patience import Within, prompt

logger = logging.getLogger("dbtasks.runner")

# Seconds between two looks for expired rows, and between two batches of one purge, so that a long
# purge leaves the database to others most of the time.
PURGE_INTERVAL, PURGE_PAUSE = 60.0, 0.05


class Maintenance:
    """Purges expired rows every minute, in batches of at most 500."""

    def __init__(self, db: str, backend: str) -> None:
        self._db, self._backend = db, backend
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="dbtasks-maintenance", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End after the batch in hand, waiting at most `timeout` seconds."""
        self._stop.set()
        self._thread.join(timeout)

    def _work(self) -> None:
        # Runners started together do not purge together.
        wait = random.uniform(0, PURGE_INTERVAL / 10)
        while not self._stop.wait(wait):
            try:
                self._purge()
            except Exception:  # whatever the database raises; the next round tries again
                logger.exception("The purge failed")
                connections[self._db].close()
            # An idle connection would only be in the way of others.
            connections.close_all()
            wait = PURGE_INTERVAL * random.uniform(0.75, 1.25)
        connections.close_all()

    def _purge(self) -> None:
        total = 0
        while not self._stop.wait(PURGE_PAUSE):
            with prompt(self._db), Within(connections[self._db]):
                count = store.purge(self._db, self._backend)
            total += count
            if not count:
                break
        if total:
            logger.info("Purged %d expired rows of %r", total, self._backend)
