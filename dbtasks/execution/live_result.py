"""The TaskResult of a running attempt, whose fields are built when they are read.

Owns how each field is made from the claim. Never changes the attempt.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.tasks import TaskResultStatus, base

from .. import store
from ..base import payload
from ..base.result import TaskResult, default_of, make_errors, make_worker_ids
from . import outcomes

if TYPE_CHECKING:
    from .attempt import Attempt


class LiveResult(TaskResult):
    """The result of a running attempt: a field that nobody reads is never built."""

    __slots__ = ("_attempt",)

    def __getattr__(self, name: str) -> Any:
        # Called only while the field is not set.
        if name not in FIELDS:
            raise AttributeError(name)
        value = FIELDS[name](self._attempt)
        object.__setattr__(self, name, value)
        return value


def live_result(attempt: "Attempt") -> Any:
    """Return the result that signals and the context of the attempt show."""
    result = object.__new__(LiveResult)
    object.__setattr__(result, "_attempt", attempt)
    return result


# How each field is made while the task runs.
FIELDS: dict[str, Callable[["Attempt"], Any]] = {
    # Fields that a newer Django has added get their default.
    **{f.name: partial(default_of, f) for f in fields(base.TaskResult)},
    "task": lambda attempt: attempt.task or attempt.as_enqueued(None),
    "id": lambda attempt: _hyphened(attempt.claim.id),
    "status": lambda attempt: TaskResultStatus.RUNNING,
    "enqueued_at": lambda attempt: store.to_datetime(attempt.context.db, attempt.claim.enqueued_at),
    "started_at": lambda attempt: (
        store.to_datetime(attempt.context.db, attempt.claim.started_at)
        or attempt.at(attempt.started)
    ),
    "finished_at": lambda attempt: None,
    "last_attempted_at": lambda attempt: attempt.at(attempt.started),
    "args": lambda attempt: payload.load(attempt.claim.args),
    "kwargs": lambda attempt: payload.load(attempt.claim.kwargs),
    "backend": lambda attempt: attempt.context.alias,
    "errors": lambda attempt: make_errors(outcomes.listed(attempt.claim.errors)),
    "worker_ids": lambda attempt: make_worker_ids(
        payload.load(outcomes.worker_ids(attempt.claim, attempt.context.worker_id)),
        attempt.claim.attempt,
    ),
}


def _hyphened(id: str) -> str:
    """Return the id as results show it; SQLite's text has no hyphens."""
    return id if "-" in id else str(UUID(id))
