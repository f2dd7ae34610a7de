"""The progress of a drain.

Owns the estimate of what is left, and the line or bar that shows it. Never spends more than a
twentieth of the time on counting.
"""

import shutil
import time

from django.db import DatabaseError, connections

from ..backend import DatabaseBackend
from ..runner.runner import Runner
from ..stats import due_rows
from .terminal import Terminal

# The least number of seconds between two counts.
COUNT_INTERVAL = 1.0
# The time between two counts is at least this many times what a count takes.
COUNT_SHARE = 20


class Progress:
    """The progress of one runner, as a line of text. Used by one thread."""

    def __init__(self, runner: Runner, backend: DatabaseBackend, terminal: Terminal) -> None:
        self._runner, self._backend, self._terminal = runner, backend, terminal
        # Of the last count: the rows due, the tasks done by then, when it was, on the monotonic
        # clock, and how many seconds it took.
        self._left: int | None = None
        self._left_done = 0
        self._counted_at = self._took = 0.0

    def line(self, done: int, failed: int) -> str:
        """Return the counts as one line."""
        left = self.left(done)
        text = f"done {done:,} · failed {failed:,} · running {self._runner.running:,}"
        text += "" if left is None else f" · left {left:,}"
        return text if self._terminal.can(text) else text.replace("·", "|")

    def bar(self, done: int, failed: int) -> str:
        """Return the line with a bar before it, if the terminal is wide enough."""
        text, left = self.line(done, failed), self.left(done)
        columns = shutil.get_terminal_size().columns
        width = min(40, columns - len(text) - 2)
        if left is not None and width >= 10:
            share = done / max(1, done + self._runner.running + left)
            full = min(width, int(share * width))
            on, off = "█░" if self._terminal.can("█░") else "#-"
            text = f"{on * full}{off * (width - full)} {text}"
        return text[: columns - 1]

    def left(self, done: int) -> int | None:
        """Return an estimate of the due rows: the last count, less the tasks done since.

        Return None if the database cannot be reached.
        """
        now = time.monotonic()
        if now >= self._counted_at + max(COUNT_INTERVAL, COUNT_SHARE * self._took):
            self._left = self._count_due()
            self._left_done, self._counted_at = done, time.monotonic()
            self._took = self._counted_at - now
        return self._left and max(0, self._left - (done - self._left_done))

    def _count_due(self) -> int | None:
        try:
            backend = self._backend
            return due_rows(backend.database, backend.alias, self._runner.options.served).count()
        except DatabaseError:  # the runner reports the error itself, and tries again
            connections[self._backend.database].close()
            return None
