"""Worker: one row for each running process that claims tasks.

Owns its columns. Never changes a row, and never compares a time in it with a clock.
"""

from django.db import models
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from ..base.lengths import MAX_BACKEND, MAX_WORKER
from .fields import Code, Name
from .states import WORKERS


class Worker(models.Model):
    """A running process that claims tasks. It is alive as long as its beat changes."""

    class State(models.TextChoices):
        """What other workers know about it."""

        LIVE = "live", pgettext_lazy("Worker", "Live")
        # Silent for too long: its rows are rescued, and it may claim no more.
        LOST = "lost", pgettext_lazy("Worker", "Lost")

    # Unique to one start of one process.
    worker_id = Name(_("worker"), max_length=MAX_WORKER, primary_key=True)
    backend = Name(_("backend"), max_length=MAX_BACKEND)
    state = Code(_("state"), max_length=8, choices=State.choices)
    # Increased every few seconds. Others compare it with the value they saw before, not with a
    # clock.
    beat = models.BigIntegerField(_("beat"), db_default=0)
    # Shown to people. Only the deletion of lost workers depends on beat_at.
    started_at = models.DateTimeField(_("started at"))
    beat_at = models.DateTimeField(_("last beat at"))
    # The process, so that others on the same host see at once when it has ended.
    host_key = Name(max_length=128, blank=True)
    pid = models.BigIntegerField(null=True)
    pid_started = models.BigIntegerField(null=True)

    class Meta:
        db_table = WORKERS
        verbose_name = _("worker")
        verbose_name_plural = _("workers")

    def __str__(self) -> str:
        return self.worker_id
