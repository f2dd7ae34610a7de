"""The states of a row, by the names that people use.

Owns the holds, the names of the tables, and one queryset for each state, written so that an index
serves it. Never changes a row.
"""

from typing import TYPE_CHECKING, Self

from django.db import models
from django.db.models.expressions import RawSQL
from django.utils.translation import pgettext_lazy

from ..base.result import FAILED, FINISHED, READY, RUNNING, SUCCESSFUL

if TYPE_CHECKING:
    from .task import ScheduledTask  # noqa: F401

TABLE, WORKERS, PERIODIC = "dbtasks_scheduledtask", "dbtasks_worker", "dbtasks_periodictask"


class Hold(models.TextChoices):
    """Why a READY row may not be claimed yet. A claim takes only rows without a hold."""

    NONE = "", pgettext_lazy("Task", "None")
    # run_after is in the future.
    SCHEDULED = "scheduled", pgettext_lazy("Task", "Scheduled")
    # Two workers were lost with it. It runs alone, so that a third loss is known to be its fault.
    QUARANTINED = "quarantined", pgettext_lazy("Task", "Quarantined")
    # It runs inside enqueue(), in the process that wrote the row.
    IMMEDIATE = "immediate", pgettext_lazy("Task", "Immediate")


def _literal(constant: str) -> RawSQL:
    """Return the constant as SQL. With a parameter, SQLite would not use a partial index."""
    return RawSQL(f"'{constant}'", ())


class ScheduledTaskQuerySet(models.QuerySet["ScheduledTask"]):
    """One method for each state, written so that an index serves it."""

    def due(self) -> Self:
        """Return rows that a runner may claim now."""
        return self.filter(status=_literal(READY), hold=_literal(Hold.NONE))

    def scheduled(self) -> Self:
        """Return rows that wait for their run_after."""
        return self._held(Hold.SCHEDULED)

    def quarantined(self) -> Self:
        """Return rows that a runner may claim now, one at a time."""
        return self._held(Hold.QUARANTINED)

    def _held(self, hold: Hold) -> Self:
        # This follows from the condition below, but SQLite needs it to use the index of held rows.
        held = self.exclude(hold=_literal(Hold.NONE))
        return held.filter(status=_literal(READY), hold=_literal(hold))

    def running(self) -> Self:
        """Return rows that were claimed and have not finished."""
        return self.filter(status=_literal(RUNNING))

    def successful(self) -> Self:
        """Return rows whose task succeeded."""
        return self.filter(status=_literal(SUCCESSFUL))

    def failed(self) -> Self:
        """Return rows whose task failed for good or was cancelled."""
        return self.filter(status=_literal(FAILED))

    def finished(self) -> Self:
        """Return rows that have succeeded, failed or been cancelled."""
        return self.filter(status__in=FINISHED)
