"""Retries, snoozes and discards, run by a real runner."""

import logging
from datetime import timedelta
from typing import Any

from django.tasks import task_backends
from django.test import override_settings

from dbtasks import Task
from dbtasks.rescue import rescue
from dbtasks.store import workers
from dbtasks.testing import RunnerTestCase

from ..support import tasks
from ..support.backends import backend
from ..support.rows import DB, row
from ..support.waiting import until
from ..support.workers import claim, register


class RetryTests(RunnerTestCase):
    """A failed attempt is followed by another, as the policies say."""

    def setUp(self) -> None:
        tasks.remembered.clear()
        super().setUp()
        # The runner and Django tell of each failure.
        for name in ("dbtasks.runner", "django.tasks"):
            logger = logging.getLogger(name)
            self.addCleanup(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)

    def run_to_end(self, task: Task, *args: Any) -> Any:
        return self.runner.wait_for(task.enqueue(*args), 10)

    def test_a_task_is_tried_again_until_it_works(self):
        """The same row: an error for each failure, a worker for each start."""
        result = self.run_to_end(tasks.fail_times.using(max_attempts=5, backoff=0.01), 2)

        self.assertEqual(("SUCCESSFUL", 3), (result.status, result.attempts))
        self.assertEqual(
            ["builtins.ValueError"] * 2, [e.exception_class_path for e in result.errors]
        )
        self.assertEqual([1, 2, 3], tasks.remembered)
        self.assertLess(result.started_at, result.last_attempted_at)

    def test_a_row_forgets_workers_and_counts_attempts(self):
        """A task that is run again for years must not grow. Django counts worker ids."""
        result = self.run_to_end(tasks.fail_times.using(max_attempts=30, backoff=0), 24)

        self.assertEqual(
            ("SUCCESSFUL", 25, 25), (result.status, result.attempts, len(result.worker_ids))
        )
        self.assertEqual(list(range(1, 26)), tasks.remembered)
        self.assertEqual([""] * 5 + [self.runner.worker_id] * 20, result.worker_ids)
        self.assertEqual(20, len(row(result.id).worker_ids))

    def test_attempts_are_counted_and_end(self):
        """No more starts than max_attempts; the row is FAILED then."""
        result = self.run_to_end(tasks.fail_times.using(max_attempts=3, backoff=0.01), 9)

        self.assertEqual(("FAILED", 3, 3), (result.status, result.attempts, len(result.errors)))

    def test_one_attempt_is_the_default(self):
        """Nothing is retried unless somebody asks for it."""
        self.assertEqual(1, self.run_to_end(tasks.fail_times, 9).attempts)

    def test_a_retry_waits_as_a_scheduled_row(self):
        """Between attempts the row is READY and held until its time."""
        result = tasks.fail_times.using(max_attempts=2, backoff=3600).enqueue(1)
        until(lambda: row(result.id).failures == 1)
        waiting = row(result.id)

        self.assertEqual(("READY", "scheduled"), (waiting.status, waiting.hold))
        wait = waiting.run_after - waiting.last_attempted_at
        self.assertAlmostEqual(3600, wait.total_seconds(), delta=5)
        self.assertIsNone(waiting.finished_at)

    def test_exceptions_decide(self):
        """retry_on and discard_on are by class; what is no Exception is not retried."""
        self.assertEqual(3, self.run_to_end(tasks.picky, "value").attempts)
        self.assertEqual(1, self.run_to_end(tasks.picky, "key").attempts)
        self.assertEqual(1, self.run_to_end(tasks.picky, "unicode").attempts)
        self.assertEqual(1, self.run_to_end(tasks.throw.using(max_attempts=3), "exit").attempts)

    def test_a_function_decides_about_the_delay(self):
        """It sees exception and result, may end the retries, and its own failure is no retry."""
        self.assertEqual(3, self.run_to_end(tasks.told, "again").attempts)
        self.assertEqual(1, self.run_to_end(tasks.told, "stop").attempts)
        self.assertEqual(1, self.run_to_end(tasks.told, "broken").attempts)

    def test_a_task_may_ask(self):
        """Retry uses an attempt, Snooze does not, Discard ends it."""
        retried = self.run_to_end(tasks.ask.using(max_attempts=2, backoff=3600), "retry")
        self.assertEqual(("FAILED", 2), (retried.status, retried.attempts))

        snoozed = self.run_to_end(tasks.ask, "snooze")
        self.assertEqual(("SUCCESSFUL", 3, []), (snoozed.status, snoozed.attempts, snoozed.errors))

        discarded = self.run_to_end(tasks.ask.using(max_attempts=5), "discard")
        self.assertEqual(("FAILED", 1), (discarded.status, discarded.attempts))
        self.assertIn("no use", discarded.errors[0].traceback)

    def test_a_coroutine_is_retried_too(self):
        """As any other task."""
        result = self.run_to_end(tasks.athrow.using(max_attempts=2, backoff=0.01), "group")

        self.assertEqual(2, result.attempts)

    def test_settings_give_defaults(self):
        """OPTIONS holds for tasks that say nothing."""
        options = {"max_attempts": 2, "backoff": [0.01]}
        with override_settings(TASKS=backend(OPTIONS=options)):
            other = self.start_runner()
            self.runner.close()
            result = other.wait_for(tasks.fail_times.enqueue(9), 10)

        self.assertEqual(2, result.attempts)

    def test_a_retried_row_can_be_retried_by_hand(self):
        """By hand the count begins anew, the history stays."""
        result = self.run_to_end(tasks.fail_times.using(max_attempts=2, backoff=0.01), 3)
        self.assertTrue(result.retry())
        self.runner.wait_for(result, 10)

        self.assertEqual(("SUCCESSFUL", 4, 3), (result.status, result.attempts, len(result.errors)))


class OnLostTests(RunnerTestCase):
    """on_lost"""

    workers = 1

    def test_a_task_that_must_not_be_repeated_is_failed(self):
        """At most once, for who asks for it."""
        self.runner.close()
        result = tasks.add.using(on_lost="fail").enqueue(1, 2)
        claim(register("victim"))
        workers.declare_lost(DB, "victim", 0)
        rescue(task_backends[self.runner.options.backend])
        result.refresh()

        self.assertEqual(("FAILED", 1), (result.status, result.attempts))
        self.assertEqual([], rescue(task_backends[self.runner.options.backend]))
        self.assertEqual(timedelta(days=7), row(result.id).delete_after - result.finished_at)
