"""Runs a task inside ``enqueue()``, in the thread and the transactions of the caller.

Owns claiming and settling the row there, and the rollback of what a failed task wrote. Never runs a
row that is scheduled for later.
"""

from contextlib import ExitStack
from typing import Any

from django.db import connections, transaction
from django.db.transaction import TransactionManagementError

from . import store
from .base.result import TaskResult
from .db.connections import is_broken, is_tested, leave_clean, roll_back_open
from .exceptions import TaskCancelled
from .execution.attempt import Attempt, WorkerContext
from .execution.outcomes import CANCELLED
from .execution.running import run
from .execution.settling import settle_now
from .liveness.beat import alive
from .models import Hold
from .store import Outcome


def run_now(context: WorkerContext, id: Any, result: TaskResult) -> None:
    """Run the row that was just written, and refresh its result.

    Does nothing if the row is scheduled for later. After Ctrl-C the row is settled and
    KeyboardInterrupt is raised.
    """
    db, worker_id = context.db, context.worker_id
    running: list[Attempt] = []

    def pass_on_cancels(_: Any) -> None:
        for attempt in running.copy():
            attempt.ask(TaskCancelled(CANCELLED))

    with alive(db, worker_id, context.alias, context.options.worker_timeout, pass_on_cancels):
        claim = store.claim_one(db, context.alias, worker_id, id, Hold.IMMEDIATE)
        if claim is None:
            return
        attempt = Attempt(context, claim)
        attempt.task = result.task
        running.append(attempt)
        callbacks = _commit_callbacks()
        outcome = run_inside(attempt)
        settle_now(db, attempt, outcome)
    result.refresh()
    # The task's own callbacks run now, because the transaction of a TestCase is never committed.
    for connection, before in callbacks:
        while len(connection.run_on_commit) > before:
            connection.run_on_commit.pop(before)[1]()
    if isinstance(attempt.error, KeyboardInterrupt):
        raise attempt.error


def run_inside(attempt: Attempt) -> Outcome:
    """Run the attempt inside the caller's open transactions; return its outcome.

    If the task fails, or swallows a database error, everything it wrote is rolled back to a
    savepoint. PostgreSQL would otherwise refuse every later statement, the settling one included.
    """
    path = attempt.claim.task_path
    with ExitStack() as stack:
        joined = [c for c in connections.all(initialized_only=True) if c.in_atomic_block]
        for connection in joined:
            stack.enter_context(_savepoint(connection))
        depths = [len(connection.atomic_blocks) for connection in joined]
        outcome = run(attempt)
        for connection, depth in zip(joined, depths, strict=True):
            roll_back_open(connection, depth, path)
        if attempt.error is None and any(map(is_broken, joined)):
            outcome = attempt.broken(
                TransactionManagementError(
                    "The task went on after a database error inside the caller's transaction. "
                    "Everything it wrote was rolled back."
                )
            )
        if attempt.error is not None:
            for connection in joined:
                transaction.set_rollback(True, using=connection.alias)
    if not joined:
        leave_clean(path)
    return outcome


def _savepoint(connection: Any) -> Any:
    """Return a savepoint for the task in the caller's transaction."""
    block: Any = transaction.atomic(connection.alias)
    # The task may use atomic(durable=True) in the transaction of a TestCase, as if there were none.
    block._from_testcase = is_tested(connection)
    return block


def _commit_callbacks() -> list[tuple[Any, int]]:
    """Return the connections in a TestCase's transaction, and how many callbacks each has."""
    tested = filter(is_tested, connections.all(initialized_only=True))
    return [(connection, len(connection.run_on_commit)) for connection in tested]
