"""Assertions about what was enqueued.

Owns how calls are compared, and the message of a failure. Never runs a task.
"""

import sys
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import zip_longest
from typing import Any

from django.db import connections
from django.tasks import base, task_backends
from django.tasks.exceptions import InvalidTaskBackend
from django.test.testcases import DatabaseOperationForbidden  # type: ignore[attr-defined]

from ..backend import DatabaseBackend
from ..base import payload
from ..base.result import RUNNING, TaskResult
from ..db.connections import AfterCommit
from ..exceptions import RunnerError
from .run import _moment, _rows, ours, run_tasks

# Means "not compared" where None is a value to compare with.
ANY: Any = type("ANY", (), {"__repr__": lambda self: "ANY"})()
# Calls that a failure shows: enough to see what is wrong, few enough to read.
NEAREST = 5


def enqueued(task: base.Task | None = None) -> list[TaskResult]:
    """Return the results of all enqueued calls, whatever their status, oldest first.

    With a `task`, return the calls of its function in its backend. Without one, return the calls in
    every DatabaseBackend whose database the test may use. Raise RunnerError if the task's backend
    is not a DatabaseBackend.
    """
    if task is not None:
        backend = ours(task.backend)
        return [*map(backend.result_of, _rows(backend).filter(task_path=task.module_path))]
    found = [result for backend in _all_ours() for result in _readable(backend)]
    return sorted(found, key=lambda result: result.id)


def assertEnqueued(
    task: base.Task,
    *args: Any,
    queue: str = ANY,
    priority: int = ANY,
    run_after: datetime | timedelta | None = ANY,
    within: float | timedelta = 1.0,
    count: int | None = None,
    **kwargs: Any,
) -> Any:
    """Fail unless the task was enqueued with these arguments; return the result of that call.

    `args` are the first positional arguments of the call, `kwargs` some of its keyword arguments.
    What is not given is not compared; the status of the task does not matter. `run_after` is an
    aware datetime, a timedelta from now, or None for a call without one; the call's value may
    differ by `within` seconds. If several calls match, return the result of the oldest. With
    `count`, exactly that many must match: return a list of their results, oldest first.
    """
    wanted = _Call(task, args, kwargs, queue, priority, run_after, within)
    found = enqueued(task)
    matching = [result for result in found if not wanted.differences(result)]
    if count is None and matching:
        return matching[0]
    if count is not None and len(matching) == count:
        return matching
    times = "" if count is None else f" {count} times but {len(matching)}"
    raise AssertionError(
        f"{wanted} was not enqueued{times}.{_nearest(wanted, found)}{_pending(task)}"
    )


def assertNotEnqueued(
    task: base.Task | None = None,
    *args: Any,
    queue: str = ANY,
    priority: int = ANY,
    run_after: datetime | timedelta | None = ANY,
    within: float | timedelta = 1.0,
    **kwargs: Any,
) -> None:
    """Fail if the task was enqueued with these arguments; without a `task`, if any task was.

    The arguments are compared as by assertEnqueued().
    """
    wanted = _Call(task, args, kwargs, queue, priority, run_after, within)
    if matching := [result for result in enqueued(task) if not wanted.differences(result)]:
        raise AssertionError(f"{wanted} was enqueued:{_lines(matching)}")


def assertEnqueuedCount(n: int, task: base.Task | None = None) -> None:
    """Fail unless exactly `n` calls of the task were enqueued; without a `task`, of all tasks."""
    found = enqueued(task)
    if len(found) != n:
        latest = f" The latest:{_lines(found[-NEAREST:])}" if found else _pending(task)
        raise AssertionError(f"{len(found)} tasks were enqueued, not {n}.{latest}")


class _Call:
    """The call that an assertion looks for."""

    def __init__(
        self,
        task: base.Task | None,
        args: Iterable[Any],
        kwargs: dict[str, Any],
        queue: Any,
        priority: Any,
        run_after: Any,
        within: float | timedelta,
    ) -> None:
        self.task = task
        # As a row returns them. Raises TypeError for what is not JSON and so cannot be enqueued.
        self.args = payload.dump(list(args), "args", sys.maxsize)[0]
        self.kwargs = payload.dump(kwargs, "kwargs", sys.maxsize)[0]
        moment = run_after if run_after is ANY else _moment("run_after", run_after)
        options = {"queue_name": queue, "priority": priority, "run_after": moment}
        self.options = {name: value for name, value in options.items() if value is not ANY}
        self.within = within if isinstance(within, timedelta) else timedelta(seconds=within)

    def __str__(self) -> str:
        path = self.task.module_path if self.task else "Any task"
        options = [f"{name} {_show(value)}" for name, value in self.options.items()]
        return ", ".join([_signature(path, self.args, self.kwargs), *options])

    def differences(self, result: TaskResult) -> list[str]:
        """Return the names of the values that differ; none if the result matches."""
        names = [] if result.args[: len(self.args)] == self.args else ["args"]
        names += [name for name, v in self.kwargs.items() if result.kwargs.get(name, ANY) != v]
        return names + [
            name
            for name, value in self.options.items()
            if not self._is_same(value, getattr(result.task, name))
        ]

    def _is_same(self, wanted: Any, found: Any) -> bool:
        if isinstance(wanted, datetime) and found is not None:
            return bool(abs(found - wanted) <= self.within)
        return bool(wanted == found)


def _nearest(wanted: _Call, found: list[TaskResult]) -> str:
    """Return the calls of the task that differ least from the one wanted, and what differs."""
    if not found:
        paths = sorted({result.task.module_path for result in enqueued()})
        return f" Enqueued were: {', '.join(paths)}." if paths else " Nothing was enqueued."
    nearest = sorted(found, key=lambda result: len(wanted.differences(result)))[:NEAREST]
    notes = [f"  <- {', '.join(wanted.differences(result)) or 'matches'}" for result in nearest]
    return f" The nearest of {len(found)}, and what differs:{_lines(nearest, notes)}"


def _pending(task: base.Task | None) -> str:
    """Return a hint if on_commit callbacks, which may enqueue, wait for a commit."""
    db = ours(task.backend if task else base.DEFAULT_TASK_BACKEND_ALIAS).database
    # Each written row adds an AfterCommit, which only wakes runners.
    waiting = sum(not isinstance(e[1], AfterCommit) for e in connections[db].run_on_commit)
    if not waiting:
        return ""
    return (
        f"\n{waiting} on_commit callbacks wait for a commit, which a TestCase never makes. Wrap "
        "the code under test in self.captureOnCommitCallbacks(execute=True)."
    )


def _lines(results: Iterable[TaskResult], notes: Iterable[str] = ()) -> str:
    """Return a line for each result, each with its note."""
    pairs = zip_longest(results, notes, fillvalue="")
    return "".join(f"\n  {_line(result)}{note}" for result, note in pairs)


def _line(result: Any) -> str:
    task = result.task
    after = f", run_after {_show(task.run_after)}" if task.run_after else ""
    worker = f", worker {result.worker_ids[-1]}" if result.status == RUNNING else ""
    return (
        f"{_signature(task.module_path, result.args, result.kwargs)}: {result.status}, "
        f"queue_name {task.queue_name!r}, priority {task.priority}{after}{worker}"
    )


def _signature(path: str, args: list[Any], kwargs: dict[str, Any]) -> str:
    given = [*map(_show, args), *(f"{name}={_show(value)}" for name, value in kwargs.items())]
    return f"{path}({', '.join(given)})"


def _show(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds")
    # Each call fits on one line, whatever its arguments.
    return f"{value!r:.80}"


def _all_ours() -> Iterator[DatabaseBackend]:
    for alias in task_backends.settings:
        try:
            yield ours(alias)
        except (RunnerError, InvalidTaskBackend):
            continue


def _readable(backend: DatabaseBackend) -> list[TaskResult]:
    try:
        return [backend.result_of(row) for row in _rows(backend)]
    except DatabaseOperationForbidden:
        # The test cannot have enqueued anything there either.
        return []


class TaskTestMixin:
    """Adds run_tasks(), enqueued() and the assertions to a TestCase, as methods."""

    run_tasks = staticmethod(run_tasks)
    enqueued = staticmethod(enqueued)
    assertEnqueued = staticmethod(assertEnqueued)
    assertNotEnqueued = staticmethod(assertNotEnqueued)
    assertEnqueuedCount = staticmethod(assertEnqueuedCount)
