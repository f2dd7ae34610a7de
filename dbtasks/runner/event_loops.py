"""The event loop in which coroutines run, and its replacement when a task blocks it.

Owns the loops, their threads, which attempt runs on which, and how many run at once. Never settles
anything, and never decides when an attempt is over.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from ..execution.attempt import Attempt

logger = logging.getLogger("dbtasks.runner")

# Seconds that cancelled coroutines have to clean up when their loop is stopped.
CANCEL_GRACE = 0.1
# A loop that starts nothing for so long, in seconds, is blocked.
BLOCKED_AFTER = 0.5
# So many blocked loops are replaced. Each takes a thread.
MAX_BLOCKED = 4

RunCoroutine = Callable[[Attempt], Coroutine[Any, Any, None]]


class Loop:
    """One event loop in its own thread, until it is stopped, or retired and empty."""

    def __init__(self, run_coroutine: RunCoroutine) -> None:
        self._run_coroutine = run_coroutine
        # Attempts that are to be started, with the time at which they were passed to start(), and
        # those that were started, with their asyncio task.
        self._coming: dict[Attempt, float] = {}
        self.tasks: dict[Attempt, asyncio.Task[None]] = {}
        # Attempts whose cancellation has reached the loop.
        self.cancelled: set[Attempt] = set()
        self.is_retired = self._is_over = False
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, name="dbtasks-loop", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # the system has no more threads
            self._loop.close()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether its thread still runs."""
        return self._thread.is_alive()

    @property
    def ident(self) -> int:
        """The id of its thread."""
        return self._thread.ident or 0

    def start(self, attempt: Attempt) -> None:
        """Run the attempt's coroutine. Can be called from any thread."""
        with self._lock:
            self._coming[attempt] = time.monotonic()
        self._soon(self._spawn, attempt)

    def cancel(self, attempt: Attempt) -> None:
        """Cancel the attempt in the loop's next iteration. Can be called from any thread."""
        self._soon(self._cancel_one, attempt)

    @property
    def coming(self) -> int:
        """How many attempts have not started. Can be read from any thread."""
        return len(self._coming)

    @property
    def is_blocked(self) -> bool:
        """Whether a coroutine keeps the loop from starting others. Can be read from any thread."""
        with self._lock:
            first = min(self._coming.values(), default=math.inf)
        return time.monotonic() - first > BLOCKED_AFTER

    def withdraw(self) -> list[Attempt]:
        """Take back and return the attempts that have not started. Callable from any thread."""
        with self._lock:
            coming, self._coming = self._coming, {}
        return list(coming)

    def retire(self) -> list[Attempt]:
        """Return the attempts that have not started. The loop ends when the others have ended."""
        self.is_retired = True
        coming = self.withdraw()
        self._soon(self._end_if_empty)
        return coming

    def stop(self) -> None:
        """Cancel what runs, and end the loop after CANCEL_GRACE."""
        self._soon(self._cancel_all)

    def _soon(self, call: Callable[..., None], *args: Any) -> None:
        # A loop that has ended raises RuntimeError.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *args)

    def _spawn(self, attempt: Attempt) -> None:
        with self._lock:
            if self._coming.pop(attempt, None) is None:
                return
            # Kept here, because the loop itself keeps only a weak reference.
            self.tasks[attempt] = task = self._loop.create_task(self._run_coroutine(attempt))
        task.add_done_callback(lambda _: self._forget(attempt))

    def _forget(self, attempt: Attempt) -> None:
        del self.tasks[attempt]
        self.cancelled.discard(attempt)
        if self.is_retired:
            self._end_if_empty()

    def _cancel_one(self, attempt: Attempt) -> None:
        self.cancelled.add(attempt)
        # Receivers of signals and dbtasks' own code are not cancelled.
        if attempt.is_inside and (task := self.tasks.get(attempt)):
            attempt.is_interrupted = True
            task.cancel()

    def _cancel_all(self) -> None:
        for task in list(self.tasks.values()):
            task.cancel()
        self._loop.call_later(CANCEL_GRACE if self.tasks else 0, self._end)

    def _end_if_empty(self) -> None:
        if not self.tasks:
            self._end()

    def _end(self) -> None:
        self._is_over = True
        self._loop.stop()

    def _live(self) -> None:
        """Run the event loop in this thread until its end, then close it."""
        while not self._is_over:
            try:
                self._loop.run_forever()
            except BaseException:  # sys.exit() in a coroutine's child ends run_forever()
                with suppress(BaseException):
                    logger.exception("A task broke the event loop; it goes on")
        self._loop.close()


class Loops:
    """The loop for new coroutines, and those that were retired because a task blocked them.

    At most `limit` coroutines run at once; the others wait for their turn. Abandoned ones do not
    count.
    """

    def __init__(self, run_coroutine: RunCoroutine, limit: int) -> None:
        self._run_coroutine, self._limit = run_coroutine, limit
        self._current: Loop | None = None
        self._retired: list[Loop] = []
        # Attempts that wait for their turn.
        self._waiting: deque[Attempt] = deque()
        # True while the current loop is blocked, and no other may take its place.
        self.is_stuck = False
        # The loop of each attempt that was passed to one and has not ended.
        self._homes: dict[Attempt, Loop] = {}
        # The loop of each abandoned attempt that still runs, and when it was abandoned.
        self._abandoned: dict[Attempt, tuple[Loop, float]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Count the coroutines that run."""
        return max(0, len(self._homes) - self._coming)

    def __contains__(self, attempt: Attempt) -> bool:
        return attempt in self._homes

    def has(self, attempt: Attempt) -> bool:
        """Return whether the attempt was passed to start() and has not ended."""
        return attempt in self._homes or attempt in self._waiting

    @property
    def _coming(self) -> int:
        """How many attempts the current loop has still to start."""
        return 0 if (loop := self._current) is None else loop.coming

    @property
    def queued(self) -> int:
        """How many attempts wait for their turn."""
        return len(self._waiting)

    @property
    def waiting(self) -> int:
        """How many attempts have not started."""
        return self.queued + self._coming

    def abandoned(self, seconds: float = 0.0) -> tuple[int, int]:
        """Return how many abandoned coroutines have not ended after `seconds`.

        The first number is that of the loops that they block, the second that of all others.
        """
        since = time.monotonic() - seconds
        found = [
            loop
            for attempt, (loop, at) in self._abandoned.copy().items()
            if at <= since and attempt in loop.tasks
        ]
        return len({loop for loop in found if loop.is_retired}), sum(
            not loop.is_retired for loop in found
        )

    def start(self, attempt: Attempt) -> None:
        """Run the attempt's coroutine as soon as there is room. Can be called from any thread."""
        with self._lock:
            self._waiting.append(attempt)
            try:
                self._fill()
            except BaseException:  # no loop can be made, or no thread for it
                if attempt in self._waiting:
                    self._waiting.remove(attempt)
                raise

    def _fill(self) -> None:
        """Pass waiting attempts to the current loop. The first one starts that loop."""
        while self._waiting and len(self._homes) < self._limit:
            if self._current is None:
                self._current = Loop(self._run_coroutine)
            attempt = self._waiting.popleft()
            self._homes[attempt] = self._current
            self._current.start(attempt)

    @property
    def idents(self) -> list[int]:
        """The id of the thread of the current loop, if there is one."""
        return [] if (loop := self._current) is None else [loop.ident]

    def cancel(self, attempt: Attempt) -> None:
        """Cancel the attempt in its loop's next iteration."""
        if loop := self._homes.get(attempt):
            loop.cancel(attempt)

    def forget(self, attempt: Attempt) -> None:
        """Note that the attempt has ended."""
        with self._lock:
            self._homes.pop(attempt, None)
            self._abandoned.pop(attempt, None)
            self.is_stuck = False
            self._fill()

    def withdraw(self, *, queued_only: bool = False) -> list[Attempt]:
        """Take back and return the attempts that have not started, or wait for their turn."""
        with self._lock:
            found = list(self._waiting)
            self._waiting.clear()
            if self._current is not None and not queued_only:
                coming = self._current.withdraw()
                for attempt in coming:
                    del self._homes[attempt]
                found += coming
        return found

    def replace_blocked(self) -> list[Attempt]:
        """Start a new loop if a coroutine blocks the current one.

        If too many are blocked already, take back and return the attempts that have not started.
        """
        with self._lock:
            if self._current is None or not self._current.is_blocked:
                return []
            if sum(loop.is_alive for loop in self._retired) < MAX_BLOCKED:
                self._replace(self._current)
                return []
            self.is_stuck = True
        return self.withdraw()

    def abandon(self, attempt: Attempt) -> None:
        """Stop counting the attempt, and replace its loop if the cancellation has not reached it.

        Other coroutines on that loop go on when, and if, it is no longer blocked.
        """
        with self._lock:
            if (loop := self._homes.pop(attempt, None)) is None:
                return
            self._abandoned[attempt] = loop, time.monotonic()
            if attempt not in loop.cancelled and loop is self._current:
                self._replace(loop)
            self._fill()

    def _replace(self, loop: Loop) -> None:
        """Retire the current loop, and pass what it has not started to a new one."""
        logger.error("A coroutine blocks the event loop; a new loop takes its place")
        self._current, coming = None, loop.retire()
        self._retired = [old for old in self._retired if old.is_alive] + [loop]
        for attempt in coming:
            del self._homes[attempt]
        self._waiting.extendleft(reversed(coming))
        self._fill()

    def stop(self) -> None:
        """Cancel what runs, and end the loops."""
        with self._lock:
            for loop in (self._current, *self._retired):
                if loop is not None:
                    loop.stop()
