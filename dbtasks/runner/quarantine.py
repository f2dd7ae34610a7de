"""When a quarantined row may start: a task with which two workers were lost.

Owns the decision that a runner claims nothing else, so that a quarantined row has the process to
itself and a third loss is known to be its fault. That takes a tenth of the time at most. If a task
keeps the process busy all the same, the row runs beside it in the end. Never claims or runs a row,
and never fails one.
"""

import math
import time
from collections.abc import Callable

# Seconds that a runner waits for its tasks to end: the first time, and at most.
FIRST_WAIT = 1.0
LONGEST_WAIT = 2.0
# After so many waits in vain the row runs beside other tasks. If it is to blame for another loss,
# each of those is lost once more.
MAX_WAITS = 5
# Between two waits the runner claims as usual, this many times as long as it waited.
BETWEEN = 9


class Quarantine:
    """Keeps one runner free for quarantined rows. Used in the runner's thread only."""

    def __init__(self) -> None:
        # True if the last poll found a quarantined row.
        self.due = False
        # True while one runs alone in this process.
        self.occupied = False
        self._wait, self._waits = FIRST_WAIT, 0
        # When the runner last began to wait for its tasks to end, on the monotonic clock.
        self._since = -math.inf

    def has_turn(self, is_idle: bool, has_quarantined: Callable[[], bool]) -> bool:
        """Return whether a quarantined row may be claimed now.

        `is_idle` is whether this process holds no row, and `has_quarantined` returns whether it
        holds a quarantined one.
        """
        if is_idle:
            self.occupied = False
        return self.due and (is_idle or (self._is_in_vain() and not has_quarantined()))

    def _is_in_vain(self) -> bool:
        """Return whether all waits are over."""
        if self.occupied or self._waits < MAX_WAITS:
            return False
        return time.monotonic() >= self._since + self._wait

    def is_closed(self) -> bool:
        """Return whether only a quarantined row may be claimed now."""
        if self.occupied or not self.due:
            return self.occupied
        now = time.monotonic()
        if now > self._since + self._wait * (1 + BETWEEN):
            # The first wait begins, or the pause between two waits is over.
            is_first = self._since == -math.inf
            self._wait = FIRST_WAIT if is_first else min(self._wait * 2, LONGEST_WAIT)
            self._waits = 1 if is_first else self._waits + 1
            self._since = now
        return now < self._since + self._wait

    def enter(self, found: bool, *, is_alone: bool) -> None:
        """Note that a quarantined row was claimed, or that none was left."""
        self.due = found
        self.occupied = found and is_alone
        self._since, self._waits = -math.inf, 0
