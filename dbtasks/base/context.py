"""The context of a running task.

Owns what a task can see of its run, and how it learns that it should end. Never ends a task itself.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from django.tasks import base


def _never() -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContext(base.TaskContext):  # type: ignore[misc]  # its stub is not frozen
    """Django's TaskContext, with the time the run was due, and whether it should end.

    One that is made from a `task_result` alone, as in a test, never asks to stop.
    """

    # When the run was due, aware and in UTC, if a schedule fired it; it may have started later.
    tick: datetime | None = None
    # Returns the error with which the attempt should end, None while it may go on.
    _asked: Callable[[], Exception | None] = field(default=_never, repr=False, compare=False)

    @property
    def should_stop(self) -> bool:
        """Whether the task should end now: its time is over, it was cancelled, or its runner stops.

        A task that returns then has succeeded. Call check() instead if the work is not complete.
        """
        return self._asked() is not None

    def check(self) -> None:
        """Return if the task may go on; else raise the exception that ends it. Do not catch it.

        TaskTimeout is a failed attempt. TaskCancelled is never retried. TaskReleased means that the
        runner stops: the task is requeued and starts again.
        """
        if (error := self._asked()) is not None:
            # A new one each time: exceptions gather tracebacks.
            raise type(error)(str(error))
