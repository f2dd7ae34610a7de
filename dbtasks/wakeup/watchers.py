"""Threads that learn of rows that other processes enqueue.

Owns the thread that watches a SQLite file, and the one that listens to PostgreSQL's NOTIFY. Never
claims anything: a watcher wakes a runner, which polls as well.
"""

import logging
import random
import secrets
import select
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

from django.db import connections

from ..db.service import Pauses, Service
from ..store.workers import SESSIONS, session_key
from .inotify import Writes
from .notify import CHANNEL, NOTIFY_INTERVAL, Wakeable

logger = logging.getLogger("dbtasks.wakeup")

# Seconds between two reads of the file's version. Without inotify the watcher reads it all the time
# at this interval, which takes 0.9 % of a processor.
FILE_INTERVAL = 0.02
# Seconds between the first two reads after a write, until it is committed. Each pause is twice as
# long as the one before.
FIRST_LOOK = 0.0005
# Seconds between two reads while inotify is silent.
SILENCE = 1.0
# Seconds of silence after which a listening connection is tested.
CHECK_INTERVAL = 10.0


def watchers_of(db: str, backend: str, wakeable: Wakeable) -> list["Watcher"]:
    """Return the watchers, not yet started, that wake it when other processes write, or []."""
    connection: Any = connections[db]
    if connection.vendor == "sqlite" and not connection.is_in_memory_db():
        return [FileWatcher(db, backend, wakeable)]
    if connection.vendor == "postgresql" and hasattr(connection.Database, "pq"):
        return [Listener(db, backend, wakeable)]
    return []


class Watcher(Service):
    """A thread, with a connection of its own, that wakes a runner."""

    def __init__(self, db: str, backend: str, wakeable: Wakeable) -> None:
        super().__init__("wakeup")
        # True while wake-ups arrive, so that polls can be rarer.
        self.is_healthy = False
        self._db, self._backend, self._wakeable = db, backend, wakeable
        # Closing one end makes the other readable, which ends a wait.
        self._woken, self._waker = socket.socketpair()

    def stop(self, timeout: float) -> None:
        self._stopping.set()
        self._waker.close()
        super().stop(timeout)
        self._woken.close()

    def _wait_for(self, source: Any, timeout: float) -> bool:
        """Block until the source is readable, the time is over, or stop(); return whether it is."""
        waiting = select.poll()
        waiting.register(source, select.POLLIN)
        waiting.register(self._woken, select.POLLIN)
        return source.fileno() in [fd for fd, _ in waiting.poll(timeout * 1000)]


class FileWatcher(Watcher):
    """Notices commits to a SQLite file, by any process, without taking a lock.

    inotify reports writes before they are committed and misses some: on a network file system it
    reports none. So the file's version decides. Without inotify it is read all the time.
    """

    def work(self) -> None:
        try:
            with connections[self._db].cursor() as cursor:
                # Without Django's wrappers, which remember every statement with DEBUG.
                self._file, self._seen = cursor.cursor.connection, None
                self._watch()
        except Exception as error:  # Django's errors, and sqlite3's own
            logger.warning("The file is not watched, runners will poll: %s", error)
        finally:
            self.is_healthy = False

    def _watch(self) -> None:
        # Opens the file, and with it the log beside it.
        self._look()
        name = Path(self._file.execute("PRAGMA database_list").fetchone()[2])
        try:
            with closing(Writes()) as writes:
                self._follow_writes(writes, [name, name.with_name(f"{name.name}-wal")])
        except OSError as error:
            logger.info("The file's version is asked for every 20 ms: %s", error)
            self._look_again()

    def _follow_writes(self, writes: Writes, paths: list[Path]) -> None:
        """Read the version after each write, until stop(). Raise OSError if inotify fails."""
        is_written = False
        while not self._stopping.is_set():
            # Each time, because the log is deleted and created again.
            writes.watch(paths)
            pause = FIRST_LOOK
            while not self._look() and is_written and pause < FILE_INTERVAL:
                self._stopping.wait(pause)
                pause *= 2
            self.is_healthy = True
            # With many writes, no more often than without inotify.
            self._stopping.wait(FILE_INTERVAL)
            is_written = self._wait_for(writes, SILENCE)
            writes.forget()

    def _look_again(self) -> None:
        """Read the version all the time, until stop()."""
        while not self._stopping.wait(FILE_INTERVAL):
            self._look()
            self.is_healthy = True

    def _look(self) -> bool:
        """Read the file's version, let the runner poll if it is new, and return whether it is."""
        version = self._file.execute("PRAGMA data_version").fetchone()
        if version == self._seen:
            return False
        self._seen = version
        self._wakeable.poll_now()
        return True


class Listener(Watcher):
    """Receives PostgreSQL's NOTIFY on its own connection, and reconnects when that is lost."""

    def work(self) -> None:
        wrapper: Any = connections[self._db]
        pauses = Pauses(0.1, 30.0)
        while not self._stopping.is_set():
            try:
                with self._connect(wrapper) as connection:
                    if not self._has_session(connection):
                        return
                    pauses = Pauses(0.1, 30.0)
                    self._hear(connection)
            except (wrapper.Database.Error, OSError) as error:
                logger.info("Listening failed, and is tried again soon: %s", error)
            self.is_healthy = False
            self._stopping.wait(pauses.next() * random.uniform(0.5, 1.0))

    def _connect(self, wrapper: Any) -> Any:
        """Return a connection that bypasses pools: it stays open, idle, outside of transactions."""
        params = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
        params |= wrapper.get_connection_params() | {"autocommit": True}
        return wrapper.Database.connect(**params)

    def _has_session(self, connection: Any) -> bool:
        """Listen, and return whether NOTIFY will arrive: through some poolers it does not."""
        connection.execute(f"LISTEN {CHANNEL}")
        [(pid,)] = connection.execute("SELECT pg_backend_pid()")
        # A pooler reports a process id of its own.
        if pid == connection.info.backend_pid or self._hears_others(connection):
            return True
        logger.warning(
            "A pooler stands before %r: NOTIFY does not arrive, and the runner polls.", self._db
        )
        return False

    def _hears_others(self, connection: Any) -> bool:
        """Return whether a NOTIFY from another session arrives, within two seconds."""
        word = secrets.token_hex()
        try:
            with connections[self._db].cursor() as cursor:
                cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, word])
        finally:
            connections.close_all()
        return any(note.payload == word for note in connection.notifies(timeout=2))

    def _hear(self, connection: Any) -> None:
        # For notifications that arrive while another statement runs.
        connection.add_notify_handler(lambda note: self._on_note(note.payload))
        # Rows enqueued before the LISTEN were not notified.
        self._wakeable.wake()
        self.is_healthy, name = True, ""
        while not self._stopping.is_set():
            if name != self._wakeable.worker_id:
                name = self._wakeable.worker_id
                self._show(connection, name)
            if not self._wait_for(connection, CHECK_INTERVAL):
                connection.execute("SELECT 1")
            connection.pgconn.consume_input()
            while note := connection.pgconn.notifies():
                self._on_note(note.extra.decode())

    def _show(self, connection: Any, worker_id: str) -> None:
        """Show others, by a lock that ends with this session, that the worker is alive."""
        # The second key of the lock is signed here, and unsigned in pg_locks.
        number = session_key(worker_id)
        number -= 2**32 if number >= 2**31 else 0
        connection.execute("SELECT pg_try_advisory_lock(%s, %s)", [SESSIONS, number])

    def _on_note(self, backend: str) -> None:
        if backend == self._backend:
            self._wakeable.wake(recheck_after=NOTIFY_INTERVAL * 1.2)
