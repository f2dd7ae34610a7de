"""Time limits of calls to the database.

Owns how long a thread of dbtasks waits for an answer: a server's own timeouts do not help when its
answer never arrives. Never limits the connections of task code, or SQLite, which only waits for its
file.
"""

import logging
import math
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
# A connection that was idle for longer than this, in seconds, is tested before its next use: a
# network may have forgotten it, and would swallow the statement.
PROBE_AFTER = 30.0
# Seconds that the test may take.
PROBE_TIMEOUT = 1.0
# Seconds of silence after which the system asks the other end whether it is there, seconds between
# two questions, and how many may stay without an answer.
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 30, 10, 3
# Seconds between two checks of the running calls.
WATCH_INTERVAL = 0.25
# Seconds that a thread may wait for a SQLite file before others think that it stands still.
FILE_TIMEOUT = 60.0
# Seconds that a server has to cancel a statement.
CANCEL_TIMEOUT = 1.0
# By default MySQL lets a statement wait 50 seconds for a lock after its caller has gone.
MYSQL_LOCK_TIMEOUT = "SET SESSION innodb_lock_wait_timeout=5"

# The attribute of a connection with the time of its last use, on the monotonic clock.
USED = "_dbtasks_used_at"
# The attribute of a connection with the options of which the read timeout is set for each connect.
_OPTIONS = "_dbtasks_options"

# The running call of each thread, by thread id.
_calls: dict[int, "call_timeout"] = {}
_busy = threading.Event()
_lock = threading.Lock()
_watcher: threading.Thread | None = None


class call_timeout:
    """A context manager that ends the block's calls on the connection after `seconds`.

    A statement that still runs is cancelled; if that is not answered, the connection is cut. Both
    raise OperationalError or InterfaceError in this thread. If the thread has to connect first,
    that may take as long again. A connection that was idle for long is tested, and replaced if it
    does not answer soon. Does not nest.
    """

    __slots__ = ("connection", "end", "extensions", "seconds", "until")

    def __init__(self, connection: Any, seconds: float = CALL_TIMEOUT) -> None:
        self.connection, self.seconds = connection, seconds

    def __enter__(self) -> None:
        if self.connection.vendor == "sqlite":
            # Noted, so that others see that this thread waits for the file; nothing cuts that.
            self.end, self.until = None, time.monotonic() + FILE_TIMEOUT
            _calls[threading.get_ident()] = self
            return
        if self.connection.connection is not None and self._is_stale():
            self._probe()
        if self.connection.connection is None:
            self._connect()
        # Read here, because MySQL's driver shows it to no other thread.
        self.end = _end_of(self.connection.connection)
        self._watch(self.seconds)

    def _connect(self) -> None:
        # The driver limits connecting. Django then runs statements of its own, without a limit.
        self.end = None
        if options := getattr(self.connection, _OPTIONS, None):
            # Not longer than the call needs: connecting may wait as long for each answer.
            options["read_timeout"] = math.ceil(max(self.seconds, CALL_TIMEOUT))
        self._watch(self.seconds)
        try:
            self.connection.ensure_connection()
            if self.connection.vendor == "mysql":
                _keep_alive(_end_of(self.connection.connection))
                _lift_read_timeout(self.connection.connection)
                with self.connection.cursor() as cursor:
                    # Not as init_command, which a project may set itself.
                    cursor.execute(MYSQL_LOCK_TIMEOUT)
        finally:
            self._leave()

    def _is_stale(self) -> bool:
        """Return whether the connection was idle for long, and is in no transaction."""
        used = getattr(self.connection, USED, None)
        is_idle = used is not None and time.monotonic() - used > PROBE_AFTER
        return is_idle and not self.connection.in_atomic_block

    def _probe(self) -> None:
        """Close the connection unless it answers."""
        self.end = _end_of(self.connection.connection)
        self._watch(PROBE_TIMEOUT)
        try:
            with self.connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        except Exception as error:  # whatever the driver raises; another connection is made
            logger.info("An idle connection was lost: %s", error)
            with suppress(Exception):
                self.connection.close()
        finally:
            self._leave()

    def __exit__(
        self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None
    ) -> None:
        self._leave()
        setattr(self.connection, USED, time.monotonic())

    def _watch(self, seconds: float) -> None:
        self.until, self.extensions = time.monotonic() + seconds, 0
        _calls[threading.get_ident()] = self
        if not _busy.is_set() or _watcher is None or not _watcher.is_alive():
            _start()
            _busy.set()

    def _leave(self) -> None:
        _calls.pop(threading.get_ident(), None)


def is_calling(ident: int) -> bool:
    """Return whether that thread waits for the database, in a call that ends by itself."""
    call = _calls.get(ident)
    return call is not None and time.monotonic() < call.until + CANCEL_TIMEOUT * 2


def keepalives(seconds: float = CALL_TIMEOUT) -> dict[str, Any]:
    """Return libpq's parameters for a connection whose other end may vanish without a word.

    What was sent may stay without an answer for `seconds`.
    """
    return {
        "connect_timeout": CONNECT_TIMEOUT,
        "keepalives": 1,
        "keepalives_idle": KEEPALIVE_IDLE,
        "keepalives_interval": KEEPALIVE_INTERVAL,
        "keepalives_count": KEEPALIVE_COUNT,
        # Ignored where the system has no such limit.
        "tcp_user_timeout": math.ceil(seconds * 1000),
    }


@contextmanager
def bounded_connect(db: str) -> Iterator[None]:
    """Limit connecting in this thread to a few seconds, unless the settings have a limit.

    The system also notices when the other end has vanished. Nothing comes from a pool in the block:
    a pool may keep this thread waiting, and its connections have its own limits.
    """
    connection: Any = connections[db]
    settings = connection.settings_dict
    ours: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT}
    if connection.vendor == "postgresql":
        ours = keepalives()
    can_lift = False
    if connection.vendor == "mysql":
        # Its drivers use the network before they show a connection that could be cut.
        can_lift = connection.Database.__name__ == "pymysql"
        ours["read_timeout"] = CONNECT_TIMEOUT if can_lift else math.ceil(CALL_TIMEOUT)
    options = settings["OPTIONS"]
    has_pool = bool(options.get("pool"))
    if has_pool:
        connection.close()
        options = {name: value for name, value in options.items() if name != "pool"}
    if connection.vendor in ("postgresql", "mysql"):
        connection.settings_dict = settings | {"OPTIONS": (used := ours | options)}
        if connection.vendor == "mysql" and not can_lift and "read_timeout" not in options:
            setattr(connection, _OPTIONS, used)
    try:
        yield
    finally:
        setattr(connection, _OPTIONS, None)
        if has_pool:
            # Django would return it to the pool, which does not know it.
            with suppress(Exception):  # whatever a driver raises when a connection is broken
                connection.close()
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
    while True:
        try:
            _busy.wait()
            _busy.clear()
            while _calls:
                time.sleep(WATCH_INTERVAL)
                _end_overdue()
        except BaseException:  # whatever it is, calls must have an end
            _busy.set()
            time.sleep(WATCH_INTERVAL)
            logger.exception("The thread that ends calls to the database failed; it goes on")


def _end_overdue() -> None:
    now = time.monotonic()
    for ident, call in _calls.copy().items():
        if now > call.until and call.connection.vendor != "sqlite":
            try:
                _end(ident, call)
            except Exception:  # for example that no thread can be started
                _calls.pop(ident, None)
                _cut(call.end)


def _keep_alive(end: int | None) -> None:
    """Let the system ask whether the other end of the socket is there. Libpq does it by itself."""
    if end is None:
        return
    names = {"TCP_KEEPIDLE": KEEPALIVE_IDLE, "TCP_KEEPINTVL": KEEPALIVE_INTERVAL}
    names |= {"TCP_KEEPCNT": KEEPALIVE_COUNT, "TCP_USER_TIMEOUT": math.ceil(CALL_TIMEOUT * 1000)}
    with suppress(OSError), _copy(end) as open_end:
        open_end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in names.items():
            # Which of them exist depends on the system; a local socket has none.
            with suppress(AttributeError, OSError):
                open_end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _lift_read_timeout(raw: Any) -> None:
    """Let PyMySQL wait for slow answers, now that its connection can be cut."""
    if getattr(raw, "_read_timeout", None) == CONNECT_TIMEOUT:
        raw._read_timeout = None


def _end_of(raw: Any) -> int | None:
    """Return the descriptor of the connection's socket; None if it is closed already."""
    with suppress(Exception):  # whatever the driver raises; the call will fail by itself
        # PyMySQL has a socket instead.
        return int((raw if hasattr(raw, "fileno") else raw._sock).fileno())
    return None


def _end(ident: int, call: call_timeout) -> None:
    raw = call.connection.connection
    end = _end_of(raw) if call.end is None else call.end
    if hasattr(raw, "cancel"):
        # On PostgreSQL this ends a wait for a lock and leaves nothing behind. It needs a thread of
        # its own, because an old libpq has no timeout for it.
        canceller = threading.Thread(target=_cancel, args=(raw,), daemon=True)
        canceller.start()
        canceller.join(CANCEL_TIMEOUT)
    if _calls.get(ident) is call:
        if end is None and call.extensions < MAX_FACTOR:
            # It still connects: nothing can be cut yet, and the driver has a limit of its own.
            call.extensions += 1
            call.until += CALL_TIMEOUT
        else:
            _calls.pop(ident, None)
            _cut(end)
    logger.warning("The database has not answered in time; the call is cancelled")


def _cancel(raw: Any) -> None:
    with suppress(Exception):  # whatever the driver raises; the connection will be cut
        if hasattr(raw, "cancel_safe"):
            raw.cancel_safe(timeout=CANCEL_TIMEOUT / 2)
        else:
            raw.cancel()  # psycopg 2
        # The thread receives the error on its own connection.
        time.sleep(CANCEL_TIMEOUT / 10)


def _cut(end: int | None) -> None:
    """Shut down the connection's socket, which ends a read in any thread."""
    if end is not None:
        with suppress(OSError), _copy(end) as shut:
            shut.shutdown(socket.SHUT_RDWR)


def _copy(end: int) -> socket.socket:
    """Return another socket for that descriptor, which on Windows is not one of a file."""
    # The family is not used.
    return socket.fromfd(end, socket.AF_INET, socket.SOCK_STREAM)
