"""Time limits of calls to the database.

Owns how long a thread of dbtasks waits for an answer: a server's own timeouts do not help when its
answer never arrives. Never limits the connections of task code, or SQLite, which only waits for its
file.
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
# After calls that failed in a row, a call may take up to this many times as long, because the
# database may be slow.
MAX_FACTOR = 6
# Seconds between two checks of the running calls.
WATCH_INTERVAL = 0.25
# Seconds that a server has to cancel a statement.
CANCEL_TIMEOUT = 1.0
# By default MySQL lets a statement wait 50 seconds for a lock after its caller has gone.
MYSQL_INIT = "SET SESSION innodb_lock_wait_timeout=5"

# The running call of each thread, by thread id.
_calls: dict[int, "call_timeout"] = {}
_busy = threading.Event()
_lock = threading.Lock()
_watcher: threading.Thread | None = None


class call_timeout:
    """A context manager that ends the block's calls on the connection after `seconds`.

    A statement that still runs is cancelled; if that is not answered, the connection is cut. Both
    raise OperationalError or InterfaceError in this thread. If the thread has to connect first,
    that may take as long again. Does not nest.
    """

    __slots__ = ("connection", "end", "seconds", "until")

    def __init__(self, connection: Any, seconds: float = CALL_TIMEOUT) -> None:
        self.connection, self.seconds = connection, seconds

    def __enter__(self) -> None:
        if self.connection.vendor == "sqlite":
            return
        if self.connection.connection is None:
            # The driver limits connecting. Django then runs statements of its own, without a limit.
            self.end = None
            self._watch()
            try:
                self.connection.ensure_connection()
            finally:
                self._leave()
        # Read here, because MySQL's driver shows it to no other thread.
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
    """Limit connecting in this thread to a few seconds, unless the settings have a limit.

    `longest` is the longest time that a call in the block may take, in seconds.
    """
    connection: Any = connections[db]
    settings = connection.settings_dict
    ours: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT}
    if connection.vendor == "mysql":
        ours["init_command"] = MYSQL_INIT
        # Its driver uses the network before it shows a connection that could be cut.
        ours["read_timeout"] = math.ceil(longest)
    if connection.vendor in ("postgresql", "mysql"):
        connection.settings_dict = settings | {"OPTIONS": ours | settings["OPTIONS"]}
    try:
        yield
    finally:
        connection.settings_dict = settings


def _start() -> None:
    """Start the watcher unless it runs. A forked process needs one of its own."""
    global _watcher
    with _lock:
        if _watcher is None or not _watcher.is_alive():
            _watcher = threading.Thread(target=_watch, name="dbtasks-timeouts", daemon=True)
            _watcher.start()


def _watch() -> None:
    """End calls that take too long. Runs in the watcher, which sleeps while there are none."""
    while _busy.wait():
        _busy.clear()
        while _calls:
            time.sleep(WATCH_INTERVAL)
            now = time.monotonic()
            for ident, call in tuple(_calls.items()):
                if now > call.until:
                    _end(ident, call)


def _end_of(raw: Any) -> int | None:
    """Return the descriptor of the connection's socket; None if it is closed already."""
    with suppress(Exception):  # whatever the driver raises; the call will fail by itself
        return int(raw.fileno())
    return None


def _end(ident: int, call: call_timeout) -> None:
    raw = call.connection.connection
    end = _end_of(raw) if call.end is None else call.end
    logger.warning("The database has not answered in time; the call is cancelled")
    if hasattr(raw, "cancel_safe"):
        # On PostgreSQL this ends a wait for a lock and leaves nothing behind. It needs a thread of
        # its own, because an old libpq has no timeout for it.
        canceller = threading.Thread(target=_cancel, args=(raw,), daemon=True)
        canceller.start()
        canceller.join(CANCEL_TIMEOUT)
    if _calls.get(ident) is call:
        _calls.pop(ident, None)
        _cut(end)


def _cancel(raw: Any) -> None:
    with suppress(Exception):  # whatever the driver raises; the connection will be cut
        raw.cancel_safe(timeout=CANCEL_TIMEOUT / 2)
        # The thread receives the error on its own connection.
        time.sleep(CANCEL_TIMEOUT / 10)


def _cut(end: int | None) -> None:
    """Shut down the connection's socket, which ends a read in any thread."""
    if end is not None:
        with suppress(OSError), socket.socket(fileno=os.dup(end)) as shut:
            shut.shutdown(socket.SHUT_RDWR)
