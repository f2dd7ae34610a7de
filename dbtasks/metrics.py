"""A hook for metrics: what became of each attempt of a runner, and how long it waited.

Owns the signal and its values, which are public. Never costs a runner time without a receiver.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from django.dispatch import Signal

from . import store
from .base.result import READY
from .execution.settling import Ended

# Sent by a runner after each batch of outcomes was written, with `attempts`, a list of Measured; in
# the thread that writes. A receiver that is slow delays the next batch.
attempts_ended = Signal()


@dataclass(frozen=True, slots=True)
class Measured:
    """One attempt of a task that has ended. Times are in seconds, on the database's clock.

    - `task_path`, `queue_name`, `priority`, `backend`, `worker_id`: which task, and who ran it.
    - `outcome`: ``"SUCCESSFUL"``, ``"FAILED"``, ``"RETRIED"`` after an error, or ``"RELEASED"``:
      snoozed, or requeued at a stop.
    - `attempt`: its number, from 1.
    - `claim_latency`: from the moment the row was due until a runner claimed it.
    - `start_latency`: from the claim until the task began.
    - `duration`: from the task's begin to its end; None unless it succeeded or failed for good.
    - `exception`: the exception that ended it, or None.
    """

    task_path: str
    queue_name: str
    priority: int
    backend: str
    worker_id: str
    outcome: str
    attempt: int
    claim_latency: float
    start_latency: float
    duration: float | None
    exception: BaseException | None


def publish(batch: Sequence[Ended]) -> None:
    """Send the signal for settled attempts, if somebody receives it. Raises nothing."""
    if attempts_ended.receivers:
        attempts_ended.send_robust(sender=None, attempts=[_measured(one) for one in batch])


def _measured(ended: Ended) -> Measured:
    attempt, outcome = ended
    claim, context = attempt.claim, attempt.context
    due = store.to_datetime(context.db, claim.run_after) or store.to_datetime(
        context.db, claim.enqueued_at
    )
    waited = (claim.claimed_at - due).total_seconds() if due and claim.claimed_at else 0.0
    status, ended_at = outcome.status, outcome.finished_at
    if status == READY:
        status = "RETRIED" if outcome.failures > claim.failures else "RELEASED"
    return Measured(
        claim.task_path,
        claim.queue_name,
        claim.priority,
        context.alias,
        context.worker_id,
        status,
        outcome.attempt,
        max(0.0, waited),
        max(0.0, attempt.started - claim.clock),
        ended_at and max(0.0, (ended_at - outcome.last_attempted_at).total_seconds()),
        attempt.error,
    )
