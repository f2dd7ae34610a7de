"""Tasks: Django's Task with policies.

Owns Task and its decorator, and how a task is made again from the values of a row. Never touches
the database.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Any, Self

from django.tasks import base, task_backends
from django.tasks.exceptions import InvalidTask

from ..exceptions import DurationError, TaskNotFound
from ..schedule.duration import LONGEST
from . import policy, registry
from .result import default_of

# One call of enqueue_many: positional and keyword arguments.
Call = tuple[Iterable[Any], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(base.Task):
    """Django's Task with the policies that dbtasks adds.

    The ``@task`` decorator makes a task, using() returns a changed copy. A policy that is None is
    taken from OPTIONS.

    - `max_attempts`: attempts that may end in an exception. Attempts lost with their worker are
      counted separately.
    - `backoff`: seconds before the next attempt; a list of seconds, whose last item counts for all
      later attempts; or a function `(exception, task_result)` that returns seconds, or None to give
      up. The default starts at 5 seconds, doubles up to an hour, and varies by a half.
    - `retry_on`, `discard_on`: exceptions after which the task is retried, and those after which it
      never is.
    - `timeout`: how long one attempt may take, given as a duration; `math.inf` is no limit.
    - `on_lost`: what happens to a row whose worker is lost: ``"retry"`` or ``"fail"``.
    - `retain`: how long the finished row stays, given as a duration; 0 lets runners delete it at
      once.
    - `enqueue_on_commit`: write the row when the caller's transaction commits. True is the
      transaction of the default database, an alias that of another database.
    - `meta`: a dict of JSON that is stored with each call, such as a trace id.
    """

    max_attempts: int | None = None
    backoff: policy.Backoff | None = None
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    discard_on: tuple[type[BaseException], ...] = ()
    timeout: float | None = None
    on_lost: str | None = None
    retain: timedelta | None = None
    enqueue_on_commit: bool | str | None = None
    # Earliest start, counted from each enqueue: where using() stores a run_after as a timedelta.
    delay: timedelta | None = None
    meta: dict[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is None:
                continue
            try:
                object.__setattr__(self, name, check(value))
            except (ValueError, DurationError) as error:
                raise InvalidTask(f"{name}: {error}") from None
        base.Task.__post_init__(self)
        registry.register(self)

    def using(
        self,
        *,
        priority: int | None = None,
        queue_name: str | None = None,
        run_after: datetime | timedelta | None = None,
        backend: str | None = None,
        **policies: Any,
    ) -> Self:
        """Return a copy with other values; None leaves a value as it is.

        ``timeout=None`` and ``retain=None`` lift the limit of the task and that of OPTIONS.
        `run_after` is an aware datetime, or a timedelta that counts from each enqueue. Raise
        InvalidTask if a value is not valid, or is a function or an exception class, because a row
        stores no code. Raise TypeError if a name is not a policy.
        """
        changes = {"priority": priority, "queue_name": queue_name, "backend": backend, **policies}
        changes = {name: value for name, value in changes.items() if value is not None}
        changes |= _lifted(policies)
        if unknown := changes.keys() - {f.name for f in fields(self)}:
            raise TypeError(f"using() got an unknown policy {min(unknown)!r}.")
        if isinstance(run_after, timedelta) and run_after > LONGEST:
            raise InvalidTask(f"run_after: {run_after} is more than a hundred years.")
        if isinstance(run_after, timedelta):
            changes |= {"delay": run_after, "run_after": None}
        elif run_after is not None:
            changes |= {"run_after": run_after, "delay": None}
        if callable(changes.get("backoff")) or changes.keys() & {"retry_on", "discard_on"}:
            raise InvalidTask(
                "A row stores no code. Give retry_on, discard_on and a backoff that is a function "
                "to the @task decorator."
            )
        return replace(self, **changes)

    def enqueue_many(self, calls: Iterable[Call]) -> list[base.TaskResult]:
        """Enqueue the task once for each ``(args, kwargs)``, in a few statements.

        Return the results in the order of the calls. Either all rows are written, in the caller's
        transaction if there is one, or none. Raise TypeError if an argument is not JSON.
        """
        backend: Any = self.get_backend()
        results: list[base.TaskResult] = backend.enqueue_many([(self, *call) for call in calls])
        return results

    async def aenqueue_many(self, calls: Iterable[Call]) -> list[base.TaskResult]:
        """See enqueue_many()."""
        backend: Any = self.get_backend()
        many = [(self, *call) for call in calls]
        results: list[base.TaskResult] = await backend.aenqueue_many(many)
        return results


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "max_attempts": policy.check_attempts,
    "backoff": policy.check_backoff,
    "retry_on": policy.check_exceptions,
    "discard_on": policy.check_exceptions,
    "timeout": policy.check_timeout,
    "on_lost": policy.check_on_lost,
    "retain": policy.check_retain,
    "meta": policy.check_meta,
}


def _lifted(given: dict[str, Any]) -> dict[str, Any]:
    """Return the limits that were given as None, which lifts them."""
    names = [name for name in policy.NO_LIMITS if name in given and given[name] is None]
    return {name: policy.NO_LIMITS[name] for name in names}


def task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a task of a module-level function: Django's ``@task`` with policies, also on 6.0.

    Takes the arguments of ``django.tasks.task`` (priority, queue_name, backend, takes_context) and
    the policies of Task. ``timeout=None`` and ``retain=None`` mean no limit, also if OPTIONS have
    one. Other backends, such as one for tests, ignore the policies.

    Runners find tasks of installed apps and of the project; OPTIONS["task_modules"] names other
    modules. Raise InvalidTask if the function or a value is not valid, TypeError if an argument is
    unknown.
    """
    if "run_after" in options:
        raise TypeError("run_after is set for one call. Use .using(run_after=...).")
    options = {
        "priority": base.DEFAULT_TASK_PRIORITY,
        "queue_name": base.DEFAULT_TASK_QUEUE_NAME,
        "backend": base.DEFAULT_TASK_BACKEND_ALIAS,
        "run_after": None,
        **options,
        **_lifted(options),
    }

    def decorate(func: Callable[..., Any]) -> base.Task:
        wanted = task_backends[options["backend"]].task_class
        task_class = wanted if issubclass(wanted, Task) else Task
        return task_class(func=func, **options)

    return decorate(function) if function is not None else decorate


def task_for(path: str, found: base.Task | None, values: dict[str, Any]) -> base.Task:
    """Return the task as it was enqueued: `found` with the row's own values.

    Nothing is validated, so a row is shown even if its queue was removed from QUEUES. Without
    `found`, return a task of that path that raises TaskNotFound when it is called.
    """
    if found is None:
        found = _bare(Task, {"func": _missing(path), "takes_context": False})
    changed = {name: value for name, value in values.items() if getattr(found, name, None) != value}
    if not changed:
        return found
    names = {f.name for f in fields(found)}
    kept = {name: getattr(found, name) for name in names}
    return _bare(type(found), kept | {n: v for n, v in changed.items() if n in names})


def _bare[T: base.Task](task_class: type[T], values: dict[str, Any]) -> T:
    """Return a task of that class with those values, without validating them."""
    task = object.__new__(task_class)
    for f in fields(task_class):
        value = values[f.name] if f.name in values else default_of(f)
        object.__setattr__(task, f.name, value)
    return task


def _missing(path: str) -> Callable[..., Any]:
    def missing(*args: Any, **kwargs: Any) -> Any:
        raise TaskNotFound(f"There is no task {path!r}.")

    missing.__module__, _, missing.__qualname__ = path.rpartition(".")
    missing.__name__ = missing.__qualname__
    return missing
