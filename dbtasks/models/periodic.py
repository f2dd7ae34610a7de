"""PeriodicTask: one row for each schedule, and how far it has come.

Owns its columns. Never fires a tick.
"""

from django.db import models
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from ..base.lengths import MAX_BACKEND, MAX_PATH, MAX_RETAIN, MAX_SPEC, MAX_ZONE
from ..schedule.periodic import MAX_KEY
from ..schedule.rules import Schedule, parse
from .fields import Code, Instant, JSONText, Name
from .states import PERIODIC


class PeriodicTask(models.Model):
    """A schedule of a task, and how far it has come. Any runner may fire its next tick."""

    class Origin(models.TextChoices):
        """Who made it."""

        # Settings or a decorator. The runners that have it there fire it and update the row.
        SETTINGS = "settings", pgettext_lazy("Schedule", "Settings")
        # The admin. Every runner of the backend fires it.
        ADMIN = "admin", pgettext_lazy("Schedule", "Admin")

    class Missed(models.TextChoices):
        """What becomes of ticks that came while no runner was running."""

        LATEST = "latest", pgettext_lazy("Schedule", "Run once for the latest")
        SKIP = "skip", pgettext_lazy("Schedule", "Skip")
        ALL = "all", pgettext_lazy("Schedule", "Run for each, at most 100")

    backend = Name(_("backend"), max_length=MAX_BACKEND)
    key = Name(_("key"), max_length=MAX_KEY)
    origin = Code(_("origin"), max_length=8, choices=Origin.choices)
    task_path = Name(_("task"), max_length=MAX_PATH)
    # A cron expression or a duration, and the time zone that it refers to.
    spec = Name(_("schedule"), max_length=MAX_SPEC)
    timezone = Name(_("time zone"), max_length=MAX_ZONE)
    # Only for schedules made in the admin. Settings hold those of the others.
    args = JSONText(_("arguments"), null=True, blank=True)
    kwargs = JSONText(_("keyword arguments"), null=True, blank=True)
    # A duration. If empty, the task's or the options' value applies.
    retain = Name(_("retain"), max_length=MAX_RETAIN, blank=True)
    missed = Code(_("missed ticks"), max_length=8, choices=Missed.choices, default=Missed.LATEST)
    # True if a tick runs although the previous run has not finished.
    overlap = models.BooleanField(_("overlap"), default=True)
    # Set by people only. A deployment does not change it.
    paused = models.BooleanField(_("paused"), default=False)
    # The first tick that has not been fired. Every write that moves it is guarded by its old value.
    next_tick = Instant(_("next tick"))
    # The last tick that was fired, and the last one that was skipped.
    last_tick = Instant(_("last tick"), null=True)
    skipped_tick = Instant(_("last skipped tick"), null=True)
    # When a runner last reported that it has the key in its settings.
    seen_at = Instant(_("seen at"), null=True)

    class Meta:
        db_table = PERIODIC
        verbose_name = _("periodic task")
        verbose_name_plural = _("periodic tasks")
        constraints = [
            models.UniqueConstraint(name="dbtasks_one_schedule_a_key", fields=["backend", "key"]),
        ]

    def __str__(self) -> str:
        return self.key

    @property
    def schedule(self) -> Schedule:
        """The schedule's rule; raise ScheduleError if the row has no valid one."""
        return parse(self.spec, self.timezone, self.key)
