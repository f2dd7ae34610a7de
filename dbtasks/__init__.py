"""A database backend and a runner for Django's task framework.

Owns the names that users import from ``dbtasks``. Never holds code of its own. All names can be
imported before Django has loaded its apps, except those that run tasks, which need the models.
"""

from typing import TYPE_CHECKING, Any

from .base.context import TaskContext
from .base.result import TaskResult
from .base.task import Task, task
from .exceptions import (
    CrontabError,
    DBTasksError,
    Discard,
    DurationError,
    Retry,
    RunnerError,
    ScheduleError,
    ScheduleExhausted,
    Snooze,
    TaskCancelled,
    TaskInterrupted,
    TaskNotDue,
    TaskNotFound,
    TaskReleased,
    TaskTimeout,
    WorkerLost,
)
from .schedule.duration import Duration
from .schedule.periodic import Periodic, periodic
from .schedule.rules import Crontab, Every, Schedule

__all__ = [
    "Crontab",
    "CrontabError",
    "DBTasksError",
    "Discard",
    "Duration",
    "DurationError",
    "Every",
    "Periodic",
    "Retry",
    "RunnerError",
    "Schedule",
    "ScheduleError",
    "ScheduleExhausted",
    "Snooze",
    "Task",
    "TaskCancelled",
    "TaskContext",
    "TaskInterrupted",
    "TaskNotDue",
    "TaskNotFound",
    "TaskReleased",
    "TaskResult",
    "TaskTimeout",
    "WorkerLost",
    "__version__",
    "pending_count",
    "periodic",
    "process_one",
    "process_tasks",
    "run_task",
    "sweep",
    "task",
]

if TYPE_CHECKING:
    __version__: str

    from .inline import pending_count, process_one, process_tasks, run_task
    from .sweeping import sweep


def __getattr__(name: str) -> Any:
    """Return a name that is costly, or needs loaded apps, when it is first used."""
    if name == "__version__":
        from .distribution import version

        return version()
    if name in {"pending_count", "process_one", "process_tasks", "run_task"}:
        from . import inline

        return getattr(inline, name)
    if name == "sweep":
        from . import sweeping

        return sweeping.sweep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
