"""Announcements of rows, made when the transaction that wrote them has committed.

Owns which announcements of one transaction are made as one, so that a push service gets few calls.
Never announces rows that were rolled back.
"""

from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import Any

from django.db import connections

from ..db.connections import AfterCommit, after_commit
from ..store import Place
from .hints import Commit, push_of
from .notify import became_due


def announce(db: str, backend: str, places: Iterable[Place], is_notified: bool = False) -> None:
    """Call became_due() for the rows after the commit of the caller's transaction, or at once."""
    if push_of(backend) is None:
        after_commit(db, partial(became_due, db, backend, places, is_notified=is_notified))
        return
    connection: Any = connections[db]
    sids, pending = _pending(connection)
    if pending is not None and pending.backend == backend and sids == {*connection.savepoint_ids}:
        pending.parts.append(places)
    else:
        commit = Commit() if pending is None else pending.commit
        after_commit(db, Announcement(db, backend, places, is_notified, commit))


class Announcement:
    """Rows of one backend that one savepoint of a transaction has written."""

    def __init__(
        self, db: str, backend: str, places: Iterable[Place], is_notified: bool, commit: Commit
    ) -> None:
        self.db, self.backend, self.commit = db, backend, commit
        self.parts, self._is_notified = [places], is_notified

    def __call__(self) -> None:
        places = chain.from_iterable(self.parts)
        became_due(self.db, self.backend, places, is_notified=self._is_notified, commit=self.commit)


def _pending(connection: Any) -> tuple[set[str], Announcement | None]:
    """Return the last announcement of the open transaction, and the savepoints it depends on."""
    blocks = connection.atomic_blocks
    # The transaction of a TestCase is never committed. What waits there is run by hand.
    if blocks and not blocks[0]._from_testcase:
        for sids, call, _ in reversed(connection.run_on_commit):
            if isinstance(call, AfterCommit) and isinstance(call.call, Announcement):
                return sids, call.call
    return set(), None
