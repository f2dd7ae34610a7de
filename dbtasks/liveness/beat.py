"""The beat of a process that runs tasks without a Runner.

Owns one live worker, for as long as a block runs. Never looks at other workers.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.db import Error, connections

from ..db.service import OUTAGE, Pauses, RoundService
from ..db.timeouts import BEAT_TIMEOUT, call_timeout
from ..store import cancel_requests, workers
from .identity import process_identity

logger = logging.getLogger("dbtasks.runner")

# Beats within the worker timeout: a worker that misses three is not lost yet.
BEATS = 4
# Receives id and fence of rows, as claims hold them.
OnCancels = Callable[[list[tuple[Any, int]]], None]
# Seconds between two checks of the processes of this host, or for cancelled rows, and after a beat
# that failed.
RECHECK_INTERVAL = 1.0


@contextmanager
def alive(
    db: str,
    worker_id: str,
    backend: str,
    timeout: float,
    on_cancels: OnCancels | None = None,
) -> Iterator[bool]:
    """Register a live worker while the block runs; yield whether that was done.

    `on_cancels` is called about once a second, in the thread of the beat, with id and fence of the
    worker's rows that must end, if there are any.

    It is not done inside a transaction, nor with a database in memory: a row there does not outlive
    the process. The worker beats in its own thread, which connects after a second.
    """
    connection: Any = connections[db]
    in_memory = connection.vendor == "sqlite" and connection.is_in_memory_db()
    if in_memory or connection.in_atomic_block or not connection.get_autocommit():
        yield False
        return
    workers.register(db, worker_id, backend, *process_identity())
    beat = Beat(db, worker_id, timeout / BEATS, on_cancels)
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

    def __init__(
        self, db: str, worker_id: str, interval: float, on_cancels: OnCancels | None
    ) -> None:
        pause = min(RECHECK_INTERVAL, interval)
        super().__init__("beat", Pauses(pause, pause), db)
        self._worker_id, self._interval, self._round_interval = worker_id, interval, pause
        self._on_cancels = on_cancels
        # On the monotonic clock.
        self._beat_at = time.monotonic() + interval

    def first_wait(self) -> float:
        return self._round_interval

    def round(self) -> float:
        with call_timeout(connections[self._db], BEAT_TIMEOUT):
            if time.monotonic() >= self._beat_at:
                self._beat()
            if self._on_cancels and (found := cancel_requests(self._db, self._worker_id)):
                self._on_cancels(found)
        # Beats come on time, whatever part of the interval a round is: others count on that.
        return max(0.0, min(self._round_interval, self._beat_at - time.monotonic()))

    def _beat(self) -> None:
        if not workers.beat(self._db, self._worker_id):
            logger.warning("Worker %s was declared lost; it claims nothing more", self._worker_id)
            self._stopping.set()
        self._beat_at = time.monotonic() + self._interval

    def failed(self, error: Exception) -> None:
        logger.warning("Worker %s missed a beat: %s", self._worker_id, error, extra=OUTAGE)


def clock() -> float:
    """Return the seconds of a clock that goes on while the machine sleeps, if there is one."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.monotonic()
