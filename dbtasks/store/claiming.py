"""Claiming: due → RUNNING.

Owns which rows a claim takes and in which order. Never runs anything: a claim is committed before
its task starts.
"""

import time
from typing import Any
from uuid import UUID

from django.db import connections

from ..base.queues import Queues
from ..base.result import READY, RUNNING
from ..models import TABLE, WORKERS, Hold
from .due import due_rows, named, quarantined_rows
from .rows import Change, Claim, Pick
from .unit import dialect, pk_text, to_datetime, unit_of_work

_CLAIM = (
    f"UPDATE {TABLE} SET status = '{RUNNING}', hold = '{{hold}}', fence = fence + 1, "
    "attempt = attempt + 1, worker_id = %s, last_attempted_at = {now}"
)
_STARTABLE = f"status = '{READY}' AND hold IN ('', '{Hold.QUARANTINED.value}')"
_ALIVE = f"EXISTS (SELECT 1 FROM {WORKERS} WHERE worker_id = %s AND state = 'live')"


def claim(
    db: str,
    backend: str,
    worker_id: str,
    limit: int,
    queues: Queues = None,
    *,
    registered: bool = False,
    beyond: Claim | None = None,
) -> list[Claim]:
    """Claim up to `limit` due rows for the worker, from those queues, or from all if None.

    Return them RUNNING and committed, highest priority first, then oldest first. Fewer than `limit`
    rows may be returned although more are due; without `beyond`, none means that none is due. With
    `registered`, a worker that was declared lost gets nothing.

    `beyond` is an earlier claim: rows of its priority that are older are skipped, and with them the
    dead index entries that such claims leave.
    """
    picks = due_rows(backend, named(db, backend, queues))
    if not picks:
        return []
    in_turn = (
        beyond is not None
        and len(picks) == 1
        and dialect(connections[db]).LEAVES_DEAD_INDEX_ENTRIES
    )
    if beyond is not None and in_turn:
        picks = _after(picks[0], beyond.priority, beyond.id)
    if registered:
        picks = tuple(_while_live(pick, worker_id) for pick in picks)
    return _claim(db, worker_id, picks, limit, in_turn=in_turn)


def claim_quarantined(
    db: str,
    backend: str,
    worker_id: str,
    queues: Queues = None,
    *,
    registered: bool = False,
) -> Claim | None:
    """Claim a quarantined row as claim() does; return None if none is due."""
    pick = quarantined_rows(backend, queues)
    if registered:
        pick = _while_live(pick, worker_id)
    claims = _claim(db, worker_id, (pick,), 1, order="run_after")
    return claims[0] if claims else None


def claim_one(
    db: str, backend: str, worker_id: str, id: UUID, hold: Hold = Hold.NONE
) -> Claim | None:
    """Claim the due row with that id and set its hold; return None if it is not due."""
    where = f"{_STARTABLE} AND backend = %s AND id = %s"
    claims = _claim(db, worker_id, (Pick(where, (backend, pk_text(db, id)), "PRIMARY"),), 1, hold)
    return claims[0] if claims else None


def _after(pick: Pick, priority: int, id: Any) -> tuple[Pick, ...]:
    """Return the pick without older rows of that priority, as index ranges in claim order."""
    ranges = {
        "priority > %s": (priority,),
        "priority = %s AND id > %s": (priority, id),
        "priority < %s": (priority,),
    }
    return tuple(
        pick._replace(where=f"{pick.where} AND {condition}", params=(*pick.params, *values))
        for condition, values in ranges.items()
    )


def _while_live(pick: Pick, worker_id: str) -> Pick:
    """Return the pick with the condition that the worker is registered as live."""
    return pick._replace(where=f"{pick.where} AND {_ALIVE}", params=(*pick.params, worker_id))


def _claim(
    db: str,
    worker_id: str,
    picks: tuple[Pick, ...],
    limit: int,
    hold: Hold = Hold.NONE,
    *,
    order: str = "priority DESC, id",
    in_turn: bool = False,
) -> list[Claim]:
    def work(connection: Any, sql: Any) -> tuple[float, list[tuple[Any, ...]]]:
        verb = _CLAIM.format(now=sql.now(connection), hold=hold.value)
        change = Change(verb, (worker_id,), picks, order, limit, in_turn)
        # Read just before the statement, whose start is the time of the claim on the database's
        # clock.
        connection.ensure_connection()
        clock = time.monotonic()
        return clock, sql.claim(connection, change)

    clock, rows = unit_of_work(db, work)
    if not rows:
        return []
    # All rows have the same time of claim. RETURNING promises no order.
    claimed_at = to_datetime(db, rows[0][-1])
    claims = [Claim._make((*row[:-1], claimed_at, clock)) for row in rows]
    claims.sort(key=lambda claim: (-claim.priority, claim.id))
    return claims
