"""The threads of a pool, by number.

Owns which thread has which number, what it has in hand, and who takes its place. Never runs an
attempt.
"""

import threading
import time
from collections.abc import Callable

from ..execution.attempt import Attempt
from ..store import Outcome

# Runs attempts in the thread with that number; first it ends the attempt that was left, if any.
Live = Callable[[int, Attempt | None], None]


class Slots:
    """So many threads that run `live`."""

    def __init__(self, count: int, live: Live) -> None:
        self._live = live
        self.is_stopping = False
        # By number: the attempt that the thread handles, and its outcome once there is one.
        self.in_hand: list[tuple[Attempt, Outcome | None] | None] = [None] * count
        self._threads = [self._new(number) for number in range(count)]
        self._replacing = threading.Lock()

    def _new(self, number: int, left: Attempt | None = None) -> threading.Thread:
        name = f"dbtasks-{number}"
        return threading.Thread(target=self._live, args=(number, left), name=name, daemon=True)

    def __len__(self) -> int:
        """Count the threads."""
        return len(self._threads)

    def start(self) -> None:
        """Start the threads; raise RuntimeError if the system has no more."""
        for thread in self._threads:
            thread.start()

    def join(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the threads to end; return whether they have."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def stacks(self) -> list[tuple[int, Attempt | None]]:
        """Return the id of each thread, with the attempt that it has in hand."""
        both = zip(self._threads, self.in_hand, strict=True)
        return [(thread.ident or 0, held[0] if held else None) for thread, held in both]

    def is_current(self, number: int) -> bool:
        """Return whether this thread still has that number."""
        with self._replacing:
            return self._threads[number] is threading.current_thread()

    def replace(self, attempt: Attempt) -> tuple[threading.Thread, threading.Thread] | None:
        """Return the thread that runs the attempt, and a new one that takes its place.

        The new one is not started. Return None if the attempt has ended.
        """
        # A thread whose attempt ends just now holds this lock while it asks whether it was
        # replaced.
        with self._replacing:
            if not attempt.close():
                return None
            [number] = [n for n, each in enumerate(self._threads) if each.ident == attempt.thread]
            old, new = self._threads[number], self._new(number, attempt)
            self._threads[number], self.in_hand[number] = new, None
            return old, new

    def revive(self, recover: Callable[[int, BaseException], None]) -> bool:
        """Replace threads that have died, after `recover`; return whether there were any.

        Raise RuntimeError if the system has no more.
        """
        has_died = False
        for number, thread in enumerate(self._threads):
            if not thread.is_alive() and not self.is_stopping:
                has_died = True
                recover(number, RuntimeError("The thread that ran it died."))
                self._threads[number] = new = self._new(number)
                new.start()
        return has_died
