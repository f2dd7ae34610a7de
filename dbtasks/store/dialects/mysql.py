"""The store's SQL where MySQL and MariaDB differ.

Owns their two-step claim, JSON as a table of parameters, and their clock. Never decides which rows
may change: a transition passes the guards, apart from the fence.
"""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from django.db import connections, transaction
from django.utils import timezone

from ...models import TABLE
from ..rows import SETTLE, SETTLED, Change, Claim, NewTask, Outcome, Pick, Place, hold_of, settling

# Index entries of claimed rows stay until InnoDB purges them, which waits for the server's oldest
# transaction.
LEAVES_DEAD_INDEX_ENTRIES = True

# Lock wait timeout, deadlock, and MariaDB's "record has changed": run the whole unit again.
TRANSIENT = {1205, 1213, 1020}
# Start and end of an INSERT that does nothing if a unique index has such a row. ON DUPLICATE KEY
# UPDATE would count such a row.
INSERT_NEW = ("INSERT IGNORE INTO", "")


def now(connection: Any) -> str:
    """Return SQL for the database's clock in the zone that datetimes are stored in."""
    zone = connection.timezone or timezone.get_default_timezone()
    offset = int((datetime.now(zone).utcoffset() or timedelta()).total_seconds())
    return f"(UTC_TIMESTAMP(6) + INTERVAL {offset} SECOND)" if offset else "UTC_TIMESTAMP(6)"


def microseconds(connection: Any) -> str:
    """Return SQL for the same clock in microseconds since 1970."""
    return "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"


def is_transient(error: Exception) -> bool:
    """Return whether the same unit of work may succeed when it is run again."""
    return bool(error.args) and error.args[0] in TRANSIENT


def insert(connection: Any, rows: Sequence[NewTask], hint: Any) -> bool:
    """Insert the rows in one statement; hold those with a future run_after. No hint is sent."""
    names = ", ".join(NewTask._fields)
    marks = ", ".join(["%s"] * len(NewTask._fields))
    hold = hold_of("%s", "0", now(connection))
    values = ", ".join([f"({marks}, 'READY', {hold})"] * len(rows))
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {TABLE} ({names}, status, hold) VALUES {values}",
            [value for row in rows for value in (*row, row.run_after)],
        )
    return False


def claim(connection: Any, change: Change) -> list[Any]:
    """Make the change and return the rows as they are then, highest priority first, then by id."""
    columns = ", ".join(_CLAIM).replace("NOW", now(connection))
    with transaction.atomic(connection.alias), connection.cursor() as cursor:
        rows: list[Any] = []
        for pick in change.picks:
            cursor.execute(_lock(change, pick, columns), pick.params)
            rows += cursor.fetchall()
            if change.in_turn and len(rows) >= change.limit:
                break
        rows.sort(key=lambda row: (-row[_PRIORITY], row[_ID]))
        del rows[change.limit :]
        _apply(cursor, change, [row[_ID] for row in rows])
    return rows


def change(connection: Any, change: Change) -> list[Place]:
    """Make the change; return the places of the changed rows, in its order."""
    with transaction.atomic(connection.alias), connection.cursor() as cursor:
        [pick] = change.picks
        cursor.execute(_lock(change, pick, "queue_name, priority, id"), pick.params)
        places = [Place(*row) for row in cursor.fetchall()]
        _apply(cursor, change, [place.id for place in places])
    return places


def read(connection: Any, sql: str, params: Sequence[Any]) -> list[Any]:
    """Return the rows of a SELECT that must stay on its indexes."""
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())


def _lock(change: Change, pick: Pick, columns: str) -> str:
    # The index is forced: with a sort, InnoDB would lock every row it reads and leave other
    # runners nothing (MySQL bug 113472).
    return (
        f"SELECT {columns} FROM {TABLE} FORCE INDEX ({pick.served_by}) WHERE {pick.where} "
        f"ORDER BY {change.order} LIMIT {change.limit:d} FOR UPDATE SKIP LOCKED"
    )


def _apply(cursor: Any, change: Change, ids: list[Any]) -> None:
    if ids:
        # In key order, so that two writers never wait for each other.
        marks = ", ".join(["%s"] * len(ids))
        cursor.execute(f"{change.verb} WHERE id IN ({marks})", [*change.params, *sorted(ids)])


def settle(connection: Any, outcomes: Sequence[Outcome]) -> set[Any]:
    """Write the outcomes whose claim still stands, in one statement; return their ids."""
    columns = ", ".join(
        f"{name} {kind} PATH '$[{n}]'" for n, (name, kind) in enumerate(_OUTCOME_TYPES.items())
    )
    values = f"JSON_TABLE(%s, '$[*]' COLUMNS({columns})) v"
    source = f"{TABLE} t JOIN {values} ON t.id = {_key(connection)}"
    rows = json.dumps(sorted(outcomes))
    with connection.cursor() as cursor:
        if len(outcomes) == 1:
            # 0.5 ms; a table of one row takes 0.8.
            sql = SETTLE.format(table=TABLE, hold=hold_of("%s", "%s", now(connection)))
            cursor.execute(sql, settling(outcomes[0]))
        else:
            cursor.execute(_settle_many(connection, source), [rows])
        if cursor.rowcount == len(outcomes):
            return {outcome.id for outcome in outcomes}
        cursor.execute(
            f"SELECT t.id FROM {source} WHERE t.fence = v.fence AND t.status = v.status", [rows]
        )
        return {id for (id,) in cursor.fetchall()}


def _settle_many(connection: Any, source: str) -> str:
    changes = ", ".join(f"t.{name} = v.{name}" for name in Outcome._fields[2:])
    hold = hold_of("v.run_after", "v.lost", now(connection))
    return (
        f"UPDATE {source} SET {changes}, {SETTLED}, "
        f"t.hold = CASE WHEN v.status = 'READY' THEN {hold} ELSE '' END "
        "WHERE t.fence = v.fence AND t.status = 'RUNNING' "
        "AND NOT (t.cancel_requested AND v.status = 'READY')"
    )


def _key(connection: Any) -> str:
    # JSON_TABLE has no uuid, and its text has a collation of its own. Either would keep the join
    # from using the primary key.
    if connection.features.has_native_uuid_field:
        return "CAST(v.id AS uuid)"
    return f"v.id COLLATE {_collation(connection.alias)}"


@cache
def _collation(alias: str) -> str:
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT collation_name FROM information_schema.columns "
            "WHERE table_schema = DATABASE() AND table_name = %s AND column_name = 'id'",
            [TABLE],
        )
        return str(cursor.fetchone()[0])


# The SELECT shows the row as it was before its own UPDATE.
_CLAIM = [
    {"claimed_at": "NOW", "fence": "fence + 1", "attempt": "attempt + 1"}.get(name, name)
    for name in Claim._fields[:-1]
]
_ID, _PRIORITY = Claim._fields.index("id"), Claim._fields.index("priority")
_OUTCOME_TYPES = {
    "id": "CHAR(36)",
    "fence": "BIGINT",
    "status": "CHAR(10)",
    "attempt": "INT",
    "failures": "INT",
    "lost": "INT",
    "run_after": "DATETIME(6)",
    "started_at": "DATETIME(6)",
    "last_attempted_at": "DATETIME(6)",
    "finished_at": "DATETIME(6)",
    "delete_after": "DATETIME(6)",
    "errors": "LONGTEXT",
    "worker_ids": "LONGTEXT",
    "return_value": "LONGTEXT",
}
