"""Manual operations on rows: retry, run now, cancel, delete.

Owns which rows each one fits, its transition, the wake-up after it, and its messages. The admin,
the commands and the backend share them. Never checks permissions.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext_lazy

from . import store, wakeup
from .base.result import READY
from .models import ScheduledTask, ScheduledTaskQuerySet
from .store import Place

# Returns how long a row is kept if it fails; None is for ever.
Retain = Callable[[ScheduledTask], timedelta | None]


class Operation(NamedTuple):
    """An operation on rows, and its messages."""

    # The rows in the state that the transition starts from.
    rows: Callable[[ScheduledTaskQuerySet], ScheduledTaskQuerySet]
    # The transition: takes the database, ids and Retain; returns how many rows were moved.
    move: Callable[[str, Sequence[UUID], Retain], int]
    makes_due: bool
    # For the history of a row.
    note: Any
    # With %(moved)d; `some` has %(seen)d as well, for when some rows were not moved.
    all: Any
    some: Any

    def apply(self, db: str, rows: Iterable[ScheduledTask], retain: Retain) -> int:
        """Move those of the rows that can be moved; return how many there were.

        Joins the caller's transaction. Runners are woken, and hints sent, after its commit.
        """
        rows = list(rows)
        moved = self.move(db, [row.pk for row in rows], retain)
        if moved and self.makes_due:
            for alias in {row.backend for row in rows}:
                own = [row for row in rows if row.backend == alias]
                wakeup.announce(db, alias, _places(db, alias, own))
        return moved


def _places(db: str, alias: str, rows: list[ScheduledTask]) -> list[Place]:
    """Return the places of the rows. With a push, of those that are READY, to send few hints."""
    if wakeup.push_of(alias) is not None:
        ids = [row.pk for row in rows]
        rows = list(ScheduledTask.objects.using(db).filter(pk__in=ids, status=READY))
    return [Place(row.queue_name, row.priority, row.pk, attempt=row.attempt) for row in rows]


def expired(rows: ScheduledTaskQuerySet) -> ScheduledTaskQuerySet:
    """Return those of the rows whose retention is over."""
    return rows.finished().filter(delete_after__lte=store.now(rows.db))


RETRY = Operation(
    lambda rows: rows.failed(),
    lambda db, ids, retain: store.retry(db, ids),
    True,
    _("Made ready again."),
    ngettext_lazy("%(moved)d task was made ready.", "%(moved)d tasks were made ready.", "moved"),
    _("%(moved)d of %(seen)d tasks were made ready; the others had moved on."),
)
RUN_NOW = Operation(
    lambda rows: rows.scheduled(),
    lambda db, ids, retain: store.run_now(db, ids),
    True,
    _("Made due at once."),
    ngettext_lazy("%(moved)d task is due now.", "%(moved)d tasks are due now.", "moved"),
    _("%(moved)d of %(seen)d tasks are due now; the others were not scheduled."),
)
CANCEL = Operation(
    lambda rows: rows.filter(status=READY),
    store.cancel,
    False,
    _("Cancelled."),
    ngettext_lazy("%(moved)d task was cancelled.", "%(moved)d tasks were cancelled.", "moved"),
    _("%(moved)d of %(seen)d tasks were cancelled; the others had moved on."),
)
REQUEST_CANCEL = Operation(
    lambda rows: rows.running(),
    lambda db, ids, retain: store.request_cancel(db, ids),
    False,
    _("Asked to stop."),
    ngettext_lazy(
        "%(moved)d running task was asked to stop.",
        "%(moved)d running tasks were asked to stop.",
        "moved",
    ),
    _("%(moved)d of %(seen)d running tasks were asked to stop; the others had moved on."),
)
DELETE_EXPIRED = Operation(
    expired,
    lambda db, ids, retain: store.delete(db, ids, expired=True),
    False,
    _("Deleted."),
    ngettext_lazy("%(moved)d task was deleted.", "%(moved)d tasks were deleted.", "moved"),
    _("%(moved)d of %(seen)d tasks were deleted; the others have not expired."),
)


def cancel(db: str, rows: Iterable[ScheduledTask], retain: Retain) -> bool:
    """Cancel the rows; return whether any was cancelled or asked to end.

    A READY row ends at once, a RUNNING one is asked to end.
    """
    rows = list(rows)
    # CANCEL comes again for a row that ran at first, and now waits for a retry.
    return any(each.apply(db, rows, retain) for each in (CANCEL, REQUEST_CANCEL, CANCEL))
