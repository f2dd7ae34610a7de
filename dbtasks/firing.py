"""Which ticks of a schedule are due, and what they enqueue.

Owns the reading of schedules, the choice among missed ticks, and the rows that ticks become. Never
waits for a tick: the runner's scheduler does.
"""

from datetime import datetime, timedelta
from inspect import signature
from typing import Any

from django.tasks import base
from django.tasks.exceptions import InvalidTask

from .backend import DatabaseBackend
from .base import payload, registry
from .base.result import TaskResult
from .exceptions import DurationError, ScheduleError, TaskNotFound
from .models import PeriodicTask
from .schedule.duration import duration_or_zero
from .schedule.periodic import ScheduleEntry, decorated
from .schedule.rules import Schedule
from .store import periodic, pk_text

# A tick that is fired later than this was missed, where somebody looks all the time.
GRACE = timedelta(seconds=10)
# The most missed ticks of one schedule that are run.
MAX_MISSED = 100


def entries_of(backend: DatabaseBackend) -> dict[str, ScheduleEntry]:
    """Return by key the schedules of settings and decorators. Task modules must be imported."""
    own = backend.config.periodic
    return decorated(backend.alias, {entry.task_path for entry in own.values()}) | dict(own)


def problems(backend: DatabaseBackend) -> list[str]:
    """Return a sentence for each schedule of the backend that cannot be fired."""
    found = []
    for entry in entries_of(backend).values():
        try:
            check_call(backend, entry, entry.args, entry.kwargs)
        except ScheduleError as error:
            found.append(f"TASKS[{backend.alias!r}]['OPTIONS']['periodic']: {error}")
    return found


def check_call(backend: DatabaseBackend, entry: ScheduleEntry, args: Any, kwargs: Any) -> base.Task:
    """Return the entry's task as it is enqueued; raise ScheduleError if the arguments do not fit.

    Arguments that a function returns are not checked.
    """
    path = entry.task_path
    try:
        found = registry.find(path, backend.config.task_modules)
        task = found.using(
            backend=backend.alias, queue_name=entry.queue_name, priority=entry.priority
        )
    except TaskNotFound as error:
        raise ScheduleError(str(error)) from None
    except InvalidTask as error:
        raise ScheduleError(f"{path}: {error}") from None
    if callable(args) or callable(kwargs):
        return task
    context = (None,) if task.takes_context else ()
    try:
        signature(task.func).bind(*context, *args, **kwargs)
        payload.dump(list(args), "args", backend.config.max_payload)
        payload.dump(dict(kwargs), "kwargs", backend.config.max_payload)
    except (TypeError, ValueError) as error:
        raise ScheduleError(f"{path} cannot be called with these arguments: {error}") from None
    return task


def due_ticks(
    schedule: Schedule, row: PeriodicTask, now: datetime, grace: timedelta = GRACE
) -> tuple[list[datetime], datetime | None]:
    """Return the ticks to fire now, in order, and the last of those to skip, or None.

    A tick that is fired more than `grace` late was missed.
    """
    most = MAX_MISSED if row.missed == PeriodicTask.Missed.ALL and row.overlap else 1
    # One more than are run, to know whether there are others.
    due = [row.next_tick, *schedule.latest(row.next_tick, now, most + 1)]
    ticks, rest = due[-most:], due[:-most]
    if row.missed == PeriodicTask.Missed.SKIP and now - ticks[-1] > grace:
        return [], ticks[-1]
    return ticks, rest[-1] if rest else None


def make(backend: DatabaseBackend, entry: ScheduleEntry) -> tuple[Any, TaskResult]:
    """Return the row of one run of the entry, and its result; nothing is written yet.

    Raise ScheduleError if its task does not exist or cannot be called with these arguments.
    """
    args, kwargs = entry.call()
    task = check_call(backend, entry, args, kwargs)
    row, result = backend.prepare(task, args, kwargs)
    if entry.retain is not None:
        policy = payload.load(row.policy) if row.policy else {}
        policy |= {"retain": entry.retain.total_seconds()}
        row = row._replace(policy=payload.text(policy))
    return row._replace(id=pk_text(backend.database, row.id)), result


def entry_of(row: PeriodicTask) -> ScheduleEntry:
    """Return the entry of a schedule made in the admin; raise ScheduleError if it is not valid."""
    try:
        retain = duration_or_zero(row.retain) if row.retain else None
    except DurationError as error:
        raise ScheduleError(f"retain: {error}") from None
    args, kwargs = row.args or [], row.kwargs or {}
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise ScheduleError("args must be a list, and kwargs a dict.")
    return ScheduleEntry(row.key, row.task_path, row.schedule, args, kwargs, retain)


def run_now(backend: DatabaseBackend, row: PeriodicTask) -> bool:
    """Enqueue one run of the schedule at once; return whether that was done.

    Without `overlap` nothing is enqueued while the previous run has not finished. Raise
    ScheduleError if this process cannot run it.
    """
    registry.discover(backend.config.task_modules)
    made_here = row.origin == periodic.ADMIN
    entry = entry_of(row) if made_here else entries_of(backend).get(row.key)
    if entry is None:
        raise ScheduleError(f"{row.key!r} is not in the settings of this process.")
    try:
        new, result = make(backend, entry)
    except ScheduleError:
        raise
    except Exception as error:  # whatever the project's function for arguments raises
        raise ScheduleError(f"the arguments of {row.key!r} cannot be made: {error!r}") from error
    db = backend.database
    done = periodic.run_now(db, row, periodic.Tick(periodic.now(db), new))
    if done:
        backend.announce([new], [result])
    return done
