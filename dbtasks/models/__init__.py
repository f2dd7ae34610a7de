"""The rows of the queue, as Django models.

Owns the tables, their columns and indexes, the names of the states and the querysets that find
them. Never changes a row: every write is a transition in `store`.

Read in this order: fields, indexes, states, task, worker, periodic, foreign.
"""

from ..base.lengths import MAX_BACKEND, MAX_PATH, MAX_QUEUE, MAX_WORKER
from ..base.result import FAILED, READY, RUNNING, SUCCESSFUL
from .fields import Instant, JSONText, Unreadable, instant, microseconds
from .periodic import PeriodicTask
from .states import PERIODIC, TABLE, WORKERS, Hold, ScheduledTaskQuerySet
from .task import ScheduledTask
from .worker import Worker

__all__ = [
    "FAILED",
    "MAX_BACKEND",
    "MAX_PATH",
    "MAX_QUEUE",
    "MAX_WORKER",
    "PERIODIC",
    "READY",
    "RUNNING",
    "SUCCESSFUL",
    "TABLE",
    "WORKERS",
    "Hold",
    "Instant",
    "JSONText",
    "PeriodicTask",
    "ScheduledTask",
    "ScheduledTaskQuerySet",
    "Unreadable",
    "Worker",
    "instant",
    "microseconds",
]
