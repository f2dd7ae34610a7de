"""How much a runner claims, and when.

Owns the rhythm of polls and claims: what was hinted, where the next claim begins in the index, how
long to sleep. Never runs a task, and never decides when the runner ends.
"""

import logging
import math
import random
import time
from collections.abc import Callable, Iterable

from .. import store, wakeup
from ..backend import DatabaseBackend
from ..store import Claim, QueuePeek
from .pool import Pool
from .quarantine import Quarantine

logger = logging.getLogger("dbtasks.runner")

# Polls are so many times rarer while wake-ups arrive.
HINTED_FACTOR = 5
# Seconds between two polls right after a claim, where no wake-ups arrive. Later the delay is this
# share of the time since the last claim.
SHORTEST_DELAY = 0.1
DELAY_GROWTH = 1 / 30
# Share of the time that claims from the head of the index may take while rows are claimed.
FULL_SCAN_SHARE = 0.1
# Seconds after which there is such a claim in any case.
FULL_SCAN_INTERVAL = 1.0
# Seconds between a claim that was not filled and the next one, which would find little. Meanwhile
# it would keep the interpreter from the thread that starts a row: measured 0.3 ms.
UNDERFULL_PAUSE = 0.001
# Seconds of a claim that has read many dead index entries to find little.
SLOW_CLAIM = 0.01


class Fetcher:
    """Polls the queue of one runner and claims rows for its pool.

    `hears_others` tells whether wake-ups of other processes arrive, and `on_claimed` is called with
    each batch. wake() and poll_now() may be called from any thread, all else in the runner's.
    """

    def __init__(
        self,
        backend: DatabaseBackend,
        pool: Pool,
        *,
        queues: Iterable[str] | None,
        loop_delay: float,
        hears_others: Callable[[], bool],
        on_claimed: Callable[[list[Claim]], None],
    ) -> None:
        self._db, self._alias = backend.database, backend.alias
        self._pool, self._queues, self._loop_delay = pool, queues, loop_delay
        self._hears_others, self._on_claimed = hears_others, on_claimed
        self.quarantine = Quarantine()
        # How many rows were claimed, less those that were not started.
        self.claimed = 0
        # Whether a claim is on its way from the database to the pool.
        self.is_claiming = False
        # Whether a claim may find something.
        self.may_be_due = True
        # When to poll next, and when to do so once more after a wake-up, on the monotonic clock.
        self._poll_at, self._recheck_at = 0.0, math.inf
        self._last_claim_at = 0.0
        # The last row claimed, and when to claim from the head of the index again.
        self._cursor: Claim | None = None
        self._full_scan_at = 0.0

    def wake(self, recheck_after: float = 0.0) -> None:
        """Claim now, and once more after so many seconds if that is not 0."""
        self.may_be_due = True
        if recheck_after:
            # Kept apart, so that no poll before it takes its place. Only the last one counts: each
            # of the others has had a claim since.
            self._recheck_at = time.monotonic() + recheck_after

    def poll_now(self) -> None:
        """Poll in the next round."""
        self._poll_at = 0.0

    def retry(self) -> None:
        """Do again in the next round what the database has failed to do."""
        self.may_be_due, self._poll_at = True, 0.0

    @property
    def is_hopeful(self) -> bool:
        """Whether there may be something to claim, as far as is known."""
        return bool(self.may_be_due or self.quarantine.due or not self._poll_at)

    def until_poll(self) -> float:
        """Return the seconds until the next poll."""
        return max(0.0, min(self._poll_at, self._recheck_at) - time.monotonic())

    def poll_if_due(self) -> None:
        """Poll if it is time for it: promote what has come due, and see what there is."""
        now = time.monotonic()
        if now < min(self._poll_at, self._recheck_at):
            return
        # Before the poll, so that poll_now() during it is not forgotten.
        self._poll_at = math.inf
        if now >= self._recheck_at:
            self._recheck_at = math.inf
        wait = self._poll()
        self._poll_at = min(self._poll_at, time.monotonic() + wait)

    def _poll(self) -> float:
        """Promote what has come due; return the seconds until the next poll."""
        found = self.peek()
        if found.next_due is not None and found.next_due <= 0:
            places = store.promote(self._db, self._alias)
            # Other runners know when the next row is due as well, and poll then.
            wakeup.became_due(self._db, self._alias, places, only_here=True)
            self.may_be_due = True
            return 0
        if found.due:
            self.may_be_due = True
        self.quarantine.due = found.quarantined or self.quarantine.occupied
        delay = self._delay()
        return delay if found.next_due is None else min(delay, found.next_due)

    def peek(self) -> QueuePeek:
        """Return what the head of the queue shows. May be called from any thread."""
        found = store.peek(self._db, self._alias, self._queues)
        logger.debug("Peeked: due %s, next in %s s", found.due, found.next_due)
        return found

    def _delay(self) -> float:
        """Return the seconds to the next poll: rare while wake-ups arrive, frequent after work."""
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
        """Claim up to so many rows and hand them to the pool; return whether more may be due."""
        # Before the claim: a row that is committed after it must be looked for again.
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
            # What was planned while there was nothing to do is too late now.
            self._poll_at = min(self._poll_at, now + self._delay())
        self._full_scan_at = self._next_full_scan(
            now, now - began, was_full=cursor is None, missing=limit - len(claims)
        )
        if 0 < len(claims) < limit:
            time.sleep(UNDERFULL_PAUSE)
        self.may_be_due |= bool(claims) or cursor is not None
        return bool(claims) or cursor is not None

    def _next_full_scan(self, now: float, spent: float, *, was_full: bool, missing: int) -> float:
        """Return when to claim from the head of the index again, past all its dead entries.

        After 300,000 rows a claim took 2.5 ms from the head and 0.9 ms beyond the last row; with no
        dead entries, 1 ms more beyond it, for the larger statement.
        """
        if missing:
            # Now, before the queue counts as empty. If that takes long, not before something new
            # is due.
            return math.inf if was_full and spent > SLOW_CLAIM else 0.0
        if was_full:
            return now + spent / FULL_SCAN_SHARE
        return min(self._full_scan_at, now + FULL_SCAN_INTERVAL)

    def claim_quarantined(self) -> None:
        """Claim a quarantined row, which runs alone, and hand it to the pool."""
        self.is_claiming = True
        try:
            claim = store.claim_quarantined(
                self._db, self._alias, self._pool.context.worker_id, self._queues, registered=True
            )
            if claim is not None:
                logger.info(
                    "%s %s runs alone: two workers were lost with it", claim.task_path, claim.id
                )
                self._submit([claim])
                self._last_claim_at = time.monotonic()
        finally:
            self.is_claiming = False
        self.quarantine.enter(claim is not None)

    def _submit(self, claims: list[Claim]) -> None:
        self._pool.submit(claims)
        self.claimed += len(claims)
        if claims:
            self._on_claimed(claims)
