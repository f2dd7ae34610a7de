"""Who is alive.

Owns a runner's own beat, and its judgement of others by theirs. Never compares clocks of two
machines: a worker is lost when its beat has stood still for as long as this process has counted.
"""

import logging
import os
import platform
import random
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path

from django.db import connections

from .models import ScheduledTask, Worker
from .store import workers

logger = logging.getLogger("dbtasks.runner")

# Beats in the time after which a silent worker is given up: three may be lost.
BEATS = 4
# Seconds after which it looks again at a worker that is missed and still in the books.
SOON = 0.5
# Part of that time after which a runner that cannot beat starts nothing more.
TRUST = 0.75


class Heart:
    """Beats for one worker, watches the others, and gives back what lost ones held.

    A thread and a connection of its own: neither a busy pool nor a long purge stops it. `lost`
    is called, in this thread, when others have given this worker up.
    """

    def __init__(
        self,
        db: str,
        worker_id: str,
        backend: str,
        timeout: float,
        retain: Callable[[ScheduledTask], timedelta | None],
        may_retry: Callable[[ScheduledTask], bool],
        lost: Callable[[], None],
        rescued: Callable[[], None],
    ) -> None:
        self._db, self._timeout = db, timeout
        self._retain, self._may_retry = retain, may_retry
        self.worker_id, self._backend = worker_id, backend
        self._lost, self._rescued = lost, rescued
        self._stop, self._bell = threading.Event(), threading.Event()
        # Workers whose process is known to have ended.
        self._missed: set[str] = set()
        # Whether what was lost before this runner began has been given back.
        self.has_looked = False
        # Worker id to its last beat, and the seconds it has stood still since.
        self._seen: dict[str, tuple[int, float]] = {}
        self._watched_at = self._beat_at = clock()
        self._thread = threading.Thread(target=self._work, name="dbtasks-heart", daemon=True)
        workers.register(db, worker_id, backend, *whereabouts())

    def start(self) -> None:
        """Beat from now on."""
        self._thread.start()

    @property
    def is_trusted(self) -> bool:
        """Whether nobody can have given this worker up yet."""
        return clock() - self._beat_at < self._timeout * TRUST

    def miss(self, worker_id: str) -> None:
        """Give that worker up at once: its process has ended. Called from any thread."""
        self._missed.add(worker_id)
        self._bell.set()

    def stop(self, timeout: float) -> None:
        """End, waiting at most `timeout` seconds; the worker is still registered."""
        self._stop.set()
        self._bell.set()
        self._thread.join(timeout)

    def _work(self) -> None:
        try:
            # At once: a process that was killed and started again finds its own rows.
            while not self._stop.is_set():
                try:
                    self._beat()
                    self._watch()
                    self._tell_first_look()
                except Exception as error:  # whatever the database raises; the beat goes on
                    logger.warning("The heart missed a beat: %s", error)
                    connections[self._db].close()
                wait = self._timeout / BEATS * random.uniform(0.8, 1.0)
                self._bell.wait(min(wait, SOON) if self._missed else wait)
                self._bell.clear()
        finally:
            connections.close_all()

    def _beat(self) -> None:
        began = clock()
        if workers.beat(self._db, self.worker_id):
            self._beat_at = began
        else:
            logger.warning("Worker %s was given up by others; it joins anew", self.worker_id)
            self._lost()
            self._beat_at = clock()

    def _watch(self) -> None:
        """Look at the other workers, and rescue the rows of those that are lost."""
        now, missed = clock(), tuple(self._missed)
        # More than that between two looks was sleep, of this machine perhaps: nobody's silence.
        passed = min(now - self._watched_at, self._timeout / BEATS * 1.2)
        self._watched_at = now
        seen = {}
        for other in workers.others(self._db, self.worker_id, self._backend):
            beat, silent = self._seen.get(other.worker_id, (None, 0.0))
            silent = silent + passed if beat == other.beat else 0.0
            seen[other.worker_id] = (other.beat, silent)
            gone = silent >= self._timeout or other.worker_id in missed or is_gone(other)
            if gone and workers.give_up(self._db, other.worker_id, other.beat):
                logger.warning("Worker %s is lost; its tasks are given back", other.worker_id)
        self._seen = seen
        # One that is still there has been given up just now, or has had a beat on its way.
        self._missed.difference_update(set(missed) - seen.keys())
        self._rescue()

    def _tell_first_look(self) -> None:
        if not self.has_looked:
            self.has_looked = True
            self._rescued()

    def _rescue(self) -> None:
        while rows := workers.rescue(self._db, self._backend, self._retain, self._may_retry):
            for row in rows:
                logger.warning("%s %s was given back by %s", row.task_path, row.pk, row.worker_id)
            self._rescued()
            if self._stop.is_set():
                return


def clock() -> float:
    """Return seconds that count on while the machine sleeps, where there is such a clock."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


def whereabouts() -> tuple[str, int, int]:
    """Return where this process is: the place that pids belong to, its pid, and its start."""
    return place(), os.getpid(), _started(os.getpid()) or 0


@cache
def place() -> str:
    """Return what has one table of processes, such as a container; "" if that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()[:60]} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def is_gone(worker: Worker) -> bool:
    """Tell whether the worker's process certainly is no more: only its own place can know."""
    if not worker.place or worker.pid is None or worker.place != place():
        return False
    return _started(worker.pid) != worker.pid_started


def _started(pid: int) -> int | None:
    """Return when that process started, in ticks since boot; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    # A zombie has ended, though nobody has asked how.
    return None if fields[0] in "ZX" else int(fields[19])
