"""Hints that there may be work.

Owns how a runner hears of rows that others enqueue: within the process, from PostgreSQL's NOTIFY,
from the version of a SQLite file. Never the truth: polling is, and a hint that is lost only costs
the time until the next poll.
"""

import logging
import random
import secrets
import select
import socket
import threading
import time
from collections import defaultdict
from typing import Any, Protocol
from weakref import WeakSet

from django.db import DatabaseError, InterfaceError, connections

from .store.workers import SESSIONS, session_key

logger = logging.getLogger("dbtasks.wakeup")

CHANNEL = "dbtasks"
# Seconds between two NOTIFYs of one process for one backend. Each takes a lock of the whole
# database; what is saved is made up for by a second look of those who heard the last one.
QUIET = 0.05
# Seconds between two looks at a file's version: a few microseconds each.
FILE_INTERVAL = 0.02
# Seconds of silence after which a listening connection is tried.
CHECK_INTERVAL = 10.0
# Seconds before a lost listener connects again: the first time, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0


class Sleeper(Protocol):
    """What can be woken, from any thread."""

    # Who it is to others; may change.
    worker_id: str

    def wake(self, again: float = 0.0) -> None:
        """Look for work at once, and once more after `again` seconds if that is not 0."""

    def glance(self) -> None:
        """Look whether there is work: something was written, by whomever."""


_sleepers: dict[str, WeakSet[Sleeper]] = defaultdict(WeakSet)
_notified: dict[str, float] = {}


def listen(backend: str, sleeper: Sleeper) -> None:
    """Wake the sleeper whenever this process has enqueued a task of that backend."""
    _sleepers[backend].add(sleeper)


def forget(backend: str, sleeper: Sleeper) -> None:
    """Wake the sleeper no more."""
    _sleepers[backend].discard(sleeper)


def notify(db: str, backend: str) -> None:
    """Tell the runners of the backend that rows were committed. Raises nothing.

    Called after the commit: in a transaction NOTIFY would hold back every other commit that
    notifies, and a full notification queue would make the caller's own fail.
    """
    for sleeper in tuple(_sleepers.get(backend, ())):
        sleeper.wake()
    connection: Any = connections[db]
    now = time.monotonic()
    if connection.vendor != "postgresql" or now - _notified.get(backend, -QUIET) < QUIET:
        return
    _notified[backend] = now
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, backend])
    except (DatabaseError, InterfaceError) as error:
        logger.debug("NOTIFY failed; runners will poll: %s", error)


def watch(db: str, backend: str, sleeper: Sleeper) -> "Watcher | None":
    """Wake the sleeper when other processes write; return what does so, None if nothing can."""
    connection: Any = connections[db]
    if connection.vendor == "sqlite" and not connection.is_in_memory_db():
        return FileWatcher(db, backend, sleeper)
    if connection.vendor == "postgresql" and hasattr(connection.Database, "pq"):
        return Listener(db, backend, sleeper)
    return None


class Watcher:
    """A thread, with a connection of its own, that wakes a sleeper."""

    def __init__(self, db: str, backend: str, sleeper: Sleeper) -> None:
        # Whether polls may be rarer, because hints arrive.
        self.is_healthy = False
        self._db, self._backend, self._sleeper = db, backend, sleeper
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="dbtasks-wakeup", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End, waiting at most `timeout` seconds."""
        self._stop.set()
        self._thread.join(timeout)

    def _work(self) -> None:
        raise NotImplementedError


class FileWatcher(Watcher):
    """Sees commits to a SQLite file, by whichever process, without taking a lock."""

    def _work(self) -> None:
        try:
            with connections[self._db].cursor() as cursor:
                self._watch(cursor)
        except Exception as error:  # Django's errors, and sqlite3's own
            logger.warning("The file is not watched, runners will poll: %s", error)
        finally:
            self.is_healthy = False
            connections.close_all()

    def _watch(self, cursor: Any) -> None:
        # Past Django's wrappers, which with DEBUG would remember each look.
        raw = cursor.cursor.connection
        seen = None
        while not self._stop.wait(FILE_INTERVAL):
            self.is_healthy = True
            version = raw.execute("PRAGMA data_version").fetchone()
            if version != seen:
                seen = version
                self._sleeper.glance()


class Listener(Watcher):
    """Hears PostgreSQL's NOTIFY on a connection of its own, connecting again when that is lost."""

    def __init__(self, db: str, backend: str, sleeper: Sleeper) -> None:
        self._woken, self._waker = socket.socketpair()
        super().__init__(db, backend, sleeper)

    def stop(self, timeout: float) -> None:
        # Closing one end makes the other readable.
        self._waker.close()
        super().stop(timeout)
        self._woken.close()

    def _work(self) -> None:
        wrapper: Any = connections[self._db]
        pause = FIRST_PAUSE
        while not self._stop.is_set():
            try:
                with self._connect(wrapper) as connection:
                    if not self._has_session(connection):
                        return
                    pause = FIRST_PAUSE
                    self._hear(connection)
            except (wrapper.Database.Error, OSError) as error:
                logger.info("Listening failed, trying again in %.1f s: %s", pause, error)
            self.is_healthy = False
            self._stop.wait(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, LONGEST_PAUSE)

    def _connect(self, wrapper: Any) -> Any:
        """Return a connection past any pool: it stays open, idle, outside of transactions."""
        params = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
        params |= wrapper.get_connection_params() | {"autocommit": True}
        return wrapper.Database.connect(**params)

    def _has_session(self, connection: Any) -> bool:
        """Listen, and tell whether NOTIFY will be heard: through some poolers it is not."""
        connection.execute(f"LISTEN {CHANNEL}")
        [(pid,)] = connection.execute("SELECT pg_backend_pid()")
        # A pooler answers for the server, in a name of its own.
        if pid == connection.info.backend_pid or self._hears_others(connection):
            return True
        logger.warning(
            "A pooler stands before %r: NOTIFY cannot be heard, and the runner polls.", self._db
        )
        return False

    def _hears_others(self, connection: Any) -> bool:
        """Tell whether a word from another session arrives."""
        word = secrets.token_hex()
        try:
            with connections[self._db].cursor() as cursor:
                cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, word])
        finally:
            connections.close_all()
        return any(note.payload == word for note in connection.notifies(timeout=2))

    def _hear(self, connection: Any) -> None:
        # What arrives while another statement runs.
        connection.add_notify_handler(lambda note: self._on_note(note.payload))
        # Whatever was enqueued before the LISTEN was not heard.
        self._sleeper.wake()
        self.is_healthy, name = True, ""
        while not self._stop.is_set():
            if name != self._sleeper.worker_id:
                name = self._sleeper.worker_id
                self._show(connection, name)
            heard, _, _ = select.select([connection.fileno(), self._woken], [], [], CHECK_INTERVAL)
            if not heard:
                connection.execute("SELECT 1")
            connection.pgconn.consume_input()
            while note := connection.pgconn.notifies():
                self._on_note(note.extra.decode())

    def _show(self, connection: Any, worker_id: str) -> None:
        """Let others see, by a lock that ends with this session, that the worker is there."""
        # The second key of the lock is signed, and shown as if it were not.
        number = session_key(worker_id)
        number -= 2**32 if number >= 2**31 else 0
        connection.execute("SELECT pg_try_advisory_lock(%s, %s)", [SESSIONS, number])

    def _on_note(self, backend: str) -> None:
        if backend == self._backend:
            self._sleeper.wake(again=QUIET * 1.2)
