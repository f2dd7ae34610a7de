"""Schedules in the database: one row per tick, whoever fires it, whatever happens meanwhile."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

from django.db import IntegrityError, connections, transaction
from django.test import TransactionTestCase, override_settings
from django.utils import timezone

from dbtasks.calls import uuid7
from dbtasks.models import PeriodicTask, ScheduledTask
from dbtasks.schedule.periodic import read
from dbtasks.stats import last_run
from dbtasks.store import NewTask, periodic, pk_text

from ..support.rows import DB, make_task, row

HOUR = timedelta(hours=1)
PATH = "tests.tasks.add"


def declare(backend: str = "default", **specs: Any) -> list[str]:
    """Declare schedules whose keys are the names; return the keys that were taken."""
    entries = {name: read({f"tests.tasks.{name}": spec}) for name, spec in specs.items()}
    return periodic.declare(
        DB, backend, [entry for some in entries.values() for entry in some.values()]
    )


def schedule(name: str = "add", backend: str = "default") -> PeriodicTask:
    return PeriodicTask.objects.using(DB).get(key=f"tests.tasks.{name}", backend=backend)


def put(name: str = "add", **values: Any) -> PeriodicTask:
    """Change a schedule's row behind the store's back; return it."""
    PeriodicTask.objects.using(DB).filter(pk=schedule(name).pk).update(**values)
    return schedule(name)


def tick_of(at: datetime) -> periodic.Tick:
    new = NewTask(
        pk_text(DB, uuid7()),
        PATH,
        "default",
        "default",
        0,
        "[1,2]",
        "{}",
        None,
        None,
        timezone.now(),
        None,
    )
    return periodic.Tick(at, new)


def fire(seen: PeriodicTask, *ticks: datetime, **values: Any) -> periodic.Fired | None:
    """Fire the ticks, or the next one, of the schedule as it was seen."""
    due = [tick_of(at) for at in ticks or [seen.next_tick]]
    return periodic.fire(DB, seen, due, values.pop("next_tick", seen.next_tick + HOUR), **values)


class FireTests(TransactionTestCase):
    """fire"""

    def setUp(self) -> None:
        declare(add="1h")
        self.seen = put(next_tick=periodic.now(DB) - timedelta(minutes=1))

    def test_fire_moves_the_schedule_and_writes_the_row(self):
        """The row is READY and due, and says which tick of which schedule it is."""
        fired = fire(self.seen)
        [task] = ScheduledTask.objects.all()

        assert fired is not None
        self.assertEqual([self.seen.next_tick], [tick.at for tick in fired.ticks])
        self.assertEqual(("READY", "", True), (task.status, task.hold, task.periodic))
        self.assertEqual((self.seen.key, self.seen.next_tick), (task.schedule_key, task.tick))
        self.assertEqual(self.seen.next_tick, schedule().last_tick)
        self.assertEqual(self.seen.next_tick + HOUR, schedule().next_tick)

    def test_only_one_of_many_fires_a_tick(self):
        """Ten connections that saw the same tick write one row."""
        barrier, results = threading.Barrier(10), []

        def try_it() -> None:
            try:
                barrier.wait(20)
                results.append(fire(self.seen))
            finally:
                connections.close_all()

        threads = [threading.Thread(target=try_it) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

        self.assertEqual(10, len(results))
        self.assertEqual(1, len([fired for fired in results if fired]))
        self.assertEqual(1, ScheduledTask.objects.count())

    def test_the_index_stands_behind_the_guard(self):
        """A schedule that was set back, by whatever mistake, writes no second row for a tick."""
        fire(self.seen)
        again = put(next_tick=self.seen.next_tick)
        fired = fire(again)

        assert fired is not None
        self.assertEqual([], fired.ticks)
        self.assertEqual(1, ScheduledTask.objects.count())

    def test_the_same_key_of_two_backends_is_two_schedules(self):
        """Neither takes the other's tick."""
        declare(backend="other", add="1h")
        other = schedule(backend="other")
        PeriodicTask.objects.filter(pk=other.pk).update(next_tick=self.seen.next_tick)
        fire(self.seen)
        due = tick_of(self.seen.next_tick)
        fired = periodic.fire(
            DB,
            schedule(backend="other"),
            [due._replace(row=due.row._replace(backend="other"))],
            self.seen.next_tick + HOUR,
        )

        assert fired is not None
        self.assertEqual(1, len(fired.ticks))
        self.assertEqual(2, ScheduledTask.objects.count())

    def test_a_crash_between_any_two_statements_loses_no_tick(self):
        """All is undone, and the next one fires it."""
        for broken in ("_write", "_is_unfinished"):
            with (
                self.subTest(broken),
                mock.patch.object(periodic, broken, side_effect=KeyboardInterrupt),
                self.assertRaises(KeyboardInterrupt),
            ):
                PeriodicTask.objects.update(overlap=False)
                fire(schedule())
            self.assertEqual(self.seen.next_tick, schedule().next_tick)
            self.assertEqual(0, ScheduledTask.objects.count())
        PeriodicTask.objects.update(overlap=True)
        fire(schedule())

        self.assertEqual(1, ScheduledTask.objects.count())

    def test_a_paused_schedule_fires_nothing(self):
        """Also for one who saw it before."""
        periodic.pause(DB, [self.seen.pk])

        self.assertIsNone(fire(self.seen))
        self.assertEqual([], periodic.peek(DB, "default", [self.seen.key]).due)

    def test_a_schedule_that_was_changed_meanwhile_fires_nothing_of_the_old_one(self):
        """Its spec is part of what the guard has seen."""
        declare(add="2h")

        self.assertIsNone(fire(self.seen))

    def test_without_overlap_a_tick_is_skipped_while_the_run_before_has_not_finished(self):
        """It says so, moves on, and runs again once that has ended."""
        PeriodicTask.objects.update(overlap=False)
        fire(schedule())
        second = fire(schedule())
        skipped = schedule()
        ScheduledTask.objects.update(status="SUCCESSFUL")
        third = fire(schedule())

        assert second is not None and third is not None
        self.assertTrue(second.overlaps)
        self.assertEqual(self.seen.next_tick + HOUR, skipped.skipped_tick)
        self.assertEqual(self.seen.next_tick, skipped.last_tick)
        self.assertEqual([self.seen.next_tick + 2 * HOUR], [tick.at for tick in third.ticks])

    def test_a_tick_is_kept_to_the_microsecond_in_every_zone(self):
        """The two passes of a repeated hour are two ticks, whatever zone Django has."""
        one = datetime(2026, 11, 1, 5, 30, 0, 123457, tzinfo=UTC)
        for zone in (
            {"USE_TZ": False, "TIME_ZONE": "America/New_York"},
            {"TIME_ZONE": "Asia/Tokyo"},
        ):
            with override_settings(**zone):
                fire(put(next_tick=one), one, one + HOUR)
                ticks = ScheduledTask.objects.order_by("tick").values_list("tick", flat=True)
                self.assertEqual([one, one + HOUR], list(ticks))
            ScheduledTask.objects.all().delete()

    def test_a_peek_shows_the_due_schedules_and_the_next(self):
        """By the database's clock; others' schedules are not shown."""
        declare(subtract="2h", other="1h")
        peek = periodic.peek(DB, "default", ["tests.tasks.add", "tests.tasks.subtract"])

        self.assertEqual(["tests.tasks.add"], [due.key for due in peek.due])
        self.assertEqual(schedule("subtract").next_tick, peek.next_tick)
        self.assertEqual((None, [], None), periodic.peek(DB, "default", []))


class DeclareTests(TransactionTestCase):
    """declare"""

    def test_a_new_schedule_begins_with_its_next_tick(self):
        """Nothing is owed from before it was there."""
        declare(add="1h")

        self.assertTrue(timedelta(0) < schedule().next_tick - periodic.now(DB) <= HOUR)

    def test_a_start_changes_nothing(self):
        """B8, B9: a tick that is owed is not dropped, an interval does not begin anew."""
        declare(add="1d")
        seen = put(next_tick=periodic.now(DB) - HOUR, paused=True)
        declare(add="1d")

        self.assertEqual((seen.next_tick, True), (schedule().next_tick, schedule().paused))

    def test_starts_at_the_same_time_make_one_schedule(self):
        """B7: two runners that start together."""
        barrier = threading.Barrier(4)

        def start() -> None:
            try:
                barrier.wait(20)
                declare(add="1h")
            finally:
                connections.close_all()

        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

        self.assertEqual(1, PeriodicTask.objects.count())

    def test_a_changed_schedule_goes_on_from_now(self):
        """With the new line; the key's other settings follow, what operators did stays."""
        declare(add="1h")
        put(paused=True)
        declare(add="1w")

        self.assertEqual(("1w", True), (schedule().spec, schedule().paused))
        self.assertEqual(
            timedelta(0), (schedule().next_tick - datetime(1970, 1, 1, tzinfo=UTC)) % (168 * HOUR)
        )

    def test_a_changed_schedule_still_owes_its_tick(self):
        """A deploy at the wrong moment loses no run."""
        declare(add="1h")
        seen = put(next_tick=periodic.now(DB) - timedelta(minutes=1))
        declare(add="1w")

        self.assertEqual(seen.next_tick, schedule().next_tick)

    def test_a_changed_zone_is_a_changed_schedule(self):
        """Also when it is Django's own."""
        declare(add="0 0 * * *")
        with override_settings(TIME_ZONE="Asia/Tokyo"):
            declare(add="0 0 * * *")

        self.assertEqual(("Asia/Tokyo", 15), (schedule().timezone, schedule().next_tick.hour))

    def test_others_schedules_are_left_alone(self):
        """B6: those of other backends, of other deployments, and those of people."""
        declare(add="1h")
        declare(backend="b2", add="1h")
        declare(subtract="1h")

        self.assertEqual(3, PeriodicTask.objects.count())

    def test_a_schedule_nobody_names_is_forgotten_after_a_week(self):
        """It may be of a deployment that is down."""
        declare(add="1h")
        put(seen_at=periodic.now(DB) - timedelta(days=6))
        declare(subtract="1h")
        self.assertEqual(2, PeriodicTask.objects.count())
        put(seen_at=periodic.now(DB) - timedelta(days=8))
        declare(subtract="1h")

        self.assertEqual("tests.tasks.subtract", PeriodicTask.objects.get().key)

    def test_a_key_that_people_have_taken_is_theirs(self):
        """The runner says so and leaves it as it is."""
        declare(add="1h")
        put(origin="admin", spec="3h", task_path="tests.tasks.subtract")

        self.assertEqual(["tests.tasks.add"], declare(add="1h"))
        self.assertEqual("3h", schedule().spec)

    def test_waiting_rows_survive_a_start(self):
        """B6, B8: rows that were fired, or requeued, are never deleted by a start."""
        declare(add="1h")
        fire(put(next_tick=periodic.now(DB)))
        declare(add="2h")

        self.assertEqual(1, ScheduledTask.objects.count())


class ByHandTests(TransactionTestCase):
    """run_now, pause, resume, save, forget"""

    def setUp(self) -> None:
        declare(add="1h")

    def test_run_now_adds_a_run_and_leaves_the_schedule(self):
        """It is a run of that schedule, at that moment."""
        seen, at = schedule(), periodic.now(DB)
        self.assertTrue(periodic.run_now(DB, seen, tick_of(at)))
        [task] = ScheduledTask.objects.all()

        self.assertEqual((seen.key, at), (task.schedule_key, task.tick))
        self.assertEqual((seen.next_tick, at), (schedule().next_tick, schedule().last_tick))

    def test_run_now_heeds_overlap(self):
        """A second press while the first run has not finished does nothing."""
        seen = put(overlap=False)
        pressed = [periodic.run_now(DB, schedule(), tick_of(periodic.now(DB))) for _ in range(2)]

        self.assertEqual([True, False], pressed)
        self.assertEqual(1, ScheduledTask.objects.filter(schedule_key=seen.key).count())

    def test_resume_goes_on_from_now(self):
        """What came while it was paused was not missed."""
        seen = put(next_tick=periodic.now(DB) - 5 * HOUR)
        self.assertEqual(1, periodic.pause(DB, [seen.pk]))
        self.assertEqual(0, periodic.pause(DB, [seen.pk]))
        self.assertEqual(1, periodic.resume(DB, [seen.pk]))
        self.assertEqual(0, periodic.resume(DB, [seen.pk]))

        self.assertGreater(schedule().next_tick, periodic.now(DB))

    def test_save_writes_what_people_made_and_leaves_ticks_alone(self):
        """Unless the schedule is another."""
        made = PeriodicTask(
            backend="default", key="mine", origin="admin", task_path=PATH, spec="1h", timezone="UTC"
        )
        periodic.save(DB, made)
        PeriodicTask.objects.filter(pk=made.pk).update(next_tick=periodic.now(DB), paused=True)
        made.args = [1, 2]
        periodic.save(DB, made)
        kept = PeriodicTask.objects.get(pk=made.pk)
        made.spec = "2h"
        periodic.save(DB, made)

        self.assertTrue(kept.paused)
        self.assertEqual([1, 2], kept.args)
        self.assertLess(kept.next_tick, periodic.now(DB))
        self.assertGreater(PeriodicTask.objects.get(pk=made.pk).next_tick, periodic.now(DB))

    def test_forget_leaves_the_rows(self):
        """Of a schedule that is gone its runs stay."""
        fire(put(next_tick=periodic.now(DB)))
        last = last_run(DB, schedule())
        self.assertEqual(ScheduledTask.objects.get(), last)
        self.assertEqual(1, periodic.forget(DB, schedule()))

        self.assertEqual(1, ScheduledTask.objects.count())

    def test_forget_leaves_what_a_runner_has_just_reported(self):
        """A schedule of settings is deleted only as it was seen."""
        put()
        seen = schedule()
        periodic.see(DB, seen.backend, [seen.key])
        self.assertEqual(0, periodic.forget(DB, seen))
        self.assertEqual(1, periodic.forget(DB, schedule()))

    def test_one_tick_has_one_row_in_the_table(self):
        """The constraint itself, on every database."""
        at = periodic.now(DB)
        ids = [make_task(), make_task()]
        ScheduledTask.objects.filter(pk=ids[0]).update(schedule_key="k", tick=at)
        with self.assertRaises(IntegrityError), transaction.atomic():
            ScheduledTask.objects.filter(pk=ids[1]).update(schedule_key="k", tick=at)

        self.assertFalse(row(ids[1]).periodic)
