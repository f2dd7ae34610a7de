"""The helpers that other projects test with."""

import threading
from datetime import datetime, timedelta
from unittest import TestResult, TestSuite, mock

from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.tasks import TaskResultStatus, default_task_backend
from django.test import SimpleTestCase, TestCase, TransactionTestCase, override_settings
from django.utils import timezone

from dbtasks import testing
from dbtasks.exceptions import RunnerError
from dbtasks.models import ScheduledTask
from dbtasks.runner import Runner
from dbtasks.runner.run import Run
from dbtasks.testing import Ran, RunnerTestCase, TaskTestMixin, immediate

from .. import tasks
from ..support.backends import backend
from ..support.projects import run_in_project

READY, RUNNING = TaskResultStatus.READY, TaskResultStatus.RUNNING
SUCCESSFUL, FAILED = TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED
HOUR = timedelta(hours=1)
FOREIGN = {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}


class RunTasksTests(TaskTestMixin, TestCase):
    """run_tasks() drains the queue in the test's own thread and transaction."""

    def setUp(self) -> None:
        tasks.ran.clear()

    def test_it_runs_what_is_due_in_claim_order(self):
        """Highest priority first, then the oldest."""
        tasks.remember.enqueue("second")
        tasks.aremember.enqueue("third")
        tasks.remember.using(priority=1).enqueue("first")

        self.assertEqual(Ran(successful=3), self.run_tasks())
        self.assertEqual(["first", "second", "third"], tasks.ran)

    def test_it_runs_in_this_thread_inside_the_test_s_transaction(self):
        """Nothing of it is left after the test."""
        result = tasks.tell_thread.enqueue()

        self.run_tasks()

        result.refresh()
        self.assertEqual("MainThread", result.return_value)
        self.assertTrue(connection.in_atomic_block)

    def test_it_limits_itself_to_a_queue(self):
        """Other queues wait."""
        tasks.remember.enqueue("default")
        tasks.remember.using(queue_name="mail").enqueue("mail")

        self.assertEqual(1, self.run_tasks(queue="mail").total)
        self.assertEqual(["mail"], tasks.ran)

    def test_it_leaves_scheduled_tasks_alone(self):
        """Their time has not come."""
        tasks.remember.using(run_after=HOUR).enqueue("later")

        self.assertEqual(0, self.run_tasks().total)

    def test_until_runs_scheduled_tasks_up_to_that_time_in_their_order(self):
        """After what is due, and whatever their priority."""
        tasks.remember.using(run_after=2 * HOUR, priority=9).enqueue("in two")
        tasks.remember.using(run_after=HOUR).enqueue("in one")
        tasks.remember.using(run_after=4 * HOUR).enqueue("in four")
        tasks.remember.enqueue("now")

        self.assertEqual(3, self.run_tasks(until=3 * HOUR).total)
        self.assertEqual(["now", "in one", "in two"], tasks.ran)

    def test_until_may_be_a_datetime(self):
        """An aware one; a naive one is refused."""
        tasks.remember.using(run_after=HOUR).enqueue("in one")

        self.assertEqual(1, self.run_tasks(until=timezone.now() + HOUR).total)
        with self.assertRaisesMessage(ValueError, "until must be an aware datetime"):
            self.run_tasks(until=datetime(2030, 1, 1))

    def test_recursive_runs_what_tasks_enqueue(self):
        """Until nothing is left."""
        tasks.enqueue_other.enqueue("x", 2)

        self.assertEqual(3, self.run_tasks().total)

    def test_not_recursive_runs_only_what_was_there(self):
        """In the same order, scheduled ones included."""
        tasks.remember.using(run_after=HOUR).enqueue("later")
        tasks.enqueue_other.enqueue("x", 2)
        tasks.remember.using(priority=1).enqueue("first")

        self.assertEqual(3, self.run_tasks(recursive=False, until=HOUR).total)
        self.assertEqual(["first", "x", "later"], tasks.ran)

    def test_limit_ends_it(self):
        """No more than so many are claimed."""
        tasks.remember.enqueue_many([((n,), {}) for n in range(3)])

        self.assertEqual(2, self.run_tasks(limit=2).total)
        self.assertEqual(1, ScheduledTask.objects.due().count())

    def test_reraise_raises_the_task_s_own_exception_once_its_row_is_settled(self):
        """The very object, so that a debugger sees the task's frames."""
        result = tasks.fail.enqueue("own")
        error = ValueError("own")

        with (
            mock.patch.object(tasks, "ValueError", lambda _: error, create=True),
            self.assertRaises(ValueError) as caught,
        ):
            self.run_tasks()

        self.assertIs(error, caught.exception)
        result.refresh()
        self.assertEqual(FAILED, result.status)

    def test_without_reraise_failures_are_counted(self):
        """And the next tasks run."""
        tasks.fail.enqueue()
        tasks.remember.enqueue("next")

        self.assertEqual(Ran(successful=1, failed=1), self.run_tasks(reraise=False))

    @override_settings(TASKS=backend(OPTIONS={"max_attempts": 2, "backoff": 0}))
    def test_a_task_that_was_retried_counts_once(self):
        """By how it ended, however many attempts that took."""
        tasks.fail_once.enqueue()
        tasks.fail.enqueue()

        self.assertEqual(Ran(successful=1, failed=1), self.run_tasks(reraise=False, until=HOUR))

    @override_settings(TASKS=backend(OPTIONS={"max_attempts": 2, "backoff": 60}))
    def test_a_task_that_waits_for_its_next_attempt_has_not_failed(self):
        """It counts as waiting, until it is run again."""
        tasks.fail_once.enqueue()

        self.assertEqual(Ran(waiting=1), self.run_tasks(reraise=False))
        self.assertEqual(Ran(successful=1), self.run_tasks(until=HOUR))

    def test_on_commit_enqueues_of_tasks_are_run_too(self):
        """A task's transaction.on_commit() needs no captureOnCommitCallbacks()."""
        tasks.remember_on_commit.enqueue("task")

        self.run_tasks()

        self.assertEqual(["task", "task on commit"], tasks.ran)

    def test_a_transaction_of_the_test_is_refused(self):
        """Only the TestCase's own is fine."""
        with transaction.atomic(), self.assertRaisesMessage(RuntimeError, "transaction"):
            self.run_tasks()

    async def test_it_can_be_called_from_async_tests(self):
        """Through sync_to_async, as everything that uses the ORM."""
        await tasks.aremember.aenqueue("async")

        await sync_to_async(self.run_tasks)()

        self.assertEqual(["async"], tasks.ran)

    @override_settings(TASKS=backend() | {"two": backend()["default"]})
    def test_it_drains_another_backend(self):
        """Each backend has rows of its own."""
        tasks.remember.using(backend="two").enqueue("two")

        self.assertEqual(0, self.run_tasks().total)
        self.assertEqual(1, self.run_tasks(backend="two").total)

    def test_it_is_a_plain_function_too(self):
        """For pytest, and for whoever inherits from something else."""
        tasks.remember.enqueue("x")

        self.assertEqual(1, testing.run_tasks().total)
        self.assertEqual(SUCCESSFUL, testing.assertEnqueued(tasks.remember).status)


class AssertionTests(TaskTestMixin, TestCase):
    """The assertions know what was enqueued."""

    def test_assert_enqueued_returns_the_oldest_match(self):
        """The result, as the database holds it."""
        first = tasks.add.enqueue(1, 2)
        tasks.add.enqueue(1, 2)

        self.assertEqual(first, self.assertEnqueued(tasks.add, 1, 2))

    def test_args_are_a_prefix_and_kwargs_a_subset(self):
        """What is not given is not compared."""
        tasks.noop_task.enqueue(1, [2], a=(1, 2), b=2)

        self.assertEnqueued(tasks.noop_task)
        self.assertEnqueued(tasks.noop_task, 1, a=[1, 2])
        self.assertEnqueued(tasks.noop_task, 1, (2,), b=2)
        self.assertNotEnqueued(tasks.noop_task, [2])
        self.assertNotEnqueued(tasks.noop_task, 1, a=2)
        self.assertNotEnqueued(tasks.noop_task, c=None)

    def test_queue_and_priority_are_compared_if_given(self):
        """With the values of the call, not of the declaration."""
        tasks.add.using(queue_name="mail", priority=5).enqueue(1, 2)

        self.assertEnqueued(tasks.add, queue="mail", priority=5)
        self.assertNotEnqueued(tasks.add, queue="default")
        self.assertNotEnqueued(tasks.add, priority=0)

    def test_run_after_is_compared_within_a_tolerance(self):
        """As a datetime or a timedelta from now; None is a call without one."""
        tasks.add.using(run_after=HOUR).enqueue(1, 2)

        self.assertEnqueued(tasks.add, run_after=HOUR)
        self.assertEnqueued(tasks.add, run_after=timezone.now() + HOUR)
        self.assertEnqueued(tasks.add, run_after=2 * HOUR, within=3601)
        self.assertNotEnqueued(tasks.add, run_after=timedelta(minutes=59))
        self.assertNotEnqueued(tasks.add, run_after=None)

    def test_count_wants_exactly_so_many_and_returns_them(self):
        """Oldest first."""
        results = tasks.add.enqueue_many([((1, 2), {}), ((3, 4), {})])

        self.assertEqual(results, self.assertEnqueued(tasks.add, count=2))
        with self.assertRaisesMessage(AssertionError, "was not enqueued 1 times but 2"):
            self.assertEnqueued(tasks.add, count=1)

    def test_a_failure_lists_the_nearest_calls_and_what_differs(self):
        """The best match first, one line each."""
        tasks.add.using(queue_name="mail").enqueue(5, b=6)
        tasks.add.enqueue(1, b=2)

        with self.assertRaises(AssertionError) as caught:
            self.assertEnqueued(tasks.add, 1, b=3)

        self.assertEqual(
            "tests.tasks.add(1, b=3) was not enqueued. The nearest of 2, and what differs:\n"
            "  tests.tasks.add(1, b=2): READY, queue_name 'default', priority 0  <- b\n"
            "  tests.tasks.add(5, b=6): READY, queue_name 'mail', priority 0  <- args, b",
            str(caught.exception),
        )

    def test_a_failure_names_the_tasks_that_were_enqueued_instead(self):
        """Or says that there were none."""
        with self.assertRaisesMessage(AssertionError, "Nothing was enqueued."):
            self.assertEnqueued(tasks.add)
        tasks.fail.enqueue()
        with self.assertRaisesMessage(AssertionError, "Enqueued were: tests.tasks.fail."):
            self.assertEnqueued(tasks.add)

    def test_a_failure_hints_at_callbacks_that_wait_for_a_commit(self):
        """The commonest reason why a TestCase sees nothing enqueued."""
        tasks.fail.enqueue()
        with self.assertRaises(AssertionError) as caught:
            self.assertEnqueued(tasks.add)
        self.assertNotIn("on_commit", str(caught.exception))

        transaction.on_commit(lambda: tasks.add.enqueue(1, 2))
        with self.assertRaisesMessage(AssertionError, "1 on_commit callbacks wait"):
            self.assertEnqueued(tasks.add)

    def test_arguments_that_are_not_json_are_refused(self):
        """They cannot have been enqueued; a comparison would only fail."""
        with self.assertRaisesMessage(TypeError, "Unsupported type"):
            self.assertEnqueued(tasks.add, object())

    def test_assert_not_enqueued_lists_what_was(self):
        """Of one task, or of all."""
        self.assertNotEnqueued()
        tasks.add.enqueue(1, 2)

        self.assertNotEnqueued(tasks.fail)
        with self.assertRaisesMessage(AssertionError, "tests.tasks.add(1, 2): READY"):
            self.assertNotEnqueued()

    def test_assert_enqueued_count_counts_one_task_or_all(self):
        """A failure shows the latest."""
        self.assertEnqueuedCount(0)
        tasks.add.enqueue(1, 2)
        tasks.fail.enqueue()

        self.assertEnqueuedCount(2)
        self.assertEnqueuedCount(1, tasks.add)
        with self.assertRaisesMessage(AssertionError, "2 tasks were enqueued, not 3. The latest:"):
            self.assertEnqueuedCount(3)

    def test_enqueued_lists_all_calls_oldest_first_whatever_became_of_them(self):
        """Those that have run, too."""
        first = tasks.add.enqueue(1, 2)
        second = tasks.remember.enqueue("x")
        self.run_tasks()

        self.assertEqual([first.id, second.id], [result.id for result in self.enqueued()])
        self.assertEqual([second.id], [result.id for result in self.enqueued(tasks.remember)])

    @override_settings(
        TASKS=backend()
        | {"two": backend()["default"], "foreign": FOREIGN}
        | {"closed": backend(OPTIONS={"database": "other"})["default"]}
    )
    def test_all_backends_that_the_test_may_read_are_listed(self):
        """Foreign ones, and those in a database that the test does not name, are left out."""
        tasks.add.enqueue(1, 2)
        tasks.add.using(backend="two").enqueue(3, 4)

        self.assertEqual(["default", "two"], [result.backend for result in self.enqueued()])
        self.assertEnqueuedCount(1, tasks.add)
        self.assertEnqueued(tasks.add.using(backend="two"), 3)

    @override_settings(TASKS={"default": FOREIGN})
    def test_a_foreign_backend_is_refused_with_a_sentence(self):
        """Rather than found empty."""
        with self.assertRaisesMessage(RunnerError, "DummyBackend"):
            self.assertEnqueued(tasks.add)


class ImmediateTests(TaskTestMixin, TestCase):
    """immediate() runs tasks at enqueue."""

    def setUp(self):
        tasks.ran.clear()

    def test_tasks_run_at_enqueue_as_long_as_it_lasts(self):
        """Tasks that were imported before, as these."""
        with immediate():
            self.assertEqual(3, tasks.add.enqueue(1, 2).return_value)

        self.assertEqual(READY, tasks.add.enqueue(1, 2).status)

    @immediate()
    def test_it_decorates_a_test(self):
        """For the whole of it."""
        self.assertEqual(SUCCESSFUL, tasks.add.enqueue(1, 2).status)

    @immediate()
    async def test_it_decorates_an_async_test(self):
        """And holds in the threads it uses."""
        self.assertEqual(SUCCESSFUL, (await tasks.add.aenqueue(1, 2)).status)

    @immediate()
    def test_durable_blocks_are_allowed_in_tasks(self):
        """As in run_tasks() and in a runner, but not in a transaction of the code under test."""
        self.assertEqual(SUCCESSFUL, tasks.remember_durably.enqueue("durable").status)
        with transaction.atomic():
            self.assertEqual(FAILED, tasks.remember_durably.enqueue("inside").status)
        self.assertEqual(["durable"], tasks.ran)

    @immediate()
    def test_on_commit_callbacks_of_a_task_run_at_its_end(self):
        """The task's own, once; the test's wait for a commit that never comes."""
        transaction.on_commit(lambda: tasks.ran.append("of the test"))
        with self.captureOnCommitCallbacks(execute=True):
            tasks.remember_on_commit.enqueue("task")

        self.assertEqual(["task", "task on commit"], tasks.ran)

    @immediate()
    def test_an_on_commit_callback_that_fails_fails_the_test(self):
        """The task has ended by then."""
        with self.assertRaisesMessage(ValueError, "on commit"):
            tasks.fail_on_commit.enqueue()

        self.assertEqual(SUCCESSFUL, self.assertEnqueued(tasks.fail_on_commit).status)

    def test_it_holds_in_every_thread(self):
        """Each thread has a backend of its own."""
        seen = []
        with immediate():
            thread = threading.Thread(
                target=lambda: seen.append(default_task_backend.config.immediate)
            )
            thread.start()
            thread.join()

        self.assertEqual([True], seen)

    def test_other_options_and_backends_stay(self):
        """Only the one option of the one backend changes."""
        retain = default_task_backend.config.retain
        with (
            override_settings(TASKS=backend(OPTIONS={"retain": "7d"}) | {"two": FOREIGN}),
            immediate(),
        ):
            self.assertEqual(retain, default_task_backend.config.retain)
            self.assertEqual(READY, tasks.add.using(backend="two").enqueue(1, 2).status)

    def test_rows_are_written(self):
        """Assertions work under it."""
        with immediate():
            tasks.add.enqueue(1, 2)

        self.assertEqual(3, self.assertEnqueued(tasks.add).return_value)

    @override_settings(TASKS={"default": FOREIGN})
    def test_a_foreign_backend_is_refused(self):
        """It would not know the option."""
        with self.assertRaisesMessage(RunnerError, "DummyBackend"), immediate():
            self.fail("not reached")


@immediate()
class ImmediateClassTests(TestCase):
    """immediate() decorates a whole test case."""

    def test_tasks_run_at_enqueue(self):
        """In each of its tests."""
        self.assertEqual(SUCCESSFUL, tasks.add.enqueue(1, 2).status)


class RunnerTests(RunnerTestCase):
    """RunnerTestCase has a real runner at work."""

    def test_tasks_run_in_its_threads(self):
        """Committed rows are claimed without being asked for."""
        result = self.runner.wait_for(tasks.tell_thread.enqueue())

        self.assertTrue(result.return_value.startswith("dbtasks-"), result.return_value)

    def test_wait_returns_when_nothing_is_left(self):
        """Whatever the number of tasks."""
        tasks.add.enqueue_many([((n, 1), {}) for n in range(20)])

        self.assertTrue(self.runner.wait())
        self.assertEqual(20, ScheduledTask.objects.successful().count())

    def test_a_wait_with_a_timeout_says_that_it_was_too_long(self):
        """Only waits without one fail the test."""
        tasks.Gate.opened.clear()
        self.addCleanup(tasks.Gate.opened.set)
        result = tasks.pass_gate.enqueue()

        self.assertFalse(self.runner.wait(0.01))
        with self.assertRaises(TimeoutError):
            self.runner.wait_for(result, 0.01)

    def test_more_runners_can_be_started(self):
        """Each is stopped at the end of the test."""
        other = self.start_runner(queues=["mail"], workers=1)

        self.assertNotEqual(self.runner.worker_id, other.worker_id)
        self.assertTrue(other.ready.is_set())

    def test_a_test_may_stop_the_runner_itself(self):
        """Its end is waited for, running tasks included."""
        tasks.Gate.opened.clear()
        tasks.Gate.entered.clear()
        result = tasks.pass_gate.enqueue()
        self.assertTrue(tasks.Gate.entered.wait(10))

        self.runner.stop()
        tasks.Gate.opened.set()

        self.assertEqual(SUCCESSFUL, self.runner.wait_for(result).status)

    def test_assertions_work_beside_the_runner(self):
        """The same ones as in a TestCase."""
        self.runner.wait_for(tasks.add.enqueue(1, 2))

        self.assertEqual(3, self.assertEnqueued(tasks.add, 1, 2).return_value)


class Inner(RunnerTestCase):
    """Test cases of a project that goes wrong; run by the tests below."""

    max_wait = 0.3

    def hang(self) -> None:
        tasks.pass_gate.enqueue()
        self.runner.wait()

    def hang_for(self) -> None:
        self.runner.wait_for(tasks.pass_gate.enqueue())

    def leave_running(self) -> None:
        tasks.pass_gate.enqueue()
        tasks.Gate.entered.wait(10)

    def do_nothing(self) -> None:
        pass


class RunnerFailureTests(TransactionTestCase):
    """What goes wrong in a RunnerTestCase fails the test, soon and with a reason."""

    def setUp(self) -> None:
        tasks.Gate.opened.clear()
        tasks.Gate.entered.clear()
        self.addCleanup(tasks.Gate.opened.set)

    def complaints(self, method: str) -> list[str]:
        """Run that inner test; return the last line of what it fails with."""
        result = TestResult()
        TestSuite([Inner(method)]).run(result)
        return [text for _, text in result.failures + result.errors]

    def test_a_wait_that_takes_too_long_fails_with_the_unfinished_tasks(self):
        """And so does the end of the runner."""
        for method in ("hang", "hang_for"):
            with self.subTest(method):
                first, second = self.complaints(method)

                self.assertIn("after 0.3 seconds. Unfinished tasks:", first)
                self.assertIn("tests.tasks.pass_gate(): RUNNING, queue_name 'default'", first)
                self.assertIn("did not come to its end", second)

    def test_a_task_that_is_still_running_at_the_end_fails_the_test(self):
        """Its thread would work on, on the next test's rows."""
        (complaint,) = self.complaints("leave_running")

        self.assertIn("did not come to its end", complaint)

    @override_settings(TASKS={"default": FOREIGN})
    def test_a_runner_that_cannot_start_fails_the_test(self):
        """With what keeps it from starting."""
        (complaint,) = self.complaints("do_nothing")

        self.assertIn("RunnerError: TASKS['default'] uses DummyBackend", complaint)

    def test_a_runner_that_is_never_ready_fails_the_test(self):
        """It is not waited for."""
        with mock.patch.object(Runner, "run", lambda self: tasks.Gate.opened.wait(10)):
            (complaint,) = self.complaints("do_nothing")

        self.assertIn("was not ready after 0.3 seconds", complaint)

    def test_a_runner_that_breaks_later_fails_the_test(self):
        """With the exception that ended it."""
        with mock.patch.object(Run, "_loop", side_effect=ValueError("broken loop")):
            (complaint,) = self.complaints("do_nothing")

        self.assertIn("ValueError: broken loop", complaint)


class ImportTests(SimpleTestCase):
    """The module as a whole."""

    def test_all_public_names_exist(self):
        """What __all__ lists is there."""
        for name in testing.__all__:
            self.assertTrue(hasattr(testing, name), name)

    def test_the_mixin_has_all_functions(self):
        """Whatever is a function is a method, too."""
        for name in ("run_tasks", "enqueued", "assertEnqueued", "assertNotEnqueued"):
            self.assertIs(getattr(testing, name), getattr(TaskTestMixin(), name))


NEW_PROJECT = {
    "tasks.py": """
from django.tasks import task
from dbtasks.models import ScheduledTask

@task
def look(): return ScheduledTask.objects.count()
""",
    "tests.py": """
from django.db import transaction
from dbtasks.testing import RunnerTestCase
from shop.tasks import look

class LookTests(RunnerTestCase):
    def test_many(self):
        for _ in range(5):
            with transaction.atomic():
                results = look.enqueue_many([((), {})] * 20)
            self.runner.wait()
        self.assertEqual({"SUCCESSFUL"}, {result.status for result in self.enqueued()})
        self.assertEqual(100, results[-1].wait().return_value)

    test_again = test_and_again = test_many
""",
}


FOR_PYTEST = {
    "tasks.py": """
from django.db import transaction
from django.tasks import task
from dbtasks.models import ScheduledTask

@task
def look(): return ScheduledTask.objects.count()

@task
def settle():
    with transaction.atomic(durable=True): pass
""",
    "test_shop.py": """
import pytest
from django.db import transaction
from shop.tasks import look, settle

def test_inline(run_dbtasks):
    settle.enqueue()
    assert run_dbtasks().successful == 1

@pytest.mark.parametrize("n", range(3))
def test_threads(dbtasks_runner, n):
    for _ in range(5):
        with transaction.atomic():
            results = look.enqueue_many([((), {})] * 20)
        dbtasks_runner.wait()
    assert results[-1].wait().return_value == 100

@pytest.mark.dbtasks_runner(workers=5)
def test_options(dbtasks_runner):
    assert dbtasks_runner.options.workers == 5
    assert dbtasks_runner.wait_for(settle.enqueue()).status == "SUCCESSFUL"

def test_without(pytestconfig):
    assert pytestconfig.pluginmanager.has_plugin("dbtasks")
""",
}


class NewProjectTests(SimpleTestCase):
    """The helpers work in a project as ``startproject`` makes it."""

    def test_a_runner_works_on_a_database_in_memory(self):
        """Its threads wait for each other's locks, which SQLite does not do there."""
        done = run_in_project(NEW_PROJECT, "-m", "django", "test")

        self.assertIn("Ran 3 tests", done.stderr)
        self.assertEqual(0, done.returncode, done.stderr)

    def test_pytest_has_the_fixtures(self):
        """By the entry point, on a database in memory, and before Django is configured."""
        arguments = ("-m", "pytest", "--strict-markers", "-p", "no:cacheprovider")
        done = run_in_project(FOR_PYTEST, *arguments, "shop/test_shop.py")

        self.assertIn("6 passed", done.stdout, done.stderr)
        self.assertEqual(0, done.returncode, done.stdout)

    def test_the_core_needs_no_pytest(self):
        """Nothing else imports the plugin."""
        code = (
            "import sys; sys.modules['pytest'] = None; import django; django.setup();"
            "import dbtasks.testing, dbtasks.runner, dbtasks.inline;"
            "assert 'dbtasks.pytest_plugin' not in sys.modules"
        )
        done = run_in_project({}, "-c", code)

        self.assertEqual(0, done.returncode, done.stderr)
