"""One sweep: what it runs, fires, rescues and purges, and when it ends."""

from datetime import timedelta

from django.db import transaction
from django.test import TestCase, TransactionTestCase

import dbtasks
from dbtasks import store
from dbtasks.models import ScheduledTask, Worker

from .. import tasks
from ..support.rows import DB

HOUR = timedelta(hours=1)


class SweepTests(TransactionTestCase):
    """What one call does."""

    def setUp(self) -> None:
        tasks.ran.clear()

    def test_it_runs_what_is_due_and_counts_it(self) -> None:
        """Each result is there, in the order in which the tasks ran."""
        results = [tasks.add.enqueue(1, 2), tasks.fail.enqueue()]

        swept = dbtasks.sweep()

        self.assertEqual((2, 1, 1, 0), swept[:4])
        self.assertEqual([result.id for result in results], [r.id for r in swept.results])
        self.assertEqual((False, None), (swept.is_due_left, swept.next_due))
        self.assertFalse(Worker.objects.exists())

    def test_it_runs_best_first_up_to_max_tasks(self) -> None:
        """What is left is said to be left."""
        for what, priority in (("low", -1), ("high", 5)):
            tasks.remember.using(priority=priority).enqueue(what)

        swept = dbtasks.sweep(max_tasks=1)

        self.assertEqual((["high"], 1, True), (tasks.ran, swept.ran, swept.is_due_left))

    def test_it_limits_itself_to_a_queue(self) -> None:
        """Other queues are left alone, and what is due there is not counted."""
        tasks.remember.enqueue("default")
        tasks.remember.using(queue_name="mail").enqueue("mail")

        swept = dbtasks.sweep(queue_name="mail")

        self.assertEqual((["mail"], False), (tasks.ran, swept.is_due_left))

    def test_it_says_when_the_next_row_is_due(self) -> None:
        """By the database's clock, to the second."""
        due = store.now(DB) + HOUR
        tasks.add.using(run_after=due).enqueue(1, 2)

        swept = dbtasks.sweep()

        self.assertEqual((0, False), (swept.ran, swept.is_due_left))
        assert swept.next_due is not None
        self.assertLess(abs(swept.next_due - due), timedelta(seconds=1))

    def test_it_purges_what_is_expired(self) -> None:
        """Rows that are kept for longer stay."""
        gone, kept = tasks.add.enqueue(1, 2), tasks.add.enqueue(1, 2)
        dbtasks.process_tasks()
        ScheduledTask.objects.filter(pk=gone.id).update(delete_after=store.now(DB) - HOUR)

        self.assertEqual(1, dbtasks.sweep().purged)
        self.assertEqual(kept.id, str(ScheduledTask.objects.get().pk))

    def test_it_refuses_a_transaction(self) -> None:
        """Nothing is claimed inside of one."""
        with transaction.atomic(), self.assertRaisesMessage(RuntimeError, "inside a transaction"):
            dbtasks.sweep()

    def test_limits_that_allow_nothing_are_refused(self) -> None:
        """They are mistakes, not wishes."""
        for limits in ({"max_tasks": 0}, {"max_seconds": 0}, {"interval": float("nan")}):
            with self.subTest(limits), self.assertRaisesMessage(ValueError, *limits):
                dbtasks.sweep(**limits)  # type: ignore[arg-type]


class InTestCaseTests(TestCase):
    """A project's own tests can sweep."""

    def test_it_runs_what_the_test_has_enqueued(self) -> None:
        """Inside of the transaction of the test."""
        tasks.add.enqueue(1, 2)

        self.assertEqual(1, dbtasks.sweep().succeeded)
