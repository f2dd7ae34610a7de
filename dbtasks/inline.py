"""Runs tasks without a runner process, in the caller's thread.

Owns ``process_one()`` and the functions beside it, for cron jobs, serverless functions and tests.
Never runs a task in another thread, and never waits for work. Never runs a task inside a caller's
transaction, except the one that a TestCase opens around each test. Never interrupts a task: at its
timeout only `context.should_stop` becomes True.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self
from uuid import UUID

from django.db import (
    DatabaseError,
    Error,
    InterfaceError,
    OperationalError,
    connections,
    transaction,
)
from django.tasks import TaskResultStatus
from django.utils import timezone

from . import stats, store, wakeup
from .backend import check_backend
from .base import payload
from .base.result import TaskResult, make_errors, make_result
from .db.connections import leave_clean, roll_back_open
from .exceptions import TaskNotDue
from .execution.attempt import Attempt
from .execution.running import run
from .execution.settling import Ended, settle, unstorable
from .liveness.beat import alive
from .liveness.identity import make_worker_id
from .store import Claim, Outcome

logger = logging.getLogger("dbtasks.inline")


def process_one(queue_name: str | None = None, backend: str = "default") -> TaskResult | None:
    """Run the first due row, of that queue or of all, in this thread; return its result.

    The first row is the oldest one of the highest priority. Return None if nothing is due. If the
    task fails, the result is FAILED, and its exception is not raised. Ctrl-C requeues the row and
    is raised again. Raise RuntimeError inside a transaction, RunnerError if the backend is
    immediate or not a DatabaseBackend.
    """
    with Inline(backend) as inline:
        claim = inline.claim(queue_name)
        return claim and result_of(*inline.run(claim))


def process_tasks(
    max_tasks: int | None = None, queue_name: str | None = None, backend: str = "default"
) -> list[TaskResult]:
    """Run due rows one after the other until none is left; return their results in that order.

    `max_tasks` limits their number, because tasks may enqueue more tasks. Apart from that it
    behaves as process_one() does.
    """
    results: list[TaskResult] = []
    with Inline(backend) as inline:
        while max_tasks is None or len(results) < max_tasks:
            claim = inline.claim(queue_name)
            if claim is None:
                break
            results.append(result_of(*inline.run(claim)))
    return results


def pending_count(queue_name: str | None = None, backend: str = "default") -> int:
    """Return how many rows could be run now, of that queue or of all.

    Can be called inside a transaction, and then counts the rows that the transaction sees. Raise
    RunnerError if the backend is immediate or not a DatabaseBackend.
    """
    return stats.pending_count(check_backend(backend).database, backend, queue_name)


def run_task(id: str | UUID, allow_retry: bool = False, backend: str = "default") -> TaskResult:
    """Run the row with that id in this thread; return its result.

    Raise TaskResultDoesNotExist if there is no such row. Raise TaskNotDue if it may not be run now:
    its run_after is in the future, it is RUNNING, or it has finished. With `allow_retry` a FAILED
    row is run again. Apart from that it behaves as process_one() does.
    """
    with Inline(backend) as inline:
        result = inline.backend.get_result(str(id))
        key = UUID(result.id)
        if allow_retry and result.status == TaskResultStatus.FAILED:
            store.retry(inline.db, [key])
        claim = inline.claim_one(key)
        if claim is None:
            raise TaskNotDue(_why_not(inline.backend.get_result(result.id)))
        return result_of(*inline.run(claim))


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

    def __init__(self, alias: str) -> None:
        self.backend = check_backend(alias)
        _refuse_transaction()
        self.db = self.backend.database
        self.context = self.backend.context(make_worker_id())
        # What ends with the block; whether there is a block; whether this is a live worker.
        self._life = ExitStack()
        self._has_life = self._is_known = False

    def __enter__(self) -> Self:
        self._has_life = True
        return self

    def __exit__(self, *_: Any) -> None:
        self._life.close()

    def _join(self) -> None:
        """Register as a live worker, if there is a block and that was not done."""
        if self._has_life and not self._is_known:
            who = (self.db, self.context.worker_id, self.backend.alias)
            timeout = self.backend.config.worker_timeout
            self._is_known = self._life.enter_context(alive(*who, timeout))

    def claim(self, queue_name: str | None = None) -> Claim | None:
        """Claim the first due row; return None if nothing is due. Promotes scheduled rows first."""
        queues = None if queue_name is None else [queue_name]
        found = self._promote(queues)
        if not (found.due or found.quarantined):
            return None
        self._join()
        who = (self.db, self.backend.alias, self.context.worker_id)
        claims = store.claim(*who, 1, queues, registered=self._is_known)
        if claims:
            return claims[0]
        # A quarantined row runs alone, as every row does here.
        return store.claim_quarantined(*who, queues, registered=self._is_known)

    def claim_one(self, id: UUID) -> Claim | None:
        """Claim the row with that id; return None if it is not due."""
        self._promote()
        self._join()
        return store.claim_one(self.db, self.backend.alias, self.context.worker_id, id)

    def _promote(self, queues: list[str] | None = None) -> store.QueuePeek:
        """Promote scheduled rows that have come due; return what the head of those queues shows."""
        alias = self.backend.alias
        while True:
            found = store.peek(self.db, alias, queues)
            is_late = found.next_due is not None and found.next_due <= 0
            # If none was promoted, another process is promoting these rows and has locked them.
            if not is_late or not (places := store.promote(self.db, alias)):
                return found
            wakeup.became_due(self.db, alias, places, only_here=True)

    def run(self, claim: Claim) -> Ended:
        """Run the claimed row and settle it; return the attempt and its outcome.

        The row is always settled. After Ctrl-C it is READY again, and KeyboardInterrupt is raised.
        """
        attempt = Attempt(self.context, claim)
        outcome: Outcome | None = None
        try:
            with _alone(claim.task_path):
                outcome = run(attempt)
        finally:
            if outcome is None or attempt.interrupted:
                outcome = attempt.release()
            outcome = self._settle(attempt, outcome)
        if attempt.interrupted and attempt.error is not None:
            raise attempt.error
        return attempt, outcome

    def _settle(self, attempt: Attempt, outcome: Outcome) -> Outcome:
        """Write the outcome, or a plain error if the database refuses it; return it as written."""
        ended = (attempt, outcome)
        try:
            written = settle(self.db, [ended])
        except (OperationalError, InterfaceError, KeyboardInterrupt) as error:
            if connections[self.db].in_atomic_block:
                raise
            # A connection may break while a task runs, and Ctrl-C may come in the middle of a
            # statement. So try once more on a new connection: the guards prevent a second write.
            connections[self.db].close()
            written = settle(self.db, [ended])
            if isinstance(error, KeyboardInterrupt):
                raise
        except Error:
            ended = unstorable(attempt, outcome)
            written = settle(self.db, [ended])
        return written[0][1] if written else ended[1]


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


def _refuse_transaction() -> None:
    """Raise RuntimeError if a transaction is open in this thread that no TestCase opened."""
    for connection in _in_transaction():
        if not connection.atomic_blocks[-1]._from_testcase:
            raise RuntimeError(
                f"Tasks cannot be run inside a transaction, and one is open on "
                f"{connection.alias!r}: a claim must be committed before its task starts. Call "
                "this outside of atomic(), and outside of views under ATOMIC_REQUESTS."
            )


def _in_transaction() -> list[Any]:
    return [c for c in connections.all(initialized_only=True) if c.in_atomic_block]


@contextmanager
def _alone(task_path: str) -> Iterator[None]:
    """Run the block as a runner would, with no transaction open in this thread afterwards."""
    tested = _in_transaction()
    try:
        with ExitStack() as stack:
            for connection in tested:
                stack.enter_context(_as_if_autocommit(connection, task_path))
            yield
    finally:
        if not tested:
            leave_clean(task_path)


@contextmanager
def _as_if_autocommit(connection: Any, task_path: str) -> Iterator[None]:
    """Run the block inside a TestCase's transaction as if there were none.

    The task's on_commit callbacks run when it ends, because no commit follows. If a database error
    breaks the transaction, only what the task wrote is rolled back, and the test goes on.
    """
    callbacks, depth = len(connection.run_on_commit), len(connection.atomic_blocks)
    block = transaction.atomic(connection.alias)
    # Marked like a TestCase's block, so that the task can use atomic(durable=True), or run tasks.
    block._from_testcase = True
    try:
        with block:
            yield
            roll_back_open(connection, depth + 1, task_path)
    except DatabaseError as error:
        logger.debug("What %s wrote was undone: %s", task_path, error)
    while len(connection.run_on_commit) > callbacks:
        connection.run_on_commit.pop(callbacks)[1]()
