"""Runs a task inside ``enqueue()``, in the thread and the transactions of the caller.

Owns claiming and settling the row there, and the rollback of what a failed task wrote. Never runs a
row that is scheduled for later.
"""

from contextlib import ExitStack
from typing import Any

from django.db import connections, transaction
from django.db.transaction import TransactionManagementError

from . import store
from .base.result import READY, TaskResult
from .db.connections import is_broken, leave_clean, roll_back_open
from .execution.attempt import Attempt, WorkerContext
from .execution.running import run
from .liveness.beat import alive
from .models import Hold
from .store import Outcome


def run_now(context: WorkerContext, id: Any, result: TaskResult) -> None:
    """Run the row that was just written, and refresh its result.

    Does nothing if the row is scheduled for later. After Ctrl-C the row is settled and
    KeyboardInterrupt is raised.
    """
    db, worker_id = context.db, context.worker_id
    with alive(db, worker_id, context.alias, context.options.worker_timeout):
        claim = store.claim_one(db, context.alias, worker_id, id, Hold.IMMEDIATE)
        if claim is None:
            return
        attempt = Attempt(context, claim)
        attempt.task = result.task
        outcome = run_inside(attempt)
        if not store.settle(db, [outcome]) and outcome.status == READY:
            store.settle(db, [attempt.cancelled(outcome)])
    result.refresh()
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
            stack.enter_context(transaction.atomic(connection.alias))
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
