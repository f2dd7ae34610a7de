"""When a suspect may start: a task with which two runners were lost.

Owns the decision that a runner claims nothing else, so that a suspect has the process for itself
and a third loss is its own doing. Never claims, runs or judges anything.
"""

import math
import time

# Seconds for which a runner first lets its tasks run out, and how much longer it then claims as
# ever. It waits twice as long each time, so that a suspect's turn comes, however long tasks are.
FIRST_WAIT, BETWEEN = 1.0, 9


class Quarantine:
    """Keeps the threads of one runner free for suspects. Used by the runner's thread alone."""

    def __init__(self) -> None:
        # Whether a suspect is due, as far as the last look could see.
        self.due = False
        # Whether one has the process for itself.
        self.occupied = False
        self._wait = FIRST_WAIT
        # When this runner last began to let its tasks run out for one.
        self._since = -math.inf

    def has_turn(self, is_idle: bool) -> bool:
        """Tell whether a suspect may be claimed now; `is_idle` if this process holds no row."""
        if is_idle:
            self.occupied = False
        return self.due and is_idle

    def is_closed(self) -> bool:
        """Tell whether nothing but a suspect may be claimed now."""
        if self.occupied or not self.due:
            return self.occupied
        now = time.monotonic()
        if now > self._since + self._wait * (1 + BETWEEN):
            # The first time, or the pause between two tries is over.
            self._wait = FIRST_WAIT if self._since == -math.inf else self._wait * 2
            self._since = now
        return now < self._since + self._wait

    def enter(self, found: bool) -> None:
        """Note that a suspect was claimed, or that none was left."""
        self.occupied = self.due = found
        self._since = -math.inf
