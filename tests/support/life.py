"""One life of a runner in which everything happens, and what must be true after it.

The tasks note what they did in a list of this process, because nothing here ends the process.
"""

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import Any, Self
from unittest import mock

from django.tasks import task, task_backends
from django.test import override_settings
from django.utils import timezone

import dbtasks
from dbtasks import Snooze, inline, store
from dbtasks.db import timeouts
from dbtasks.db.connections import discard_all
from dbtasks.firing import entries_of
from dbtasks.liveness.identity import host_key
from dbtasks.models import PeriodicTask, ScheduledTask, Worker
from dbtasks.rescue import MAX_LOST
from dbtasks.runner import Runner, purger, rounds, scheduler
from dbtasks.store import periodic, workers

from .backends import backend
from .rows import DB, make_task
from .schedules import overdue
from .waiting import until

# Seconds of silence after which a worker is lost. Beats come every quarter of it.
TIMEOUT = 1.2
# Share of the usual time limits of calls.
HURRY = 0.12
# Seconds that a life may take; usually it takes two.
LIFETIME = 20.0
HOUR = timedelta(hours=1)

# The id of each attempt that started.
started: list[str] = []


def _note(context: Any) -> int:
    started.append(context.task_result.id)
    return int(context.attempt)


@task(takes_context=True)
def plain(context: Any) -> int:
    """Succeed."""
    return _note(context)


@task(takes_context=True)
async def coroutine(context: Any) -> int:
    """Succeed, on the event loop."""
    return _note(context)


@dbtasks.task(takes_context=True, on_lost="fail")
def once(context: Any) -> int:
    """Succeed, and never start twice."""
    return _note(context)


@dbtasks.task(takes_context=True, max_attempts=2, backoff=0)
def twice(context: Any) -> int:
    """Fail the first time."""
    if _note(context) == 1:
        raise ValueError("the first time")
    return 2


@task(takes_context=True)
def snooze(context: Any) -> int:
    """Be run again a little later, the first time."""
    if _note(context) == 1:
        raise Snooze(0.05)
    return 2


@task(takes_context=True)
def fail(context: Any) -> None:
    """Fail."""
    _note(context)
    raise ValueError("always")


@task(takes_context=True)
def stay(context: Any) -> None:
    """Run until asked to end."""
    _note(context)
    end = time.monotonic() + LIFETIME
    while time.monotonic() < end:
        context.check()
        time.sleep(0.005)


class Life:
    """The rows of one life, a runner that runs them, and the verdict.

    As a context manager it makes all that usually takes seconds take less.
    """

    def __init__(self) -> None:
        self._exit = ExitStack()
        # By the row's id: its final status, and how often it starts.
        self.expected: dict[str, tuple[str, int]] = {}
        # What run() raised, and what was logged.
        self.error: BaseException | None = None
        self.said: list[str] = []
        # What runs until somebody cancels it, and what runs until the runner stops.
        self.cancelled: Any = None
        self.lasting: Any = None
        # What the purge deletes.
        self.expired: Any = None

    def __enter__(self) -> Self:
        enter = self._exit.enter_context
        path = f"{__name__}.plain"
        enter(
            override_settings(
                TASKS=backend(
                    OPTIONS={
                        "worker_timeout": TIMEOUT,
                        "task_modules": [__name__],
                        "periodic": {path: "0 0 1 1 *"},
                    }
                )
            )
        )
        enter(_logging_to(self.said))
        limit = timeouts.call_timeout.__init__

        def hurry(self: Any, connection: Any, seconds: float = timeouts.CALL_TIMEOUT) -> None:
            limit(self, connection, seconds * HURRY)

        enter(mock.patch.object(timeouts.call_timeout, "__init__", hurry))
        for module, name, seconds in (
            (timeouts, "WATCH_INTERVAL", 0.05),
            (timeouts, "CANCEL_TIMEOUT", 0.1),
            (purger, "PURGE_INTERVAL", 0.3),
            (rounds, "CANCEL_INTERVAL", 0.1),
            (scheduler, "LOOK_INTERVAL", 0.3),
            (scheduler, "IDLE_INTERVAL", 0.3),
            (scheduler, "BROKEN_PAUSE", 0.2),
        ):
            enter(mock.patch.object(module, name, seconds))
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    # The rows

    def prepare(self) -> None:
        """Empty the tables, and write the rows of one life."""
        for model in (ScheduledTask, Worker, PeriodicTask):
            model.objects.all().delete()
        started.clear()
        self.expected.clear()
        self.error = self.lasting = None
        self.said.clear()
        self._fill()

    def _fill(self) -> None:
        ours: Any = task_backends["default"]
        for each in (plain, plain, coroutine, once):
            self._expect(each.enqueue(), "SUCCESSFUL", 1)
        for each in (twice, snooze):
            self._expect(each.enqueue(), "SUCCESSFUL", 2)
        self._expect(fail.enqueue(), "FAILED", 1)
        soon = timezone.now() + timedelta(seconds=0.3)
        self._expect(plain.using(run_after=soon).enqueue(), "SUCCESSFUL", 1)
        self.cancelled = stay.enqueue()
        self._expect(self.cancelled, "FAILED", 1)
        self._lose(plain.enqueue(), "SUCCESSFUL", 1)
        self._lose(once.enqueue(), "FAILED", 0)
        self._quarantine(plain.enqueue())
        self.expired = make_task()
        ScheduledTask.objects.filter(pk=self.expired).update(
            status="SUCCESSFUL", delete_after=store.now(DB) - HOUR
        )
        periodic.declare(DB, "default", entries_of(ours).values())
        overdue(timedelta(seconds=1))

    def _expect(self, result: Any, status: str, starts: int) -> None:
        self.expected[result.id] = (status, starts)

    def _lose(self, result: Any, status: str, starts: int) -> None:
        """Let a worker be lost with that row, of a process that is gone from this host."""
        if not Worker.objects.exists():
            workers.register(DB, "lost", "default", host_key(), 2**22 + 1, 1)
        claim = store.claim_one(DB, "default", "lost", ScheduledTask.objects.get(pk=result.id).pk)
        assert claim is not None
        self._expect(result, status, starts)

    def _quarantine(self, result: Any) -> None:
        """Let two workers have been lost with that row."""
        ScheduledTask.objects.filter(pk=result.id).update(
            lost=2, hold="quarantined", attempt=2, worker_ids=["a", "b"]
        )
        self._expect(result, "SUCCESSFUL", 1)

    # The life

    def live(self) -> str:
        """Run the rows with a runner; return what is wrong afterwards, or ""."""
        runner = Runner(workers=3, loop_delay=0.1, grace=5)
        thread = self._start(runner.run)
        try:
            until(lambda: self._has_happened() or not thread.is_alive(), "The end", LIFETIME)
            self._evict(thread)
            if thread.is_alive():
                self.lasting = lasting = stay.enqueue()
                self._expect(lasting, "FAILED", 1)
                until(lambda: lasting.id in started or not thread.is_alive(), "stay", LIFETIME)
        except AssertionError as error:
            return f"{error} {self._left()} {self.said[-12:]}{stacks()}"
        finally:
            runner.stop()
            thread.join(15)
        if thread.is_alive():
            return f"The runner does not stop. {stacks()}"
        return self._verdict()

    def _evict(self, thread: threading.Thread) -> None:
        """Declare the runner lost while it is idle: it runs the next row under another name."""
        if thread.is_alive():
            Worker.objects.filter(state="live").update(state="lost")
            after = plain.enqueue()
            self._expect(after, "SUCCESSFUL", 1)
            row = ScheduledTask.objects.filter(pk=after.id, status="SUCCESSFUL")
            until(lambda: row.exists() or not thread.is_alive(), "The next row", LIFETIME)

    def _start(self, run: Callable[[], Any]) -> threading.Thread:
        thread = threading.Thread(target=self._run, args=[run], name="life", daemon=True)
        thread.start()
        return thread

    def _run(self, run: Callable[[], Any]) -> None:
        try:
            run()
        except BaseException as error:  # it ends with an exit code, and another one takes over
            self.error = error
        finally:
            discard_all()

    def _has_happened(self) -> bool:
        """Return whether all is done that a runner does, and cancel what waits for that."""
        if self.cancelled.id in started:
            task_backends["default"].cancel(self.cancelled.id)  # type: ignore[attr-defined]
        open_rows = ScheduledTask.objects.filter(status__in=("READY", "RUNNING"))
        time.sleep(0.01)
        return not (
            open_rows.exists()
            or ScheduledTask.objects.filter(pk=self.expired).exists()
            or not ScheduledTask.objects.filter(schedule_key__isnull=False).exists()
            or Worker.objects.filter(state="live", beat__lt=3).exists()
        )

    # The verdict

    def _verdict(self) -> str:
        wrong = []
        if self.error is None and (running := ScheduledTask.objects.running().count()):
            wrong.append(f"{running} rows are RUNNING after a stop.")
        # What waits for somebody who asks it to end would do so for ever.
        for result in filter(None, (self.cancelled, self.lasting)):
            task_backends["default"].cancel(result.id)  # type: ignore[attr-defined]
        self._take_over()
        rows = {str(row.pk): row for row in ScheduledTask.objects.all()}
        wrong += [self._judge(rows.pop(id, None), id) for id in self.expected]
        if rows.pop(str(self.expired), None) and self.error is None:
            wrong.append("The expired row is still there.")
        ticks = [row.status for row in rows.values()]
        if len(ticks) > 1 or (self.expired and self.error is None and ticks != ["SUCCESSFUL"]):
            wrong.append(f"The tick: {ticks}.")
        what = " ".join(filter(None, wrong))
        return what + (f" run() raised {self.error!r}." if what and self.error else "")

    def _take_over(self) -> None:
        """Run what is left, as another process does, also what is scheduled for soon."""
        left = ScheduledTask.objects.filter(status__in=("READY", "RUNNING"))
        with suppress(AssertionError):
            until(lambda: (inline.process_tasks(), not left.exists())[1], "The rest", 10)

    def _judge(self, row: ScheduledTask | None, id: str) -> str:
        """Return what is wrong with the row."""
        status, count = self.expected[id]
        if row is None:
            return f"{id} is gone."
        name, starts = row.task_path.rpartition(".")[2], started.count(id)
        allowed = {count}
        if self.error is not None:
            # Another one took over: a start may be lost, but not what promises to start once.
            allowed = set(range(2 if name == "once" else count + row.lost + 1))
            # The third loss ends what two workers were lost with before.
            status = row.status if name == "once" or row.lost >= MAX_LOST else status
        if row.status != status or not row.is_finished:
            return f"{name} is {row.status}, not {status}: {row.errors}"
        if starts not in allowed:
            return f"{name} has {starts} starts, not {count}."
        if row.attempt != len(row.worker_ids or []):
            return f"{name} has {row.attempt} attempts under {row.worker_ids}."
        if status == "SUCCESSFUL" and row.return_value != row.attempt:
            return f"{name}: attempt {row.return_value} ended, the row has {row.attempt}."
        return ""

    def _left(self) -> str:
        rows = ScheduledTask.objects.filter(status__in=("READY", "RUNNING"))
        seen = [(row.task_path, row.status, row.hold, row.fence, row.worker_id) for row in rows]
        return f"left {seen}, workers {list(Worker.objects.values_list('pk', 'state', 'beat'))}"


class InlineLife(Life):
    """The life of a process that runs what is due without a runner, and ends."""

    def _fill(self) -> None:
        for each in (plain, coroutine, once):
            self._expect(each.enqueue(), "SUCCESSFUL", 1)
        self._expect(twice.enqueue(), "SUCCESSFUL", 2)
        self._expect(fail.enqueue(), "FAILED", 1)
        late = plain.using(run_after=HOUR).enqueue()
        ScheduledTask.objects.filter(pk=late.id).update(run_after=store.now(DB) - HOUR)
        self._expect(late, "SUCCESSFUL", 1)
        self._lose(plain.enqueue(), "SUCCESSFUL", 1)
        self._lose(once.enqueue(), "FAILED", 0)
        self._quarantine(plain.enqueue())

    def live(self) -> str:
        thread = self._start(inline.process_tasks)
        thread.join(LIFETIME)
        if thread.is_alive():
            return f"It does not end. {self._left()} {self.said[-12:]}{stacks()}"
        return self._verdict()


@contextmanager
def _logging_to(lines: list[str]) -> Iterator[None]:
    """Collect what is logged, instead of printing it."""
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("dbtasks", "django.tasks")]
    was = [(logger, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, propagates in was:
            logger.propagate = propagates
            logger.removeHandler(handler)


def stacks() -> str:
    """Return where the threads are that wait for the database, and the runner's own."""
    found = []
    frames = sys._current_frames()
    for thread in threading.enumerate():
        if thread.ident in frames and thread.ident != threading.get_ident():
            lines = traceback.format_stack(frames[thread.ident])
            if thread.name == "life" or any("injection.py" in line for line in lines):
                ours = [line for line in lines if "/dbtasks/" in line]
                found.append(f"\n{thread.name}:\n{''.join(ours[-4:])}")
    return "".join(found)
