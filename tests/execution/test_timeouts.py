"""Timeouts: what takes too long ends, and the slot is free for the next."""

import logging
import os
import random
import signal
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any
from unittest import mock

from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.tasks import default_task_backend, task_backends
from django.tasks.exceptions import InvalidTask
from django.tasks.signals import task_finished
from django.test import SimpleTestCase, TransactionTestCase, override_settings

import dbtasks
from dbtasks import TaskContext, TaskInterrupted, TaskTimeout, options, process_one
from dbtasks.db.connections import drop
from dbtasks.execution.attempt import Attempt
from dbtasks.execution.deadlines import Deadlines
from dbtasks.execution.interrupt import Interruptible
from dbtasks.execution.running import run
from dbtasks.models import ScheduledTask
from dbtasks.testing import RunnerTestCase

from ..support import tasks
from ..support.backends import backend
from ..support.gates import SlowTestCase
from ..support.processes import ProcessTestCase
from ..support.rows import DB, make_claim, make_task, row, vendor
from ..support.waiting import until
from ..tasks import add, wait_for_file

TIMEOUT = "dbtasks.exceptions.TaskTimeout"


class StartTests(TransactionTestCase):
    """From when a timeout counts; no runner takes the row."""

    def test_its_time_is_that_of_the_row(self):
        """However late the thread gets to the task, or the clock to the attempt."""
        attempt = Attempt(default_task_backend.context("w1"), make_claim("w1"))
        attempt.begin()
        attempt.started -= 60
        began, over = attempt.started, threading.Event()
        deadlines = Deadlines(lambda _: over.set(), lambda _: False, lambda: None)
        self.addCleanup(deadlines.stop)
        with mock.patch.object(Attempt, "timeout", 50.0):
            deadlines.watch(attempt)
            self.assertTrue(over.wait(10))
        outcome = run(attempt)

        self.assertEqual(attempt.at(began), outcome.started_at)


class InterruptedConnectionTests(TransactionTestCase):
    """A connection of SQLite after an interrupt in the middle of its rows."""

    def test_its_transaction_ends(self):
        """Although a traceback holds the cursor: others would wait for the file for ever."""
        if vendor() != "sqlite":
            self.skipTest("the servers of other databases end a transaction with its connection")
        broken = connections[DB]
        transaction.atomic().__enter__()
        make_task()
        try:
            self.stop_in_the_middle(broken.connection)
        except ValueError as error:
            kept = error
            drop(broken)

        self.assertEqual(0, ScheduledTask.objects.count())
        make_task()
        self.assertIsNotNone(kept.__traceback__)

    def stop_in_the_middle(self, raw: Any) -> None:
        rows = raw.execute(
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
            "SELECT x FROM n LIMIT 10"
        )
        rows.fetchone()
        raw.interrupt()
        raise ValueError


class ThreadTests(SlowTestCase):
    """Tasks in threads."""

    def test_python_code_is_broken_off(self):
        """It ends FAILED right after its time, and its traceback shows where it was."""
        result = self.run_to_end(tasks.spin.using(timeout=0.2))
        took = result.finished_at - result.started_at

        self.assertEqual(("FAILED", [TIMEOUT]), (result.status, self.errors(result)))
        self.assertTrue(timedelta(seconds=0.2) <= took < timedelta(seconds=1), took)
        self.assertIn("in spin", result.errors[0].traceback)
        self.assertIn("longer than its timeout of 0.2 s", result.errors[0].traceback)
        self.assertEqual(0, self.runner.abandoned_threads)

    def test_the_thread_s_connection_is_not_used_again(self):
        """It may have been interrupted in the middle of a statement or a transaction."""
        first = self.run_to_end(tasks.connection_id).return_value
        result = self.run_to_end(tasks.spin_in_transaction.using(timeout=0.2))
        self.assertEqual([TIMEOUT], self.errors(result))
        second = self.run_to_end(tasks.connection_id).return_value

        if vendor() != "sqlite":  # which tells an address, and that may come again
            self.assertNotEqual(first, second)
        self.assertEqual(0, ScheduledTask.objects.filter(task_path="left.open").count())

    def test_except_exception_does_not_keep_a_task_alive(self):
        """The interrupt is no Exception."""
        result = self.run_to_end(tasks.spin_on.using(timeout=0.2))

        self.assertEqual((["FAILED"], []), ([result.status], tasks.remembered))

    def test_a_task_that_finishes_in_time_is_not_touched(self):
        """Nor is the one after it."""
        for n in range(3):
            result = self.run_to_end(tasks.add.using(timeout=0.3), n, 1)
            self.assertEqual(n + 1, result.return_value)
        # A coroutine leaves the thread idle until the last of those timeouts would be over.
        self.assertEqual(0.4, self.run_to_end(tasks.nap, 0.4).return_value)

        self.assertEqual(3, self.run_to_end(tasks.add, 1, 2).return_value)

    def test_a_task_that_heeds_the_context_succeeds(self):
        """It has a moment after its time, and what it returns then stands."""
        result = self.run_to_end(tasks.heed.using(timeout=0.2))

        self.assertEqual("stopped", result.return_value)

    def test_check_ends_the_task(self):
        """It raises TaskTimeout, which is a failed attempt."""
        result = self.run_to_end(tasks.obey.using(timeout=0.2))

        self.assertEqual(("FAILED", [TIMEOUT]), (result.status, self.errors(result)))
        self.assertIn("context.check()", result.errors[0].traceback)

    def test_a_task_may_end_in_its_own_way(self):
        """Such as Snooze, once its time is over."""
        result = self.run_to_end(tasks.snooze_in_time.using(timeout=0.2))

        self.assertEqual(("the rest", 2, []), (result.return_value, result.attempts, result.errors))

    def test_a_task_that_hangs_in_c_is_abandoned(self):
        """Its row ends, saying where it hangs; its thread is replaced, and the next task runs."""
        result = self.run_to_end(tasks.hang.using(timeout=0.2))

        self.assertEqual(("FAILED", [TIMEOUT]), (result.status, self.errors(result)))
        self.assertIn("select.select(", result.errors[0].traceback)
        self.assertLess(result.finished_at - result.started_at, timedelta(seconds=3))
        self.assertEqual(1, self.runner.abandoned_threads)
        self.assertEqual(3, self.run_to_end(tasks.add, 1, 2).return_value)

    def test_a_late_end_is_dropped(self):
        """What hung comes back, is broken off, and leaves neither trace nor thread."""
        result = self.run_to_end(tasks.hang.using(timeout=0.2))
        before = row(result.id)
        self.let_go()
        self.run_to_end(tasks.add, 1, 2)
        after = row(result.id)

        self.assertEqual([], tasks.remembered)
        self.assertEqual(
            (before.status, before.errors, before.finished_at),
            (after.status, after.errors, after.finished_at),
        )

    def test_a_late_end_does_not_touch_the_next_attempt(self):
        """The row runs again while its first thread still hangs."""
        result = tasks.hang.using(timeout=2, max_attempts=2, backoff=0).enqueue()
        for _ in range(2):
            self.assertTrue(tasks.Gate.entered.acquire(timeout=10))
        until(lambda: row(result.id).attempt == 2)
        self.let_go()
        self.runner.wait_for(result, 10)

        self.assertEqual(("SUCCESSFUL", [TIMEOUT]), (result.status, self.errors(result)))
        self.assertEqual([1], tasks.remembered)

    def test_a_task_that_swallows_everything_is_abandoned(self):
        """It was told twice."""
        result = self.run_to_end(tasks.refuse.using(timeout=0.2))

        self.assertEqual(("FAILED", [TIMEOUT]), (result.status, self.errors(result)))
        self.assertEqual([2], tasks.remembered)

    def test_a_timeout_is_a_failed_attempt(self):
        """max_attempts, backoff and retry_on hold; decorator and settings say so, too."""
        result = self.run_to_end(tasks.decorated)
        self.assertEqual(("FAILED", [TIMEOUT] * 2), (result.status, self.errors(result)))

        options = {"timeout": timedelta(seconds=0.2), "max_attempts": 3, "backoff": 0}
        with override_settings(TASKS=backend(OPTIONS=options)):
            self.runner.close()
            self.runner = self.start_runner()
            result = self.run_to_end(tasks.spin)
        self.assertEqual(("FAILED", [TIMEOUT] * 3), (result.status, self.errors(result)))

    def test_task_finished_is_sent_once(self):
        """In the thread that takes the other's place, if that hangs."""
        seen = []

        def receiver(task_result: Any, **kwargs: Any) -> None:
            seen.append((str(task_result.status), threading.current_thread()))

        task_finished.connect(receiver)
        self.addCleanup(task_finished.disconnect, receiver)
        self.run_to_end(tasks.hang.using(timeout=0.2))
        self.let_go()
        self.run_to_end(tasks.add, 1, 2)

        self.assertEqual(["FAILED", "SUCCESSFUL"], [status for status, _ in seen])
        self.assertEqual(seen[0][1], seen[1][1])

    def test_a_runner_that_stops_says_so(self):
        """A task that asks is released within the grace, as not failed."""
        result = tasks.obey.enqueue()
        self.assertTrue(tasks.Gate.entered.acquire(timeout=10))
        self.runner.close()
        released = row(result.id)

        self.assertEqual(("READY", 0), (released.status, released.failures))
        self.assertEqual("dbtasks.exceptions.TaskReleased", released.errors[-1][0])
        self.assertEqual(0, self.runner.released)

    def test_stopping_does_not_wait_for_what_was_abandoned(self):
        """The grace is for those that may end."""
        self.run_to_end(tasks.hang.using(timeout=0.2))
        began = time.monotonic()
        self.runner.close()

        self.assertLess(time.monotonic() - began, 5)
        self.assertFalse(ScheduledTask.objects.running().exists())


class CoroutineTests(SlowTestCase):
    """Tasks on the event loop."""

    def test_a_coroutine_is_cancelled(self):
        """Its finally blocks run; the loop goes on."""
        result = self.run_to_end(tasks.anap.using(timeout=0.2))

        self.assertEqual(("FAILED", [TIMEOUT]), (result.status, self.errors(result)))
        self.assertEqual([3], tasks.remembered)
        self.assertIn("in anap", result.errors[0].traceback)
        self.assertLess(result.finished_at - result.started_at, timedelta(seconds=1))

    def test_a_coroutine_that_heeds_the_context_succeeds(self):
        """As in a thread."""
        result = self.run_to_end(tasks.aheed.using(timeout=0.2))

        self.assertEqual("stopped", result.return_value)

    def test_a_coroutine_that_swallows_the_cancellation_is_abandoned(self):
        """The others on its loop are not harmed."""
        other = tasks.nap.enqueue(3)
        result = self.run_to_end(tasks.arefuse.using(timeout=0.2))
        self.assertEqual(("FAILED", [TIMEOUT]), (result.status, self.errors(result)))
        self.assertEqual(([4], 1), (tasks.remembered, self.runner.abandoned_threads))

        self.assertEqual(3, self.runner.wait_for(other, 10).return_value)

    def test_a_loop_that_is_blocked_is_replaced(self):
        """New coroutines run on another one; what stands still goes on when the block ends."""
        other = tasks.nap.enqueue(0.1)
        until(lambda: row(other.id).status == "RUNNING")
        blocking = tasks.ablock.using(timeout=0.2).enqueue()
        self.runner.wait_for(blocking, 10)
        self.assertEqual([TIMEOUT], self.errors(blocking))
        self.assertEqual(0.1, self.run_to_end(tasks.nap, 0.1).return_value)
        self.let_go()

        self.assertEqual(0.1, self.runner.wait_for(other, 10).return_value)


class StrayTests(RunnerTestCase):
    """No exception reaches anything but the task that it is meant for."""

    workers = 4
    max_wait = 120.0

    def test_neighbours_of_tasks_that_end_at_their_deadline_are_unharmed(self):
        """Thousands of tasks end about when their time is over; others run between them."""
        seed = int(os.environ.get("TEST_SEED") or random.randrange(100_000))
        print(f"seed {seed}", end=" ", flush=True)
        chance = random.Random(seed)
        logging.getLogger("django.tasks").setLevel(logging.CRITICAL)
        self.addCleanup(logging.getLogger("django.tasks").setLevel, logging.NOTSET)
        broken = []
        hook = mock.patch.object(threading, "excepthook", broken.append)
        self.enterContext(hook)
        threads = self.threads()
        calls: list[Any] = []
        for n in range(4000):
            about = chance.uniform(0.0035, 0.0045)
            if n % 2:
                calls.append((tasks.end_about_now, [about], {}))
            else:
                calls.append((tasks.stay_unharmed, [chance.randrange(2000)], {}))
        task_backends["default"].enqueue_many(calls)
        self.runner._run.wake()
        self.assertTrue(self.runner.wait(110))

        rows = ScheduledTask.objects.filter(task_path__endswith="stay_unharmed")
        self.assertEqual({"SUCCESSFUL"}, set(rows.values_list("status", flat=True)))
        edge = ScheduledTask.objects.filter(task_path__endswith="end_about_now")
        failed = [task.errors[-1][0] for task in edge.failed()]
        self.assertEqual({TIMEOUT}, set(failed))
        self.assertTrue(edge.successful().exists())
        self.assertEqual(([], 0), (broken, self.runner.abandoned_threads))
        self.assertLessEqual(threads, self.threads())

    def threads(self) -> set[str]:
        """Return the names of the runner's threads."""
        own = ("dbtasks-runner", *(f"dbtasks-{n}" for n in range(1, self.workers + 1)))
        return {name for thread in threading.enumerate() if (name := thread.name) in own}


class InterruptibleTests(SimpleTestCase):
    """The handshake alone."""

    def test_an_interrupt_comes_in_the_call_or_not_at_all(self):
        """Whatever the moment: 20,000 calls, each interrupted somewhere."""
        call, running, outside = Interruptible(), True, []
        tally = {"ended": 0, "interrupted": 0}

        def work() -> None:
            nonlocal call
            while running:
                call = Interruptible()
                try:
                    try:
                        call.run(sum, [range(chance.randrange(2000))], {})
                        tally["ended"] += 1
                    except TaskInterrupted:
                        tally["interrupted"] += 1
                    # Here it would be in the code between two tasks.
                    sum(range(100))
                except BaseException as error:
                    outside.append(error)

        seed = random.randrange(100_000)
        print(f"seed {seed}", end=" ", flush=True)
        chance = random.Random(seed)
        thread = threading.Thread(target=work)
        thread.start()
        end = time.monotonic() + 20
        while sum(tally.values()) < 20_000 and time.monotonic() < end:
            call.interrupt()
        running = False
        thread.join(10)

        self.assertEqual(([], False), (outside, thread.is_alive()))
        self.assertGreater(tally["interrupted"], 0)

    def test_nothing_outside_of_the_call_is_interrupted(self):
        """Before it, and after it."""
        call, ended, enough = Interruptible(), threading.Event(), threading.Event()
        self.assertFalse(call.interrupt())

        def work() -> None:
            call.run(len, [[]], {})
            ended.set()
            enough.wait(10)

        thread = threading.Thread(target=work)
        thread.start()
        self.addCleanup(thread.join, 10)
        self.addCleanup(enough.set)
        self.assertTrue(ended.wait(10))

        self.assertFalse(call.interrupt())


class InlineTests(TransactionTestCase):
    """In the caller's own thread nothing breaks in."""

    def test_the_context_knows_the_time(self):
        """A task that asks ends; there is nobody to interrupt the caller's thread."""
        tasks.heed.using(timeout=0.1).enqueue()
        self.assertEqual("stopped", process_one().return_value)
        tasks.obey.using(timeout=0.1).enqueue()
        with self.assertLogs("django.tasks", "ERROR"):
            result = process_one()

        self.assertEqual([TIMEOUT], [error.exception_class_path for error in result.errors])

    def test_a_task_that_does_not_ask_runs_to_its_end(self):
        """Its success stands."""
        tasks.end_about_now.enqueue(0.05)

        self.assertEqual(0.05, process_one().return_value)

    @override_settings(TASKS=backend(OPTIONS={"immediate": True, "timeout": 0.1}))
    def test_immediate_tasks_have_timeouts(self):
        """By the settings' default here."""
        self.assertEqual("stopped", tasks.heed.enqueue().return_value)


class PolicyTests(SimpleTestCase):
    """What may be said."""

    def test_durations_of_all_kinds(self):
        """Seconds, text, timedelta: kept as seconds."""
        for value in (90, 90.0, "90s", "1m30s", timedelta(seconds=90)):
            self.assertEqual(90.0, tasks.spin.using(timeout=value).timeout)

    def test_what_is_no_duration_is_refused(self):
        """With the sentence that other durations get."""
        for value in (0, -1, float("nan"), float("-inf"), "soon", True, [1]):
            with self.assertRaisesMessage(InvalidTask, "timeout: "):
                tasks.spin.using(timeout=value)
            with self.assertRaisesMessage(ImproperlyConfigured, "['timeout']"):
                options.parse("default", {"timeout": value})
        self.assertIsNone(options.parse("default", {"timeout": None}).timeout)

    def test_a_context_made_by_hand_never_stops(self):
        """In tests of a project's own."""
        context = TaskContext(task_result=None)
        context.check()

        self.assertFalse(context.should_stop)
        self.assertNotIn("asked", repr(context))
        self.assertTrue(issubclass(TaskTimeout, Exception))
        self.assertFalse(issubclass(TaskInterrupted, Exception))
        self.assertEqual(dbtasks.TaskContext, TaskContext)


class ExhaustedTests(ProcessTestCase):
    """A runner that has too many threads in tasks that do not end."""

    def test_it_ends_with_a_code_of_its_own_and_harms_nobody(self):
        """It says why, claims no more, and finishes what else runs."""
        other = wait_for_file.enqueue(str(self.folder))
        child = self.start("taskrunner", "-w", 2)
        until((self.folder / "started").exists, "The other task")
        hanging = [tasks.sleep.using(timeout=0.1).enqueue(60) for _ in range(4)]
        child.wait_for("hang in abandoned tasks; the runner stops")
        left = add.enqueue(1, 2)
        (self.folder / "go").touch()

        self.assertEqual(6, child.end(), child.said)
        other.refresh()
        left.refresh()
        self.assertEqual(("SUCCESSFUL", "READY"), (other.status, left.status))
        for result in hanging:
            result.refresh()
            self.assertEqual([TIMEOUT], [error.exception_class_path for error in result.errors])

    def test_a_thread_that_hangs_does_not_keep_the_process(self):
        """One is no reason to stop; SIGTERM ends the runner at once all the same."""
        child = self.start("taskrunner", "-w", 1)
        tasks.sleep.using(timeout=0.1).enqueue(60).wait(30)
        add.enqueue(1, 2).wait(30)
        child.signal(signal.SIGTERM)

        self.assertEqual(0, child.end(), child.said)


class FragilePlaceTests(TransactionTestCase):
    """Interrupts that come while the standard library holds a lock that others need."""

    def start(self, call: Any, *args: Any) -> Interruptible:
        """Run the call in a thread; return it once it runs."""
        one = Interruptible()

        def work() -> None:
            with suppress(TaskInterrupted):
                one.run(call, list(args), {})

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 10)
        until(lambda: one._thread is not None)
        return one

    def test_an_interrupt_waits_while_the_thread_logs(self):
        """Between taking the lock of a handler and the try that releases it, it would stay locked.

        So it did: every thread of the runner that logged waited for ever.
        """
        handler, inside, go_on = logging.Handler(), threading.Event(), threading.Event()
        self.addCleanup(go_on.set)

        def emit(record: Any) -> None:
            inside.set()
            while not go_on.is_set():
                pass

        handler.emit = emit
        record = logging.LogRecord("x", logging.INFO, "x", 1, "x", None, None)

        def log_on() -> None:
            handler.handle(record)
            while True:
                pass

        one = self.start(log_on)
        self.assertTrue(inside.wait(10))
        is_postponed = one.interrupt()
        go_on.set()
        until(lambda: not one.interrupt() and one.was_interrupted, "The interrupt")

        self.assertTrue(is_postponed)
        self.assertTrue(handler.lock.acquire(timeout=10), "The handler stayed locked.")

    def test_a_thread_that_waits_for_an_event_is_interrupted(self):
        """It waits inside of a try, and may do nothing else for hours."""
        event, waited = threading.Event(), threading.Event()

        def wait_again() -> None:
            while True:
                event.wait(0.05)
                waited.set()

        one = self.start(wait_again)
        self.assertTrue(waited.wait(10))
        until(lambda: not one.interrupt() and one.was_interrupted, "The interrupt")
