"""Every write to schedules: which there are, and which ticks have been fired.

Owns the transitions of PeriodicTask rows, and the rows they fire. Never calls a project's code: the
caller passes the rows. The runner that moves `next_tick` fires the tick, in one transaction with
its row. A unique index on key and tick is the second guard.

    declare     ∅ → there, as the settings say; a new schedule moves the next tick
    see         updates seen_at, so that the schedule is not deleted
    fire        next_tick → a later one, and a READY row for each tick due
    run_now     writes a READY row for this moment; the next tick stays
    pause       → paused: nothing is fired
    resume      paused → not, from the next tick after now
    save        in the admin: ∅ → there, or changed
    forget      → deleted
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from django.db import connections, transaction
from django.db.models import Q
from django.db.models.expressions import RawSQL

from ..base.result import FINISHED
from ..models import TABLE, PeriodicTask, ScheduledTask, instant, microseconds
from ..schedule.periodic import ScheduleEntry
from ..schedule.rules import Schedule
from .rows import NewTask, hold_of
from .unit import adapted, dialect, unit_of_work

SETTINGS, ADMIN = PeriodicTask.Origin.SETTINGS, PeriodicTask.Origin.ADMIN
# The most schedules that one peek returns. Another peek follows if one was due.
BATCH = 100
# How long a schedule is kept that no runner has in its settings any more. It may belong to another
# deployment, which is down.
REMEMBERED = timedelta(days=7)


def now(db: str) -> datetime:
    """Return the database's time, in UTC."""
    connection = connections[db]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {dialect(connection).microseconds(connection)}")
        return instant(cursor.fetchone()[0])


def of(db: str, backend: str) -> Any:
    """Return the backend's schedules, by key."""
    return PeriodicTask.objects.using(db).filter(backend=backend).order_by("key")


class SchedulePeek(NamedTuple):
    """What a peek at the schedules shows."""

    # The database's time; None if there is no schedule.
    now: datetime | None
    # Schedules whose next tick has come, the longest due first, and the first tick of the others.
    due: list[PeriodicTask]
    next_tick: datetime | None


def peek(db: str, backend: str, keys: Iterable[str], *, but: Iterable[int] = ()) -> SchedulePeek:
    """Read, in one statement, the schedules with those keys and those made in the admin.

    Paused schedules are left out, and those with the ids `but`.
    """
    connection = connections[db]
    rows = of(db, backend).filter(Q(origin=ADMIN) | Q(key__in=list(keys)), paused=False)
    if ids := list(but):
        rows = rows.exclude(pk__in=ids)
    clock = RawSQL(dialect(connection).microseconds(connection), ())
    found = list(rows.order_by("next_tick").annotate(clock=clock)[:BATCH])
    if not found:
        return SchedulePeek(None, [], None)
    at = instant(found[0].clock)
    due = [row for row in found if row.next_tick <= at]
    return SchedulePeek(at, due, found[len(due)].next_tick if len(due) < len(found) else None)


def declare(db: str, backend: str, entries: Iterable[ScheduleEntry]) -> list[str]:
    """Bring the schedules in line with this process's settings.

    Return the keys that schedules made in the admin already have: those are left as they are. A
    schedule that changes continues with its next tick after now, unless a tick is overdue: that one
    still fires. A paused schedule stays paused. Other schedules are left alone, and deleted when no
    runner has had them in its settings for a week.
    """
    at = now(db)
    entries = list(entries)
    taken = [entry.key for entry in entries if not _declare(db, backend, entry, at)]
    see(db, backend, [entry.key for entry in entries])
    old = of(db, backend).filter(origin=SETTINGS, seen_at__lt=at - REMEMBERED)
    unit_of_work(db, lambda *_: old._raw_delete(db))
    return taken


def see(db: str, backend: str, keys: Iterable[str]) -> bool:
    """Note that a runner has schedules with those keys in its settings; return whether all exist.

    One that was made in the admin counts as well.
    """
    keys, at = list(keys), now(db)
    rows = of(db, backend).filter(key__in=keys)
    return unit_of_work(db, lambda *_: int(rows.update(seen_at=at))) >= len(keys)


def _declare(db: str, backend: str, entry: ScheduleEntry, at: datetime) -> bool:
    """Create or update a schedule; return False if one made in the admin has its key."""
    says = {
        "task_path": entry.task_path,
        "spec": entry.schedule.text,
        "timezone": str(entry.schedule.zone),
        "retain": "" if entry.retain is None else str(entry.retain),
        "missed": entry.missed,
        "overlap": entry.overlap,
    }
    rows = of(db, backend).filter(key=entry.key)
    while True:
        row = rows.first()
        if row is None:
            new = PeriodicTask(
                backend=backend,
                key=entry.key,
                origin=SETTINGS,
                next_tick=entry.schedule.next(at),
                seen_at=at,
                **says,
            )
            unit_of_work(db, lambda *_, new=new: rows.bulk_create([new], ignore_conflicts=True))
        elif row.origin != SETTINGS:
            return False
        else:
            same = all(getattr(row, name) == value for name, value in says.items())
            change = partial(_change, rows, row, says, entry.schedule, at)
            if same or unit_of_work(db, lambda *_, change=change: change()):
                return True


def _change(
    rows: Any, row: PeriodicTask, says: dict[str, Any], schedule: Schedule, at: datetime
) -> int:
    """Change the schedule unless it has changed since it was read; return how many were changed."""
    changed = (row.spec, row.timezone) != (says["spec"], says["timezone"])
    move = {"next_tick": schedule.next(at)} if changed and row.next_tick > at else {}
    return int(_unmoved(rows, row).update(**says, **move))


def _unmoved(rows: Any, row: PeriodicTask) -> Any:
    """Return the row, as a queryset, if it still has the schedule and the ticks that were seen."""
    seen = {name: getattr(row, name) for name in ("spec", "timezone", "next_tick", "last_tick")}
    return rows.filter(pk=row.pk, **seen)


class Tick(NamedTuple):
    """A tick to fire, and the row to write for it."""

    at: datetime
    row: NewTask


class Fired(NamedTuple):
    """What firing the ticks of one schedule has done."""

    # The ticks whose row was written.
    ticks: list[Tick]
    # True if nothing was written, because the previous run has not finished.
    overlaps: bool = False


def fire(
    db: str,
    seen: PeriodicTask,
    ticks: Sequence[Tick],
    next_tick: datetime,
    skipped_tick: datetime | None = None,
) -> Fired | None:
    """Move the schedule to `next_tick`, and write the rows of its ticks that are due.

    Return None, and write nothing, if the schedule was moved, paused or changed since it was seen.
    `skipped_tick` is the last tick that is not to run. Without `overlap` no row is written while
    the previous run has not finished.
    """

    def work(*_: Any) -> Fired | None:
        with transaction.atomic(db):
            rows = _unmoved(PeriodicTask.objects.using(db), seen).filter(paused=False)
            last = {"last_tick": ticks[-1].at} if ticks else {}
            skipped = {"skipped_tick": skipped_tick} if skipped_tick else {}
            if not rows.update(next_tick=next_tick, **last, **skipped):
                return None
            if ticks and not seen.overlap and _is_unfinished(db, seen):
                _skip(db, seen, ticks[-1].at)
                return Fired([], overlaps=True)
            return Fired([tick for tick in ticks if _write(db, seen, tick)])

    return unit_of_work(db, work)


def _skip(db: str, seen: PeriodicTask, tick: datetime) -> None:
    own = PeriodicTask.objects.using(db).filter(pk=seen.pk)
    own.update(last_tick=seen.last_tick, skipped_tick=tick)


def _is_unfinished(db: str, seen: PeriodicTask) -> bool:
    """Return whether the schedule's last run has not finished."""
    runs = ScheduledTask.objects.using(db).filter(backend=seen.backend, schedule_key=seen.key)
    last = runs.filter(tick=seen.last_tick)
    return seen.last_tick is not None and last.exclude(status__in=FINISHED).exists()


def _write(db: str, seen: PeriodicTask, tick: Tick) -> bool:
    """Write the row unless the tick has one; return whether that was done."""
    connection = connections[db]
    [row] = adapted(connection, [tick.row])
    names = ", ".join([*NewTask._fields, "schedule_key", "tick", "status", "hold"])
    marks = ", ".join(["%s"] * (len(NewTask._fields) + 2))
    sql = dialect(connection)
    begin, end = sql.INSERT_NEW
    hold = hold_of("NULL", "0", sql.now(connection))
    with connection.cursor() as cursor:
        cursor.execute(
            f"{begin} {TABLE} ({names}) VALUES ({marks}, 'READY', {hold}) {end}",
            [*row, seen.key, microseconds(tick.at)],
        )
        return bool(cursor.rowcount)


def run_now(db: str, seen: PeriodicTask, tick: Tick) -> bool:
    """Write a row for `tick`, whatever the schedule says; return whether that was done.

    It is not done if the schedule has moved since it was seen, nor, without `overlap`, while the
    last run has not finished.
    """

    def work(*_: Any) -> bool:
        with transaction.atomic(db):
            rows = _unmoved(PeriodicTask.objects.using(db), seen)
            if not rows.update(last_tick=tick.at):
                return False
            if not seen.overlap and _is_unfinished(db, seen):
                transaction.set_rollback(True, using=db)
                return False
            return _write(db, seen, tick)

    return unit_of_work(db, work)


def pause(db: str, ids: Iterable[int]) -> int:
    """Pause those schedules; return how many were not paused before."""
    rows = PeriodicTask.objects.using(db).filter(pk__in=list(ids), paused=False)
    return unit_of_work(db, lambda *_: rows.update(paused=True))


def resume(db: str, ids: Iterable[int]) -> int:
    """Resume those schedules from their next tick after now; return how many were paused.

    Ticks that came while they were paused do not count as missed.
    """
    rows = PeriodicTask.objects.using(db).filter(pk__in=list(ids), paused=True)
    at = now(db)
    return unit_of_work(db, lambda *_: sum(_resume(rows, row, at) for row in rows))


def _resume(rows: Any, row: PeriodicTask, at: datetime) -> int:
    return int(rows.filter(pk=row.pk).update(paused=False, next_tick=row.schedule.next(at)))


def save(db: str, row: PeriodicTask) -> None:
    """Write a schedule that was made or changed in the admin; a new rule applies from now.

    Raise ScheduleError if it has no valid schedule; nothing else is checked.
    """
    before = PeriodicTask.objects.using(db).filter(pk=row.pk).first()
    if before is None:
        row.next_tick = row.schedule.next(now(db))
        unit_of_work(db, lambda *_: row.save(using=db, force_insert=True))
        return
    # Runners fire ticks and people pause the schedule meanwhile, so these are not written.
    fields = {f.name for f in PeriodicTask._meta.concrete_fields if not f.primary_key}
    fields -= {"next_tick", "last_tick", "skipped_tick", "paused"}
    if (before.spec, before.timezone) != (row.spec, row.timezone):
        row.next_tick = row.schedule.next(now(db))
        fields.add("next_tick")
    unit_of_work(db, lambda *_: row.save(using=db, update_fields=fields))


def forget(db: str, seen: PeriodicTask) -> int:
    """Delete the schedule; return whether that was done. Rows that it fired stay.

    It is not done if a runner has reported, since it was seen, that it has the schedule.
    """
    rows = PeriodicTask.objects.using(db).filter(pk=seen.pk)
    if seen.origin == SETTINGS:
        rows = rows.filter(seen_at=seen.seen_at)
    return unit_of_work(db, lambda *_: int(rows._raw_delete(db)))
