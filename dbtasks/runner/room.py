"""How many rows a pool takes, and which it holds for too long.

Owns the sum over its threads and its event loop: nobody knows before a claim which rows are
coroutines. Never claims or requeues a row.
"""

from ..execution.attempt import Attempt
from .event_loops import Loops
from .prefetch import Prefetch


class Room:
    """What is left of the room for `threads` threads and `coroutines` coroutines."""

    def __init__(self, threads: int, coroutines: int, loops: Loops) -> None:
        self.threads, self.coroutines = Prefetch(threads), Prefetch(coroutines)
        self._loops = loops

    def left(self, held: int, queued: int) -> int:
        """Return how many more rows to claim. `queued` of the `held` rows wait for a thread."""
        running, waiting = len(self._loops), self._loops.waiting
        left = self.threads.room(held - queued - waiting - running, queued)
        if not (running or waiting):
            return left
        if self._loops.is_stuck:
            return 0
        return min(left, self.coroutines.room(running, waiting + queued))

    def is_overdue(self, queued: int) -> bool:
        """Return whether rows wait too long for a thread."""
        return bool(queued) and self.threads.is_overdue(queued)

    def overdue_coroutines(self) -> list[Attempt]:
        """Take back and return rows that wait too long for the event loop."""
        if late := self._loops.replace_blocked():
            return late
        queued = self._loops.queued
        if queued and self.coroutines.is_overdue(queued):
            return self._loops.withdraw(queued_only=True)
        return []
