"""The rows that may be claimed, now or soon.

Owns the conditions that find due and held rows on their indexes, the peek that reads them, and the
promotion of scheduled rows. Never claims a row.
"""

from collections.abc import Iterable
from itertools import batched
from typing import Any, NamedTuple

from django.db import connections

from ..base.queues import AllBut, Queues
from ..base.result import READY
from ..models import TABLE, Hold
from .rows import Change, Pick, Place, hold_of
from .unit import BATCH, dialect, to_datetime, unit_of_work

# SQLite's functions take at most 127 arguments.
MAX_ARGUMENTS = 100
DUE = f"status = '{READY}' AND hold = ''"
# The second condition follows from the third. SQLite uses the partial index only if the query
# repeats it.
_HELD = f"status = '{READY}' AND NOT (hold = '') AND hold = '{{}}' AND backend = %s"
_SCHEDULED = _HELD.format(Hold.SCHEDULED.value)
_QUARANTINED = _HELD.format(Hold.QUARANTINED.value)


def named(db: str, backend: str, queues: Queues) -> Iterable[str] | None:
    """Return the queues by name; None is all.

    Of "all but some" those with due rows are returned. One index probe finds each: the rows of a
    queue, excluded or not, are not read.
    """
    if not isinstance(queues, AllBut):
        return queues
    connection = connections[db]
    found = dialect(connection).queues_of(
        connection, f"{DUE} AND backend = %s AND fence >= 0", backend
    )
    return [name for name in found if name not in queues]


def due_rows(backend: str, queues: Iterable[str] | None) -> tuple[Pick, ...]:
    """Return the picks of due rows: one index range for all queues, or one for each named queue."""
    # The last condition is always true. It makes the planner take the right index: see the model.
    if queues is None:
        where = f"{DUE} AND backend = %s AND attempt >= 0"
        return (Pick(where, (backend,), "dbtasks_due"),)
    where = f"{DUE} AND backend = %s AND queue_name = %s AND fence >= 0"
    return tuple(Pick(where, (backend, queue), "dbtasks_due_in_queue") for queue in queues)


def quarantined_rows(backend: str, queues: Queues) -> Pick:
    """Return the pick of quarantined rows. They are few, so a queue needs no index of its own."""
    names = () if queues is None else tuple(queues)
    verb = "NOT IN" if isinstance(queues, AllBut) else "IN"
    served = f" AND queue_name {verb} ({', '.join(['%s'] * len(names))})" if names else ""
    return Pick(_QUARANTINED + served, (backend, *names), "dbtasks_held")


class QueuePeek(NamedTuple):
    """Whether there are rows to claim, and when the next one will be due."""

    due: bool
    quarantined: bool
    # Seconds until the next scheduled row is due, 0 or less if it is; None if there is none.
    next_due: float | None


def peek(db: str, backend: str, queues: Queues = None) -> QueuePeek:
    """Read the head of the queue in one statement, with three index probes and no lock."""
    connection = connections[db]
    sql, picks = dialect(connection), due_rows(backend, named(db, backend, queues))
    alone = quarantined_rows(backend, queues)
    head = f"(SELECT 1 FROM {TABLE} WHERE {{}} ORDER BY priority DESC, id LIMIT 1)"
    due = _first_of([head.format(pick.where) for pick in picks] or ["NULL"])
    quarantined = f"(SELECT 1 FROM {TABLE} WHERE {alone.where} LIMIT 1)"
    [(is_due, is_quarantined, first, now)] = sql.read(
        connection,
        f"SELECT {due}, COALESCE({quarantined}, 0), MIN(run_after), "
        f"{sql.now(connection)} FROM {TABLE} WHERE {_SCHEDULED}",
        [*(value for pick in (*picks, alone) for value in pick.params), backend],
    )
    first, now = to_datetime(db, first), to_datetime(db, now)
    next_due = (first - now).total_seconds() if first and now else None
    return QueuePeek(bool(is_due), bool(is_quarantined), next_due)


def _first_of(heads: list[str]) -> str:
    """Return SQL for the first of these that is not NULL, or else 0."""
    while len(heads) > MAX_ARGUMENTS:
        # COALESCE takes two arguments or more.
        parts = [", ".join([*part, "NULL"]) for part in batched(heads, MAX_ARGUMENTS)]
        heads = [f"COALESCE({part})" for part in parts]
    return f"COALESCE({', '.join(heads)}, 0)"


def waiting(db: str, backend: str, limit: int = 100) -> list[tuple[Place, float]]:
    """Return the first due rows in the order of claims, and how many seconds each has been due.

    At most `limit` of them, and of quarantined rows, which come after them in no order.
    """
    connection = connections[db]
    sql = dialect(connection)
    names = "queue_name, priority, id, attempt, enqueued_at, last_attempted_at, run_after"
    select = f"SELECT {names}, {sql.now(connection)} FROM {TABLE} WHERE {{}} LIMIT {limit:d}"
    (pick,), alone = due_rows(backend, None), quarantined_rows(backend, None)
    rows = [
        *sql.read(
            connection, select.format(f"{pick.where} ORDER BY priority DESC, id"), pick.params
        ),
        *sql.read(connection, select.format(alone.where), alone.params),
    ]
    found = []
    at: Any
    for queue_name, priority, id, attempt, *times, now in rows:
        *since, at = [to_datetime(db, value) for value in (*times, now)]
        seconds = (at - max(filter(None, since))).total_seconds()
        found.append((Place(queue_name, priority, id, None, attempt), seconds))
    return found


def promote(db: str, backend: str) -> list[Place]:
    """Remove the hold of up to 500 rows whose run_after has passed; return their places."""

    def work(connection: Any, sql: Any) -> list[Place]:
        now = sql.now(connection)
        pick = Pick(f"{_SCHEDULED} AND run_after <= {now}", (backend,), "dbtasks_held")
        verb = f"UPDATE {TABLE} SET hold = {hold_of('run_after', 'lost', now)}"
        places: list[Place] = sql.change(connection, Change(verb, (), (pick,), "run_after", BATCH))
        return places

    return unit_of_work(db, work)
