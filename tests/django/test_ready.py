"""Tasks that nobody runs, asked what Django asks of its DummyBackend."""

from unittest import mock

from django.db import transaction
from django.tasks import TaskResultStatus, default_task_backend, task_backends
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist
from django.test import TestCase, TransactionTestCase, override_settings

from dbtasks.backend import DatabaseBackend
from dbtasks.models import ScheduledTask

from .. import tasks
from ..support.backends import backend

READY = TaskResultStatus.READY


@override_settings(TASKS=backend(QUEUES=[]))
class ReadyTests(TestCase):
    """What was enqueued waits."""

    def assert_ready(self, result, **values):
        """See that nothing has happened to the result yet."""
        self.assertEqual(READY, result.status)
        self.assertIs(False, result.is_finished)
        for name in ("started_at", "last_attempted_at", "finished_at"):
            self.assertIsNone(getattr(result, name), name)
        with self.assertRaisesMessage(ValueError, "Task has not finished yet"):
            result.return_value  # noqa: B018
        self.assertEqual((0, []), (result.attempts, result.errors))
        for name, value in values.items():
            self.assertEqual(value, getattr(result, name), name)

    def test_the_backend_is_the_one_in_the_settings(self):
        """Without options there are none."""
        self.assertEqual(default_task_backend, task_backends["default"])
        self.assertIsInstance(task_backends["default"], DatabaseBackend)
        self.assertEqual("default", default_task_backend.alias)
        self.assertEqual({}, default_task_backend.options)

    def test_an_enqueued_task_waits(self):
        """Functions and coroutine functions."""
        for task in (tasks.noop_task, tasks.noop_task_async):
            with self.subTest(task):
                result = task.enqueue(1, two=3)

                self.assert_ready(result, task=task, args=[1], kwargs={"two": 3})
                self.assertTrue(ScheduledTask.objects.filter(pk=result.id).exists())

    async def test_a_task_enqueued_by_a_coroutine_waits(self):
        """Functions and coroutine functions."""
        for task in (tasks.noop_task, tasks.noop_task_async):
            with self.subTest(task):
                result = await task.aenqueue()

                self.assert_ready(result, task=task, args=[], kwargs={})
                self.assertTrue(await ScheduledTask.objects.filter(pk=result.id).aexists())

    def test_refresh_shows_what_has_happened(self):
        """Only then."""
        result = tasks.calculate_meaning_of_life.enqueue()
        ScheduledTask.objects.update(status=TaskResultStatus.SUCCESSFUL)

        self.assertEqual(READY, result.status)
        result.refresh()
        self.assertEqual(TaskResultStatus.SUCCESSFUL, result.status)

    async def test_arefresh_shows_what_has_happened(self):
        """Only then."""
        result = await tasks.calculate_meaning_of_life.aenqueue()
        await ScheduledTask.objects.aupdate(status=TaskResultStatus.SUCCESSFUL)

        self.assertEqual(READY, result.status)
        await result.arefresh()
        self.assertEqual(TaskResultStatus.SUCCESSFUL, result.status)

    def test_a_missing_result_does_not_exist(self):
        """The exception names the id."""
        with self.assertRaisesMessage(TaskResultDoesNotExist, "123"):
            default_task_backend.get_result("123")

    async def test_a_missing_result_does_not_exist_for_coroutines(self):
        """The exception names the id."""
        with self.assertRaisesMessage(TaskResultDoesNotExist, "123"):
            await default_task_backend.aget_result("123")

    def test_a_deleted_result_does_not_exist(self):
        """The row is all there is."""
        result = tasks.noop_task.enqueue()
        ScheduledTask.objects.all().delete()

        with self.assertRaisesMessage(TaskResultDoesNotExist, result.id):
            default_task_backend.get_result(result.id)

    def test_one_log_line_tells_of_it(self):
        """With the id."""
        with self.assertLogs("django.tasks", "DEBUG") as logs:
            result = tasks.noop_task.enqueue()

        self.assertEqual(1, len(logs.output))
        self.assertIn("enqueued", logs.output[0])
        self.assertIn(result.id, logs.output[0])

    def test_a_backend_that_supports_no_coroutines_refuses_them(self):
        """The flag is what validation goes by."""
        with (
            mock.patch.object(DatabaseBackend, "supports_async_task", False),
            self.assertRaisesMessage(InvalidTask, "Backend does not support async Tasks."),
        ):
            default_task_backend.validate_task(tasks.noop_task_async)

    def test_check_finds_nothing_wrong(self):
        """With settings as plain as these."""
        self.assertEqual([], list(default_task_backend.check()))

    def test_a_task_with_context_waits_like_any_other(self):
        """It is given its context when it runs."""
        self.assertEqual(READY, tasks.get_task_id.enqueue().status)

    def test_enqueue_validates_again(self):
        """The settings may be others than when the copy was made."""
        task = tasks.noop_task.using(queue_name="unknown_queue")

        message = "Queue 'unknown_queue' is not valid for backend"
        with (
            override_settings(TASKS=backend(QUEUES=["queue-1"])),
            self.assertRaisesMessage(InvalidTask, message),
        ):
            task.enqueue()

    async def test_aenqueue_validates_again(self):
        """The settings may be others than when the copy was made."""
        task = tasks.noop_task.using(queue_name="unknown_queue")

        message = "Queue 'unknown_queue' is not valid for backend"
        with (
            override_settings(TASKS=backend(QUEUES=["queue-1"])),
            self.assertRaisesMessage(InvalidTask, message),
        ):
            await task.aenqueue()


@override_settings(TASKS=backend())
class ReadyTransactionTests(TransactionTestCase):
    """A transaction of the caller is joined, not waited for."""

    def test_the_row_is_written_inside_the_transaction(self):
        """It is there before the commit, and after it."""
        with transaction.atomic():
            result = tasks.noop_task.enqueue()

            self.assertIsNotNone(result.enqueued_at)
            self.assertEqual(1, ScheduledTask.objects.count())

        self.assertEqual(1, ScheduledTask.objects.count())
