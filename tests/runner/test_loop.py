"""The runner from start to stop."""

import gc
import subprocess
import sys
import threading
import time
from datetime import timedelta
from typing import Any
from unittest import mock, skipUnless
from weakref import ref

from django.db import DataError, OperationalError, connections
from django.tasks.signals import task_finished, task_started
from django.test import TransactionTestCase, override_settings

from dbtasks import RunnerError, store
from dbtasks.execution.attempt import Attempt
from dbtasks.models import ScheduledTask
from dbtasks.runner import Runner, cleanup
from dbtasks.testing import RunnerTestCase
from dbtasks.wakeup import notify

from ..support import tasks
from ..support.backends import backend
from ..support.gates import GateMixin
from ..support.rows import DB, row, vendor
from ..support.servers import kill_connections
from ..support.waiting import until


def look_at(task_result: Any, **_: Any) -> None:
    """Be a receiver for whom a result is made."""
    assert task_result.is_finished


class RunningTests(RunnerTestCase):
    """What tasks can rely on while they run."""

    workers = 2

    def test_threads_keep_their_connection(self):
        """Tasks of one thread share a connection; nobody connects for each task."""
        if connections[DB].settings_dict["OPTIONS"].get("pool"):
            self.skipTest("a pool gives each task any of its connections")
        used = {
            self.runner.wait_for(tasks.connection_id.enqueue(), 10).return_value for _ in range(10)
        }

        self.assertLessEqual(len(used), self.workers)

    @skipUnless(getattr(sys, "_is_gil_enabled", lambda: True)(), "freed later without the GIL")
    def test_what_has_ended_is_freed_at_once(self):
        """Not when the garbage collector comes by: a large load would wait for it."""
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        self.addCleanup(task_finished.disconnect, look_at)
        task_finished.connect(look_at)
        with self.assertLogs("django.tasks", "INFO"):
            for n in range(40):
                task = tasks.acarry if n % 4 < 2 else tasks.carry
                self.runner.wait_for(task.enqueue(bool(n % 2)), 10)

        until(lambda: not tasks.Load.all, "The end of what tasks had in hand")
        # The last one of each thread, and of the outcome writer. Threads that are about to wait
        # may have one more.
        until(
            lambda: self.count_attempts() <= self.workers + 2, "The end of all attempts but these"
        )

    def count_attempts(self) -> int:
        return sum(type(each) is Attempt for each in gc.get_objects())

    def test_coroutines_run_hundreds_at_once(self):
        """Coroutines do not wait for threads: each waits for all the others here."""
        runner = self.start_runner(coroutines=200)
        self.runner.stop()
        self.runner.finished.wait(10)
        results = tasks.meet.enqueue_many([((200,), {})] * 200)
        for result in results:
            runner.wait_for(result, 20)

        self.assertEqual({"SUCCESSFUL"}, {result.status for result in results})

    def test_a_coroutine_whose_start_fails_leaves_no_row_behind(self):
        """Whatever is raised before its first step: the row ends, and others run."""
        with mock.patch.object(Attempt, "begin", side_effect=[SystemExit, None, None]):
            result = self.runner.wait_for(tasks.acarry.enqueue(False), 10)

        self.assertEqual("FAILED", result.status)
        self.assertEqual("SUCCESSFUL", self.runner.wait_for(tasks.acarry.enqueue(False), 10).status)

    def test_each_coroutine_has_its_own_orm_thread(self):
        """Thread-sensitive code runs in a thread of the task, not on the loop."""
        results = tasks.count_rows.enqueue_many([((), {})] * 5)
        for result in results:
            self.runner.wait_for(result, 10)
        values = [result.return_value for result in results]

        self.assertTrue(all(found and name != loop for found, name, loop in values))
        self.assertEqual({"dbtasks-loop"}, {loop for _, _, loop in values})

    def test_context_tells_about_the_attempt(self):
        """A task that takes the context sees itself running."""
        result = self.runner.wait_for(tasks.tell_context.enqueue(), 10)

        self.assertEqual([1, result.id, "RUNNING", result.worker_ids], result.return_value)
        self.assertEqual([self.runner.worker_id], result.worker_ids)

    def test_signals_are_sent_in_the_thread_of_the_task(self):
        """Context-local tools see the task's own thread."""
        seen = []

        def receiver(task_result: Any, **kwargs: Any) -> None:
            seen.append((str(task_result.status), threading.current_thread().name))

        for signal in (task_started, task_finished):
            signal.connect(receiver)
            self.addCleanup(signal.disconnect, receiver)
        name = self.runner.wait_for(tasks.thread_name.enqueue(), 10).return_value

        self.assertEqual([("RUNNING", name), ("SUCCESSFUL", name)], seen)

    def test_a_failed_task_is_logged_once_with_its_traceback(self):
        """task_finished is sent inside the except block."""
        with self.assertLogs("django.tasks", "ERROR") as logs:
            self.runner.wait_for(tasks.throw.enqueue("group"), 10)

        [record] = logs.records
        self.assertIs(ExceptionGroup, record.exc_info[0])

    def test_times_are_in_order(self):
        """enqueued ≤ started ≤ finished, by the database's clock."""
        result = self.runner.wait_for(tasks.add.enqueue(1, 2), 10)
        slack = timedelta(milliseconds=20)

        self.assertLessEqual(result.enqueued_at, result.started_at + slack)
        self.assertLessEqual(result.started_at, result.finished_at)
        self.assertEqual(result.started_at, result.last_attempted_at)

    def test_a_run_after_is_waited_for(self):
        """A scheduled task starts when its time has come, not before, and not a poll later."""
        later = tasks.add.using(run_after=timedelta(seconds=0.3)).enqueue(1, 2)
        result = self.runner.wait_for(later, 10)

        self.assertGreaterEqual(result.started_at, result.task.run_after)
        self.assertLess(result.started_at - result.task.run_after, timedelta(seconds=0.8))

    def test_a_result_is_waited_for_from_outside(self):
        """wait() and wait_for() return at once for what has finished."""
        result = tasks.add.enqueue(1, 2)
        self.assertEqual(3, result.wait(10).return_value)
        self.assertEqual(3, self.runner.wait_for(result, 0).return_value)
        self.assertTrue(self.runner.wait(10))

    def test_two_may_wait_for_one_task(self):
        """Every waiter is told."""
        result = tasks.nap.enqueue(0.1)
        others = [tasks.nap.get_result(result.id) for _ in range(2)]
        threads = [threading.Thread(target=self.wait_and_close, args=(other,)) for other in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)

        self.assertEqual([0.1, 0.1], [other.return_value for other in others])

    def wait_and_close(self, result: Any) -> None:
        self.runner.wait_for(result, 10)
        connections.close_all()

    def test_an_outcome_the_database_refuses_does_not_stay_running(self):
        """The row ends FAILED with a sentence, and its neighbours as they should."""
        settle = store.settle

        def refuse(db: str, outcomes: Any) -> Any:
            if any(outcome.return_value == "7" for outcome in outcomes):
                raise DataError("refused")
            return settle(db, outcomes)

        with mock.patch("dbtasks.store.settle", refuse):
            results = tasks.add.enqueue_many([((1, n), {}) for n in (5, 6, 7)])
            for result in results:
                self.runner.wait_for(result, 10)

        self.assertEqual(
            ["SUCCESSFUL", "FAILED", "SUCCESSFUL"], [result.status for result in results]
        )

    def test_expired_rows_go_beside_the_running_work(self):
        """The purge deletes what its retention no longer keeps."""
        result = self.runner.wait_for(tasks.add.using(retain=0.001).enqueue(1, 2), 10)
        kept = self.runner.wait_for(tasks.add.enqueue(1, 2), 10)
        self.runner._run._purger._purge()

        self.assertEqual(
            [kept.id], [str(pk) for pk in ScheduledTask.objects.values_list("pk", flat=True)]
        )
        self.assertNotEqual(result.id, kept.id)

    def test_a_retention_of_zero_lets_rows_go_at_once(self):
        """By the call or by the options, for successes, failures and cancelled tasks."""
        with override_settings(TASKS=backend(OPTIONS={"retain": {"FAILED": 0, "*": "7d"}})):
            later = tasks.add.using(run_after=timedelta(hours=1)).enqueue(1, 2)
            later.cancel()
            # The first one has other options.
            self.runner.stop()
            self.runner.finished.wait(10)
            runner = self.start_runner()
            # It would delete the row before it is looked at.
            runner._run._purger.stop(10)
            calls = [(tasks.add.using(retain=0), 2), (tasks.add, "x"), (tasks.add, 2)]
            results = [runner.wait_for(call.enqueue(1, value), 10) for call, value in calls]
            row = ScheduledTask.objects.get(pk=results[0].id)
            self.assertEqual((row.finished_at, {"retain": 0.0}), (row.delete_after, row.policy))
            # The end of an attempt may be a moment ahead of the database's clock.
            purge = runner._run._purger._purge
            until(lambda: not purge() and ScheduledTask.objects.count() == 1)

        self.assertEqual(["SUCCESSFUL", "FAILED", "SUCCESSFUL"], [r.status for r in results])
        self.assertEqual(results[2].id, str(ScheduledTask.objects.get().pk))

    def test_cleanup_is_a_task(self):
        """Anybody may enqueue or schedule it."""
        old = self.runner.wait_for(tasks.add.enqueue(1, 2), 10)
        ScheduledTask.objects.filter(pk=old.id).update(
            finished_at=store.now(DB) - timedelta(hours=2)
        )
        result = self.runner.wait_for(cleanup.enqueue(3600), 10)

        self.assertEqual(1, result.return_value)
        self.assertFalse(ScheduledTask.objects.filter(pk=old.id).exists())

    def test_lost_connections_do_not_end_the_runner(self):
        """Connections that the server closes are opened again."""
        if vendor() == "sqlite":
            self.skipTest("SQLite has no server")
        self.runner.wait_for(tasks.look_around.enqueue(), 10)
        kill_connections()

        self.assertEqual(3, self.runner.wait_for(tasks.add.enqueue(1, 2), 20).return_value)


class OrderTests(TransactionTestCase):
    """Drains with one thread, so that order can be seen."""

    def setUp(self) -> None:
        tasks.remembered.clear()

    def drain(self, **options: Any) -> Runner:
        runner = Runner(workers=1, drain=True, **options)
        thread = threading.Thread(target=runner.run)
        thread.start()
        thread.join(30)
        self.assertFalse(thread.is_alive())
        return runner

    def order(self) -> list[int]:
        return tasks.remembered

    def test_higher_priority_first_then_older(self):
        """Rows start in the order that the claim promises."""
        for n, priority in enumerate((0, 5, -5, 5, 0)):
            tasks.remember.using(priority=priority).enqueue(n)
        self.drain()

        self.assertEqual([1, 3, 0, 4, 2], self.order())

    def test_drain_stops_when_nothing_is_due(self):
        """Rows whose time has not come do not keep a drain from ending."""
        tasks.add.using(run_after=timedelta(hours=1)).enqueue(1, 0)
        tasks.add.enqueue_many([((n, 0), {}) for n in range(2000)])
        runner = self.drain()

        self.assertEqual((2000, 0), (runner.done, runner.failed))
        self.assertEqual(1, ScheduledTask.objects.scheduled().count())

    def test_max_tasks_is_kept(self):
        """No more tasks are run than asked, and none stays claimed."""
        tasks.add.enqueue_many([((n, 0), {}) for n in range(20)])
        runner = self.drain(max_tasks=7)

        self.assertEqual(7, runner.done)
        self.assertEqual(13, ScheduledTask.objects.due().count())

    def test_only_the_named_queues_are_served(self):
        """Other queues' rows stay."""
        tasks.remember.enqueue(1)
        tasks.remember.using(queue_name="mail").enqueue(2)
        self.drain(queues=["mail"])

        self.assertEqual([2], self.order())

    def test_all_but_the_excluded_queues_are_served(self):
        """Excluded ones stay, whatever their priority; a star is all."""
        tasks.remember.enqueue(1)
        tasks.remember.using(queue_name="mail", priority=9).enqueue(2)
        for options in ({}, {"queues": ["default", "mail"]}, {"queues": ["*"]}):
            self.drain(exclude_queues=["mail"], **options)
            self.assertEqual([1], self.order())
        self.drain(queues=["*"])

        self.assertEqual([1, 2], self.order())

    def test_a_runner_can_run_again(self):
        """run() may be called again once it has ended."""
        runner = Runner(workers=1, drain=True)
        for n in range(2):
            tasks.remember.enqueue(n)
            thread = threading.Thread(target=runner.run)
            thread.start()
            thread.join(30)

        self.assertEqual([0, 1], self.order())
        self.assertEqual(2, ScheduledTask.objects.values("worker_ids").distinct().count())

    def test_a_runner_starts_and_ends_in_a_thread_of_its_own(self):
        """start() returns when it claims, join() when it has ended; both may be called again."""
        runner = Runner(workers=1)
        for n in range(2):
            runner.start()
            self.assertTrue(runner.ready.is_set())
            with self.assertRaisesMessage(RuntimeError, "runs already"):
                runner.start()
            self.assertFalse(runner.join(0.01))
            runner.wait_for(tasks.remember.enqueue(n), 10)
            runner.stop()
            self.assertTrue(runner.join(30))

        self.assertEqual([0, 1], self.order())

    def test_what_keeps_a_runner_from_starting_is_raised(self):
        """In the thread that calls start(), not in a thread that nobody looks at."""
        runner = Runner(backend="gone")
        with self.assertRaisesMessage(RuntimeError, "not started by start()"):
            runner.join()
        for call in (runner.start, runner.join):
            with self.assertRaisesMessage(RunnerError, "There is no backend 'gone' in TASKS"):
                call()

    def test_a_runner_that_cannot_run_says_why(self):
        """Each mistake has its sentence."""
        for options in (
            {"workers": 0},
            {"loop_delay": 0},
            {"queues": "mail"},
            {"queues": []},
            {"exclude_queues": "mail"},
            {"exclude_queues": ["*"]},
            {"queues": ["mail"], "exclude_queues": ["mail", "default"]},
        ):
            with self.assertRaises(ValueError):
                Runner(**options)
        with self.assertRaisesMessage(RunnerError, "There is no backend 'gone' in TASKS"):
            Runner(backend="gone").run()


class StopTests(GateMixin, TransactionTestCase):
    """What stop() leaves behind."""

    def start(self, **options: Any) -> tuple[Runner, threading.Thread]:
        runner = Runner(**{"workers": 1, **options})
        thread = threading.Thread(target=runner.run, daemon=True)
        thread.start()
        self.assertTrue(runner.ready.wait(10))
        self.addCleanup(thread.join, 10)
        self.addCleanup(tasks.Gate.opened.set)
        self.addCleanup(runner.stop)
        return runner, thread

    def test_an_idle_runner_stops_at_once(self):
        """However long it would have slept."""
        runner, thread = self.start(loop_delay=60)
        until(lambda: not runner._run._fetcher.may_be_due)
        runner.stop()
        thread.join(5)

        self.assertFalse(thread.is_alive())
        self.assertTrue(runner.finished.is_set())

    def test_running_tasks_are_finished(self):
        """Stop waits for what runs, within its grace."""
        runner, thread = self.start()
        result = tasks.wait_at_gate.enqueue()
        tasks.Gate.entered.acquire(timeout=10)
        runner.stop()
        tasks.Gate.opened.set()
        thread.join(10)

        result.refresh()
        self.assertEqual("SUCCESSFUL", result.status)
        self.assertEqual(0, runner.released)

    def test_what_has_not_started_is_requeued(self):
        """Rows claimed ahead are due again, as if nobody had touched them."""
        runner, thread = self.start()
        runner._run._pool._room.threads._average = 0.001
        tasks.wait_at_gate.enqueue()
        tasks.add.enqueue_many([((n, 0), {}) for n in range(20)])
        tasks.Gate.entered.acquire(timeout=10)
        runner.stop()
        # What a claim on its way brings is requeued after that.
        until(lambda: ref(runner._run) not in notify._wakeables["default"])
        until(lambda: ScheduledTask.objects.due().count() == 20)
        tasks.Gate.opened.set()
        thread.join(10)

        self.assertEqual({0}, set(ScheduledTask.objects.due().values_list("attempt", flat=True)))

    def test_what_outlasts_the_grace_is_released(self):
        """A released row starts again elsewhere; its late outcome changes nothing."""
        runner, thread = self.start(grace=0.1)
        result = tasks.wait_at_gate.enqueue()
        tasks.Gate.entered.acquire(timeout=10)
        runner.stop()
        thread.join(10)
        self.assertEqual(1, runner.released)
        tasks.Gate.opened.set()

        again = row(result.id)
        self.assertEqual(("READY", "", 1), (again.status, again.hold, again.attempt))
        self.assertEqual("dbtasks.exceptions.TaskReleased", again.errors[0][0])
        Runner(workers=1, drain=True).run()
        self.assertEqual("SUCCESSFUL", row(result.id).status)

    def test_a_second_stop_waits_for_nothing(self):
        """Asked twice, the runner leaves now and releases what runs."""
        runner, thread = self.start(grace=60)
        result = tasks.wait_at_gate.enqueue()
        tasks.Gate.entered.acquire(timeout=10)
        runner.stop()
        runner.stop()
        thread.join(10)

        self.assertFalse(thread.is_alive())
        self.assertEqual("READY", row(result.id).status)

    def test_a_release_that_fails_is_tried_again(self):
        """What is requeued reaches the database, also if that is away for a moment."""
        settle, failures = store.settle, iter([OperationalError("away")] * 2)

        def sometimes(db: str, outcomes: Any) -> Any:
            if any(o.status == "READY" for o in outcomes) and (error := next(failures, None)):
                raise error
            return settle(db, outcomes)

        runner, thread = self.start()
        runner._run._pool._room.threads._average = 0.001
        tasks.wait_at_gate.using(priority=9).enqueue()
        tasks.add.enqueue_many([((n, 0), {}) for n in range(20)])
        tasks.Gate.entered.acquire(timeout=10)
        with mock.patch("dbtasks.store.settle", sometimes):
            runner.stop()
            until(lambda: ScheduledTask.objects.due().count() == 20)
            tasks.Gate.opened.set()
            thread.join(10)

        self.assertFalse(ScheduledTask.objects.running().exists())

    def test_a_long_task_does_not_keep_its_neighbours(self):
        """Rows that wait behind a long task are requeued, for another runner to take."""
        runner, _ = self.start()
        runner._run._pool._room.threads._average = 0.001
        tasks.wait_at_gate.using(priority=9).enqueue()
        many = tasks.add.enqueue_many([((n, 0), {}) for n in range(20)])
        tasks.Gate.entered.acquire(timeout=10)
        other, _ = self.start()

        for result in many:
            other.wait_for(result, 10)
        self.assertEqual(1, ScheduledTask.objects.running().count())


class QuarantineTests(GateMixin, RunnerTestCase):
    """Rows with which two runners were lost."""

    workers = 3

    def quarantine(self, count: int = 1) -> list[Any]:
        """Enqueue so many quarantined rows, held back until they are."""
        later = tasks.count_crowd.using(run_after=timedelta(hours=1))
        results = [later.enqueue() for _ in range(count)]
        ScheduledTask.objects.scheduled().update(hold="quarantined", lost=2, run_after=None)
        return results

    def test_they_run_alone_and_in_time_under_constant_load(self):
        """Nothing runs beside one, and work that never ceases does not keep them waiting."""
        tasks.go_on.enqueue_many([((), {})] * 20)
        results = self.quarantine(3)
        for result in results:
            self.runner.wait_for(result, 20)
        passed = self.runner.done
        until(lambda: self.runner.done > passed + 20)
        tasks.Gate.opened.set()

        self.assertEqual([1, 1, 1], [result.return_value for result in results])

    def test_a_drain_runs_them_too(self):
        """They are due."""
        self.runner.stop()
        self.assertTrue(self.runner.finished.wait(10))
        [result] = self.quarantine()
        Runner(workers=1, drain=True).run()

        self.assertEqual("SUCCESSFUL", row(result.id).status)


class OtherSettingsTests(TransactionTestCase):
    """Projects that are not set up like most."""

    def test_a_project_without_a_default_queue_or_backend_can_run(self):
        """Our own task finds a queue and a backend that there are."""
        code = (
            "import django; django.setup()\n"
            "from django.conf import settings\n"
            "settings.TASKS = {'main': {'BACKEND': 'dbtasks.backend.DatabaseBackend', "
            "'QUEUES': ['mail']}}\n"
            "from dbtasks.runner import cleanup\n"
            "print(cleanup.backend, cleanup.queue_name)"
        )
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )

        self.assertEqual("main mail\n", found.stdout)

    def test_a_stop_before_the_start_is_kept(self):
        """A signal that comes early is not lost; the next run is not concerned."""
        tasks.add.enqueue(1, 2)
        runner = Runner(workers=1)
        runner.stop()
        runner.run()

        self.assertEqual(0, runner.done)
        self.assertEqual(1, ScheduledTask.objects.due().count())

    @override_settings(DEBUG=True)
    def test_debug_does_not_fill_the_memory(self):
        """Statements are not kept for ever when Django remembers them."""
        tasks.add.enqueue_many([((n, 0), {}) for n in range(100)])
        with mock.patch("django.db.connections.close_all"), self.assertLogs("django.tasks"):
            Runner(workers=1, drain=True).run()

        self.assertLess(len(connections[DB].queries_log), 20)


class GapTests(TransactionTestCase):
    """Between the queue and the thread."""

    def test_a_task_that_a_thread_has_just_taken_is_waited_for(self):
        """A drain does not end while an attempt is neither waiting nor running yet."""
        tasks.add.enqueue(1, 2)
        slow = property(lambda attempt: time.sleep(0.2) or False)
        with mock.patch.object(Attempt, "is_async", slow):
            runner = Runner(workers=1, drain=True)
            runner.run()

        self.assertEqual(1, runner.done)
