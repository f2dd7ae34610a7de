"""ScheduledTask: one row for each call of a task.

Owns its columns, and the indexes that claims, promotion, rescue and purge rely on. Never changes a
row.
"""

from django.db import models
from django.db.models import Q
from django.tasks import TaskResultStatus
from django.utils.translation import gettext_lazy as _

from ..base.lengths import MAX_BACKEND, MAX_PATH, MAX_QUEUE, MAX_WORKER
from ..base.result import FAILED, FINISHED, READY, RUNNING
from ..schedule.periodic import MAX_KEY
from .fields import Code, Instant, JSONText, Key, Name
from .indexes import PartialIndex, UniqueWhereSet
from .states import TABLE, Hold, ScheduledTaskQuerySet


class ScheduledTask(models.Model):
    """One stored call of a task."""

    # A UUIDv7, so the key is in order of age.
    id = Key(primary_key=True, editable=False)
    task_path = Name(_("task"), max_length=MAX_PATH)
    backend = Name(_("backend"), max_length=MAX_BACKEND)
    queue_name = Name(_("queue"), max_length=MAX_QUEUE)
    priority = models.SmallIntegerField(_("priority"))
    args = JSONText(_("arguments"))
    kwargs = JSONText(_("keyword arguments"))
    # Policies that this call changed by .using(); NULL if none.
    policy = JSONText(null=True)
    # What callers or middleware attach to the call, such as a trace id; NULL if nothing.
    meta = JSONText(null=True)

    status = Code(_("status"), max_length=10, choices=TaskResultStatus.choices)
    hold = Code(max_length=16, choices=Hold.choices, blank=True)
    # Increased by 1 at every claim, never reset. Every later write is guarded by the value it saw.
    fence = models.BigIntegerField(db_default=0)
    # Attempts so far, the running one included.
    attempt = models.IntegerField(_("attempt"), db_default=0)
    # Attempts that ended in an exception.
    failures = models.IntegerField(_("failures"), db_default=0)
    # Attempts whose worker was lost.
    lost = models.IntegerField(_("lost"), db_default=0)
    # Attempts that were released because their runner stopped while they ran.
    releases = models.IntegerField(_("releases"), db_default=0)
    # These texts are NULL for none, because NULLs are distinct and stay out of partial indexes.
    # The worker that runs the row; NULL unless RUNNING.
    worker_id = Name(_("worker"), max_length=MAX_WORKER, null=True)
    cancel_requested = models.BooleanField(db_default=False)
    # The schedule and the tick that fired the row; NULL if none did.
    schedule_key = Name(max_length=MAX_KEY, null=True)
    tick = Instant(null=True)

    enqueued_at = models.DateTimeField(_("enqueued at"))
    run_after = models.DateTimeField(_("run after"), null=True)
    started_at = models.DateTimeField(_("started at"), null=True)
    last_attempted_at = models.DateTimeField(_("last attempted at"), null=True)
    finished_at = models.DateTimeField(_("finished at"), null=True)
    # When the purge may delete it; NULL if it has not finished or is kept for ever.
    delete_after = models.DateTimeField(_("delete after"), null=True)

    # [exception class path, traceback text] for each of the last 10 errors; the worker of each
    # start.
    errors = JSONText(_("errors"), null=True)
    worker_ids = JSONText(_("workers"), null=True)
    return_value = JSONText(_("return value"), null=True)

    objects = ScheduledTaskQuerySet.as_manager()

    class Meta:
        db_table = TABLE
        verbose_name = _("task")
        verbose_name_plural = _("tasks")
        indexes = [
            # For claims from all queues and from one: index order is claim order. Each has a
            # condition of its own that is always true, so that no planner confuses the two.
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
            # For promotion, the next run_after, and quarantined rows.
            PartialIndex(
                name="dbtasks_held",
                fields=["hold", "backend", "run_after"],
                where=Q(status=READY) & ~Q(hold=Hold.NONE),
                otherwise=["status", "hold", "backend", "run_after"],
            ),
            # For the rows that a worker holds.
            PartialIndex(
                name="dbtasks_running",
                fields=["worker_id"],
                where=Q(status=RUNNING),
                otherwise=["status", "worker_id"],
            ),
            # For the purge.
            PartialIndex(
                name="dbtasks_expired",
                fields=["backend", "delete_after"],
                where=Q(delete_after__isnull=False),
                otherwise=["backend", "delete_after"],
            ),
            # For people: failed rows among millions of successful ones.
            PartialIndex(
                name="dbtasks_failed",
                fields=["id"],
                where=Q(status=FAILED),
                otherwise=["status", "id"],
            ),
        ]
        constraints = [
            UniqueWhereSet(
                name="dbtasks_one_row_a_tick", fields=["backend", "schedule_key", "tick"]
            ),
        ]

    def __str__(self) -> str:
        return f"{self.task_path} {self.id}"

    @property
    def is_finished(self) -> bool:
        """Whether the row is SUCCESSFUL or FAILED."""
        return self.status in FINISHED

    @property
    def periodic(self) -> bool:
        """Whether a schedule fired the row."""
        return self.schedule_key is not None
