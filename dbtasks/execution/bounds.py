"""The bounds of attempts that run in the thread of a caller.

Owns when such an attempt is asked to end because its caller's time is over, and its interrupt at
its own timeout. Never abandons an attempt: the thread of a caller cannot be replaced.
"""

import asyncio
import math
import time
from contextlib import suppress
from functools import partial
from typing import Any

from ..db.isolation import in_transaction
from ..db.statements import remember_connections
from ..exceptions import TaskCancelled, TaskReleased
from ..store import Claim, Outcome
from .attempt import Attempt, WorkerContext
from .deadlines import Deadlines, interrupt
from .outcomes import CANCELLED
from .running import arun, run

# Seconds before the deadline of a caller at which a task that still runs is asked to end, as by a
# runner that stops.
RELEASE_BEFORE = 10.0


class BoundedAttempt(Attempt):
    """An attempt that is asked to end at `release_at`, on the monotonic clock.

    Without `has_ctrl_c` a KeyboardInterrupt is an error of the task.
    """

    __slots__ = ("has_ctrl_c", "loop", "release_at")

    def __init__(
        self, context: WorkerContext, claim: Claim, release_at: float, *, has_ctrl_c: bool
    ) -> None:
        super().__init__(context, claim)
        self.release_at, self.has_ctrl_c = release_at, has_ctrl_c
        # The event loop and the asyncio task of a coroutine that can be interrupted.
        self.loop: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None

    def asked(self) -> Exception | None:
        if time.monotonic() >= self.release_at:
            self.ask(TaskReleased())
        return super().asked()

    @property
    def interrupted(self) -> bool:
        return self.has_ctrl_c and super().interrupted


class Bounds:
    """Runs the attempts of one caller, one at a time, within its bounds.

    `deadline` is the end of the caller's time, on the monotonic clock. With `interrupts`, an
    attempt is interrupted at its timeout and when it is cancelled; otherwise it is only asked.
    Inside the transaction of a TestCase nothing is interrupted, because that ends connections.
    `has_ctrl_c` is whether Ctrl-C may come.
    """

    def __init__(self, deadline: float | None, *, interrupts: bool, has_ctrl_c: bool) -> None:
        self._has_ctrl_c = has_ctrl_c
        self.release_at = math.inf if deadline is None else deadline - RELEASE_BEFORE
        self._deadlines: Deadlines | None = None
        if interrupts:
            self._deadlines = Deadlines(_interrupt, lambda _: False, lambda: None)
            remember_connections()
        # The attempt that may be interrupted now.
        self._watched: Attempt | None = None

    def close(self) -> None:
        """Stop the thread that interrupts, if there is one."""
        if self._deadlines is not None:
            self._deadlines.stop()

    def attempt(self, context: WorkerContext, claim: Claim) -> BoundedAttempt:
        """Return an attempt of the claim."""
        return BoundedAttempt(context, claim, self.release_at, has_ctrl_c=self._has_ctrl_c)

    def run(self, attempt: BoundedAttempt) -> Outcome:
        """Run the attempt in this thread; return its outcome."""
        if self._deadlines is None or in_transaction():
            return run(attempt)
        call = _run_coroutine if attempt.is_async else run
        attempt.begin()
        self._watched = attempt
        self._deadlines.watch(attempt)
        try:
            return call(attempt)
        finally:
            self._deadlines.forget(attempt)
            self._watched = None

    def cancel(self, attempt: Attempt) -> None:
        """Ask the attempt to end because it was cancelled. Can be called from any thread."""
        if self._deadlines is not None and self._watched is attempt:
            self._deadlines.cancel(attempt)
        else:
            attempt.ask(TaskCancelled(CANCELLED))


def _run_coroutine(attempt: BoundedAttempt) -> Outcome:
    """Run the task's coroutine on an event loop in this thread; return its outcome."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        loop = runner.get_loop()
        task = loop.create_task(arun(attempt))
        attempt.loop = (loop, task)
        # Not by the Runner itself, which would make a cancellation of Ctrl-C.
        return loop.run_until_complete(task)


def _interrupt(attempt: Attempt) -> bool:
    """Interrupt the attempt, or return True if that must wait. Runs in the deadlines' thread."""
    found = getattr(attempt, "loop", None)
    return interrupt(attempt, None if found is None else partial(_cancel_soon, attempt, *found))


def _cancel_soon(
    attempt: Attempt, loop: asyncio.AbstractEventLoop, task: "asyncio.Task[Any]"
) -> None:
    # A loop that has ended raises RuntimeError.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(_cancel, attempt, task)


def _cancel(attempt: Attempt, task: "asyncio.Task[Any]") -> None:
    # Receivers of signals and dbtasks' own code are not cancelled.
    if attempt.is_inside:
        attempt.is_interrupted = True
        task.cancel()
