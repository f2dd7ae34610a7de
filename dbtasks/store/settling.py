"""Settling: RUNNING → SUCCESSFUL, FAILED, or READY again.

Owns the guards of that write: the status, the fence, and that no cancelled row becomes READY. Never
decides what the row becomes: the Outcome says so.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from django.db import connections

from .rows import Outcome
from .unit import adapted, batches, unit_of_work


def settle(db: str, outcomes: Sequence[Outcome]) -> set[Any]:
    """Write the outcomes of claimed rows; return the ids of those whose claim still stood.

    A row that has moved on (another fence, or no longer RUNNING) is left as it is. So is a row that
    would be READY again but was cancelled while it ran: the caller settles it as FAILED.
    """
    written: set[Any] = set()
    for batch in batches(adapted(connections[db], outcomes), _chars):
        written |= unit_of_work(db, partial(_settle, batch))
    return written


def _settle(batch: Sequence[Outcome], connection: Any, sql: Any) -> set[Any]:
    ids: set[Any] = sql.settle(connection, batch)
    return ids


def _chars(outcome: Outcome) -> int:
    return sum(len(text) for text in (outcome.errors, outcome.return_value) if text)
