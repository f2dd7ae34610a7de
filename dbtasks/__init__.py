"""A database backend and a runner for Django's own tasks.

Owns the names that users import from ``dbtasks``; all of them can be imported before Django has
loaded its apps. Never holds code of its own.
"""

from .exceptions import (
    DBTasksError,
    DurationError,
    RunnerError,
    TaskAbandoned,
    TaskCancelled,
    TaskNotFound,
)
from .schedule import Duration
from .task import Task, TaskResult, task

__all__ = [
    "DBTasksError",
    "Duration",
    "DurationError",
    "RunnerError",
    "Task",
    "TaskAbandoned",
    "TaskCancelled",
    "TaskNotFound",
    "TaskResult",
    "task",
]
