"""Rows that come from another package.

Owns what such a row becomes here: its status, its place in the order of claims, its counts. Never
touches the database. The first migration uses this, so it names only columns of that migration.
"""

from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from ..exceptions import WorkerLost
from .result import FAILED, FINISHED, READY, RUNNING, class_path, with_error


class CarriedTask(NamedTuple):
    """A row of another package: plain values, and ``(exception path, traceback)`` pairs."""

    id: UUID
    task_path: str
    backend: str
    queue_name: str
    priority: int
    args: list[Any]
    kwargs: dict[str, Any]
    status: str
    enqueued_at: datetime
    run_after: datetime | None
    started_at: datetime | None
    last_attempted_at: datetime | None
    finished_at: datetime | None
    errors: list[tuple[str, str]]
    worker_ids: list[str]
    return_value: Any


def values_of(old: CarriedTask) -> dict[str, Any]:
    """Return the columns of the row as it goes on here; the others have their defaults.

    A row that was RUNNING becomes READY, with one attempt that was lost with its worker.
    """
    is_finished, is_lost = old.status in FINISHED, old.status == RUNNING
    errors: list[Any] = list(old.errors)
    if is_lost:
        worker = f" It was {old.worker_ids[-1]}." if old.worker_ids else ""
        errors = with_error(errors, (class_path(WorkerLost), f"{WorkerLost()}{worker}"))
    return old._asdict() | {
        "priority": old.priority if is_finished else in_front(old.id, old.priority),
        "status": old.status if is_finished else READY,
        "finished_at": old.finished_at if is_finished else None,
        "attempt": len(old.worker_ids),
        "failures": int(old.status == FAILED),
        "lost": int(is_lost),
        "errors": errors or None,
        "worker_ids": old.worker_ids or None,
    }


def in_front(id: UUID, priority: int) -> int:
    """Return the priority that keeps a carried row in front of newer ones of its own priority.

    Claims take the highest priority first, then the lowest id. Ids of version 7 are in order of
    age. Any other id is random: it would come after each row that is enqueued from now on, and wait
    for ever behind a queue that is never empty. With 1 more it comes before them, and still after
    all rows of the next priority.
    """
    return priority if id.version == 7 else priority + 1
