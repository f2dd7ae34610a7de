"""How much a runner claims, and when.

Owns the times of polls and claims: which wake-ups have come, where in the index the next claim
begins, how long to sleep. Never runs a task, and never decides when the runner ends.
"""

import logging
import math
import random
import time
from collections.abc import Callable

from .. import store, wakeup
from ..backend import DatabaseBackend
from ..base.queues import Queues
from ..db.service import Pauses
from ..store import Claim, QueuePeek
from .pool import Pool
from .quarantine import Quarantine

logger = logging.getLogger("dbtasks.runner")

# Factor by which polls are rarer while wake-ups arrive.
HINTED_FACTOR = 5
# Seconds between two polls right after a claim, without wake-ups. Later they are this share of the
# time since that claim.
SHORTEST_DELAY = 0.1
DELAY_GROWTH = 1 / 30
# Share of the time that claims from the head of the index may take while rows are claimed.
FULL_SCAN_SHARE = 0.1
# Longest time between two claims from the head of the index, in seconds.
FULL_SCAN_INTERVAL = 1.0
# Seconds between a claim that returned fewer rows than it asked for and the next one, which would
# find little and take the interpreter from the thread that starts a row: measured 0.3 ms.
UNDERFULL_PAUSE = 0.001
# A claim that takes longer than this, in seconds, to find little has read many dead index entries.
SLOW_CLAIM = 0.01


class Fetcher:
    """Polls the queue of one runner and claims rows for its pool.

    `hears_others` returns whether wake-ups of other processes arrive. `on_claimed` is called with
    each batch. wake(), poll_now() and peek() can be called from any thread, everything else in the
    runner's thread only.
    """

    def __init__(
        self,
        backend: DatabaseBackend,
        pool: Pool,
        *,
        queues: Queues,
        loop_delay: float,
        hears_others: Callable[[], bool],
        on_claimed: Callable[[list[Claim]], None],
    ) -> None:
        self._db, self._alias = backend.database, backend.alias
        self._pool, self._queues, self._loop_delay = pool, queues, loop_delay
        self._hears_others, self._on_claimed = hears_others, on_claimed
        self.quarantine = Quarantine()
        # Rows claimed, less those that were requeued before they started.
        self.claimed = 0
        # True until the rows of a claim are in the pool.
        self.is_claiming = False
        self.may_be_due = True
        # The next poll, and the extra poll after a wake-up, on the monotonic clock.
        self._poll_at, self._recheck_at = 0.0, math.inf
        self._last_claim_at = 0.0
        # Between two tries to promote rows that are locked. Others may come due meanwhile.
        self._locked_pauses = Pauses(0.05, 0.5)
        # The last row claimed, and when to claim from the head of the index again.
        self._cursor: Claim | None = None
        self._full_scan_at = 0.0

    def wake(self, recheck_after: float = 0.0) -> None:
        """Claim now, and again after `recheck_after` seconds unless that is 0."""
        self.may_be_due = True
        if recheck_after:
            # Kept apart from the next poll, which may come earlier. The last one counts, because a
            # claim has followed each of the others.
            self._recheck_at = time.monotonic() + recheck_after

    def poll_now(self) -> None:
        """Poll in the next round."""
        self._poll_at = 0.0

    def retry(self) -> None:
        """Poll and claim in the next round, because the database has failed."""
        self.may_be_due, self._poll_at = True, 0.0

    @property
    def is_hopeful(self) -> bool:
        """Whether there may be something to claim."""
        return bool(self.may_be_due or self.quarantine.due or not self._poll_at)

    def until_poll(self) -> float:
        """Return the seconds until the next poll."""
        return max(0.0, min(self._poll_at, self._recheck_at) - time.monotonic())

    def poll_if_due(self) -> None:
        """Poll if a poll is due: promote rows that have come due, and peek at the queue."""
        now = time.monotonic()
        if now < min(self._poll_at, self._recheck_at):
            return
        # Set before the poll, so that a poll_now() during it is not forgotten.
        self._poll_at = math.inf
        if now >= self._recheck_at:
            self._recheck_at = math.inf
        wait = self._poll()
        self._poll_at = min(self._poll_at, time.monotonic() + wait)

    def _poll(self) -> float:
        """Promote rows that have come due; return the seconds until the next poll."""
        found = self.peek()
        if found.due:
            self.may_be_due = True
        self.quarantine.due = found.quarantined or self.quarantine.occupied
        delay = self._delay()
        if found.next_due is None:
            return delay
        if found.next_due > 0:
            return min(delay, found.next_due)
        places = store.promote(self._db, self._alias)
        if not places:
            # Another transaction has locked these rows.
            return min(delay, self._locked_pauses.next())
        self._locked_pauses.reset()
        # Only here: other runners know this time as well, and poll then.
        wakeup.became_due(self._db, self._alias, places, only_here=True)
        self.may_be_due = True
        return 0

    def peek(self) -> QueuePeek:
        """Return what the head of the queue shows. Can be called from any thread."""
        found = store.peek(self._db, self._alias, self._queues)
        logger.debug("Peeked: due %s, next in %s s", found.due, found.next_due)
        return found

    def _delay(self) -> float:
        """Return the seconds to the next poll: more with wake-ups, fewer right after a claim."""
        delay = self._loop_delay
        if self._hears_others():
            delay *= HINTED_FACTOR
        else:
            since = time.monotonic() - self._last_claim_at
            delay = min(delay, max(SHORTEST_DELAY, since * DELAY_GROWTH))
        # Jitter keeps runners that started together from polling together.
        return delay * random.uniform(0.75, 1.0)

    # Claims

    def claim(self, limit: int) -> bool:
        """Claim up to `limit` rows and pass them to the pool; return whether more may be due."""
        # Reset before the claim, so that a wake-up during it is not forgotten.
        self.may_be_due = False
        began = time.monotonic()
        cursor = self._cursor if began < self._full_scan_at else None
        self.is_claiming = True
        try:
            claims = store.claim(
                self._db,
                self._alias,
                self._pool.context.worker_id,
                limit,
                self._queues,
                registered=True,
                beyond=cursor,
            )
            logger.debug("Claimed %d of at most %d rows", len(claims), limit)
            self._submit(claims)
        finally:
            self.is_claiming = False
        now = time.monotonic()
        if claims:
            self._last_claim_at, self._cursor = now, claims[-1]
            # The next poll was planned while there was nothing to do, and is too late now.
            self._poll_at = min(self._poll_at, now + self._delay())
        self._full_scan_at = self._next_full_scan(
            now, now - began, was_full=cursor is None, missing=limit - len(claims)
        )
        if 0 < len(claims) < limit:
            time.sleep(UNDERFULL_PAUSE)
        if claims or cursor is not None:
            self.may_be_due = True
            return True
        # It may be True again by now, for a row that was committed after the claim.
        return False

    def _next_full_scan(self, now: float, spent: float, *, was_full: bool, missing: int) -> float:
        """Return when to claim from the head of the index again, on the monotonic clock.

        Such a claim reads all dead entries first. After 300,000 rows it took 2.5 ms, and a claim
        beyond the last row 0.9 ms. Without dead entries the claim beyond takes 1 ms more, because
        its statement is larger.
        """
        if missing:
            # At once, before the queue counts as empty. If such a claim was slow, not before
            # another claim has found too little.
            return math.inf if was_full and spent > SLOW_CLAIM else 0.0
        if was_full:
            return now + spent / FULL_SCAN_SHARE
        return min(self._full_scan_at, now + FULL_SCAN_INTERVAL)

    def claim_quarantined(self, *, is_alone: bool) -> None:
        """Claim a quarantined row and pass it to the pool.

        `is_alone` is whether nothing else runs.
        """
        self.is_claiming = True
        try:
            claim = store.claim_quarantined(
                self._db, self._alias, self._pool.context.worker_id, self._queues, registered=True
            )
            if claim is not None:
                logger.info(
                    "%s %s runs %s: two workers were lost with it",
                    claim.task_path,
                    claim.id,
                    "alone" if is_alone else "beside others, which do not end",
                )
                self._submit([claim])
                self._last_claim_at = time.monotonic()
        finally:
            self.is_claiming = False
        self.quarantine.enter(claim is not None, is_alone=is_alone)

    def _submit(self, claims: list[Claim]) -> None:
        self._pool.submit(claims)
        self.claimed += len(claims)
        if claims:
            self._on_claimed(claims)
