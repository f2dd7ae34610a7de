"""Runs tasks without a runner process, in the caller's thread.

Owns ``process_one()`` and the functions beside it, for cron jobs, serverless functions and tests.
Never runs a task in another thread, except one that a running task waits for, and never waits for
work, except for rows of workers that look lost. Never runs a task inside a caller's
transaction, except the one that a TestCase opens around each test. Never interrupts a task, unless
its Door allows it: at a timeout only `context.should_stop` becomes True.
"""

import logging
import math
import time
from contextlib import ExitStack
from contextvars import Context, copy_context
from typing import Any, Self
from uuid import UUID

from django.db import connections
from django.tasks import TaskResultStatus
from django.tasks.exceptions import TaskResultDoesNotExist
from django.utils import timezone

from . import rescue, stats, store, wakeup
from .backend import check_backend
from .base import payload
from .base.result import FAILED, READY, TaskResult, make_errors, make_result
from .db.isolation import isolated, refuse_transaction
from .door import Door
from .exceptions import TaskNotDue, TaskNotFound
from .execution.attempt import Attempt
from .execution.bounds import Bounds
from .execution.settling import Ended, ready_places, settle_now
from .liveness.beat import alive
from .liveness.identity import make_worker_id
from .liveness.silence import SilentWorkers
from .models import Hold, ScheduledTask
from .store import Claim, Outcome
from .store.rows import QUARANTINE_AFTER

logger = logging.getLogger("dbtasks.inline")


def process_one(queue_name: str | None = None, backend: str = "default") -> TaskResult | None:
    """Run the first due row, of that queue or of all, in this thread; return its result.

    The first row is the oldest one of the highest priority. Return None if nothing is due. If the
    task fails, the result is FAILED, and its exception is not raised. Ctrl-C requeues the row and
    is raised again. Raise RuntimeError inside a transaction, RunnerError if the backend is
    immediate or not a DatabaseBackend.
    """
    with Inline(backend) as inline:
        while (claim := inline.claim(queue_name)) is not None:
            if result := inline.result(claim):
                return result
    return None


def process_tasks(
    max_tasks: int | None = None,
    queue_name: str | None = None,
    backend: str = "default",
    *,
    max_seconds: float | None = None,
) -> list[TaskResult]:
    """Run due rows one after the other until none is left; return their results in that order.

    `max_tasks` limits their number, because tasks may enqueue more tasks, and `max_seconds` says
    when the last one may start. At the end, rows of lost workers are rescued and run too. If a
    worker only looks lost, this waits until that is certain, about a third of the option
    `worker_timeout`. Apart from that it behaves as process_one() does.
    """
    results: list[TaskResult] = []
    end = math.inf if max_seconds is None else time.monotonic() + max_seconds
    with Inline(backend) as inline:
        while (max_tasks is None or len(results) < max_tasks) and time.monotonic() < end:
            claim = inline.claim(queue_name) or inline.claim_rescued(queue_name, end)
            if claim is None:
                break
            if result := inline.result(claim):
                results.append(result)
    return results


def pending_count(
    queue_name: str | None = None, backend: str = "default", *, at_most: int | None = None
) -> int:
    """Return how many rows could be run now, of that queue or of all.

    The database reads an index entry for each: about 1 ms for 1,000 rows, more after hours under
    load. With `at_most` it stops there. To know whether there is work, ask for 1.

    Can be called inside a transaction, and then counts the rows that the transaction sees. Raise
    RunnerError if the backend is immediate or not a DatabaseBackend.
    """
    if at_most is not None and at_most < 1:
        raise ValueError(f"at_most must be at least 1, not {at_most!r}.")
    return stats.pending_count(check_backend(backend).database, backend, queue_name, at_most)


def run_task(id: str | UUID, allow_retry: bool = False, backend: str = "default") -> TaskResult:
    """Run the row with that id in this thread; return its result.

    Raise TaskResultDoesNotExist if there is no such row. Raise TaskNotDue if it may not be run now:
    its run_after is in the future, it is RUNNING, or it has finished. Raise TaskNotFound if this
    process does not know its task: the row then waits for another process. With `allow_retry` a
    FAILED row is run again. Apart from that it behaves as process_one() does.
    """
    with Inline(backend) as inline:
        row = inline.find(id)
        if row is not None and allow_retry and row.status == FAILED:
            store.retry(inline.db, [row.pk])
            row = inline.find(id)
        if row is None:
            raise TaskResultDoesNotExist(str(id))
        claim = inline.claim_found(row)
        if claim is None:
            raise TaskNotDue(_why_not(inline.backend.get_result(str(row.pk))))
        if done := inline.result(claim):
            return done
        raise TaskNotFound(f"This process does not know {claim.task_path!r}; its row waits.")


def run_waited(backend: str, id: str, queue_name: str) -> None:
    """Run the row if it is due and in that queue, because a task of this process waits for it.

    Runs in a thread of its own. If the process ends meanwhile, the row is rescued.
    """
    try:
        with Inline(backend) as inline:
            rows = ScheduledTask.objects.using(inline.db).due().filter(pk=id)
            is_due = rows.filter(backend=backend, queue_name=queue_name).exists()
            if is_due and (claim := inline.claim_one(UUID(id))):
                inline.run(claim)
    except Exception:  # whatever the database raises; the task that waits tries again
        logger.exception("Task %s, which another one waits for, could not be run", id)
    finally:
        connections.close_all()


def _why_not(result: TaskResult) -> str:
    """Return why the row cannot be claimed now."""
    run_after = result.task.run_after
    match result.status:
        case TaskResultStatus.READY if run_after and run_after > timezone.now():
            why = f"is not due before {run_after.isoformat(' ', 'seconds')}; it was left as it is."
        case TaskResultStatus.READY:
            why = "is held back; it was left as it is."
        case TaskResultStatus.RUNNING:
            why = f"runs already, under {result.worker_ids[-1]!r}."
        case TaskResultStatus.FAILED:
            why = "has FAILED. Pass allow_retry=True to run it again."
        case _:
            why = f"has finished as {result.status}. Enqueue it again to run it again."
    return f"Task {result.id} {why}"


class Inline:
    """Claims and runs rows of one backend, one at a time, in the thread that calls it.

    As a context manager it is a live worker from its first claim to the end of the block. If the
    process is killed, a runner declares the worker lost and requeues its row.

    Raise RuntimeError inside a caller's transaction, RunnerError if the backend is immediate or not
    a DatabaseBackend.
    """

    def __init__(self, alias: str, door: Door | None = None) -> None:
        self.door = door or Door()
        self.backend = check_backend(alias)
        refuse_transaction()
        self.db = self.backend.database
        self.context = self.backend.context(make_worker_id())
        timeout = self.backend.config.worker_timeout
        self.silent = SilentWorkers(self.db, self.backend.alias, timeout)
        # What ends with the block; whether there is a block; whether this is a live worker.
        self._life = ExitStack()
        self._has_life = self._is_known = False
        self._bounds = Bounds(
            self.door.deadline,
            interrupts=self.door.interrupts,
            has_ctrl_c=self.door.has_ctrl_c,
        )
        # What holds others back while a quarantined row runs.
        self._alone = ExitStack()
        # The attempt that runs now.
        self._attempt: Attempt | None = None

    def __enter__(self) -> Self:
        self._has_life = True
        return self

    def __exit__(self, *_: Any) -> None:
        self._alone.close()
        self._bounds.close()
        self._life.close()

    def _join(self) -> None:
        """Register as a live worker, if there is a block and that was not done."""
        if self._has_life and not self._is_known:
            who = (self.db, self.context.worker_id, self.backend.alias)
            timeout = self.backend.config.worker_timeout
            self._is_known = self._life.enter_context(alive(*who, timeout, self._pass_on_cancels))

    def _pass_on_cancels(self, claims: list[tuple[Any, int]]) -> None:
        """Ask the running task to end if it is one of those. Runs in the thread of the beat."""
        attempt = self._attempt
        if attempt is not None and (attempt.claim.id, attempt.claim.fence) in claims:
            self._bounds.cancel(attempt)

    def claim(self, queue_name: str | None = None) -> Claim | None:
        """Claim the first due row; return None if nothing is due. Promotes scheduled rows first."""
        queues = None if queue_name is None else [queue_name]
        found = self.promote(queues)
        if not (found.due or found.quarantined):
            return None
        self._join()
        who = (self.db, self.backend.alias, self.context.worker_id)
        claims = store.claim(*who, 1, queues, registered=self._is_known)
        if claims:
            return claims[0]
        with ExitStack() as stack:
            stack.enter_context(self.door.alone())
            claim = store.claim_quarantined(*who, queues, registered=self._is_known)
            if claim is not None:
                self._alone = stack.pop_all()
        return claim

    def claim_rescued(self, queue_name: str | None = None, end: float = math.inf) -> Claim | None:
        """Claim the first row that is due once rows of lost workers are rescued; None if none is.

        Waits while a worker looks lost, until `end` on the monotonic clock. Does nothing inside the
        transaction of a TestCase.
        """
        while not connections[self.db].in_atomic_block:
            if self.rescue() and (claim := self.claim(queue_name)):
                return claim
            left = end - time.monotonic()
            if not self.silent or left <= 0:
                break
            time.sleep(min(self.silent.interval, left))
        return None

    def rescue(self) -> list[ScheduledTask]:
        """Check all other workers, and rescue the rows of those that are lost; return those rows.

        They are as they were before. Who only looks lost is in `silent` then, to be checked again.
        """
        rescued: list[ScheduledTask] = []
        if self.silent.check(self.context.worker_id):
            while rows := rescue.rescue(self.backend):
                rescued += rows
                for row in rows:
                    logger.warning("%s %s of %s was rescued", row.task_path, row.pk, row.worker_id)
        return rescued

    def find(self, id: str | UUID) -> ScheduledTask | None:
        """Return the row with that id; None if the backend has none, or the id is malformed."""
        try:
            key = UUID(str(id))
        except ValueError:
            return None
        rows = ScheduledTask.objects.using(self.db).filter(backend=self.backend.alias)
        return rows.filter(pk=key).first()

    def claim_found(self, row: ScheduledTask) -> Claim | None:
        """Claim a row that was just found; return None if it is not due.

        If the row as found says so already, this costs one statement at most.
        """
        if row.status != READY or row.hold == Hold.IMMEDIATE:
            return None
        if row.hold == Hold.SCHEDULED:
            if row.run_after is not None and row.run_after > store.now(self.db):
                return None
            self.promote()
        self._join()
        with ExitStack() as stack:
            if row.lost >= QUARANTINE_AFTER:
                stack.enter_context(self.door.alone())
            claim = store.claim_one(self.db, self.backend.alias, self.context.worker_id, row.pk)
            if claim is not None:
                self._alone = stack.pop_all()
        return claim

    def claim_one(self, id: UUID) -> Claim | None:
        """Claim the row with that id; return None if it is not due."""
        self.promote()
        self._join()
        return store.claim_one(self.db, self.backend.alias, self.context.worker_id, id)

    def promote(self, queues: list[str] | None = None) -> store.QueuePeek:
        """Promote scheduled rows that have come due; return what the head of those queues shows."""
        alias = self.backend.alias
        while True:
            found = store.peek(self.db, alias, queues)
            is_late = found.next_due is not None and found.next_due <= 0
            # If none was promoted, another process is promoting these rows and has locked them.
            if not is_late or not (places := store.promote(self.db, alias)):
                return found
            wakeup.became_due(self.db, alias, places, only_here=True)

    def result(self, claim: Claim) -> TaskResult | None:
        """Run the claimed row; return its result, None if this process does not know its task.

        The row is then held for a moment, for another process.
        """
        attempt, outcome = self.run(claim)
        return None if outcome.attempt < claim.attempt else result_of(attempt, outcome)

    def run(self, claim: Claim) -> Ended:
        """Run the claimed row and settle it; return the attempt and its outcome.

        The row is always settled. After Ctrl-C it is READY again, and KeyboardInterrupt is raised.
        """
        alone, self._alone = self._alone, ExitStack()
        with alone:
            return self._run(claim)

    def _run(self, claim: Claim) -> Ended:
        self._attempt = attempt = self._bounds.attempt(self.context, claim)
        # The attempt runs in a copy of it.
        context = Context() if self.door.fresh_context else copy_context()
        outcome: Outcome | None = None
        try:
            with isolated(claim.task_path):
                outcome = context.run(self._bounds.run, attempt)
        finally:
            self._attempt = None
            if outcome is None or attempt.interrupted:
                outcome = attempt.release()
            outcome = settle_now(self.db, attempt, outcome)
            if places := ready_places([(attempt, outcome)]):
                wakeup.announce(self.db, self.backend.alias, places)
        if attempt.interrupted and attempt.error is not None:
            raise attempt.error
        return attempt, outcome


def result_of(attempt: Attempt, outcome: Outcome) -> TaskResult:
    """Return the result of an attempt that has ended, as it was settled."""
    errors = payload.load(outcome.errors) if outcome.errors else []
    ended: dict[str, Any] = {
        "status": TaskResultStatus(outcome.status),
        "finished_at": outcome.finished_at,
        "errors": make_errors(errors),
        "_return_value": payload.load(outcome.return_value) if outcome.return_value else None,
    }
    return make_result(attempt.describe() | ended)
