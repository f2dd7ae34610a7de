"""How many claimed rows may wait in a process.

Owns the number of waiting rows, which hides a claim's round trip and depends on how long tasks
take. Never claims a row.
"""

import time

# Seconds of claimed work that may wait in this process: enough to hide a claim's round trip, little
# enough to leave long tasks to other runners.
PREFETCH_SECONDS = 0.1
# Rows that would wait longer than this are requeued, in seconds. It is well above
# PREFETCH_SECONDS, so that rows are rarely requeued because one task took a little longer.
MAX_WAIT = 0.5
# The most rows that may wait, however short the tasks are.
MAX_PREFETCH = 500


class Prefetch:
    """How many rows may wait for `slots` threads, or places of coroutines.

    Used by several threads; a race only blurs the average.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        # Moving average of the seconds that a task takes. It starts high, so that nothing is
        # prefetched before tasks have turned out to be short.
        self._average = PREFETCH_SECONDS
        # When a row last started, on the monotonic clock.
        self._taken_at = 0.0
        # More rows are wanted when no more than this many wait.
        self._low = 0

    def room(self, busy: int, waiting: int) -> int:
        """Return how many more rows to claim now; 0 while enough wait."""
        # The rows that each slot runs in PREFETCH_SECONDS, less the one that it runs now.
        stock = int(self._slots * (PREFETCH_SECONDS / self._average - 1))
        stock = max(0, min(stock, MAX_PREFETCH))
        # A small claim costs as much as a large one: wait until half of the stock is used up.
        self._low = stock // 2
        return max(0, self._slots - busy + stock - waiting) if waiting <= self._low else 0

    def is_low(self, waiting: int) -> bool:
        """Return whether more rows are wanted while `waiting` rows wait."""
        return waiting <= self._low

    def was_taken(self, now: float) -> None:
        """Note that a row has started, or that rows were submitted."""
        self._taken_at = now

    def was_run(self, seconds: float) -> None:
        """Note the seconds that a task has taken."""
        self._average += (seconds - self._average) / 16

    def is_overdue(self, waiting: int) -> bool:
        """Return whether the last of so many waiting rows waits too long.

        Tasks then take longer than they did when the rows were claimed.
        """
        if waiting * self._average > MAX_WAIT * self._slots:
            return True
        if time.monotonic() - self._taken_at < PREFETCH_SECONDS:
            return False
        self._average = max(self._average, PREFETCH_SECONDS)
        return True
