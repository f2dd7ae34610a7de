"""Enqueueing: ∅ → READY.

Owns how many rows one statement inserts, and what is known of rows whose connection was lost. Never
validates a task or its arguments: the backend has done that.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from django.db import (
    Error,
    IntegrityError,
    InterfaceError,
    OperationalError,
    connections,
    transaction,
)

from ..models import TABLE
from .rows import NewTask
from .unit import adapted, batches, dialect, unit_of_work

# New connections that are tried after one was lost.
CONNECTIONS = 3
# The most ids that an error names.
MAX_NAMED = 10


def enqueue(db: str, rows: Sequence[NewTask], hint: tuple[str, str] | None = None) -> bool:
    """Insert all rows as READY, or none, in the caller's transaction if there is one.

    `hint` is a channel and a payload for PostgreSQL's NOTIFY. Return whether it was sent with the
    rows; inside a caller's transaction, for example, it is not. If the connection is lost outside
    of a transaction, the rows are inserted again under the same ids, unless they are there.
    """
    connection = connections[db]
    is_free = not connection.in_atomic_block and connection.get_autocommit()
    try:
        return unit_of_work(db, lambda *_: _insert(db, rows, hint))
    except (OperationalError, InterfaceError) as error:
        if not is_free or not _is_lost(connection):
            raise
        _insert_again(db, rows, error)
    return False


def _insert(db: str, rows: Sequence[NewTask], hint: tuple[str, str] | None) -> bool:
    connection = connections[db]
    sql, rows = dialect(connection), adapted(connection, rows)
    parts = list(batches(rows, lambda row: len(row.args) + len(row.kwargs)))
    if len(parts) == 1:
        return bool(sql.insert(connection, parts[0], hint))
    with transaction.atomic(db, savepoint=False):
        for batch in parts:
            sql.insert(connection, batch, None)
    return False


def _is_lost(connection: Any) -> bool:
    """Return whether the connection is gone, so that nobody knows what was committed."""
    if connection.vendor == "sqlite":
        return False
    return connection.connection is None or not connection.is_usable()


def _insert_again(db: str, rows: Sequence[NewTask], lost: Exception) -> None:
    """Insert the rows on a new connection, unless they are there.

    Only the INSERT tells that: the lost connection may still be about to commit, and then has a
    lock on the ids, which another INSERT waits for. Raise an error that names the ids if each of
    some connections is lost.
    """
    connection = connections[db]
    for _ in range(CONNECTIONS):
        with suppress(Error):
            connection.close()
        with suppress(OperationalError, InterfaceError):
            try:
                _insert(db, rows, None)
            except IntegrityError:
                if not _is_written(connection, rows[0].id):
                    raise
            return
    named = ", ".join(str(row.id) for row in rows[:MAX_NAMED])
    named += ", …" if len(rows) > MAX_NAMED else ""
    raise OperationalError(
        f"The connection to {db!r} was lost while the task was enqueued. It may have been enqueued "
        f"all the same. Look for its id before you enqueue it again: {named}. ({lost})"
    ) from lost


def _is_written(connection: Any, id: Any) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT 1 FROM {TABLE} WHERE id = %s", [id])
        return cursor.fetchone() is not None
