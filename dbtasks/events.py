"""What a runner does, published as it happens.

Owns the names of the events and their receivers, such as the console's report and the link to a
supervisor. Never costs a runner time without a receiver, and never lets a receiver stop it.
"""

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("dbtasks.runner")

# A worker id, before the runner claims under it: at its start, and after it was declared lost.
JOINED = "joined"
# The list of claims that were just committed; in the runner's own thread.
CLAIMED = "claimed"
# An attempt that begins; in the thread that runs it.
STARTED = "started"
# The list of settled (attempt, outcome): succeeded, failed, retried or released. In the thread that
# settles.
ENDED = "ended"
# The list of settled rows of lost workers, as they were before; in the rescuer's thread.
RESCUED = "rescued"
# The name of a thread of the runner that stands still, so that the runner stops if it can.
STALLED = "stalled"

KINDS = (JOINED, CLAIMED, STARTED, ENDED, RESCUED, STALLED)


class Events:
    """Passes a runner's events to their receivers."""

    def __init__(self) -> None:
        self._receivers: dict[str, tuple[Callable[[Any], None], ...]] = {}

    def subscribe(self, kind: str, receiver: Callable[[Any], None]) -> None:
        """Call the receiver with the value of each event of that kind.

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
            except Exception:  # whatever it raises: the rows are written, the runner goes on
                logger.exception("A receiver of the event %r raised", kind)
