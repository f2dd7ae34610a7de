"""What a runner does, published as it happens.

Owns the names of the events and who receives them: the console's report, the link to a supervisor,
later metrics. Never slows a runner down for nobody, and never lets a receiver stop it.
"""

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("dbtasks.runner")

# A worker id, before the runner claims in that name: at its start, and when it was evicted.
JOINED = "joined"
# The claims that were just committed, a list; in the runner's own thread.
CLAIMED = "claimed"
# An attempt that begins; in the thread that runs it.
STARTED = "started"
# Settled attempts, a list of (attempt, outcome): succeeded, failed, retried or released. In the
# thread that settles.
ENDED = "ended"
# The rows of lost workers that were settled, a list, as they were; in the heartbeat's thread.
RESCUED = "rescued"

KINDS = (JOINED, CLAIMED, STARTED, ENDED, RESCUED)


class Events:
    """Passes what a runner does on to whoever subscribed."""

    def __init__(self) -> None:
        self._receivers: dict[str, tuple[Callable[[Any], None], ...]] = {}

    def subscribe(self, kind: str, receiver: Callable[[Any], None]) -> None:
        """Call the receiver at each event of that kind, with what the kind says.

        Raise ValueError if there is no such kind.
        """
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is not a valid event. Use one of {', '.join(KINDS)}.")
        self._receivers[kind] = (*self._receivers.get(kind, ()), receiver)

    def publish(self, kind: str, value: Any) -> None:
        """Call each receiver of that kind, in this thread. A receiver that raises is logged."""
        for receiver in self._receivers.get(kind, ()):
            try:
                receiver(value)
            except Exception:  # whatever it is: the rows are written, the runner goes on
                logger.exception("A receiver of the event %r raised", kind)
