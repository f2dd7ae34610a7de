"""Tasks as dbtasks knows them: policies, the decorator, the context, results.

Owns our subclasses of Django's Task, TaskContext and TaskResult, and how a task and a result are
made from what a row holds.
Never touches the database itself: results reach it through their backend.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Any, Self, overload

from django.tasks import base, task_backends
from django.tasks.base import TaskError
from django.tasks.exceptions import InvalidTask

from . import policy, registry
from .exceptions import DurationError, TaskNotFound
from .schedule import LONGEST, Duration

# One call of enqueue_many: positional and keyword arguments.
Call = tuple[Iterable[Any], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(base.Task):
    """Django's Task with the policies that dbtasks adds.

    Made by the ``@task`` decorator; a changed copy is made by ``using()``.
    """

    # Policies; where they are None, OPTIONS decides.
    # Attempts that may end in an exception; lost runners are counted apart.
    max_attempts: int | None = None
    # Seconds before the next attempt, a list of them, or (exception, task_result) -> seconds or
    # None to give up. The default starts at 5 s, doubles up to an hour, and varies by a half.
    backoff: policy.Backoff | None = None
    # Exceptions after which the task is tried again, and those after which it never is.
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    discard_on: tuple[type[BaseException], ...] = ()
    # Seconds that one attempt may take; given as any duration.
    timeout: float | None = None
    # "retry" or "fail": what becomes of a row whose runner was lost.
    on_lost: str | None = None
    # How long finished rows stay.
    retain: timedelta | None = None
    # Write the row at the caller's commit; None is what OPTIONS["enqueue_on_commit"] says.
    enqueue_on_commit: bool | str | None = None
    # Earliest start, counted from each enqueue; run_after given as a timedelta lands here.
    delay: timedelta | None = None

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

        `run_after` is an aware datetime, or a timedelta counted from each enqueue. Raise
        InvalidTask if a value is not valid, TypeError if a name is no policy.
        """
        changes = {"priority": priority, "queue_name": queue_name, "backend": backend, **policies}
        changes = {name: value for name, value in changes.items() if value is not None}
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
                "A row keeps no code: give a backoff that is a function, retry_on and discard_on "
                "to the @task decorator."
            )
        return replace(self, **changes)

    def enqueue_many(self, calls: Iterable[Call]) -> list[base.TaskResult]:
        """Enqueue the task once for each ``(args, kwargs)``, in a few statements.

        Return the results in the order of the calls. All rows are written in the caller's
        transaction, or none.
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


# What a call of .using() may change and a row therefore has to keep: name, to JSON, from JSON.
POLICIES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "max_attempts": (int, int),
    "backoff": (lambda value: value, policy.check_backoff),
    "timeout": (float, float),
    "on_lost": (str, str),
    "retain": (timedelta.total_seconds, Duration),
}
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "max_attempts": policy.check_attempts,
    "backoff": policy.check_backoff,
    "retry_on": policy.check_exceptions,
    "discard_on": policy.check_exceptions,
    "timeout": policy.check_timeout,
    "on_lost": policy.check_on_lost,
    "retain": Duration,
}


@overload
def task(function: Callable[..., Any], /) -> base.Task: ...


@overload
def task(**options: Any) -> Callable[[Callable[..., Any]], base.Task]: ...


def task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Decorate a module-level function as a task: Django's ``@task`` plus policies, also on 6.0.

    Takes what ``django.tasks.task`` takes (priority, queue_name, backend, takes_context) and any
    policy of dbtasks (max_attempts, timeout, retain and the others). Under a backend that is not
    ours, as in tests, the policies wait unused. Raise InvalidTask if the function or a value is
    not valid.
    """
    if "run_after" in options:
        raise TypeError("run_after belongs to one call. Use .using(run_after=...) to set it.")
    options = {
        "priority": base.DEFAULT_TASK_PRIORITY,
        "queue_name": base.DEFAULT_TASK_QUEUE_NAME,
        "backend": base.DEFAULT_TASK_BACKEND_ALIAS,
        "run_after": None,
        **options,
    }

    def decorate(func: Callable[..., Any]) -> base.Task:
        wanted = task_backends[options["backend"]].task_class
        task_class = wanted if issubclass(wanted, Task) else Task
        return task_class(func=func, **options)

    return decorate(function) if function is not None else decorate


def _never() -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContext(base.TaskContext):  # type: ignore[misc]  # its stub is not frozen
    """Django's TaskContext, with when the run was due, and whether it should end.

    Made without more than a `task_result`, as in a test of one's own, it never asks to stop.
    """

    # When the run was due, aware and in UTC, if a schedule fired it; it may have started later.
    tick: datetime | None = None
    # Returns the error with which the attempt should end, None while it may go on.
    _asked: Callable[[], Exception | None] = field(default=_never, repr=False, compare=False)

    @property
    def should_stop(self) -> bool:
        """Whether the task should end now: its time is over, it was cancelled, or its runner stops.

        A task that returns then has succeeded; one that has more to do calls check().
        """
        return self._asked() is not None

    def check(self) -> None:
        """Return if the task may go on; else raise what ends it, to be let through.

        That is TaskTimeout, a failed attempt; TaskCancelled, which is never retried; or, when the
        runner stops, TaskAbandoned: the row is given back, to be started again.
        """
        if (error := self._asked()) is not None:
            # A new one each time: exceptions gather tracebacks.
            raise type(error)(str(error))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskResult(base.TaskResult):  # type: ignore[misc]  # its stub is not frozen
    """Django's TaskResult, with waiting and acting."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, base.TaskResult):
            return NotImplemented
        names = [f.name for f in fields(base.TaskResult)]
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def __hash__(self) -> int:
        return hash(self.id)

    def wait(self, timeout: float | None = None) -> Self:
        """Block until the task has finished, in whichever process; return this result, refreshed.

        Raise TimeoutError if it has not finished after `timeout` seconds, RuntimeError if called
        inside the transaction that enqueued it, which no runner can see into.
        """
        for pause in _pauses(self.id, timeout):
            if self._backend.is_finished(self.id):
                break
            time.sleep(pause)
        self.refresh()
        return self

    async def await_(self, timeout: float | None = None) -> Self:
        """See wait()."""
        for pause in _pauses(self.id, timeout):
            if await self._backend.ais_finished(self.id):
                break
            await asyncio.sleep(pause)
        await self.arefresh()
        return self

    def cancel(self) -> bool:
        """Cancel the task: one that waits ends at once, a running one is asked to stop.

        Return False if it has finished, or is not there: then nothing was changed. The row
        becomes FAILED with TaskCancelled among its errors; a running one within seconds, unless
        its task succeeds before it is stopped.
        """
        return bool(self._backend.cancel(self.id))

    async def acancel(self) -> bool:
        """See cancel()."""
        return bool(await self._backend.acancel(self.id))

    def retry(self) -> bool:
        """Make the row READY again if it is FAILED; return whether that was so."""
        return bool(self._backend.retry(self.id))

    @property
    def _backend(self) -> Any:
        return task_backends[self.backend]


def _pauses(result_id: str, timeout: float | None) -> Iterable[float]:
    """Yield seconds to sleep, 2 ms growing to 0.5 s, until the timeout; then raise TimeoutError."""
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = 0.002
    while True:
        left = pause if deadline is None else deadline - time.monotonic()
        if left <= 0:
            yield 0
            raise TimeoutError(f"Task {result_id} has not finished after {timeout} seconds.")
        yield min(pause, left)
        pause = min(pause * 1.5, 0.5)


_RESULT_FIELDS = fields(base.TaskResult)


def make_result(values: dict[str, Any]) -> TaskResult:
    """Return the result with those field values, without normalising or validating them again.

    Fields that are not named, such as a newer Django's, take their default.
    """
    result = object.__new__(TaskResult)
    for f in _RESULT_FIELDS:
        value = values[f.name] if f.name in values else default_of(f)
        object.__setattr__(result, f.name, value)
    return result


def default_of(f: Field[Any], *_: Any) -> Any:
    """Return the default of a dataclass's field; None if it has none."""
    if f.default_factory is not MISSING:
        return f.default_factory()
    return None if f.default is MISSING else f.default


def make_errors(entries: Iterable[tuple[str, str]]) -> list[TaskError]:
    """Return Django's errors for ``(exception class path, traceback text)`` pairs."""
    return [TaskError(exception_class_path=path, traceback=text) for path, text in entries]


def task_for(path: str, found: base.Task | None, values: dict[str, Any]) -> base.Task:
    """Return the task as it was enqueued: the one found, with the row's own values.

    Nothing is validated, so a queue that left QUEUES does not hide the row. If nothing was found,
    a stand-in of that path is returned, which raises TaskNotFound when called.
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


def policies_of(task: base.Task) -> dict[str, Any] | None:
    """Return, as JSON, the policies by which this call's task differs from the one declared."""
    declared = registry.get(task.module_path)
    if declared is task or not isinstance(task, Task):
        return None
    changed = {}
    for name, (encode, _) in POLICIES.items():
        value = getattr(task, name)
        # A function is declared with the task; a row keeps none.
        if value is None or callable(value):
            continue
        if value != getattr(declared, name, None):
            changed[name] = encode(value)
    return changed or None


def decode_policies(policy: dict[str, Any] | None) -> dict[str, Any]:
    """Return the task fields that a row's policies stand for."""
    return {
        name: POLICIES[name][1](value) for name, value in (policy or {}).items() if name in POLICIES
    }
