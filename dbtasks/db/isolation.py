"""The transactions around a task that runs in the thread of a caller.

Owns the refusal of a caller's transaction, and what stands in for none inside of a TestCase. Never
opens a transaction elsewhere.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from django.db import DatabaseError, connections, transaction

from .connections import leave_clean, roll_back_open

logger = logging.getLogger("dbtasks.inline")


class InTransaction(RuntimeError):
    """Raised where a task cannot be run, because a transaction of the caller's is open."""


def refuse_transaction() -> None:
    """Raise InTransaction if a transaction is open in this thread that no TestCase opened."""
    for connection in in_transaction():
        if not connection.atomic_blocks[-1]._from_testcase:
            raise InTransaction(
                f"Tasks cannot be run inside a transaction, and one is open on "
                f"{connection.alias!r}: a claim must be committed before its task starts. Call "
                "this outside of atomic(), and outside of views under ATOMIC_REQUESTS."
            )


def in_transaction() -> list[Any]:
    """Return the connections of this thread that are in a transaction."""
    return [c for c in connections.all(initialized_only=True) if c.in_atomic_block]


@contextmanager
def isolated(task_path: str) -> Iterator[None]:
    """Run the block as a runner would, with no transaction open in this thread afterwards."""
    tested = in_transaction()
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
