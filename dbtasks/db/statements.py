"""Ends the SQL statement that another thread runs.

Owns which connections each thread has opened, and how a statement is cancelled on each database.
Never closes a connection, and never waits for an answer: that takes a thread of its own.
"""

import logging
import sys
import threading
from typing import Any
from weakref import WeakKeyDictionary

from django.db import connections
from django.db.backends.signals import connection_created

from .timeouts import CONNECT_TIMEOUT, bounded_connect, call_timeout

logger = logging.getLogger("dbtasks.runner")

# Frames that are looked at, from the innermost one, and modules whose calls wait for a database.
MAX_FRAMES = 12
_DRIVERS = ("django.db.backends.", "psycopg", "MySQLdb", "pymysql", "sqlite3")
# Libpq's status of a connection that runs a statement.
ACTIVE = 1
# By thread id, the connections that the thread has opened, and MySQL's number of each session,
# which its driver shows to no other thread while it waits.
_opened: dict[int, WeakKeyDictionary[Any, int | None]] = {}


def remember_connections() -> None:
    """Note from now on which thread opens which connection. Can be called again and again."""
    connection_created.connect(_remember, dispatch_uid="dbtasks.statements")


def _remember(connection: Any, **_: Any) -> None:
    """Note the connection, in the thread that has just opened it."""
    ident = threading.get_ident()
    number = connection.connection.thread_id() if connection.vendor == "mysql" else None
    _opened.setdefault(ident, WeakKeyDictionary())[connection] = number
    for other, opened in list(_opened.items()):
        if not opened and other != ident:
            _opened.pop(other, None)


def end_statement(ident: int) -> None:
    """Cancel the statement that the thread runs, if it waits for a database. Return at once."""
    opened = _opened.get(ident)
    if not opened or not _waits_for_a_database(ident):
        return
    for connection, number in list(opened.items()):
        # A driver may take long for it.
        canceller = threading.Thread(
            target=_cancel, args=(connection, number), name="dbtasks-cancel", daemon=True
        )
        canceller.start()


def _waits_for_a_database(ident: int) -> bool:
    frame = sys._current_frames().get(ident)
    for _ in range(MAX_FRAMES):
        if frame is None:
            return False
        if frame.f_globals.get("__name__", "").startswith(_DRIVERS):
            return True
        frame = frame.f_back
    return False


def _cancel(connection: Any, number: int | None) -> None:
    try:
        raw = connection.connection
        if raw is None:
            return
        if connection.vendor == "postgresql":
            _cancel_postgresql(raw)
        elif connection.vendor == "sqlite":
            raw.interrupt()
        elif connection.vendor == "mysql" and number is not None:
            _kill_query(connection.alias, number)
    except Exception as error:  # whatever a driver raises: the attempt is abandoned then
        logger.warning("A statement of %r could not be cancelled: %s", connection.alias, error)


def _cancel_postgresql(raw: Any) -> None:
    if raw.info.transaction_status != ACTIVE:
        return
    if hasattr(raw, "cancel_safe"):
        raw.cancel_safe(timeout=CONNECT_TIMEOUT)
    else:
        raw.cancel()


def _kill_query(alias: str, number: int) -> None:
    """End the statement of that session, on a connection of this thread."""
    try:
        with (
            bounded_connect(alias),
            call_timeout(connections[alias], CONNECT_TIMEOUT),
            connections[alias].cursor() as cursor,
        ):
            cursor.execute(f"KILL QUERY {number:d}")
    finally:
        connections.close_all()
