"""Enqueueing: ∅ → READY.

Owns how many rows one statement inserts. Never validates a task or its arguments: the backend has
done that.
"""

from collections.abc import Sequence

from django.db import connections, transaction

from .rows import NewTask
from .unit import adapted, batches, dialect


def enqueue(db: str, rows: Sequence[NewTask], hint: tuple[str, str] | None = None) -> bool:
    """Insert all rows as READY, or none, in the caller's transaction if there is one.

    `hint` is a channel and a payload for PostgreSQL's NOTIFY. Return whether it was sent with the
    rows; inside a caller's transaction, for example, it is not.
    """
    connection = connections[db]
    sql, rows = dialect(connection), adapted(connection, rows)
    parts = list(batches(rows, lambda row: len(row.args) + len(row.kwargs)))
    if len(parts) == 1:
        return bool(sql.insert(connection, parts[0], hint))
    with transaction.atomic(db, savepoint=False):
        for batch in parts:
            sql.insert(connection, batch, None)
    return False
