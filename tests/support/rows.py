"""Builders for the store's tests."""

import uuid
from collections import Counter
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import connections
from django.db.models import F
from django.utils import timezone

from dbtasks import store
from dbtasks.backend import DatabaseBackend
from dbtasks.calls import uuid7
from dbtasks.execution import unknown
from dbtasks.execution.outcomes import not_started
from dbtasks.models import ScheduledTask

DB = "default"
DAY = timedelta(days=1)


class KeepsADay(DatabaseBackend):
    """The default backend, with fixed policies: failed rows stay for a day."""

    def __init__(self, may_retry: bool = True) -> None:
        super().__init__("default", settings.TASKS["default"])
        self._may_retry = may_retry

    def retain_failed(self, row: ScheduledTask) -> timedelta:
        return DAY

    def may_retry_lost(self, row: ScheduledTask) -> bool:
        return self._may_retry


def make_task(**values: Any) -> uuid.UUID:
    """Enqueue a row with those values; return its id."""
    id = values.pop("id", None) or uuid7()
    row = store.NewTask(
        id=store.pk_text(DB, id),
        task_path="tests.tasks.add",
        backend="default",
        queue_name="default",
        priority=0,
        args="[1,2]",
        kwargs="{}",
        policy=None,
        meta=None,
        enqueued_at=timezone.now(),
        run_after=None,
    )
    store.enqueue(DB, [row._replace(**values)])
    return id


def make_claim(worker: str = "w1", **values: Any) -> store.Claim:
    """Enqueue a row and claim it; return the claim."""
    id = make_task(**values)
    claim = store.claim_one(DB, values.get("backend", "default"), worker, id)
    assert claim is not None
    return claim


def outcome(claim: store.Claim, status: str = "SUCCESSFUL", **values: Any) -> store.Outcome:
    """Return an outcome of the claim."""
    ended = claim.claimed_at + timedelta(seconds=1)
    finished = status in ("SUCCESSFUL", "FAILED")
    return store.Outcome(
        id=claim.id,
        fence=claim.fence,
        status=status,
        attempt=claim.attempt,
        failures=0,
        lost=0,
        releases=0,
        run_after=None,
        started_at=claim.claimed_at,
        last_attempted_at=claim.claimed_at,
        finished_at=ended if finished else None,
        delete_after=None,
        errors=None,
        worker_ids='["w1"]',
        return_value="3" if status == "SUCCESSFUL" else None,
    )._replace(**values)


def row(id: Any) -> ScheduledTask:
    """Return the row as it stands."""
    return ScheduledTask.objects.using(DB).get(pk=id)


def ids(claims: list[Any]) -> list[uuid.UUID]:
    """Return the ids of claims or places as the ORM gives them."""
    return [
        claim.id if isinstance(claim.id, uuid.UUID) else uuid.UUID(claim.id) for claim in claims
    ]


def vendor() -> str:
    """Return which database the tests run on."""
    return connections[DB].vendor


def release(claims: list[store.Claim]) -> int:
    """Requeue claims whose task was not started, as a runner does; return how many stood."""
    return len(store.settle(DB, [not_started(DB, claim) for claim in claims]))


def statuses() -> dict[str, int]:
    """Return how many rows have each status."""
    return dict(Counter(ScheduledTask.objects.values_list("status", flat=True)))


def wait_out(id: Any) -> None:
    """Make the row as old as one that has waited long enough for a process that knows its task."""
    rows = ScheduledTask.objects.using(DB).filter(pk=id)
    # With a margin: on SQLite a claim that waits for the file has read the clock before.
    long_ago = timezone.now() - unknown.PATIENCE - timedelta(minutes=1)
    rows.update(enqueued_at=long_ago, fence=F("fence") + unknown.MIN_TRIES)
