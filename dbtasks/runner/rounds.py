"""What a runner does in each round.

Owns the choice of what comes next: a poll, a claim, a requeue or the end. Never waits, and never
starts or stops a thread.
"""

import math
import threading
import time

from django.db import reset_queries

from .. import store
from ..execution import outcomes
from ..execution.attempt import Attempt
from ..liveness.heartbeat import Heartbeat
from ..options.runner import RunnerOptions
from ..store.rows import QUARANTINE_AFTER
from .fetcher import Fetcher
from .outcome_writer import OutcomeWriter
from .pool import Pool
from .prefetch import PREFETCH_SECONDS
from .rescuer import Rescuer

# Claiming pauses while more outcomes than this are unwritten: a crash loses all of them.
MAX_BACKLOG = 1000
# Seconds between two polls for cancelled tasks, while tasks run.
CANCEL_INTERVAL = 1.0


class Rounds:
    """The rounds of one runner, in its own thread."""

    def __init__(
        self,
        db: str,
        options: RunnerOptions,
        stopping: threading.Event,
        *,
        fetcher: Fetcher,
        heartbeat: Heartbeat,
        pool: Pool,
        rescuer: Rescuer,
        writer: OutcomeWriter,
    ) -> None:
        self._db, self._options, self._stopping = db, options, stopping
        self._fetcher, self._heartbeat, self._pool = fetcher, heartbeat, pool
        self._writer, self._rescuer = writer, rescuer
        # True while claiming pauses because of the backlog.
        self._is_full = False
        # On the monotonic clock.
        self._cancel_poll_at = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether this process holds no row. Can be read from any thread."""
        return self._pool.idle and not self._writer.backlog

    @property
    def waits_for_writer(self) -> bool:
        """Whether a round may be waiting for a smaller backlog. Can be read from any thread."""
        options = self._options
        is_ending = self._stopping.is_set() or options.drain or options.max_tasks is not None
        return is_ending or self._is_full or self._fetcher.quarantine.due

    def round(self) -> float:
        """Do what is due; return the seconds to sleep unless woken."""
        # With DEBUG a connection would remember thousands of statements.
        reset_queries()
        fetcher, quarantine = self._fetcher, self._fetcher.quarantine
        fetcher.poll_if_due()
        until_cancel_poll = self._pass_on_cancels()
        room = self._room()
        is_empty = self.is_empty
        if room and quarantine.has_turn(is_empty, self._has_quarantined):
            fetcher.claim_quarantined(is_alone=is_empty)
            return 0
        is_closed = quarantine.is_closed()
        if room and fetcher.may_be_due and not is_closed:
            if fetcher.claim(room):
                return 0
        elif late := self._withdraw():
            self.requeue(late)
            fetcher.wake()
        if self._is_over():
            self._stopping.set()
            return 0
        wait = min(until_cancel_poll, fetcher.until_poll())
        is_watching = is_closed or self._pool.waiting
        return min(wait, PREFETCH_SECONDS / 2) if is_watching else wait

    def _has_quarantined(self) -> bool:
        return any(claim.lost >= QUARANTINE_AFTER for claim in self._pool.claims)

    def _pass_on_cancels(self) -> float:
        """Ask cancelled tasks to end; return the seconds to the next poll, inf if nothing runs."""
        if self._pool.idle:
            return math.inf
        now = time.monotonic()
        if now >= self._cancel_poll_at:
            self._cancel_poll_at = now + CANCEL_INTERVAL
            self._pool.cancel(store.cancel_requests(self._db, self._pool.context.worker_id))
        return self._cancel_poll_at - now

    def _room(self) -> int:
        """Return how many rows may be claimed now."""
        # Set before the backlog is read, so that a batch that is settled meanwhile wakes the loop.
        self._is_full = True
        self._is_full = self._writer.backlog > MAX_BACKLOG
        if self._is_full or not self._heartbeat.is_trusted:
            return 0
        room, most = self._pool.room(), self._options.max_tasks
        return room if most is None else min(room, most - self._fetcher.claimed)

    def _withdraw(self) -> list[Attempt]:
        """Take back and return claimed rows that this runner must not start, or not soon."""
        is_trusted = self._heartbeat.is_trusted
        return self._pool.overdue() if is_trusted else self._pool.withdraw()

    def requeue(self, attempts: list[Attempt]) -> None:
        """Requeue attempts that have not started. The writer settles them."""
        for attempt in attempts:
            self._writer.put(attempt, outcomes.not_started(self._db, attempt.claim))
        self._pool.let_go(attempts)
        self._fetcher.claimed -= len(attempts)

    def _is_over(self) -> bool:
        if not self.is_empty:
            return False
        most = self._options.max_tasks
        if most is not None and self._fetcher.claimed >= most:
            return True
        if not self._options.drain or self._heartbeat.is_undecided or self._rescuer.is_behind:
            return False
        # Only now, because what the heartbeat rescued last is due.
        return not self._fetcher.is_hopeful
