"""Threads that learn of rows that other processes enqueue.

Owns the threads that watch a SQLite file, listen to PostgreSQL's NOTIFY, or to the service of the
option `wakeup`. Never claims anything: a watcher wakes a runner, which polls as well.
"""

import logging
import random
import secrets
import selectors
import socket
import time
from abc import abstractmethod
from contextlib import closing
from pathlib import Path
from typing import Any

from django.db import connections

from ..db.connections import discard_all
from ..db.service import Pauses, Service
from ..db.timeouts import BEAT_TIMEOUT, bounded_connect, call_timeout, keepalives
from ..store.workers import SESSIONS, session_key
from ..waker import Waker, waker_of
from .inotify import Writes
from .notify import CHANNEL, NOTIFY_INTERVAL, Wakeable

logger = logging.getLogger("dbtasks.wakeup")

# Seconds between two reads of the file's version, at least.
FILE_INTERVAL = 0.02
# The same without inotify, when nothing was written for QUIET_AFTER seconds: fifty reads a second
# take 0.9 % of a processor.
QUIET_INTERVAL = 0.2
QUIET_AFTER = 10.0
# Seconds between the first two reads after a write, until it is committed. Each pause is twice as
# long as the one before.
FIRST_LOOK = 0.0005
# Seconds between two reads while inotify is silent.
SILENCE = 1.0
# Seconds of silence after which a listening connection is tested.
CHECK_INTERVAL = 10.0
# Seconds that a listener of a service waits at a time, and so the longest that stopping it takes.
HEAR_INTERVAL = 0.5


# It takes no descriptor of its own. Windows has select() only.
Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)


def watchers_of(db: str, backend: str, wakeable: Wakeable) -> list["Watcher"]:
    """Return the watchers, not yet started, that wake it when other processes write, or []."""
    if (waker := waker_of(backend)) is not None:
        return [ServiceListener(waker, db, backend, wakeable)]
    if not can_wake(db, through_pooler=True):
        return []
    kind = FileWatcher if connections[db].vendor == "sqlite" else Listener
    return [kind(db, backend, wakeable)]


def can_wake(db: str, *, through_pooler: bool = False) -> bool:
    """Return whether that database tells runners of commits of other processes.

    The settings of one behind a pooler that shares sessions say so; `through_pooler` ignores that.
    Opens no connection.
    """
    connection: Any = connections[db]
    if connection.vendor == "sqlite":
        return not connection.is_in_memory_db()
    if connection.vendor != "postgresql" or not hasattr(connection.Database, "pq"):
        return False
    return through_pooler or not connection.settings_dict["DISABLE_SERVER_SIDE_CURSORS"]


class Watcher(Service):
    """A thread, with a connection of its own, that wakes a runner.

    Whatever fails, it is tried again, and the runner polls meanwhile.
    """

    def __init__(self, db: str, backend: str, wakeable: Wakeable) -> None:
        super().__init__("wakeup")
        # True while wake-ups arrive, so that polls can be rarer.
        self.is_healthy = False
        self._db, self._backend, self._wakeable = db, backend, wakeable
        # Closing one end makes the other readable, which ends a wait.
        self._woken, self._waker = socket.socketpair()

    def work(self) -> None:
        pauses = Pauses(0.1, 30.0)
        while not self._stopping.is_set():
            began = time.monotonic()
            self.activity.step()
            try:
                if not self.watch():
                    return
            except Exception as error:  # whatever the driver or the system raises
                logger.info("Wake-ups do not arrive, runners poll: %s", error)
            finally:
                self.is_healthy = False
                self.activity.rest()
            if time.monotonic() - began > CHECK_INTERVAL:
                pauses.reset()
            self._stopping.wait(pauses.next() * random.uniform(0.5, 1.0))

    @abstractmethod
    def watch(self) -> bool:
        """Wake the runner until an error or stop(); return False if that is not possible here."""

    def stop(self, timeout: float) -> None:
        self._stopping.set()
        self._waker.close()
        super().stop(timeout)
        self._woken.close()

    def _wait_for(self, source: Any, timeout: float) -> bool:
        """Block until the source is readable, the time is over, or stop(); return whether it is."""
        self.activity.rest()
        with Selector() as waiting:
            waiting.register(source, selectors.EVENT_READ)
            waiting.register(self._woken, selectors.EVENT_READ)
            readable = [key.fileobj for key, _ in waiting.select(timeout)]
        self.activity.step()
        return source in readable


class FileWatcher(Watcher):
    """Notices commits to a SQLite file, by any process, without taking a lock.

    inotify reports writes before they are committed and misses some: on a network file system it
    reports none. So the file's version decides. Without inotify, as on macOS and Windows, it is
    read all the time, less often while nothing is written.
    """

    def watch(self) -> bool:
        try:
            with connections[self._db].cursor() as cursor:
                # Without Django's wrappers, which remember every statement with DEBUG.
                self._file, self._seen = cursor.cursor.connection, None
                self._watch_file()
        finally:
            discard_all()
        return True

    def _watch_file(self) -> None:
        # Opens the file, and with it the log beside it.
        self._look()
        name = Path(self._file.execute("PRAGMA database_list").fetchone()[2])
        try:
            with closing(Writes()) as writes:
                self._follow_writes(writes, [name, name.with_name(f"{name.name}-wal")])
        except OSError as error:
            logger.info("The file's version is read all the time: %s", error)
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
        changed = time.monotonic()
        pause = FILE_INTERVAL
        while not self._stopping.wait(pause):
            self.activity.step()
            if self._look():
                changed = time.monotonic()
            is_quiet = time.monotonic() - changed > QUIET_AFTER
            pause = QUIET_INTERVAL if is_quiet else FILE_INTERVAL
            self.is_healthy = True

    def _look(self) -> bool:
        """Read the file's version, let the runner poll if it is new, and return whether it is."""
        version = self._file.execute("PRAGMA data_version").fetchone()
        if version == self._seen:
            return False
        self._seen = version
        self._wakeable.poll_now()
        return True


class _Direct:
    """A driver's connection, as call_timeout() takes one of Django's."""

    vendor, in_atomic_block = "postgresql", False

    def __init__(self, connection: Any) -> None:
        self.connection = connection


def _execute(connection: Any, sql: str, params: Any = None) -> Any:
    """Return the rows of a statement that must be answered soon."""
    with call_timeout(_Direct(connection), BEAT_TIMEOUT):
        cursor = connection.execute(sql, params)
        return cursor.fetchall() if cursor.description else []


class Listener(Watcher):
    """Receives PostgreSQL's NOTIFY on its own connection, and reconnects when that is lost."""

    def watch(self) -> bool:
        with self._connect(connections[self._db]) as connection:
            if not self._has_session(connection):
                return False
            self._hear(connection)
        return True

    def _connect(self, wrapper: Any) -> Any:
        """Return a connection that bypasses pools: it stays open, idle, outside of transactions."""
        params = keepalives(BEAT_TIMEOUT)
        params |= wrapper.get_connection_params() | {"autocommit": True}
        return wrapper.Database.connect(**params)

    def _has_session(self, connection: Any) -> bool:
        """Listen, and return whether NOTIFY will arrive: through some poolers it does not."""
        _execute(connection, f"LISTEN {CHANNEL}")
        [(pid,)] = _execute(connection, "SELECT pg_backend_pid()")
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
            with (
                bounded_connect(self._db),
                call_timeout(connections[self._db], BEAT_TIMEOUT),
                connections[self._db].cursor() as cursor,
            ):
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
                _execute(connection, "SELECT 1")
            connection.pgconn.consume_input()
            while note := connection.pgconn.notifies():
                self._on_note(note.extra.decode())

    def _show(self, connection: Any, worker_id: str) -> None:
        """Show others, by a lock that ends with this session, that the worker is alive."""
        # The second key of the lock is signed here, and unsigned in pg_locks.
        number = session_key(worker_id)
        number -= 2**32 if number >= 2**31 else 0
        _execute(connection, "SELECT pg_try_advisory_lock(%s, %s)", [SESSIONS, number])

    def _on_note(self, backend: str) -> None:
        if backend == self._backend:
            self._wakeable.wake(recheck_after=NOTIFY_INTERVAL * 1.2)


class ServiceListener(Watcher):
    """Listens to the service of the option `wakeup`.

    It is never healthy, so polls are no rarer: a process that cannot reach the service writes rows
    all the same.
    """

    def __init__(self, waker: Waker, db: str, backend: str, wakeable: Wakeable) -> None:
        super().__init__(db, backend, wakeable)
        self._service = waker

    def watch(self) -> bool:
        with self._service.listen(self._backend) as hears:
            # Nobody heard of rows that were enqueued before.
            self._wakeable.wake()
            while not self._stopping.is_set():
                self.activity.rest()
                is_woken = hears(HEAR_INTERVAL)
                self.activity.step()
                if is_woken:
                    self._wakeable.wake(recheck_after=NOTIFY_INTERVAL * 1.2)
        return True
