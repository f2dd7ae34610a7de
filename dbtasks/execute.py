"""One attempt of one claimed row, from its path to its Outcome.

Owns calling task code: finding the task, signals, errors, the return value, and leaving the
thread as it was found. Never writes to our rows: the Outcome is settled by whoever claimed.
"""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import lru_cache, partial
from inspect import iscoroutinefunction
from traceback import format_exception, format_stack
from typing import Any
from uuid import UUID

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.db import connections
from django.dispatch import Signal
from django.tasks import TaskResultStatus, base
from django.tasks.signals import (
    log_task_finished,
    log_task_started,
    task_finished,
    task_started,
)

from . import payload, policy, registry, store
from .exceptions import (
    Discard,
    Retry,
    Snooze,
    TaskAbandoned,
    TaskCancelled,
    TaskInterrupted,
    TaskTimeout,
)
from .interrupt import Interruptible
from .models import FAILED, READY, SUCCESSFUL, instant
from .options import Options
from .store import Claim, Outcome
from .task import (
    TaskContext,
    TaskResult,
    decode_policies,
    default_of,
    make_errors,
    task_for,
)

logger = logging.getLogger("dbtasks.runner")
django_logger = logging.getLogger("django.tasks")
# Django's own receivers, which write a log line each.
LOGGING = {id(log_task_started), id(log_task_finished)}

# Errors kept of one row, and characters of each: enough to see what happened, never the reason
# that an outcome cannot be stored.
MAX_ERRORS, MAX_TRACEBACK = 10, 16_384
# Seconds that a task may ask for: a hundred years are for ever.
LONGEST_SNOOZE = 3_155_760_000.0
# What the error of a running task that was cancelled says.
CANCELLED = "The task was cancelled while it ran."
# Why an attempt may be asked to end; a later reason outdoes an earlier one.
_REASONS = (TaskAbandoned, TaskTimeout, TaskCancelled)


@dataclass(frozen=True, slots=True)
class Job:
    """What all attempts of one worker share."""

    # Class of the backend: the sender of signals.
    sender: type
    alias: str
    db: str
    options: Options
    worker_id: str


class LiveResult(TaskResult):
    """The result of a running attempt: a field that nobody looks at is never built."""

    __slots__ = ("_attempt",)

    def __getattr__(self, name: str) -> Any:
        # Reached only while the field is not set.
        if name not in _FIELDS:
            raise AttributeError(name)
        value = _FIELDS[name](self._attempt)
        object.__setattr__(self, name, value)
        return value


class Attempt:
    """One start of one claimed row. Used by one thread, once."""

    __slots__ = (
        "_asked",
        "_open",
        "call",
        "claim",
        "error",
        "is_inside",
        "job",
        "result",
        "started",
        "task",
        "thread",
    )

    def __init__(self, job: Job, claim: Claim) -> None:
        self.job, self.claim = job, claim
        # On the monotonic clock; the claim's moment until it begins.
        self.started = claim.clock
        self.task: base.Task | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        # The thread that runs it, once one does.
        self.thread: int | None = None
        # Through which the thread can be interrupted; whether the coroutine of the task runs.
        self.call = Interruptible()
        self.is_inside = False
        self._open = [True]
        self._asked: Exception | None = None

    def begin(self) -> None:
        """Count its time from now, in this thread. run() and arun() do it, unless it was done."""
        self.started = time.monotonic()
        self.thread = threading.get_ident()

    def close(self) -> bool:
        """Return True to the first who asks, in whatever thread: the outcome is theirs."""
        try:
            # Atomic, unlike a flag that is read and then set.
            return self._open.pop()
        except IndexError:
            return False

    def ask(self, reason: Exception) -> bool:
        """Ask the task to end for that reason; return False if it was for this one, or a harder.

        The reason is TaskTimeout, TaskCancelled, or TaskAbandoned when the runner stops. What it
        brings about is up to the task, and to whoever asks.
        """
        asked = self._asked
        if asked is not None and _REASONS.index(type(reason)) <= _REASONS.index(type(asked)):
            return False
        self._asked = reason
        return True

    def asked(self) -> Exception | None:
        """Return why the task should end, None if it may go on; by the clock where none watches."""
        timeout = self.timeout
        if timeout is not None and time.monotonic() >= self.started + timeout:
            self.ask(self.overrun())
        return self._asked

    def overrun(self) -> TaskTimeout:
        """Return the error of an attempt that took too long."""
        return TaskTimeout(f"The task ran longer than its timeout of {self.timeout:g} s.")

    @property
    def timeout(self) -> float | None:
        """Seconds that the attempt may take; None is for ever."""
        return self._policy("timeout")  # type: ignore[no-any-return]

    @property
    def takes_context(self) -> bool:
        """Whether the task can know that it was asked to end."""
        return self.task is not None and self.task.takes_context

    def run(self) -> Outcome:
        """Run the task in this thread, coroutines included; return what became of it.

        Context variables that the task sets, such as language and time zone, end with it.
        """
        try:
            return copy_context().run(self._run)
        finally:
            self._let_go()

    def _run(self) -> Outcome:
        try:
            task, args, kwargs = self._prepare()
            self._announce(task_started)
            self._check()
            value, text = self._dump(self._call(task, args, kwargs))
        except BaseException as error:  # sys.exit() in a task ends the task, not the thread
            outcome = self._failed(error)
            if outcome.status == FAILED and not self.interrupted:
                self._announce_end()
            return outcome
        outcome = self._succeeded(value, text)
        self._announce_end()
        return outcome

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C broke in, which is not the task's own end; asked in its thread.

        Whoever runs attempts in the main thread, the only one that gets it, raises it again.
        """
        main = threading.current_thread() is threading.main_thread()
        return main and isinstance(self.error, KeyboardInterrupt)

    async def arun(self) -> Outcome:
        """Run the coroutine of the task on this event loop; return what became of it.

        Thread-sensitive code under it, such as the ORM, gets a thread of its own, whose
        connections are closed at the end. Meant to be a task of its own on the loop.
        """
        async with ThreadSensitiveContext() as context:
            try:
                return await self._arun()
            finally:
                self._let_go()
                if context in SyncToAsync.context_to_thread_executor:
                    await sync_to_async(connections.close_all)()

    async def _arun(self) -> Outcome:
        try:
            task, args, kwargs = self._prepare()
            await self._aannounce(task_started)
            self._check()
            value, text = self._dump(await self._inside(task.func(*args, **kwargs)))
        except BaseException as error:
            outcome = self._failed(error)
            if outcome.status == FAILED and self._open:
                await self._aannounce(task_finished)
            return outcome
        outcome = self._succeeded(value, text)
        if self._open:
            await self._aannounce(task_finished)
        return outcome

    def _call(self, task: base.Task, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call the task's function; meanwhile it may be interrupted."""
        try:
            return self.call.run(task.call, args, kwargs)
        finally:
            if self.call.was_interrupted:
                # In the middle of a statement, or of a commit: nobody knows what they are up to.
                for connection in connections.all(initialized_only=True):
                    _drop(connection)

    async def _inside(self, coroutine: Any) -> Any:
        """Await the task's own coroutine: only meanwhile may it be cancelled."""
        self.is_inside = True
        try:
            return await coroutine
        finally:
            self.is_inside = False

    def _check(self) -> None:
        """Raise the reason if the task was asked to end before it began."""
        if self._asked is not None:
            raise self._asked

    @property
    def is_async(self) -> bool:
        """Whether the task is a coroutine function; False if it cannot be found."""
        task = self._find()
        return task is not None and _is_coroutine_function(task.func)

    def _find(self) -> base.Task | None:
        """Return the task as it was enqueued, or None; raises nothing."""
        if self.task is None and self.error is None:
            try:
                found = registry.find(self.claim.task_path, self.job.options.task_modules)
                self.task = self._as_enqueued(found)
            except Exception as error:  # no such task, or a row that somebody has written by hand
                self.error = error
        return self.task

    def _as_enqueued(self, found: base.Task | None) -> base.Task:
        claim, job = self.claim, self.job
        if (
            found is not None
            and claim.run_after is claim.policy is None
            and found.priority == claim.priority
            and found.queue_name == claim.queue_name
            and found.backend == job.alias
        ):
            return found
        policies = decode_policies(payload.load(claim.policy) if claim.policy else None)
        return task_for(
            claim.task_path,
            found,
            {
                "priority": claim.priority,
                "queue_name": claim.queue_name,
                "backend": job.alias,
                "run_after": store.moment(job.db, claim.run_after),
                **policies,
            },
        )

    def _prepare(self) -> tuple[base.Task, list[Any], dict[str, Any]]:
        """Return the task with its arguments, the context among them if the task takes it."""
        if self.thread is None:
            self.begin()
        task = self._find()
        if task is None:
            assert self.error is not None
            raise self.error
        args, kwargs = payload.load(self.claim.args), payload.load(self.claim.kwargs)
        if task.takes_context:
            args.insert(0, self._context())
        return task, args, kwargs

    def _context(self) -> TaskContext:
        tick = self.claim.tick
        return TaskContext(
            task_result=self._result(),
            tick=None if tick is None else instant(tick),
            _asked=self.asked,
        )

    def _dump(self, value: Any) -> tuple[Any, str | None]:
        if value is None:
            return None, None
        return payload.dump(value, "The return value", self.job.options.max_payload)

    def _succeeded(self, value: Any, text: str | None) -> Outcome:
        outcome = self._outcome(SUCCESSFUL, errors=self.claim.errors, return_value=text)
        if self.job.options.signals:
            ended_at = outcome.finished_at
            self._end_result(
                status=TaskResultStatus.SUCCESSFUL, finished_at=ended_at, _return_value=value
            )
        return outcome

    def _failed(self, error: BaseException) -> Outcome:
        """Return the outcome of an exception, whatever it is: this must not fail."""
        error = self._verdict(error)
        if isinstance(error, TaskAbandoned) and self._asked is not None:
            return self.abandon()
        self.error = error
        if isinstance(error, Snooze) and _is_seconds(error.delay):
            return self._again(error.delay, self.claim.errors, self.claim.failures)
        errors = [*self._errors(), describe_error(error)][-MAX_ERRORS:]
        failures = self.claim.failures + 1
        delay = self._delay(error, failures)
        if delay is not None:
            where = (self.claim.task_path, self.claim.id, failures, delay)
            logger.warning("%s %s failed for the %d. time, again in %.1f s", *where, exc_info=error)
            return self._again(delay, payload.text(errors), failures)
        outcome = self._outcome(FAILED, errors=payload.text(errors), failures=failures)
        if self.job.options.signals:
            entries, ended_at = make_errors(errors), outcome.finished_at
            self._end_result(status=TaskResultStatus.FAILED, finished_at=ended_at, errors=entries)
        return outcome

    def _verdict(self, error: BaseException) -> BaseException:
        """Return what the attempt has ended in: that which it was asked for, if that was why.

        A task that is cancelled has no other end than that or success. One that took too long
        may still end in its own way, such as Snooze.
        """
        asked = self._asked
        if asked is None or isinstance(error, type(asked)):
            return error
        broken_off = isinstance(error, TaskInterrupted | asyncio.CancelledError)
        if isinstance(asked, TaskCancelled) or (broken_off and isinstance(asked, TaskTimeout)):
            verdict = type(asked)(str(asked))
            verdict.__cause__ = error
            return verdict
        return error

    def _delay(self, error: BaseException, failures: int) -> float | None:
        """Return the seconds until the task is tried again; None if it is not."""
        task = self.task
        retry_on = (Retry, *getattr(task, "retry_on", (Exception,)))
        discard_on = (Discard, Snooze, TaskCancelled, *getattr(task, "discard_on", ()))
        if failures >= self._policy("max_attempts") or task is None:
            return None
        if isinstance(error, discard_on) or not isinstance(error, retry_on):
            return None
        try:
            if isinstance(error, Retry) and error.delay is not None:
                return policy.seconds(error.delay)
            return policy.delay_after(self._policy("backoff"), failures, error, self._result)
        except Exception:  # whatever the task's own function raises; its error stands
            logger.exception("The backoff of %s failed; it is not retried", self.claim.task_path)
            return None

    def _policy(self, name: str) -> Any:
        value = getattr(self.task, name, None)
        return getattr(self.job.options, name) if value is None else value

    def _again(self, delay: float, errors: str | None, failures: int) -> Outcome:
        """Return the outcome of an attempt after which the task is due again in `delay` seconds."""
        outcome = self._outcome(READY, errors=errors, failures=failures)
        # The latest date that every database holds is in the year 9999.
        delay = min(max(0.0, delay), LONGEST_SNOOZE)
        run_after = self._at(time.monotonic()) + timedelta(seconds=delay)
        return outcome._replace(run_after=run_after, finished_at=None, delete_after=None)

    def broken(self, error: BaseException) -> Outcome:
        """Return a plain FAILED outcome, of nothing that could break again."""
        logger.error("%s could not be run", self.claim.task_path, exc_info=error)
        self.error = error
        now = self._at(time.monotonic())
        claim, texts = self.claim, payload.text([describe_error(error)])
        counts = (claim.attempt, claim.failures + 1, claim.lost)
        times = (None, now, now, now, None)
        workers = payload.text([self.job.worker_id])
        return Outcome(claim.id, claim.fence, FAILED, *counts, *times, texts, workers, None)

    def write_off(self) -> tuple["Attempt", Outcome]:
        """Return the outcome of an attempt that does not end as it was asked to, and whose it is.

        Of a twin, for the attempt itself may go on at any moment. Sends task_finished, and so
        runs in a thread that can wait. Where the thread hangs is told with the error.
        """
        twin = Attempt(self.job, self.claim)
        twin.task, twin.started = self.task, self.started
        twin._asked = reason = self._asked or self.overrun()
        frame = sys._current_frames().get(self.thread or 0)
        where = "".join(format_stack(frame)) if frame else "  nobody knows where\n"
        try:
            raise reason from TaskInterrupted(f"It did not end. It was at:\n{where}")
        except Exception as error:
            outcome = twin._failed(error)
            if outcome.status == FAILED:
                twin._announce(task_finished)
        return twin, outcome

    def cancelled(self, outcome: Outcome) -> Outcome:
        """Return what becomes of a row that was to be READY again, but was cancelled meanwhile."""
        errors = [*_listed(outcome.errors), (store.class_path(TaskCancelled), str(TaskCancelled()))]
        ended = self._outcome(FAILED, errors=payload.text(errors[-MAX_ERRORS:]))
        kept = ("attempt", "failures", "lost", "started_at", "last_attempted_at", "worker_ids")
        return ended._replace(**{name: getattr(outcome, name) for name in kept})

    def abandon(self) -> Outcome:
        """Return the outcome of an attempt that is not waited for: READY, to be started again."""
        errors = [*self._errors(), (store.class_path(TaskAbandoned), str(TaskAbandoned()))]
        outcome = self._outcome(READY, errors=payload.text(errors[-MAX_ERRORS:]))
        return outcome._replace(finished_at=None, delete_after=None)

    def _outcome(
        self,
        status: str,
        *,
        errors: str | None,
        failures: int | None = None,
        return_value: str | None = None,
    ) -> Outcome:
        claim, job = self.claim, self.job
        started_at = self._at(self.started)
        finished_at = self._at(time.monotonic())
        stay = getattr(self.task, "retain", None) or job.options.retain(claim.task_path, status)
        return Outcome(
            claim.id,
            claim.fence,
            status,
            claim.attempt,
            claim.failures if failures is None else failures,
            claim.lost,
            store.moment(job.db, claim.run_after),
            store.moment(job.db, claim.started_at) or started_at,
            started_at,
            finished_at,
            stay and finished_at + stay,
            errors,
            self._worker_ids(),
            return_value,
        )

    def _at(self, clock: float) -> datetime:
        """Return that moment of this process's clock as the database would tell it."""
        at: datetime = self.claim.claimed_at + timedelta(seconds=clock - self.claim.clock)
        return at

    def _errors(self) -> list[tuple[str, str]]:
        return _listed(self.claim.errors)

    def _worker_ids(self) -> str:
        if self.claim.worker_ids is None:
            return _alone(self.job.worker_id)
        return payload.text([*_listed(self.claim.worker_ids), self.job.worker_id])

    def _result(self) -> Any:
        """Return the one result that signals and the context show."""
        if self.result is None:
            self.result = object.__new__(LiveResult)
            object.__setattr__(self.result, "_attempt", self)
        return self.result

    def _let_go(self) -> None:
        # A result keeps its attempt. Did that keep the result, both would wait for the garbage
        # collector: measured 8 MiB between the 10,000th task and the 100,000th.
        self.result = None

    def describe(self) -> dict[str, Any]:
        """Return every field of the result as the attempt starts."""
        return {name: make(self) for name, make in _FIELDS.items()}

    def _end_result(self, **values: Any) -> None:
        """Set what the end has brought, if anybody has the result or will get it."""
        if self.result is None and self._is_unheard(task_finished):
            return
        result = self._result()
        for name, value in values.items():
            object.__setattr__(result, name, value)

    def _is_unheard(self, signal: Signal) -> bool:
        """Tell whether sending the signal would do nothing: not even a log line comes of it."""
        level = logging.INFO if self.error is None else logging.ERROR
        return not django_logger.isEnabledFor(level) and _only_logs(signal)

    def _announce_end(self) -> None:
        """Send task_finished, unless the attempt was given up: that was announced, or is open."""
        if self._open:
            self._announce(task_finished)

    def _announce(self, signal: Signal) -> None:
        """Send the signal in this thread; a receiver that raises is logged by Django."""
        if self.job.options.signals and not self._is_unheard(signal):
            try:
                signal.send_robust(sender=self.job.sender, task_result=self._result())
            except (SystemExit, GeneratorExit):  # beyond what Django catches
                logger.exception("A receiver of a task's signal gave up")

    async def _aannounce(self, signal: Signal) -> None:
        """Send the signal in the attempt's own context; sync receivers run in its thread."""
        if not self.job.options.signals or self._is_unheard(signal):
            return
        if _only_logs(signal):
            # No thread for each coroutine just to format a log line.
            self._announce(signal)
        else:
            try:
                await signal.asend_robust(sender=self.job.sender, task_result=self._result())
            except (SystemExit, GeneratorExit):
                logger.exception("A receiver of a task's signal gave up")


# The fields of a result while it runs, each made from the attempt when it is asked for.
_FIELDS: dict[str, Callable[[Attempt], Any]] = {
    # Of a newer Django perhaps.
    **{f.name: partial(default_of, f) for f in fields(base.TaskResult)},
    "task": lambda attempt: attempt.task or attempt._as_enqueued(None),
    # SQLite's text has no hyphens.
    "id": lambda attempt: _hyphened(attempt.claim.id),
    "status": lambda attempt: TaskResultStatus.RUNNING,
    "enqueued_at": lambda attempt: store.moment(attempt.job.db, attempt.claim.enqueued_at),
    "started_at": lambda attempt: (
        store.moment(attempt.job.db, attempt.claim.started_at) or attempt._at(attempt.started)
    ),
    "finished_at": lambda attempt: None,
    "last_attempted_at": lambda attempt: attempt._at(attempt.started),
    "args": lambda attempt: payload.load(attempt.claim.args),
    "kwargs": lambda attempt: payload.load(attempt.claim.kwargs),
    "backend": lambda attempt: attempt.job.alias,
    "errors": lambda attempt: make_errors(attempt._errors()),
    "worker_ids": lambda attempt: payload.load(attempt._worker_ids()),
}


def _hyphened(id: str) -> str:
    """Return the id as results show it; SQLite's has no hyphens."""
    return id if "-" in id else str(UUID(id))


@lru_cache(16)
def _alone(worker_id: str) -> str:
    """Return the list of workers of most rows, which are started once."""
    return payload.text([worker_id])


# A registered function is kept by its module anyway.
_is_coroutine_function = lru_cache(None)(iscoroutinefunction)


def _listed(text: str | None) -> list[Any]:
    """Return the list in a row's text; [] if there is none, or somebody has spoiled it."""
    with suppress(ValueError):
        found = payload.load(text) if text else []
        return found if isinstance(found, list) else []
    return []


def _is_seconds(value: Any) -> bool:
    with suppress(ValueError):
        return policy.seconds(value) >= 0
    return False


def _only_logs(signal: Signal) -> bool:
    """Tell whether nobody but Django's own log receivers listens."""
    return all(receiver[0][0] in LOGGING for receiver in signal.receivers)


def describe_error(error: BaseException) -> tuple[str, str]:
    """Return the exception's class path and traceback text, bounded and fit for every database."""
    try:
        text = "".join(format_exception(error))
    except Exception as broken:  # the traceback module calls code of the exception's class
        text = (
            f"{type(error).__qualname__} (its traceback cannot be shown: {type(broken).__name__})"
        )
    return store.class_path(type(error)), payload.clean(text, MAX_TRACEBACK)


def leave_clean(task_path: str, keep: bool = False) -> None:
    """Close this thread's connections that are broken, too old, or inside a transaction.

    Runs between two tasks of one thread. A transaction left open is rolled back, and said so.
    With `keep`, connections that Django would close after each request stay open for the next
    task; one that came from a pool always goes back to it.
    """
    for connection in connections.all(initialized_only=True):
        # With DEBUG each connection would remember thousands of statements.
        connection.queries_log.clear()
        if connection.in_atomic_block:
            logger.warning(
                "%s left a transaction open on %r; it was rolled back", task_path, connection.alias
            )
            _drop(connection)
            continue
        settings = connection.settings_dict
        if keep and not settings["CONN_MAX_AGE"] and not settings["OPTIONS"].get("pool"):
            connection.close_at = None
        try:
            connection.close_if_unusable_or_obsolete()
        except Exception:  # whatever a driver raises when a broken connection is closed
            _drop(connection)


def roll_back_open(connection: Any, depth: int, task_path: str) -> None:
    """Roll back the blocks beyond that depth, which the task has entered and not left."""
    for block in reversed(connection.atomic_blocks[depth:]):
        logger.warning(
            "%s left a transaction open on %r; it was rolled back", task_path, connection.alias
        )
        block.__exit__(RuntimeError, None, None)


def _drop(connection: Any) -> None:
    """Close the connection, whatever state it is in; the next use makes a new one."""
    connection.in_atomic_block = False
    if connection.vendor == "sqlite" and connection.connection is not None:
        # A cursor in the middle of its rows, which a traceback may hold for long, keeps a closed
        # connection of SQLite, and its transaction, from ending.
        with suppress(Exception):
            connection.connection.rollback()
    with suppress(Exception):
        connection.close()
    # A new wrapper: the old one still believes in its open blocks.
    del connections[connection.alias]
