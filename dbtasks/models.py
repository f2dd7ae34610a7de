"""The rows.

Owns the tables, their indexes and named querysets. Never changes a row: every write is a
transition in `store`.
"""

import json
from datetime import UTC, datetime
from typing import Any, Self

from django.db import models
from django.db.models import Q
from django.db.models.expressions import RawSQL
from django.tasks import TaskResultStatus
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from .indexes import PartialIndex, UniqueWhereSet
from .options import FINISHED
from .periodic import MAX_KEY
from .schedule import EPOCH, MICROSECOND, Schedule, parse

READY = TaskResultStatus.READY.value
RUNNING = TaskResultStatus.RUNNING.value
SUCCESSFUL = TaskResultStatus.SUCCESSFUL.value
FAILED = TaskResultStatus.FAILED.value

TABLE, WORKERS, PERIODIC = "dbtasks_scheduledtask", "dbtasks_worker", "dbtasks_periodictask"

# How long the names in a row may be; longer ones are refused before they reach the database.
MAX_PATH, MAX_QUEUE, MAX_BACKEND, MAX_WORKER = 255, 100, 64, 128
MAX_SPEC, MAX_ZONE, MAX_RETAIN = 200, 64, 64


class Hold(models.TextChoices):
    """Why a READY row may not be claimed yet; the claim looks for rows without a hold."""

    NONE = "", pgettext_lazy("Task", "None")
    # run_after is still to come.
    SCHEDULED = "scheduled", pgettext_lazy("Task", "Scheduled")
    # Two runners were lost with it: it starts alone, so that a third loss is its own doing.
    SUSPECT = "suspect", pgettext_lazy("Task", "Suspect")
    # Runs inside enqueue(): no runner may touch the row.
    IMMEDIATE = "immediate", pgettext_lazy("Task", "Immediate")


class JSONText(models.TextField):
    """JSON kept as plain text, NULL for None.

    A database's own JSON type would change values on the way (jsonb turns 1e23 into an integer,
    MySQL reorders keys), parse each of them on the hot path, and accept other input on each
    database. Nobody queries inside arguments.
    """

    # What type checkers are told: any JSON.
    _pyi_private_get_type: Any
    _pyi_private_set_type: Any

    def from_db_value(self, value: str | None, expression: Any, connection: Any) -> Any:
        return None if value is None else json.loads(value)

    def get_prep_value(self, value: Any) -> str | None:
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def value_to_string(self, obj: models.Model) -> str:
        return json.dumps(self.value_from_object(obj))

    def to_python(self, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value


class Instant(models.Field):
    """An aware datetime in UTC, kept as microseconds since 1970.

    The same on every database and with every setting of time zones, also in the hour that clocks
    show twice: two ticks an hour apart are never one.
    """

    _pyi_private_get_type: datetime
    _pyi_private_set_type: datetime | None

    def get_internal_type(self) -> str:
        return "BigIntegerField"

    def from_db_value(self, value: int | None, expression: Any, connection: Any) -> Any:
        return None if value is None else instant(value)

    def get_prep_value(self, value: Any) -> int | None:
        return None if value is None else microseconds(self.to_python(value))

    def to_python(self, value: Any) -> Any:
        return datetime.fromisoformat(value) if isinstance(value, str) else value

    def value_to_string(self, obj: models.Model) -> str:
        value: Any = self.value_from_object(obj)
        return "" if value is None else str(value.isoformat())


def instant(value: int) -> datetime:
    """Return the moment, in UTC, that is so many microseconds after 1970 began."""
    return EPOCH + value * MICROSECOND


def microseconds(moment: datetime) -> int:
    """Return the moment as instant() takes it."""
    return (moment.astimezone(UTC) - EPOCH) // MICROSECOND


def _literal(constant: str) -> RawSQL:
    """Return the constant as SQL: with a parameter in its place SQLite uses no partial index."""
    return RawSQL(f"'{constant}'", ())


class ScheduledTaskQuerySet(models.QuerySet["ScheduledTask"]):
    """The states people name, each as the index that serves it."""

    def due(self) -> Self:
        """Return rows that a runner may claim now."""
        return self.filter(status=_literal(READY), hold=_literal(Hold.NONE))

    def scheduled(self) -> Self:
        """Return rows that wait for their run_after."""
        return self._held(Hold.SCHEDULED)

    def suspect(self) -> Self:
        """Return rows that a runner may claim now, one at a time."""
        return self._held(Hold.SUSPECT)

    def _held(self, hold: Hold) -> Self:
        # What is always true lets SQLite see that the index of held rows will do.
        held = self.exclude(hold=_literal(Hold.NONE))
        return held.filter(status=_literal(READY), hold=_literal(hold))

    def running(self) -> Self:
        """Return rows that were claimed and have not finished."""
        return self.filter(status=_literal(RUNNING))

    def successful(self) -> Self:
        """Return rows that ended well."""
        return self.filter(status=_literal(SUCCESSFUL))

    def failed(self) -> Self:
        """Return rows that ended in an error, cancelled ones among them."""
        return self.filter(status=_literal(FAILED))

    def finished(self) -> Self:
        """Return rows that have ended."""
        return self.filter(status__in=FINISHED)


class ScheduledTask(models.Model):
    """One stored call of a task."""

    # A UUIDv7: the key is in order of age.
    id = models.UUIDField(primary_key=True, editable=False)
    task_path = models.CharField(_("task"), max_length=MAX_PATH)
    backend = models.CharField(_("backend"), max_length=MAX_BACKEND)
    queue_name = models.CharField(_("queue"), max_length=MAX_QUEUE)
    priority = models.SmallIntegerField(_("priority"))
    args = JSONText(_("arguments"))
    kwargs = JSONText(_("keyword arguments"))
    # Policies that this call changed by .using(); NULL if none.
    policy = JSONText(null=True)
    # For what later rides along: traces, tags.
    meta = JSONText(null=True)

    status = models.CharField(_("status"), max_length=10, choices=TaskResultStatus.choices)
    hold = models.CharField(max_length=16, choices=Hold.choices, blank=True)
    # + 1 at every claim, never reset: every later write names the one it saw.
    fence = models.BigIntegerField(db_default=0)
    # Starts so far, the running one included.
    attempt = models.IntegerField(_("attempt"), db_default=0)
    # Attempts that ended in an exception.
    failures = models.IntegerField(_("failures"), db_default=0)
    # Starts whose runner was lost.
    lost = models.IntegerField(_("lost"), db_default=0)
    # In these texts NULL, which differs from itself and stays out of indexes, means none.
    # Who runs it now; NULL unless RUNNING.
    worker_id = models.CharField(_("worker"), max_length=MAX_WORKER, null=True)  # noqa: DJ001
    cancel_requested = models.BooleanField(db_default=False)
    # Held by one unfinished row at a time; NULL in all others.
    unique_slot = models.CharField(max_length=255, null=True)  # noqa: DJ001
    # Which tick of which schedule fired the row.
    schedule_key = models.CharField(max_length=MAX_KEY, null=True)  # noqa: DJ001
    tick = Instant(null=True)

    enqueued_at = models.DateTimeField(_("enqueued at"))
    run_after = models.DateTimeField(_("run after"), null=True)
    started_at = models.DateTimeField(_("started at"), null=True)
    last_attempted_at = models.DateTimeField(_("last attempted at"), null=True)
    finished_at = models.DateTimeField(_("finished at"), null=True)
    # When the purge may take it; NULL while unfinished, or for ever.
    delete_after = models.DateTimeField(_("delete after"), null=True)

    # Ended attempts: [exception class path, traceback text] each, and the worker of each start.
    errors = JSONText(_("errors"), null=True)
    worker_ids = JSONText(_("workers"), null=True)
    return_value = JSONText(_("return value"), null=True)

    objects = ScheduledTaskQuerySet.as_manager()

    class Meta:
        db_table = TABLE
        verbose_name = _("task")
        verbose_name_plural = _("tasks")
        indexes = [
            # The claim, of all queues and of one: index order is claim order. Each asks for what
            # is always true, a different thing, so that no planner takes one for the other.
            PartialIndex(
                name="dbtasks_due",
                fields=["backend", "-priority", "id"],
                where=Q(status=READY, hold=Hold.NONE, attempt__gte=0),
                otherwise=["status", "hold", "backend", "-priority", "id"],
            ),
            PartialIndex(
                name="dbtasks_due_in_queue",
                fields=["backend", "queue_name", "-priority", "id"],
                where=Q(status=READY, hold=Hold.NONE, fence__gte=0),
                otherwise=["status", "hold", "backend", "queue_name", "-priority", "id"],
            ),
            # The promoter, when to wake for the next run_after, and rows that start alone.
            PartialIndex(
                name="dbtasks_held",
                fields=["hold", "backend", "run_after"],
                where=Q(status=READY) & ~Q(hold=Hold.NONE),
                otherwise=["status", "hold", "backend", "run_after"],
            ),
            # What a worker holds.
            PartialIndex(
                name="dbtasks_running",
                fields=["worker_id"],
                where=Q(status=RUNNING),
                otherwise=["status", "worker_id"],
            ),
            # The purge.
            PartialIndex(
                name="dbtasks_expired",
                fields=["backend", "delete_after"],
                where=Q(delete_after__isnull=False),
                otherwise=["backend", "delete_after"],
            ),
            # What people look for first, among millions that went well.
            PartialIndex(
                name="dbtasks_failed",
                fields=["id"],
                where=Q(status=FAILED),
                otherwise=["status", "id"],
            ),
        ]
        constraints = [
            UniqueWhereSet(name="dbtasks_unique_slot", fields=["unique_slot"]),
            UniqueWhereSet(
                name="dbtasks_one_row_a_tick", fields=["backend", "schedule_key", "tick"]
            ),
        ]

    def __str__(self) -> str:
        return f"{self.task_path} {self.id}"

    @property
    def is_finished(self) -> bool:
        """Whether the row has ended, well or not."""
        return self.status in FINISHED

    @property
    def periodic(self) -> bool:
        """Whether a schedule fired the row."""
        return self.schedule_key is not None


class Worker(models.Model):
    """A running Runner, as others see it: alive as long as its beat goes on."""

    class State(models.TextChoices):
        """What the others think of it."""

        LIVE = "live", pgettext_lazy("Worker", "Live")
        # Silent for too long: its rows are given back, and it may claim no more.
        LOST = "lost", pgettext_lazy("Worker", "Lost")

    # Unique to one start of one process.
    worker_id = models.CharField(_("worker"), max_length=MAX_WORKER, primary_key=True)
    backend = models.CharField(_("backend"), max_length=MAX_BACKEND)
    state = models.CharField(_("state"), max_length=8, choices=State.choices)
    # + 1 every few seconds. Others compare it with what they saw last, never with a clock.
    beat = models.BigIntegerField(_("beat"), db_default=0)
    # For people.
    started_at = models.DateTimeField(_("started at"))
    beat_at = models.DateTimeField(_("last beat at"))
    # The machine and process: on the same one others see at once that a process is gone.
    place = models.CharField(max_length=128, blank=True)
    pid = models.BigIntegerField(null=True)
    pid_started = models.BigIntegerField(null=True)

    class Meta:
        db_table = WORKERS
        verbose_name = _("worker")
        verbose_name_plural = _("workers")

    def __str__(self) -> str:
        return self.worker_id


class PeriodicTask(models.Model):
    """A schedule of a task, and how far it has come: any runner may fire its next tick."""

    class Origin(models.TextChoices):
        """Who made it."""

        # Settings or a decorator: the runners that have it there fire it, and bring it up to date.
        SETTINGS = "settings", pgettext_lazy("Schedule", "Settings")
        # People, in the admin: every runner of its backend fires it.
        ADMIN = "admin", pgettext_lazy("Schedule", "Admin")

    class Missed(models.TextChoices):
        """What becomes of ticks that came while no runner was there."""

        LATEST = "latest", pgettext_lazy("Schedule", "Run once for the latest")
        SKIP = "skip", pgettext_lazy("Schedule", "Skip")
        ALL = "all", pgettext_lazy("Schedule", "Run for each, at most 100")

    backend = models.CharField(_("backend"), max_length=MAX_BACKEND)
    key = models.CharField(_("key"), max_length=MAX_KEY)
    origin = models.CharField(_("origin"), max_length=8, choices=Origin.choices)
    task_path = models.CharField(_("task"), max_length=MAX_PATH)
    # A cron line or a duration, and the zone whose clocks count.
    spec = models.CharField(_("schedule"), max_length=MAX_SPEC)
    timezone = models.CharField(_("time zone"), max_length=MAX_ZONE)
    # Of schedules made by people; those in settings have theirs there.
    args = JSONText(_("arguments"), null=True, blank=True)
    kwargs = JSONText(_("keyword arguments"), null=True, blank=True)
    # A duration; empty is what the task or the options say.
    retain = models.CharField(_("retain"), max_length=MAX_RETAIN, blank=True)
    missed = models.CharField(
        _("missed ticks"), max_length=8, choices=Missed.choices, default=Missed.LATEST
    )
    # Whether a tick is run while the run before has not finished.
    overlap = models.BooleanField(_("overlap"), default=True)
    # By people only: no deploy changes it.
    paused = models.BooleanField(_("paused"), default=False)
    # The first tick that has not been fired; every write that moves it names the one it saw.
    next_tick = Instant(_("next tick"))
    # The last one that has been fired, and the last one that was not.
    last_tick = Instant(_("last tick"), null=True)
    skipped_tick = Instant(_("last skipped tick"), null=True)
    # When a runner last said that it has the key in its settings.
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
        """When it ticks; raise ScheduleError if the row has no valid schedule."""
        return parse(self.spec, self.timezone, self.key)
