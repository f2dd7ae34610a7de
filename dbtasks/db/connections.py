"""The connections of the current thread.

Owns how a task leaves them, and calls after a commit. Never opens one.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError, connections, transaction

logger = logging.getLogger("dbtasks.runner")


def leave_clean(task_path: str, keep: bool = False) -> None:
    """Close this thread's connections that are broken, too old, or inside a transaction.

    Runs between two tasks of one thread. A transaction left open is rolled back, with a warning.
    With `keep`, connections that Django would close after each request stay open for the next task.
    A connection from a pool always returns to it.
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
        settings = connection.settings_dict
        if keep and not settings["CONN_MAX_AGE"] and not settings["OPTIONS"].get("pool"):
            connection.close_at = None
        try:
            connection.close_if_unusable_or_obsolete()
        except Exception:  # whatever a driver raises when a broken connection is closed
            drop(connection)


def roll_back_open(connection: Any, depth: int, task_path: str) -> None:
    """Roll back the atomic blocks beyond `depth`, which the task has entered and not left."""
    for block in reversed(connection.atomic_blocks[depth:]):
        logger.warning(
            "%s left a transaction open on %r; it was rolled back", task_path, connection.alias
        )
        block.__exit__(RuntimeError, None, None)


def drop(connection: Any) -> None:
    """Close the connection, whatever its state; the next use makes a new one."""
    connection.in_atomic_block = False
    if connection.vendor == "sqlite" and connection.connection is not None:
        # A traceback may hold a cursor in the middle of its rows for long. That would keep a closed
        # SQLite connection, and its transaction, from ending.
        with suppress(Exception):
            connection.connection.rollback()
    with suppress(Exception):
        connection.close()
    # The next use gets a new wrapper: the old one still lists its open blocks.
    del connections[connection.alias]


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
