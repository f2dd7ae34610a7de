"""Test cases with a real runner.

Owns its start and its end in each test. Never lets a test hang: every wait has a time limit.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from django.db import OperationalError, connections
from django.db.backends.signals import connection_created
from django.tasks import base
from django.test import TransactionTestCase

from ..base.result import READY, RUNNING
from ..runner.runner import Runner
from .assertions import TaskTestMixin, _lines
from .run import _rows, ours


class TestingRunner(Runner):
    """A Runner in a thread of its own, which fails the test instead of hanging.

    `max_wait` is how many seconds the start, each wait and the end may take.
    """

    def __init__(self, max_wait: float, **options: Any) -> None:
        super().__init__(grace=max_wait, **options)
        self.max_wait = max_wait

    def start(self, timeout: float | None = None) -> None:
        """Start the thread; return once it claims tasks, or raise the error that prevents it."""
        try:
            super().start(self.max_wait if timeout is None else timeout)
        except TimeoutError as error:
            raise AssertionError(str(error)) from error

    def close(self) -> None:
        """Stop it and wait for its end; raise its error, or AssertionError if tasks still run."""
        # A second stop() would release the tasks that a stop() in the test waits for.
        if not self._stopping.is_set():
            self.stop()
        # Longer than its grace, because it then releases what still runs.
        has_ended = self.join(self.max_wait + 5)
        if not has_ended or self.released:
            raise AssertionError(self._complaint("did not come to its end"))

    def wait(self, timeout: float | None = None) -> bool:
        """Block until nothing is due or running, then return True; fail after `max_wait` seconds.

        With a `timeout`, return False after that many seconds instead.
        """
        done = super().wait(self.max_wait if timeout is None else timeout)
        if not done and timeout is None:
            raise AssertionError(self._complaint("still has work"))
        return done

    def wait_for(self, result: base.TaskResult, timeout: float | None = None) -> base.TaskResult:
        """Block until the task has finished; return its result, refreshed.

        Fail after `max_wait` seconds. With a `timeout`, raise TimeoutError after that many seconds
        instead.
        """
        try:
            return super().wait_for(result, self.max_wait if timeout is None else timeout)
        except TimeoutError as error:
            if timeout is not None:
                raise
            raise AssertionError(self._complaint(f"has not finished {result.id}")) from error

    def _complaint(self, what: str) -> str:
        backend = ours(self.options.backend)
        rows = _rows(backend).filter(status__in=[READY, RUNNING])
        lines = _lines(map(backend.result_of, rows)) or " none"
        return f"The runner {what} after {self.max_wait} seconds. Unfinished tasks:{lines}"


# A SQLite database in memory, as tests have by default, shares its cache between the connections of
# all threads. Such connections do not wait for a lock: the second one fails with "table is locked".


def _in_memory(connection: Any) -> bool:
    return connection.vendor == "sqlite" and bool(connection.is_in_memory_db())


def _share(connection: Any, **kwargs: Any) -> None:
    """Make a new connection, opened by a thread of the runner, wait for locks."""
    if _in_memory(connection):
        connection.execute_wrappers.append(_patiently)


def _patiently(execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
    """Execute the statement, again and again while the table is locked, for 5 seconds at most."""
    for _ in range(1000):
        try:
            return execute(sql, params, many, context)
        except OperationalError as error:
            if "locked" not in str(error):
                raise
            threading.Event().wait(0.005)
    return execute(sql, params, many, context)


@contextmanager
def shared_memory() -> Iterator[None]:
    """Let the threads of a runner and of the test share SQLite databases in memory."""
    with ExitStack() as stack:
        connection_created.connect(_share)
        stack.callback(connection_created.disconnect, _share)
        for connection in filter(_in_memory, connections.all(initialized_only=True)):
            stack.enter_context(connection.execute_wrapper(_patiently))
        yield


class RunnerTestCase(TaskTestMixin, TransactionTestCase):
    """A TransactionTestCase with a running runner, ``self.runner``, during each test.

    The class attributes `workers`, `coroutines`, `backend`, `queues`, `loop_delay` and
    `init_periodic` are its arguments. `max_wait` is how many seconds its start, each wait and its
    end may take; then the test fails with a list of the unfinished tasks.
    """

    workers = 2
    coroutines: int | None = None
    backend = "default"
    queues: Iterable[str] | None = None
    loop_delay = 0.05
    # A schedule that fires in the middle of a test would surprise it.
    init_periodic = False
    max_wait = 10.0

    runner: TestingRunner

    def setUp(self) -> None:
        super().setUp()
        self.enterContext(shared_memory())
        self.runner = self.start_runner()

    def start_runner(self, **options: Any) -> TestingRunner:
        """Start another runner and return it. It stops when the test ends.

        `options` are arguments of Runner; the class attributes are the defaults.
        """
        runner = TestingRunner(**(runner_options(self) | options))
        runner.start()
        self.addCleanup(runner.close)
        return runner


def runner_options(case: RunnerTestCase | type[RunnerTestCase]) -> dict[str, Any]:
    """Return the attributes of the test case that are arguments of its runner."""
    names = [
        "max_wait",
        "workers",
        "coroutines",
        "backend",
        "queues",
        "loop_delay",
        "init_periodic",
    ]
    return {name: getattr(case, name) for name in names}
