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
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakSet

from django.db import DatabaseError, InterfaceError, connections

from .inotify import Writes
from .store.workers import SESSIONS, session_key

logger = logging.getLogger("dbtasks.wakeup")

CHANNEL = "dbtasks"
# Seconds between two NOTIFYs of one process for one backend. Each takes a lock of the whole
# database; what is saved is made up for by a second look of those who heard the last one, and so
# is the longest delay: with 0.05 one call in six waited up to 40 ms, of those 20 to 200 ms apart.
QUIET = 0.01
# Seconds between two looks at a file's version at least. All the time, as where nothing tells of
# writes, they take 0.9 % of a processor.
FILE_INTERVAL = 0.02
# Seconds from a write to the first look whether it was committed, each further one taking twice
# as long; and without any word of a write.
FIRST_LOOK, SILENCE = 0.0005, 1.0
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


def hint(db: str, backend: str) -> tuple[str, str] | None:
    """Return channel and word of the NOTIFY that is due once rows are committed, if one is.

    After the commit: in a transaction NOTIFY would hold back every other commit that notifies,
    and a full notification queue would make the caller's own fail.
    """
    if connections[db].vendor != "postgresql":
        return None
    is_quiet = time.monotonic() - _notified.get(backend, -QUIET) < QUIET
    return None if is_quiet else (CHANNEL, backend)


def notify(db: str, backend: str, is_told: bool = False) -> None:
    """Tell the runners of the backend that rows were committed. Raises nothing.

    Those of other processes have been told already if `is_told`: the hint went with the rows.
    """
    for sleeper in tuple(_sleepers.get(backend, ())):
        sleeper.wake()
    word = hint(db, backend)
    if word is None:
        return
    _notified[backend] = time.monotonic()
    if is_told:
        return
    try:
        with connections[db].cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, %s)", word)
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
        self._woken, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._work, name="dbtasks-wakeup", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End, waiting at most `timeout` seconds."""
        self._stop.set()
        # Closing one end makes the other readable.
        self._waker.close()
        self._thread.join(timeout)
        self._woken.close()

    def _work(self) -> None:
        raise NotImplementedError

    def _wait_for(self, source: Any, timeout: float) -> bool:
        """Block until the source can be read, the time is over, or stop(); return if it can."""
        waiting = select.poll()
        waiting.register(source, select.POLLIN)
        waiting.register(self._woken, select.POLLIN)
        return source.fileno() in [fd for fd, _ in waiting.poll(timeout * 1000)]


class FileWatcher(Watcher):
    """Sees commits to a SQLite file, by whichever process, without taking a lock.

    inotify tells of writes before they are committed, and not of all: a network's file system is
    silent. So what counts is the version, and without inotify it is asked for all the time.
    """

    def _work(self) -> None:
        try:
            with connections[self._db].cursor() as cursor:
                # Past Django's wrappers, which with DEBUG would remember each look.
                self._file, self._seen = cursor.cursor.connection, None
                self._watch()
        except Exception as error:  # Django's errors, and sqlite3's own
            logger.warning("The file is not watched, runners will poll: %s", error)
        finally:
            self.is_healthy = False
            connections.close_all()

    def _watch(self) -> None:
        # Opens the file, and so the log beside it.
        self._look()
        name = Path(self._file.execute("PRAGMA database_list").fetchone()[2])
        try:
            with closing(Writes()) as writes:
                self._heed(writes, [name, name.with_name(f"{name.name}-wal")])
        except OSError as error:
            logger.info("The file's version is asked for every 20 ms: %s", error)
            self._look_again()

    def _heed(self, writes: Writes, paths: list[Path]) -> None:
        """Look when a file was written to, until stop(). Raise OSError if that is not told."""
        is_told = False
        while not self._stop.is_set():
            # Each time, for the log comes and goes.
            writes.watch(paths)
            pause = FIRST_LOOK
            while not self._look() and is_told and pause < FILE_INTERVAL:
                self._stop.wait(pause)
                pause *= 2
            self.is_healthy = True
            # Not more often than without inotify, where many write.
            self._stop.wait(FILE_INTERVAL)
            is_told = self._wait_for(writes, SILENCE)
            writes.forget()

    def _look_again(self) -> None:
        """Look all the time, until stop()."""
        while not self._stop.wait(FILE_INTERVAL):
            self._look()
            self.is_healthy = True

    def _look(self) -> bool:
        """Ask for the file's version, and pass it on if it is new; return whether it is."""
        version = self._file.execute("PRAGMA data_version").fetchone()
        if version == self._seen:
            return False
        self._seen = version
        self._sleeper.glance()
        return True


class Listener(Watcher):
    """Hears PostgreSQL's NOTIFY on a connection of its own, connecting again when that is lost."""

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
            if not self._wait_for(connection, CHECK_INTERVAL):
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
