"""``Runner``, the class that programs use.

Owns its arguments, and starting, stopping and waiting. Never claims or runs a task itself: each
call of run() makes a Run, which does.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from django.db import connections
from django.tasks import TaskResult

from ..events import Events
from ..liveness.identity import make_worker_id
from ..options.runner import RunnerOptions
from .run import Run


class Runner:
    """Claims due rows of one backend and runs them in `workers` threads.

    `worker_id` is the first part of its name among workers; the default is host and process id.
    `queues` limits the runner to those queues; None and ``["*"]`` are all. It runs no tasks of
    `exclude_queues`. `loop_delay` is the longest idle time between two
    polls of the database, in seconds; it is five times as long while wake-ups of other processes
    arrive. With `init_periodic=False` no schedules are fired. `grace` is how many seconds running
    tasks may take after stop().

    `coroutines` is how many coroutines run at once beside the threads. The default is 4 for each
    thread, less if the database's connection pool is smaller.

    With `drain` the runner stops when nothing is due or running, with `max_tasks` after that many
    tasks. It also stops, with `exhausted` set, when too many threads hang in abandoned tasks.

    `ready` is set just before the first claim, `finished` when run() has ended. `events` publishes
    what the runner does.
    """

    def __init__(
        self,
        workers: int = 4,
        worker_id: str | None = None,
        backend: str = "default",
        loop_delay: float = 1.0,
        init_periodic: bool = True,
        queues: Iterable[str] | None = None,
        *,
        grace: float = 30.0,
        drain: bool = False,
        exclude_queues: Iterable[str] | None = None,
        max_tasks: int | None = None,
        coroutines: int | None = None,
    ) -> None:
        self.options = RunnerOptions(
            workers,
            worker_id,
            backend,
            loop_delay,
            init_periodic,
            _listed(queues),
            grace,
            drain,
            _listed(exclude_queues),
            max_tasks,
            coroutines,
        )
        self.events = Events()
        self.ready, self.finished = threading.Event(), threading.Event()
        self._stopping, self._aborting = threading.Event(), threading.Event()
        self._settled = threading.Condition()
        # Of start(): its thread, and what ended it.
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        # The current run, or the last one; None before the first.
        self._run: Run | None = None
        self._first_worker_id = make_worker_id(worker_id)

    @property
    def worker_id(self) -> str:
        """Its name among workers: unique to each run(), and new after it was declared lost."""
        return self._first_worker_id if self._run is None else self._run.worker_id

    @property
    def running(self) -> int:
        """How many attempts have started and not ended."""
        return 0 if self._run is None else self._run.running

    @property
    def done(self) -> int:
        """How many attempts have succeeded or failed for good since run() began."""
        return 0 if self._run is None else self._run.tally.done

    @property
    def failed(self) -> int:
        """How many attempts have failed for good since run() began."""
        return 0 if self._run is None else self._run.tally.failed

    @property
    def released(self) -> int:
        """How many running attempts were released when the grace was over. They start again."""
        return 0 if self._run is None else self._run.released

    @property
    def abandoned_threads(self) -> int:
        """How many abandoned threads and coroutines have not ended."""
        return 0 if self._run is None else self._run.abandoned_threads

    @property
    def exhausted(self) -> bool:
        """Whether it has stopped because too many threads hang in abandoned tasks."""
        return self._run is not None and self._run.exhausted

    def run(self) -> None:
        """Run tasks in this thread until stop() is called.

        Can be called again once it has returned. Raise ImproperlyConfigured or RunnerError if the
        runner cannot start.
        """
        self.finished.clear()
        self._run = None
        try:
            self._run = Run(
                self.options, self.events, self._stopping, self._aborting, self._settled
            )
            self._run.live(self.ready)
        finally:
            self._stopping.clear()
            self._aborting.clear()
            self.ready.clear()
            self.finished.set()

    def start(self, timeout: float | None = None) -> None:
        """Call run() in a thread of its own, and return when it claims tasks.

        Raise what keeps it from starting, RuntimeError if it runs already. After `timeout` seconds
        ask it to stop, and raise TimeoutError. End it by stop() and join(); the process does not
        wait for it.
        """
        if self._thread is not None and self._thread.is_alive():
            raise RuntimeError("The runner runs already.")
        self._error = None
        self._thread = threading.Thread(target=self._run_here, name="dbtasks-runner", daemon=True)
        self._thread.start()
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        # A thread that has ended is never ready.
        while not self.ready.wait(0.01) and self._thread.is_alive():
            if time.monotonic() > deadline:
                self.stop()
                raise TimeoutError(f"The runner was not ready after {timeout} seconds.")
        if self._error is not None:
            raise self._error

    def _run_here(self) -> None:
        try:
            self.run()
        except BaseException as error:  # raised again by start() or join()
            self._error = error
        finally:
            connections.close_all()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the thread of start() has ended; return False after `timeout` seconds.

        Raise what ended it, unless it was stop(), `drain` or `max_tasks`.
        """
        if self._thread is None:
            raise RuntimeError("The runner was not started by start().")
        self._thread.join(timeout)
        if self._error is not None:
            raise self._error
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Ask run() to claim nothing more, wait for running tasks up to `grace`, and return.

        After a second call run() does not wait: it releases running tasks, which start again. After
        a call before run(), run() returns without claiming. Can be called from any thread.
        """
        if self._stopping.is_set():
            self._aborting.set()
        self._stopping.set()
        if self._run is not None:
            self._run.notice_stop()

    def declare_lost(self, worker_id: str) -> None:
        """Rescue that worker's rows at once, because its process has ended.

        Does nothing unless run() is running: the next run() looks for lost workers itself. Can be
        called from any thread.
        """
        if self._run is not None:
            self._run.declare_lost(worker_id)

    def wait(self, timeout: float | None = None) -> bool:
        """Block until nothing is due, running or unsettled; return False after `timeout` seconds.

        run() must be running in another thread.
        """
        return self._wait(lambda: self._run is not None and self._run.is_idle(), timeout)

    def wait_for(self, result: TaskResult, timeout: float | None = None) -> TaskResult:
        """Block until the task has finished, in whichever process; return its result, refreshed.

        Raise TimeoutError if it has not finished after `timeout` seconds.
        """

        def has_finished() -> bool:
            result.refresh()
            return result.is_finished

        if not self._wait(has_finished, timeout):
            raise TimeoutError(f"Task {result.id} is {result.status} after {timeout} seconds.")
        return result

    def _wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._settled:
            while not condition():
                left = 0.05 if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return False
                self._settled.wait(min(left, 0.05))
        return True


def _listed(names: Iterable[str] | None) -> Any:
    """Return the names as a tuple; None and text, which is not valid, as they are."""
    return names if names is None or isinstance(names, str) else tuple(names)
