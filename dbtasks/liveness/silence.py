"""Workers that may be lost, as a process sees them that does not stay to watch for long.

Owns the decision of a drain that another worker is lost, by two witnesses. Never declares a worker
lost by a clock alone: the database's clock raises the question, and the beat answers it.
"""

import logging
import time

from .. import store
from ..models import Worker
from ..store import workers
from .beat import BEATS, RECHECK_INTERVAL
from .identity import is_gone

logger = logging.getLogger("dbtasks.runner")

# Intervals between two beats for which the beat of a silent worker must not change.
WATCHED_BEATS = 1.25


class SilentWorkers:
    """The silent workers of one backend, until each has beaten or was declared lost.

    A worker is lost if both hold: its last beat is older than `timeout` seconds by the database's
    clock, which is compared with itself, and its beat does not change while this process watches it
    for a little more than the time between two beats. A worker whose process on this host has ended
    is lost at once.
    """

    def __init__(self, db: str, backend: str, timeout: float) -> None:
        self._db, self._backend, self._timeout = db, backend, timeout
        self._watched = timeout / BEATS * WATCHED_BEATS
        # Seconds between two checks.
        self.interval = min(RECHECK_INTERVAL, self._watched / 4)
        # Seconds of checks at that interval after which a silent worker is lost.
        self.needed = self._watched + self.interval
        # By worker id: its beat, and the seconds for which that has not changed.
        self._seen: dict[str, tuple[int, float]] = {}
        self._checked_at = time.monotonic()

    def __bool__(self) -> bool:
        """Return whether somebody was silent at the last check, so that another is needed."""
        return bool(self._seen)

    def beat_of(self, worker_id: str) -> int | None:
        """Return that worker's beat at the last check; None if it was not silent."""
        beat, _ = self._seen.get(worker_id, (None, 0.0))
        return beat

    def check(self, worker_id: str) -> bool:
        """Check all workers but this one; return whether there may be rows to rescue."""
        at = time.monotonic()
        # If more time has passed, this machine may have stood still, and the silent worker with it.
        passed = min(at - self._checked_at, self.interval * 2)
        self._checked_at = at
        others = workers.others(self._db, worker_id, self._backend)
        live = [other for other in others if other.state == Worker.State.LIVE]
        is_any_lost = len(live) < len(others)
        now = store.now(self._db)
        seen = {}
        for other in live:
            beat, still = self._seen.get(other.worker_id, (None, 0.0))
            still = still + passed if beat == other.beat else 0.0
            is_silent = (now - other.beat_at).total_seconds() >= self._timeout
            if is_gone(other) or (is_silent and still >= self._watched):
                is_any_lost |= self._declare_lost(other)
            elif is_silent:
                seen[other.worker_id] = (other.beat, still)
        self._seen = seen
        return is_any_lost

    def _declare_lost(self, other: Worker) -> bool:
        """Declare that worker lost unless its beat has changed; return whether that was done."""
        is_lost = workers.declare_lost(self._db, other.worker_id, other.beat)
        if is_lost:
            logger.warning("Worker %s is lost; its tasks are requeued", other.worker_id)
        return is_lost
