"""What the demo's page shows: the last tasks, how they fare, and how many there are."""

import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count

from dbtasks import store
from dbtasks.base.result import FAILED, READY, RUNNING, SUCCESSFUL
from dbtasks.console.terminal import humanize_seconds, printable
from dbtasks.models import Hold, ScheduledTask, Worker

from . import tasks

# Rows on the page, and characters of a result or an error.
SHOWN, LONGEST = 12, 200
# Tasks that may be unfinished before the page takes no more.
MOST_UNFINISHED = 1000


@dataclass(frozen=True)
class Kind:
    """A task that a visitor may start."""

    name: str
    title: str
    about: str
    task: Any


KINDS = {
    kind.name: kind
    for kind in (
        Kind("quick", "Quick", "Says hello, in a millisecond or two.", tasks.greet),
        Kind("slow", "Slow", "Sleeps for 8 seconds, and can be cancelled.", tasks.nap),
        Kind("failing", "Failing", "Raises an error, and is tried three times.", tasks.stumble),
        Kind("async", "Async", "Awaits a thousand things at once, for 2 seconds.", tasks.chat),
    )
}
_BY_PATH = {kind.task.module_path: kind for kind in KINDS.values()}


@dataclass(frozen=True)
class Line:
    """One task, in the words of the page."""

    id: str
    kind: str
    text: str
    # One of "waiting", "running", "done" and "failed"; what people read for it.
    state: str
    label: str
    detail: str
    # From 0 to 1; None unless it runs and its length is known.
    progress: float | None
    timing: str
    can_cancel: bool
    can_retry: bool


# From which the page's script makes others.
BLANK = Line(str(uuid.UUID(int=0)), "", "", "waiting", "", "", None, "", False, False)


def rows() -> Any:
    """Return the rows of the page's tasks."""
    return ScheduledTask.objects.filter(task_path__in=_BY_PATH)


def counts() -> dict[str, int]:
    """Return how many tasks wait, run, went well and failed, and how many runners there are."""
    found = dict(rows().order_by().values_list("status").annotate(Count("id")))
    return {
        "waiting": found.get(READY, 0),
        "running": found.get(RUNNING, 0),
        "done": found.get(SUCCESSFUL, 0),
        "failed": found.get(FAILED, 0),
        "runners": Worker.objects.filter(state=Worker.State.LIVE).count(),
    }


def lines() -> Iterator[Line]:
    """Yield the last tasks, the newest first."""
    now = store.now("default")
    for row in rows().order_by("-id")[:SHOWN]:
        yield line(row, now)


def board() -> dict[str, Any]:
    """Return all that the page shows, as JSON can hold it."""
    return {"counts": counts(), "lines": [asdict(each) for each in lines()]}


def line(row: ScheduledTask, now: datetime) -> Line:
    """Return what the page shows of the row."""
    state, label = _state(row)
    return Line(
        id=str(row.pk),
        kind=_BY_PATH[row.task_path].title,
        text=row.args[0],
        state=state,
        label=label,
        detail=_detail(row),
        progress=_progress(row, now),
        timing=_timing(row, now),
        can_cancel=not row.is_finished and not row.cancel_requested,
        can_retry=row.status == FAILED,
    )


def _state(row: ScheduledTask) -> tuple[str, str]:
    if row.status == SUCCESSFUL:
        return "done", "Done"
    if row.status == FAILED:
        is_cancelled = bool(row.errors) and row.errors[-1][0].endswith(".TaskCancelled")
        return "failed", "Cancelled" if is_cancelled else "Failed"
    if row.status == RUNNING:
        return "running", "Stopping" if row.cancel_requested else "Running"
    return "waiting", "Tried again soon" if row.hold == Hold.SCHEDULED else "Waiting"


def _detail(row: ScheduledTask) -> str:
    """Return the result, or the last error in one line."""
    if row.status == SUCCESSFUL:
        return printable(str(row.return_value), LONGEST)
    if row.errors:
        path, text = row.errors[-1]
        lines = text.strip().splitlines()
        return printable(lines[-1] if lines else path, LONGEST)
    return ""


def _progress(row: ScheduledTask, now: datetime) -> float | None:
    if row.status != RUNNING or row.task_path != tasks.nap.module_path:
        return None
    assert row.last_attempted_at is not None
    passed = (now - row.last_attempted_at).total_seconds()
    return round(min(max(passed / tasks.NAP, 0.0), 1.0), 3)


def _timing(row: ScheduledTask, now: datetime) -> str:
    """Return how long it waited and took, and which attempt it is."""
    parts = []
    # The first start is written when the first attempt ends.
    started_at = row.started_at or row.last_attempted_at
    verb = "waiting for" if started_at is None else "waited"
    parts.append(
        f"{verb} {humanize_seconds(((started_at or now) - row.enqueued_at).total_seconds())}"
    )
    if row.last_attempted_at is not None and row.status != READY:
        end = row.finished_at or now
        verb = "took" if row.is_finished else "running for"
        parts.append(f"{verb} {humanize_seconds((end - row.last_attempted_at).total_seconds())}")
    most = _BY_PATH[row.task_path].task.max_attempts
    if row.attempt and most and most > 1:
        parts.append(f"attempt {row.attempt} of {most}")
    return ", ".join(parts)
