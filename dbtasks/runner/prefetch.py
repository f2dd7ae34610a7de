"""How many claimed rows may wait in a process.

Owns the number of waiting rows, which hides a claim's round trip and depends on how long tasks
take. Never claims a row.
"""

import time

# Seconds of claimed work that may wait in this process: enough to hide a claim's round trip, little
# enough to leave long tasks to other runners.
PREFETCH_SECONDS = 0.1
# The most rows that may wait, however short the tasks are.
MAX_PREFETCH = 500


class Prefetch:
    """How many rows one pool may hold. Used by several threads; a race only blurs the average."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        # Moving average of the seconds that a thread spends on a task. It starts high, so that
        # nothing is prefetched before tasks have turned out to be short.
        self._average = PREFETCH_SECONDS
        # When a thread last took a row, on the monotonic clock.
        self._taken_at = 0.0
        # More rows are wanted when no more than this many wait.
        self._low = 0

    def room(self, busy: int, waiting: int) -> int:
        """Return how many more rows to claim now; 0 while enough wait."""
        # The rows that each thread runs in PREFETCH_SECONDS, less the one that it runs now.
        stock = int(self._threads * (PREFETCH_SECONDS / self._average - 1))
        stock = max(0, min(stock, MAX_PREFETCH))
        # A small claim costs as much as a large one: wait until half of the stock is used up.
        self._low = stock // 2
        return max(0, self._threads - busy + stock - waiting) if waiting <= self._low else 0

    def is_low(self, waiting: int) -> bool:
        """Return whether more rows are wanted while `waiting` rows wait."""
        return waiting <= self._low

    def was_taken(self, now: float) -> None:
        """Note that a thread took a row, or that rows were submitted."""
        self._taken_at = now

    def was_run(self, seconds: float) -> None:
        """Note the seconds that a thread has spent on a row."""
        self._average += (seconds - self._average) / 16

    def is_overdue(self) -> bool:
        """Return whether no thread has taken a row for too long, because some task takes longer."""
        if time.monotonic() - self._taken_at < PREFETCH_SECONDS:
            return False
        self._average = max(self._average, PREFETCH_SECONDS)
        return True
