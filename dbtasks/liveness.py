"""Who is alive.

Owns the beat of whoever runs tasks, and a runner's judgement of others by theirs. Never compares
clocks of two machines: a worker is lost when its beat has stood still for as long as this process
has counted.
"""

import logging
import os
import platform
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from django.db import Error, connections

from .models import ScheduledTask, Worker
from .patience import BEAT_DEADLINE, DEADLINE, Within, prompt
from .store import workers
from .store.workers import session_key

logger = logging.getLogger("dbtasks.runner")

# Beats in the time after which a silent worker is given up: three may be lost.
BEATS = 4
# Seconds after which it looks again at a worker that is missed and still in the books.
SOON = 0.5
# Seconds between two glances at the processes of this machine, and after a beat that failed.
GLANCE = 1.0
# Part of the time after which a silent worker is given up whose session with PostgreSQL is gone:
# more than a beat takes, because a session may break while the worker lives.
HINTED = 0.35
# Beats between two looks at what is RUNNING in the worker's own name.
RECONCILED = 3
# Part of that time after which a runner that cannot beat starts nothing more.
TRUST = 0.75


class Heart:
    """Beats for one worker, watches the others, and gives back what lost ones held.

    A thread and a connection of its own: neither a busy pool nor a long purge stops it. `lost`
    is called, in this thread, when others have given this worker up, `look` when there may be rows
    to claim: some were given back, or this worker may claim again. `held` returns the claims, as
    key and fence, that this process knows of, or None while one is on its way.
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
        look: Callable[[], None],
        held: Callable[[], set[tuple[Any, int]] | None],
    ) -> None:
        self._db, self._timeout = db, timeout
        self._retain, self._may_retry = retain, may_retry
        self.worker_id, self._backend = worker_id, backend
        self._lost, self._look, self._held = lost, look, held
        # Claims in this worker's name that it did not know of at the last look; beats until then.
        self._strays: set[tuple[Any, int]] = set()
        self._beats = 0
        self._glance = min(GLANCE, timeout / BEATS / 2)
        self._stop, self._bell = threading.Event(), threading.Event()
        # Workers whose process is known to have ended.
        self._missed: set[str] = set()
        # Whether what was lost before this runner began has been given back.
        self.has_looked = False
        # Worker id to its last beat, and the seconds it has stood still since.
        self._seen: dict[str, tuple[int, float]] = {}
        # Those of this machine, as they were then.
        self._neighbours: list[Worker] = []
        # Worker id to the start of the server under which it was seen to have a session, and
        # whether the session of one that is silent is gone.
        self._sessions: dict[str, Any] = {}
        self._is_alarmed = False
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
        with prompt(self._db, DEADLINE):
            self._beat_on()

    def _beat_on(self) -> None:
        try:
            # At once: a process that was killed and started again finds its own rows.
            next_beat = 0.0
            while not self._stop.is_set():
                try:
                    if clock() >= next_beat:
                        next_beat = clock() + self._timeout / BEATS * random.uniform(0.8, 1.0)
                        self._beat()
                        self._watch()
                        self._reconcile()
                        self._tell_first_look()
                    elif self._missed or self._is_alarmed or any(map(is_gone, self._neighbours)):
                        self._watch()
                except Exception as error:  # whatever the database raises; the beat goes on
                    logger.warning("The heart missed a beat: %s", error)
                    connections[self._db].close()
                    # The database may be back long before the next beat would be due.
                    next_beat = clock() + self._glance
                wait = min(SOON if self._missed else self._glance, next_beat - clock())
                self._bell.wait(max(0.0, wait))
                self._bell.clear()
        finally:
            connections.close_all()

    def _beat(self) -> None:
        began, was_trusted = clock(), self.is_trusted
        with Within(connections[self._db], BEAT_DEADLINE):
            is_known = workers.beat(self._db, self.worker_id)
        if is_known:
            self._beat_at = began
        else:
            logger.warning("Worker %s was given up by others; it joins anew", self.worker_id)
            self._lost()
            self._beat_at = clock()
        if not (was_trusted and is_known):
            # Since it was given up, or might have been, it has claimed nothing.
            self._look()

    def _watch(self) -> None:
        """Look at the other workers, and rescue the rows of those that are lost."""
        now, missed = clock(), tuple(self._missed)
        # More than that between two looks was sleep, of this machine perhaps: nobody's silence.
        passed = min(now - self._watched_at, self._timeout / BEATS * 1.2)
        self._watched_at = now
        seen = {}
        with Within(connections[self._db], BEAT_DEADLINE):
            known = workers.others(self._db, self.worker_id, self._backend)
            others = [other for other in known if other.state == Worker.State.LIVE]
            gone = self._look_at_sessions(others)
        self._neighbours = [other for other in others if other.place == place()]
        self._is_alarmed = bool(gone)
        is_any_lost = len(known) > len(others)
        for other in others:
            beat, silent = self._seen.get(other.worker_id, (None, 0.0))
            silent = silent + passed if beat == other.beat else 0.0
            seen[other.worker_id] = (other.beat, silent)
            patience = HINTED if other.worker_id in gone else 1
            is_silent = silent >= self._timeout * patience
            if is_silent or other.worker_id in missed or is_gone(other):
                is_any_lost |= self._give_up(other)
        self._seen = seen
        # One that is still there has been given up just now, or has had a beat on its way.
        self._missed.difference_update(set(missed) - seen.keys())
        if is_any_lost:
            self._rescue()

    def _tell_first_look(self) -> None:
        if not self.has_looked:
            self.has_looked = True
            self._look()

    def _look_at_sessions(self, others: list[Worker]) -> set[str]:
        """Return which of them had a session of PostgreSQL's, and have none now.

        A restart of the server ends the sessions of all who live: only what was seen since counts.
        """
        found = workers.sessions(self._db) if others else None
        if found is None:
            return set()
        started, keys = found
        names = {other.worker_id for other in others}
        there = {name for name in names if session_key(name) in keys}
        before = {name for name, at in self._sessions.items() if at == started}
        self._sessions = dict.fromkeys((before | there) & names, started)
        return (before & names) - there

    def _reconcile(self) -> None:
        """Every third beat, give back rows that are RUNNING in this worker's name unknown to it.

        Such as those of a claim whose reply was lost. Twice in a row they must be seen.
        """
        self._beats += 1
        if self._beats % RECONCILED:
            return
        # In this order: what is claimed later than the look is not in it, and what was claimed
        # before is held, settled, or still on its way.
        with Within(connections[self._db], BEAT_DEADLINE):
            running = workers.running(self._db, self.worker_id)
        held = self._held()
        if held is None:
            return
        strays = running - held
        if found := self._strays & strays:
            with Within(connections[self._db]):
                count = workers.disown(self._db, found, self._retain)
            logger.warning("%d claims never arrived; they are given back", count)
            self._look()
        self._strays = strays - found

    def _give_up(self, other: Worker) -> bool:
        """Declare that worker lost unless it has had a beat since; return whether it is."""
        with Within(connections[self._db]):
            is_lost = workers.give_up(self._db, other.worker_id, other.beat)
        if is_lost:
            logger.warning("Worker %s is lost; its tasks are given back", other.worker_id)
        return is_lost

    def _rescue(self) -> None:
        while rows := self._rescue_some():
            for row in rows:
                logger.warning("%s %s was given back by %s", row.task_path, row.pk, row.worker_id)
            self._look()
            if self._stop.is_set():
                return

    def _rescue_some(self) -> list[ScheduledTask]:
        with Within(connections[self._db]):
            return workers.rescue(self._db, self._backend, self._retain, self._may_retry)


@contextmanager
def alive(db: str, worker_id: str, backend: str, timeout: float) -> Iterator[bool]:
    """Be known as a live worker while something runs in this thread; yield whether that is so.

    It is not inside a transaction, nor in a database in memory: what is written there would not
    outlive the process. The beats come from a thread and a connection of their own, which short
    work never needs.
    """
    connection: Any = connections[db]
    in_memory = connection.vendor == "sqlite" and connection.is_in_memory_db()
    if in_memory or connection.in_atomic_block or not connection.get_autocommit():
        yield False
        return
    workers.register(db, worker_id, backend, *whereabouts())
    stop = threading.Event()
    beating = threading.Thread(
        target=_beat_until, args=(stop, db, worker_id, timeout / BEATS), daemon=True
    )
    beating.start()
    try:
        yield True
    finally:
        stop.set()
        beating.join(GLANCE)
        # Should that fail, the worker is missed, and given up, like one that was killed.
        with suppress(Error):
            workers.leave(db, worker_id)


def _beat_until(stop: threading.Event, db: str, worker_id: str, interval: float) -> None:
    """Beat until told to stop, or given up. A thread's whole life."""
    try:
        wait = interval
        while not stop.wait(wait):
            wait = interval
            try:
                with prompt(db, DEADLINE), Within(connections[db], BEAT_DEADLINE):
                    is_known = workers.beat(db, worker_id)
                if not is_known:
                    logger.warning("Worker %s was given up; it claims nothing more", worker_id)
                    return
            except Exception as error:  # whatever the database raises; the beat goes on
                logger.warning("A beat of %s was missed: %s", worker_id, error)
                connections[db].close()
                wait = min(GLANCE, interval)
    finally:
        connections.close_all()


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
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        # Another user's, whose start this one may not be allowed to see.
        pass
    started = _started(worker.pid)
    return started is not None and started != worker.pid_started


def _started(pid: int) -> int | None:
    """Return when that process started, in ticks since boot, 0 if it ended; None if unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    # A zombie has ended, though nobody has asked how.
    return 0 if fields[0] in "ZX" else int(fields[19])
