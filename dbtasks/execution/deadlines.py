"""Ends attempts that reach their timeout or are cancelled.

Owns the steps that end one, and when they are taken: ask, interrupt, abandon. Never runs task code,
and never waits for it.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from ..db.service import Activity
from ..db.statements import end_statement
from ..exceptions import TaskCancelled
from .attempt import Attempt
from .outcomes import CANCELLED

logger = logging.getLogger("dbtasks.runner")

# Seconds between should_stop and the interrupt, for a task that takes the context. Other tasks
# cannot see should_stop, and are interrupted at once.
COOPERATIVE_GRACE = 1.0
# Seconds that a task has after the interrupt to clean up, perhaps to roll back, before it is
# abandoned.
CLEAN_UP_GRACE = 1.0
# Seconds after which an interrupt that has to wait is tried again.
POSTPONED = 0.005
# How often a step that raises something is tried.
MAX_FAILURES = 10
# Seconds that something abandoned must hang to count. A task that only ends late harms nobody.
HUNG_AFTER = 10.0
# A step returns the seconds until the next step and that step, or None after the last one.
Step = Callable[[Attempt], "tuple[float, Step] | None"]


def interrupt(attempt: Attempt, cancel: Callable[[], None] | None) -> bool:
    """Interrupt the attempt, or return True if that must wait. Can be called from any thread.

    `cancel` cancels its coroutine; None if it has none, and runs in a thread.
    """
    if cancel is not None:
        cancel()
        thread = attempt.sync_thread and attempt.sync_thread.ident
    elif attempt.call.interrupt():
        return True
    else:
        thread = attempt.thread if attempt.call.was_interrupted else None
    if thread:
        # The thread sees the interrupt only when it runs Python code again.
        end_statement(thread)
    return False


class _Ending:
    """The next step for an attempt."""

    __slots__ = ("at", "failures", "step")

    def __init__(self, at: float, step: Step) -> None:
        # On the monotonic clock.
        self.at, self.step = at, step
        # How often the step has raised something.
        self.failures = 0


class Deadlines:
    """Ends attempts of one pool that take too long or were cancelled.

    It has one thread, which starts with the first attempt to watch. In that thread `interrupt` and
    `abandon` are called, and `on_hung` when an abandoned attempt has hung for HUNG_AFTER seconds.
    `abandon` returns False if the attempt has ended.
    """

    def __init__(
        self,
        interrupt: Callable[[Attempt], bool],
        abandon: Callable[[Attempt], bool],
        on_hung: Callable[[], None],
    ) -> None:
        self._interrupt, self._abandon, self._on_hung = interrupt, abandon, on_hung
        # At most as many as run at once, so that it is cheap to look at all of them.
        self._endings: dict[Attempt, _Ending] = {}
        # When the thread looks next. It is woken only for an earlier step.
        self._next = math.inf
        self._wakeup = threading.Event()
        self.name, self.activity = "dbtasks-deadlines", Activity()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def watch(self, attempt: Attempt) -> None:
        """End the attempt, which has begun, at its timeout, if any. Callable from any thread."""
        if (timeout := attempt.timeout) is not None:
            self._add(attempt, _Ending(attempt.started + timeout, self._time_out))

    def cancel(self, attempt: Attempt) -> None:
        """End the attempt now, as cancelled. Can be called from any thread."""
        # An attempt that has not begun sees that it was asked before it calls the task.
        if attempt.ask(TaskCancelled(CANCELLED)) and attempt.thread:
            self._add(attempt, _Ending(0.0, self._begin))

    def forget(self, attempt: Attempt) -> None:
        """Stop watching the attempt, because it has ended."""
        self._endings.pop(attempt, None)

    def stop(self) -> None:
        """End the thread, if there is one. No attempt is ended after that."""
        self._stopped = True
        self._wakeup.set()

    def _add(self, attempt: Attempt, ending: _Ending) -> None:
        self._endings[attempt] = ending
        if self._thread is None:
            self._start()
        # Read after the attempt was added: while a look that missed it goes on, this is infinite.
        if ending.at < self._next:
            self._wakeup.set()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None and not self._stopped:
                thread = threading.Thread(target=self._live, name=self.name, daemon=True)
                # Here, because the thread may hang before it does anything.
                self.activity.step()
                thread.start()
                self._thread = thread

    @property
    def ident(self) -> int:
        """The id of its thread; 0 if there is none."""
        return 0 if self._thread is None else self._thread.ident or 0

    def revive(self) -> bool:
        """Start another thread if the last one has died; return whether it had."""
        if self._thread is None or self._thread.is_alive() or self._stopped:
            return False
        self._thread = None
        self._start()
        return True

    def _live(self) -> None:
        while not self._stopped:
            try:
                self._wait_and_take()
            except BaseException:  # whatever it is, attempts must have an end
                time.sleep(POSTPONED)
                logger.exception("%s failed; it goes on", self.name)
        self.activity.rest()

    def _wait_and_take(self) -> None:
        self._wakeup.clear()
        self._next = math.inf
        self._next = self._take_due_steps()
        wait = self._next - time.monotonic()
        self.activity.rest()
        # Returns at once if an attempt was added meanwhile.
        self._wakeup.wait(None if math.isinf(wait) else max(0.0, wait))
        self.activity.step()

    def _take_due_steps(self) -> float:
        """Take each step that is due; return when the next one is due."""
        now, following = time.monotonic(), math.inf
        # The copy is atomic, so other threads can add and remove meanwhile.
        for attempt, ending in self._endings.copy().items():
            if ending.at <= now and not self._go_on(attempt, ending):
                continue
            following = min(following, ending.at)
        return following

    def _go_on(self, attempt: Attempt, ending: _Ending) -> bool:
        """Take the attempt's next step; return whether another one follows."""
        try:
            # What has returned stands, however long the receivers of its signal take.
            following = None if attempt.has_returned else ending.step(attempt)
            ending.failures = 0
        except BaseException:  # whatever it raises, the other attempts have deadlines too
            ending.failures += 1
            pause = POSTPONED * 2**ending.failures
            following = (pause, ending.step) if ending.failures < MAX_FAILURES else None
            with suppress(BaseException):
                logger.exception("%s could not be ended", attempt.claim.task_path)
        if following is not None:
            wait, ending.step = following
            ending.at = time.monotonic() + wait
        elif self._endings.get(attempt) is ending:
            # Otherwise a cancellation has replaced it meanwhile.
            self.forget(attempt)
        return following is not None

    # The steps

    def _time_out(self, attempt: Attempt) -> "tuple[float, Step] | None":
        attempt.ask(attempt.overrun())
        return self._begin(attempt)

    def _begin(self, attempt: Attempt) -> "tuple[float, Step] | None":
        """Let the task end by itself, if it can see that it should."""
        return COOPERATIVE_GRACE if attempt.takes_context else 0.0, self._break_in

    def _break_in(self, attempt: Attempt, until: float = math.inf) -> "tuple[float, Step] | None":
        """Interrupt the attempt, if need be at a better moment, but not after `until`."""
        now = time.monotonic()
        until = min(until, now + CLEAN_UP_GRACE)
        if self._interrupt(attempt) and now < until:
            return POSTPONED, partial(self._break_in, until=until)
        return CLEAN_UP_GRACE, self._give_up

    def _give_up(self, attempt: Attempt) -> "tuple[float, Step] | None":
        return (HUNG_AFTER, self._count_hung) if self._abandon(attempt) else None

    def _count_hung(self, attempt: Attempt) -> None:
        self._on_hung()
