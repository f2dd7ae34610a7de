"""Settling: RUNNING → SUCCESSFUL, FAILED, or READY again.

Owns the guards of that write: the status, the fence, and that no cancelled row becomes READY. Never
decides what the row becomes: the Outcome says so.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from django.db import InterfaceError, OperationalError, connections

from ..base.result import READY, RUNNING
from ..models import TABLE
from .rows import Outcome
from .unit import adapted, batches, pk_text, unit_of_work

# What tells an outcome that is in the database from another end of the same claim: a rescue, for
# example, has counted a lost worker.
_COUNTS = ("fence", "status", "attempt", "failures", "lost", "releases")
# MySQL's errors after a statement that is too large: it says so, it has gone away, it is lost.
_CUT_OFF = (1153, 2006, 2013)


def settle(db: str, outcomes: Sequence[Outcome], *, wait: bool = False) -> set[Any]:
    """Write the outcomes of claimed rows; return the ids of those that are in the database now.

    A row that has moved on (another fence, or no longer RUNNING) is left as it is. So is a row that
    would be READY again but was cancelled while it ran: the caller settles it as FAILED. So is,
    without `wait`, a row that another transaction has locked: standing() tells which these are.
    """
    written: set[Any] = set()
    for batch in batches(adapted(connections[db], outcomes), _chars):
        written |= unit_of_work(db, partial(_settle, batch, wait))
        if left := [outcome for outcome in batch if outcome.id not in written]:
            # The reply to an earlier write may have been lost.
            written |= {o.id for o, row in _rows_of(db, left) if row[:6] == _counts(o)}
    return written


def standing(db: str, outcomes: Sequence[Outcome]) -> set[Any]:
    """Return the ids of those of the outcomes that settle() could write now.

    If it did not, another transaction has locked the row, or had a moment ago.
    """
    return {
        outcome.id
        for outcome, (fence, status, *_, asked) in _rows_of(db, outcomes)
        if (fence, status) == (outcome.fence, RUNNING) and not (asked and outcome.status == READY)
    }


def is_too_large(db: str, error: Exception, outcomes: Sequence[Outcome]) -> bool:
    """Return whether settle() failed because the server takes no statement as large as this one.

    Only MySQL has such a limit. A server that cuts off a large statement looks like one that went
    away, so its limit is read and compared, on a new connection. False if it does not answer.
    """
    connection = connections[db]
    if connection.vendor != "mysql" or not error.args or error.args[0] not in _CUT_OFF:
        return False
    connection.close()
    with suppress(OperationalError, InterfaceError), connection.cursor() as cursor:
        cursor.execute("SELECT @@max_allowed_packet")
        return bool(sum(map(_bytes, outcomes)) > cursor.fetchone()[0])
    return False


def _settle(batch: Sequence[Outcome], wait: bool, connection: Any, sql: Any) -> set[Any]:
    # In key order, so that two writers that wait never wait for each other.
    in_order = sorted(batch, key=lambda outcome: (outcome.id, outcome.fence))
    ids: set[Any] = sql.settle(connection, in_order, wait)
    return ids


def _rows_of(db: str, outcomes: Sequence[Outcome]) -> Iterator[tuple[Outcome, tuple[Any, ...]]]:
    """Yield each outcome with its row's counts and `cancel_requested`, as they are committed."""
    if not outcomes:
        return
    marks = ", ".join(["%s"] * len(outcomes))
    with connections[db].cursor() as cursor:
        cursor.execute(
            f"SELECT id, {', '.join(_COUNTS)}, cancel_requested FROM {TABLE} WHERE id IN ({marks})",
            [outcome.id for outcome in outcomes],
        )
        found = {pk_text(db, id): tuple(row) for id, *row in cursor.fetchall()}
    for outcome in outcomes:
        if outcome.id in found:
            yield outcome, found[outcome.id]


def _counts(outcome: Outcome) -> tuple[Any, ...]:
    return tuple(getattr(outcome, name) for name in _COUNTS)


def _bytes(outcome: Outcome) -> int:
    """Return about how long the outcome is in a statement, where JSON stands in JSON."""
    texts = (outcome.errors, outcome.worker_ids, outcome.return_value)
    return 1000 + 2 * sum(len(json.dumps(text)) for text in texts if text)


def _chars(outcome: Outcome) -> int:
    return sum(len(text) for text in (outcome.errors, outcome.return_value) if text)
