"""The main use: enqueue, read results, act on them."""

import sys
import threading
from datetime import datetime, timedelta
from typing import Any
from unittest import mock

from django.db import OperationalError, connection, connections, transaction
from django.tasks import TaskResultStatus, default_task_backend, task_backends
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.test import SimpleTestCase, TestCase, TransactionTestCase, override_settings
from django.utils import timezone

import dbtasks
from dbtasks import store
from dbtasks.base import registry
from dbtasks.exceptions import TaskNotFound
from dbtasks.models import Hold, ScheduledTask
from dbtasks.runner import cleanup
from dbtasks.testing import RunnerTestCase, TaskTestMixin, immediate

from .. import tasks
from ..support import tasks as nasty
from ..support.backends import backend
from ..support.projects import run_in_project
from ..support.rows import wait_out

READY, RUNNING = TaskResultStatus.READY, TaskResultStatus.RUNNING
SUCCESSFUL, FAILED = TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED
HOUR = timedelta(hours=1)
GONE = "tests.tasks.long_gone"


def count(db: str = "default") -> int:
    """Return how many rows there are."""
    return ScheduledTask.objects.using(db).count()


class EnqueueTests(TestCase):
    """One call, one row."""

    def test_the_row_holds_the_call(self):
        """As it was made, in the words of the task's module."""
        result = tasks.add.using(priority=5, queue_name="mail").enqueue(1, b=2)

        row = ScheduledTask.objects.get()
        self.assertEqual(result.id, str(row.pk))
        self.assertEqual("tests.tasks.add", row.task_path)
        self.assertEqual(("mail", 5, "default"), (row.queue_name, row.priority, row.backend))
        self.assertEqual(([1], {"b": 2}), (row.args, row.kwargs))
        self.assertEqual((READY, Hold.NONE, 0), (row.status, row.hold, row.fence))

    def test_arguments_are_normalised_as_django_does(self):
        """Tuples are lists and keys are text, in the result as in the row."""
        result = tasks.noop_task.enqueue((1, 2), a={1: b"x"})

        self.assertEqual(([[1, 2]], {"a": {"1": "x"}}), (result.args, result.kwargs))
        self.assertEqual(result, tasks.noop_task.get_result(result.id))

    def test_later_changes_of_the_arguments_change_nothing(self):
        """The result holds copies."""
        argument = [1]
        result = tasks.noop_task.enqueue(argument)
        argument.append(2)

        self.assertEqual([[1]], result.args)

    def test_a_run_after_to_come_holds_the_row(self):
        """Given as a datetime."""
        later = timezone.now() + HOUR
        result = tasks.add.using(run_after=later).enqueue(1, 2)

        row = ScheduledTask.objects.get()
        self.assertEqual((Hold.SCHEDULED, later), (row.hold, row.run_after))
        self.assertEqual(later, result.task.run_after)

    def test_a_run_after_in_the_past_is_due(self):
        """It holds nothing up."""
        tasks.add.using(run_after=timezone.now() - HOUR).enqueue(1, 2)

        self.assertEqual(1, ScheduledTask.objects.due().count())

    def test_a_timedelta_counts_from_each_enqueue(self):
        """Not from using(), which may be long ago."""
        task = tasks.add.using(run_after=HOUR)
        first, result = task.enqueue(1, 2), task.enqueue(1, 2)
        wait = result.task.run_after - store.now("default")

        self.assertLess(first.task.run_after, result.task.run_after)
        self.assertLess(abs(wait - HOUR), timedelta(seconds=10))
        self.assertEqual(result, task.get_result(result.id))

    def test_a_timedelta_counts_on_the_clock_of_the_database(self):
        """The clock of this process may be wrong: the database's decides when the task is due."""
        if connection.vendor == "sqlite":
            self.skipTest("SQLite has no clock but that of the process.")
        ahead = timezone.now() + timedelta(days=1)
        with mock.patch.object(timezone, "now", return_value=ahead):
            result = tasks.add.using(run_after=HOUR).enqueue(1, 2)
        wait = result.task.run_after - store.now("default")

        self.assertLess(abs(wait - HOUR), timedelta(seconds=10))

    def test_a_naive_run_after_is_refused(self):
        """As Django refuses it."""
        with self.assertRaisesMessage(InvalidTask, "run_after must be an aware datetime."):
            tasks.add.using(run_after=datetime(2030, 1, 1))

    def test_names_longer_than_their_column_are_refused(self):
        """On every database alike, before any row is written (B29)."""
        with override_settings(TASKS=backend(QUEUES=[])):
            tasks.add.using(queue_name="q" * 100).enqueue(1, 2)
            with self.assertRaisesMessage(InvalidTask, "more than the 100 characters allowed"):
                tasks.add.using(queue_name="q" * 101)

        self.assertEqual(1, count())

    def test_any_queue_is_taken_when_queues_is_empty(self):
        """And run, too (B13)."""
        with override_settings(TASKS=backend(QUEUES=[])):
            tasks.add.using(queue_name="any").enqueue(1, 2)

            self.assertEqual(3, dbtasks.process_one().return_value)

    def test_policies_of_a_call_survive_the_row(self):
        """What using() changed is there when the result is read, and when the task runs."""
        task = tasks.short_lived.using(retain="2h")
        result = task.enqueue()

        self.assertEqual(task, task.get_result(result.id).task)
        dbtasks.process_one()
        row = ScheduledTask.objects.get()
        self.assertEqual(2 * HOUR, row.delete_after - row.finished_at)

    def test_using_refuses_an_unknown_policy(self):
        """With its name."""
        with self.assertRaisesMessage(TypeError, "'retian'"):
            tasks.add.using(retian=1)


class TransactionTests(TransactionTestCase):
    """Enqueue is part of the caller's transaction."""

    databases = {"default", "other"}

    def test_a_commit_commits_the_row(self):
        """Other connections see it only then."""
        with transaction.atomic():
            tasks.add.enqueue(1, 2)
            self.assertEqual(0, elsewhere(count))

        self.assertEqual(1, elsewhere(count))

    def test_a_rollback_rolls_the_row_back(self):
        """Of a whole transaction, and of a savepoint."""
        with transaction.atomic():
            tasks.add.enqueue(1, 2)
            with self.assertRaises(ValueError), transaction.atomic():
                tasks.add.enqueue(3, 4)
                raise ValueError
        with self.assertRaises(ValueError), transaction.atomic():
            tasks.add.enqueue(5, 6)
            raise ValueError

        self.assertEqual([[1, 2]], list(ScheduledTask.objects.values_list("args", flat=True)))

    @override_settings(TASKS=backend(OPTIONS={"enqueue_on_commit": True}))
    def test_enqueue_on_commit_writes_when_the_caller_commits(self):
        """By the option, for all tasks."""
        with transaction.atomic():
            result = tasks.add.enqueue(1, 2)
            self.assertEqual((READY, 0), (result.status, count()))
        with self.assertRaises(ValueError), transaction.atomic():
            tasks.add.enqueue_many([((3, 4), {})])
            raise ValueError

        self.assertEqual([result.id], [str(row.pk) for row in ScheduledTask.objects.all()])

    def test_enqueue_on_commit_outside_of_a_transaction_writes_at_once(self):
        """There is nothing to wait for."""
        tasks.on_commit_task.enqueue()

        self.assertEqual(1, count())

    def test_enqueue_on_commit_can_be_a_task_s_own(self):
        """Other tasks are not held up by it, and a call may decide anew."""
        with transaction.atomic():
            tasks.on_commit_task.enqueue()
            self.assertEqual(0, count())
            tasks.on_commit_task.using(enqueue_on_commit=False).enqueue()
            self.assertEqual(1, count())

        self.assertEqual(2, count())

    def test_enqueue_on_commit_can_wait_for_another_database(self):
        """The one whose transaction the call belongs to."""
        with transaction.atomic("other"), transaction.atomic():
            tasks.on_other_commit_task.enqueue()
            transaction.on_commit(lambda: self.assertEqual(0, count()))

        self.assertEqual(1, count())

    @override_settings(TASKS=backend(OPTIONS={"immediate": True, "enqueue_on_commit": True}))
    def test_enqueue_on_commit_runs_immediate_tasks_at_the_commit(self):
        """Not before it, and not at all after a rollback."""
        tasks.ran.clear()
        with transaction.atomic():
            tasks.remember.enqueue("committed")
            self.assertEqual([], tasks.ran)
        with self.assertRaises(ValueError), transaction.atomic():
            tasks.remember.enqueue("rolled back")
            raise ValueError

        self.assertEqual(["committed"], tasks.ran)


def elsewhere(work: Any) -> Any:
    """Return what the work returns in another thread, on connections of its own."""
    returned = []

    def live() -> None:
        try:
            returned.append(work())
        finally:
            connections.close_all()

    thread = threading.Thread(target=live)
    thread.start()
    thread.join()
    return returned[0]


class EnqueueManyTests(TestCase):
    """Many calls, a few statements."""

    def test_results_come_in_the_order_of_the_calls(self):
        """Each with its own arguments, and equal to what is read."""
        results = tasks.add.enqueue_many([((n, n), {}) for n in range(3)])

        self.assertEqual([[0, 0], [1, 1], [2, 2]], [result.args for result in results])
        for result in results:
            self.assertEqual(result, tasks.add.get_result(result.id))

    def test_rows_run_in_the_order_of_the_calls(self):
        """Ids are in order of age within one batch, too."""
        tasks.ran.clear()
        tasks.remember.enqueue_many([((n,), {}) for n in range(20)])

        dbtasks.process_tasks()

        self.assertEqual(list(range(20)), tasks.ran)

    def test_it_takes_a_few_statements_whatever_the_number(self):
        """One for every 500 rows."""
        with self.assertNumQueries(3):
            results = tasks.add.enqueue_many([((n, 1), {}) for n in range(1001)])

        self.assertEqual((1001, 1001), (len(results), count()))

    def test_the_backend_takes_calls_of_several_tasks(self):
        """Each call names its task."""
        results = default_task_backend.enqueue_many(
            [(tasks.add, (1, 2), {}), (tasks.fail, (), {"message": "x"})]
        )

        self.assertEqual([tasks.add, tasks.fail], [result.task for result in results])

    def test_one_wrong_call_keeps_all_from_being_written(self):
        """The error is the one of that call."""
        with self.assertRaisesMessage(TypeError, "Unsupported type"):
            tasks.add.enqueue_many([((1, 2), {}), ((object(), 2), {})])

        self.assertEqual(0, count())

    def test_no_calls_are_no_rows(self):
        """Nor a statement."""
        with self.assertNumQueries(0):
            self.assertEqual([], tasks.add.enqueue_many([]))

    async def test_the_async_twins_do_the_same(self):
        """Of the task and of the backend."""
        (first,) = await tasks.add.aenqueue_many([((1, 2), {})])
        (second,) = await default_task_backend.aenqueue_many([(tasks.add, (3, 4), {})])

        self.assertEqual(first, await tasks.add.aget_result(first.id))
        self.assertEqual(second, await tasks.add.aget_result(second.id))


class Router:
    """Sends our rows to the other database."""

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "other" if model is ScheduledTask else None

    db_for_read = db_for_write


class DatabaseTests(TransactionTestCase):
    """The queue may live in a database of its own."""

    databases = {"default", "other"}

    def assert_all_works_in_other(self) -> None:
        """Enqueue, read, run, cancel and retry; see that default stays empty."""
        result = tasks.fail.enqueue()
        with self.assertRaises(ValueError), transaction.atomic("other"):
            tasks.add.enqueue(1, 2)
            raise ValueError

        self.assertEqual((0, 1), (count(), count("other")))
        self.assertEqual(result, tasks.fail.get_result(result.id))
        dbtasks.process_one()
        result.refresh()
        self.assertEqual(FAILED, result.status)
        self.assertTrue(result.retry())
        self.assertTrue(result.cancel())
        self.assertEqual(0, dbtasks.pending_count())

    @override_settings(TASKS=backend(OPTIONS={"database": "other"}))
    def test_the_option_names_the_database(self):
        """Everything happens there."""
        self.assert_all_works_in_other()

    @override_settings(DATABASE_ROUTERS=[f"{__name__}.Router"])
    def test_a_router_decides_over_the_option(self):
        """Everything happens where it sends the model (B24)."""
        self.assert_all_works_in_other()

    @override_settings(TASKS=backend(OPTIONS={"database": "other", "immediate": True}))
    def test_immediate_tasks_write_their_rows_there(self):
        """And join only that database's transactions."""
        with transaction.atomic():
            result = tasks.add.enqueue(1, 2)

        self.assertEqual((SUCCESSFUL, 3), (result.status, result.return_value))
        self.assertEqual((0, 1), (count(), count("other")))


class SignalTests(TestCase):
    """Receivers are told, and trusted with nothing."""

    def connect(self, signal: Any, receiver: Any) -> None:
        """Connect the receiver for the length of the test."""
        signal.connect(receiver)
        self.addCleanup(signal.disconnect, receiver)

    def test_task_enqueued_is_sent_once_for_each_row(self):
        """With the backend's class as sender, once the row is written."""
        seen = []
        self.connect(
            task_enqueued, lambda sender, task_result, **_: seen.append((sender, task_result))
        )
        result = tasks.add.enqueue(1, 2)
        results = tasks.add.enqueue_many([((1, 2), {}), ((3, 4), {})])

        sender = type(task_backends["default"])
        self.assertEqual([(sender, each) for each in [result, *results]], seen)

    def test_a_receiver_that_raises_changes_nothing(self):
        """Neither at enqueue nor while the task runs (B16, C7)."""

        def receive(**kwargs: Any) -> None:
            raise ValueError("receiver")

        for signal in (task_enqueued, task_started, task_finished):
            self.connect(signal, receive)
        with self.assertLogs("django.dispatch", "ERROR") as logs:
            tasks.add.enqueue(1, 2)
            result = dbtasks.process_one()

        self.assertEqual((SUCCESSFUL, 3), (result.status, len(logs.output)))

    @override_settings(TASKS=backend(OPTIONS={"signals": False}))
    def test_signals_can_be_switched_off(self):
        """All three."""
        seen: list[Any] = []
        for signal in (task_enqueued, task_started, task_finished):
            self.connect(signal, lambda **kwargs: seen.append(kwargs))
        tasks.add.enqueue(1, 2)
        dbtasks.process_one()

        self.assertEqual([], seen)


class ResultTests(TaskTestMixin, TestCase):
    """What is read is what was written."""

    def test_a_result_comes_back_equal_in_every_state(self):
        """Microseconds, policies and errors included."""
        task = tasks.fail.using(priority=-3, queue_name="mail", run_after=HOUR, retain=60)
        for result in (tasks.add.enqueue(1, 2), task.enqueue("x")):
            with self.subTest(result.task.name):
                self.assertEqual(result, result.task.get_result(result.id))
        for result in (dbtasks.process_one(), dbtasks.process_one()):
            if result is not None:
                self.assertEqual(result, default_task_backend.get_result(result.id))

    def test_malformed_and_missing_ids_do_not_exist(self):
        """No other exception comes out of them (B19)."""
        for id in ("123", "", "é", None, 7, "00000000-0000-7000-8000-000000000000"):
            with self.subTest(id), self.assertRaises(TaskResultDoesNotExist):
                default_task_backend.get_result(id)
            with self.subTest(id), self.assertRaises(TaskResultDoesNotExist):
                default_task_backend.is_finished(id)

    @override_settings(TASKS=backend() | {"two": backend()["default"]})
    def test_results_of_another_backend_do_not_exist(self):
        """Each alias has rows of its own (C6)."""
        result = tasks.add.enqueue(1, 2)

        with self.assertRaises(TaskResultDoesNotExist):
            task_backends["two"].get_result(result.id)

    def gone(self) -> Any:
        """Return the result of a row whose function is gone, as read from the database."""
        result = tasks.add.enqueue(1, 2)
        ScheduledTask.objects.filter(pk=result.id).update(task_path=GONE)
        return default_task_backend.get_result(result.id)

    def test_a_row_whose_function_is_gone_can_be_read(self):
        """Its task is a stand-in that can be shown, but not called (B20)."""
        result = self.gone()

        self.assertEqual((GONE, "long_gone"), (result.task.module_path, result.task.name))
        self.assertEqual(([1, 2], READY), (result.args, result.status))
        with self.assertRaisesMessage(TaskNotFound, GONE):
            result.task.call()

    def test_a_row_whose_function_is_gone_can_be_refreshed_and_cancelled(self):
        """Manual operations still work (B20)."""
        result = self.gone()

        self.assertTrue(result.cancel())
        result.refresh()
        self.assertEqual(FAILED, result.status)

    def test_a_row_whose_function_is_gone_fails_when_it_is_run(self):
        """With a sentence that names the path."""
        wait_out(self.gone().id)

        result = dbtasks.process_one()

        self.assertEqual(TaskNotFound, result.errors[0].exception_class)
        self.assertIn(GONE, result.errors[0].traceback)

    def test_a_row_whose_queue_left_queues_can_be_read_and_run(self):
        """It was valid when it was enqueued (B20, A1)."""
        result = tasks.add.using(queue_name="mail").enqueue(1, 2)

        with override_settings(TASKS=backend(QUEUES=["default"])):
            self.assertEqual("mail", tasks.add.get_result(result.id).task.queue_name)
            self.assertEqual(SUCCESSFUL, dbtasks.process_one().status)

    def test_a_path_that_is_no_task_is_not_called(self):
        """Nor is its module imported."""
        result = tasks.add.enqueue(1, 2)
        ScheduledTask.objects.update(task_path="antigravity.getcwd")

        with self.assertRaisesMessage(TaskNotFound, "'antigravity.getcwd'"):
            dbtasks.run_task(result.id)
        self.assertNotIn("antigravity", sys.modules)

    def test_a_copy_made_by_using_does_not_replace_the_task(self):
        """Rows without changed values run with the values of the declaration."""
        tasks.short_lived.using(priority=50, retain=60)

        self.assertIs(tasks.short_lived, registry.get("tests.tasks.short_lived"))
        result = tasks.short_lived.enqueue()
        self.assertEqual(tasks.short_lived, default_task_backend.get_result(result.id).task)

    def test_cancel_ends_a_task_that_has_not_started(self):
        """Once; it never runs."""
        result = tasks.add.using(run_after=HOUR).enqueue(1, 2)

        self.assertTrue(result.cancel())
        self.assertFalse(result.cancel())

        result.refresh()
        self.assertEqual(FAILED, result.status)
        self.assertEqual(dbtasks.TaskCancelled, result.errors[0].exception_class)
        self.assertEqual(0, self.run_tasks(until=2 * HOUR).total)

    async def test_acancel_does_the_same(self):
        """Of the result and of the backend."""
        first, second = await tasks.add.aenqueue(1, 2), await tasks.add.aenqueue(3, 4)

        self.assertTrue(await first.acancel())
        self.assertTrue(await default_task_backend.acancel(second.id))
        self.assertFalse(await default_task_backend.acancel(second.id))

    def test_cancel_asks_a_running_task_to_end(self):
        """True says that it was asked; it runs on until its runner hears."""
        result = tasks.add.enqueue(1, 2)
        store.claim_one("default", "default", "w1", result.id)

        self.assertTrue(result.cancel())
        self.assertTrue(result.cancel())
        result.refresh()
        self.assertEqual(RUNNING, result.status)
        self.assertTrue(ScheduledTask.objects.get().cancel_requested)

    def test_cancel_leaves_a_finished_task_alone(self):
        """What has happened stays."""
        result = tasks.add.enqueue(1, 2)
        dbtasks.process_one()

        self.assertFalse(result.cancel())
        result.refresh()
        self.assertEqual(SUCCESSFUL, result.status)

    def test_retry_makes_a_failed_task_ready_again(self):
        """Errors and starts are kept, and the second attempt is the second."""
        result = tasks.fail.enqueue()
        dbtasks.process_one()

        self.assertTrue(result.retry())
        self.assertFalse(result.retry())

        result.refresh()
        self.assertEqual((READY, 1, 1), (result.status, result.attempts, len(result.errors)))
        self.assertIsNone(result.finished_at)
        again = dbtasks.process_one()
        self.assertEqual((2, 2), (again.attempts, len(again.errors)))
        self.assertEqual(again, tasks.fail.get_result(result.id))

    @override_settings(TASKS=backend() | {"two": backend()["default"]})
    def test_cancel_and_retry_are_the_backend_s_own(self):
        """Rows of another alias are out of reach."""
        result = tasks.add.enqueue(1, 2)

        self.assertFalse(task_backends["two"].cancel(result.id))
        dbtasks.process_one()
        ScheduledTask.objects.update(status=FAILED)
        self.assertFalse(task_backends["two"].retry(result.id))

    def test_a_missing_or_malformed_id_cannot_be_cancelled_or_retried(self):
        """There is nothing to do, which is no error."""
        for act in (default_task_backend.cancel, default_task_backend.retry):
            for id in ("123", "00000000-0000-7000-8000-000000000000"):
                with self.subTest(act, id=id):
                    self.assertFalse(act(id))

    def test_results_can_be_members_of_sets(self):
        """Equal results hash alike."""
        result = tasks.add.enqueue(1, 2)

        self.assertEqual({result}, {result, tasks.add.get_result(result.id)})
        self.assertNotEqual(result, "a result")


class ImmediateTests(TestCase):
    """What the option ``immediate`` does beyond Django's own backend."""

    @immediate()
    def test_a_database_error_in_a_task_spares_the_caller_s_transaction(self):
        """The row tells of it, and the caller goes on (B30)."""
        with transaction.atomic():
            result = tasks.break_sql.enqueue()
            tasks.add.enqueue(1, 2)

        self.assertEqual(FAILED, result.status)
        self.assertEqual(2, count())

    @immediate()
    def test_an_interrupted_task_is_settled(self):
        """The caller hears of it, and no row stays RUNNING."""
        with self.assertRaises(KeyboardInterrupt):
            tasks.interrupt.enqueue()

        self.assertEqual(FAILED, ScheduledTask.objects.get().status)

    @immediate()
    def test_a_runner_never_sees_the_row_of_an_immediate_task(self):
        """While it runs it is held, so that nobody takes it for due or lost (B26)."""
        seen = []

        def receive(**kwargs: Any) -> None:
            row = ScheduledTask.objects.get()
            seen.append((row.status, row.hold))

        task_started.connect(receive)
        self.addCleanup(task_started.disconnect, receive)
        tasks.add.enqueue(1, 2)

        self.assertEqual([(RUNNING, Hold.IMMEDIATE)], seen)

    @immediate()
    def test_tasks_that_enqueue_tasks_run_them_inside(self):
        """In the order of the calls."""
        tasks.ran.clear()
        tasks.enqueue_other.enqueue("x", 2)

        self.assertEqual(["x", "x", "x"], tasks.ran)
        self.assertEqual(3, ScheduledTask.objects.successful().count())


class WaitTests(RunnerTestCase):
    """Results can be waited for, whoever runs the task."""

    def setUp(self) -> None:
        super().setUp()
        tasks.Gate.opened.clear()
        self.addCleanup(tasks.Gate.opened.set)

    def test_wait_returns_the_result_refreshed(self):
        """Once the task has ended."""
        result = tasks.add.enqueue(1, 2)

        self.assertIs(result, result.wait(10))
        self.assertEqual(3, result.return_value)

    def test_wait_for_a_task_that_failed_returns_too(self):
        """The result tells how it ended."""
        self.assertEqual(FAILED, tasks.fail.enqueue().wait(10).status)

    def test_wait_for_a_finished_task_returns_at_once(self):
        """Even with no time given, and however often (B15)."""
        result = tasks.add.enqueue(1, 2).wait(10)

        self.assertEqual(3, result.wait(0).return_value)
        self.assertEqual(3, result.wait().return_value)

    def test_wait_gives_up_after_its_timeout(self):
        """With an error that names the task and the seconds."""
        result = tasks.pass_gate.enqueue()

        with self.assertRaisesMessage(
            TimeoutError, f"Task {result.id} has not finished after 0.01"
        ):
            result.wait(0.01)

    async def test_await_returns_the_result_refreshed(self):
        """And lets the event loop run meanwhile."""
        result = await tasks.add.aenqueue(1, 2)

        self.assertIs(result, await result.await_(10))
        self.assertEqual(3, result.return_value)

    async def test_await_gives_up_after_its_timeout(self):
        """As wait() does."""
        result = await tasks.pass_gate.aenqueue()

        with self.assertRaises(TimeoutError):
            await result.await_(0.01)


class WaitInsideTransactionTests(TransactionTestCase):
    """Waiting for what nobody can see is refused."""

    def test_wait_inside_the_enqueueing_transaction_is_refused(self):
        """It could only ever end in a timeout."""
        with transaction.atomic():
            result = tasks.add.enqueue(1, 2)
            with self.assertRaises(RuntimeError):
                result.wait(0.01)


class DatabaseAwayTests(TransactionTestCase):
    """A database that cannot be reached is not hidden."""

    def test_enqueue_raises_what_the_database_raises(self):
        """The caller must know that no row was written."""
        with (
            mock.patch.object(dbtasks.store, "enqueue", side_effect=OperationalError("away")),
            self.assertRaises(OperationalError),
        ):
            tasks.add.enqueue(1, 2)


EARLY = {
    "apps.py": """
from django.apps import AppConfig
from shop import tasks

class ShopConfig(AppConfig):
    name = "shop"
""",
    "models.py": "from shop.tasks import django_s, ours, ours_with_policies",
    "tasks.py": """
import dbtasks
from django.tasks import task

@task
def django_s(): pass

@dbtasks.task
def ours(): pass

@dbtasks.task(retain="1d", queue_name="default")
def ours_with_policies(): pass
""",
}


class EarlyImportTests(SimpleTestCase):
    """Tasks may be imported before Django has loaded its apps."""

    def test_an_app_may_import_tasks_while_apps_load(self):
        """From its apps.py and its models.py, before the app dbtasks (B1)."""
        code = (
            "import django; django.setup(); from shop.tasks import ours_with_policies as t; "
            "print(type(t).__module__, t.retain)"
        )

        done = run_in_project(EARLY, "-c", code)

        self.assertEqual(("dbtasks.base.task 1d\n", 0), (done.stdout, done.returncode), done.stderr)


class CallersTransactionTests(TransactionTestCase):
    """What a caller's transaction may look like, and how it is left."""

    databases = {"default", "other"}

    def test_an_immediate_task_that_leaves_a_transaction_open_leaves_none(self):
        """The caller's connection is as it was, and the row is written for good."""
        with override_settings(TASKS=backend(OPTIONS={"immediate": True})):
            with self.assertLogs("dbtasks.runner", "WARNING"):
                result = nasty.leave_transaction_open.enqueue()
            self.assertFalse(connection.in_atomic_block)
            with transaction.atomic():
                inside = nasty.leave_transaction_open.enqueue()
            self.assertFalse(connection.in_atomic_block)

        rows = ScheduledTask.objects.filter(pk__in=[result.id, inside.id])
        self.assertEqual({"SUCCESSFUL"}, {row.status for row in rows})

    @override_settings(TASKS=backend(OPTIONS={"immediate": True}))
    def test_an_immediate_task_that_swallows_an_error_is_failed(self):
        """In the caller's transaction its writes are undone: that is no success."""
        kept = nasty.add.enqueue(1, 2)
        with transaction.atomic():
            result = nasty.swallow.enqueue()
            again = nasty.add.enqueue(3, 4)

        rows = ScheduledTask.objects.filter(pk__in=[kept.id, again.id], status="SUCCESSFUL")
        self.assertEqual(2, rows.count())
        # Elsewhere the statement alone failed, and the transaction is as good as before.
        expected = "FAILED" if connection.vendor == "postgresql" else "SUCCESSFUL"
        self.assertEqual(expected, result.status)
        self.assertEqual(3, ScheduledTask.objects.count())

    @override_settings(TASKS=backend(OPTIONS={"immediate": True}))
    def test_an_immediate_task_that_fails_spares_every_transaction(self):
        """Also that of another database than the queue's."""
        with transaction.atomic("other"):
            result = nasty.break_other.enqueue()
            with connections["other"].cursor() as cursor:
                cursor.execute("SELECT 1")

        self.assertEqual("FAILED", result.status)

    def test_cleanup_runs_under_immediate_too(self):
        """Our own task asks for no runner."""
        with override_settings(TASKS=backend(OPTIONS={"immediate": True})):
            self.assertEqual(0, cleanup.enqueue(3600).return_value)

    def test_enqueue_without_autocommit(self):
        """The row is the caller's to commit."""
        transaction.set_autocommit(False)
        try:
            result = nasty.add.enqueue(1, 2)
            transaction.commit()
        finally:
            transaction.set_autocommit(True)

        self.assertTrue(ScheduledTask.objects.filter(pk=result.id).exists())

    def test_each_of_many_calls_is_written_when_its_task_wants(self):
        """enqueue_many() heeds enqueue_on_commit call by call."""
        later = nasty.add.using(enqueue_on_commit=True)
        with transaction.atomic():
            results = default_task_backend.enqueue_many(
                [(nasty.add, [1, 2], {}), (later, [3, 4], {})]
            )
            self.assertEqual(1, ScheduledTask.objects.count())

        self.assertEqual(2, ScheduledTask.objects.filter(pk__in=[r.id for r in results]).count())
