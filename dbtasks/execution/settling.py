"""Writes outcomes, each as the state of its row allows.

Owns what happens to an outcome whose row was cancelled or has moved on meanwhile. Never retries:
the caller does.
"""

import logging
import time
from collections.abc import Sequence

from .. import store
from ..base.result import READY
from ..store import Outcome, Place
from . import outcomes
from .attempt import Attempt

logger = logging.getLogger("dbtasks.runner")

Ended = tuple[Attempt, Outcome]


def settle(db: str, batch: list[Ended]) -> list[Ended]:
    """Write the outcomes; return those whose claim still stood, as written; log the others.

    A row that would be READY again, but was cancelled while it ran, becomes FAILED.
    """
    written = store.settle(db, [outcome for _, outcome in batch])
    if len(written) == len(batch):
        return batch
    ended = [one for one in batch if one[1].id in written]
    left = [one for one in batch if one[1].id not in written]
    if back := [one for one in left if one[1].status == READY]:
        cancelled = [(attempt, attempt.cancelled(outcome)) for attempt, outcome in back]
        written = store.settle(db, [outcome for _, outcome in cancelled])
        ended += [one for one in cancelled if one[1].id in written]
        left = [one for one in left if one[1].id not in written]
    for attempt, outcome in left:
        logger.warning(
            "%s %s has moved on, or was stored before; its outcome %s was dropped",
            attempt.claim.task_path,
            outcome.id,
            outcome.status,
        )
    return ended


def unstorable(attempt: Attempt, outcome: Outcome) -> Ended:
    """Return the attempt and an outcome that every database can store; log an error."""
    logger.error("The outcome of %s %s cannot be stored", attempt.claim.task_path, outcome.id)
    return attempt, outcomes.unstorable(outcome)


def due_places(batch: Sequence[Ended]) -> list[Place]:
    """Return the places of the rows in the batch that are due now."""
    return [
        Place(attempt.claim.queue_name, attempt.claim.priority, attempt.claim.id)
        for attempt, outcome in batch
        if outcome.status == READY
        and (outcome.run_after is None or outcome.run_after <= attempt.at(time.monotonic()))
    ]
