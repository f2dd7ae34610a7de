"""One start of one claimed row.

Owns what is known about it: its task, when it began, whether it was asked to end, and the outcome
of what the task returned or raised. Never calls the task, and never writes to the database.
"""

import logging
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from inspect import iscoroutinefunction
from typing import Any

from django.tasks import TaskResultStatus, base
from django.tasks.signals import task_finished

from .. import store
from ..base import payload, registry
from ..base.result import FAILED, SUCCESSFUL, make_errors, with_error
from ..base.task import decode_policies, task_for
from ..exceptions import Snooze, TaskCancelled, TaskReleased, TaskTimeout
from ..options import Options
from ..store import Claim, Outcome
from . import outcomes
from .announcing import is_unheard
from .failures import delay_before_retry, describe_error, is_seconds, verdict
from .interrupt import Interruptible
from .live_result import FIELDS, live_result

logger = logging.getLogger("dbtasks.runner")

# The longest delay that a task can ask for, in seconds: 100 years. The latest date that every
# database stores is in the year 9999.
LONGEST_SNOOZE = 3_155_760_000.0
# Why an attempt may be asked to end. A reason replaces those before it in this list.
_REASONS = (TaskReleased, TaskTimeout, TaskCancelled)


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What all attempts of one worker share."""

    # The class of the backend, which is the sender of signals.
    sender: type
    alias: str
    db: str
    options: Options
    worker_id: str


class Attempt:
    """One start of one claimed row. Used by one thread, once."""

    __slots__ = (
        "_asked",
        "_open",
        "call",
        "claim",
        "context",
        "error",
        "is_inside",
        "result",
        "started",
        "task",
        "thread",
    )

    def __init__(self, context: WorkerContext, claim: Claim) -> None:
        self.context: WorkerContext = context
        self.claim: Claim = claim
        # On the monotonic clock; the time of the claim until the attempt begins.
        self.started: float = claim.clock
        self.task: base.Task | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        # The id of the thread that runs it, once one does.
        self.thread: int | None = None
        self.call = Interruptible()
        # True while the task's own coroutine runs: only then may it be cancelled.
        self.is_inside = False
        self._open = [True]
        self._asked: Exception | None = None

    # How it ends

    def begin(self) -> None:
        """Start the attempt's clock, in the thread that runs it."""
        self.started = time.monotonic()
        self.thread = threading.get_ident()

    def close(self) -> bool:
        """Return True to the first caller, in any thread: only that one may use the outcome."""
        try:
            # Atomic, unlike a flag that is read and then set.
            return self._open.pop()
        except IndexError:
            return False

    @property
    def is_open(self) -> bool:
        """Whether close() has not been called yet."""
        return bool(self._open)

    def ask(self, reason: Exception) -> bool:
        """Ask the task to end for that reason; return False if an earlier reason counts instead.

        The reason is TaskTimeout, TaskCancelled, or TaskReleased when the runner stops. It is only
        noted here, for the task to read.
        """
        asked = self._asked
        if asked is not None and _REASONS.index(type(reason)) <= _REASONS.index(type(asked)):
            return False
        self._asked = reason
        return True

    def asked(self) -> Exception | None:
        """Return why the task should end; None if it may go on. Checks the timeout as well."""
        timeout = self.timeout
        if timeout is not None and time.monotonic() >= self.started + timeout:
            self.ask(self.overrun())
        return self._asked

    @property
    def asked_for(self) -> Exception | None:
        """Why the task was asked to end; None if it was not. Does not check the timeout."""
        return self._asked

    def stand_in(self) -> "Attempt":
        """Return another attempt of the same start, to be settled if this one does not end."""
        other = Attempt(self.context, self.claim)
        other.task, other.started = self.task, self.started
        other._asked = self._asked or self.overrun()
        return other

    def overrun(self) -> TaskTimeout:
        """Return the TaskTimeout of an attempt that took too long."""
        return TaskTimeout(f"The task ran longer than its timeout of {self.timeout:g} s.")

    @property
    def timeout(self) -> float | None:
        """Seconds that the attempt may take; None if there is no limit."""
        return self.policy("timeout")  # type: ignore[no-any-return]

    @property
    def takes_context(self) -> bool:
        """Whether the task can see that it was asked to end."""
        return self.task is not None and self.task.takes_context

    @property
    def is_async(self) -> bool:
        """Whether the task is a coroutine function; False if it cannot be found."""
        task = self.find()
        return task is not None and _is_coroutine_function(task.func)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the attempt, rather than the task. Must be read in its thread.

        Only the main thread receives Ctrl-C. The code that runs attempts there raises it again.
        """
        main = threading.current_thread() is threading.main_thread()
        return main and isinstance(self.error, KeyboardInterrupt)

    # Its task

    def find(self) -> base.Task | None:
        """Return the task as it was enqueued; None if it cannot be found. Raises nothing."""
        if self.task is None and self.error is None:
            try:
                found = registry.find(self.claim.task_path, self.context.options.task_modules)
                self.task = self.as_enqueued(found)
            except Exception as error:  # no such task, or a row that was changed manually
                self.error = error
        return self.task

    def as_enqueued(self, found: base.Task | None) -> base.Task:
        """Return the task with the row's own priority, queue, run_after and policies."""
        claim, context = self.claim, self.context
        if (
            found is not None
            and claim.run_after is claim.policy is claim.meta is None
            and found.priority == claim.priority
            and found.queue_name == claim.queue_name
            and found.backend == context.alias
        ):
            return found
        values = {
            "priority": claim.priority,
            "queue_name": claim.queue_name,
            "backend": context.alias,
            "run_after": store.to_datetime(context.db, claim.run_after),
            "meta": payload.load(claim.meta) if claim.meta else None,
        }
        policies = decode_policies(payload.load(claim.policy) if claim.policy else None)
        return task_for(claim.task_path, found, values | policies)

    def policy(self, name: str) -> Any:
        """Return the task's own policy of that name, or else that of the options."""
        value = getattr(self.task, name, None)
        return getattr(self.context.options, name) if value is None else value

    # Outcomes

    def succeeded(self, value: Any, text: str | None) -> Outcome:
        """Return the outcome of a task that returned `value`, whose JSON is `text`."""
        claim = self.claim
        outcome = self._ended(SUCCESSFUL, claim.errors, claim.failures, text)
        if self.context.options.signals:
            self._end_result(TaskResultStatus.SUCCESSFUL, outcome, _return_value=value)
        return outcome

    def failed(self, error: BaseException) -> Outcome:
        """Return the outcome of a task that raised `error`, whatever it is. This must not fail."""
        error = verdict(error, self._asked)
        if isinstance(error, TaskReleased) and self._asked is not None:
            return self.release()
        self.error = error
        claim = self.claim
        if isinstance(error, Snooze) and is_seconds(error.delay):
            return self._again(error.delay, claim.errors, claim.failures)
        errors = with_error(outcomes.listed(claim.errors), describe_error(error))
        failures = claim.failures + 1
        delay = delay_before_retry(self.task, error, failures, self.policy, self.live_result)
        if delay is not None:
            where = (claim.task_path, claim.id, failures, delay)
            logger.warning("%s %s failed (failure %d), retry in %.1f s", *where, exc_info=error)
            return self._again(delay, payload.text(errors), failures)
        outcome = self._ended(FAILED, payload.text(errors), failures)
        if self.context.options.signals:
            self._end_result(TaskResultStatus.FAILED, outcome, errors=make_errors(errors))
        return outcome

    def _ended(
        self, status: str, errors: str | None, failures: int, return_value: str | None = None
    ) -> Outcome:
        return outcomes.ended(
            self.context.db,
            self.claim,
            self.context.worker_id,
            status,
            began=self.at(self.started),
            at=self.at(time.monotonic()),
            stay=self._retention(status),
            errors=errors,
            failures=failures,
            return_value=return_value,
        )

    def _again(self, delay: float, errors: str | None, failures: int) -> Outcome:
        """Return the outcome of an attempt after which the task is due in `delay` seconds."""
        delay = min(max(0.0, delay), LONGEST_SNOOZE)
        return outcomes.unfinished(
            self.context.db,
            self.claim,
            self.context.worker_id,
            began=self.at(self.started),
            errors=errors,
            failures=failures,
            run_after=self.at(time.monotonic()) + timedelta(seconds=delay),
        )

    def release(self) -> Outcome:
        """Return the outcome of an attempt that is released, because its runner stops."""
        began = self.at(self.started)
        return outcomes.released(self.context.db, self.claim, self.context.worker_id, began=began)

    def cancelled(self, outcome: Outcome) -> Outcome:
        """Return the outcome of a row that would be READY again, but was cancelled meanwhile."""
        run_after = store.to_datetime(self.context.db, self.claim.run_after)
        at, stay = self.at(time.monotonic()), self._retention(FAILED)
        return outcomes.cancelled(outcome, at, stay, run_after)

    def broken(self, error: BaseException) -> Outcome:
        """Return a FAILED outcome of plain values, so that making it cannot fail. Log the error."""
        logger.error("%s could not be run", self.claim.task_path, exc_info=error)
        self.error = error
        at = self.at(time.monotonic())
        return outcomes.broken(self.claim, self.context.worker_id, at, describe_error(error))

    def at(self, clock: float) -> datetime:
        """Return a time of this process's monotonic clock as a time of the database's clock."""
        at: datetime = self.claim.claimed_at + timedelta(seconds=clock - self.claim.clock)
        return at

    def _retention(self, status: str) -> timedelta | None:
        own: timedelta | None = getattr(self.task, "retain", None)
        return own or self.context.options.retain(self.claim.task_path, status)

    # Its result

    def live_result(self) -> Any:
        """Return the live result, one object for signals and the context."""
        if self.result is None:
            self.result = live_result(self)
        return self.result

    def describe(self) -> dict[str, Any]:
        """Return every field of the result as the attempt starts."""
        return {name: make(self) for name, make in FIELDS.items()}

    def _end_result(self, status: TaskResultStatus, outcome: Outcome, **values: Any) -> None:
        """Set the final fields of the live result, if somebody has it or will receive it."""
        if self.result is None and is_unheard(self, task_finished):
            return
        result = self.live_result()
        for name, value in {"status": status, "finished_at": outcome.finished_at, **values}.items():
            object.__setattr__(result, name, value)

    def drop_result(self) -> None:
        """Forget the live result. Receivers may keep it."""
        # A result refers to its attempt. If the attempt referred to the result as well, both would
        # wait for the garbage collector: measured 8 MiB between 10,000 and 100,000 tasks.
        self.result = None


# Unbounded, because a module keeps its registered functions anyway.
_is_coroutine_function = lru_cache(None)(iscoroutinefunction)
