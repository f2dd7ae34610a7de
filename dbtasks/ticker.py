"""Fires the ticks of schedules, in a thread and with a connection of its own.

Owns when a tick is fired and what is run for it. Never decides alone: any runner may fire a tick,
and the store's guard makes it one. The database's clock says what is due.
"""

import logging
import random
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from inspect import signature
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections, reset_queries
from django.tasks import base
from django.tasks.exceptions import InvalidTask

from . import payload, registry
from .backend import DatabaseBackend
from .exceptions import DurationError, ScheduleError, TaskNotFound
from .execute import leave_clean
from .models import PeriodicTask
from .periodic import Plan, decorated
from .schedule import Duration, Schedule
from .store import key, periodic
from .task import TaskResult

logger = logging.getLogger("dbtasks.periodic")

# Seconds between two looks, so that schedules made or changed elsewhere are seen; and where there
# is no schedule at all.
LOOK_INTERVAL, IDLE_INTERVAL = 5.0, 10.0
# Seconds between two signs that a runner has its schedules in its settings.
SEEN_INTERVAL = 3600.0
# Seconds by which runners that wait for the same tick differ, so that most find it fired.
SPREAD = 0.05
# Seconds before a failed round is tried again: the first time, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0
# Seconds before a schedule that cannot be fired is tried again.
AILING_PAUSE = 5.0
# A tick fired later than that was missed.
GRACE = timedelta(seconds=10)
# Missed ticks of one schedule that are run, however many there were.
MAX_MISSED = 100


def plans_of(backend: DatabaseBackend) -> dict[str, Plan]:
    """Return by key what settings and decorators say; task modules are imported by then."""
    own = backend.config.periodic
    return decorated(backend.alias, {plan.task_path for plan in own.values()}) | dict(own)


def problems(backend: DatabaseBackend) -> list[str]:
    """Return a sentence for each schedule of the backend that cannot be fired."""
    found = []
    for plan in plans_of(backend).values():
        try:
            check_call(backend, plan.task_path, plan.args, plan.kwargs)
        except ScheduleError as error:
            found.append(f"TASKS[{backend.alias!r}]['OPTIONS']['periodic']: {error}")
    return found


def check_call(backend: DatabaseBackend, path: str, args: Any, kwargs: Any) -> base.Task:
    """Return the task as that backend runs it; raise ScheduleError if it cannot be called so.

    Arguments that only a function tells are not checked.
    """
    try:
        task = registry.find(path, backend.config.task_modules).using(backend=backend.alias)
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
        raise ScheduleError(f"{path} cannot be called so: {error}") from None
    return task


class Ticker:
    """Declares a runner's schedules and fires the due ticks of its backend.

    Raise ImproperlyConfigured if one of its schedules cannot be fired.
    """

    def __init__(self, backend: DatabaseBackend) -> None:
        if wrong := problems(backend):
            raise ImproperlyConfigured(" ".join(wrong))
        self._backend, self._db = backend, backend.database
        self._plans: Mapping[str, Plan] = plans_of(backend)
        self._declared, self._seen_at = False, 0.0
        # By id of a schedule that could not be fired: when to try again, on the monotonic clock.
        self._ailing: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="dbtasks-ticker", daemon=True)

    def start(self) -> None:
        """Fire ticks from now on."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End, waiting at most `timeout` seconds."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _work(self) -> None:
        wait, pause = 0.0, FIRST_PAUSE
        try:
            while not self._stop.wait(wait):
                try:
                    wait, pause = self.round(), FIRST_PAUSE
                except Exception as error:  # whatever the database raises: it comes back
                    logger.warning("Ticks wait for the database: %s", error)
                    connections.close_all()
                    wait, pause = pause, min(pause * 2, LONGEST_PAUSE)
        finally:
            connections.close_all()

    def round(self) -> float:
        """Fire what is due; return the seconds until the next look."""
        # With DEBUG a connection would remember every statement.
        reset_queries()
        self._keep()
        began = time.monotonic()
        look = periodic.look(self._db, self._backend.alias, self._plans)
        if look.now is None:
            return random.uniform(0.75, 1.0) * IDLE_INTERVAL
        due = [row for row in look.due if began >= self._ailing.get(row.pk, 0.0)]
        for row in due:
            self._try(row, look.now)
        if due:
            # Others may have come due meanwhile.
            return 0.0
        wait = random.uniform(0.75, 1.0) * LOOK_INTERVAL
        if look.next_tick is not None:
            until = (look.next_tick - look.now).total_seconds() + random.uniform(0, SPREAD)
            wait = min(wait, until - (time.monotonic() - began))
        return max(0.0, wait)

    def _keep(self) -> None:
        """See to it that the schedules are in the table, and stay there."""
        now = time.monotonic()
        if self._declared and now < self._seen_at + SEEN_INTERVAL:
            return
        alias, plans = self._backend.alias, self._plans
        if not self._declared or not periodic.see(self._db, alias, plans):
            for taken in periodic.declare(self._db, alias, plans.values()):
                logger.error("%r is the key of a schedule made in the admin; rename one", taken)
        self._declared, self._seen_at = True, now

    def catch_up(self) -> None:
        """Fire, in this thread, what is due now."""
        while not self.round():
            pass

    def _try(self, row: PeriodicTask, now: datetime) -> None:
        """Fire the ticks of one schedule; a broken one must not keep the others from theirs."""
        inside = connections[self._db].in_atomic_block
        try:
            schedule = row.schedule
            ticks, skipped = due_ticks(schedule, row, now)
            plan = self._plans[row.key] if row.origin == periodic.SETTINGS else plan_of(row)
            made = [(at, *make(self._backend, plan)) for at in ticks]
            next_tick = schedule.next(now)
        except Exception:  # a project's function for arguments, or what a person has written
            logger.exception("%s cannot be fired; its tick waits", row.key)
            self._ailing[row.pk] = time.monotonic() + AILING_PAUSE
            return
        finally:
            # What a project's function has left open must not swallow the tick.
            if not inside:
                leave_clean(row.task_path, keep=True)
        runs = [periodic.Tick(at, new) for at, new, _ in made]
        fired = periodic.fire(self._db, row, runs, next_tick, skipped)
        if fired is None:
            return
        if fired.overlaps:
            logger.warning("%s skipped %s: the run before has not finished", row.key, ticks[-1])
        elif skipped is not None:
            logger.warning("%s skipped what it missed up to %s", row.key, skipped)
        written = {tick.row.id for tick in fired.ticks}
        self._backend.announce([result for _, new, result in made if new.id in written])


def due_ticks(
    schedule: Schedule, row: PeriodicTask, now: datetime
) -> tuple[list[datetime], datetime | None]:
    """Return the ticks to fire now, in order, and the last of those that are not."""
    most = MAX_MISSED if row.missed == PeriodicTask.Missed.ALL and row.overlap else 1
    # One more tells whether there were others.
    due = [row.next_tick, *schedule.latest(row.next_tick, now, most + 1)]
    ticks, rest = due[-most:], due[:-most]
    if row.missed == PeriodicTask.Missed.SKIP and now - ticks[-1] > GRACE:
        return [], ticks[-1]
    return ticks, rest[-1] if rest else None


def make(backend: DatabaseBackend, plan: Plan) -> tuple[Any, TaskResult]:
    """Return the row of one run of the plan, and its result; nothing is written yet.

    Raise ScheduleError if its task is none or cannot be called so.
    """
    args, kwargs = plan.call()
    task = check_call(backend, plan.task_path, args, kwargs)
    row, result = backend.prepare(task, args, kwargs)
    if plan.retain is not None:
        policy = payload.load(row.policy) if row.policy else {}
        policy |= {"retain": plan.retain.total_seconds()}
        row = row._replace(policy=payload.text(policy))
    return row._replace(id=key(backend.database, row.id)), result


def plan_of(row: PeriodicTask) -> Plan:
    """Return what a schedule made by people stands for; raise ScheduleError if it is not valid."""
    try:
        retain = Duration(row.retain) if row.retain else None
    except DurationError as error:
        raise ScheduleError(f"retain: {error}") from None
    args, kwargs = row.args or [], row.kwargs or {}
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise ScheduleError("args must be a list, and kwargs a dict.")
    return Plan(row.key, row.task_path, row.schedule, args, kwargs, retain)


def run_now(backend: DatabaseBackend, row: PeriodicTask) -> bool:
    """Enqueue one run of the schedule at once; return whether that was done.

    Not if, without `overlap`, the run before has not finished. Raise ScheduleError if it cannot be
    run from here.
    """
    registry.discover()
    made_here = row.origin == periodic.ADMIN
    plan = plan_of(row) if made_here else plans_of(backend).get(row.key)
    if plan is None:
        raise ScheduleError(f"{row.key!r} is not in the settings of this process.")
    try:
        new, result = make(backend, plan)
    except ScheduleError:
        raise
    except Exception as error:  # whatever the project's function for arguments raises
        raise ScheduleError(f"the arguments of {row.key!r} cannot be told: {error!r}") from error
    db = backend.database
    done = periodic.run_now(db, row, periodic.Tick(periodic.now(db), new))
    if done:
        backend.announce([result])
    return done
