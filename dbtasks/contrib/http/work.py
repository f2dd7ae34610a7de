"""What each endpoint does, and what it answers.

Owns the fields of the answers. Never answers with an argument, a result, an error or anything of
another backend, and never decides who may ask.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any, NamedTuple
from uuid import UUID

from ... import stats, store
from ...backend import backend_of, check_backend
from ...base.result import FINISHED, TaskResult
from ...door import Crowded, Door
from ...execution.bounds import RELEASE_BEFORE
from ...hinted import HintRun, run_hinted
from ...models import ScheduledTask
from ...push import Hint
from ...runner.purger import warn_of_protected
from ...sweeping import Swept, run_due, sweep_through
from ...wakeup import push_of, tell
from ...wakeup.hints import aware
from .body import Age, Flag, Invalid, Kind, Number, QueueName, Statuses
from .config import Mount
from .gate import Full, alone

# The most tasks of one request, and those of a drain that asks for no number.
MAX_TASKS = 1000
DRAIN = 100
# Seconds for which a quarantined row waits until it is alone. Nobody is let in meanwhile.
ALONE_TIMEOUT = 5.0
# Results in one answer.
MAX_RESULTS = 100


class Call(NamedTuple):
    """One request that somebody vouched for."""

    mount: Mount
    # Whether a hint vouched for it, and nobody else.
    is_hint: bool
    given: Mapping[str, Any]
    id: UUID | None
    # On the monotonic clock.
    started: float

    @property
    def max_seconds(self) -> float:
        return float(self.given.get("max_seconds", self.mount.max_seconds))

    def door(self) -> Door:
        """Return what a task may do that runs in this request."""
        deadline, end = self.mount.deadline, self.started + self.max_seconds
        if deadline is not None:
            end = min(end, self.started + deadline - RELEASE_BEFORE)
        return Door(
            alone=partial(_alone, end),
            deadline=None if deadline is None else self.started + deadline,
            interrupts=True,
            # What the request has set for itself, such as its language, does not reach the task.
            fresh_context=True,
            has_ctrl_c=False,
        )


@contextmanager
def _alone(end: float) -> Iterator[None]:
    """Wait until nothing else runs in this process; raise Crowded if that takes too long.

    Nothing starts after `end`, on the monotonic clock.
    """
    left = end - time.monotonic()
    if left <= 0:
        raise Crowded
    with ExitStack() as stack:
        try:
            stack.enter_context(alone(min(left, ALONE_TIMEOUT)))
        except Full:
            raise Crowded from None
        yield


class NotAllowed(Exception):
    """Nobody vouched for what the request asks for; the message is for the log only."""


class Endpoint(NamedTuple):
    """One URL: its methods, whether GET needs allow_get, its parameters, and what it does."""

    scope: str
    method: str
    has_get: bool
    runs_tasks: bool
    kinds: Callable[[Mount], Mapping[str, Kind]]
    work: Callable[[Call], dict[str, Any]]


def sweep(call: Call) -> dict[str, Any]:
    """Do once what a runner does all the time."""
    swept = sweep_through(
        call.door(),
        call.mount.backend,
        max_tasks=call.given.get("max_tasks"),
        max_seconds=call.max_seconds,
        queue_name=None,
        interval=call.mount.interval,
    )
    names = ("ran", "succeeded", "failed", "again", "rescued", "fired", "hinted", "purged")
    return {name: getattr(swept, name) for name in names} | _left(swept)


def run(call: Call) -> dict[str, Any]:
    """Run rows that are due. After a drain hint that leaves some, send one more."""
    queue_name = call.given.get("queue")
    swept = run_due(
        call.door(),
        call.mount.backend,
        max_tasks=call.given.get("max_tasks", DRAIN),
        max_seconds=call.max_seconds,
        queue_name=queue_name,
    )
    if call.is_hint and swept.ran and swept.is_due_left:
        _drain_on(call.mount.backend, queue_name)
    results = [_shown(result) for result in islice(swept.results, MAX_RESULTS)]
    return {"ran": swept.ran} | _left(swept) | {"results": results}


def _drain_on(alias: str, queue_name: str | None) -> None:
    """Send a drain hint, to the queue of the first row that is due."""
    backend, push = backend_of(alias), push_of(alias)
    if backend is None or push is None:
        return
    rows = stats.due_rows(backend.database, alias, None if queue_name is None else [queue_name])
    name = (
        queue_name or rows.order_by("-priority", "id").values_list("queue_name", flat=True).first()
    )
    if name is not None:
        tell(push, [Hint(None, alias, name)])


def run_one(call: Call) -> dict[str, Any]:
    """Run the row if it is due. A hint that comes too early is sent on."""
    allow_retry = call.given.get("allow_retry", False)
    if allow_retry and call.is_hint:
        raise NotAllowed("a hint does not allow a retry")
    done = run_hinted(call.door(), call.mount.backend, str(call.id), allow_retry=allow_retry)
    if done.ran and done.result is not None:
        shown = {"attempt": done.attempt, "seconds": round(done.seconds, 3)}
        return {"ran": True} | _shown(done.result) | shown
    if call.is_hint and done.why == "not due":
        _send_on(call.mount.backend, done)
    return {"ran": False, "id": done.id, "why": done.why, "next_due": _time(done.next_due)}


def _send_on(alias: str, done: HintRun) -> None:
    """Send the hint again, for the time when its row is due."""
    backend, push = backend_of(alias), push_of(alias)
    if backend is None or push is None or done.next_due is None:
        return
    rows = ScheduledTask.objects.using(backend.database).filter(pk=done.id, backend=alias)
    name = rows.values_list("queue_name", flat=True).first()
    if name is not None:
        tell(push, [Hint(done.id, alias, name, done.attempt, run_after=done.next_due)])


def status(call: Call) -> dict[str, Any]:
    """Count the rows that have not finished, and those that failed."""
    alias, queue_name = call.mount.backend, call.given.get("queue")
    db = check_backend(alias).database
    found = stats.summary(db, alias, queue_name)
    age = found.oldest_due_seconds
    return {
        "backend": alias,
        "due": found.due,
        "scheduled": found.scheduled,
        "running": found.running,
        "failed": found.failed,
        "oldest_due_seconds": age if age is None else round(age, 3),
        "next_due": _time(found.next_due),
        "workers": found.workers,
        "time": _time(found.time),
    }


def purge(call: Call) -> dict[str, Any]:
    """Delete finished rows: those whose retention is over, or all of an age."""
    alias, given = call.mount.backend, call.given
    db, age = check_backend(alias).database, given.get("older_than")
    if age is None and "status" in given:
        raise Invalid("'status' needs 'older_than': a retention that is over has no status.")
    if age is None:
        rows = ScheduledTask.objects.using(db).finished().filter(backend=alias)
        rows = rows.filter(delete_after__lte=store.now(db))
        on_protected = partial(warn_of_protected, alias)
        batches = iter(partial(store.purge, db, alias, on_protected), 0)
    else:
        chosen = {"backend": alias, "statuses": given.get("status", FINISHED)}
        rows = store.older(db, age, **chosen)
        batches = store.purge_older(db, age, **chosen)
    if given.get("dry_run"):
        return {"would_delete": rows.count()}
    end, deleted = call.started + call.max_seconds, 0
    for count in batches:
        deleted += count
        if time.monotonic() >= end:
            break
    return {"deleted": deleted, "left": rows.exists()}


def _left(swept: Swept) -> dict[str, Any]:
    return {
        "due_left": swept.is_due_left,
        "next_due": _time(swept.next_due),
        "seconds": round(swept.seconds, 3),
    }


def _shown(result: TaskResult) -> dict[str, Any]:
    return {
        "id": result.id,
        "status": result.status.value,
        "task": result.task.module_path,
    }


def _time(at: datetime | None) -> str | None:
    """Return the time in UTC, in ISO format."""
    when = aware(at)
    return None if when is None else when.astimezone(UTC).isoformat(timespec="milliseconds")


def _kinds_of_sweep(mount: Mount) -> dict[str, Kind]:
    return {
        "max_tasks": Number(1, MAX_TASKS, is_whole=True),
        "max_seconds": Number(1, mount.max_seconds),
    }


ENDPOINTS = {
    each.scope: each
    for each in (
        Endpoint("sweep", "POST", True, True, _kinds_of_sweep, sweep),
        Endpoint(
            *("run", "POST", False, True),
            lambda mount: _kinds_of_sweep(mount) | {"queue": QueueName()},
            run,
        ),
        Endpoint("run-one", "POST", False, True, lambda mount: {"allow_retry": Flag()}, run_one),
        Endpoint("status", "GET", True, False, lambda mount: {"queue": QueueName()}, status),
        Endpoint(
            *("purge", "POST", True, False),
            lambda mount: {
                "older_than": Age(),
                "status": Statuses(),
                "dry_run": Flag(),
                "max_seconds": Number(1, mount.max_seconds),
            },
            purge,
        ),
    )
}
