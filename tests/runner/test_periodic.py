"""Runners and schedules: what is fired when, with what, and by how many."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any
from unittest import mock

from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, connections, transaction
from django.test import SimpleTestCase, TransactionTestCase, override_settings

from dbtasks import Periodic, ScheduleError, firing, periodic
from dbtasks.firing import due_ticks
from dbtasks.models import PeriodicTask, ScheduledTask, Worker
from dbtasks.runner import Runner, scheduler
from dbtasks.runner.scheduler import Scheduler
from dbtasks.store import periodic as store
from dbtasks.store.unit import dialect
from dbtasks.testing import RunnerTestCase

from ..support import tasks
from ..support.backends import backend
from ..support.rows import DB
from ..support.schedules import REMEMBER, TELL, fired, overdue, schedules
from ..support.servers import kill_connections
from ..support.waiting import until

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


def utc(*values: int) -> datetime:
    return datetime(*values, tzinfo=UTC)  # type: ignore[misc,arg-type]


@contextmanager
def clock(start: datetime) -> Iterator[Any]:
    """Let the database's clock stand at a moment, which ``set`` changes."""
    now = [start]
    literal = lambda _: str((now[0] - utc(1970, 1, 1)) // timedelta(microseconds=1))  # noqa: E731
    with mock.patch.object(dialect(connection), "microseconds", literal):
        yield lambda at: now.__setitem__(0, at)


# No other tick comes while a test checks one that is overdue.
RARE = "1000d"


class MissedTests(SimpleTestCase):
    """Which ticks are run, and which are not."""

    def due(self, missed: str, late: timedelta, spec: str = "1m", overlap: bool = True) -> Any:
        first = utc(2026, 1, 1, 12)
        row = PeriodicTask(
            spec=spec, timezone="UTC", missed=missed, next_tick=first, overlap=overlap, key="k"
        )
        ticks, skipped = due_ticks(row.schedule, row, first + late)
        return [(tick - first) // MINUTE for tick in ticks], skipped and (skipped - first) // MINUTE

    def test_latest_runs_once(self):
        """After an hour in which no runner lived, one run, of the last tick."""
        self.assertEqual(([0], None), self.due("latest", timedelta(seconds=1)))
        self.assertEqual(([60], 59), self.due("latest", HOUR + timedelta(seconds=30)))

    def test_skip_runs_what_is_not_late(self):
        """What was missed is not run; what is due now is."""
        self.assertEqual(([0], None), self.due("skip", timedelta(seconds=9)))
        self.assertEqual(([], 60), self.due("skip", HOUR + timedelta(seconds=30)))
        self.assertEqual(([60], 59), self.due("skip", HOUR + timedelta(seconds=2)))

    def test_all_runs_each_of_the_last_hundred(self):
        """The cap is the newest hundred."""
        self.assertEqual((list(range(61)), None), self.due("all", HOUR))
        self.assertEqual((list(range(9901, 10001)), 9900), self.due("all", 10_000 * MINUTE))
        self.assertEqual(([60], 59), self.due("all", HOUR, overlap=False))

    def test_a_year_of_missed_ticks_takes_no_time(self):
        """Nobody walks through half a million of them."""
        self.assertEqual(([525_600], 525_599), self.due("latest", timedelta(days=365)))
        self.assertEqual(([525_600], 525_599), self.due("latest", timedelta(days=365), "* * * * *"))


class DayTests(SimpleTestCase):
    """A whole day, minute by minute, in the nights when clocks are changed."""

    def simulate(self, spec: str, start: datetime, hours: int) -> list[datetime]:
        row = PeriodicTask(spec=spec, timezone="America/New_York", key="k", missed="latest")
        row.next_tick = row.schedule.next(start)
        found: list[datetime] = []
        for n in range(hours * 60 + 1):
            now = start + n * MINUTE
            if row.next_tick <= now:
                ticks, skipped = due_ticks(row.schedule, row, now)
                self.assertIsNone(skipped)
                found += [tick.astimezone(UTC) for tick in ticks]
                row.next_tick = row.schedule.next(now)
        return found

    def test_every_tick_is_fired_once(self):
        """Those of the schedule, no other, none twice, none in a burst."""
        least = {"*/5 * * * *": 275, "30 1,2 * * *": 2, "@hourly": 23, "7m": 200}
        # Midnight in New York.
        for begin in (utc(2026, 3, 8, 5), utc(2026, 11, 1, 4)):
            for spec in least:
                with self.subTest(spec, begin=begin):
                    found = self.simulate(spec, begin, 25)
                    own = PeriodicTask(spec=spec, timezone="America/New_York", key="k").schedule

                    ticks = [at.astimezone(UTC) for at in own.dates(begin, begin + 25 * HOUR)]
                    self.assertEqual(ticks, found)
                    self.assertGreaterEqual(len(found), least[spec])
                    self.assertEqual(len(found), len(set(found)))


class SchedulerTests(TransactionTestCase):
    """One runner's scheduler, round by round, on the database's clock."""

    def test_a_start_in_the_repeated_hour(self):
        """B10: neither a busy loop nor an hour without runs."""
        start = utc(2026, 11, 1, 6, 10)
        spec = {REMEMBER: Periodic("*/5 * * * *", args=[1], timezone="America/New_York")}
        with schedules(spec) as own, clock(start) as set_clock:
            one = Scheduler(own)
            for n in range(61):
                set_clock(start + n * MINUTE)
                one.catch_up()

        self.assertEqual([start + 5 * n * MINUTE for n in range(1, 13)], fired())

    def test_two_passes_of_an_hour_are_two_hours(self):
        """An interval runs in both; a fixed time in the first only."""
        specs = {
            REMEMBER: [
                Periodic("0 * * * *", args=[1], timezone="America/New_York", key="hourly"),
                Periodic("0 1 * * *", args=[1], timezone="America/New_York", key="fixed"),
            ]
        }
        with schedules(specs) as own, clock(start := utc(2026, 11, 1, 4, 30)) as set_clock:
            one = Scheduler(own)
            for n in range(0, 240, 10):
                set_clock(start + n * MINUTE)
                one.catch_up()

        self.assertEqual(
            [utc(2026, 11, 1, hour) for hour in (5, 6, 7, 8)], fired(schedule_key="hourly")
        )
        self.assertEqual([utc(2026, 11, 1, 5)], fired(schedule_key="fixed"))

    def test_a_clock_that_is_set_back_doubles_nothing(self):
        """What was fired stays fired; it goes on where it was."""
        start = utc(2026, 1, 1, 12, 30)
        with schedules({REMEMBER: Periodic("15m", args=[1])}) as own, clock(start) as set_clock:
            schedulers = [Scheduler(own), Scheduler(own)]
            for minutes in (*range(0, 61, 5), *range(0, 121, 5)):
                set_clock(start + minutes * MINUTE)
                for one in schedulers:
                    one.catch_up()

        self.assertEqual([start + 15 * n * MINUTE for n in range(1, 9)], fired())

    def test_runners_that_start_and_stop_make_one_row_a_tick(self):
        """B7, B9: a new runner each hour, two at once, a daily interval and a minute of chance."""
        start = utc(2026, 1, 1, 12, 30)
        specs = {
            REMEMBER: [Periodic("1d", [1], key="day"), Periodic("~ * * * *", [1], key="chance")]
        }
        with schedules(specs) as own, clock(start) as set_clock:
            for hour in range(72):
                set_clock(start + hour * HOUR)
                for one in (Scheduler(own), Scheduler(own)):
                    one.catch_up()

        self.assertEqual([utc(2026, 1, day) for day in (2, 3, 4)], fired(schedule_key="day"))
        self.assertEqual(71, len(fired(schedule_key="chance")))
        self.assertEqual(1, len({tick.minute for tick in fired(schedule_key="chance")}))

    def test_old_and_new_settings_at_once(self):
        """A rolling deploy: each tick of either is run once, whoever fires it."""
        start = utc(2026, 1, 1, 12, 1)
        with clock(start) as set_clock:
            with schedules({REMEMBER: Periodic("10m", [1])}) as own:
                old = Scheduler(own)
                old.catch_up()
            with schedules({REMEMBER: Periodic("15m", [1]), TELL: "15m"}) as own:
                new = Scheduler(own)
            for minutes in range(0, 65, 5):
                set_clock(start + minutes * MINUTE)
                if minutes == 30:
                    new.catch_up()
                old.catch_up()
                if minutes > 30:
                    new.catch_up()

        self.assertEqual(
            [utc(2026, 1, 1, 12, m) for m in (10, 20, 30, 45)] + [utc(2026, 1, 1, 13)],
            fired(schedule_key=REMEMBER),
        )
        self.assertEqual([utc(2026, 1, 1, 12, 45), utc(2026, 1, 1, 13)], fired(schedule_key=TELL))

    def test_a_removed_schedule_is_fired_by_those_only_who_have_it(self):
        """Two deployments on one database: neither fires, changes or removes the other's."""
        start = utc(2026, 1, 1, 12, 1)
        with clock(start) as set_clock:
            with schedules({REMEMBER: Periodic("10m", [1])}) as own:
                first = Scheduler(own)
                first.catch_up()
            with schedules({TELL: "10m"}) as own:
                second = Scheduler(own)
                second.catch_up()
            set_clock(start + 10 * MINUTE)
            second.catch_up()
            self.assertEqual(0, len(fired(schedule_key=REMEMBER)))
            first.catch_up()

        self.assertEqual(1, len(fired(schedule_key=REMEMBER)))
        self.assertEqual(1, len(fired(schedule_key=TELL)))

    def test_a_broken_schedule_does_not_stop_the_others(self):
        """Its tick waits until it can be fired, and is not lost."""
        answers: list[Any] = [ValueError("no"), [7]]

        def tell() -> Any:
            if isinstance(answer := answers.pop(0), Exception):
                raise answer
            return answer

        specs = {REMEMBER: [Periodic("10m", tell, key="a"), Periodic("10m", [1], key="b")]}
        with schedules(specs) as own, clock(start := utc(2026, 1, 1, 12, 1)) as set_clock:
            one = Scheduler(own)
            one.catch_up()
            set_clock(start + 10 * MINUTE)
            with self.assertLogs("dbtasks.periodic", "ERROR") as logs:
                one.catch_up()
            self.assertEqual(["b"], [row.schedule_key for row in ScheduledTask.objects.all()])
            one._broken.clear()
            one.catch_up()

        self.assertIn("a cannot be fired", logs.output[0])
        self.assertEqual([7], ScheduledTask.objects.get(schedule_key="a").args)

    def test_a_transaction_that_a_function_leaves_open_swallows_nothing(self):
        """It is rolled back; the tick is fired and committed."""

        def leave_open() -> list[int]:
            transaction.atomic().__enter__()
            return [1]

        specs = {REMEMBER: Periodic(RARE, leave_open)}

        def run() -> None:
            try:
                Scheduler(own).catch_up()
            finally:
                connections.close_all()

        with schedules(specs) as own:
            Scheduler(own).catch_up()
            overdue(MINUTE)
            thread = threading.Thread(target=run)
            with self.assertLogs("dbtasks.runner", "WARNING"):
                thread.start()
                thread.join(30)

        self.assertEqual(1, len(fired()))

    def test_a_lost_database_delays_a_tick_only(self):
        """The next round after it is back fires it."""
        with schedules({REMEMBER: Periodic(RARE, [1])}) as own:
            one = Scheduler(own)
            one.catch_up()
            seen = overdue(timedelta(seconds=3))
            with (
                mock.patch.object(store, "peek", side_effect=OSError("away")),
                self.assertRaises(OSError),
            ):
                one.round()
            one.catch_up()

        self.assertEqual([seen.next_tick], fired())

    def test_a_runner_keeps_its_schedules_for_as_long_as_it_runs(self):
        """Another deployment's start does not forget them, and what is gone comes back."""
        with schedules({TELL: "1h"}) as own:
            one = Scheduler(own)
            one.catch_up()
            PeriodicTask.objects.update(seen_at=utc(2020, 1, 1))
            one._seen_at -= scheduler.SEEN_INTERVAL
            one.catch_up()
            store.declare(DB, "default", [])
            self.assertEqual(TELL, PeriodicTask.objects.get().key)
            PeriodicTask.objects.all().delete()
            one._seen_at -= scheduler.SEEN_INTERVAL
            one.catch_up()

        self.assertEqual(TELL, PeriodicTask.objects.get().key)

    def test_an_idle_scheduler_asks_seldom(self):
        """One statement, then a sleep of seconds, or exactly until the next tick."""
        with schedules({REMEMBER: Periodic("1d", [1])}) as own, clock(utc(2026, 1, 1)) as set_clock:
            one = Scheduler(own)
            one.catch_up()
            with self.assertNumQueries(1):
                self.assertGreater(one.round(), 3)
            set_clock(utc(2026, 1, 1, 23, 59, 59))
            self.assertTrue(0.9 < one.round() < 1.1)


class FiredTests(RunnerTestCase):
    """What a runner fires, and what the task sees of it."""

    def ran(self, key: str, **options: Any) -> Any:
        """Let a runner fire the only schedule; return its row once it has finished."""
        self.start_runner(init_periodic=True, **options)
        until(lambda: PeriodicTask.objects.filter(key=key).exists())
        PeriodicTask.objects.filter(key=key).update(next_tick=store.now(DB))
        # The runner sleeps until what it saw.
        self.start_runner(init_periodic=True, **options)
        until(lambda: ScheduledTask.objects.finished().filter(schedule_key=key).exists())
        return ScheduledTask.objects.get(schedule_key=key)

    def test_the_task_is_told_its_tick(self):
        """context.tick is the due time, in UTC; of other runs it is None."""
        with schedules({TELL: "1h"}):
            row = self.ran(TELL)
        other = self.runner.wait_for(tasks.tell_tick.enqueue())

        self.assertEqual(row.tick.isoformat(), row.return_value)
        self.assertTrue(row.periodic)
        self.assertIsNone(other.return_value)

    def test_the_task_s_own_queue_priority_and_policies_apply(self):
        """B14: also where QUEUES lacks the default queue."""
        with schedules({"tests.tasks.short_lived": "1h"}, QUEUES=["mail"]):
            row = self.ran("tests.tasks.short_lived")

        self.assertEqual(("mail", 7), (row.queue_name, row.priority))
        self.assertEqual(HOUR, row.delete_after - row.finished_at)

    def test_any_queue_may_be_used(self):
        """B13: QUEUES of [] means every name."""
        with schedules({"tests.tasks.short_lived": "1h"}, QUEUES=[]):
            self.assertEqual("SUCCESSFUL", self.ran("tests.tasks.short_lived").status)

    def test_each_schedule_has_its_own_arguments_and_retention(self):
        """Values, or functions that are called at each tick."""
        one = Periodic("1h", args=lambda: [1], kwargs=lambda: {"b": 2}, retain="3d", key="sum")
        with schedules({"tests.tasks.add": one}):
            row = self.ran("sum")

        self.assertEqual(3, row.return_value)
        self.assertEqual(timedelta(days=3), row.delete_after - row.finished_at)

    def test_queue_priority_and_arguments_may_be_left_out_or_given(self):
        """None leaves queue and priority to the task, and is no argument."""
        one = Periodic("1h", args=None, kwargs=None, retain=0, queue_name="mail", priority=9)
        with schedules({"tests.tasks.noop_task": one}, QUEUES=["default", "mail"]):
            row = self.ran("tests.tasks.noop_task")

        self.assertEqual(("mail", 9, [], {}), (row.queue_name, row.priority, row.args, row.kwargs))
        self.assertEqual(row.finished_at, row.delete_after)
        self.assertEqual("0s", PeriodicTask.objects.get().retain)

    def test_a_leap_day_does_not_keep_a_runner_from_starting(self):
        """B11."""
        with schedules({TELL: "0 0 29 2 *"}):
            self.start_runner(init_periodic=True)
            until(lambda: PeriodicTask.objects.exists())

        self.assertEqual((2, 29), (PeriodicTask.objects.get().next_tick.month, 29))

    def test_a_runner_without_periodic_fires_none(self):
        """It neither declares nor fires; Runner(init_periodic=False)."""
        with schedules({TELL: RARE}) as own:
            Scheduler(own).catch_up()
            overdue(MINUTE)
            runner = self.start_runner(init_periodic=False)
            runner.wait_for(tasks.add.enqueue(1, 2))
            self.assertEqual([], runner._run._schedulers)

        self.assertEqual([], fired())

    def test_a_drain_fires_what_is_due(self):
        """Once, before it peeks whether anything is."""
        with schedules({TELL: RARE}) as own:
            Scheduler(own).catch_up()
            overdue(MINUTE)
            thread = threading.Thread(target=Runner(1, drain=True).run)
            thread.start()
            thread.join(30)

        # The other runner may have taken it.
        until(lambda: ScheduledTask.objects.successful().filter(schedule_key=TELL).exists())

    def test_a_worker_whose_row_was_deleted_goes_on(self):
        """B27: it registers again, and its schedules go on meanwhile."""
        with schedules({TELL: "1s"}):
            self.start_runner(init_periodic=True)
            until(lambda: fired())
            Worker.objects.all().delete()
            seen = len(fired())
            until(lambda: len(fired()) > seen + 1)

        self.assertEqual(len(fired()), len(set(fired())))

    def test_without_overlap_a_tick_is_skipped_and_it_says_so(self):
        """While the run before has not finished."""
        tasks.Gate.opened.clear()
        self.addCleanup(tasks.Gate.opened.set)
        path = "tests.support.tasks.wait_at_gate"
        with schedules({path: Periodic("1s", overlap=False)}):
            with self.assertLogs("dbtasks.periodic", logging.WARNING) as logs:
                self.start_runner(init_periodic=True)
                until(lambda: PeriodicTask.objects.filter(skipped_tick__isnull=False).exists())
                until(lambda: logs.output)
            self.assertEqual(1, len(fired()))
            tasks.Gate.opened.set()
            until(lambda: len(fired()) > 1)

        self.assertIn("the run before has not finished", logs.output[0])

    def test_ticks_are_on_time(self):
        """Also of a runner whose threads are all busy."""
        tasks.Gate.opened.clear()
        self.addCleanup(tasks.Gate.opened.set)
        with schedules({TELL: "1s"}):
            runner = self.start_runner(init_periodic=True, workers=1)
            # As many as both runners have threads.
            tasks.wait_at_gate.enqueue_many([((), {})] * 3)
            until(lambda: runner.running)
            until(lambda: len(fired()) >= 4)
            late = [
                row.enqueued_at - row.tick
                for row in ScheduledTask.objects.filter(tick__isnull=False)
            ]
            tasks.Gate.opened.set()

        # One may be the machine's.
        self.assertLess(sorted(late)[-2], timedelta(seconds=1.5))

    def test_connections_that_are_cut_lose_no_tick(self):
        """The database goes away under the scheduler, and comes back."""
        if connection.vendor == "sqlite":
            self.skipTest("SQLite has no connections to cut.")
        with schedules({TELL: Periodic("1s", missed="all")}):
            self.start_runner(init_periodic=True)
            until(lambda: fired())
            kill_connections()
            first = fired()[0]
            until(lambda: len(fired()) > 4)
        ticks = fired()

        self.assertEqual([first + n * timedelta(seconds=1) for n in range(len(ticks))], ticks)


class MadeByPeopleTests(TransactionTestCase):
    """Schedules made at run time live beside those of the settings."""

    def make(self, **values: Any) -> PeriodicTask:
        row = PeriodicTask(
            **{
                "backend": "default",
                "key": "mine",
                "origin": "admin",
                "task_path": REMEMBER,
                "spec": "1h",
                "timezone": "UTC",
                "args": [5],
            }
            | values
        )
        store.save(DB, row)
        return overdue(timedelta(seconds=1))

    def fire(self) -> None:
        with schedules({}) as own:
            Scheduler(own).catch_up()

    def test_any_runner_of_the_backend_fires_them(self):
        """With their own arguments and retention."""
        self.make(retain="2h")
        self.fire()
        [row] = ScheduledTask.objects.all()

        self.assertEqual(
            ("mine", [5], {"retain": 7200.0}), (row.schedule_key, row.args, row.policy)
        )

    def test_only_registered_tasks_are_fired(self):
        """A row is data, not code: whatever somebody wrote into it."""
        for path in ("os.system", "subprocess.run", "tests.support.tasks.not_a_task", "x" * 250):
            self.make(key=path[:50], task_path=path)
            with self.subTest(path), self.assertLogs("dbtasks.periodic", "ERROR"):
                self.fire()
            PeriodicTask.objects.all().delete()

        self.assertEqual(0, ScheduledTask.objects.count())

    def test_what_is_wrong_in_a_row_is_found_when_it_is_fired(self):
        """Nothing is written, the tick waits, and the runner goes on."""
        for wrong in (
            {"spec": "nonsense"},
            {"timezone": "Mars"},
            {"args": {"a": 1}},
            {"args": [1, 2, 3]},
            {"retain": "for ever"},
        ):
            row = self.make()
            PeriodicTask.objects.filter(pk=row.pk).update(**wrong)
            with self.subTest(wrong), self.assertLogs("dbtasks.periodic", "ERROR"):
                self.fire()
            PeriodicTask.objects.all().delete()

        self.assertEqual(0, ScheduledTask.objects.count())

    def test_a_paused_one_stays_paused_across_starts(self):
        """Those of the settings, too."""
        with schedules({TELL: RARE}) as own:
            Scheduler(own).catch_up()
            store.pause(DB, [overdue(MINUTE).pk])
            Scheduler(own).catch_up()

        self.assertTrue(PeriodicTask.objects.get().paused)
        self.assertEqual([], fired())


class StartTests(TransactionTestCase):
    """Wrong settings, at check and at start."""

    databases = {"default", "other"}

    def test_what_cannot_be_fired_is_an_error_at_check_and_at_start(self):
        """Each with a sentence that names the schedule."""
        for specs, id, said in (
            ({"tests.gone.task": "1h"}, "E010", "importing 'tests.gone' failed"),
            ({"os.system": "1h"}, "E010", "is not a task that may be run"),
            ({REMEMBER: "1h"}, "E010", "missing a required argument: 'n'"),
            ({REMEMBER: Periodic("1h", [1, 2])}, "E010", "too many positional arguments"),
            ({REMEMBER: Periodic("1h", [{1, 2}])}, "E010", "cannot be called with these arguments"),
            ({"tests.tasks.short_lived": "1h"}, "E010", "Queue 'mail'"),
            ({TELL: Periodic("1h", queue_name="mail")}, "E010", "Queue 'mail'"),
            ({TELL: Periodic("1h", priority=101)}, "E010", "between -100 and 100"),
            ({TELL: Periodic("1h", priority="high")}, "E002", "priority must be a whole number"),
            ({TELL: Periodic("1h", queue_name="")}, "E002", "must be the name of a queue"),
            ({TELL: "61 * * * *"}, "E002", "Minute '61' is out of range"),
            ({TELL: "0 0 30 2 *"}, "E002", "a date that never comes"),
            ({TELL: "0s"}, "E002", "is not a valid schedule"),
            ({TELL: Periodic("1h", timezone="Mars")}, "E002", "is not a valid time zone"),
            ({TELL: ["1h", "1h", "1h"]}, "E002", "is the key of two schedules"),
            ({TELL: Periodic("1h", key="x" * 201)}, "E002", "has more than 200 characters"),
            ({"nopath": "1h"}, "E002", "is not the path of a task"),
            ([], "E002", "is not a mapping"),
        ):
            with self.subTest(said), schedules(specs, QUEUES=["default"]):
                found = [m for m in checks.run_checks() if m.id == f"dbtasks.{id}"]
                self.assertEqual(1, len(found), found)
                self.assertIn(said, found[0].msg)
                with self.assertRaisesMessage(ImproperlyConfigured, said):
                    Runner(1).run()

    def test_good_schedules_are_silent(self):
        """In every form."""
        specs = {
            TELL: [
                "@daily",
                timedelta(hours=1),
                Periodic("~ 3~5 * * *", timezone="Asia/Tokyo", key="k"),
            ],
            REMEMBER: Periodic("1h", lambda: 1 / 0),
            "tests.tasks.noop_task": Periodic("1h", lambda: None, lambda: None, priority=0),
            "dbtasks.runner.cleanup": Periodic("@daily", kwargs={"seconds": 86_400}),
        }
        with schedules(specs):
            self.assertEqual([], [m for m in checks.run_checks() if "dbtasks" in (m.id or "")])

    def test_an_immediate_backend_has_no_runner(self):
        """Its schedules would never fire: check says so."""
        options = {"immediate": True, "periodic": {TELL: "1h"}}
        with override_settings(TASKS=backend(OPTIONS=options)):
            self.assertIn("dbtasks.W010", [m.id for m in checks.run_checks()])


class DecoratorTests(SimpleTestCase):
    """@periodic"""

    def setUp(self) -> None:
        self.enterContext(mock.patch.dict(import_module("dbtasks.schedule.periodic")._decorated))

    def keys(self, specs: Any = None) -> dict[str, str]:
        with schedules(specs or {}) as own:
            return {key: entry.schedule.text for key, entry in firing.entries_of(own).items()}

    def test_it_stands_above_task(self):
        """And may be repeated; the task stays what it is."""
        self.assertIs(tasks.tell_tick, periodic("*/5 * * * *")(tasks.tell_tick))
        periodic("1h", key="hourly")(tasks.tell_tick)

        self.assertEqual({TELL: "*/5 * * * *", "hourly": "1h"}, self.keys())

    def test_settings_win(self):
        """For a path that is in both."""
        periodic("1h")(tasks.tell_tick)

        self.assertEqual({TELL: "2h"}, self.keys({TELL: "2h"}))

    def test_what_is_wrong_is_said_at_once(self):
        """At the line of the decorator."""
        with self.assertRaisesMessage(ScheduleError, "Minute '61' is out of range"):
            periodic("61 * * * *")(tasks.tell_tick)
        with self.assertRaisesMessage(TypeError, "@periodic belongs above @task"):
            periodic("1h")(tasks.tell_tick.func)  # type: ignore[arg-type]
        with self.assertRaisesMessage(ScheduleError, "the key of two schedules"):
            periodic("1h", key="a")(periodic("2h", key="a")(tasks.tell_tick))
