"""The exceptions of dbtasks.

Owns the exception classes. The first line of a docstring is the default message. Never imports
another module of the package.
"""

from datetime import timedelta
from typing import Any


class DBTasksError(Exception):
    """Something went wrong in dbtasks.

    The base class of all other exceptions of dbtasks, except TaskInterrupted.
    """

    def __init__(self, message: str | None = None) -> None:
        if message is None or message == "":
            message = (type(self).__doc__ or "").partition("\n")[0]
        super().__init__(message)


class DurationError(DBTasksError, ValueError):
    """The value is not a duration.

    It is also a ValueError.
    """


class ScheduleError(DBTasksError, ValueError):
    """The schedule is not valid.

    It is also a ValueError.
    """


class CrontabError(ScheduleError):
    """The text is not a valid cron expression."""


class ScheduleExhausted(DBTasksError):
    """The schedule has no tick in that time."""


class TaskNotFound(DBTasksError):
    """The row names a function that is not a registered task."""


class PolicyUnreadable(DBTasksError, ValueError):
    """The row's policy cannot be read. A later version of dbtasks may have written it.

    It is also a ValueError.
    """


class TaskNotDue(DBTasksError):
    """The task may not be run now.

    Raised by run_task() for a row that is not yet due, is running, or has finished.
    """


class TaskCancelled(DBTasksError):
    """The task was cancelled before it started.

    Also raised by TaskContext.check(), with another message, in a running task that was cancelled.
    A cancelled task is FAILED and is not retried.
    """


class TaskTimeout(DBTasksError):
    """The task ran longer than its timeout.

    The attempt has failed. It is retried like any other if `retry_on` includes this class.
    """


class TaskInterrupted(BaseException):
    """The task is interrupted: it took too long, or was cancelled.

    Raised at whatever line of Python the task is. It derives from BaseException, so
    ``except Exception`` cannot swallow it. Do not catch it.
    """


class TaskReleased(DBTasksError):
    """The runner stopped before the task ended.

    The row is requeued, and the task starts again. No attempt is used up, but the row counts its
    releases: beyond the option ``max_releases`` it has FAILED. A task with ``on_lost="fail"`` has
    FAILED instead, with WorkerLost.
    """


class Retry(DBTasksError):
    """The task asked to be retried.

    Raise it in a task to fail this attempt and try again after `delay`: seconds, a timedelta, or
    text such as "5m". A delay may also be the first argument. Without a delay the task's backoff
    decides. If no attempt is left, the task is FAILED.
    """

    def __init__(
        self, message: Any = None, *, delay: float | timedelta | str | None = None
    ) -> None:
        super().__init__(message)
        self.delay = delay


class Snooze(DBTasksError):
    """The task asked to run later.

    Raise it in a task to end this run without using up an attempt. The task runs again after
    `delay`: seconds, a timedelta, or text such as "5m".
    """

    def __init__(self, delay: float | timedelta | str) -> None:
        super().__init__()
        self.delay = delay


class Discard(DBTasksError):
    """The task asked not to be retried.

    Raise it in a task to fail for good, whatever attempts are left.
    """


class WorkerLost(DBTasksError):
    """The worker was lost while it ran the task.

    The row is requeued or FAILED, as `on_lost` says. After a loss in quarantine it is FAILED. A
    runner that stops while it runs a task with ``on_lost="fail"`` counts as lost.
    """


class RunnerError(DBTasksError):
    """The runner cannot run.

    For example, the backend is not a DatabaseBackend, or is immediate.
    """
