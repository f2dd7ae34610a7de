"""Stored tracebacks begin where the task does."""

from typing import Any

from django.test import TransactionTestCase

from dbtasks import process_one

from ..support import tasks
from ..support.gates import SlowTestCase

OURS = ("dbtasks/execution", "django/tasks/base.py", "asgiref")


class TracebackTests(SlowTestCase):
    """In a runner."""

    def first_frame(self, result: Any) -> str:
        text = result.errors[-1].traceback
        for ours in OURS:
            self.assertNotIn(ours, text)
        return text.splitlines()[1]

    def test_a_task_in_a_thread(self):
        """Its own frame comes first."""
        result = self.run_to_end(tasks.picky, "key")

        self.assertIn("in picky", self.first_frame(result))

    def test_a_coroutine(self):
        """As well."""
        result = self.run_to_end(tasks.athrow, "memory")

        self.assertIn("in athrow", self.first_frame(result))

    def test_a_chain_of_exceptions(self):
        """Each of them."""
        result = self.run_to_end(tasks.raise_from)

        self.assertEqual(2, result.errors[-1].traceback.count("Traceback (most recent call last)"))
        self.assertIn("in raise_from", self.first_frame(result))


class InlineTests(TransactionTestCase):
    """Without a runner."""

    def test_a_task_and_a_coroutine(self):
        """asyncio's own frames may stay, ours do not."""
        for task, what in ((tasks.picky, "key"), (tasks.athrow, "memory")):
            task.enqueue(what)
            with self.assertLogs("django.tasks", "ERROR") as logs:
                result = process_one()
            for text in (result.errors[-1].traceback, *logs.output):
                self.assertIn(f"in {task.name}", text)
                for ours in OURS:
                    self.assertNotIn(ours, text)
