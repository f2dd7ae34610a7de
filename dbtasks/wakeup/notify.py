"""Telling runners that rows became due, in this process and by PostgreSQL's NOTIFY.

Owns the one function that says so, and how often other processes are told. Never waits for anybody
to listen.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Protocol
from weakref import WeakSet

from django.db import DatabaseError, InterfaceError, connections
from django.dispatch import Signal

from ..store import Place

logger = logging.getLogger("dbtasks.wakeup")

CHANNEL = "dbtasks"
# Seconds between two NOTIFYs of one process for one backend. Each takes a lock of the whole
# database. Whoever hears one looks again after this time, so this is also the longest delay: with
# 0.05 one call in six waited up to 40 ms, among calls 20 to 200 ms apart.
NOTIFY_INTERVAL = 0.01

# Sent with `backend`, an alias, and `places`, a tuple of Place, when rows became due.
rows_due = Signal()


class Wakeable(Protocol):
    """What can be woken, from any thread."""

    @property
    def worker_id(self) -> str:
        """Its name among workers; may change."""

    def wake(self, recheck_after: float = 0.0) -> None:
        """Claim now, and once more after so many seconds if that is not 0."""

    def poll_now(self) -> None:
        """Look at the queue now: some process has written to the database."""


_wakeables: dict[str, WeakSet[Wakeable]] = defaultdict(WeakSet)
_notified: dict[str, float] = {}


def register(backend: str, wakeable: Wakeable) -> None:
    """Wake it whenever rows of that backend become due in this process."""
    _wakeables[backend].add(wakeable)


def unregister(backend: str, wakeable: Wakeable) -> None:
    """Wake it no more."""
    _wakeables[backend].discard(wakeable)


def hint(db: str, backend: str) -> tuple[str, str] | None:
    """Return channel and payload of the NOTIFY to send once rows are committed, if one is due.

    It is sent after the commit. Inside the transaction NOTIFY would hold back every other commit
    that notifies, and a full notification queue would make the caller's own fail.
    """
    if connections[db].vendor != "postgresql":
        return None
    is_recent = time.monotonic() - _notified.get(backend, -NOTIFY_INTERVAL) < NOTIFY_INTERVAL
    return None if is_recent else (CHANNEL, backend)


def became_due(
    db: str,
    backend: str,
    places: Iterable[Place] = (),
    *,
    only_here: bool = False,
    is_notified: bool = False,
) -> None:
    """Tell that committed rows became due, or will: enqueued, retried, promoted or requeued.

    `places` names those that are due now. `only_here` tells nobody outside of this process;
    `is_notified` says that the NOTIFY went with the rows. Raises nothing.
    """
    for wakeable in tuple(_wakeables.get(backend, ())):
        wakeable.wake()
    if rows_due.receivers:
        rows_due.send_robust(sender=None, backend=backend, places=tuple(places))
    if only_here or (words := hint(db, backend)) is None:
        return
    _notified[backend] = time.monotonic()
    if is_notified:
        return
    try:
        with connections[db].cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, %s)", words)
    except (DatabaseError, InterfaceError) as error:
        logger.debug("NOTIFY failed, runners will poll: %s", error)
