"""The store's SQL where PostgreSQL differs.

Owns locking with SKIP LOCKED, arrays as parameters, and plans that stay on the index. Never
decides which rows may change: every guard is handed in by a transition, or is the fence.
"""

from collections.abc import Sequence
from typing import Any

from .rows import Claim, NewTask, Outcome, Pick

# Deadlock, serialisation failure, lock timeout: the statement did nothing and may be run again.
TRANSIENT = {"40P01", "40001", "55P03"}


def now(connection: Any) -> str:
    """Return SQL for the database's clock at the start of the statement."""
    return "STATEMENT_TIMESTAMP()"


def is_transient(error: Exception) -> bool:
    """Tell whether the same unit of work may succeed when run again."""
    return getattr(error.__cause__, "sqlstate", None) in TRANSIENT


def insert(connection: Any, table: str, rows: Sequence[NewTask]) -> None:
    """Insert the rows, in one statement; those with a run_after to come are held."""
    names = ", ".join(NewTask._fields)
    types = "uuid text text text smallint text text text timestamptz timestamptz"
    arrays = ", ".join(f"%s::{kind}[]" for kind in types.split())
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({names}, status, hold) SELECT v.*, 'READY', "
            "CASE WHEN run_after > STATEMENT_TIMESTAMP() THEN 'scheduled' ELSE '' END "
            f"FROM unnest({arrays}) AS v({names})",
            list(map(list, zip(*rows, strict=True))),
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
    columns = ", ".join(f"{table}.{name}" for name in _CLAIM)
    sql = f"UPDATE {table} SET {changes}"
    with connection.cursor() as cursor:
        _change(cursor, table, sql, params, picks, "priority DESC", limit, f"RETURNING {columns}")
        return [Claim(*row) for row in cursor.fetchall()]


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
    with connection.cursor() as cursor:
        _change(cursor, table, verb, params, [pick], order, limit, "")
        return int(cursor.rowcount)


def _change(
    cursor: Any,
    table: str,
    verb: str,
    params: Sequence[Any],
    picks: Sequence[Pick],
    order: str,
    limit: int,
    returning: str,
) -> None:
    column = order.split(maxsplit=1)[0]
    # A row that another transaction holds is passed over. The CTEs are materialised, or a nested
    # loop might run a locking scan again and lock more than the limit. `= ANY(ARRAY(…))` keeps
    # the change on the primary key whatever the statistics say: a join would read the whole table.
    locked = ", ".join(
        f"q{n} AS MATERIALIZED (SELECT id, {column} FROM {table} WHERE {pick.where} "
        f"ORDER BY {order}, id LIMIT {limit:d} FOR NO KEY UPDATE SKIP LOCKED)"
        for n, pick in enumerate(picks)
    )
    # Each pick reads its own index in order; only their heads are merged.
    chosen = "SELECT id FROM q0"
    if len(picks) > 1:
        heads = " UNION ALL ".join(f"SELECT * FROM q{n}" for n in range(len(picks)))
        chosen = f"SELECT id FROM ({heads}) q ORDER BY {order}, id LIMIT {limit:d}"
    cursor.execute(
        f"WITH {locked} {verb} WHERE id = ANY(ARRAY({chosen})) {returning}",
        [value for pick in picks for value in pick.params] + list(params),
    )


def settle(connection: Any, table: str, outcomes: Sequence[Outcome]) -> set[Any]:
    """Write the outcomes whose claim still stands, in one statement; return their ids."""
    names = ", ".join(Outcome._fields)
    arrays = ", ".join(f"%s::{kind}[]" for kind in _OUTCOME_TYPES.split())
    changes = ", ".join(f"{name} = k.{name}" for name in Outcome._fields[2:])
    with connection.cursor() as cursor:
        # Each row is looked up on the primary key and locked there, guards included. With the
        # guards in the UPDATE, statistics that know of no RUNNING row lead to a scan of the table.
        cursor.execute(
            f"WITH k AS MATERIALIZED (SELECT v.* FROM unnest({arrays}) AS v({names}) "
            f"CROSS JOIN LATERAL (SELECT 1 FROM {table} WHERE id = v.id AND fence = v.fence "
            "AND status = 'RUNNING' FOR NO KEY UPDATE OFFSET 0) held) "
            f"UPDATE {table} t SET {changes}, worker_id = NULL, hold = {_HOLD} "
            "FROM k WHERE t.id = k.id AND t.id = ANY(ARRAY(SELECT id FROM k)) RETURNING t.id",
            list(map(list, zip(*outcomes, strict=True))),
        )
        return {id for (id,) in cursor.fetchall()}


_HOLD = (
    "CASE WHEN k.status = 'READY' AND k.run_after > STATEMENT_TIMESTAMP() "
    "THEN 'scheduled' ELSE '' END"
)
_CLAIM = [{"claimed_at": "last_attempted_at"}.get(name, name) for name in Claim._fields[:-1]]
_OUTCOME_TYPES = (
    "uuid bigint text int int int timestamptz timestamptz timestamptz timestamptz timestamptz "
    "text text text"
)
