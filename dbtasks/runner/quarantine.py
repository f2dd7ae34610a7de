"""When a quarantined row may start: a task with which two workers were lost.

Owns the decision that a runner claims nothing else, so that a quarantined row has the process to
itself and a third loss is known to be its fault. Never claims or runs a row, and never fails one.
"""

import math
import time

# Seconds that a runner first waits for its tasks to end. Each further wait is twice as long, so
# that the row gets its turn however long tasks take.
FIRST_WAIT = 1.0
# Between two waits the runner claims as usual, this many times as long as it waited.
BETWEEN = 9


class Quarantine:
    """Keeps one runner free for quarantined rows. Used in the runner's thread only."""

    def __init__(self) -> None:
        # True if the last poll found a quarantined row.
        self.due = False
        # True while one runs alone in this process.
        self.occupied = False
        self._wait = FIRST_WAIT
        # When the runner last began to wait for its tasks to end, on the monotonic clock.
        self._since = -math.inf

    def has_turn(self, is_idle: bool) -> bool:
        """Return whether a quarantined row may be claimed now.

        `is_idle` is whether this process holds no row.
        """
        if is_idle:
            self.occupied = False
        return self.due and is_idle

    def is_closed(self) -> bool:
        """Return whether only a quarantined row may be claimed now."""
        if self.occupied or not self.due:
            return self.occupied
        now = time.monotonic()
        if now > self._since + self._wait * (1 + BETWEEN):
            # The first wait, or the pause between two waits is over.
            self._wait = FIRST_WAIT if self._since == -math.inf else self._wait * 2
            self._since = now
        return now < self._since + self._wait

    def enter(self, found: bool) -> None:
        """Note that a quarantined row was claimed, or that none was left."""
        self.occupied = self.due = found
        self._since = -math.inf
