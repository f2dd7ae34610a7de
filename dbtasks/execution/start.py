"""One start of one claimed row: what is known before it ends.

Owns its task and policies, when it began, and whether it was asked to end. Never calls the task,
and never decides what its end means.
"""

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from inspect import iscoroutinefunction
from typing import Any

from django.tasks import base

from .. import store
from ..base import payload, registry
from ..base.policy import NO_TIMEOUT
from ..base.secrets import without_note
from ..base.stored import POLICIES, policy_text, read_policies, read_policy
from ..base.task import task_for
from ..exceptions import PolicyUnreadable, TaskCancelled, TaskReleased, TaskTimeout
from ..options import Options
from ..store import Claim
from .interrupt import Interruptible

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


class Start:
    """One start of one claimed row."""

    __slots__ = (
        "_asked",
        "_open",
        "call",
        "claim",
        "context",
        "error",
        "has_returned",
        "is_entered",
        "is_inside",
        "is_interrupted",
        "result",
        "started",
        "sync_thread",
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
        # The thread of a coroutine's thread-sensitive code, which has an `ident` once it runs.
        self.sync_thread: Any = None
        self.call = Interruptible()
        # True while the task's own coroutine runs: only then may it be cancelled.
        self.is_inside = False
        # True once the task's function may have been called, and once it has returned or raised.
        self.is_entered = self.has_returned = False
        # True once the task was interrupted: its thread, or the cancellation of its coroutine.
        self.is_interrupted = False
        self._open = [True]
        self._asked: Exception | None = None

    # How it ends

    def begin(self) -> None:
        """Start the attempt's clock, in the thread that runs it."""
        self.started = time.monotonic()
        self.thread = threading.get_ident()

    def enter(self) -> None:
        """Note that the task is about to be called; raise TaskReleased if that is too late."""
        self.is_entered = True
        # In this order, while release() closes the attempt first and then asks whether it was
        # entered: so a task that is called is never taken for one that was not.
        if not self._open:
            raise TaskReleased

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

    def overrun(self) -> TaskTimeout:
        """Return the TaskTimeout of an attempt that took too long."""
        return TaskTimeout(f"The task ran longer than its timeout of {self.timeout:g} s.")

    @property
    def timeout(self) -> float | None:
        """Seconds that the attempt may take; None if there is no limit."""
        seconds: float | None = self.policy("timeout")
        return None if seconds == NO_TIMEOUT else seconds

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
            and claim.run_after is claim.meta is None
            and (claim.policy is None or claim.policy == policy_text(found))
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
            "meta": without_note(payload.load(claim.meta)) if claim.meta else None,
        }
        policies = read_policies(self._stored_policy())
        return task_for(claim.task_path, found, values | policies)

    def policy(self, name: str) -> Any:
        """Return the task's own policy of that name, or else that of the options."""
        value = getattr(self.task, name, None) if self.task is not None else self._stored(name)
        return getattr(self.context.options, name) if value is None else value

    def _stored(self, name: str) -> Any:
        """Return the row's own policy of that name; None if it has none that can be read."""
        with suppress(PolicyUnreadable):
            return read_policy(self._stored_policy(), name) if name in POLICIES else None
        return None

    def _stored_policy(self) -> Any:
        """Return the row's policies as JSON values; raise PolicyUnreadable if they are damaged."""
        text = self.claim.policy
        try:
            return payload.load(text) if text else None
        except ValueError:
            raise PolicyUnreadable(f"The row's policy {text!r:.80} cannot be read.") from None

    def at(self, clock: float) -> datetime:
        """Return a time of this process's monotonic clock as a time of the database's clock."""
        at: datetime = self.claim.claimed_at + timedelta(seconds=clock - self.claim.clock)
        return at


# Unbounded, because a module keeps its registered functions anyway.
_is_coroutine_function = lru_cache(None)(iscoroutinefunction)
