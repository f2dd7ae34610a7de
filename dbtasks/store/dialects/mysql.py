"""The store's SQL where MySQL and MariaDB differ.

Owns their two-step claim, JSON as a table of parameters, and their clock. Never decides which rows
may change: a transition passes the guards, apart from the fence.
"""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connections, transaction
from django.utils import timezone

from ...models import TABLE
from ..rows import (
    SETTLE,
    SETTLED,
    STANDING,
    Change,
    Claim,
    NewTask,
    Outcome,
    Pick,
    Place,
    hold_of,
    settling,
)

# Index entries of claimed rows stay until InnoDB purges them, which waits for the server's oldest
# transaction.
LEAVES_DEAD_INDEX_ENTRIES = True

LOCK_TIMEOUT = 1205
# Lock wait timeout, deadlock, and MariaDB's "record has changed": run the whole unit again.
TRANSIENT = {LOCK_TIMEOUT, 1213, 1020}
# Incorrect string value: the driver calls it an OperationalError, and it is due to the data.
REFUSALS = {1366}
# Start of a MariaDB statement that fails at once if another transaction has locked one of its rows.
NO_WAIT = "SET STATEMENT innodb_lock_wait_timeout = 0 FOR "
# Start and end of an INSERT that does nothing if a unique index has such a row. ON DUPLICATE KEY
# UPDATE would count such a row.
INSERT_NEW = ("INSERT IGNORE INTO", "")
# What an error that no retry cures means, by its number.
TROUBLES = {1290: "read-only", 1792: "read-only", 1836: "read-only"}
TROUBLES |= {1044: "denied", 1142: "denied", 1143: "denied", 1370: "denied"}
TROUBLES |= {1054: "missing", 1146: "missing"}


def check_version(connection: Any) -> None:
    """Raise ImproperlyConfigured if the server's indexes are in ascending order only.

    A claim would then sort, and lock, every row that is due.
    """
    if connection.mysql_is_mariadb and connection.mysql_version < (10, 8):
        version = ".".join(map(str, connection.mysql_version))
        raise ImproperlyConfigured(
            f"The database {connection.alias!r} is MariaDB {version}, which has no descending "
            "indexes. A runner needs MariaDB 10.8 or later."
        )


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


def trouble(error: Exception) -> str | None:
    """Return why a table cannot be used, by the value of a Trouble; None if it is another error."""
    return TROUBLES.get(error.args[0]) if error.args else None


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


def queues_of(connection: Any, where: str, backend: str) -> list[str]:
    """Return the names of the queues that have rows of that condition."""
    found: list[str] = []
    with connection.cursor() as cursor:
        # One probe after the other: in one statement it would read all rows of each queue.
        while True:
            later = " AND queue_name > %s" if found else ""
            cursor.execute(
                f"SELECT queue_name FROM {TABLE} FORCE INDEX (dbtasks_due_in_queue) "
                f"WHERE {where}{later} ORDER BY queue_name LIMIT 1",
                [backend, *found[-1:]],
            )
            row = cursor.fetchone()
            if row is None:
                return found
            found.append(row[0])


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


def settle(connection: Any, outcomes: Sequence[Outcome], wait: bool) -> set[Any]:
    """Write the outcomes whose claim still stands; return their ids, or none if some were not.

    Without `wait`, rows that another transaction has locked are skipped.
    """
    if wait:
        return _settle(connection, outcomes)
    if connection.mysql_is_mariadb:
        try:
            return _settle(connection, outcomes, NO_WAIT)
        except OperationalError as error:
            if error.args[0] != LOCK_TIMEOUT:
                raise
    # An UPDATE cannot skip locked rows. So the free ones are locked first.
    marks = ", ".join(["%s"] * len(outcomes))
    with transaction.atomic(connection.alias), connection.cursor() as cursor:
        cursor.execute(
            f"SELECT id FROM {TABLE} FORCE INDEX (PRIMARY) WHERE id IN ({marks}) "
            "FOR UPDATE SKIP LOCKED",
            [outcome.id for outcome in outcomes],
        )
        locked = {str(id) for (id,) in cursor.fetchall()}
        free = [outcome for outcome in outcomes if outcome.id in locked]
        return _settle(connection, free) if free else set()


def _settle(connection: Any, outcomes: Sequence[Outcome], begin: str = "") -> set[Any]:
    with connection.cursor() as cursor:
        if len(outcomes) == 1:
            # 0.5 ms; a table of one row takes 0.8.
            sql = SETTLE.format(table=TABLE, hold=hold_of("%s", "%s", now(connection)))
            cursor.execute(f"{begin}{sql}{STANDING}", settling(outcomes[0]))
        else:
            cursor.execute(begin + _settle_many(connection), [json.dumps(outcomes)])
        is_whole = cursor.rowcount == len(outcomes)
    return {outcome.id for outcome in outcomes} if is_whole else set()


def _settle_many(connection: Any) -> str:
    columns = ", ".join(
        f"{name} {kind} PATH '$[{n}]'" for n, (name, kind) in enumerate(_OUTCOME_TYPES.items())
    )
    changes = ", ".join(f"t.{name} = v.{name}" for name in Outcome._fields[2:])
    hold = hold_of("v.run_after", "v.lost", now(connection))
    # Each row is found by its primary key. With stale statistics the planner would otherwise read
    # the index of a status, and lock for a moment what a claim would then skip.
    return (
        f"UPDATE JSON_TABLE(%s, '$[*]' COLUMNS({columns})) v "
        f"STRAIGHT_JOIN {TABLE} t FORCE INDEX (PRIMARY) ON t.id = {_key(connection)} "
        f"SET {changes}, {SETTLED}, "
        f"t.hold = CASE WHEN v.status = 'READY' THEN {hold} ELSE '' END "
        "WHERE t.fence = v.fence AND t.status = 'RUNNING' "
        "AND NOT (t.cancel_requested AND v.status = 'READY')"
    )


def _key(connection: Any) -> str:
    # JSON_TABLE has no uuid, and its text has a collation of its own. Either would keep the join
    # from using the primary key, and some collations cannot be compared at all.
    if connection.features.has_native_uuid_field:
        return "CAST(v.id AS uuid)"
    charset, collation = _text_of_ids(connection.alias)
    return f"CONVERT(v.id USING {charset}) COLLATE {collation}"


@cache
def _text_of_ids(alias: str) -> tuple[str, str]:
    """Return the character set and the collation of the primary key."""
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT character_set_name, collation_name FROM information_schema.columns "
            "WHERE table_schema = DATABASE() AND table_name = %s AND column_name = 'id'",
            [TABLE],
        )
        charset, collation = cursor.fetchone()
    return str(charset), str(collation)


# The SELECT shows the row as it was before its own UPDATE.
_CLAIM = [
    {"claimed_at": "NOW", "fence": "fence + 1", "attempt": "attempt + 1"}.get(name, name)
    for name in Claim._fields[:-1]
]
_ID, _PRIORITY = Claim._fields.index("id"), Claim._fields.index("priority")
# Else it would be the database's default, which may lack characters.
_TEXT = "CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
_OUTCOME_TYPES = {
    "id": f"CHAR(36) {_TEXT}",
    "fence": "BIGINT",
    "status": f"CHAR(10) {_TEXT}",
    "attempt": "INT",
    "failures": "INT",
    "lost": "INT",
    "releases": "INT",
    "run_after": "DATETIME(6)",
    "started_at": "DATETIME(6)",
    "last_attempted_at": "DATETIME(6)",
    "finished_at": "DATETIME(6)",
    "delete_after": "DATETIME(6)",
    "errors": f"LONGTEXT {_TEXT}",
    "worker_ids": f"LONGTEXT {_TEXT}",
    "return_value": f"LONGTEXT {_TEXT}",
}
