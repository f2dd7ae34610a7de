"""The rows.

Owns the tables, their indexes and named querysets. Never changes a row: every write is a
transition in `store`.
"""

import json
from typing import Any, Self

from django.db import models
from django.db.models import Q
from django.db.models.expressions import RawSQL
from django.tasks import TaskResultStatus
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from .indexes import PartialIndex, UniqueWhereSet
from .options import FINISHED

READY = TaskResultStatus.READY.value
RUNNING = TaskResultStatus.RUNNING.value
SUCCESSFUL = TaskResultStatus.SUCCESSFUL.value
FAILED = TaskResultStatus.FAILED.value

TABLE, WORKERS = "dbtasks_scheduledtask", "dbtasks_worker"

# How long the names in a row may be; longer ones are refused before they reach the database.
MAX_PATH, MAX_QUEUE, MAX_BACKEND, MAX_WORKER = 255, 100, 64, 128


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
    schedule_key = models.CharField(max_length=200, null=True)  # noqa: DJ001
    tick = models.DateTimeField(null=True)

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
            UniqueWhereSet(name="dbtasks_one_row_a_tick", fields=["schedule_key", "tick"]),
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
