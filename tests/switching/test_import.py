"""``manage.py dbtasks import``: from django-tasks-db and django-database-task."""

import threading
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any
from unittest.mock import patch
from uuid import UUID

from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction
from django.tasks import task_backends
from django.test import TransactionTestCase, override_settings
from django.utils import timezone

from dbtasks import process_tasks, store
from dbtasks.management.subcommands import importing as subcommand
from dbtasks.models import ScheduledTask
from dbtasks.store import importing

from ..support.backends import backend
from ..support.hints import Recorder, sending, with_push
from ..support.old_tables import make_django_database_task, make_django_tasks_db
from ..support.rows import DB, make_task

DAY = timedelta(days=1)
TABLES = ("django_tasks_database_dbtaskresult", "django_database_task_databasetask")
# Where django-tasks-db stores no run_after.
NEVER = datetime(9999, 1, 1, tzinfo=UTC)


def dbtasks(*arguments: object) -> tuple[int, str, str]:
    """Call the command; return its exit code and what it said."""
    out, err = StringIO(), StringIO()
    code = 0
    try:
        call_command("dbtasks", *map(str, arguments), stdout=out, stderr=err, no_color=True)
    except SystemExit as left:
        code = int(str(left.code))
    return code, out.getvalue(), err.getvalue()


def result_of(id: Any) -> Any:
    return task_backends["default"].get_result(str(id))


class ImportTestCase(TransactionTestCase):
    """The table of another package is there."""

    package = "django_tasks_db"

    def setUp(self) -> None:
        is_first = self.package == "django_tasks_db"
        self.addCleanup(self.drop)
        self.drop()
        self.Old = make_django_tasks_db() if is_first else make_django_database_task()

    def drop(self) -> None:
        with connection.cursor() as cursor:
            for table in (
                "django_tasks_database_dbtaskresult",
                "django_database_task_databasetask",
            ):
                cursor.execute(f"DROP TABLE IF EXISTS {table}")

    def make(self, *args: Any, **values: Any) -> UUID:
        """Write a row as the other package does; return its id."""
        kwargs = values.pop("kwargs", {})
        if self.package == "django_tasks_db":
            values = {"run_after": NEVER, "args_kwargs": {"args": args, "kwargs": kwargs}} | values
        else:
            values = {"args_json": args, "kwargs_json": kwargs} | values
        return self.Old.objects.create(**values).pk

    def dbtasks_import(self, *arguments: object) -> tuple[int, str, str]:
        return dbtasks("import", self.package, *arguments)


class DjangoTasksDBTests(ImportTestCase):
    """What both packages have in common."""

    def test_what_waits_goes_on_here(self):
        """Under its id, with its arguments; what has finished stays there."""
        at = timezone.now()
        ids = [self.make(n, kwargs={"b": 1}) for n in range(5)]
        later = self.make(1, 2, run_after=at + DAY, queue_name="mail", priority=7)
        overdue = self.make(3, 4, run_after=at - DAY)
        done = self.make(5, 6, status="SUCCESSFUL")
        code, out, err = self.dbtasks_import()

        self.assertEqual((0, ""), (code, err))
        self.assertEqual(f"Imported 7 tasks of {self.package} into 'default'.\n", out)
        self.assertEqual([done], list(self.Old.objects.values_list("pk", flat=True)))
        process_tasks()
        self.assertEqual([1, 2, 3, 4, 5], [result_of(id).return_value for id in ids])
        self.assertEqual(7, result_of(overdue).return_value)
        waits = result_of(later)
        self.assertEqual(("READY", at + DAY), (waits.status, waits.task.run_after))
        self.assertEqual("mail", waits.task.queue_name)

    def test_what_waits_is_hinted(self):
        """Now or for later; with a push the rows need no runner."""
        at = timezone.now() + DAY
        due, later = self.make(1, 2), self.make(3, 4, run_after=at, queue_name="mail")
        overdue = self.make(5, 6, run_after=at - 2 * DAY)
        push = Recorder()
        with with_push(push), sending():
            self.dbtasks_import()

        times = {UUID(hint.id): (hint.queue_name, hint.run_after) for hint in push.hints}
        default = ("default", None)
        self.assertEqual({due: default, later: ("mail", at), overdue: default}, times)

    def test_a_second_import_doubles_nothing(self):
        """Neither rows nor runs."""
        id = self.make(1, 2)
        self.dbtasks_import()
        process_tasks()
        again = self.dbtasks_import()

        self.assertEqual((0, f"Imported 0 tasks of {self.package} into 'default'.\n", ""), again)
        self.assertEqual([id], list(ScheduledTask.objects.values_list("pk", flat=True)))
        self.assertEqual([], process_tasks())

    def test_a_row_that_is_here_already_is_only_deleted_there(self):
        """A dump of the other table was restored after the import."""
        id = self.make(1, 2)
        make_task(id=id, args="[5,6]")
        self.dbtasks_import()

        self.assertEqual(0, self.Old.objects.count())
        self.assertEqual([5, 6], result_of(id).args)

    def test_what_runs_stays_until_its_worker_is_gone(self):
        """It is said, and --running starts it again, with one attempt lost."""
        name = "worker_ids" if self.package == "django_tasks_db" else "worker_ids_json"
        id = self.make(1, 2, status="RUNNING", started_at=timezone.now(), **{name: ["w7"]})
        code, _, err = self.dbtasks_import()

        self.assertEqual(1, code)
        self.assertIn("Left behind: 1 task with the status RUNNING.", err)
        self.assertEqual(0, ScheduledTask.objects.count())
        self.assertEqual((0, ""), self.dbtasks_import("--running")[::2])
        row = ScheduledTask.objects.get(pk=id)
        self.assertEqual(("READY", "", 1, 1), (row.status, row.hold, row.lost, row.attempt))
        process_tasks()
        result = result_of(id)
        self.assertEqual((3, "w7"), (result.return_value, result.worker_ids[0]))
        self.assertIn("It was w7.", result.errors[0].traceback)

    def test_imported_rows_run_before_newer_ones(self):
        """Their ids are random, and claims are in the order of ids."""
        new = make_task()
        old = [self.make(1, 2) for _ in range(5)]
        self.dbtasks_import()
        order = [UUID(str(claim.id)) for claim in store.claim(DB, "default", "w1", 100)]

        self.assertEqual(new, order.pop())
        self.assertEqual(set(old), set(order))

    def test_many_rows_are_moved_in_batches(self):
        """Each batch is a transaction: what one cannot do is left for the next run."""
        ids = {self.make(n, 1) for n in range(7)}
        insert = importing._insert
        calls = []

        def fails(*args: Any) -> Any:
            calls.append(insert(*args))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return calls[-1]

        with (
            patch.object(importing, "MOVED", 2),
            patch.object(importing, "_insert", fails),
            self.assertRaises(KeyboardInterrupt),
        ):
            self.dbtasks_import()
        moved = set(ScheduledTask.objects.values_list("pk", flat=True))
        self.assertEqual(4, len(moved))
        self.assertEqual(ids - moved, set(self.Old.objects.values_list("pk", flat=True)))
        with patch.object(importing, "MOVED", 2):
            self.dbtasks_import()

        self.assertEqual(ids, set(ScheduledTask.objects.values_list("pk", flat=True)))
        self.assertEqual(0, self.Old.objects.count())

    def test_a_row_that_the_other_worker_takes_just_now_is_left(self):
        """It is never in both tables, and the next run of the command takes what is left."""
        if not connection.features.has_select_for_update_skip_locked:
            self.skipTest("one writer at a time")
        taken, free = self.make(1, 2), self.make(3, 4)
        holds, release = threading.Event(), threading.Event()

        def other_worker() -> None:
            with transaction.atomic():
                self.Old.objects.select_for_update().get(pk=taken)
                holds.set()
                release.wait(60)
            connection.close()

        worker = threading.Thread(target=other_worker)
        worker.start()
        self.assertTrue(holds.wait(60))
        try:
            with patch.object(subcommand, "PAUSE", 0):
                code, _, err = self.dbtasks_import()
        finally:
            release.set()
            worker.join()

        self.assertEqual(1, code)
        self.assertIn("Left behind: 1 task that a worker was about to start", err)
        self.assertEqual([free], list(ScheduledTask.objects.values_list("pk", flat=True)))
        self.assertEqual((0, ""), self.dbtasks_import()[::2])
        self.assertEqual({taken, free}, set(ScheduledTask.objects.values_list("pk", flat=True)))

    def test_rows_that_were_locked_for_a_moment_are_imported(self):
        """On MySQL, a worker that looks for a task may lock all of them."""
        if not connection.features.has_select_for_update_skip_locked:
            self.skipTest("one writer at a time")
        ids = {self.make(1, 2) for _ in range(3)}
        holds, release = threading.Event(), threading.Event()

        def other_worker() -> None:
            with transaction.atomic():
                list(self.Old.objects.select_for_update())
                holds.set()
                release.wait(60)
            connection.close()

        worker = threading.Thread(target=other_worker)
        worker.start()
        self.assertTrue(holds.wait(60))

        def pause(seconds: float) -> None:
            release.set()
            worker.join()

        with patch.object(subcommand.time, "sleep", pause):
            self.assertEqual((0, ""), self.dbtasks_import()[::2])
        self.assertEqual(ids, set(ScheduledTask.objects.values_list("pk", flat=True)))

    def test_a_path_that_is_too_long_is_left(self):
        """It is said, and the others are imported."""
        long, id = self.make(1, 2, task_path="tests." * 50), self.make(3, 4)
        code, out, err = self.dbtasks_import()

        self.assertEqual(1, code)
        self.assertIn("Imported 1 task of", out)
        self.assertEqual(
            f"Left behind: 1 task whose task path or queue name is too long: {long}.\n", err
        )
        self.assertEqual("READY", result_of(id).status)

    @override_settings(TASKS={**backend(), "two": backend()["default"]})
    def test_rows_of_another_alias(self):
        """They are counted, and imported when they are named."""
        id = self.make(1, 2, backend_name="old")
        code, _, err = self.dbtasks_import("--backend", "two")

        self.assertEqual(1, code)
        self.assertIn("Left behind: 1 task with the status READY, enqueued under the alias", err)
        self.assertIn("--from-backend old.", err)
        self.assertEqual(0, self.dbtasks_import("--backend", "two", "--from-backend", "old")[0])
        self.assertEqual("two", ScheduledTask.objects.get(pk=id).backend)


class DjangoDatabaseTaskTests(DjangoTasksDBTests):
    """The same from its table, whose rows may have errors of earlier attempts."""

    package = "django_database_task"

    def test_errors_are_kept(self):
        """Of a row that was requeued there."""
        error = {"exception_class_path": "builtins.OSError", "traceback": "Traceback …"}
        id = self.make(1, 2, errors_json=[error], worker_ids_json=["w1", "w2"])
        self.dbtasks_import()
        result = result_of(id)

        self.assertEqual("builtins.OSError", result.errors[0].exception_class_path)
        self.assertEqual((["w1", "w2"], 2), (result.worker_ids, result.attempts))


class TableTests(TransactionTestCase):
    """Where the table is."""

    databases = {"default", "other"}

    def test_a_table_that_is_not_there(self):
        """The message names what is missing, and what to do."""
        for package in ("django_tasks_db", "django_database_task"):
            with self.assertRaisesMessage(CommandError, "has no table django_"):
                dbtasks("import", package)
        with self.assertRaisesMessage(CommandError, "invalid choice: 'celery'"):
            dbtasks("import", "celery")

    @override_settings(TASKS=backend(OPTIONS={"database": "other"}))
    def test_from_one_database_into_another(self):
        """--from-database names the first."""
        test = DjangoTasksDBTests()
        self.addCleanup(test.drop)
        test.setUp()
        id = test.make(1, 2)
        code, out, _ = dbtasks("import", "django_tasks_db", "--from-database", "default")

        self.assertEqual((0, "Imported 1 task of django_tasks_db into 'default'.\n"), (code, out))
        self.assertEqual(
            [id], list(ScheduledTask.objects.using("other").values_list("pk", flat=True))
        )
        self.assertEqual(0, test.Old.objects.count())
        self.assertIs(False, connections["default"].in_atomic_block)
