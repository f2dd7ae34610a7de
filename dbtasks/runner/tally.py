"""The counts of a runner.

Owns how many attempts ended and how, and publishes the ends. Never writes to a row.
"""

import threading
from collections.abc import Callable, Sequence

from .. import metrics, wakeup
from ..base.result import FAILED, READY, SUCCESSFUL
from ..events import ENDED, Events
from ..execution.settling import Ended, ready_places


class Tally:
    """Counts and publishes settled outcomes; `settled` is notified after each batch."""

    def __init__(
        self,
        db: str,
        backend: str,
        events: Events,
        settled: threading.Condition,
        poll_now: Callable[[], None],
    ) -> None:
        self._db, self._backend, self._events = db, backend, events
        self._settled, self._poll_now = settled, poll_now
        # Attempts that ended for good, and those of them that failed.
        self.done = self.failed = 0

    def count(self, batch: Sequence[Ended]) -> None:
        """Count and publish the settled outcomes. Runs in the writer's thread."""
        statuses = [outcome.status for _, outcome in batch]
        if READY in statuses:
            # A free runner may start it now, or must know when it will be due.
            self._poll_now()
            wakeup.became_due(self._db, self._backend, ready_places(batch))
            # Rows that never started are not published.
            batch = [one for one in batch if one[1].attempt == one[0].claim.attempt]
        self.failed += (failed := statuses.count(FAILED))
        self.done += statuses.count(SUCCESSFUL) + failed
        if batch:
            self._events.publish(ENDED, batch)
            metrics.publish(batch)
        with self._settled:
            self._settled.notify_all()
