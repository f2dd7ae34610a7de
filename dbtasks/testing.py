"""Helpers for the tests of projects that use dbtasks.

Owns the assertions, the drain in the test's own thread, and test cases with a real runner. Never
needed by a running project, and never waits by a clock that tests patch.
"""

import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice, zip_longest
from typing import Any

from django.conf import settings
from django.db import OperationalError, connections
from django.db.backends.signals import connection_created
from django.db.models import Min
from django.tasks import TaskResultStatus, base, task_backends
from django.tasks.exceptions import InvalidTaskBackend
from django.test import TransactionTestCase
from django.test.testcases import DatabaseOperationForbidden  # type: ignore[attr-defined]
from django.test.utils import TestContextDecorator, override_settings
from django.utils import timezone

from . import payload, store
from .backend import DatabaseBackend
from .exceptions import RunnerError
from .inline import Inline
from .models import READY, RUNNING, Hold, ScheduledTask, ScheduledTaskQuerySet
from .runner import Runner
from .store import Claim
from .task import TaskResult

__all__ = [
    "LoudRunner",
    "Ran",
    "RunnerTestCase",
    "TaskTestMixin",
    "assertEnqueued",
    "assertEnqueuedCount",
    "assertNotEnqueued",
    "enqueued",
    "immediate",
    "run_tasks",
]

# Stands for "not compared" where None is a value.
ANY: Any = type("ANY", (), {"__repr__": lambda self: "ANY"})()
# Rows a failure shows: enough to see what is wrong, few enough to read.
NEAREST = 5


# Running


@dataclass(frozen=True, slots=True)
class Ran:
    """How many tasks run_tasks() has run, and how they ended."""

    successful: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        """How many there were."""
        return self.successful + self.failed


def run_tasks(
    *,
    queue: str | None = None,
    until: datetime | timedelta | None = None,
    limit: int = 1000,
    recursive: bool = True,
    reraise: bool = True,
    backend: str = "default",
) -> Ran:
    """Run what is due in this thread and on its connections, in claim order; return the counts.

    `until`, an aware datetime or a timedelta from now, also runs what is scheduled up to then:
    after all that is due, in the order of run_after. `recursive` also runs what the tasks
    enqueue. `limit` ends it after so many tasks. With `reraise` the first exception of a task is
    raised, the very object, once its row is settled; without, FAILED results tell. Works inside
    the transaction of a TestCase, where the on_commit callbacks of each task run at its end.
    """
    inline = Inline(backend)
    claims = (_all if recursive else _those_there)(inline, queue, _moment("until", until))
    successful = failed = 0
    for claim in islice(claims, limit):
        attempt, outcome = inline.run(claim)
        if reraise and attempt.error is not None:
            raise attempt.error
        ended_well = outcome.status == TaskResultStatus.SUCCESSFUL
        successful, failed = successful + ended_well, failed + (not ended_well)
    return Ran(successful, failed)


def _all(inline: Inline, queue: str | None, until: datetime | None) -> Iterator[Claim]:
    """Claim one row after the other, also those that come meanwhile."""
    while True:
        if claim := inline.claim(queue):
            yield claim
        elif not _bring_forward(inline, queue, until):
            return


def _bring_forward(inline: Inline, queue: str | None, until: datetime | None) -> bool:
    """Make due the rows that are scheduled next, if that is not after `until`."""
    rows = _scheduled(inline, queue, until)
    first = rows.aggregate(first=Min("run_after"))["first"]
    return bool(store.run_now(inline.db, rows.filter(run_after=first).values_list("pk", flat=True)))


def _those_there(inline: Inline, queue: str | None, until: datetime | None) -> Iterator[Claim]:
    """Claim the rows that are there now, none that come later."""
    due = _rows(inline.backend, queue).due().order_by("-priority", "id")
    scheduled = _scheduled(inline, queue, until or timezone.now())
    ids = [row.pk for rows in (due, scheduled.order_by("run_after", "id")) for row in rows]
    for id in ids:
        store.run_now(inline.db, [id])
        if claim := inline.claim_one(id):
            yield claim


def _scheduled(inline: Inline, queue: str | None, until: datetime | None) -> ScheduledTaskQuerySet:
    rows = _rows(inline.backend, queue).filter(status=READY, hold=Hold.SCHEDULED)
    return rows.none() if until is None else rows.filter(run_after__lte=until)


def _rows(backend: DatabaseBackend, queue: str | None = None) -> ScheduledTaskQuerySet:
    rows = ScheduledTask.objects.using(backend.database).filter(backend=backend.alias)
    return (rows if queue is None else rows.filter(queue_name=queue)).order_by("id")


class immediate(TestContextDecorator):
    """Run tasks inside enqueue(): a context manager, and a decorator of tests and test cases.

    Holds for tasks imported before, and in every thread. Rows are still written; a run_after to
    come leaves its row READY. Raise RunnerError if the backend is none of ours.
    """

    def __init__(self, backend: str = "default") -> None:
        self.backend = backend
        super().__init__()

    def enable(self) -> None:
        """Change TASKS as it stands now."""
        _ours(self.backend)
        entry: dict[str, Any] = settings.TASKS[self.backend]
        options = {**entry.get("OPTIONS", {}), "immediate": True}
        # Overriding the setting lets every thread make its backends anew.
        self._override = override_settings(
            TASKS={**settings.TASKS, self.backend: {**entry, "OPTIONS": options}}
        )
        self._override.enable()

    def disable(self) -> None:
        """Change TASKS back."""
        self._override.disable()


# Asserting


def enqueued(task: base.Task | None = None) -> list[TaskResult]:
    """Return the results of what was enqueued, whatever became of it, oldest first.

    All calls of that task's function, in the backend of that task; or all, in every
    DatabaseBackend whose database the test may use.
    """
    if task is not None:
        backend = _ours(task.backend)
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
    """Fail unless the task was enqueued with those arguments, whatever became of it since.

    `args` are the first positional arguments of the call, `kwargs` some of its keyword arguments;
    what is not given is not compared. `run_after` is an aware datetime or a timedelta from now,
    met `within` so many seconds, or None for a call without one. Return the result of the oldest
    such call; with `count` there must be exactly so many, and their results are returned in a
    list, oldest first.
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
    """Fail if the task, or without one any task, was enqueued with those arguments.

    They are compared as assertEnqueued() does.
    """
    wanted = _Call(task, args, kwargs, queue, priority, run_after, within)
    if matching := [result for result in enqueued(task) if not wanted.differences(result)]:
        raise AssertionError(f"{wanted} was enqueued:{_lines(matching)}")


def assertEnqueuedCount(n: int, task: base.Task | None = None) -> None:
    """Fail unless exactly `n` calls of that task, or of all, were enqueued."""
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
        # As the row gives them back; what is not JSON cannot have been an argument: TypeError.
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
        """Return the names of what is not as wanted; none if the result matches."""
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
    """Return the calls of the same task that differ least from the one wanted, and in what."""
    if not found:
        paths = sorted({result.task.module_path for result in enqueued()})
        return f" Enqueued were: {', '.join(paths)}." if paths else " Nothing was enqueued."
    nearest = sorted(found, key=lambda result: len(wanted.differences(result)))[:NEAREST]
    notes = [f"  <- {', '.join(wanted.differences(result)) or 'matches'}" for result in nearest]
    return f" The nearest of {len(found)}, and what differs:{_lines(nearest, notes)}"


def _pending(task: base.Task | None) -> str:
    """Return a hint if callbacks that may enqueue wait for a commit that never comes."""
    db = _ours(task.backend if task else base.DEFAULT_TASK_BACKEND_ALIAS).database
    # Each row that was written leaves one of ours, which wakes runners.
    names = [getattr(entry[1], "__qualname__", "") for entry in connections[db].run_on_commit]
    waiting = sum("DatabaseBackend.announce" not in name for name in names)
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
    # One line a call, whatever the arguments.
    return f"{value!r:.80}"


def _moment(name: str, value: datetime | timedelta | None) -> datetime | None:
    """Return the moment meant, by the clock that enqueue() goes by."""
    if isinstance(value, timedelta):
        return timezone.now() + value
    if value is not None and settings.USE_TZ and timezone.is_naive(value):
        raise ValueError(f"{name} must be an aware datetime or a timedelta, not {value!r}.")
    return value


def _ours(alias: str) -> DatabaseBackend:
    backend = task_backends[alias]
    if not isinstance(backend, DatabaseBackend):
        raise RunnerError(
            f"TASKS[{alias!r}] uses {type(backend).__name__}; these helpers know the rows of "
            "DatabaseBackend only. Use it in the settings of your tests."
        )
    return backend


def _all_ours() -> Iterator[DatabaseBackend]:
    for alias in task_backends.settings:
        try:
            yield _ours(alias)
        except (RunnerError, InvalidTaskBackend):
            continue


def _readable(backend: DatabaseBackend) -> list[TaskResult]:
    try:
        return [backend.result_of(row) for row in _rows(backend)]
    except DatabaseOperationForbidden:
        # Nor can the test have enqueued anything there.
        return []


class TaskTestMixin:
    """Adds this module's functions to a TestCase, as methods."""

    run_tasks = staticmethod(run_tasks)
    enqueued = staticmethod(enqueued)
    assertEnqueued = staticmethod(assertEnqueued)
    assertNotEnqueued = staticmethod(assertNotEnqueued)
    assertEnqueuedCount = staticmethod(assertEnqueuedCount)


# A real runner


class LoudRunner(Runner):
    """A runner in a thread of its own, whose waits end in a failed test, never in a hanging one.

    `patience` is how long anything may take, in seconds, where a call names no timeout.
    """

    def __init__(self, patience: float, **options: Any) -> None:
        super().__init__(grace=patience, **options)
        self.patience = patience
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._live, name="dbtasks-runner", daemon=True)

    def start(self) -> None:
        """Return once it claims tasks; raise what keeps it from that."""
        self._thread.start()
        # A hundred looks a second: a thread that has died will never be ready.
        for _ in range(round(self.patience * 100)):
            if self.ready.wait(0.01) or not self._thread.is_alive():
                break
        if self._error is not None:
            raise self._error
        if not self.ready.is_set():
            self.stop()
            raise AssertionError(f"The runner was not ready after {self.patience} seconds.")

    def close(self) -> None:
        """Stop it and wait for its end; raise what ended it, AssertionError if tasks still run."""
        # A second stop() would give up tasks that a test's own one waits for.
        if not self._stopping.is_set():
            self.stop()
        # Longer than its own grace: it needs a moment to give back what it cannot wait for.
        self._thread.join(self.patience + 5)
        if self._error is not None:
            raise self._error
        if self._thread.is_alive() or self.abandoned:
            raise AssertionError(self._complaint("did not come to its end"))

    def wait(self, timeout: float | None = None) -> bool:
        """Block until nothing is due or running; fail if that takes too long.

        With a `timeout`, in seconds, return False instead.
        """
        done = super().wait(self.patience if timeout is None else timeout)
        if not done and timeout is None:
            raise AssertionError(self._complaint("still has work"))
        return done

    def wait_for(self, result: base.TaskResult, timeout: float | None = None) -> base.TaskResult:
        """Block until that task has finished; return its result, refreshed.

        Fail if that takes too long; with a `timeout`, in seconds, raise TimeoutError instead.
        """
        try:
            return super().wait_for(result, self.patience if timeout is None else timeout)
        except TimeoutError as error:
            if timeout is not None:
                raise
            raise AssertionError(self._complaint(f"has not finished {result.id}")) from error

    def _live(self) -> None:
        try:
            self.run()
        except BaseException as error:  # whatever it is, the test's own thread raises it
            self._error = error
        finally:
            connections.close_all()

    def _complaint(self, what: str) -> str:
        backend = _ours(self.backend)
        rows = _rows(backend).filter(status__in=[READY, RUNNING])
        lines = _lines(map(backend.result_of, rows)) or " none"
        return f"The runner {what} after {self.patience} seconds. Unfinished tasks:{lines}"


# A SQLite database in memory, as tests have by default, shares its cache between the threads'
# connections, and then knows no waiting: whoever comes second fails with "table is locked".


def _in_memory(connection: Any) -> bool:
    return connection.vendor == "sqlite" and bool(connection.is_in_memory_db())


def _share(connection: Any, **kwargs: Any) -> None:
    """Let a new connection, which a thread of the runner makes, wait for the others."""
    if _in_memory(connection):
        connection.execute_wrappers.append(_patiently)


def _patiently(execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
    """Execute the statement again while another connection has the table; 5 seconds at most."""
    for _ in range(1000):
        try:
            return execute(sql, params, many, context)
        except OperationalError as error:
            if "locked" not in str(error):
                raise
            threading.Event().wait(0.005)
    return execute(sql, params, many, context)


class RunnerTestCase(TaskTestMixin, TransactionTestCase):
    """A TransactionTestCase with a runner at work during each test: ``self.runner``.

    The class attributes are what the runner gets; `patience` is how long, in seconds, its start,
    its waits and its end may take before the test fails with a list of the unfinished tasks.
    """

    workers = 2
    backend = "default"
    queues: Iterable[str] | None = None
    loop_delay = 0.05
    # Schedules fire when their time comes, which no test expects.
    init_periodic = False
    patience = 10.0

    runner: LoudRunner

    def setUp(self) -> None:
        super().setUp()
        connection_created.connect(_share)
        self.addCleanup(connection_created.disconnect, _share)
        for connection in filter(_in_memory, connections.all(initialized_only=True)):
            self.enterContext(connection.execute_wrapper(_patiently))
        self.runner = self.start_runner()

    def start_runner(self, **options: Any) -> LoudRunner:
        """Return one more runner, at work until the test ends; `options` are Runner's."""
        names = ("workers", "backend", "queues", "loop_delay", "init_periodic")
        runner = LoudRunner(self.patience, **({n: getattr(self, n) for n in names} | options))
        runner.start()
        self.addCleanup(runner.close)
        return runner
