"""Wakes runners when rows become due: in this process, and elsewhere by NOTIFY or a waker.

Owns became_due(), the one place that tells of rows, and how often other processes are notified.
Never waits for a listener.
"""

import logging
import threading
import time
from collections.abc import Iterable
from typing import Protocol
from weakref import ref

from django.db import DatabaseError, InterfaceError, connections
from django.dispatch import Signal

from ..store import Place
from ..waker import waker_of
from .hints import Commit, push_of, tell_places
from .publishing import publish

logger = logging.getLogger("dbtasks.wakeup")

CHANNEL = "dbtasks"
# Seconds between two NOTIFYs of one process for one backend: each takes a database-wide lock. A
# runner that receives one claims again after this time, so this is also the longest delay: with
# 0.05 one call in six waited up to 40 ms, among calls 20 to 200 ms apart.
NOTIFY_INTERVAL = 0.01

# Sent when rows became due, with `backend`, an alias, and `places`, a tuple of Place: those that
# are due now. It may be empty, if others will be due later.
rows_due = Signal()


class Wakeable(Protocol):
    """Something that can be woken from any thread, such as a runner."""

    @property
    def worker_id(self) -> str:
        """Its name among workers; it may change."""

    def wake(self, recheck_after: float = 0.0) -> None:
        """Claim now, and again after `recheck_after` seconds unless that is 0."""

    def poll_now(self) -> None:
        """Poll the queue now, because some process has written to the database."""


# By backend. The tuples are replaced, never changed, because any thread may be reading one.
_wakeables: dict[str, tuple[ref[Wakeable], ...]] = {}
_lock = threading.Lock()
_notified: dict[str, float] = {}


def register(backend: str, wakeable: Wakeable) -> None:
    """Wake it whenever rows of that backend become due in this process."""
    with _lock:
        _wakeables[backend] = (*_others(backend, wakeable), ref(wakeable))


def unregister(backend: str, wakeable: Wakeable) -> None:
    """Stop waking it for that backend."""
    with _lock:
        _wakeables[backend] = _others(backend, wakeable)


def _others(backend: str, wakeable: Wakeable) -> tuple[ref[Wakeable], ...]:
    """Return what else is registered for that backend and still exists."""
    known = _wakeables.get(backend, ())
    return tuple(other for other in known if other() not in (None, wakeable))


def hint(db: str, backend: str) -> tuple[str, str] | None:
    """Return channel and payload of a NOTIFY to send after the commit; None if none is needed.

    Inside the transaction NOTIFY would hold up every other commit that notifies, and a full
    notification queue would make the caller's commit fail.
    """
    if connections[db].vendor != "postgresql" or waker_of(backend) is not None:
        return None
    return None if _is_recent(backend) else (CHANNEL, backend)


def _is_recent(backend: str) -> bool:
    """Return whether other processes were notified a moment ago, and will claim once more."""
    return time.monotonic() - _notified.get(backend, -NOTIFY_INTERVAL) < NOTIFY_INTERVAL


def became_due(
    db: str,
    backend: str,
    places: Iterable[Place] = (),
    *,
    only_here: bool = False,
    is_notified: bool = False,
    commit: Commit | None = None,
) -> None:
    """Wake runners and send hints, because committed rows are due, or will be due later.

    Such rows were enqueued, retried, promoted or requeued, and `places` are all of them. The signal
    names those that are due now. With `only_here` rows were promoted: other processes are not
    notified, because they know the time as well. With `is_notified` the NOTIFY was sent with the
    rows. `commit` is given if further calls may follow for the same commit. Raises nothing. With a
    push it may take three seconds, without one it never waits.
    """
    for known in _wakeables.get(backend, ()):
        if (wakeable := known()) is not None:
            wakeable.wake()
    push = push_of(backend)
    if push is not None or rows_due.receivers:
        places = tuple(places)
    if rows_due.receivers:
        due = tuple(place for place in places if place.run_after is None)
        rows_due.send_robust(sender=None, backend=backend, places=due)
    if not only_here:
        _notify(db, backend, is_notified)
    if push is not None:
        tell_places(push, backend, tuple(places), is_promotion=only_here, commit=commit)


def _notify(db: str, backend: str, is_notified: bool) -> None:
    """Notify other processes, if they were not a moment ago."""
    if (waker := waker_of(backend)) is not None:
        if not _is_recent(backend):
            _notified[backend] = time.monotonic()
            publish(waker, backend)
        return
    if (words := hint(db, backend)) is None:
        return
    _notified[backend] = time.monotonic()
    if is_notified:
        return
    try:
        with connections[db].cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, %s)", words)
    except (DatabaseError, InterfaceError) as error:
        logger.debug("NOTIFY failed, runners will poll: %s", error)
