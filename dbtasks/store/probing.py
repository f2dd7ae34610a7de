"""Whether the tables can be read and written, as a command asks before it starts.

Owns the statements that ask, none of which changes a row, and the kinds of their errors. Never
words a message.
"""

from enum import Enum
from typing import Any

from django.db import DatabaseError, connections

from ..models import TABLE, WORKERS, ScheduledTask
from .unit import dialect


class Trouble(Enum):
    """Why a table cannot be used."""

    READ_ONLY = "read-only"
    DENIED = "denied"
    MISSING = "missing"
    IN_MEMORY = "in memory"
    DAMAGED = "damaged"
    UNKNOWN = "unknown"


def probe(db: str, *, writes: bool = True) -> tuple[Trouble, DatabaseError] | None:
    """Return why the tables cannot be read, or with `writes` changed, and the error; else None."""
    connection = connections[db]
    try:
        ScheduledTask.objects.using(db).first()
        if writes:
            _try_writes(connection)
    except DatabaseError as error:
        sql = dialect(connection)
        if sql.is_transient(error):
            # A lock, which others hold for a while.
            return None
        kind = Trouble(sql.trouble(error) or "unknown")
        in_memory = getattr(connection, "is_in_memory_db", bool)()
        return (Trouble.IN_MEMORY if kind == Trouble.MISSING and in_memory else kind), error
    return None


def _try_writes(connection: Any) -> None:
    """Run statements that need the privileges of a runner, and find no row to change."""
    with connection.cursor() as cursor:
        for table in (WORKERS, TABLE):
            cursor.execute(f"UPDATE {table} SET backend = backend WHERE 1 = 0")
            cursor.execute(f"DELETE FROM {table} WHERE 1 = 0")
            cursor.execute(f"INSERT INTO {table} SELECT * FROM {table} WHERE 1 = 0")
