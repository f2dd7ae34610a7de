"""The beat of a process that runs tasks without a Runner.

Owns one live worker, for as long as a block runs. Never looks at other workers.
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

# Beats within the worker timeout: a worker that misses three is not lost yet.
BEATS = 4
# Seconds between two checks of the processes of this host, and after a beat that failed.
RECHECK_INTERVAL = 1.0


@contextmanager
def alive(db: str, worker_id: str, backend: str, timeout: float) -> Iterator[bool]:
    """Register a live worker while the block runs; yield whether that was done.

    It is not done inside a transaction, nor with a database in memory: a row there does not outlive
    the process. The worker beats in its own thread, which connects when the first beat is due.
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
        # If this fails, others declare the worker lost, like one that was killed.
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
    """Return the seconds of a clock that goes on while the machine sleeps, if there is one."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)
