"""What each end of an attempt means: stops, slow receivers, swallowed interrupts, delays."""

import threading
import time
from datetime import timedelta
from typing import Any
from unittest import mock

from django.db import connections
from django.tasks import default_task_backend
from django.tasks.signals import task_finished, task_started
from django.test import SimpleTestCase, TransactionTestCase, override_settings

import dbtasks
from dbtasks import Retry, Snooze, TaskInterrupted, process_one, store
from dbtasks.base import policy
from dbtasks.execution import deadlines, outcomes
from dbtasks.execution.attempt import Attempt
from dbtasks.execution.interrupt import Interruptible
from dbtasks.execution.running import run
from dbtasks.runner import Runner

from .. import tasks as plain
from ..support import tasks
from ..support.backends import backend
from ..support.gates import SlowTestCase
from ..support.rows import make_claim, row
from ..support.waiting import until

LOST = "dbtasks.exceptions.WorkerLost"
TIMEOUT = "dbtasks.exceptions.TaskTimeout"
CANCELLED = "dbtasks.exceptions.TaskCancelled"
RELEASED = "dbtasks.exceptions.TaskReleased"
HOUR = timedelta(hours=1)


class ImpatientTestCase(SlowTestCase):
    """Runners that stop before their tasks have ended."""

    def start_impatient(self, grace: float = 0.1) -> Runner:
        """Start another runner in place of the test's, which would not let tasks be released."""
        self.runner.close()
        runner = Runner(workers=1, grace=grace, init_periodic=False, loop_delay=0.05)
        thread = threading.Thread(target=runner.run)
        thread.start()
        self.addCleanup(thread.join, 10)
        self.addCleanup(runner.stop)
        self.assertTrue(runner.ready.wait(10))
        return runner

    def end(self, runner: Runner) -> None:
        runner.stop()
        self.assertTrue(runner.finished.wait(10))


class AtMostOnceTests(ImpatientTestCase):
    """on_lost="fail", and a runner that stops."""

    def assert_lost(self, result: Any) -> None:
        found = row(result.id)
        self.assertEqual(("FAILED", 1, 1), (found.status, found.attempt, found.lost))
        self.assertEqual(LOST, found.errors[-1][0])
        self.assertIn("The runner stopped while it ran", found.errors[-1][1])
        self.assertEqual(HOUR, found.delete_after - found.finished_at)
        self.assertEqual(1, len(found.worker_ids))

    def once(self, task: Any) -> Any:
        result = task.using(on_lost="fail", retain="1h").enqueue()
        self.assertTrue(tasks.Gate.entered.acquire(timeout=10))
        return result

    def test_a_task_that_checks(self):
        """It has begun, so it is not started again; task_finished is sent."""
        seen: list[str] = []

        def receiver(task_result: Any, **_: Any) -> None:
            seen.append(str(task_result.status))

        task_finished.connect(receiver)
        self.addCleanup(task_finished.disconnect, receiver)
        result = self.once(tasks.obey)
        self.runner.close()

        self.assert_lost(result)
        self.assertEqual(["FAILED"], seen)

    def test_a_task_that_goes_on_beyond_the_grace(self):
        """What it does later changes nothing."""
        runner = self.start_impatient()
        result = self.once(tasks.hang)
        self.end(runner)

        self.assert_lost(result)
        self.let_go()
        self.assert_lost(result)

    def test_a_second_signal(self):
        """Nothing is waited for then."""
        runner = self.start_impatient(60)
        result = self.once(tasks.hang)
        runner.stop()
        self.end(runner)

        self.assert_lost(result)

    def test_a_coroutine(self):
        """As in a thread."""
        runner = self.start_impatient()
        result = self.once(tasks.anap)
        self.end(runner)

        self.assert_lost(result)

    def test_a_task_that_may_run_twice_is_requeued(self):
        """The default."""
        result = tasks.obey.enqueue()
        self.assertTrue(tasks.Gate.entered.acquire(timeout=10))
        self.runner.close()

        self.assertEqual("READY", row(result.id).status)

    @override_settings(TASKS=backend(OPTIONS={"on_lost": "fail", "retain": "1h"}))
    def test_the_option_holds_as_well(self):
        """For tasks that say nothing."""
        self.runner.close()
        self.runner = self.start_runner()
        result = tasks.obey.enqueue()
        self.assertTrue(tasks.Gate.entered.acquire(timeout=10))
        self.runner.close()

        self.assert_lost(result)


class ReleasesTests(ImpatientTestCase):
    """Releases are counted, and may be limited."""

    def release(self, result: Any) -> Any:
        """Let a runner begin the task and stop; return the row."""
        runner = self.start_impatient(0)
        self.assertTrue(tasks.Gate.entered.acquire(timeout=10))
        self.end(runner)
        return row(result.id)

    def counts(self, found: Any) -> tuple[Any, ...]:
        return found.status, found.releases, found.attempt, found.failures, found.lost

    def test_a_task_that_runs_longer_than_its_runners(self):
        """Each release is counted; a warning says so from the third one on."""
        self.runner.close()
        result = tasks.hang.using(max_attempts=1).enqueue()
        with self.assertNoLogs("dbtasks.runner", "WARNING"):
            self.release(result)
            self.assertEqual(("READY", 2, 2, 0, 0), self.counts(self.release(result)))
        for number in (3, 4):
            with self.assertLogs("dbtasks.runner", "WARNING") as logs:
                self.assertEqual(("READY", number, number, 0, 0), self.counts(self.release(result)))
            self.assertIn(f"was released {number} times", " ".join(logs.output))

    @override_settings(TASKS=backend(OPTIONS={"max_releases": 2, "retain": "1h"}))
    def test_one_release_more_than_the_limit(self):
        """The row fails, and says why; a manual retry starts the count anew."""
        self.runner.close()
        result = tasks.hang.enqueue()
        self.release(result)
        self.assertEqual(("READY", 2), self.counts(self.release(result))[:2])
        found = self.release(result)

        self.assertEqual(("FAILED", 3, 3, 0, 0), self.counts(found))
        self.assertEqual([RELEASED] * 3, [path for path, _ in found.errors])
        self.assertIn("was released 3 times; max_releases is 2", found.errors[-1][1])
        self.assertEqual(HOUR, found.delete_after - found.finished_at)
        self.assertTrue(result.retry())
        self.assertEqual(("READY", 0), self.counts(row(result.id))[:2])

    @override_settings(TASKS=backend(OPTIONS={"max_releases": 1}))
    def test_tasks_that_check(self):
        """They are counted as well; task_finished is sent for the last one."""
        seen: list[str] = []

        def receiver(task_result: Any, **_: Any) -> None:
            seen.append(str(task_result.status))

        task_finished.connect(receiver)
        self.addCleanup(task_finished.disconnect, receiver)
        result = tasks.obey.enqueue()
        for status in ("READY", "FAILED"):
            self.runner.close()
            self.runner = self.start_runner()
            self.assertTrue(tasks.Gate.entered.acquire(timeout=10))
            self.runner.close()
            self.assertEqual(status, row(result.id).status)

        self.assertEqual((2, ["FAILED"]), (row(result.id).releases, seen))


class NoReleaseTests(TransactionTestCase):
    """Every other end leaves the count of releases as it is."""

    def test_it_is_kept(self):
        """Also by snoozes, and by rows that have not started."""
        context = default_task_backend.context("w1")
        claim = make_claim(policy='{"max_attempts":2,"backoff":0}')._replace(releases=2)
        now = store.now("default")

        def attempt() -> Attempt:
            made = Attempt(context, claim)
            made.begin()
            made.find()
            return made

        ends = {
            "succeeded": attempt().succeeded(3, "3"),
            "snoozed": attempt().failed(Snooze(0)),
            "retried": attempt().failed(Retry(delay=0)),
            "failed": attempt().failed(dbtasks.Discard()),
            "broken": attempt().broken(ValueError()),
            "not started": attempt().release(),
            "lost": outcomes.lost(
                *("default", claim, "w1"), fails=False, is_cancelled=False, at=now, stay=None
            ),
        }
        self.assertEqual(dict.fromkeys(ends, 2), {how: end.releases for how, end in ends.items()})
        store.settle("default", [ends["snoozed"]])
        self.assertEqual(2, row(claim.id).releases)


class NotStartedTests(TransactionTestCase):
    """The runner stops between the claim and the task."""

    def attempt(self) -> Attempt:
        return Attempt(default_task_backend.context("w1"), make_claim(policy='{"on_lost":"fail"}'))

    def test_a_stop_before_task_started(self):
        """No signal, no attempt, no error: the row is as if it had never been claimed."""
        attempt, seen = self.attempt(), []
        receiver = mock.Mock(side_effect=lambda **_: seen.append(1))
        task_started.connect(receiver)
        self.addCleanup(task_started.disconnect, receiver)
        attempt.ask(dbtasks.TaskReleased())
        outcome = run(attempt)

        self.assertEqual(("READY", 0, None), (outcome.status, outcome.attempt, outcome.errors))
        self.assertEqual([], seen)

    def test_a_release_before_the_task_is_called(self):
        """Then the thread does not call it any more."""
        attempt = self.attempt()
        attempt.begin()
        attempt.find()
        self.assertTrue(attempt.close())
        self.assertEqual(("READY", 0), attempt.release()[2:4])
        with self.assertRaises(dbtasks.TaskReleased):
            attempt.enter()

    def test_a_release_after_the_task_was_called(self):
        """It has begun."""
        attempt = self.attempt()
        attempt.begin()
        attempt.find()
        attempt.enter()

        self.assertEqual(("FAILED", 1), attempt.release()[2:4])

    def test_ctrl_c_in_process_one(self):
        """It has begun."""
        result = plain.interrupt.using(on_lost="fail").enqueue()
        with self.assertRaises(KeyboardInterrupt):
            process_one()

        self.assertEqual(("FAILED", LOST), (row(result.id).status, row(result.id).errors[-1][0]))


class ReceiverTests(SlowTestCase):
    """Receivers of task_finished that take longer than the task may."""

    def test_what_was_returned_stands(self):
        """The time of the task is over when it returns."""
        for task, args in ((tasks.add, [1, 2]), (tasks.nap, [0.0])):
            with self.subTest(task.name):
                self.run_slowly(task, args)

    def run_slowly(self, task: Any, args: list[Any]) -> None:
        over = threading.Event()
        calls: list[Any] = []

        def receiver(task_result: Any, **_: Any) -> None:
            calls.append(task_result.status)
            over.wait(10)

        task_finished.connect(receiver)
        self.addCleanup(task_finished.disconnect, receiver)
        with mock.patch.object(deadlines, "CLEAN_UP_GRACE", 0.05):
            result = task.using(timeout=0.1, max_attempts=2, backoff=0).enqueue(*args)
            until(lambda: calls, "The receiver")
            [attempt] = self.runner._run._pool._held.copy()
            until(lambda: attempt not in self.runner._run._pool.deadlines._endings, "Its deadline")
            over.set()
            self.runner.wait_for(result, 10)
        task_finished.disconnect(receiver)

        self.assertEqual(("SUCCESSFUL", 1, []), (result.status, result.attempts, result.errors))
        self.assertEqual(1, len(calls))


class SwallowedTests(SlowTestCase):
    """An interrupt that does not come out as one."""

    def test_a_task_that_returns_after_it_has_not_succeeded(self):
        """What it has done is not complete."""
        for task in (tasks.make_light_of_it, tasks.amake_light_of_it):
            result = self.run_to_end(task.using(timeout=0.2))
            self.assertEqual(("FAILED", [TIMEOUT]), (result.status, self.errors(result)))

    def test_a_task_that_makes_another_exception_of_it(self):
        """As Django does in the middle of a transaction."""
        for task in (tasks.turn_into_another, tasks.aturn_into_another):
            result = self.run_to_end(task.using(timeout=0.2))
            self.assertEqual(("FAILED", [TIMEOUT]), (result.status, self.errors(result)))
            self.assertIn("ProgrammingError", result.errors[0].traceback)

    def test_a_cancelled_task_that_returns_after_it(self):
        """It was cancelled."""
        result = tasks.make_light_of_it.enqueue()
        self.assertTrue(tasks.Gate.entered.acquire(timeout=10))
        result.cancel()
        self.runner.wait_for(result, 10)

        self.assertEqual(("FAILED", [CANCELLED]), (result.status, self.errors(result)))


class InterruptibleTests(SimpleTestCase):
    """The handshake."""

    def run_interrupted(self, call: Any) -> Any:
        interruptible, began = Interruptible(), threading.Event()

        def interrupt() -> None:
            began.wait(10)
            interruptible.interrupt()

        thread = threading.Thread(target=interrupt)
        thread.start()
        self.addCleanup(thread.join, 10)
        return interruptible.run(call, [began], {})

    def test_one_that_is_swallowed_is_raised_at_the_end(self):
        """Whatever the call returns."""

        def swallow(began: threading.Event) -> str:
            try:
                began.set()
                while True:
                    pass
            except TaskInterrupted:
                return "done"

        with self.assertRaises(TaskInterrupted):
            self.run_interrupted(swallow)


class DelayTests(TransactionTestCase):
    """Durations wherever seconds are."""

    DELAYS = (300, 300.0, "5m", "300", timedelta(minutes=5))

    def wait_of(self, error: BaseException, **policies: Any) -> float | None:
        """Return the seconds until the next attempt of a task that raised that error."""
        attempt = Attempt(default_task_backend.context("w1"), make_claim())
        attempt.begin()
        attempt.task = tasks.add.using(**{"max_attempts": 3} | policies)
        outcome = attempt.failed(error)
        if outcome.run_after is None:
            return None
        return round((outcome.run_after - attempt.at(time.monotonic())).total_seconds())

    def test_retry_and_snooze(self):
        """Also as the first argument of Retry."""
        for delay in self.DELAYS:
            for error in (
                Retry(delay=delay),
                Retry(delay),
                Retry("why", delay=delay),
                Snooze(delay),
            ):
                self.assertEqual(300, self.wait_of(error), repr(delay))
        for error in (Retry(timedelta(0)), Snooze(timedelta(0)), Snooze("0s"), Retry(delay=0)):
            self.assertEqual(0, self.wait_of(error))

    def test_a_message_is_not_a_delay(self):
        """The backoff decides then."""
        for error in (Retry(), Retry("later"), Retry("in 5m"), Retry("")):
            self.assertEqual(60, self.wait_of(error, backoff=60))

    def test_what_is_not_a_duration(self):
        """The task has failed, as before."""
        for error in (Snooze("soon"), Snooze(-1), Snooze(timedelta(-1)), Snooze(None)):
            self.assertIsNone(self.wait_of(error, max_attempts=1))

    def test_backoffs(self):
        """As a value, in a list, and from a function."""
        for delay in self.DELAYS:
            self.assertEqual(300, self.wait_of(ValueError(), backoff=delay))
            self.assertEqual(300, self.wait_of(ValueError(), backoff=[delay]))
            self.assertEqual(
                300, policy.delay_after(lambda *_, d=delay: d, 1, ValueError(), lambda: None)
            )


class CancelInlineTests(TransactionTestCase):
    """A task that process_one() runs is told that it was cancelled."""

    def test_should_stop_turns_true(self):
        """Within about a second."""
        tasks.Gate.entered = threading.Semaphore(0)
        result = tasks.heed.enqueue()

        def cancel() -> None:
            tasks.Gate.entered.acquire(timeout=10)
            result.cancel()
            connections.close_all()

        thread = threading.Thread(target=cancel)
        thread.start()
        began = time.monotonic()
        done = process_one()
        thread.join()

        self.assertEqual(("SUCCESSFUL", "stopped"), (done.status, done.return_value))
        self.assertLess(time.monotonic() - began, 10)
