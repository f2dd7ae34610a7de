"""What abandoned attempts leave behind.

Owns the threads that hang in abandoned tasks, and the decision that they are too many. Never
abandons an attempt, and never stops a runner.
"""

import threading
import time
from collections.abc import Callable

from ..execution.deadlines import HUNG_AFTER
from .event_loops import Loops

# A runner is exhausted when as many threads hang as it has, or as many coroutines as it may run at
# once, but at least this many.
MIN_HUNG = 4


class Abandoned:
    """The threads and coroutines of one pool that were abandoned and have not ended.

    check() calls `on_exhausted` when too many of them hang.
    """

    def __init__(
        self, loops: Loops, threads: int, coroutines: int, on_exhausted: Callable[[], None]
    ) -> None:
        self._loops, self._on_exhausted = loops, on_exhausted
        self._most = max(MIN_HUNG, threads), max(MIN_HUNG, coroutines)
        # Each thread, and when it was abandoned, on the monotonic clock.
        self._threads: list[tuple[threading.Thread, float]] = []

    def add(self, thread: threading.Thread) -> None:
        """Note that the thread has been replaced, because it hangs."""
        alive = [(old, at) for old, at in self._threads if old.is_alive()]
        self._threads = [*alive, (thread, time.monotonic())]

    def count(self, seconds: float = 0.0) -> tuple[int, int]:
        """Return how many threads, and how many coroutines, have not ended after `seconds`."""
        since = time.monotonic() - seconds
        blocked, coroutines = self._loops.abandoned(seconds)
        hanging = sum(at <= since and thread.is_alive() for thread, at in self._threads)
        return hanging + blocked, coroutines

    def check(self) -> None:
        """Call `on_exhausted` if what hangs is too much: it may hold locks and memory."""
        if any(n >= most for n, most in zip(self.count(HUNG_AFTER), self._most, strict=True)):
            self._on_exhausted()
