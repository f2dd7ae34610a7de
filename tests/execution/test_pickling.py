"""Results in pickles, and attempts inside enqueue()."""

import copy
import pickle
from unittest import skipIf

import django
from django.tasks import default_task_backend
from django.test import TransactionTestCase, override_settings

import dbtasks

from ..support import tasks
from ..support.backends import backend
from ..support.rows import row


@skipIf(django.VERSION < (6, 1), "Django's own tasks cannot be pickled before 6.1")
class PicklingTests(TransactionTestCase):
    """Caches and other processes may keep a result."""

    def test_a_result(self):
        """It is the same afterwards, its task included, and can be refreshed."""
        kept = tasks.add.using(priority=3, max_attempts=2, timeout=None).enqueue(1, 2)
        for result in (kept, default_task_backend.get_result(kept.id)):
            copied = pickle.loads(pickle.dumps(result))
            self.assertEqual(result, copied)
            self.assertEqual(result.task, copied.task)
            self.assertIs(tasks.add.func, copied.task.func)
        dbtasks.process_one()
        copied.refresh()

        self.assertEqual((3, "SUCCESSFUL"), (copied.return_value, copied.status))
        self.assertEqual(copied, pickle.loads(pickle.dumps(copied)))
        self.assertEqual(copied, copy.deepcopy(copied))

    def test_a_task(self):
        """As it was declared, and as it was changed."""
        for task in (tasks.add, tasks.decorated.using(retain="1h", meta={"a": 1})):
            self.assertEqual(task, pickle.loads(pickle.dumps(task)))

    def test_a_result_whose_function_is_gone(self):
        """It cannot be read back, and says which function is missing."""
        result = tasks.add.enqueue(1, 2)
        type(row(result.id)).objects.update(task_path="tests.support.tasks.long_gone")
        gone = default_task_backend.get_result(result.id)

        with self.assertRaisesMessage(ValueError, "tests.support.tasks.long_gone"):
            pickle.loads(pickle.dumps(gone))


class ImmediateTests(TransactionTestCase):
    """max_attempts under the option `immediate`."""

    @override_settings(TASKS=backend(OPTIONS={"immediate": True, "max_attempts": 3}))
    def test_the_first_attempt_runs_inside_enqueue(self):
        """Nothing waits there for the next one: the row is READY, for whoever runs it later."""
        with self.assertLogs("dbtasks.runner", "WARNING"):
            result = tasks.fail_times.enqueue(1)

        self.assertEqual(("READY", 1, 1), (result.status, result.attempts, len(result.errors)))
        self.assertEqual("scheduled", row(result.id).hold)
