"""The connections of the current thread.

Owns how a task leaves them, and calls after a commit. Never opens one.
"""

import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from traceback import clear_frames
from typing import Any

from django.db import DatabaseError, connections, transaction

from .full_servers import wait_for_room, waits_for_room

logger = logging.getLogger("dbtasks.runner")

# Seconds that a connection is kept between tasks. After a failover, a connection may lead to a
# server that is read-only for ever.
MAX_KEPT = 60.0
# How often a rollback is tried: another interrupt may be on its way.
ROLLBACKS = 3
# The most exceptions of a chain whose frames are let go.
MAX_CHAIN = 100
# The attribute of Django's connections with the end of that time.
_KEPT = "_dbtasks_close_at"


def leave_clean(task_path: str, keep: bool = False) -> None:
    """Close this thread's connections that are broken, too old, or inside a transaction.

    Runs between two tasks of one thread. A transaction left open is rolled back, with a warning.
    Connections that Django would close after each request stay open: for a minute with `keep`,
    else until the caller's own request ends. A connection from a pool always returns to it.
    """
    for connection in connections.all(initialized_only=True):
        # With DEBUG each connection would remember thousands of statements.
        connection.queries_log.clear()
        if connection.in_atomic_block:
            logger.warning(
                "%s left a transaction open on %r; it was rolled back", task_path, connection.alias
            )
            drop(connection)
            continue
        if keep:
            _keep(connection)
        try:
            _close_if_unusable(connection, whatever_age=not keep)
        except Exception:  # whatever a driver raises when a broken connection is closed
            drop(connection)


def _lives_for_a_request(connection: Any) -> bool:
    """Return whether Django closes the connection after each request."""
    settings = connection.settings_dict
    return settings["CONN_MAX_AGE"] == 0 and not settings["OPTIONS"].get("pool")


def _close_if_unusable(connection: Any, *, whatever_age: bool) -> None:
    """Close the connection if it is broken or too old.

    With `whatever_age` it is not too old because it lives for one request only.
    """
    close_at = connection.close_at
    if whatever_age and _lives_for_a_request(connection):
        connection.close_at = None
    connection.close_if_unusable_or_obsolete()
    connection.close_at = close_at


def _keep(connection: Any) -> None:
    """Let a connection that Django would close after each request live for MAX_KEPT seconds."""
    if not _lives_for_a_request(connection):
        return
    # Django has set this to the time of connecting.
    if connection.close_at is not None and connection.close_at != getattr(connection, _KEPT, None):
        connection.close_at = time.monotonic() + MAX_KEPT
        setattr(connection, _KEPT, connection.close_at)


def leave_for_next(task_path: str, keep: bool) -> None:
    """Leave this thread's connections as the next task of the thread may find them.

    With `keep` they stay open; otherwise nothing is left of them.
    """
    if keep:
        leave_clean(task_path, keep=True)
    else:
        leave_nothing(task_path)


def leave_nothing(task_path: str) -> None:
    """Close this thread's connections, with all that a task may have left in their sessions.

    Django's own objects go with them: packages keep the tenant of a connection there, for example.
    """
    connection: Any
    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block:
            logger.warning(
                "%s left a transaction open on %r; it was rolled back", task_path, connection.alias
            )
        if not (connection.vendor == "sqlite" and connection.is_in_memory_db()):
            drop(connection)


def pool_size(db: str) -> int | None:
    """Return how many connections that database's pool holds at most; None without a pool."""
    pool = connections[db].settings_dict.get("OPTIONS", {}).get("pool")
    if not pool:
        return None
    # psycopg_pool's own defaults: min_size is 4, max_size is min_size.
    sizes = pool if isinstance(pool, dict) else {}
    return int(sizes.get("max_size") or sizes.get("min_size", 4))


def roll_back_open(connection: Any, depth: int, task_path: str) -> None:
    """Roll back the atomic blocks beyond `depth`, which the task has entered and not left."""
    for block in reversed(connection.atomic_blocks[depth:]):
        logger.warning(
            "%s left a transaction open on %r; it was rolled back", task_path, connection.alias
        )
        block.__exit__(RuntimeError, None, None)


def is_tested(connection: Any) -> bool:
    """Return whether the innermost open transaction is the one a TestCase opens around a test."""
    blocks = connection.atomic_blocks
    return bool(blocks) and bool(getattr(blocks[-1], "_from_testcase", False))


def drop(connection: Any) -> None:
    """Close the connection, whatever its state; the next use makes a new one."""
    connection.in_atomic_block = False
    if connection.vendor == "sqlite" and connection.connection is not None:
        # A traceback may hold a cursor in the middle of its rows for long. That would keep a closed
        # SQLite connection, and its transaction, from ending.
        _roll_back(connection.connection)
    with suppress(Exception):
        connection.close()
    # The next use gets a new wrapper: the old one still lists its open blocks.
    del connections[connection.alias]
    if waits_for_room(connection):
        wait_for_room(connections[connection.alias])


def _roll_back(raw: Any) -> None:
    """Roll back the transaction of a SQLite connection, which may have been interrupted.

    An interrupt ends every statement while another one is in the middle of its rows. So cursors
    that the exception in hand keeps are let go, with all that its frames hold.
    """
    error = sys.exception()
    for _ in range(ROLLBACKS):
        try:
            raw.rollback()
            return
        except Exception:  # whatever it is, the connection is closed afterwards
            found, left = error, MAX_CHAIN
            while found is not None and left:
                clear_frames(found.__traceback__)
                found, left = found.__cause__ or found.__context__, left - 1


def discard(connection: Any) -> None:
    """Close the connection to the server for good, also if a pool would keep it.

    After a failover it may still lead to the node that was demoted. The wrapper is kept, with the
    settings that it has.
    """
    if not any(getattr(block, "_from_testcase", False) for block in connection.atomic_blocks):
        # An error in the middle of a commit may have left it.
        connection.in_atomic_block = False
    with suppress(Exception):  # whatever the driver raises for a broken connection
        if connection.settings_dict["OPTIONS"].get("pool"):
            connection.connection.close()
    try:
        connection.close()
    except Exception:  # the wrapper must not keep what cannot be closed
        connection.connection = None


def discard_all() -> None:
    """Close every connection of this thread for good."""
    for connection in connections.all(initialized_only=True):
        discard(connection)


def disconnect() -> None:
    """Close every connection of this thread, and the pools behind them."""
    for connection in connections.all(initialized_only=True):
        connection.close()
        if close_pool := getattr(connection, "close_pool", None):
            close_pool()


def is_broken(connection: Any) -> bool:
    """Return whether the connection's transaction can only be rolled back."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        return True
    return bool(connection.needs_rollback)


@dataclass(frozen=True, slots=True)
class AfterCommit:
    """A callback of dbtasks that waits for a commit. It only wakes runners."""

    call: Callable[[], None]

    def __call__(self) -> None:
        self.call()


def after_commit(db: str, call: Callable[[], None]) -> None:
    """Call `call` after the caller's transaction has committed, or now if there is none.

    With autocommit off the commit cannot be noticed, and the call is dropped.
    """
    connection = connections[db]
    if connection.in_atomic_block or connection.get_autocommit():
        transaction.on_commit(AfterCommit(call), using=db)
