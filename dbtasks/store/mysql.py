"""The store's SQL where MySQL and MariaDB differ.

Owns their two-step claim, JSON as a table of parameters, and their clock. Never decides which
rows may change: every guard is handed in by a transition, or is the fence.
"""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from django.db import connections, transaction
from django.utils import timezone

from .rows import Claim, NewTask, Outcome, Pick

# Lock wait timeout, deadlock, and MariaDB's "record has changed": run the whole unit again.
TRANSIENT = {1205, 1213, 1020}


def now(connection: Any) -> str:
    """Return SQL for the database's clock in the zone that datetimes are stored in."""
    zone = connection.timezone or timezone.get_default_timezone()
    offset = int((datetime.now(zone).utcoffset() or timedelta()).total_seconds())
    return f"(UTC_TIMESTAMP(6) + INTERVAL {offset} SECOND)" if offset else "UTC_TIMESTAMP(6)"


def is_transient(error: Exception) -> bool:
    """Tell whether the same unit of work may succeed when run again."""
    return bool(error.args) and error.args[0] in TRANSIENT


def insert(connection: Any, table: str, rows: Sequence[NewTask]) -> None:
    """Insert the rows, in one statement; those with a run_after to come are held."""
    names = ", ".join(NewTask._fields)
    marks = ", ".join(["%s"] * len(NewTask._fields))
    hold = f"CASE WHEN %s > {now(connection)} THEN 'scheduled' ELSE '' END"
    values = ", ".join([f"({marks}, 'READY', {hold})"] * len(rows))
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({names}, status, hold) VALUES {values}",
            [value for row in rows for value in (*row, row.run_after)],
        )


def claim(
    connection: Any,
    table: str,
    changes: str,
    params: Sequence[Any],
    picks: Sequence[Pick],
    limit: int,
) -> list[Claim]:
    """Apply the changes to the first rows of the picks, best first overall; return them."""
    columns = ", ".join(_CLAIM).replace("NOW", now(connection))
    with transaction.atomic(connection.alias), connection.cursor() as cursor:
        rows: list[Claim] = []
        for pick in picks:
            cursor.execute(_select(table, columns, pick, "priority DESC", limit), pick.params)
            rows += [Claim(*row) for row in cursor.fetchall()]
        rows.sort(key=lambda row: (-row.priority, row.id))
        del rows[limit:]
        if rows:
            _by_key(cursor, f"UPDATE {table} SET {changes}", params, [row.id for row in rows])
    return rows


def change(
    connection: Any,
    table: str,
    verb: str,
    params: Sequence[Any],
    pick: Pick,
    order: str,
    limit: int,
) -> int:
    """Run UPDATE … SET or DELETE on the first rows of the pick; return how many there were."""
    with transaction.atomic(connection.alias), connection.cursor() as cursor:
        cursor.execute(_select(table, "id", pick, order, limit), pick.params)
        if ids := [id for (id,) in cursor.fetchall()]:
            _by_key(cursor, verb, params, ids)
        return len(ids)


def _select(table: str, columns: str, pick: Pick, order: str, limit: int) -> str:
    # The index is forced: with a sort, InnoDB would lock every row it reads and leave other
    # runners nothing (MySQL bug 113472).
    return (
        f"SELECT {columns} FROM {table} FORCE INDEX ({pick.served_by}) WHERE {pick.where} "
        f"ORDER BY {order}, id LIMIT {limit:d} FOR UPDATE SKIP LOCKED"
    )


def _by_key(cursor: Any, verb: str, params: Sequence[Any], ids: list[Any]) -> None:
    # In the order of the key, so that two writers never wait for each other in a circle.
    marks = ", ".join(["%s"] * len(ids))
    cursor.execute(f"{verb} WHERE id IN ({marks})", [*params, *sorted(ids)])


def settle(connection: Any, table: str, outcomes: Sequence[Outcome]) -> set[Any]:
    """Write the outcomes whose claim still stands, in one statement; return their ids."""
    columns = ", ".join(
        f"{name} {kind} PATH '$[{n}]'" for n, (name, kind) in enumerate(_OUTCOME_TYPES.items())
    )
    changes = ", ".join(f"t.{name} = v.{name}" for name in Outcome._fields[2:])
    rows = json.dumps(sorted(outcomes))
    values = f"JSON_TABLE(%s, '$[*]' COLUMNS({columns})) v"
    source = f"{table} t JOIN {values} ON t.id = {_key(connection, table)}"
    hold = (
        f"CASE WHEN v.status = 'READY' AND v.run_after > {now(connection)} "
        "THEN 'scheduled' ELSE '' END"
    )
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE {source} SET {changes}, t.worker_id = NULL, t.hold = {hold} "
            "WHERE t.fence = v.fence AND t.status = 'RUNNING'",
            [rows],
        )
        if cursor.rowcount == len(outcomes):
            return {outcome.id for outcome in outcomes}
        cursor.execute(
            f"SELECT t.id FROM {source} WHERE t.fence = v.fence AND t.status = v.status", [rows]
        )
        return {id for (id,) in cursor.fetchall()}


def _key(connection: Any, table: str) -> str:
    # JSON_TABLE knows no uuid, and its text has a collation of its own: either would keep the
    # join off the primary key.
    if connection.features.has_native_uuid_field:
        return "CAST(v.id AS uuid)"
    return f"v.id COLLATE {_collation(connection.alias, table)}"


@cache
def _collation(alias: str, table: str) -> str:
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT collation_name FROM information_schema.columns "
            "WHERE table_schema = DATABASE() AND table_name = %s AND column_name = 'id'",
            [table],
        )
        return str(cursor.fetchone()[0])


# The SELECT shows the row as it was before its own UPDATE.
_CLAIM = [
    {"claimed_at": "NOW", "fence": "fence + 1", "attempt": "attempt + 1"}.get(name, name)
    for name in Claim._fields[:-1]
]
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
