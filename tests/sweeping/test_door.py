"""What a way into the process allows its tasks: interrupts, a deadline, a context, solitude."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection, connections
from django.tasks import task_backends
from django.test import TestCase, TransactionTestCase
from django.utils import timezone, translation

import dbtasks
from dbtasks.door import Crowded, Door
from dbtasks.hinted import run_hinted
from dbtasks.inline import Inline
from dbtasks.models import ScheduledTask, Worker
from dbtasks.sweeping import run_due, sweep_through

from .. import tasks as tests_tasks
from ..support import tasks
from ..support.gates import GateMixin
from ..support.rows import make_task, row

TIMEOUT = "dbtasks.exceptions.TaskTimeout"
INTERRUPTS = Door(interrupts=True)


def errors(result: Any) -> list[str]:
    return [error.exception_class_path for error in result.errors]


class InterruptTests(GateMixin, TransactionTestCase):
    """A task ends at its timeout, whatever it does."""

    def run_one(self, task: Any, door: Door = INTERRUPTS) -> Any:
        """Run the task with a short timeout; return its result, as it was returned and stored."""
        task.using(timeout=0.3).enqueue()
        [result] = run_due(door).results
        self.assertEqual(task.get_result(result.id), result)
        return result

    def test_python_code_is_interrupted(self) -> None:
        """At whatever line it is."""
        self.assertEqual([TIMEOUT], errors(self.run_one(tasks.spin)))

    def test_a_coroutine_is_cancelled(self) -> None:
        """It can clean up."""
        tasks.remembered.clear()

        self.assertEqual([TIMEOUT], errors(self.run_one(tasks.anap)))
        self.assertEqual([3], tasks.remembered)

    def test_a_statement_is_ended(self) -> None:
        """On a connection that was opened since doors are there."""
        for task in (tasks.wait_in_sql, tasks.await_in_sql):
            connection.close()
            began = time.monotonic()
            with self.subTest(task.name):
                self.assertEqual([TIMEOUT], errors(self.run_one(task)))
                self.assertLess(time.monotonic() - began, 15)

    def test_what_has_the_context_is_asked_first(self) -> None:
        """It ends by itself, and that counts."""
        result = self.run_one(tasks.heed)

        self.assertEqual("stopped", result.return_value)
        self.assertEqual("stopped", self.run_one(tasks.aheed).return_value)

    def test_a_transaction_is_left_and_rolled_back(self) -> None:
        """The next task of the thread finds a connection of its own."""
        self.assertEqual([TIMEOUT], errors(self.run_one(tasks.spin_in_transaction)))

        self.assertFalse(connection.in_atomic_block)
        make_task()
        self.assertEqual(1, run_due(INTERRUPTS).succeeded)

    def test_process_one_only_asks(self) -> None:
        """A task that does not look runs to its end."""
        tasks.pause.using(timeout=0.1).enqueue(0.4)
        result = dbtasks.process_one()

        assert result is not None
        self.assertEqual("SUCCESSFUL", result.status.value)

    def test_a_cancelled_task_is_interrupted(self) -> None:
        """Somebody else cancels it while it runs."""
        for task in (tasks.spin, tasks.anap):
            result = task.enqueue()

            def cancel(id: str = result.id) -> None:
                tasks.Gate.entered.acquire(timeout=30)
                task_backends["default"].cancel(id)  # type: ignore[attr-defined]

            with self.subTest(task.name), beside(cancel):
                [ended] = run_due(INTERRUPTS).results
                self.assertEqual(["dbtasks.exceptions.TaskCancelled"], errors(ended))

    def test_coroutines_keep_their_loop_to_themselves(self) -> None:
        """Each has a new one, and nothing is left of it."""
        for what in (0.0, 0.01):
            tasks.nap.enqueue(what)

        self.assertEqual(2, run_due(INTERRUPTS).succeeded)


@contextmanager
def beside(work: Any) -> Iterator[None]:
    """Do the work in a thread, which has ended when the block is left."""

    def run() -> None:
        try:
            work()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(30)


class TestedInterruptTests(TestCase):
    """Inside of a project's TestCase."""

    def test_nothing_is_interrupted(self) -> None:
        """That would end the connection, and with it the transaction of the test."""
        tasks.pause.using(timeout=0.1).enqueue(0.3)
        tasks.count_rows.enqueue()

        self.assertEqual(2, run_due(INTERRUPTS).succeeded)
        self.assertEqual(2, ScheduledTask.objects.count())


class CtrlCTests(TransactionTestCase):
    """Ctrl-C ends a command, and a web server never sees one."""

    def test_a_task_that_raises_it_has_failed_where_none_may_come(self) -> None:
        """Otherwise the row would bring down one server after the other."""
        for how in ({}, {"interrupts": True}):
            with self.subTest(how):
                tests_tasks.interrupt.enqueue()
                [result] = run_due(Door(has_ctrl_c=False, **how)).results

                self.assertEqual(["builtins.KeyboardInterrupt"], errors(result))

    def test_a_sweep_in_a_command_ends(self) -> None:
        """The row is requeued."""
        result = tests_tasks.interrupt.enqueue()
        with self.assertRaises(KeyboardInterrupt):
            dbtasks.sweep()

        self.assertEqual(("READY", 1), (row(result.id).status, row(result.id).releases))

    def test_other_ends_of_a_process_are_errors(self) -> None:
        """The next task finds all as it was."""
        tests_tasks.failing_task_system_exit.enqueue()
        make_task()

        self.assertEqual((2, 1, 1), dbtasks.sweep()[:3])


class DeadlineTests(GateMixin, TransactionTestCase):
    """The time of the caller."""

    def test_a_task_that_asks_is_released_before_the_deadline(self) -> None:
        """Its row is READY: it goes on in the next request."""
        result = tasks.obey.enqueue()
        swept = sweep_through(Door(deadline=time.monotonic() + 12))

        self.assertEqual((1, 0, 0, 1, True), (*swept[:4], swept.is_due_left))
        stored = row(result.id)
        self.assertEqual(("READY", 1), (stored.status, stored.releases))
        self.assertFalse(Worker.objects.exists())

    def test_nothing_starts_when_the_deadline_is_near(self) -> None:
        """It would be asked to end at once."""
        make_task()
        swept = sweep_through(Door(deadline=time.monotonic() + 9))

        self.assertEqual((0, True), (swept.ran, swept.is_due_left))

    def test_max_seconds_is_when_the_last_task_may_start(self) -> None:
        """What runs then may go on."""
        for _ in range(3):
            tasks.pause.enqueue(1.0)
        swept = dbtasks.sweep(max_seconds=1.6)

        self.assertEqual((2, True), (swept.ran, swept.is_due_left))
        self.assertGreater(swept.seconds, 1.9)


class ContextTests(TransactionTestCase):
    """Context variables do not leak, in either direction."""

    def run_around(self, door: Door) -> list[Any]:
        """Run what tells its zone and language, in a caller with others; return what it told."""
        tasks.look_around.enqueue()
        with timezone.override("Asia/Tokyo"), translation.override("de"):
            return run_due(door).results[0].return_value[:2]

    def test_a_fresh_context_has_nothing_of_the_caller(self) -> None:
        """Also for a coroutine."""
        self.assertEqual(["UTC", "en-us"], self.run_around(Door(fresh_context=True)))
        token = tasks.secret.set("caller's")
        self.addCleanup(tasks.secret.reset, token)
        for door in (Door(fresh_context=True), Door(fresh_context=True, interrupts=True)):
            for task in (tasks.tell_secret, tasks.atell_secret):
                task.enqueue()
                self.assertEqual("unset", run_due(door).results[0].return_value)

    def test_without_it_the_caller_s_stays(self) -> None:
        """As process_one() has it."""
        self.assertEqual(["Asia/Tokyo", "de"], self.run_around(Door()))

    def test_what_a_task_changes_ends_with_it(self) -> None:
        """The caller has its own language and zone afterwards."""
        for door in (Door(), Door(fresh_context=True), Door(interrupts=True)):
            tasks.leave_locale.enqueue()
            run_due(door)

            self.assertEqual("UTC", timezone.get_current_timezone_name())
            self.assertEqual("en-us", translation.get_language())


def hint_all(door: Door) -> None:
    """Pass a hint for the only row."""
    run_hinted(door, "default", ScheduledTask.objects.get().pk)


class AloneTests(TransactionTestCase):
    """A quarantined row runs alone."""

    def setUp(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def alone(self) -> Iterator[None]:
        self.said.append(f"alone, {ScheduledTask.objects.get().status}")
        yield
        self.said.append(f"over, {ScheduledTask.objects.get().status}")

    def quarantine(self) -> Any:
        id = make_task()
        ScheduledTask.objects.update(hold="quarantined", lost=2)
        return id

    def test_solitude_begins_before_the_claim_and_ends_with_the_row(self) -> None:
        """If the process dies while it waits for others, that row is not to blame."""
        for run in (run_due, sweep_through, hint_all):
            self.quarantine()
            run(Door(alone=self.alone))

            self.assertEqual(["alone, READY", "over, SUCCESSFUL"], self.said)
            self.said.clear()
            ScheduledTask.objects.all().delete()

    def test_other_rows_need_no_solitude(self) -> None:
        """Nobody waits for anybody."""
        ids = [make_task(), make_task()]
        door = Door(alone=self.alone)
        run_hinted(door, "default", ids[0])
        run_due(door)

        self.assertEqual([], self.said)

    def test_a_crowded_door_leaves_the_row(self) -> None:
        """A sweep does the rest of its work; a hint comes again."""
        id, _ = self.quarantine(), make_task()

        def refuse() -> Any:
            raise Crowded

        swept = sweep_through(Door(alone=refuse))
        with self.assertRaises(Crowded):
            run_hinted(Door(alone=refuse), "default", id)

        self.assertEqual((1, True), (swept.succeeded, swept.is_due_left))
        self.assertEqual(("READY", 0), (row(id).status, row(id).attempt))

    def test_solitude_ends_if_the_row_is_never_run(self) -> None:
        """The block ends, and others may go on."""
        self.quarantine()
        with Inline("default", Door(alone=self.alone)) as inline:
            inline.claim()

        self.assertEqual(["alone, READY", "over, RUNNING"], self.said)
