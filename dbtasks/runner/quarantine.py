"""When a quarantined row may start: a task with which two workers were lost.

Owns the decision that a runner claims nothing else, so that a quarantined row has the process for
itself and a third loss is known to be its fault. Never claims, runs or judges anything.
"""

import math
import time

# Seconds for which a runner first waits until its tasks have ended. It waits twice as long each
# time, so that the row gets its turn, however long tasks are.
FIRST_WAIT = 1.0
# How many times longer the runner then claims as usual.
BETWEEN = 9


class Quarantine:
    """Keeps one runner free for quarantined rows. Used by the runner's thread alone."""

    def __init__(self) -> None:
        # Whether a quarantined row is due, as far as the last poll could see.
        self.due = False
        # Whether one runs alone in this process.
        self.occupied = False
        self._wait = FIRST_WAIT
        # When this runner last began to let its tasks run out for one.
        self._since = -math.inf

    def has_turn(self, is_idle: bool) -> bool:
        """Tell whether one may be claimed now; `is_idle` tells that this process holds no row."""
        if is_idle:
            self.occupied = False
        return self.due and is_idle

    def is_closed(self) -> bool:
        """Tell whether nothing but a quarantined row may be claimed now."""
        if self.occupied or not self.due:
            return self.occupied
        now = time.monotonic()
        if now > self._since + self._wait * (1 + BETWEEN):
            # The first time, or the pause between two tries is over.
            self._wait = FIRST_WAIT if self._since == -math.inf else self._wait * 2
            self._since = now
        return now < self._since + self._wait

    def enter(self, found: bool) -> None:
        """Note that a quarantined row was claimed, or that none was left."""
        self.occupied = self.due = found
        self._since = -math.inf
