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


class TaskNotFound(DBTasksError):
    """The row names a function that is no registered task."""


class TaskNotDue(DBTasksError):
    """The task may not be run now."""


class TaskCancelled(DBTasksError):
    """The task was cancelled before it started."""


class TaskAbandoned(DBTasksError):
    """The runner stopped before the task ended."""


class WorkerLost(DBTasksError):
    """The runner was lost while it had the task."""


class RunnerError(DBTasksError):
    """The runner cannot run."""


class FencedOff(DBTasksError):
    """The row moved on while its outcome was on the way; the outcome was dropped."""
