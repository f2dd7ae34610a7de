"""The context of a running task.

Owns what a task can see of its run, and how it learns that it should end. Never ends a task itself.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime

from django.tasks import base

# The queue of the task that runs in this context; None outside of a task.
current_queue: ContextVar[str | None] = ContextVar("dbtasks_queue", default=None)


def _never() -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContext(base.TaskContext):  # type: ignore[misc]  # its stub is not frozen
    """Django's TaskContext, with the tick of a schedule and a way to see that the task should end.

    `tick` is when the run was due if a schedule fired it, aware and in UTC, else None. The run may
    have started later. A context made from a `task_result` alone, as in a test, never asks the
    task to end.
    """

    tick: datetime | None = None
    # Returns the exception that should end the attempt, None while the task may go on.
    _asked: Callable[[], Exception | None] = field(default=_never, repr=False, compare=False)

    @property
    def should_stop(self) -> bool:
        """True once the task should end: its time is over, it was cancelled, or its runner stops.

        A task that returns then is SUCCESSFUL. If its work is not complete, call check() instead.
        """
        return self._asked() is not None

    def check(self) -> None:
        """Return if the task may go on, else raise the exception that ends it. Do not catch it.

        Raise TaskTimeout if its time is over: the attempt has failed. Raise TaskCancelled if it was
        cancelled: it is not retried. Raise TaskReleased if its runner stops: the row is requeued,
        and the task starts again.
        """
        if (error := self._asked()) is not None:
            # A new exception for each call, because an exception collects tracebacks.
            raise type(error)(str(error))
