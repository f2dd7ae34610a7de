"""Whatever a task does, its row ends and the runner goes on."""

import logging
import subprocess
import sys
from datetime import timedelta
from typing import Any
from unittest import mock

from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.tasks import TaskResultStatus, task_backends
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.test import TransactionTestCase, override_settings
from django.utils import timezone

from dbtasks import store
from dbtasks.execution.attempt import Attempt
from dbtasks.models import TABLE, ScheduledTask
from dbtasks.testing import RunnerTestCase

from ..support import tasks
from ..support.backends import backend
from ..support.rows import DB, make_task, vendor, wait_out
from ..support.waiting import until

FAILED, SUCCESSFUL = TaskResultStatus.FAILED, TaskResultStatus.SUCCESSFUL


class BadInputTests(RunnerTestCase):
    """Rows that end FAILED, each with a sentence."""

    def finish(self, result: Any) -> Any:
        """Wait for the result, then see that the runner still works."""
        with self.assertLogs("django.tasks", logging.INFO):
            self.runner.wait_for(result, 10)
            self.assertEqual(3, self.runner.wait_for(tasks.add.enqueue(1, 2), 10).return_value)
        self.assertFalse(ScheduledTask.objects.running().exists())
        return result

    def test_values_that_are_not_json(self):
        """A result that cannot be stored makes the task FAILED, never RUNNING for ever."""
        for what in tasks.NOT_JSON:
            with self.subTest(what):
                result = self.finish(tasks.give.enqueue(what))

                self.assertEqual(FAILED, result.status)
                self.assertIs(TypeError, result.errors[0].exception_class)
                self.assertIn("The return value", result.errors[0].traceback)

    def test_exceptions_of_every_kind(self):
        """Whatever is raised, even by str() of the exception, is a failure of its task alone."""
        for what in tasks.RAISED:
            for raiser in (tasks.throw, tasks.athrow):
                with self.subTest(what, task=raiser.name):
                    result = self.finish(raiser.enqueue(what))

                    self.assertEqual(FAILED, result.status)
                    self.assertEqual(1, len(result.errors))
                    self.assertLess(len(result.errors[0].traceback), 20_000)

    def test_paths_that_are_no_task(self):
        """Only tasks are called; the row says why it was not."""
        for path, why in {
            "os.system": "is not a task that may be run",
            "tests.support.tasks.gone": "is not a task that may be run",
            "tests.support.tasks.not_a_task": "is not a task that may be run",
            "tests.support.tasks.sys.exit": "importing 'tests.support.tasks.sys' failed",
            "tests.support.broken.task": "importing 'tests.support.broken' failed",
            "nonsense": "is not a task that may be run",
            "": "is not a task that may be run",
        }.items():
            with self.subTest(path):
                id = make_task(task_path=path, run_after=far_away())
                wait_out(id)
                store.run_now(DB, [id])
                self.runner._run.wake()
                result = self.finish(task_backends["default"].get_result(str(id)))

                self.assertEqual(FAILED, result.status)
                self.assertIn(why, result.errors[0].traceback)

    def test_rows_that_somebody_has_spoiled(self):
        """Garbage in a row ends that row, and nothing else."""
        for column, value in {
            "args": "[1,",
            "kwargs": "[]",
            "meta": "{",
            "errors": "{",
            "worker_ids": "7",
        }.items():
            with self.subTest(column):
                id = make_task(task_path="tests.support.tasks.add", run_after=far_away())
                with connection.cursor() as cursor:
                    cursor.execute(f"UPDATE {TABLE} SET {column} = %s, hold = ''", [value])
                self.runner._run.wake()
                until(lambda id=id: raw_status(id) in ("SUCCESSFUL", "FAILED"))
                ScheduledTask.objects.all().delete()

    def test_a_coroutine_whose_child_exits(self):
        """asyncio ends the loop then; other coroutines, and later ones, run on."""
        with self.assertLogs("dbtasks.runner", logging.ERROR):
            other = tasks.nap.enqueue(0.3)
            result = tasks.exit_in_a_child.enqueue()
            self.runner.wait_for(result, 10)
            self.runner.wait_for(other, 10)

        self.assertEqual((FAILED, SUCCESSFUL), (result.status, other.status))
        self.assertEqual(SUCCESSFUL, self.runner.wait_for(tasks.nap.enqueue(0), 10).status)

    def test_a_receiver_that_exits_changes_nothing(self):
        """Not even sys.exit() in a receiver touches the task or the thread."""

        def receiver(**kwargs: Any) -> None:
            raise SystemExit

        for signal in (task_started, task_finished):
            signal.connect(receiver)
            self.addCleanup(signal.disconnect, receiver)
        with self.assertLogs("dbtasks.runner", logging.ERROR):
            self.assertEqual(3, self.runner.wait_for(tasks.add.enqueue(1, 2), 10).return_value)
            self.assertEqual(0, self.runner.wait_for(tasks.nap.enqueue(0), 10).return_value)

    def test_an_attempt_that_breaks_in_an_unknown_way_is_failed(self):
        """The last net: a thread never dies, a row never stays RUNNING."""
        with (
            mock.patch.object(Attempt, "_ended", side_effect=OverflowError("broken")),
            self.assertLogs("dbtasks.runner", logging.ERROR),
        ):
            results = [tasks.add.enqueue(1, 2), tasks.nap.enqueue(0)]
            for result in results:
                self.runner.wait_for(result, 10)

        self.assertEqual([FAILED, FAILED], [result.status for result in results])
        self.assertIn("OverflowError", results[0].errors[0].traceback)

    def test_a_result_larger_than_the_server_takes(self):
        """MySQL drops the connection of who sends too much; the task fails, the others do not."""
        if vendor() != "mysql":
            self.skipTest("only MySQL and MariaDB bound a statement")
        with connection.cursor() as cursor:
            cursor.execute("SELECT @@max_allowed_packet")
            most = int(cursor.fetchone()[0])
        if most > 200_000_000:
            self.skipTest("a value that this server refuses takes too much memory")
        with override_settings(TASKS=backend(OPTIONS={"max_payload": 3 * most})):
            runner = self.start_runner()
            self.runner.close()
            result = tasks.give_much.enqueue(most + 1_000_000)
            other = tasks.add.enqueue(1, 2)
            runner.wait_for(result, 30)
            runner.wait_for(other, 30)

        self.assertEqual((FAILED, SUCCESSFUL), (result.status, other.status))

    def test_a_queue_that_left_queues_is_still_served(self):
        """A committed row is run to an end, whatever settings say now."""
        id = make_task(task_path="tests.support.tasks.add", queue_name="gone")
        self.runner._run.wake()
        result = self.finish(task_backends["default"].get_result(str(id)))

        self.assertEqual((SUCCESSFUL, "gone"), (result.status, result.task.queue_name))

    def test_a_transaction_left_open_is_rolled_back(self):
        """The next task of the thread starts clean, and nothing half done is kept."""
        with self.assertLogs("dbtasks.runner", logging.WARNING) as logs:
            self.finish(tasks.leave_transaction_open.enqueue())

        self.assertIn("left a transaction open", logs.output[0])
        self.assertFalse(ScheduledTask.objects.filter(task_path="left.open").exists())

    def test_autocommit_zone_and_language_are_as_they_were(self):
        """What one task changes, the next does not see."""
        for leave in (tasks.leave_autocommit_off, tasks.leave_locale):
            self.finish(leave.enqueue())
            seen = [self.finish(tasks.look_around.enqueue()).return_value for _ in range(8)]

            self.assertEqual([["UTC", "en-us", False, True]] * 8, seen)

    def test_receivers_that_raise_change_nothing(self):
        """Signals are robust: the task's outcome is its own."""

        def receiver(**kwargs: Any) -> None:
            raise RuntimeError("receiver")

        for signal in (task_enqueued, task_started, task_finished):
            signal.connect(receiver)
            self.addCleanup(signal.disconnect, receiver)
        with self.assertLogs("django.dispatch", logging.ERROR):
            result = self.finish(tasks.add.enqueue(1, 1))
            failed = self.finish(tasks.throw.enqueue("exit"))

        self.assertEqual((SUCCESSFUL, FAILED), (result.status, failed.status))


def far_away() -> Any:
    """Return a time that does not come during the test."""
    return timezone.now() + timedelta(days=1)


def raw_status(id: Any) -> str:
    """Return the row's status without reading the rest of it."""
    return ScheduledTask.objects.values_list("status", flat=True).get(pk=id)


class RefusedTests(TransactionTestCase):
    """What is refused before any row is written."""

    def tearDown(self) -> None:
        self.assertEqual(0, ScheduledTask.objects.count())

    def test_arguments_that_are_not_json(self):
        """The same TypeError on every database."""
        for what in tasks.NOT_JSON:
            value = tasks.give.func(what)
            for args, kwargs in (((value,), {}), ((), {"b": [value]})):
                with self.subTest(what, args=bool(args)), self.assertRaises(TypeError):
                    tasks.add.enqueue(*args, **kwargs)
                with self.subTest(what, many=True), self.assertRaises(TypeError):
                    tasks.add.enqueue_many([((1, 2), {}), (args, kwargs)])

    def test_durations_that_end_no_date(self):
        """A hundred years are for ever."""
        for wrong in ({"retain": "9999999d"}, {"run_after": timedelta.max}):
            with self.subTest(wrong), self.assertRaisesMessage(InvalidTask, "a hundred years"):
                tasks.add.using(**wrong)

    def test_a_project_without_the_app(self):
        """The sentence says what is missing, not that a model has no label."""
        with (
            self.modify_settings(INSTALLED_APPS={"remove": "dbtasks"}),
            self.assertRaisesMessage(ImproperlyConfigured, "which is not in INSTALLED_APPS"),
        ):
            tasks.add.enqueue(1, 2)

    def test_names_that_are_too_long(self):
        """A long queue name is refused everywhere, not only where the column is narrow."""
        with (
            override_settings(TASKS=backend(QUEUES=[])),
            self.assertRaisesMessage(InvalidTask, "more than the 100 characters allowed"),
        ):
            tasks.add.using(queue_name="q" * 101).enqueue(1, 2)

    def test_a_naive_run_after_is_refused(self):
        """A time without a zone is no time."""
        with self.assertRaisesMessage(InvalidTask, "run_after must be an aware datetime"):
            tasks.add.using(run_after=timezone.now().replace(tzinfo=None)).enqueue(1, 2)

    def test_a_malformed_id_is_no_result(self):
        """No such result, whatever the id looks like."""
        for id in ("123", "", "x" * 1000, "\0", "00000000-0000-7000-8000-000000000000"):
            with self.subTest(id), self.assertRaises(TaskResultDoesNotExist):
                tasks.add.get_result(id)

    def test_wrong_options_are_refused(self):
        """Enqueue and runner refuse to work with options that check has found wrong."""
        with (
            override_settings(TASKS=backend(OPTIONS={"retian": "7d"})),
            self.assertRaisesMessage(ImproperlyConfigured, "Did you mean 'retain'?"),
        ):
            tasks.add.enqueue(1, 2)


class AnyQueueTests(RunnerTestCase):
    """``QUEUES: []``"""

    def test_rows_of_any_queue_run_and_expire(self):
        """No QUEUES means every queue, for the runner and the purge too."""
        with override_settings(TASKS=backend(QUEUES=[], OPTIONS={"retain": 0.001})):
            result = tasks.add.using(queue_name="anything").enqueue(1, 2)
        self.runner.wait_for(result, 10)
        ScheduledTask.objects.update(delete_after=store.now("default"))

        self.assertEqual(SUCCESSFUL, result.status)
        self.assertEqual(1, store.purge("default", "default"))


class ImportTests(TransactionTestCase):
    """Modules that no row may import."""

    def test_a_foreign_module_is_not_imported(self):
        """A row that names a module outside the project does not get it imported."""
        code = (
            "import django; django.setup(); import sys\n"
            "from dbtasks import TaskNotFound\n"
            "from dbtasks.base import registry\n"
            "assert 'antigravity' not in sys.modules\n"
            "try: registry.find('antigravity.fly')\n"
            "except TaskNotFound: print('antigravity' in sys.modules)"
        )
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )

        self.assertEqual("False\n", found.stdout)

    def test_task_modules_allows_more(self):
        """OPTIONS["task_modules"] names what else may be imported."""
        from dbtasks import TaskNotFound
        from dbtasks.base import registry

        with self.assertRaisesMessage(TaskNotFound, "is not a task that may be run"):
            registry.find("this.task")
        with self.assertRaisesMessage(TaskNotFound, "is not a task that may be run"):
            registry.find("colorsys.rgb_to_hsv", ["colorsys"])
        self.assertIn("colorsys", sys.modules)
