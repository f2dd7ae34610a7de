"""Results of tasks.

Owns TaskResult, how one is made from the values of a row, the names of the statuses, and the
entries of `errors`. Never touches the database: a result asks its backend.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, Self

from django.tasks import TaskResultStatus, base, task_backends
from django.tasks.base import TaskError

from .context import current_queue

READY = TaskResultStatus.READY.value
RUNNING = TaskResultStatus.RUNNING.value
SUCCESSFUL = TaskResultStatus.SUCCESSFUL.value
FAILED = TaskResultStatus.FAILED.value
FINISHED = (SUCCESSFUL, FAILED)

# Errors and worker ids that a row keeps: few enough that they never prevent an outcome from being
# stored.
MAX_ERRORS = 10
MAX_WORKER_IDS = 20

# Seconds after which a task that waits for another one has its own process run it, and between two
# tries. Until then other threads and runners may take it.
HELP_AFTER = 0.5
# Runs a row, if it is due; None in a process that runs no tasks.
_runner_of_one: Callable[[str, str, str], None] | None = None

# The class path of an exception and its traceback as text.
ErrorEntry = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskResult(base.TaskResult):  # type: ignore[misc]  # its stub is not frozen
    """Django's TaskResult, with methods that wait for, cancel and retry its task.

    Its attributes are Django's. They show the row as it was last read; refresh() reads it again.
    """

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, base.TaskResult):
            return NotImplemented
        names = [f.name for f in fields(base.TaskResult)]
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def __hash__(self) -> int:
        return hash(self.id)

    def wait(self, timeout: float | None = None) -> Self:
        """Block until the task has finished, in any process; return this result, refreshed.

        Polls the row: every 2 ms at first, every 0.5 s later. Raise TimeoutError if the task has
        not finished after `timeout` seconds; None waits for ever. Raise RuntimeError inside a
        transaction, because no runner sees the row before the commit.

        A task that waits for another one of its queue, which nobody has started for a moment, has
        its own process run it, in a further thread. So tasks that wait never occupy all threads for
        ever. For a task of another queue it only waits.
        """
        help_out = _HelpOut(self)
        for pause in _pauses(self.id, timeout):
            if self._backend.is_finished(self.id):
                break
            help_out.if_due()
            time.sleep(pause)
        self.refresh()
        return self

    async def await_(self, timeout: float | None = None) -> Self:
        """See wait()."""
        help_out = _HelpOut(self)
        for pause in _pauses(self.id, timeout):
            if await self._backend.ais_finished(self.id):
                break
            help_out.if_due()
            await asyncio.sleep(pause)
        await self.arefresh()
        return self

    def cancel(self) -> bool:
        """Cancel the task; return False if it has already finished, or its row is gone.

        A task that waits becomes FAILED at once, with TaskCancelled among its errors. A running
        task is asked to stop and becomes FAILED within seconds, unless it succeeds first. Joins the
        caller's transaction.
        """
        return bool(self._backend.cancel(self.id))

    async def acancel(self) -> bool:
        """See cancel()."""
        return bool(await self._backend.acancel(self.id))

    def retry(self) -> bool:
        """Make the row READY again; return False if it is not FAILED.

        Its errors stay. The counts of failed attempts, of lost workers and of releases start at 0
        again. Joins the caller's transaction.
        """
        return bool(self._backend.retry(self.id))

    @property
    def _backend(self) -> Any:
        return task_backends[self.backend]


class _HelpOut:
    """Has this process run the row that a task of it waits for."""

    def __init__(self, result: TaskResult) -> None:
        self._result, self._queue = result, current_queue.get()
        self._at = time.monotonic() + HELP_AFTER
        self._thread: threading.Thread | None = None

    def if_due(self) -> None:
        """Start a thread that runs the row if it is due. Does nothing outside of a task."""
        if self._queue is None or _runner_of_one is None or time.monotonic() < self._at:
            return
        if self._thread is None or not self._thread.is_alive():
            self._at = time.monotonic() + HELP_AFTER
            args = (self._result.backend, self._result.id, self._queue)
            self._thread = threading.Thread(
                target=_runner_of_one, args=args, name="dbtasks-waited", daemon=True
            )
            self._thread.start()


def run_waited_with(call: Callable[[str, str, str], None]) -> None:
    """Set what runs a row that a task waits for: called with its backend, its id and a queue."""
    global _runner_of_one
    _runner_of_one = call


def _pauses(result_id: str, timeout: float | None) -> Iterable[float]:
    """Yield seconds to sleep, growing from 2 ms to 0.5 s; raise TimeoutError after the timeout."""
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
    """Return a result with these field values, without normalising or validating them again.

    Fields without a value, such as those of a newer Django, get their default.
    """
    result = object.__new__(TaskResult)
    for f in _RESULT_FIELDS:
        value = values[f.name] if f.name in values else default_of(f)
        object.__setattr__(result, f.name, value)
    return result


def default_of(f: Field[Any], *_: Any) -> Any:
    """Return the default of the dataclass field; None if it has none."""
    if f.default_factory is not MISSING:
        return f.default_factory()
    return None if f.default is MISSING else f.default


def make_worker_ids(kept: list[str], attempts: int) -> list[str]:
    """Return Django's worker ids, one for each attempt: those that the row has forgotten are ""."""
    return [""] * (attempts - len(kept)) + kept


def make_errors(entries: Iterable[ErrorEntry]) -> list[TaskError]:
    """Return Django's errors for ``(exception class path, traceback text)`` pairs."""
    return [TaskError(exception_class_path=path, traceback=text) for path, text in entries]


def class_path(kind: type) -> str:
    """Return the import path of the class, as Django's TaskError expects it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def error_entry(error: BaseException) -> ErrorEntry:
    """Return the entry for an exception of dbtasks: its message takes the place of a traceback."""
    return class_path(type(error)), str(error)


def error_message(path: str, text: str) -> str:
    """Return the first line of the message of an entry of `errors`; "" if it has none."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    # A traceback shows the class before the message, built-in ones without their module. Errors
    # that caused this one stand above it. What follows are more lines of the message, or notes.
    for line in reversed(lines):
        for name in (path, path.rpartition(".")[2]):
            if line == name or line.startswith(f"{name}: "):
                return line[len(name) + 2 :].strip()
    if not lines:
        return ""
    return (lines[-1] if lines[0].startswith("Traceback (") else lines[0]).strip()


def with_error(errors: Iterable[Any] | None, entry: ErrorEntry) -> list[Any]:
    """Return the row's errors with one more; only the last 10 are kept."""
    return [*(errors if isinstance(errors, list) else ()), entry][-MAX_ERRORS:]
