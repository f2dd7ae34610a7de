"""What a timeout, a cancel and the end of a task mean for its connections."""

import time
from unittest import mock

from django.db import connection, connections
from django.test import TransactionTestCase, override_settings

from dbtasks.db import connections as ours
from dbtasks.db.connections import leave_clean

from ..support import tasks
from ..support.backends import backend
from ..support.gates import SlowTestCase
from ..support.rows import vendor
from ..support.waiting import until

TIMEOUT = "dbtasks.exceptions.TaskTimeout"
CANCELLED = "dbtasks.exceptions.TaskCancelled"
RUNNING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' "
    "AND query LIKE 'SELECT pg_sleep%' AND datname = current_database()",
    "mysql": "SELECT count(*) FROM information_schema.processlist "
    "WHERE info LIKE 'SELECT SLEEP%' AND db = DATABASE()",
}


def count_running() -> int:
    """Return how many of the statements run in the server."""
    if vendor() == "sqlite":
        return 0
    with connection.cursor() as cursor:
        cursor.execute(RUNNING[vendor()])
        return int(cursor.fetchone()[0])


class StatementTests(SlowTestCase):
    """A task that waits for the database."""

    def test_a_timeout_ends_the_statement(self):
        """The thread is free again, and so is the server."""
        for _ in range(2):
            result = self.run_to_end(tasks.wait_in_sql.using(timeout=0.3))
            self.assertEqual(("FAILED", [TIMEOUT]), (result.status, self.errors(result)))
            self.assertIn("in wait_in_sql", result.errors[0].traceback)

        until(lambda: count_running() == 0, "The end of the statements")
        self.assertEqual(0, self.runner.abandoned_threads)
        self.assertEqual(3, self.run_to_end(tasks.add, 1, 2).return_value)

    def test_a_cancel_ends_the_statement(self):
        """As a timeout does."""
        result = tasks.wait_in_sql.enqueue()
        self.assertTrue(tasks.Gate.entered.acquire(timeout=10))
        result.cancel()
        self.runner.wait_for(result, 10)

        self.assertEqual(("FAILED", [CANCELLED]), (result.status, self.errors(result)))
        until(lambda: count_running() == 0, "The end of the statement")
        self.assertEqual(0, self.runner.abandoned_threads)

    def test_a_task_that_swallows_the_error(self):
        """Its time is over all the same."""
        result = self.run_to_end(tasks.wait_in_sql_and_swallow.using(timeout=0.3))

        self.assertEqual(("FAILED", [TIMEOUT]), (result.status, self.errors(result)))
        self.assertEqual(0, self.runner.abandoned_threads)

    def test_a_coroutine(self):
        """Its ORM runs in a thread of its own."""
        result = self.run_to_end(tasks.await_in_sql.using(timeout=0.3))

        self.assertEqual(("FAILED", [TIMEOUT]), (result.status, self.errors(result)))
        until(lambda: count_running() == 0, "The end of the statement")
        until(lambda: self.runner.abandoned_threads == 0)


class SessionTests(SlowTestCase):
    """What a task leaves in its session."""

    def test_connections_are_kept(self):
        """The default: the next task of the thread finds it."""
        self.run_to_end(tasks.leave_marks)

        self.assertEqual([True, True], self.run_to_end(tasks.see_marks).return_value)

    @override_settings(TASKS=backend(OPTIONS={"keep_connections": False}))
    def test_each_task_has_new_connections(self):
        """Nothing is left, in the database or in Django."""
        self.runner.close()
        self.runner = self.start_runner()
        self.run_to_end(tasks.leave_marks)

        self.assertEqual([False, False], self.run_to_end(tasks.see_marks).return_value)


class AgeTests(TransactionTestCase):
    """How long a thread keeps a connection."""

    databases = {"default", "other"}

    def test_a_kept_connection_is_replaced_in_the_end(self):
        """To each alias: after a failover it may lead to the wrong server."""
        for alias in ("default", "other"):
            kept = connections[alias]
            kept.close()
            kept.ensure_connection()
            raw = kept.connection
            for _ in range(3):
                leave_clean("a.task", keep=True)
                self.assertIs(raw, kept.connection)
            with mock.patch.object(time, "monotonic", return_value=kept.close_at + 1):
                leave_clean("a.task", keep=True)
                self.assertIsNone(kept.connection)
            kept.ensure_connection()
            leave_clean("a.task", keep=True)
            self.assertIsNotNone(kept.connection)
            left = kept.close_at - time.monotonic()
            self.assertTrue(0 < left <= ours.MAX_KEPT)
