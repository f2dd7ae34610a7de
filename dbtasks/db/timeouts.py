"""Time limits of calls to the database.

Owns how long the database, or the network, may leave a thread of ours without an answer: a server's
own timeouts do not help when its answer never arrives. Never touches connections of task code, nor
SQLite, which only waits for its file.
"""

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

from django.db import connections

logger = logging.getLogger("dbtasks.runner")

# Seconds that a call may take.
CALL_TIMEOUT = 10.0
# Seconds that a beat may take.
BEAT_TIMEOUT = 3.0
# Seconds that connecting may take.
CONNECT_TIMEOUT = 3
# After calls that failed in a row, the next one may take up to so many times as long: the database
# may be slow.
MAX_FACTOR = 6
# Seconds between two looks at the calls under way.
WATCH_INTERVAL = 0.25
# Seconds that a server has to cancel a statement.
CANCEL_TIMEOUT = 1.0
# By default MySQL keeps a statement whose caller has gone for 50 seconds.
MYSQL_INIT = "SET SESSION innodb_lock_wait_timeout=5"

# By thread: when its call must have ended, on the monotonic clock, and on which connection it is.
_calls: dict[int, "call_timeout"] = {}
_busy = threading.Event()
_lock = threading.Lock()
_watcher: threading.Thread | None = None


class call_timeout:
    """A context manager that limits what this thread asks of the connection, in seconds.

    A statement that takes longer is cancelled; without an answer to that, the connection is cut.
    Either raises OperationalError or InterfaceError in this thread. Connecting, where it is needed
    first, may take as long again. Does not nest.
    """

    __slots__ = ("connection", "end", "seconds", "until")

    def __init__(self, connection: Any, seconds: float = CALL_TIMEOUT) -> None:
        self.connection, self.seconds = connection, seconds

    def __enter__(self) -> None:
        if self.connection.vendor == "sqlite":
            return
        if self.connection.connection is None:
            # The driver limits the connecting; Django then has words with the server, without end.
            self.end = None
            self._watch()
            try:
                self.connection.ensure_connection()
            finally:
                self._leave()
        # Asked for here, because MySQL's driver tells it to no other thread.
        self.end = _end_of(self.connection.connection)
        self._watch()

    def __exit__(
        self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _watch(self) -> None:
        self.until = time.monotonic() + self.seconds
        _calls[threading.get_ident()] = self
        if not _busy.is_set():
            _start()
            _busy.set()

    def _leave(self) -> None:
        _calls.pop(threading.get_ident(), None)


@contextmanager
def bounded_connect(db: str, longest: float = CALL_TIMEOUT * MAX_FACTOR) -> Iterator[None]:
    """Let connecting in this thread take a few seconds at most, unless the settings say more.

    `longest` is what any call in it may take, in seconds.
    """
    connection: Any = connections[db]
    settings = connection.settings_dict
    ours: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT}
    if connection.vendor == "mysql":
        ours["init_command"] = MYSQL_INIT
        # Its driver speaks to the server before it shows a connection that could be cut.
        ours["read_timeout"] = math.ceil(longest)
    if connection.vendor in ("postgresql", "mysql"):
        connection.settings_dict = settings | {"OPTIONS": ours | settings["OPTIONS"]}
    try:
        yield
    finally:
        connection.settings_dict = settings


def _start() -> None:
    """See to it that somebody watches, in this process too if it was forked."""
    global _watcher
    with _lock:
        if _watcher is None or not _watcher.is_alive():
            _watcher = threading.Thread(target=_watch, name="dbtasks-timeouts", daemon=True)
            _watcher.start()


def _watch() -> None:
    """End calls that take too long. The thread's whole life; it sleeps while there are none."""
    while _busy.wait():
        _busy.clear()
        while _calls:
            time.sleep(WATCH_INTERVAL)
            now = time.monotonic()
            for ident, call in tuple(_calls.items()):
                if now > call.until:
                    _end(ident, call)


def _end_of(raw: Any) -> int | None:
    """Return the file number of the connection's socket, None if it is closed already."""
    with suppress(Exception):  # whatever the driver raises; the call will fail by itself
        return int(raw.fileno())
    return None


def _end(ident: int, call: call_timeout) -> None:
    raw = call.connection.connection
    end = _end_of(raw) if call.end is None else call.end
    logger.warning("The database has not answered in time; the call is cancelled")
    if hasattr(raw, "cancel_safe"):
        # Where a lock is waited for, this leaves nothing behind on PostgreSQL. In a thread of its
        # own, because an old libpq knows of no timeout.
        canceller = threading.Thread(target=_cancel, args=(raw,), daemon=True)
        canceller.start()
        canceller.join(CANCEL_TIMEOUT)
    if _calls.get(ident) is call:
        _calls.pop(ident, None)
        _cut(end)


def _cancel(raw: Any) -> None:
    with suppress(Exception):  # whatever the driver raises; the connection will be cut
        raw.cancel_safe(timeout=CANCEL_TIMEOUT / 2)
        # The thread hears of it by its own connection.
        time.sleep(CANCEL_TIMEOUT / 10)


def _cut(end: int | None) -> None:
    """Shut the connection's socket: whoever reads from it, in whichever thread, is told."""
    if end is not None:
        with suppress(OSError), socket.socket(fileno=os.dup(end)) as shut:
            shut.shutdown(socket.SHUT_RDWR)
