"""Every error dbtasks raises itself.

Owns the exception classes, whose first docstring line is their default message. Never imports
anything else of the package.
"""


class DBTasksError(Exception):
    """Something went wrong in dbtasks."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").partition("\n")[0])


class DurationError(DBTasksError, ValueError):
    """The value is not a duration."""


class ScheduleError(DBTasksError, ValueError):
    """The schedule is not valid."""


class CrontabError(ScheduleError):
    """The text is not a valid cron expression."""


class ScheduleExhausted(DBTasksError):
    """The schedule has no tick in that time."""


class TaskNotFound(DBTasksError):
    """The row names a function that is not a registered task."""


class TaskNotDue(DBTasksError):
    """The task may not be run now."""


class TaskCancelled(DBTasksError):
    """The task was cancelled before it started."""


class TaskTimeout(DBTasksError):
    """The task ran longer than its timeout."""


class TaskInterrupted(BaseException):
    """The task is interrupted: it took too long, or was cancelled.

    It is raised in the middle of the task's code. It derives from BaseException, so
    ``except Exception`` cannot swallow it. Do not catch it.
    """


class TaskReleased(DBTasksError):
    """The runner stopped before the task ended."""


class Retry(DBTasksError):
    """The task asked to be retried.

    Raised inside a task, it fails this attempt and tries again after `delay` seconds. Without a
    delay the backoff decides.
    """

    def __init__(self, message: str | None = None, *, delay: float | None = None) -> None:
        super().__init__(message)
        self.delay = delay


class Snooze(DBTasksError):
    """The task asked to run later.

    Raised inside a task, it ends this run without using an attempt. The task runs again after
    `delay` seconds.
    """

    def __init__(self, delay: float) -> None:
        super().__init__()
        self.delay = delay


class Discard(DBTasksError):
    """The task asked not to be retried."""


class WorkerLost(DBTasksError):
    """The worker was lost while it ran the task."""


class RunnerError(DBTasksError):
    """The runner cannot run."""
