"""Backends that others derive from ours."""

import logging
from typing import Any
from unittest import mock

from django.tasks import default_task_backend, task_backends
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.exceptions import InvalidTask
from django.test import TestCase, override_settings

import dbtasks
from dbtasks.backend import DatabaseBackend
from dbtasks.models import ScheduledTask

from .. import tasks

logger = logging.getLogger(__name__)


class LoggingBackend(DatabaseBackend):
    """Says what it enqueues."""

    supports_priority = False

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        logger.info("Enqueueing %s.", task.name)
        return super().enqueue(task, args, kwargs)


class ForeignBackend(BaseTaskBackend):
    """Has no part in dbtasks, nor an enqueue()."""


@override_settings(
    TASKS={
        "default": {
            "BACKEND": f"{__name__}.LoggingBackend",
            "OPTIONS": {"retain": "1d"},
        },
        "no_enqueue": {"BACKEND": f"{__name__}.ForeignBackend"},
    }
)
class CustomBackendTests(TestCase):
    """A subclass is a backend like any other."""

    def test_the_backend_is_the_one_in_the_settings(self):
        """With the options as they were written."""
        self.assertEqual(default_task_backend, task_backends["default"])
        self.assertIsInstance(task_backends["default"], LoggingBackend)
        self.assertEqual({"retain": "1d"}, default_task_backend.options)

    def test_its_flags_decide_about_coroutines(self):
        """A subclass may refuse them."""
        with (
            mock.patch.object(LoggingBackend, "supports_async_task", False),
            self.assertRaisesMessage(InvalidTask, "Backend does not support async Tasks."),
        ):
            default_task_backend.validate_task(tasks.noop_task_async)

    def test_its_flags_decide_about_priorities(self):
        """A subclass may refuse them."""
        message = "Backend does not support setting priority of tasks."
        with self.assertRaisesMessage(InvalidTask, message):
            tasks.noop_task.using(priority=10)

    def test_its_enqueue_is_called(self):
        """And may hand on to ours."""
        with self.assertLogs(__name__, "INFO") as logs:
            tasks.noop_task.enqueue()

        self.assertIn("Enqueueing noop_task.", logs.output[0])
        self.assertEqual(1, ScheduledTask.objects.count())

    def test_its_rows_can_be_run(self):
        """Also without a runner."""
        tasks.add.enqueue(1, 2)

        self.assertEqual(3, dbtasks.process_one().return_value)

    def test_a_backend_without_enqueue_cannot_be_used(self):
        """Our decorator and using() leave that to Django."""
        message = "Can't instantiate abstract class ForeignBackend"
        with self.assertRaisesMessage(TypeError, message):
            tasks.noop_task.using(backend="no_enqueue")
