"""Processing without a runner process."""

from datetime import timedelta
from typing import Any
from unittest import mock
from uuid import uuid4

from django.db import (
    DataError,
    InternalError,
    OperationalError,
    ProgrammingError,
    connection,
    connections,
    transaction,
)
from django.tasks import TaskResultStatus, task_backends
from django.tasks.exceptions import TaskResultDoesNotExist
from django.tasks.signals import task_finished, task_started
from django.test import TestCase, TransactionTestCase, override_settings
from django.utils import timezone

import dbtasks
from dbtasks import inline, store
from dbtasks.exceptions import RunnerError, TaskNotDue
from dbtasks.execution import bounds, settling
from dbtasks.models import ScheduledTask, Worker

from .. import tasks
from ..support.backends import backend
from ..support.tasks import connection_id

READY, RUNNING = TaskResultStatus.READY, TaskResultStatus.RUNNING
SUCCESSFUL, FAILED = TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED
LATER = timedelta(hours=1)


def backdate(result: Any) -> None:
    """Let the run_after of a held row have come a second ago."""
    ScheduledTask.objects.filter(pk=result.id).update(
        run_after=timezone.now() - timedelta(seconds=1)
    )


class ProcessTests(TransactionTestCase):
    """Rows are run one by one in the caller's thread."""

    def setUp(self) -> None:
        tasks.ran.clear()

    def test_process_one_returns_the_result_it_stored(self):
        """What comes back equals what the database holds."""
        enqueued = tasks.add.enqueue(1, 2)

        result = dbtasks.process_one()

        self.assertEqual(enqueued.id, result.id)
        self.assertEqual(3, result.return_value)
        self.assertEqual(tasks.add.get_result(enqueued.id), result)

    def test_process_one_takes_the_highest_priority_first_then_the_oldest(self):
        """The order is the runner's."""
        for what, priority in (("low", -1), ("first", 5), ("second", 5)):
            tasks.remember.using(priority=priority).enqueue(what)

        while dbtasks.process_one():
            pass

        self.assertEqual(["first", "second", "low"], tasks.ran)

    def test_process_one_returns_none_when_nothing_is_due(self):
        """Rows of other queues and rows to come are not due."""
        tasks.add.using(queue_name="mail").enqueue(1, 2)
        tasks.add.using(run_after=LATER).enqueue(1, 2)

        self.assertIsNone(dbtasks.process_one("default"))
        self.assertEqual(2, ScheduledTask.objects.filter(status=READY).count())

    def test_it_runs_in_this_thread(self):
        """No thread is started for it."""
        tasks.tell_thread.enqueue()

        self.assertEqual("MainThread", dbtasks.process_one().return_value)

    def test_process_tasks_returns_the_results_in_order(self):
        """All that is due runs, coroutines and failures included."""
        tasks.add.enqueue(1, 2)
        tasks.fail.enqueue()
        tasks.aremember.enqueue("async")

        results = dbtasks.process_tasks()

        self.assertEqual([SUCCESSFUL, FAILED, SUCCESSFUL], [result.status for result in results])
        self.assertEqual(["async"], tasks.ran)

    def test_the_callers_connection_stays_open(self):
        """Also if Django closes it after each request: a task is no request."""
        if connection.settings_dict["OPTIONS"].get("pool"):
            self.skipTest("a pool gives each task any of its connections")
        with mock.patch.dict(connection.settings_dict, CONN_MAX_AGE=0):
            connection.close()
            first = connection_id.func()
            close_at = connection.close_at
            connection_id.enqueue_many([((), {})] * 3)
            used = {result.return_value for result in dbtasks.process_tasks()}
            self.assertEqual(({first}, close_at), (used, connection.close_at))
        connection.close()

    def test_process_tasks_runs_what_its_tasks_enqueue(self):
        """It ends when nothing is due, not when the first rows have run."""
        tasks.enqueue_other.enqueue("x", 2)

        self.assertEqual(3, len(dbtasks.process_tasks()))

    def test_process_tasks_stops_at_max_tasks(self):
        """What is beyond the limit stays READY."""
        tasks.remember.enqueue_many([((n,), {}) for n in range(3)])

        self.assertEqual(2, len(dbtasks.process_tasks(max_tasks=2)))
        self.assertEqual(1, dbtasks.pending_count())

    def test_process_tasks_starts_nothing_after_max_seconds(self):
        """What runs then may go on. Nobody is waited for any longer."""
        tasks.rest.enqueue_many([((1.0,), {}) for _ in range(3)])

        self.assertEqual(2, len(dbtasks.process_tasks(max_seconds=1.6)))
        self.assertEqual(1, dbtasks.pending_count())

    def test_process_tasks_limits_itself_to_a_queue(self):
        """Other queues are left alone."""
        tasks.remember.enqueue("default")
        tasks.remember.using(queue_name="mail").enqueue("mail")

        dbtasks.process_tasks(queue_name="mail")

        self.assertEqual(["mail"], tasks.ran)

    def test_process_tasks_runs_held_rows_whose_time_has_come(self):
        """No runner is needed to promote them."""
        backdate(tasks.remember.using(run_after=LATER).enqueue("held"))

        dbtasks.process_tasks()

        self.assertEqual(["held"], tasks.ran)

    def test_pending_count_counts_what_is_due(self):
        """Held rows count once their time has come; running and finished ones never do."""
        tasks.add.enqueue(1, 2)
        dbtasks.process_one()
        tasks.add.enqueue(1, 2)
        tasks.add.using(queue_name="mail").enqueue(1, 2)
        backdate(tasks.add.using(run_after=LATER).enqueue(1, 2))
        tasks.add.using(run_after=LATER).enqueue(1, 2)

        self.assertEqual(3, dbtasks.pending_count())
        self.assertEqual(1, dbtasks.pending_count("mail"))

    def test_quarantined_rows_are_run_too_after_all_others(self):
        """They are due, and what runs in the caller's thread runs alone."""
        quarantined, other = tasks.add.enqueue(1, 1), tasks.add.enqueue(2, 2)
        ScheduledTask.objects.filter(pk=quarantined.id).update(hold="quarantined", lost=2)

        self.assertEqual(2, dbtasks.pending_count())
        self.assertEqual([other.id, quarantined.id], [r.id for r in dbtasks.process_tasks()])

    def test_pending_count_stops_where_it_is_told(self):
        """It counts no more rows than that, over all that is due."""
        for _ in range(3):
            tasks.add.enqueue(1, 2)
        ScheduledTask.objects.filter(pk=tasks.add.enqueue(1, 2).id).update(
            hold="quarantined", lost=2
        )
        counts = [dbtasks.pending_count(at_most=most) for most in (1, 3, 4, 9)]

        self.assertEqual([1, 3, 4, 4], counts)
        with self.assertNumQueries(2):
            dbtasks.pending_count(at_most=1)
        with self.assertRaisesMessage(ValueError, "at_most must be at least 1"):
            dbtasks.pending_count(at_most=0)

    def test_pending_count_works_inside_a_transaction(self):
        """Counting runs nothing, so it is allowed anywhere."""
        with transaction.atomic():
            tasks.add.enqueue(1, 2)

            self.assertEqual(1, dbtasks.pending_count())

    def test_signals_are_sent_as_a_runner_sends_them(self):
        """task_started and task_finished come once each, with the state of the moment."""
        seen = []

        def receive(sender: Any, task_result: Any, **kwargs: Any) -> None:
            seen.append((sender, task_result.status))

        for signal in (task_started, task_finished):
            signal.connect(receive)
            self.addCleanup(signal.disconnect, receive)
        tasks.add.enqueue(1, 2)
        dbtasks.process_one()

        sender = type(task_backends["default"])
        self.assertEqual([(sender, RUNNING), (sender, SUCCESSFUL)], seen)

    def test_a_transaction_left_open_is_rolled_back_and_the_row_settled(self):
        """A task cannot take the next one into its transaction."""
        tasks.leave_open.enqueue()
        tasks.add.enqueue(1, 2)

        with self.assertLogs("dbtasks", "WARNING"):
            results = dbtasks.process_tasks()

        self.assertEqual([SUCCESSFUL, SUCCESSFUL], [result.status for result in results])
        self.assertFalse(connections["default"].in_atomic_block)

    @override_settings(TASKS=backend(OPTIONS={"immediate": True}))
    def test_an_immediate_backend_is_refused(self):
        """Its rows have run already."""
        for refused in (dbtasks.process_one, dbtasks.process_tasks, dbtasks.pending_count):
            with self.subTest(refused), self.assertRaisesMessage(RunnerError, "immediate"):
                refused()

    @override_settings(TASKS={"default": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}})
    def test_a_foreign_backend_is_refused(self):
        """Only rows of DatabaseBackend can be run."""
        with self.assertRaisesMessage(RunnerError, "DummyBackend"):
            dbtasks.process_one()

    def test_unknown_names_of_the_package_are_attribute_errors(self):
        """Lazy names do not swallow wrong ones."""
        with self.assertRaisesMessage(AttributeError, "no attribute 'process_none'"):
            dbtasks.process_none  # noqa: B018

    def test_all_public_names_exist(self):
        """What __all__ lists can be imported."""
        for name in dbtasks.__all__:
            self.assertTrue(hasattr(dbtasks, name), name)


class TransactionTests(TransactionTestCase):
    """A task never runs inside a transaction of the caller."""

    databases = {"default", "other"}

    def test_all_that_run_refuse_a_transaction(self):
        """On any database of the thread, and nothing is claimed."""
        result = tasks.add.enqueue(1, 2)
        runs = (dbtasks.process_one, dbtasks.process_tasks, lambda: dbtasks.run_task(result.id))
        for alias in ("default", "other"):
            for run in runs:
                with (
                    self.subTest(alias, run=run),
                    transaction.atomic(alias),
                    self.assertRaisesMessage(RuntimeError, f"open on {alias!r}"),
                ):
                    run()

        result.refresh()
        self.assertEqual(READY, result.status)


class RunTaskTests(TransactionTestCase):
    """run_task() runs the row it is given, if that is due."""

    def test_it_runs_that_row_alone(self):
        """Neither order nor queue matters."""
        tasks.add.using(priority=9).enqueue(0, 0)
        wanted = tasks.add.using(queue_name="mail").enqueue(1, 2)

        result = dbtasks.run_task(wanted.id)

        self.assertEqual((wanted.id, 3), (result.id, result.return_value))
        self.assertEqual(1, dbtasks.pending_count())

    def test_a_row_whose_run_after_is_to_come_is_refused(self):
        """Nothing is run early; the row stays scheduled (C15)."""
        scheduled = tasks.add.using(run_after=LATER).enqueue(1, 2)

        with self.assertRaisesMessage(TaskNotDue, "is not due before"):
            dbtasks.run_task(scheduled.id)

        scheduled.refresh()
        self.assertEqual((READY, 0), (scheduled.status, scheduled.attempts))

    def test_a_row_whose_run_after_has_come_is_run(self):
        """It need not have been promoted by a runner."""
        held = tasks.add.using(run_after=LATER).enqueue(1, 2)
        backdate(held)

        self.assertEqual(3, dbtasks.run_task(held.id).return_value)

    def test_a_running_row_is_refused(self):
        """It is never run twice at once."""
        result = tasks.add.enqueue(1, 2)
        store.claim("default", "default", "elsewhere", 1)

        with self.assertRaisesMessage(TaskNotDue, "runs already, under 'elsewhere'"):
            dbtasks.run_task(result.id, allow_retry=True)

    def test_a_successful_row_is_refused(self):
        """Also with allow_retry."""
        result = tasks.add.enqueue(1, 2)
        dbtasks.process_one()

        with self.assertRaisesMessage(TaskNotDue, "has finished as SUCCESSFUL"):
            dbtasks.run_task(result.id, allow_retry=True)

    def test_a_failed_row_is_run_again_only_if_that_is_allowed(self):
        """Its errors and starts are kept."""
        result = tasks.fail.enqueue()
        dbtasks.process_one()

        with self.assertRaisesMessage(TaskNotDue, "allow_retry=True"):
            dbtasks.run_task(result.id)
        again = dbtasks.run_task(result.id, allow_retry=True)

        self.assertEqual((FAILED, 2, 2), (again.status, again.attempts, len(again.errors)))

    def test_a_missing_or_malformed_id_does_not_exist(self):
        """As everywhere in Django's tasks."""
        for id in (uuid4(), str(uuid4()), "123"):
            with self.subTest(id), self.assertRaises(TaskResultDoesNotExist):
                dbtasks.run_task(id)

    @override_settings(TASKS=backend() | {"two": backend()["default"]})
    def test_a_row_of_another_backend_does_not_exist(self):
        """It runs with its own backend's options, or not at all (C1)."""
        result = tasks.add.enqueue(1, 2)

        with self.assertRaises(TaskResultDoesNotExist):
            dbtasks.run_task(result.id, backend="two")


class InterruptTests(TransactionTestCase):
    """Whatever breaks in, no row stays RUNNING."""

    def setUp(self) -> None:
        tasks.ran.clear()

    def test_ctrl_c_in_a_task_requeues_its_row_and_is_raised(self):
        """An interrupted task is not lost: it is READY again, and says why."""
        result = tasks.interrupt.enqueue()
        tasks.remember.enqueue("next")

        with self.assertNoLogs("django.tasks", "ERROR"), self.assertRaises(KeyboardInterrupt):
            dbtasks.process_tasks()

        result.refresh()
        self.assertEqual(["interrupt"], tasks.ran)
        self.assertEqual((READY, 1), (result.status, result.attempts))
        self.assertEqual(dbtasks.TaskReleased, result.errors[0].exception_class)

    def test_ctrl_c_beside_the_task_requeues_its_row(self):
        """A receiver, or our own code, may be where it hits."""
        result = tasks.add.enqueue(1, 2)
        with (
            mock.patch.object(bounds, "run", side_effect=KeyboardInterrupt),
            self.assertRaises(KeyboardInterrupt),
        ):
            dbtasks.process_one()

        result.refresh()
        # The task was not called, so this is no attempt.
        self.assertEqual((READY, 0, None), (result.status, result.attempts, result.started_at))

    def test_ctrl_c_while_settling_settles_and_is_raised(self):
        """The outcome in hand is written before the caller hears of it."""
        result = tasks.add.enqueue(1, 2)
        with (
            mock.patch.object(store, "settle") as settle,
            self.assertRaises(KeyboardInterrupt),
        ):
            settle.side_effect = break_once(KeyboardInterrupt, settle)
            dbtasks.process_one()

        result.refresh()
        self.assertEqual(SUCCESSFUL, result.status)

    def test_a_connection_that_broke_meanwhile_is_replaced(self):
        """A long task may outlive the connection; its outcome is still stored."""
        tasks.add.enqueue(1, 2)
        with mock.patch.object(store, "settle") as settle:
            settle.side_effect = break_once(OperationalError("gone away"), settle)
            result = dbtasks.process_one()

        self.assertEqual(tasks.add.get_result(result.id), result)

    def test_a_success_is_never_failed_because_it_could_not_be_written(self):
        """A node that is read-only, or lacks a table, says nothing about the outcome."""
        for error in (InternalError("read-only"), ProgrammingError("no such table")):
            tasks.add.enqueue(1, 2)
            with self.subTest(error=error), mock.patch.object(store, "settle") as settle:
                settle.side_effect = break_once(error, settle)
                result = dbtasks.process_one()

                self.assertEqual(SUCCESSFUL, result.status)
                self.assertEqual(tasks.add.get_result(result.id), result)

    def test_a_database_that_fails_for_longer_is_the_callers_problem(self):
        """The error is raised, and the row is rescued like that of a killed process."""
        tasks.add.enqueue(1, 2)
        with (
            mock.patch.object(settling.Pauses, "next", return_value=0),
            mock.patch.object(store, "settle", side_effect=InternalError("read-only")),
            self.assertRaises(InternalError),
        ):
            dbtasks.process_one()

        self.assertEqual(RUNNING, ScheduledTask.objects.get().status)
        self.assertEqual(1, Worker.objects.count())

    def test_an_outcome_that_the_database_refuses_is_stored_as_failed(self):
        """Data that cannot be written never leaves a row RUNNING."""
        tasks.add.enqueue(1, 2)
        with mock.patch.object(store, "settle") as settle, self.assertLogs("dbtasks"):
            settle.side_effect = break_once(DataError("too long"), settle)
            result = dbtasks.process_one()

        self.assertEqual(FAILED, result.status)
        self.assertEqual(tasks.add.get_result(result.id), result)

    def test_a_row_that_moved_on_meanwhile_is_left_alone(self):
        """The fence holds here as in a runner."""
        claim = inline.Inline("default").claim
        tasks.add.enqueue(1, 2)
        stale = claim()
        ScheduledTask.objects.update(fence=7)

        with self.assertLogs("dbtasks", "WARNING"):
            inline.Inline("default").run(stale)

        self.assertEqual(RUNNING, ScheduledTask.objects.get().status)


SETTLE = store.settle


def break_once(error: Any, settle: Any) -> Any:
    """Return a side effect that raises once, and settles from then on."""

    def settle_or_raise(*args: Any, **how: Any) -> Any:
        if settle.call_count == 1:
            raise error
        return SETTLE(*args, **how)

    return settle_or_raise


class InTestCaseTests(TestCase):
    """Under a TestCase's transaction tasks behave as if there were none."""

    def setUp(self) -> None:
        tasks.ran.clear()

    def test_a_test_case_may_process_its_tasks(self):
        """Its own transaction is no reason to refuse."""
        tasks.add.enqueue(1, 2)

        self.assertEqual(3, dbtasks.process_one().return_value)

    def test_a_transaction_of_the_code_under_test_is_refused(self):
        """Inside the TestCase's own one, it is still the caller's."""
        with transaction.atomic(), self.assertRaisesMessage(RuntimeError, "inside a transaction"):
            dbtasks.process_one()

    def test_a_database_error_in_a_task_spares_the_test(self):
        """PostgreSQL would refuse every later statement of the test."""
        tasks.break_sql.enqueue()

        result = dbtasks.process_one()

        self.assertEqual(FAILED, result.status)
        self.assertEqual(1, ScheduledTask.objects.count())

    def test_what_a_failing_task_wrote_before_stays(self):
        """As it does without a transaction around the task."""
        tasks.enqueue_then_fail.enqueue()

        dbtasks.process_one()

        self.assertEqual(1, dbtasks.pending_count())

    def test_a_block_broken_off_inside_a_task_spares_the_test(self):
        """The savepoint around the task takes the damage."""
        tasks.break_off_inside.enqueue()

        self.assertEqual(FAILED, dbtasks.process_one().status)
        self.assertEqual(1, ScheduledTask.objects.count())

    def test_a_block_left_open_by_a_task_is_closed(self):
        """The test's own blocks stay as they were."""
        depth = len(connections["default"].atomic_blocks)
        tasks.leave_open.enqueue()

        with self.assertLogs("dbtasks", "WARNING"):
            result = dbtasks.process_one()

        self.assertEqual(SUCCESSFUL, result.status)
        self.assertEqual(depth, len(connections["default"].atomic_blocks))

    def test_on_commit_callbacks_of_a_task_run_at_its_end(self):
        """Once, and only the task's own."""
        transaction.on_commit(lambda: tasks.ran.append("of the test"))
        tasks.remember_on_commit.enqueue("task")

        with self.captureOnCommitCallbacks(execute=True):
            dbtasks.process_one()

        self.assertEqual(["task", "task on commit"], tasks.ran)

    def test_durable_blocks_are_allowed_in_tasks(self):
        """They are in a runner, too."""
        tasks.remember_durably.enqueue("durable")

        self.assertEqual(SUCCESSFUL, dbtasks.process_one().status)
