"""How many claimed rows may wait in a process.

Owns the stock of rows that hides a claim's round trip, and what it is measured by: how long tasks
take. Never claims a row.
"""

import time

# Seconds of work that may wait claimed in this process: enough to hide a claim's round trip, little
# enough that other runners get long tasks.
PREFETCH_SECONDS = 0.1
# Rows that may wait, however short the tasks.
MAX_PREFETCH = 500


class Prefetch:
    """The stock of one pool. Several threads use it; a race only blurs the average."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        # Moving average of the seconds a thread spends on a task. It starts high: nothing is
        # prefetched before tasks have shown that they are short.
        self._average = PREFETCH_SECONDS
        # When a thread last took a row, on the monotonic clock.
        self._taken_at = 0.0
        # How many rows may wait when more are wanted.
        self._low = 0

    def room(self, busy: int, waiting: int) -> int:
        """Return how many more rows to claim now; 0 while enough wait."""
        # One more row a thread than its task in hand, if that is worth having.
        stock = int(self._threads * (PREFETCH_SECONDS / self._average - 1))
        stock = max(0, min(stock, MAX_PREFETCH))
        # A small claim costs as much as a large one: wait until half of the stock is used up.
        self._low = stock // 2
        return max(0, self._threads - busy + stock - waiting) if waiting <= self._low else 0

    def is_low(self, waiting: int) -> bool:
        """Tell whether more rows are wanted while so many wait."""
        return waiting <= self._low

    def was_taken(self, now: float) -> None:
        """Note that a thread took a row, or that rows came in."""
        self._taken_at = now

    def was_run(self, seconds: float) -> None:
        """Note how long a thread has spent on a row."""
        self._average += (seconds - self._average) / 16

    def is_overdue(self) -> bool:
        """Tell whether no thread has taken a row for too long: some task takes longer."""
        if time.monotonic() - self._taken_at < PREFETCH_SECONDS:
            return False
        self._average = max(self._average, PREFETCH_SECONDS)
        return True
