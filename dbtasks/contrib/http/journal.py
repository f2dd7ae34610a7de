"""What the endpoints log.

Owns the logger ``dbtasks.http``: a line for each request that was answered, and one a minute for
those that were not. Never logs a header, a body, an argument or a result.
"""

import logging
import threading
import time
from typing import Any

logger = logging.getLogger("dbtasks.http")

# Seconds between two lines that say the same.
INTERVAL = 60.0
# How many different lines are remembered, so that a flood from many addresses fills no memory.
MAX_LINES = 1000


class Journal:
    """Says each thing once a minute. Can be used by any thread."""

    def __init__(self) -> None:
        # By what was said: when, on the monotonic clock; the oldest first.
        self._said: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()

    def is_new(self, *what: str) -> bool:
        """Return whether this was not said within a minute, and note that it is said now.

        False as well if very many other things were said within that minute.
        """
        now = time.monotonic()
        with self._lock:
            for key, at in list(self._said.items()):
                if now - at < INTERVAL:
                    break
                del self._said[key]
            if what in self._said or len(self._said) >= MAX_LINES:
                return False
            self._said[what] = now
            return True


_journal = Journal()


def answered(scope: str, backend: str, who: str, seconds: float, counts: dict[str, Any]) -> None:
    """Log one request that was answered: what was asked, by whom, and the counts of the answer."""
    shown = {name: value for name, value in counts.items() if isinstance(value, int | str)}
    fields = {
        "event": "http.answered",
        "endpoint": scope,
        "who": who,
        "duration_s": round(seconds, 3),
        "task_id": shown.get("id"),
    }
    text = ", ".join(f"{name} {value}" for name, value in shown.items())
    logger.info(
        "%s of %s by %s in %.2f s: %s",
        *(scope, backend, who, seconds, text),
        extra=shown | fields | {"backend": backend},
    )


def turned_away(scope: str, backend: str, why: str, address: str) -> None:
    """Log that a request was not answered, once a minute for each reason and address."""
    if _journal.is_new(scope, backend, why, address):
        logger.warning(
            "%s of %s from %s was turned away: %s",
            *(scope, backend, address, why),
            extra={
                "event": "http.refused",
                "endpoint": scope,
                "backend": backend,
                "address": address,
                "why": why,
            },
        )
