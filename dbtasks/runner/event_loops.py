"""The event loop in which coroutines run, and its replacement when a task blocks it.

Owns the loops, their threads, and which attempt runs on which. Never settles anything, and never
decides when an attempt is over.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from ..execution.attempt import Attempt

logger = logging.getLogger("dbtasks.runner")

# Seconds that cancelled coroutines have to clean up when their loop is stopped.
CANCEL_GRACE = 0.1

RunCoroutine = Callable[[Attempt], Coroutine[Any, Any, None]]


class Loop:
    """One event loop in its own thread, until it is stopped, or retired and empty."""

    def __init__(self, run_coroutine: RunCoroutine) -> None:
        self._run_coroutine = run_coroutine
        # Attempts that are to be started, and those that were, with their asyncio task.
        self.coming: set[Attempt] = set()
        self.tasks: dict[Attempt, asyncio.Task[None]] = {}
        # Attempts whose cancellation has reached the loop.
        self.cancelled: set[Attempt] = set()
        self.is_retired = self._is_over = False
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, name="dbtasks-loop", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether its thread still runs."""
        return self._thread.is_alive()

    def start(self, attempt: Attempt) -> None:
        """Run the attempt's coroutine. Can be called from any thread."""
        self.coming.add(attempt)
        self._soon(self._spawn, attempt)

    def cancel(self, attempt: Attempt) -> None:
        """Cancel the attempt in the loop's next iteration. Can be called from any thread."""
        self._soon(self._cancel_one, attempt)

    def retire(self) -> list[Attempt]:
        """Return the attempts that have not started. The loop ends when the others have ended."""
        self.is_retired = True
        with self._lock:
            coming, self.coming = self.coming, set()
        self._soon(self._end_if_empty)
        return list(coming)

    def stop(self) -> None:
        """Cancel what runs, and end the loop after CANCEL_GRACE."""
        self._soon(self._cancel_all)

    def _soon(self, call: Callable[..., None], *args: Any) -> None:
        # A loop that has ended raises RuntimeError.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *args)

    def _spawn(self, attempt: Attempt) -> None:
        with self._lock:
            if attempt not in self.coming:
                return
            # Kept here, because the loop itself keeps only a weak reference.
            self.tasks[attempt] = task = self._loop.create_task(self._run_coroutine(attempt))
            self.coming.discard(attempt)
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
            task.cancel()

    def _cancel_all(self) -> None:
        for task in tuple(self.tasks.values()):
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
                logger.exception("A task broke the event loop; it goes on")
        self._loop.close()


class Loops:
    """The loop for new coroutines, and those that were retired because a task blocked them."""

    def __init__(self, run_coroutine: RunCoroutine) -> None:
        self._run_coroutine = run_coroutine
        self._current: Loop | None = None
        self._retired: list[Loop] = []
        # The loop of each attempt, and of each abandoned one that still runs.
        self._homes: dict[Attempt, Loop] = {}
        self._abandoned: dict[Attempt, Loop] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Count the attempts that run or are about to start."""
        return len(self._homes)

    def __contains__(self, attempt: Attempt) -> bool:
        return attempt in self._homes

    @property
    def abandoned(self) -> int:
        """How many retired loops, and abandoned coroutines on other loops, have not ended."""
        blocked = sum(loop.is_alive for loop in self._retired)
        return blocked + sum(
            attempt in loop.tasks and not loop.is_retired
            for attempt, loop in tuple(self._abandoned.items())
        )

    def start(self, attempt: Attempt) -> None:
        """Run the attempt's coroutine on the current loop. The first one starts that loop."""
        with self._lock:
            if self._current is None:
                self._current = Loop(self._run_coroutine)
            self._homes[attempt] = self._current
            self._current.start(attempt)

    def cancel(self, attempt: Attempt) -> None:
        """Cancel the attempt in its loop's next iteration."""
        if loop := self._homes.get(attempt):
            loop.cancel(attempt)

    def forget(self, attempt: Attempt) -> None:
        """Note that the attempt has ended."""
        self._homes.pop(attempt, None)
        self._abandoned.pop(attempt, None)

    def abandon(self, attempt: Attempt) -> None:
        """Stop counting the attempt, and replace its loop if the cancellation has not reached it.

        Other coroutines on that loop go on when, and if, it is no longer blocked.
        """
        with self._lock:
            if (loop := self._homes.pop(attempt, None)) is None:
                return
            self._abandoned[attempt] = loop
            if attempt in loop.cancelled or loop is not self._current:
                return
            self._current, coming = None, loop.retire()
            self._retired = [old for old in self._retired if old.is_alive] + [loop]
        logger.error("A coroutine blocks the event loop; a new loop takes its place")
        for other in coming:
            self.start(other)

    def stop(self) -> None:
        """Cancel what runs, and end the loops."""
        with self._lock:
            for loop in (self._current, *self._retired):
                if loop is not None:
                    loop.stop()
