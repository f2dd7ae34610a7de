"""The beat of a process that runs tasks without a Runner.

Owns being a live worker for as long as a block runs. Never looks at other workers.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.db import Error, connections

from ..db.service import Pauses, RoundService
from ..db.timeouts import BEAT_TIMEOUT, CALL_TIMEOUT, bounded_connect, call_timeout
from ..store import workers
from .identity import process_identity

logger = logging.getLogger("dbtasks.runner")

# Beats in the time after which a silent worker is declared lost: three may be missed.
BEATS = 4
# Seconds between two looks at the processes of this host, and after a beat that failed.
RECHECK_INTERVAL = 1.0


@contextmanager
def alive(db: str, worker_id: str, backend: str, timeout: float) -> Iterator[bool]:
    """Be a live worker while the block runs; yield whether that is so.

    It is not so inside a transaction, nor in a database in memory: what is written there would not
    outlive the process. The beats come from a thread and a connection of their own, which are not
    used before the first beat is due.
    """
    connection: Any = connections[db]
    in_memory = connection.vendor == "sqlite" and connection.is_in_memory_db()
    if in_memory or connection.in_atomic_block or not connection.get_autocommit():
        yield False
        return
    workers.register(db, worker_id, backend, *process_identity())
    beat = Beat(db, worker_id, timeout / BEATS)
    beat.start()
    try:
        yield True
    finally:
        beat.stop(RECHECK_INTERVAL)
        # Should this fail, others declare the worker lost, as one that was killed.
        with suppress(Error):
            workers.leave(db, worker_id)


class Beat(RoundService):
    """Beats for one worker until stopped, or until others have declared it lost."""

    def __init__(self, db: str, worker_id: str, interval: float) -> None:
        pause = min(RECHECK_INTERVAL, interval)
        super().__init__("beat", Pauses(pause, pause))
        self._db, self._worker_id, self._interval = db, worker_id, interval

    def first_wait(self) -> float:
        return self._interval

    def round(self) -> float:
        with (
            bounded_connect(self._db, CALL_TIMEOUT),
            call_timeout(connections[self._db], BEAT_TIMEOUT),
        ):
            is_known = workers.beat(self._db, self._worker_id)
        if not is_known:
            logger.warning("Worker %s was declared lost; it claims nothing more", self._worker_id)
            self._stopping.set()
        return self._interval

    def failed(self, error: Exception) -> None:
        logger.warning("Worker %s missed a beat: %s", self._worker_id, error)


def clock() -> float:
    """Return seconds that count on while the machine sleeps, where there is such a clock."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)
