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
    """The text is no cron line."""


class ScheduleExhausted(DBTasksError):
    """The schedule has no tick in that time."""


class TaskNotFound(DBTasksError):
    """The row names a function that is no registered task."""


class TaskNotDue(DBTasksError):
    """The task may not be run now."""


class TaskCancelled(DBTasksError):
    """The task was cancelled before it started."""


class TaskTimeout(DBTasksError):
    """The task ran longer than its timeout."""


class TaskInterrupted(BaseException):
    """The task is over: it took too long, or was cancelled.

    Raised in the midst of a task's code, and no Exception, so that ``except Exception`` does not
    keep the task alive. Let it pass.
    """


class TaskAbandoned(DBTasksError):
    """The runner stopped before the task ended."""


class Retry(DBTasksError):
    """The task asked to be tried again.

    Raised inside a task, it ends the attempt as a failed one. `delay` is in seconds; None leaves
    it to the backoff.
    """

    def __init__(self, message: str | None = None, *, delay: float | None = None) -> None:
        super().__init__(message)
        self.delay = delay


class Snooze(DBTasksError):
    """The task asked to be run later.

    Raised inside a task, it ends this run without counting it as an attempt. `delay` is in
    seconds.
    """

    def __init__(self, delay: float) -> None:
        super().__init__()
        self.delay = delay


class Discard(DBTasksError):
    """The task asked not to be tried again."""


class WorkerLost(DBTasksError):
    """The runner was lost while it had the task."""


class RunnerError(DBTasksError):
    """The runner cannot run."""
