"""Calls to the database that end.

Owns how long the database, or the network before it, may leave a thread of ours without an answer:
a server's own timeouts say nothing when its words do not arrive. Never concerns connections of
task code, and never SQLite, which waits for nobody but its file.
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

# Seconds that a call may take, a beat may take, and connecting may.
DEADLINE, BEAT_DEADLINE, CONNECT_TIMEOUT = 10.0, 3.0, 3
# Calls that failed in a row are given so many times the time at most: the database may be slow.
MOST = 6
# Seconds between two looks at the calls under way, and those that a server has to cancel one.
INTERVAL, CANCEL = 0.25, 1.0
# MySQL's own default keeps a statement whose caller has gone for 50 seconds.
MYSQL_INIT = "SET SESSION innodb_lock_wait_timeout=5"

# By thread: when its call must have ended, on the monotonic clock, and on which connection it is.
_calls: dict[int, "Within"] = {}
_busy = threading.Event()
_lock = threading.Lock()
_watcher: threading.Thread | None = None


class Within:
    """Ends what this thread asks of the connection if it takes longer than so many seconds.

    The statement is cancelled; is there no answer even to that, the connection is cut. Either is
    an OperationalError or InterfaceError in this thread. Connecting, where it is needed first, has
    as long again. Does not nest.
    """

    __slots__ = ("connection", "end", "seconds", "until")

    def __init__(self, connection: Any, seconds: float = DEADLINE) -> None:
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
def prompt(db: str, longest: float = DEADLINE * MOST) -> Iterator[None]:
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
            _watcher = threading.Thread(target=_watch, name="dbtasks-patience", daemon=True)
            _watcher.start()


def _watch() -> None:
    """End calls that take too long. The thread's whole life; it sleeps while there are none."""
    while _busy.wait():
        _busy.clear()
        while _calls:
            time.sleep(INTERVAL)
            now = time.monotonic()
            for ident, call in tuple(_calls.items()):
                if now > call.until:
                    _end(ident, call)


def _end_of(raw: Any) -> int | None:
    """Return the file number of the connection's socket, None if it is closed already."""
    with suppress(Exception):  # whatever the driver raises; the call will fail by itself
        return int(raw.fileno())
    return None


def _end(ident: int, call: Within) -> None:
    raw = call.connection.connection
    end = _end_of(raw) if call.end is None else call.end
    logger.warning("The database has not answered in time; the call is given up")
    if hasattr(raw, "cancel_safe"):
        # Where a lock is waited for, this leaves nothing behind on PostgreSQL. In a thread of its
        # own, because an old libpq knows of no timeout.
        canceller = threading.Thread(target=_cancel, args=(raw,), daemon=True)
        canceller.start()
        canceller.join(CANCEL)
    if _calls.get(ident) is call:
        _calls.pop(ident, None)
        _cut(end)


def _cancel(raw: Any) -> None:
    with suppress(Exception):  # whatever the driver raises; the connection will be cut
        raw.cancel_safe(timeout=CANCEL / 2)
        # The thread hears of it by its own connection.
        time.sleep(CANCEL / 10)


def _cut(end: int | None) -> None:
    """Shut the connection's socket: whoever reads from it, in whichever thread, is told."""
    if end is not None:
        with suppress(OSError), socket.socket(fileno=os.dup(end)) as shut:
            shut.shutdown(socket.SHUT_RDWR)
