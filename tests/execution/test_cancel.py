"""Cancelling tasks that run."""

import threading
from typing import Any
from unittest import mock

from django.test import TransactionTestCase, override_settings

from dbtasks import process_one, store
from dbtasks.models import ScheduledTask
from dbtasks.store import workers

from ..support import tasks
from ..support.backends import backend
from ..support.gates import SlowTestCase
from ..support.processes import ProcessTestCase, freeze
from ..support.rows import DB, row
from ..support.waiting import until
from ..tasks import wait_for_file

CANCELLED = "dbtasks.exceptions.TaskCancelled"


class RunningTests(SlowTestCase):
    """A running task is asked to stop by whomever, and its runner sees to it."""

    def cancel(self, task: Any, *args: Any) -> Any:
        """Cancel a call of the task once it runs; return its result when it has ended."""
        result = task.enqueue(*args)
        self.assertTrue(tasks.Gate.entered.acquire(timeout=10))
        self.assertTrue(result.cancel())
        return self.runner.wait_for(result, 10)

    def test_python_code_is_broken_off(self):
        """The row is FAILED within seconds, and the next task runs."""
        result = self.cancel(tasks.spin)

        self.assertEqual(("FAILED", [CANCELLED]), (result.status, self.errors(result)))
        self.assertIn("in spin", result.errors[0].traceback)
        self.assertEqual(3, self.run_to_end(tasks.add, 1, 2).return_value)

    def test_a_cancelled_task_is_not_retried(self):
        """However many attempts it has left."""
        result = self.cancel(tasks.spin.using(max_attempts=5, backoff=0))

        self.assertEqual(("FAILED", 1), (result.status, result.attempts))
        self.assertFalse(row(result.id).cancel_requested)

    def test_check_ends_the_task(self):
        """It raises TaskCancelled."""
        result = self.cancel(tasks.obey.using(max_attempts=5, backoff=0))

        self.assertEqual(("FAILED", [CANCELLED]), (result.status, self.errors(result)))
        self.assertIn("context.check()", result.errors[0].traceback)

    def test_a_task_that_returns_has_succeeded(self):
        """What it has done is done; the wish to cancel it is forgotten."""
        result = self.cancel(tasks.heed)

        self.assertEqual("stopped", result.return_value)
        self.assertFalse(row(result.id).cancel_requested)

    def test_a_task_that_wants_to_run_again_does_not(self):
        """Snooze, and any exception, end it as cancelled."""
        result = self.cancel(tasks.snooze_when_asked)

        self.assertEqual(("FAILED", [CANCELLED]), (result.status, self.errors(result)))

    def test_a_task_that_hangs_in_c_is_abandoned(self):
        """As at a timeout."""
        result = self.cancel(tasks.hang)

        self.assertEqual(("FAILED", [CANCELLED]), (result.status, self.errors(result)))
        self.assertEqual(1, self.runner.abandoned_threads)
        self.assertEqual(3, self.run_to_end(tasks.add, 1, 2).return_value)

    def test_coroutines_are_cancelled(self):
        """One is cancelled; one that swallows that is abandoned."""
        for task in (tasks.anap, tasks.arefuse):
            result = self.cancel(task)
            self.assertEqual(("FAILED", [CANCELLED]), (result.status, self.errors(result)))

    def test_a_cancel_outdoes_a_timeout(self):
        """Which would be followed by another attempt."""
        result = tasks.hang.using(timeout=0.1, max_attempts=5, backoff=0).enqueue()
        self.assertTrue(tasks.Gate.entered.acquire(timeout=10))
        result.cancel()
        self.runner.wait_for(result, 10)

        self.assertEqual(("FAILED", CANCELLED), (result.status, self.errors(result)[-1]))

    def test_a_row_that_was_not_asked_is_left_alone(self):
        """Neighbours of the same runner go on."""
        other = tasks.nap.enqueue(3)
        self.cancel(tasks.anap)

        self.assertEqual(3, self.runner.wait_for(other, 10).return_value)

    def test_a_finished_task_is_not_cancelled(self):
        """The answer is False, and nothing is changed."""
        result = self.run_to_end(tasks.add, 1, 2)

        self.assertFalse(result.cancel())
        self.assertEqual("SUCCESSFUL", row(result.id).status)

    def test_an_idle_runner_asks_nothing(self):
        """Only while something runs does the runner ask what was cancelled."""
        until(lambda: self.runner._run._pool.idle)
        with mock.patch.object(store, "cancel_requests") as asked:
            for _ in range(3):
                self.runner._run.poll_now()
                self.runner.wait()

        asked.assert_not_called()


class BetweenTests(SlowTestCase):
    """A row that goes back to be READY is cancelled instead."""

    def deafen(self) -> None:
        """Let the runner hear of no cancel for the rest of the test."""
        asked = threading.Event()
        deaf = mock.patch.object(store, "cancel_requests", lambda *_: asked.set() or [])
        deaf.start()
        self.addCleanup(deaf.stop)
        # The last question that is answered truly has been asked before.
        self.assertTrue(asked.wait(10))

    def ask(self, task: Any, *args: Any) -> Any:
        """Note the cancel on a row that runs, unheard by its runner; return its result."""
        result = task.enqueue(*args)
        self.assertTrue(tasks.Gate.entered.acquire(timeout=10))
        self.deafen()
        self.assertEqual(1, store.request_cancel(DB, [result.id]))
        tasks.Gate.opened.set()
        return self.runner.wait_for(result, 10)

    def test_a_retry_becomes_a_cancellation(self):
        """The error of the attempt stays; the row does not wait for the next one."""
        result = self.ask(tasks.fail_at_gate.using(max_attempts=5, backoff=3600))

        self.assertEqual(
            ("FAILED", ["builtins.ValueError", CANCELLED]), (result.status, self.errors(result))
        )
        self.assertIsNotNone(row(result.id).delete_after)
        self.assertEqual((None, 1), (row(result.id).run_after, result.attempts))

    def test_a_snooze_becomes_a_cancellation(self):
        """It leaves no error but that."""
        result = self.ask(tasks.snooze_at_gate)

        self.assertEqual(("FAILED", [CANCELLED]), (result.status, self.errors(result)))

    def test_a_success_stands(self):
        """The task ended before its runner heard."""
        result = self.ask(tasks.wait_at_gate)

        self.assertEqual("SUCCESSFUL", result.status)
        self.assertFalse(row(result.id).cancel_requested)

    def test_a_row_that_was_claimed_and_not_started(self):
        """It is requeued when the runner stops."""
        tasks.wait_at_gate.enqueue()
        self.assertTrue(tasks.Gate.entered.acquire(timeout=10))
        self.deafen()
        [claim] = [
            store.claim_one(DB, "default", self.runner.worker_id, tasks.add.enqueue(1, 2).id)
        ]
        self.runner._run._pool.submit([claim])
        store.request_cancel(DB, [claim.id])
        self.runner.stop()
        until(lambda: row(claim.id).status == "FAILED")

        self.assertEqual([CANCELLED], [error[0] for error in row(claim.id).errors])
        self.assertEqual(0, row(claim.id).attempt)
        tasks.Gate.opened.set()


class InlineTests(TransactionTestCase):
    """process_one() and immediate, where nobody asks while the task runs."""

    def test_a_snooze_of_a_cancelled_row_ends_it(self):
        """At the end of the attempt at the latest."""
        result = tasks.cancel_itself.enqueue()
        ended = process_one()

        self.assertEqual(("FAILED", "FAILED"), (ended.status, row(result.id).status))
        self.assertEqual(CANCELLED, ended.errors[-1].exception_class_path)

    @override_settings(TASKS=backend(OPTIONS={"immediate": True}))
    def test_immediate_tasks_can_be_cancelled(self):
        """The row is not left RUNNING."""
        result = tasks.cancel_itself.enqueue()

        self.assertEqual(("FAILED", CANCELLED), (result.status, row(result.id).errors[-1][0]))


class LostTests(ProcessTestCase):
    """The runner dies before it hears."""

    def test_the_rescue_ends_the_row_as_cancelled(self):
        """It does not start again elsewhere."""
        result = wait_for_file.enqueue(str(self.folder))
        killed = self.start("taskrunner", "-w", 1)
        until((self.folder / "started").exists, "The task")
        freeze(killed.process.pid)
        self.assertTrue(result.cancel())
        killed.kill()
        self.start("taskrunner", "-w", 1).wait_for("Stop with Ctrl-C")
        until(lambda: result.refresh() or result.is_finished, "The result")

        self.assertEqual(("FAILED", 1), (result.status, result.attempts))
        self.assertEqual([CANCELLED], [error.exception_class_path for error in result.errors])
        self.assertIn("worker was lost", result.errors[0].traceback)

    def test_a_runner_in_another_process_hears(self):
        """By the row alone, within seconds."""
        result = wait_for_file.enqueue(str(self.folder))
        self.start("taskrunner", "-w", 1)
        until((self.folder / "started").exists, "The task")
        self.assertTrue(result.cancel())
        result.wait(15)

        self.assertEqual([CANCELLED], [error.exception_class_path for error in result.errors])
        self.assertFalse(ScheduledTask.objects.running().exists())
        self.assertEqual(1, len(workers.others(DB, "me", "default")))
