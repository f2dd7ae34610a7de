"""Rows whose task a process does not know: other code enqueued it, or its import fails."""

import logging
from datetime import timedelta
from unittest import mock

from django.tasks import default_task_backend
from django.utils import timezone

import dbtasks
from dbtasks import store
from dbtasks.base import registry
from dbtasks.execution import unknown
from dbtasks.models import Hold, ScheduledTask
from dbtasks.testing import RunnerTestCase

from ..support import tasks
from ..support.rows import DB, make_task, row, wait_out
from ..support.waiting import until

LATER = "tests.support.tasks.from_a_later_version"
NOT_FOUND = "dbtasks.exceptions.TaskNotFound"
LOGGER = "dbtasks.runner"


def make_known() -> None:
    """Deploy the code that has the task."""

    def from_a_later_version() -> str:
        return "done"

    from_a_later_version.__qualname__ = "from_a_later_version"
    from_a_later_version.__module__ = tasks.__name__
    tasks.from_a_later_version = dbtasks.task(from_a_later_version)


class UnknownTests(RunnerTestCase):
    """Tasks of a module that the runner has, which does not have the task."""

    workers = 1

    def setUp(self) -> None:
        unknown._logged.clear()
        self.addCleanup(registry._tasks.pop, LATER, None)
        self.addCleanup(lambda: tasks.__dict__.pop("from_a_later_version", None))
        super().setUp()

    def test_it_waits_for_a_process_that_knows_the_task(self):
        """It is tried again, uses no attempt, and the log says so once."""
        quick = mock.patch.multiple(unknown, FIRST_DELAY=0.05, LONGEST_DELAY=0.1)
        with quick, self.assertLogs(LOGGER, logging.WARNING) as logs:
            id = make_task(task_path=LATER, args="[]")
            self.runner._run.wake()
            until(lambda: row(id).fence >= 4 and row(id).status == "READY", "The fourth try")
            waiting = ScheduledTask.objects.get(pk=id)
            started = waiting.attempt - (waiting.status == "RUNNING")
            self.assertEqual((0, 0, 0), (started, waiting.failures, waiting.lost))
            self.assertIsNone(waiting.started_at)
            make_known()
            until(lambda: row(id).is_finished, "Its end")

        found = row(id)
        self.assertEqual((1, "done", None), (found.attempt, found.return_value, found.errors))
        self.assertEqual(1, sum(LATER in line for line in logs.output), logs.output)

    def test_it_keeps_nothing_from_running(self):
        """Neither due rows nor quarantined ones; it is not tried all the time."""
        with self.assertLogs(LOGGER, logging.WARNING):
            unknown_ids = [make_task(task_path=LATER, priority=9) for _ in range(20)]
            quarantined = make_task()
            ScheduledTask.objects.filter(pk=quarantined).update(lost=2, hold=Hold.QUARANTINED)
            due = make_task()
            self.runner._run.wake()
            for id in (due, quarantined):
                until(lambda id=id: row(id).status == "SUCCESSFUL", "The others")

        for id in unknown_ids:
            found = row(id)
            self.assertEqual("READY", found.status)
            self.assertLessEqual(found.fence, 4)

    def test_a_policy_of_a_later_version_waits_too(self):
        """A runner of that version can read it."""
        with self.assertLogs(LOGGER, logging.WARNING):
            id = make_task(policy='{"backoff": {"kind": "fibonacci"}}')
            self.runner._run.wake()
            until(lambda: row(id).hold == Hold.SCHEDULED, "The hold")

        self.assertEqual(("READY", 0), (row(id).status, row(id).attempt))

    def test_it_fails_in_the_end(self):
        """Ten minutes after its enqueue, kept as long as its own policy says."""
        tomorrow = timezone.now() + timedelta(days=1)
        id = make_task(task_path=LATER, policy='{"retain": 3600}', run_after=tomorrow)
        wait_out(id)
        store.run_now(DB, [id])
        self.runner._run.wake()
        until(lambda: row(id).status == "FAILED", "Its failure")

        found = row(id)
        self.assertEqual(NOT_FOUND, found.errors[0][0])
        self.assertEqual(3600, (found.delete_after - found.finished_at).total_seconds())

    def test_a_row_that_was_scheduled_long_ago_is_tried_as_often(self):
        """Its age alone does not end it."""
        long_ago = timezone.now() - 2 * unknown.PATIENCE
        with self.assertLogs(LOGGER, logging.WARNING):
            id = make_task(task_path=LATER, enqueued_at=long_ago)
            self.runner._run.wake()
            until(lambda: row(id).fence == 1 and row(id).status == "READY", "The hold")

        self.assertEqual(Hold.SCHEDULED, row(id).hold)

    def test_a_cancelled_one_ends_at_once(self):
        """As any row that waits."""
        with self.assertLogs(LOGGER, logging.WARNING):
            id = make_task(task_path=LATER)
            self.runner._run.wake()
            until(lambda: row(id).hold == Hold.SCHEDULED, "The hold")
        self.assertTrue(default_task_backend.cancel(str(id)))
        self.assertEqual("FAILED", row(id).status)


class InlineTests(RunnerTestCase):
    """Without a runner."""

    def setUp(self) -> None:
        super().setUp()
        self.runner.close()
        unknown._logged.clear()

    def test_process_one_goes_on_to_the_next_row(self):
        """So does process_tasks(); the result is that of a task that ran."""
        id = make_task(task_path=LATER, priority=5)
        make_task()
        with self.assertLogs(LOGGER, logging.WARNING):
            result = dbtasks.process_one()

        self.assertEqual(("SUCCESSFUL", 3), (result.status, result.return_value))
        self.assertEqual(
            ("READY", Hold.SCHEDULED, 0), (row(id).status, row(id).hold, row(id).attempt)
        )
        self.assertEqual([], dbtasks.process_tasks())

    def test_run_task_says_so(self):
        """The row waits."""
        id = make_task(task_path=LATER)
        with self.assertLogs(LOGGER, logging.WARNING), self.assertRaises(dbtasks.TaskNotFound):
            dbtasks.run_task(id)

        self.assertEqual("READY", row(id).status)

    def test_a_module_that_cannot_be_imported_is_not_imported_for_each_row(self):
        """An import may take long."""
        registry._failed.clear()
        with (
            mock.patch.object(registry, "import_module", side_effect=SyntaxError) as imports,
            self.assertLogs(LOGGER, logging.WARNING),
        ):
            for _ in range(5):
                make_task(task_path="tests.nowhere.task")
            self.assertEqual([], dbtasks.process_tasks())
        registry._failed.clear()

        self.assertEqual(1, imports.call_count)
