"""When running attempts are over: by their timeout, or because somebody cancelled them.

Owns the steps that end one, and the clock for them: asked, interrupted, abandoned. Never runs
task code and never waits for any.
"""

import logging
import math
import threading
import time
from collections.abc import Callable

from ..exceptions import TaskCancelled
from ..execution.attempt import Attempt
from ..execution.outcomes import CANCELLED

logger = logging.getLogger("dbtasks.runner")

# Seconds between should_stop and the interrupt, for a task that takes the context. A task that does
# not take it cannot look, and is interrupted at once.
COOPERATIVE_GRACE = 1.0
# Seconds to clean up after the interrupt, perhaps to roll back, before the task is abandoned.
CLEAN_UP_GRACE = 1.0
# What is done to an attempt; returns the seconds until the next step and that, or None at the end.
Step = Callable[[Attempt], "tuple[float, Step] | None"]


class _Ending:
    """Where an attempt stands on its way to the end."""

    __slots__ = ("at", "step")

    def __init__(self, at: float, step: Step) -> None:
        # When the next step is due, on the monotonic clock, and what it is.
        self.at, self.step = at, step


class Deadlines:
    """Ends attempts of one pool that take too long, or are not wanted any more.

    One thread, which starts with the first attempt that it has to watch. `interrupt` and
    `abandon` are called in it.
    """

    def __init__(
        self, interrupt: Callable[[Attempt], None], abandon: Callable[[Attempt], None]
    ) -> None:
        self._interrupt, self._abandon = interrupt, abandon
        # No more than run at once, so that looking at all of them is cheap.
        self._endings: dict[Attempt, _Ending] = {}
        # When the thread looks next; it is woken only for what comes earlier.
        self._next = math.inf
        self._wakeup = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def watch(self, attempt: Attempt) -> None:
        """End the attempt at its timeout, if it has one. It has begun; any thread may call this."""
        if (timeout := attempt.timeout) is not None:
            self._add(attempt, _Ending(attempt.started + timeout, self._time_out))

    def cancel(self, attempt: Attempt) -> None:
        """End the attempt now, as cancelled. Any thread may call it."""
        # One that waits for a thread sees that it was asked before it starts.
        if attempt.ask(TaskCancelled(CANCELLED)) and attempt.thread:
            self._add(attempt, _Ending(0.0, self._begin))

    def forget(self, attempt: Attempt) -> None:
        """Leave the attempt alone: it has ended."""
        self._endings.pop(attempt, None)

    def stop(self) -> None:
        """End the thread, if there is one; nothing more is ended."""
        self._stopped = True
        self._wakeup.set()

    def _add(self, attempt: Attempt, ending: _Ending) -> None:
        self._endings[attempt] = ending
        if self._thread is None:
            self._start()
        # Read after the attempt was added: a look that misses it has not set this yet.
        if ending.at < self._next:
            self._wakeup.set()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._live, name="dbtasks-deadlines", daemon=True
                )
                self._thread.start()

    def _live(self) -> None:
        while not self._stopped:
            self._wakeup.clear()
            self._next = math.inf
            self._next = self._take_due_steps()
            wait = self._next - time.monotonic()
            # One round more for what was added before the line above was done.
            self._wakeup.wait(None if math.isinf(wait) else max(0.0, wait))

    def _take_due_steps(self) -> float:
        """Take each step that is due; return when the next one is."""
        now, following = time.monotonic(), math.inf
        # A copy is made in one go, whoever adds and removes meanwhile.
        for attempt, ending in self._endings.copy().items():
            if ending.at <= now and not self._go_on(attempt, ending):
                continue
            following = min(following, ending.at)
        return following

    def _go_on(self, attempt: Attempt, ending: _Ending) -> bool:
        """Take the attempt's next step; return whether another one follows."""
        try:
            following = ending.step(attempt)
        except Exception:  # whatever it is, the other attempts have deadlines too
            logger.exception("%s could not be ended", attempt.claim.task_path)
            following = None
        if following is not None:
            wait, ending.step = following
            ending.at = time.monotonic() + wait
        elif self._endings.get(attempt) is ending:
            # Otherwise it was cancelled meanwhile, which begins anew.
            self.forget(attempt)
        return following is not None

    # The steps

    def _time_out(self, attempt: Attempt) -> "tuple[float, Step] | None":
        attempt.ask(attempt.overrun())
        return self._begin(attempt)

    def _begin(self, attempt: Attempt) -> "tuple[float, Step] | None":
        """Let the task end by itself, if it can know that it should."""
        return COOPERATIVE_GRACE if attempt.takes_context else 0.0, self._break_in

    def _break_in(self, attempt: Attempt) -> "tuple[float, Step] | None":
        self._interrupt(attempt)
        return CLEAN_UP_GRACE, self._give_up

    def _give_up(self, attempt: Attempt) -> None:
        self._abandon(attempt)
