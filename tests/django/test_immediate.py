"""The option ``immediate``, asked what Django asks of its ImmediateBackend."""

from datetime import timedelta

from django.db import transaction
from django.tasks import TaskResultStatus, default_task_backend, task_backends
from django.tasks.exceptions import InvalidTask
from django.test import TestCase, TransactionTestCase, override_settings
from django.utils import timezone

from dbtasks.backend import DatabaseBackend

from .. import tasks
from ..support.backends import backend

SUCCESSFUL, FAILED = TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED
OPTIONS = {"immediate": True}


@override_settings(TASKS=backend(QUEUES=[], OPTIONS=OPTIONS))
class ImmediateTests(TestCase):
    """Tasks have run when enqueue() returns."""

    def assert_ended(self, result, status, **values):
        """See that the result is whole, and its times in order."""
        self.assertEqual(status, result.status)
        self.assertIs(True, result.is_finished)
        self.assertLessEqual(result.enqueued_at, result.started_at)
        self.assertLessEqual(result.started_at, result.last_attempted_at)
        self.assertLessEqual(result.last_attempted_at, result.finished_at)
        self.assertEqual(1, result.attempts)
        for name, value in values.items():
            self.assertEqual(value, getattr(result, name), name)

    def test_the_backend_is_the_one_in_the_settings(self):
        """With the options as they were written."""
        self.assertEqual(default_task_backend, task_backends["default"])
        self.assertIsInstance(task_backends["default"], DatabaseBackend)
        self.assertEqual(
            ("default", OPTIONS), (default_task_backend.alias, default_task_backend.options)
        )

    def test_enqueue_runs_the_task(self):
        """Functions and coroutine functions."""
        for task in (tasks.noop_task, tasks.noop_task_async):
            with self.subTest(task):
                result = task.enqueue(1, two=3)

                self.assert_ended(result, SUCCESSFUL, task=task, args=[1], kwargs={"two": 3})
                self.assertIsNone(result.return_value)

    async def test_aenqueue_runs_the_task(self):
        """Functions and coroutine functions."""
        for task in (tasks.noop_task, tasks.noop_task_async):
            with self.subTest(task):
                result = await task.aenqueue()

                self.assert_ended(result, SUCCESSFUL, task=task, args=[], kwargs={})
                self.assertIsNone(result.return_value)

    def test_an_exception_makes_the_task_fail(self):
        """SystemExit included; it is logged once, at ERROR, with its message."""
        for task, exception in (
            (tasks.failing_task_value_error, ValueError),
            (tasks.failing_task_system_exit, SystemExit),
        ):
            with self.subTest(task), self.assertLogs("django.tasks", "ERROR") as logs:
                result = task.enqueue()

                message = f"This Task failed due to {exception.__name__}"
                self.assert_ended(result, FAILED, task=task, args=[], kwargs={})
                with self.assertRaisesMessage(ValueError, "Task failed"):
                    result.return_value  # noqa: B018
                self.assertEqual(exception, result.errors[0].exception_class)
                end = f"{exception.__name__}: {message}\n"
                self.assertEqual(end, result.errors[0].traceback[-len(end) :])
                self.assertEqual(1, len(logs.output))
                self.assertIn(message, logs.output[0])

    def test_keyboard_interrupt_reaches_the_caller(self):
        """It is not the task's failure, so none is logged."""
        with self.assertNoLogs("django.tasks", "ERROR"), self.assertRaises(KeyboardInterrupt):
            default_task_backend.enqueue(tasks.failing_task_keyboard_interrupt, [], {})

    def test_an_exception_made_of_another_keeps_its_words(self):
        """Nothing has to be pickled."""
        with self.assertLogs("django.tasks", "ERROR"):
            result = tasks.complex_exception.enqueue()

        self.assert_ended(result, FAILED, task=tasks.complex_exception, _return_value=None)
        self.assertEqual(ValueError, result.errors[0].exception_class)
        self.assertIn('ValueError(ValueError("This task failed"))', result.errors[0].traceback)

    def test_a_return_value_that_is_not_json_makes_the_task_fail(self):
        """With a TypeError that says why."""
        with self.assertLogs("django.tasks", "ERROR"):
            result = tasks.complex_return_value.enqueue()

        self.assert_ended(result, FAILED, _return_value=None)
        self.assertEqual(TypeError, result.errors[0].exception_class)
        self.assertIn("Unsupported type", result.errors[0].traceback)

    def test_the_result_has_the_return_value(self):
        """Now, and when it is read again."""
        result = default_task_backend.enqueue(tasks.calculate_meaning_of_life, [], {})

        self.assert_ended(result, SUCCESSFUL, return_value=42)
        self.assertEqual(result, default_task_backend.get_result(result.id))

    async def test_the_result_of_aenqueue_has_the_return_value(self):
        """Now, and when it is refreshed."""
        result = await default_task_backend.aenqueue(tasks.calculate_meaning_of_life, [], {})
        await result.arefresh()

        self.assertEqual((SUCCESSFUL, 42), (result.status, result.return_value))

    def test_a_run_after_to_come_leaves_the_task_ready(self):
        """Where Django's backend refuses one, ours keeps the row for a runner."""
        later = timezone.now() + timedelta(hours=1)
        result = tasks.noop_task.using(run_after=later).enqueue()

        self.assertEqual(TaskResultStatus.READY, result.status)

    def test_three_log_lines_accompany_a_task(self):
        """Enqueued, running, successful; each names the task."""
        with self.assertLogs("django.tasks", "DEBUG") as logs:
            result = tasks.noop_task.enqueue()

        self.assertEqual(3, len(logs.output))
        words = ("enqueued", "state=RUNNING", "state=SUCCESSFUL")
        for word, line in zip(words, logs.output, strict=True):
            self.assertIn(word, line)
            self.assertIn(result.id, line)

    def test_three_log_lines_accompany_a_task_that_fails(self):
        """Enqueued, running, failed."""
        with self.assertLogs("django.tasks", "DEBUG") as logs:
            result = tasks.failing_task_value_error.enqueue()

        self.assertEqual(3, len(logs.output))
        for word, line in zip(("state=RUNNING", "state=FAILED"), logs.output[1:], strict=True):
            self.assertIn(word, line)
            self.assertIn(result.id, line)

    def test_the_log_of_a_success_has_no_traceback(self):
        """Not even the empty one that exc_info=True would leave."""
        with self.assertLogs("django.tasks", "DEBUG") as logs:
            tasks.noop_task.enqueue()

        self.assertNotIn("NoneType", "".join(logs.output))

    def test_the_context_has_the_result_and_the_attempt(self):
        """The task's own, its first."""
        result = tasks.get_task_id.enqueue()

        self.assertEqual(result.id, result.return_value)
        self.assertEqual(SUCCESSFUL, tasks.check_context.enqueue(1).status)

    def test_enqueue_validates_again(self):
        """The settings may be others than when the copy was made."""
        task = tasks.noop_task.using(queue_name="unknown_queue")

        message = "Queue 'unknown_queue' is not valid for backend"
        with (
            override_settings(TASKS=backend(QUEUES=["queue-1"], OPTIONS=OPTIONS)),
            self.assertRaisesMessage(InvalidTask, message),
        ):
            task.enqueue()

    async def test_aenqueue_validates_again(self):
        """The settings may be others than when the copy was made."""
        task = tasks.noop_task.using(queue_name="unknown_queue")

        message = "Queue 'unknown_queue' is not valid for backend"
        with (
            override_settings(TASKS=backend(QUEUES=["queue-1"], OPTIONS=OPTIONS)),
            self.assertRaisesMessage(InvalidTask, message),
        ):
            await task.aenqueue()


@override_settings(TASKS=backend(OPTIONS=OPTIONS))
class ImmediateTransactionTests(TransactionTestCase):
    """A transaction of the caller is not waited for."""

    def test_the_task_runs_inside_the_transaction(self):
        """It has ended before the commit."""
        with transaction.atomic():
            result = tasks.noop_task.enqueue()

            self.assertEqual(SUCCESSFUL, result.status)

        result.refresh()
        self.assertEqual(SUCCESSFUL, result.status)
