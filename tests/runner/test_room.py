"""How much one runner takes: no more than it can start soon, or than the database bears."""

import threading
from typing import Any
from unittest import mock

from django.db import OperationalError, connection, connections
from django.tasks import default_task_backend
from django.tasks.signals import task_started
from django.test import SimpleTestCase, TransactionTestCase

from dbtasks.exceptions import TaskReleased
from dbtasks.execution.attempt import Attempt
from dbtasks.execution.running import run
from dbtasks.models import ScheduledTask
from dbtasks.options.runner import OWN_CONNECTIONS, RunnerOptions, default_coroutines
from dbtasks.runner import event_loops
from dbtasks.testing import RunnerTestCase

from ..support import tasks
from ..support.gates import GateMixin, SlowTestCase
from ..support.rows import make_claim, row
from ..support.waiting import until


class CoroutineTests(GateMixin, RunnerTestCase):
    """Coroutines beside one thread."""

    workers = 1

    def test_four_for_each_thread_run_at_once(self):
        """Each may need a connection. What does not start soon is left to other runners."""
        results = tasks.await_gate.enqueue_many([((), {})] * 9)
        until(lambda: self.runner.running == 4)
        until(lambda: ScheduledTask.objects.due().count() == 5)
        other = self.start_runner(coroutines=5)
        until(lambda: other.running == 5)
        tasks.Gate.opened.set()
        for result in results:
            self.runner.wait_for(result)

        self.assertEqual([1] * 9, [result.attempts for result in results])

    def test_a_thread_is_free_while_coroutines_run(self):
        """They do not count as its tasks."""
        tasks.await_gate.enqueue_many([((), {})] * 3)
        until(lambda: self.runner.running == 3)

        self.assertEqual(3, self.runner.wait_for(tasks.add.enqueue(1, 2)).return_value)
        tasks.Gate.opened.set()

    def test_a_server_without_connections_is_waited_for(self):
        """Tasks and coroutines do not fail because too many others are connected."""
        kind, refused = type(connections["default"]), []
        connect = kind.connect

        def connect_or_refuse(wrapper: Any) -> None:
            name = threading.current_thread().name
            if len(refused) < 3 and name.startswith(("dbtasks-0", "ThreadPool")):
                refused.append(wrapper)
                raise OperationalError("FATAL:  sorry, too many clients already")
            connect(wrapper)

        with mock.patch.object(kind, "connect", connect_or_refuse):
            coroutine = self.runner.wait_for(tasks.count_rows.enqueue())
            task = self.runner.wait_for(tasks.connection_id.enqueue())

        self.assertEqual(["SUCCESSFUL"] * 2, [coroutine.status, task.status])
        self.assertEqual(3, len(refused))


class DefaultTests(SimpleTestCase):
    """How many coroutines run at once without the option."""

    def test_a_pool_limits_them(self):
        """Connections are left for the threads, and for the runner itself."""
        sizes = {None: 16, 100: 16, OWN_CONNECTIONS + 4 + 7: 7, 4: 1}
        for size, expected in sizes.items():
            pool = {"pool": {"max_size": size}} if size else {}
            with (
                self.subTest(size=size),
                mock.patch.dict(connection.settings_dict, OPTIONS=pool),
            ):
                self.assertEqual(expected, default_coroutines(4, "default"))

    def test_a_number_below_one_is_refused(self):
        """The sentence names the option."""
        with self.assertRaisesMessage(ValueError, "coroutines must be at least 1, not 0."):
            RunnerOptions(coroutines=0)


class BlockedLoopTests(SlowTestCase):
    """Coroutines that block the event loop."""

    coroutines = 50

    def test_another_loop_starts_what_a_blocked_one_does_not(self):
        """A blocking call in one coroutine holds up those that run, and no other."""
        blocking = tasks.ablock.enqueue()
        until(lambda: row(blocking.id).status == "RUNNING")
        naps = tasks.nap.enqueue_many([((0.01,), {})] * 20)
        for result in naps:
            self.assertEqual("SUCCESSFUL", self.runner.wait_for(result).status)
        self.let_go()

        self.assertEqual("SUCCESSFUL", self.runner.wait_for(blocking).status)

    def test_a_runner_with_many_blocked_loops_claims_no_more(self):
        """What it holds and cannot start goes to another runner."""
        with mock.patch.object(event_loops, "MAX_BLOCKED", 1):
            first = tasks.ablock.enqueue()
            until(lambda: row(first.id).status == "RUNNING")
            second = tasks.ablock.enqueue()
            until(lambda: row(second.id).status == "RUNNING")
            third = tasks.nap.enqueue(0.01)
            naps = tasks.nap.enqueue_many([((0.01,), {})] * 20)
            other = self.start_runner()
            for result in (third, *naps):
                self.assertEqual("SUCCESSFUL", other.wait_for(result).status)
            self.let_go()

    def test_coroutines_that_end_late_do_not_end_the_runner(self):
        """Only what hangs for long counts."""
        late = tasks.arefuse.using(timeout=0.1)
        for result in [late.enqueue() for _ in range(4)]:
            self.runner.wait_for(result)
        self.assertEqual(4, self.runner.abandoned_threads)
        self.let_go()

        self.assertEqual(3, self.run_to_end(tasks.add, 1, 2).return_value)
        self.assertFalse(self.runner.exhausted)


class SlowerTests(RunnerTestCase):
    """Tasks that take longer than those before them."""

    workers = 1

    def test_rows_that_were_claimed_for_short_tasks_are_left_to_others(self):
        """As soon as the next tasks turn out to be slow."""
        tasks.pause.enqueue_many([((0.0,), {})] * 300)
        slow = tasks.pause.enqueue_many([((0.05,), {})] * 80)
        until(lambda: self.runner.done >= 301)
        other = self.start_runner()
        for result in slow:
            self.runner.wait_for(result, 20)
        workers = [result.worker_ids for result in slow]

        self.assertGreater(workers.count([other.worker_id]), 15)


class ReleaseTests(TransactionTestCase):
    """Attempts of a runner that stops just as they begin."""

    def attempt(self) -> Attempt:
        return Attempt(default_task_backend.context("w1"), make_claim("w1"))

    def test_a_task_that_was_not_announced_does_not_start(self):
        """Its row is due again, and no attempt was used."""
        attempt = self.attempt()
        attempt.ask(TaskReleased())
        outcome = run(attempt)

        self.assertEqual(("READY", 0, None), (outcome.status, outcome.attempt, outcome.errors))

    def test_a_task_that_was_announced_starts(self):
        """It sees that it should stop, as a task that began before."""
        attempt = self.attempt()

        def stop(**kwargs: Any) -> None:
            attempt.ask(TaskReleased())

        task_started.connect(stop)
        self.addCleanup(task_started.disconnect, stop)
        outcome = run(attempt)

        self.assertEqual(("SUCCESSFUL", 1), (outcome.status, outcome.attempt))
