"""The ticks that sweeps fire."""

from datetime import timedelta
from unittest import mock

from django.test import TransactionTestCase, override_settings

import dbtasks
from dbtasks import Periodic
from dbtasks.models import PeriodicTask, ScheduledTask
from dbtasks.runner.scheduler import Scheduler

from ..support import tasks
from ..support.backends import backend
from ..support.schedules import REMEMBER, fired, overdue, schedules
from ..support.together import together

MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)
RARE = "1000d"


def skipping(spec: str = RARE) -> dict[str, Periodic]:
    return {REMEMBER: Periodic(spec, args=[1], missed="skip")}


class TickTests(TransactionTestCase):
    """Ticks become rows, which the same sweep runs."""

    databases = {"default", "other"}

    def setUp(self) -> None:
        tasks.remembered.clear()

    def test_a_tick_fires_and_its_row_runs(self) -> None:
        """The first sweep only records the schedule, as the first runner does."""
        with schedules({REMEMBER: Periodic(RARE, args=[7])}):
            first = dbtasks.sweep()
            overdue(SECOND)
            second = dbtasks.sweep()

        self.assertEqual((0, 0), (first.fired, first.ran))
        self.assertEqual((1, 1, [7]), (second.fired, second.succeeded, tasks.remembered))

    def test_skip_fires_what_no_sweep_could_have_seen_earlier(self) -> None:
        """Up to 1.5 times the interval: 59 seconds are not late if a sweep comes each minute."""
        for late, interval, expected in ((59, 60, 1), (89, 60, 1), (91, 60, 0), (91, 300, 1)):
            with self.subTest(late=late, interval=interval), schedules(skipping()):
                dbtasks.sweep()
                overdue(late * SECOND)
                with mock.patch("dbtasks.runner.scheduler.logger"):
                    self.assertEqual(expected, dbtasks.sweep(interval=interval).fired)
            PeriodicTask.objects.all().delete()
            ScheduledTask.objects.all().delete()

    def test_the_grace_is_never_shorter_than_a_runner_s(self) -> None:
        """However often sweeps come."""
        with schedules(skipping()):
            dbtasks.sweep()
            overdue(9 * SECOND)

            self.assertEqual(1, dbtasks.sweep(interval=1).fired)

    def test_overlapping_sweeps_fire_a_tick_once(self) -> None:
        """Each of them runs what it gets."""
        with schedules({REMEMBER: Periodic(RARE, args=[1])}):
            dbtasks.sweep()
            overdue(SECOND)
            swept = together(4, lambda _: dbtasks.sweep())

        self.assertEqual([1, 1], [sum(one.fired for one in swept), sum(one.ran for one in swept)])
        self.assertEqual(1, len(fired()))
        self.assertEqual([1], tasks.remembered)

    def test_schedules_are_read_once_a_process(self) -> None:
        """A sweep that finds nothing due costs one statement for ticks."""
        with schedules(skipping()):
            dbtasks.sweep()
            with mock.patch.object(Scheduler, "__init__") as made:
                dbtasks.sweep()

        made.assert_not_called()

    def test_an_emptied_table_is_filled_again(self) -> None:
        """Tests of a project flush their tables."""
        with schedules(skipping()):
            dbtasks.sweep()
            PeriodicTask.objects.all().delete()
            dbtasks.sweep()

        self.assertEqual(1, PeriodicTask.objects.count())

    def test_a_schedule_that_cannot_be_fired_keeps_nothing_else_from_it(self) -> None:
        """Due rows are run; the log says why there are no ticks."""
        with schedules({"tests.nowhere": Periodic("1h")}):
            tasks.remember.enqueue(3)
            with self.assertLogs("dbtasks.sweep", "ERROR") as said:
                swept = dbtasks.sweep()

        self.assertEqual((1, 0), (swept.succeeded, swept.fired))
        self.assertIn("No ticks are fired: ", said.output[0])

    @override_settings(TASKS=backend() | {"two": backend()["default"]})
    def test_each_backend_has_its_own(self) -> None:
        """A sweep serves one."""
        self.assertEqual((0, 0), (dbtasks.sweep("two").fired, dbtasks.sweep().fired))
