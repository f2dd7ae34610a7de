"""What becomes of a hint: one row, run if it may run now.

Owns the decision by the row's state. Never trusts the hint: it may be early, late, repeated or
forged, and only the claim decides.
"""

import math
import time
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from django.db import connections

from . import store
from .base.result import FAILED, FINISHED, READY, RUNNING, TaskResult
from .door import Door
from .execution.attempt import Attempt
from .execution.bounds import RELEASE_BEFORE
from .inline import Inline, result_of
from .liveness.identity import is_gone
from .models import Hold, ScheduledTask, Worker
from .store import Claim, Outcome

# Seconds by which a hint may be early because clocks differ: then the row is waited for.
EARLY = 10.0
# How often the row is looked at again because another process has changed it meanwhile.
LOOKS = 5
# Seconds between two looks at a row that is due and held.
LOOK_PAUSE = 0.1


class HintRun(NamedTuple):
    """What became of a hint."""

    # Whether the task ran.
    ran: bool
    # The canonical text of the row's id, or what was given if that is malformed.
    id: str
    # If it did not run: "running", "not due", "finished", "unknown" or "held".
    why: str | None
    # When the row is due, if it is scheduled now.
    next_due: datetime | None
    result: TaskResult | None
    # How often the row has been started.
    attempt: int
    seconds: float


def run_hinted(door: Door, backend: str, id: str | UUID, *, allow_retry: bool = False) -> HintRun:
    """Run the row with that id if it is due, in this thread; return what became of it.

    A row that is due within 10 seconds is waited for. A RUNNING row whose worker looks lost is
    rescued first, which takes up to a third of the option `worker_timeout`. A row whose task this
    process does not know is "held" for another process. With `allow_retry` a FAILED row is run
    again. Nobody is waited for in the last ten seconds before the door's deadline.

    Errors of the task are in the result; errors of the database are raised. Raise Crowded if the
    row must run alone and the door refuses that. Raise RuntimeError inside a transaction,
    RunnerError if the backend is immediate or not a DatabaseBackend.
    """
    with Inline(backend, door) as inline:
        return _Visit(inline, id).run(allow_retry)


class _Visit:
    """One hint at the door."""

    def __init__(self, inline: Inline, id: str | UUID) -> None:
        self._inline, self._id = inline, id
        self._began = time.monotonic()
        deadline = inline.door.deadline
        # What starts later would be asked to end at once.
        self._end = math.inf if deadline is None else deadline - RELEASE_BEFORE

    def run(self, allow_retry: bool) -> HintRun:
        """Run the row if it is due; return what became of the hint."""
        looks = 0
        while (row := self._inline.find(self._id)) is not None:
            if allow_retry and row.status == FAILED:
                allow_retry = False
                store.retry(self._inline.db, [row.pk])
                continue
            if (why := self._why_not(row)) is not None:
                return self._left(row, why)
            if (claim := self._inline.claim_found(row)) is not None:
                return self._ended(claim, *self._inline.run(claim))
            # It has changed meanwhile, or another process has locked it.
            looks += 1
            if looks == LOOKS:
                return self._left(row, "held")
            time.sleep(LOOK_PAUSE)
        return HintRun(False, str(self._id), "unknown", None, None, 0, self._seconds)

    def _left(self, row: ScheduledTask, why: str) -> HintRun:
        next_due = row.run_after if row.hold == Hold.SCHEDULED else None
        return HintRun(False, str(row.pk), why, next_due, None, row.attempt, self._seconds)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _why_not(self, row: ScheduledTask) -> str | None:
        """Return why the row may not run; None if it may be tried."""
        if row.status in FINISHED:
            return "finished"
        if row.status == RUNNING:
            return None if self._is_rescued(row) else "running"
        if row.hold == Hold.IMMEDIATE:
            return "held"
        return None if row.hold != Hold.SCHEDULED or self._comes_due(row) else "not due"

    def _comes_due(self, row: ScheduledTask) -> bool:
        """Wait for a row that is due soon; return False if that is too long."""
        if row.run_after is None:
            return True
        seconds = (row.run_after - store.now(self._inline.db)).total_seconds()
        if seconds > min(EARLY, max(0.0, self._end - time.monotonic())):
            return False
        time.sleep(max(0.0, seconds))
        return True

    def _is_rescued(self, row: ScheduledTask) -> bool:
        """Rescue a RUNNING row if its worker is lost; return whether that was done."""
        inline, worker_id = self._inline, row.worker_id or ""
        if connections[inline.db].in_atomic_block or not self._looks_lost(worker_id):
            return False
        seen = None
        while row.pk not in {rescued.pk for rescued in inline.rescue()}:
            beat = inline.silent.beat_of(worker_id)
            if beat is None or (seen is not None and beat != seen):
                # It lives.
                return False
            seen = beat
            if time.monotonic() + inline.silent.interval > self._end:
                return False
            time.sleep(inline.silent.interval)
        return True

    def _looks_lost(self, worker_id: str) -> bool:
        """Return whether that worker is silent by the database's clock, gone, or known as lost."""
        worker = Worker.objects.using(self._inline.db).filter(pk=worker_id).first()
        if worker is None:
            return False
        if worker.state == Worker.State.LOST or is_gone(worker):
            return True
        silence = (store.now(self._inline.db) - worker.beat_at).total_seconds()
        return silence >= self._inline.backend.config.worker_timeout

    def _ended(self, claim: Claim, attempt: Attempt, outcome: Outcome) -> HintRun:
        ran = outcome.attempt >= claim.attempt
        return HintRun(
            ran,
            str(UUID(str(claim.id))),
            # This process does not know the task. The row waits a moment for another process.
            None if ran else "held",
            outcome.run_after if outcome.status == READY else None,
            result_of(attempt, outcome) if ran else None,
            outcome.attempt,
            self._seconds,
        )
