"""Writes outcomes, each as the state of its row allows.

Owns what happens to an outcome whose row was cancelled or has moved on meanwhile, and retries in
the thread of a caller. Never retries in a runner: its OutcomeWriter does.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

from django.db import Error, connections

from .. import store
from ..base.result import READY
from ..db.connections import discard
from ..db.service import Pauses
from ..store import Outcome, Place
from ..store.unit import Refused, refusals
from . import outcomes
from .attempt import Attempt

logger = logging.getLogger("dbtasks.runner")

# How often settle_now() writes an outcome while the database fails: for about five seconds.
TRIES = 7

Ended = tuple[Attempt, Outcome]


def settle(db: str, batch: list[Ended]) -> list[Ended]:
    """Write the outcomes; return those whose claim still stood, as written; log the others.

    A row that would be READY again, but was cancelled while it ran, becomes FAILED. If another
    transaction has locked a row, this waits for its end.
    """
    ended, _ = _settle(db, batch, wait=True)
    return ended


def settle_unlocked(db: str, batch: list[Ended]) -> tuple[list[Ended], list[Ended]]:
    """Do what settle() does, but skip rows that another transaction has locked.

    Return what settle() returns, and the outcomes that were skipped, to be tried again.
    """
    return _settle(db, batch, wait=False)


def _settle(db: str, batch: list[Ended], wait: bool) -> tuple[list[Ended], list[Ended]]:
    ended, left = _write(db, batch, wait)
    if not left:
        return batch, []
    left, locked = _standing(db, left, wait)
    if back := [one for one in left if one[1].status == READY]:
        cancelled = [(attempt, attempt.cancelled(outcome)) for attempt, outcome in back]
        written, rest = _write(db, cancelled, wait)
        rest, waiting = _standing(db, rest, wait)
        ended, locked = ended + written, locked + waiting
        left = [one for one in left if one[1].status != READY] + rest
    for attempt, outcome in left:
        logger.warning(
            "%s %s has moved on; its outcome %s was dropped",
            attempt.claim.task_path,
            outcome.id,
            outcome.status,
        )
    return ended, locked


def _write(db: str, batch: list[Ended], wait: bool) -> tuple[list[Ended], list[Ended]]:
    """Return the outcomes that are in the database now, and the others."""
    options = {"wait": True} if wait else {}
    written = store.settle(db, [outcome for _, outcome in batch], **options)
    if len(written) == len(batch):
        return batch, []
    return _divided(batch, written)


def _standing(db: str, batch: list[Ended], wait: bool) -> tuple[list[Ended], list[Ended]]:
    """Return the outcomes whose claim is gone, and those whose row is locked."""
    if wait or not batch:
        return batch, []
    standing = store.standing(db, [outcome for _, outcome in batch])
    locked, gone = _divided(batch, standing)
    return gone, locked


def _divided(batch: list[Ended], ids: set[Any]) -> tuple[list[Ended], list[Ended]]:
    """Return the outcomes with those ids, and the others."""
    return (
        [one for one in batch if one[1].id in ids],
        [one for one in batch if one[1].id not in ids],
    )


def settle_now(db: str, attempt: Attempt, outcome: Outcome) -> Outcome:
    """Write the outcome in the thread of a caller; return it as written.

    If the database refuses the data, a plain error is written instead.
    """
    ended = (attempt, outcome)
    try:
        written = _settle_with_retries(db, ended)
    except Refused:
        ended = unstorable(attempt, outcome)
        written = _settle_with_retries(db, ended)
    return written[0][1] if written else ended[1]


def _settle_with_retries(db: str, ended: Ended) -> list[Ended]:
    """Write the outcome; return it if its claim still stood. Raise Refused if its data are wrong.

    A connection may break while a task runs, the database may fail over, and Ctrl-C may come in the
    middle of a statement. So try again on new connections for some seconds: the guards prevent a
    second write. Inside a transaction there is one try.
    """
    connection, pauses, interrupt = connections[db], Pauses(), None
    for left in reversed(range(TRIES)):
        try:
            connection.ensure_connection()
            with refusals(db):
                written = settle(db, [ended])
            break
        except (Error, KeyboardInterrupt) as error:
            if connection.in_atomic_block or not left:
                raise
            discard(connection)
            if isinstance(error, KeyboardInterrupt):
                interrupt = error
            else:
                time.sleep(pauses.next())
    if interrupt is not None:
        raise interrupt
    return written


def unstorable(attempt: Attempt, outcome: Outcome) -> Ended:
    """Return the attempt and an outcome that every database can store; log an error."""
    logger.error("The outcome of %s %s cannot be stored", attempt.claim.task_path, outcome.id)
    return attempt, outcomes.unstorable(outcome)


def ready_places(batch: Sequence[Ended]) -> list[Place]:
    """Return the places of the rows in the batch that are READY again, now or later."""
    return [
        Place(
            attempt.claim.queue_name,
            attempt.claim.priority,
            attempt.claim.id,
            None if _is_due(attempt, outcome) else outcome.run_after,
            outcome.attempt,
        )
        for attempt, outcome in batch
        if outcome.status == READY
    ]


def _is_due(attempt: Attempt, outcome: Outcome) -> bool:
    return outcome.run_after is None or bool(outcome.run_after <= attempt.at(time.monotonic()))
