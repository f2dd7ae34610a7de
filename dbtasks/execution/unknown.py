"""Rows whose task this process does not know.

Owns how long such a row waits for a process that knows it. In a rolling deployment old runners meet
rows of the new code; another runner may run them. Never imports a module.
"""

import logging
import random
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from .. import store
from ..exceptions import PolicyUnreadable, TaskNotFound
from ..store import Outcome
from . import outcomes

if TYPE_CHECKING:
    from .start import Start

logger = logging.getLogger("dbtasks.runner")

# How long after its enqueue a row may wait, and how often at least it is tried: a row that was
# scheduled for later is old when it is tried first.
PATIENCE = timedelta(minutes=10)
MIN_TRIES = 10
# Seconds before the second try; doubled for each later one, up to the longest. The first ones come
# soon, for another runner to find the row; the later ones cost little, however many rows there are.
FIRST_DELAY = 2.0
LONGEST_DELAY = 30.0
# Paths that were logged, so that each is logged once; at most so many.
_logged: set[str] = set()
MAX_LOGGED = 1000


def release(attempt: "Start", error: BaseException) -> Outcome | None:
    """Return the outcome that releases the row; None if it has waited long enough.

    `error` is why its task cannot be found. The row is held for some seconds, and its attempt is
    not counted.
    """
    if not isinstance(error, TaskNotFound | PolicyUnreadable):
        return None
    claim, db = attempt.claim, attempt.context.db
    # Every claim raises the fence. Only those whose task was started raise the attempt as well.
    tries = claim.fence - claim.attempt + 1
    enqueued_at = store.to_datetime(db, claim.enqueued_at)
    age = claim.claimed_at - enqueued_at if enqueued_at else PATIENCE
    if age >= PATIENCE and tries >= MIN_TRIES:
        return None
    _log(claim.task_path, error)
    delay = min(FIRST_DELAY * 2.0 ** min(tries - 1, 10), LONGEST_DELAY)
    delay *= random.uniform(0.75, 1.25)
    run_after = attempt.at(time.monotonic()) + timedelta(seconds=delay)
    return outcomes.not_started(db, claim, run_after)


def _log(path: str, error: BaseException) -> None:
    if path not in _logged and len(_logged) < MAX_LOGGED:
        _logged.add(path)
        logger.warning(
            "Rows of %s are released for other runners, and fail %d minutes after their enqueue: "
            "%s",
            path,
            PATIENCE.total_seconds() // 60,
            error,
        )
