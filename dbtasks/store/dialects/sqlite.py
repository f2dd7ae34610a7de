"""The store's SQL where SQLite differs.

Owns its single-statement claim and its clock, which is this machine's. Never decides which rows may
change: a transition passes the guards, apart from the fence.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import batched
from typing import Any

from django.db import transaction
from django.utils import timezone

from ...models import TABLE
from ...schedule.zones import EPOCH, MICROSECOND
from ..rows import (
    QUEUES,
    SETTLE,
    STANDING,
    Change,
    Claim,
    NewTask,
    Outcome,
    Place,
    hold_of,
    settling,
)

# The index entry of a claimed row is removed at once.
LEAVES_DEAD_INDEX_ENTRIES = False
# A compound SELECT has at most 500 terms.
MAX_TERMS = 400
# Start and end of an INSERT that does nothing if a unique index has such a row.
INSERT_NEW = ("INSERT INTO", "ON CONFLICT DO NOTHING")
# What an error that no retry cures means, by words of its message.
TROUBLES = {"readonly": "read-only", "no such": "missing", "not a database": "damaged"}
TROUBLES |= {"malformed": "damaged"}


def check_version(connection: Any) -> None:
    """Accept every version that Django supports."""


def now(connection: Any) -> str:
    """Return SQL for the clock: a literal, because SQLite's own clock has only milliseconds."""
    return f"'{connection.ops.adapt_datetimefield_value(timezone.now())}'"


def microseconds(connection: Any) -> str:
    """Return SQL for the same clock in microseconds since 1970."""
    return str((datetime.now(UTC) - EPOCH) // MICROSECOND)


def is_transient(error: Exception) -> bool:
    """Return whether the same unit of work may succeed when it is run again."""
    return "locked" in str(error)


def trouble(error: Exception) -> str | None:
    """Return why a table cannot be used, by the value of a Trouble; None if it is another error."""
    return next((kind for words, kind in TROUBLES.items() if words in str(error)), None)


def insert(connection: Any, rows: Sequence[NewTask], hint: Any) -> bool:
    """Insert the rows; hold those with a future run_after. No hint is sent."""
    names = ", ".join(NewTask._fields)
    marks = ", ".join(["%s"] * len(NewTask._fields))
    hold = hold_of("%s", "0", now(connection))
    with transaction.atomic(connection.alias, savepoint=False), connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {TABLE} ({names}, status, hold) VALUES ({marks}, 'READY', {hold})",
            [(*row, row.run_after) for row in rows],
        )
    return False


def claim(connection: Any, change: Change) -> list[Any]:
    """Make the change and return the rows as they are then, in no order."""
    with connection.cursor() as cursor:
        cursor.execute(*_statement(change, f"RETURNING {', '.join(_CLAIM)}"))
        return list(cursor.fetchall())


def change(connection: Any, change: Change) -> list[Place]:
    """Make the change; return the places of the changed rows, in no order."""
    with connection.cursor() as cursor:
        cursor.execute(*_statement(change, "RETURNING queue_name, priority, id"))
        return [Place(*row) for row in cursor.fetchall()]


def read(connection: Any, sql: str, params: Sequence[Any]) -> list[Any]:
    """Return the rows of a SELECT that must stay on its indexes."""
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())


def queues_of(connection: Any, where: str, backend: str) -> list[str]:
    """Return the names of the queues that have rows of that condition."""
    sql = QUEUES.format(table=TABLE, where=where)
    return [name for (name,) in read(connection, sql, [backend, backend])]


def _statement(change: Change, returning: str) -> tuple[str, list[Any]]:
    # One statement is one write transaction from its start, so no other writer comes in between,
    # and no read lock has to be upgraded.
    heads = [
        f"SELECT * FROM (SELECT id, {change.column} FROM {TABLE} WHERE {pick.where} "
        f"ORDER BY {change.order} LIMIT {change.limit:d})"
        for pick in change.picks
    ]
    while len(heads) > MAX_TERMS:
        parts = batched(heads, MAX_TERMS)
        heads = [f"SELECT * FROM ({' UNION ALL '.join(part)})" for part in parts]
    chosen = f"SELECT id FROM ({' UNION ALL '.join(heads)})"
    if len(change.picks) > 1:
        chosen += f" ORDER BY {change.order} LIMIT {change.limit:d}"
    params = [value for pick in change.picks for value in pick.params]
    return f"{change.verb} WHERE id IN ({chosen}) {returning}", [*change.params, *params]


def settle(connection: Any, outcomes: Sequence[Outcome], wait: bool) -> set[Any]:
    """Write the outcomes whose claim still stands, in one transaction.

    Return their ids, or none if some were not written. SQLite locks the file, not rows, so `wait`
    makes no difference.
    """
    sql = SETTLE.format(table=TABLE, hold=hold_of("%s", "%s", now(connection))) + STANDING
    with transaction.atomic(connection.alias), connection.cursor() as cursor:
        cursor.executemany(sql, [settling(outcome) for outcome in outcomes])
        is_whole = cursor.rowcount == len(outcomes)
    return {outcome.id for outcome in outcomes} if is_whole else set()


_CLAIM = [{"claimed_at": "last_attempted_at"}.get(name, name) for name in Claim._fields[:-1]]
