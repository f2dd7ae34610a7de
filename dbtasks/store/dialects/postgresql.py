"""The store's SQL where PostgreSQL differs.

Owns locking with SKIP LOCKED, arrays as parameters, and plans that stay on the index. Never decides
which rows may change: a transition passes the guards, apart from the fence.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from django.db import Error, transaction

from ...models import TABLE
from ..rows import (
    QUEUES,
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

# Deadlock, serialisation failure, lock timeout: the statement did nothing and may be run again.
TRANSIENT = {"40P01", "40001", "55P03"}

# Index entries of claimed rows stay until a vacuum: a minute, or as long as the server's oldest
# transaction is open.
LEAVES_DEAD_INDEX_ENTRIES = True

# The statistics of a queue are always wrong: it was empty or full when they were taken. With them
# the planner sorts, or reads the whole table, where an index has the rows in order. What it cannot
# avoid (merging two queues) then looks so expensive that it compiles the statement first: measured
# 260 ms per claim.
_OFF = ("enable_seqscan", "enable_bitmapscan", "enable_sort", "jit")
PIN = "SELECT " + ", ".join(f"set_config('{name}', 'off', true)" for name in _OFF)
# libpq's status of a connection that is in no transaction.
IDLE = 0
# Start and end of an INSERT that does nothing if a unique index has such a row.
INSERT_NEW = ("INSERT INTO", "ON CONFLICT DO NOTHING")
# What an error that no retry cures means, by its SQLSTATE.
TROUBLES = {"25006": "read-only", "42501": "denied", "42P01": "missing", "42703": "missing"}


def check_version(connection: Any) -> None:
    """Accept every version that Django supports."""


def now(connection: Any) -> str:
    """Return SQL for the database's clock at the start of the statement."""
    return "STATEMENT_TIMESTAMP()"


def microseconds(connection: Any) -> str:
    """Return SQL for the same clock in microseconds since 1970."""
    return "CAST(EXTRACT(EPOCH FROM STATEMENT_TIMESTAMP()) * 1000000 AS bigint)"


def is_transient(error: Exception) -> bool:
    """Return whether the same unit of work may succeed when it is run again."""
    return getattr(error.__cause__, "sqlstate", None) in TRANSIENT


def trouble(error: Exception) -> str | None:
    """Return why a table cannot be used, by the value of a Trouble; None if it is another error."""
    cause = error.__cause__
    return TROUBLES.get(getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or "")


def insert(connection: Any, rows: Sequence[NewTask], hint: tuple[str, str] | None) -> bool:
    """Insert the rows in one statement; hold those with a future run_after.

    Return whether the hint, a channel and a payload, was sent after the commit.
    """
    sql, params = (
        _insert_one(connection, rows[0]) if len(rows) == 1 else _insert_many(connection, rows)
    )
    is_free = not connection.in_atomic_block and connection.get_autocommit()
    with connection.cursor() as cursor:
        if hint is None or not is_free or not _takes_several(connection):
            cursor.execute(sql, params)
            return False
        try:
            # One message with two transactions: measured 0.3 ms less than a round trip for each.
            cursor.execute(f"BEGIN; {sql}; COMMIT; SELECT pg_notify(%s, %s)", [*params, *hint])
        except Error:
            if not _is_written(connection, rows[0].id):
                raise
            # Only the hint has failed.
            return False
    return True


def _is_written(connection: Any, id: Any) -> bool:
    """Return whether the row of a failed message was committed; roll back what is still open.

    On a connection that was lost nobody can say: enqueue() asks on another one.
    """
    with suppress(Error):
        if connection.connection.info.transaction_status != IDLE:
            connection.rollback()
            return False
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT 1 FROM {TABLE} WHERE id = %s", [id])
            return cursor.fetchone() is not None
    return False


def _insert_one(connection: Any, row: NewTask) -> tuple[str, list[Any]]:
    # Planning takes two thirds of the time that it takes with arrays.
    marks = ", ".join(["%s"] * len(row))
    hold = hold_of("%s::timestamptz", "0", now(connection))
    return (
        f"INSERT INTO {TABLE} ({', '.join(row._fields)}, status, hold) "
        f"VALUES ({marks}, 'READY', {hold})"
    ), [*row, row.run_after]


def _insert_many(connection: Any, rows: Sequence[NewTask]) -> tuple[str, list[Any]]:
    names, source, params = _source(rows, _NEW_TYPES)
    return (
        f"WITH v({names}) AS ({source}) "
        f"INSERT INTO {TABLE} ({names}, status, hold) SELECT v.*, 'READY', "
        f"{hold_of('run_after', '0', now(connection))} FROM v"
    ), params


def claim(connection: Any, change: Change) -> list[Any]:
    """Make the change and return the rows as they are then, in no order."""
    return _pinned(connection, *_statement(change, f"RETURNING {', '.join(_CLAIM)}"))


def change(connection: Any, change: Change) -> list[Place]:
    """Make the change; return the places of the changed rows, in no order."""
    rows = _pinned(connection, *_statement(change, "RETURNING queue_name, priority, id::text"))
    return [Place(*row) for row in rows]


def read(connection: Any, sql: str, params: Sequence[Any]) -> list[Any]:
    """Return the rows of a SELECT that must stay on its indexes."""
    return _pinned(connection, sql, params)


def queues_of(connection: Any, where: str, backend: str) -> list[str]:
    """Return the names of the queues that have rows of that condition."""
    sql = QUEUES.format(table=TABLE, where=where)
    return [name for (name,) in read(connection, sql, [backend, backend])]


def _statement(change: Change, returning: str) -> tuple[str, list[Any]]:
    # Rows that another transaction has locked are skipped. `= ANY(ARRAY(…))` keeps the change on
    # the primary key, where a join would read the whole table. It is evaluated once, where a nested
    # loop might repeat the locking scan and lock more rows than the limit.
    locks = [_lock(change, pick, n) for n, pick in enumerate(change.picks)]
    params = [value for pick in change.picks for value in pick.params]
    if len(locks) == 1:
        sql = f"{change.verb} WHERE id = ANY(ARRAY({locks[0]})) {returning}"
        return sql, [*change.params, *params]
    # Each pick reads its own index in order; only their first rows are merged.
    locked = ", ".join(f"q{n} AS MATERIALIZED ({lock})" for n, lock in enumerate(locks))
    chosen = " UNION ALL ".join(f"SELECT id, {change.column} FROM q{n}" for n in range(len(locks)))
    if not change.in_turn:
        chosen = f"SELECT * FROM ({chosen}) q ORDER BY {change.order} LIMIT {change.limit:d}"
    ids = f"ARRAY(SELECT id FROM ({chosen}) chosen)"
    return f"WITH {locked} {change.verb} WHERE id = ANY({ids}) {returning}", [
        *params,
        *change.params,
    ]


def _lock(change: Change, pick: Pick, number: int) -> str:
    limit = str(change.limit)
    columns = "id" if len(change.picks) == 1 else f"id, {change.column}"
    if change.in_turn:
        # Only what the picks before it have left: to lock a row costs as much as to claim it.
        limit += "".join(f" - (SELECT count(*) FROM q{n})" for n in range(number))
    return (
        f"SELECT {columns} FROM {TABLE} WHERE {pick.where} "
        f"ORDER BY {change.order} LIMIT {limit} FOR NO KEY UPDATE SKIP LOCKED"
    )


def _pinned(connection: Any, sql: str, params: Sequence[Any]) -> list[Any]:
    """Run one statement with a plan that only follows indexes; return its rows."""
    if connection.in_atomic_block or not _takes_several(connection):
        with transaction.atomic(connection.alias), connection.cursor() as cursor:
            cursor.execute(PIN)
            cursor.execute(sql, params)
            rows = cursor.fetchall()
            cursor.execute(PIN.replace("'off'", "'on'"))
            return list(rows)
    with connection.cursor() as cursor:
        # One message is one transaction, and the settings end with it. This saves a round trip.
        cursor.execute(f"{PIN}; {sql}", params)
        cursor.nextset()
        return list(cursor.fetchall())


def _takes_several(connection: Any) -> bool:
    """Return whether one message may hold several statements; with psycopg 2 it may not."""
    # psycopg 2 returns the last result only.
    is_bound_by_server = connection.features.uses_server_side_binding
    return hasattr(connection.Database, "pq") and not is_bound_by_server


def settle(connection: Any, outcomes: Sequence[Outcome], wait: bool) -> set[Any]:
    """Write the outcomes whose claim still stands, in one statement; return their ids.

    Without `wait`, rows that another transaction has locked are skipped.
    """
    lock = "FOR NO KEY UPDATE" if wait else "FOR NO KEY UPDATE SKIP LOCKED"
    if len(outcomes) == 1:
        return _settle_one(connection, outcomes[0], lock)
    names, source, params = _source(outcomes, _OUTCOME_TYPES)
    changes = ", ".join(f"{name} = k.{name}" for name in Outcome._fields[2:])
    hold = hold_of("k.run_after", "k.lost", now(connection))
    with connection.cursor() as cursor:
        # Each row is found by its primary key and locked there, with its guards. If the statistics
        # show no RUNNING row, guards in the UPDATE lead to a scan of the table, and a plain `status
        # = 'RUNNING'` to a scan of the index of running rows for each row: measured 400 ms a batch
        # among 20,000 dead entries, instead of 13.
        cursor.execute(
            f"WITH v({names}) AS ({source}), k AS MATERIALIZED (SELECT v.* FROM v "
            f"CROSS JOIN LATERAL (SELECT 1 FROM {TABLE} WHERE id = v.id "
            "AND CASE status WHEN 'RUNNING' THEN fence END = v.fence "
            f"AND NOT (cancel_requested AND v.status = 'READY') {lock} OFFSET 0) held) "
            f"UPDATE {TABLE} t SET {changes}, {SETTLED}, "
            f"hold = CASE WHEN k.status = 'READY' THEN {hold} ELSE '' END FROM k "
            "WHERE t.id = k.id AND t.id = ANY(ARRAY(SELECT id FROM k)) RETURNING t.id::text",
            params,
        )
        return {id for (id,) in cursor.fetchall()}


def _settle_one(connection: Any, outcome: Outcome, lock: str) -> set[Any]:
    # 0.6 ms; with arrays, which take longer to plan, 0.8.
    hold = hold_of("%s::timestamptz", "%s", now(connection))
    sql = SETTLE.format(table=TABLE, hold=hold)
    sql += f"id = (SELECT id FROM {TABLE} WHERE {STANDING} {lock})"
    with connection.cursor() as cursor:
        cursor.execute(sql, settling(outcome))
        return {outcome.id} if cursor.rowcount else set()


def _source(rows: Sequence[Any], types: dict[str, str]) -> tuple[str, str, list[Any]]:
    """Return the column names, a SELECT of the rows, and its parameters: one array per column.

    A value that is the same in all rows is sent once, because rows of one batch differ in little.
    """
    columns = dict(zip(types, zip(*rows, strict=True), strict=True))
    same = {n: v[0] for n, v in columns.items() if n != "id" and v.count(v[0]) == len(v)}
    differ = {n: _array(v, types[n]) for n, v in columns.items() if n not in same}
    arrays = ", ".join(f"%s::{types[name]}[]" for name in differ)
    constants = "".join(f", %s::{types[name]}" for name in same)
    source = f"SELECT v.*{constants} FROM unnest({arrays}) v"
    return ", ".join([*differ, *same]), source, [*same.values(), *differ.values()]


def _array(values: Sequence[Any], kind: str) -> str:
    """Return the values as an array in PostgreSQL's form. The driver takes three times as long."""
    show = _quoted if kind == "text" else str
    return "{" + ",".join(["NULL" if v is None else show(v) for v in values]) + "}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


_NEW_TYPES = {
    "id": "uuid",
    "task_path": "text",
    "backend": "text",
    "queue_name": "text",
    "priority": "smallint",
    "args": "text",
    "kwargs": "text",
    "policy": "text",
    "meta": "text",
    "enqueued_at": "timestamptz",
    "run_after": "timestamptz",
}
# Ids and times are read as text: most are never used, and parsing one costs as much as all the
# rest.
_TEXTS = {
    "id": f"{TABLE}.id::text",
    "enqueued_at": f"{TABLE}.enqueued_at::text",
    "run_after": f"{TABLE}.run_after::text",
    "started_at": f"{TABLE}.started_at::text",
    "claimed_at": f"{TABLE}.last_attempted_at::text",
}
_CLAIM = [_TEXTS.get(name, f"{TABLE}.{name}") for name in Claim._fields[:-1]]
_OUTCOME_TYPES = {
    "id": "uuid",
    "fence": "bigint",
    "status": "text",
    "attempt": "int",
    "failures": "int",
    "lost": "int",
    "releases": "int",
    "run_after": "timestamptz",
    "started_at": "timestamptz",
    "last_attempted_at": "timestamptz",
    "finished_at": "timestamptz",
    "delete_after": "timestamptz",
    "errors": "text",
    "worker_ids": "text",
    "return_value": "text",
}
