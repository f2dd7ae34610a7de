"""The store's SQL where SQLite differs.

Owns its single-statement claim and its clock, which is this machine's. Never decides which rows
may change: every guard is handed in by a transition, or is the fence.
"""

from collections.abc import Sequence
from typing import Any

from django.db import transaction
from django.utils import timezone

from .rows import Claim, NewTask, Outcome, Pick


def now(connection: Any) -> str:
    """Return SQL for the clock: a literal, for SQLite's own has only milliseconds."""
    return f"'{connection.ops.adapt_datetimefield_value(timezone.now())}'"


def is_transient(error: Exception) -> bool:
    """Tell whether the same unit of work may succeed when run again."""
    return "locked" in str(error)


def insert(connection: Any, table: str, rows: Sequence[NewTask]) -> None:
    """Insert the rows; those with a run_after to come are held."""
    names = ", ".join(NewTask._fields)
    marks = ", ".join(["%s"] * len(NewTask._fields))
    hold = f"CASE WHEN %s > {now(connection)} THEN 'scheduled' ELSE '' END"
    with transaction.atomic(connection.alias, savepoint=False), connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {table} ({names}, status, hold) VALUES ({marks}, 'READY', {hold})",
            [(*row, row.run_after) for row in rows],
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
    sql, returning = f"UPDATE {table} SET {changes}", f"RETURNING {', '.join(_CLAIM)}"
    with connection.cursor() as cursor:
        _change(cursor, table, sql, params, picks, "priority DESC", limit, returning)
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
    # One statement is one write transaction from its start: nobody comes in between, and nothing
    # is read under a lock that has yet to be upgraded.
    heads = " UNION ALL ".join(
        f"SELECT * FROM (SELECT id, {order.split(maxsplit=1)[0]} FROM {table} WHERE {pick.where} "
        f"ORDER BY {order}, id LIMIT {limit:d})"
        for pick in picks
    )
    chosen = f"SELECT id FROM ({heads})" + f" ORDER BY {order}, id LIMIT {limit:d}" * (
        len(picks) > 1
    )
    cursor.execute(
        f"{verb} WHERE id IN ({chosen}) {returning}",
        [*params, *(value for pick in picks for value in pick.params)],
    )


def settle(connection: Any, table: str, outcomes: Sequence[Outcome]) -> set[Any]:
    """Write the outcomes whose claim still stands, in one transaction; return their ids."""
    changes = ", ".join(f"{name} = %s" for name in Outcome._fields[2:])
    hold = f"CASE WHEN %s = 'READY' AND %s > {now(connection)} THEN 'scheduled' ELSE '' END"
    with transaction.atomic(connection.alias), connection.cursor() as cursor:
        cursor.executemany(
            f"UPDATE {table} SET {changes}, worker_id = NULL, hold = {hold} "
            "WHERE id = %s AND fence = %s AND status = 'RUNNING'",
            [(*o[2:], o.status, o.run_after, o.id, o.fence) for o in outcomes],
        )
        if cursor.rowcount == len(outcomes):
            return {outcome.id for outcome in outcomes}
        marks = ", ".join(["(%s, %s, %s)"] * len(outcomes))
        cursor.execute(
            f"SELECT id FROM {table} WHERE (id, fence, status) IN (VALUES {marks})",
            [value for outcome in outcomes for value in outcome[:3]],
        )
        return {id for (id,) in cursor.fetchall()}


_CLAIM = [{"claimed_at": "last_attempted_at"}.get(name, name) for name in Claim._fields[:-1]]
