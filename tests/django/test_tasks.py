"""The decorator, the task and its results, as Django documents them."""

import dataclasses
import pickle
from datetime import datetime
from unittest import skipIf

import django
from django.tasks import (
    DEFAULT_TASK_QUEUE_NAME,
    TaskResultStatus,
    default_task_backend,
    task,
    task_backends,
)
from django.tasks.base import TASK_MAX_PRIORITY, TASK_MIN_PRIORITY, Task
from django.tasks.exceptions import (
    InvalidTask,
    InvalidTaskBackend,
    TaskResultDoesNotExist,
    TaskResultMismatch,
)
from django.test import TestCase, override_settings
from django.utils import timezone
from django.utils.module_loading import import_string

import dbtasks
from dbtasks.backend import DatabaseBackend
from dbtasks.models import ScheduledTask

from .. import tasks
from ..support.backends import backend

NEEDS_61 = skipIf(django.VERSION < (6, 1), "Django 6.0 cannot do this")

TASKS = {
    "default": backend(QUEUES=["default", "queue_1"])["default"],
    "immediate": backend(QUEUES=[], OPTIONS={"immediate": True})["default"],
    "missing": {"BACKEND": "does.not.exist"},
}


@override_settings(TASKS=TASKS, USE_TZ=True)
class TaskTests(TestCase):
    """Declaring, changing and enqueueing tasks."""

    def test_the_backend_is_the_one_in_the_settings(self):
        """Django's proxy and handler agree on it."""
        self.assertEqual(default_task_backend, task_backends["default"])
        self.assertIsInstance(task_backends["default"], DatabaseBackend)

    def test_the_decorator_makes_tasks(self):
        """With and without parentheses, of functions and coroutine functions."""
        for made in (
            tasks.noop_task,
            tasks.noop_task_async,
            tasks.noop_task_from_bare_decorator,
        ):
            self.assertIsInstance(made, Task)
            self.assertIsInstance(made, dbtasks.Task)

    def test_enqueue_returns_a_ready_result_and_writes_its_row(self):
        """The result and the row are one."""
        result = tasks.noop_task.enqueue()

        self.assertEqual(TaskResultStatus.READY, result.status)
        self.assertEqual(tasks.noop_task, result.task)
        self.assertEqual(([], {}), (result.args, result.kwargs))
        self.assertEqual(result.id, str(ScheduledTask.objects.get().pk))

    async def test_aenqueue_does_the_same(self):
        """From a coroutine."""
        result = await tasks.noop_task.aenqueue()

        self.assertEqual(TaskResultStatus.READY, result.status)
        self.assertEqual(tasks.noop_task, result.task)
        self.assertEqual(([], {}), (result.args, result.kwargs))
        self.assertEqual(result.id, str((await ScheduledTask.objects.aget()).pk))

    def test_an_argument_that_is_not_json_is_refused(self):
        """Before any row is written."""
        with self.assertRaisesMessage(TypeError, "Unsupported type"):
            tasks.noop_task.enqueue(datetime.now())

        self.assertFalse(ScheduledTask.objects.exists())

    async def test_an_argument_that_is_not_json_is_refused_by_aenqueue(self):
        """With the same words."""
        with self.assertRaisesMessage(TypeError, "Unsupported type"):
            await tasks.noop_task.aenqueue(datetime.now())

    def test_using_changes_the_priority_of_a_copy(self):
        """The task itself stays."""
        self.assertEqual(1, tasks.noop_task.using(priority=1).priority)
        self.assertEqual(0, tasks.noop_task.priority)

    def test_using_changes_the_queue_of_a_copy(self):
        """The task itself stays."""
        changed = tasks.noop_task.using(queue_name="queue_1")

        self.assertEqual("queue_1", changed.queue_name)
        self.assertEqual(DEFAULT_TASK_QUEUE_NAME, tasks.noop_task.queue_name)

    def test_using_changes_the_run_after_of_a_copy(self):
        """The task itself stays."""
        now = timezone.now()

        self.assertEqual(now, tasks.noop_task.using(run_after=now).run_after)
        self.assertIsNone(tasks.noop_task.run_after)

    def test_using_an_unknown_backend_is_refused(self):
        """One that TASKS does not name."""
        with self.assertRaisesMessage(
            InvalidTaskBackend, "The connection 'unknown' doesn't exist."
        ):
            tasks.noop_task.using(backend="unknown")

    def test_using_a_backend_that_cannot_be_imported_is_refused(self):
        """One that TASKS names wrongly."""
        message = "Could not find backend 'does.not.exist': No module named 'does'"
        with self.assertRaisesMessage(InvalidTaskBackend, message):
            tasks.noop_task.using(backend="missing")

    def test_using_nothing_makes_an_equal_copy(self):
        """Not the same object."""
        copy = tasks.noop_task.using()

        self.assertEqual(tasks.noop_task, copy)
        self.assertIsNot(tasks.noop_task, copy)

    def test_using_can_be_chained(self):
        """Earlier changes are kept, earlier copies are not changed."""
        now = timezone.now()
        first = tasks.noop_task.using(run_after=now)
        second = first.using(priority=10)

        self.assertEqual((now, 10), (second.run_after, second.priority))
        self.assertEqual(0, first.priority)

    def test_refresh_leaves_an_unchanged_result_as_it_is(self):
        """Field by field."""
        result = tasks.noop_task.enqueue()
        before = dataclasses.asdict(result)

        result.refresh()

        self.assertEqual(before, dataclasses.asdict(result))

    async def test_arefresh_leaves_an_unchanged_result_as_it_is(self):
        """Field by field."""
        result = await tasks.noop_task.aenqueue()
        before = dataclasses.asdict(result)

        await result.arefresh()

        self.assertEqual(before, dataclasses.asdict(result))

    def test_a_naive_run_after_is_refused(self):
        """Under USE_TZ it could mean any moment."""
        with self.assertRaisesMessage(InvalidTask, "run_after must be an aware datetime."):
            tasks.noop_task.using(run_after=datetime.now())

    def test_priorities_are_whole_numbers_within_django_s_bounds(self):
        """Both ends included."""
        message = (
            f"priority must be a whole number between {TASK_MIN_PRIORITY} and {TASK_MAX_PRIORITY}."
        )
        for priority in (-101, 101, 3.1):
            with self.subTest(priority), self.assertRaisesMessage(InvalidTask, message):
                tasks.noop_task.using(priority=priority)
        for priority in (100, -100, 0):
            tasks.noop_task.using(priority=priority)

    def test_a_queue_that_is_not_in_queues_is_refused(self):
        """Unless QUEUES is empty, which allows any."""
        with self.assertRaisesMessage(InvalidTask, "Queue 'queue-2' is not valid for backend."):
            tasks.noop_task.using(queue_name="queue-2")

        changed = tasks.noop_task.using(queue_name="queue-2", backend="immediate")
        self.assertEqual("queue-2", changed.queue_name)

    def test_call_and_acall_run_the_function_here(self):
        """Functions and coroutine functions alike."""
        self.assertEqual(42, tasks.calculate_meaning_of_life.call())
        self.assertIsNone(tasks.noop_task_async.call())

    async def test_acall_awaits_the_function_here(self):
        """Functions and coroutine functions alike."""
        self.assertEqual(42, await tasks.calculate_meaning_of_life.acall())
        self.assertIsNone(await tasks.noop_task_async.acall())

    def test_get_result_returns_an_equal_result(self):
        """From the task and from the backend."""
        result = default_task_backend.enqueue(tasks.noop_task, (), {})

        self.assertEqual(result, tasks.noop_task.get_result(result.id))
        self.assertEqual(result, default_task_backend.get_result(result.id))

    async def test_aget_result_returns_an_equal_result(self):
        """From the task and from the backend."""
        result = await default_task_backend.aenqueue(tasks.noop_task, (), {})

        self.assertEqual(result, await tasks.noop_task.aget_result(result.id))
        self.assertEqual(result, await default_task_backend.aget_result(result.id))

    async def test_a_missing_result_does_not_exist(self):
        """An id that is no UUID is as missing as any (B19)."""
        with self.assertRaises(TaskResultDoesNotExist):
            await tasks.noop_task.aget_result("123")

    def test_a_result_of_another_task_is_a_mismatch(self):
        """Each task reads its own results."""
        result = default_task_backend.enqueue(tasks.noop_task_async, (), {})

        with self.assertRaisesMessage(TaskResultMismatch, "Task does not match"):
            tasks.noop_task.get_result(result.id)

    async def test_a_result_of_another_task_is_a_mismatch_for_aget_result(self):
        """Each task reads its own results."""
        result = await default_task_backend.aenqueue(tasks.noop_task_async, (), {})

        with self.assertRaisesMessage(TaskResultMismatch, "Task does not match"):
            await tasks.noop_task.aget_result(result.id)

    def test_only_functions_of_a_module_can_be_tasks(self):
        """Neither builtins nor methods."""
        message = "Task function must be defined at a module level."
        for func in (any, self.test_only_functions_of_a_module_can_be_tasks):
            with self.subTest(func), self.assertRaisesMessage(InvalidTask, message):
                task()(func)

    def test_get_backend_returns_the_task_s_own(self):
        """The one of its alias."""
        changed = tasks.noop_task.using(backend="immediate")

        self.assertEqual("default", tasks.noop_task.get_backend().alias)
        self.assertEqual("immediate", changed.get_backend().alias)

    def test_name_and_module_path_are_the_function_s(self):
        """The path leads back to the task."""
        for found in (tasks.noop_task, tasks.noop_task_async):
            self.assertEqual(f"tests.tasks.{found.name}", found.module_path)
            self.assertIs(found, import_string(found.module_path))

    @NEEDS_61
    def test_a_task_can_be_pickled(self):
        """By its path; also with changed values."""
        for original in (tasks.noop_task, tasks.short_lived.using(queue_name="queue_1")):
            self.assertEqual(original, pickle.loads(pickle.dumps(original)))

    @NEEDS_61
    def test_unpickling_what_is_no_task_is_an_error(self):
        """Whether the path leads nowhere or to something else."""
        for path in ("does.not.exist.fake_task", "builtins.any"):
            message = f"Expected {path!r} to point to a Task instance."
            with self.subTest(path), self.assertRaisesMessage(ValueError, message):
                dbtasks.Task._reconstruct({"func": path})

    @override_settings(TASKS={})
    def test_without_backends_nothing_can_be_enqueued(self):
        """Not even tasks that were declared before."""
        with self.assertRaises(InvalidTaskBackend):
            tasks.noop_task.enqueue()

    def failed_error(self):
        """Return the error of a task that has failed."""
        with self.assertLogs("django.tasks"):
            result = tasks.failing_task_value_error.using(backend="immediate").enqueue()
        self.assertEqual(1, len(result.errors))
        return result.errors[0]

    def test_an_error_whose_path_is_no_exception_is_refused(self):
        """exception_class never returns something else."""
        error = dataclasses.replace(self.failed_error(), exception_class_path="subprocess.run")

        message = "'subprocess.run' does not reference a valid exception."
        with self.assertRaisesMessage(ValueError, message):
            error.exception_class  # noqa: B018

    def test_an_error_whose_class_is_gone_is_an_import_error(self):
        """Its path and traceback can still be read."""
        error = dataclasses.replace(self.failed_error(), exception_class_path="does.not.exist")

        with self.assertRaises(ImportError):
            error.exception_class  # noqa: B018

    def test_takes_context_needs_an_argument_for_it(self):
        """Named context, and first."""
        message = "Task takes context but does not have a first argument of 'context'."
        with self.assertRaisesMessage(InvalidTask, message):
            task(takes_context=True)(tasks.calculate_meaning_of_life.func)

    def test_run_after_cannot_be_declared(self):
        """It belongs to one call; 6.0 says so by the name alone."""
        for decorator in (task, dbtasks.task):
            with self.subTest(decorator), self.assertRaisesRegex(TypeError, "run_after"):
                decorator(run_after=timezone.now())(tasks.calculate_meaning_of_life.func)
