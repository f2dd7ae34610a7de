"""From django-dbtasks, whose app label and tables have the same names, by ``manage.py migrate``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import PackageNotFoundError
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.db.transaction import TransactionManagementError
from django.tasks import task_backends
from django.test import SimpleTestCase, TransactionTestCase
from django.utils import timezone

from dbtasks import process_tasks, store
from dbtasks.calls import uuid7
from dbtasks.db.connections import drop
from dbtasks.distribution import check_distributions
from dbtasks.migrations import _django_dbtasks as switching
from dbtasks.models import PeriodicTask, ScheduledTask, Worker
from dbtasks.store import periodic

from ..support.old_tables import VERSIONS, make_django_dbtasks, old_task, old_worker
from ..support.rows import DB, make_task
from ..tasks import add

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
TEXT = 'zoë \U0001f600 \\ "q" \u2028'
# Statements that change something.
WRITES = ("ALTER", "CREATE", "DROP", "INSERT", "DELETE", "UPDATE", "RENAME")


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def killed_before(number: int) -> Iterator[list[str]]:
    """End the process before its write of that number; yield the writes that were made."""
    made: list[str] = []

    def watch(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if sql.lstrip().startswith(WRITES):
            if len(made) == number:
                raise Killed
            made.append(sql)
        return execute(sql, *rest)

    with connection.execute_wrapper(watch):
        yield made


class SwitchTestCase(TransactionTestCase):
    """The database is as django-dbtasks has left it."""

    version = "0.5.0"

    def setUp(self) -> None:
        self.addCleanup(self.restore)
        self.reset(self.version)

    def reset(self, version: str) -> None:
        """Make the database as that version of django-dbtasks has left it."""
        self.clear()
        make_django_dbtasks(version)
        for name in VERSIONS[version][0]:
            MigrationRecorder(connection).record_applied("dbtasks", name)
        self.Task = old_task(version)

    def clear(self) -> None:
        """Remove every trace of both packages."""
        with connection.cursor() as cursor:
            there = connection.introspection.table_names(cursor)
            for table in ("switch_order", "dbtasks_old_scheduledtask", "dbtasks_scheduledtask"):
                if table in there:
                    cursor.execute(f"DROP TABLE {table}")
            for table in ("dbtasks_old_worker", "dbtasks_worker", "dbtasks_periodictask"):
                if table in there:
                    cursor.execute(f"DROP TABLE {table}")
        MigrationRecorder(connection).migration_qs.filter(app="dbtasks").delete()

    def restore(self) -> None:
        """Leave our tables to the tests that follow."""
        self.clear()
        self.migrate()

    def migrate(self) -> None:
        call_command("migrate", "dbtasks", verbosity=0)

    def make(self, **values: Any) -> UUID:
        """Write a row as django-dbtasks does; return its id."""
        values = {"id": uuid4(), "args": [1, 2], "enqueued_at": timezone.now() - DAY} | values
        return self.Task.objects.create(**values).pk

    def lost_runner(self, name: str = "web-1") -> str:
        """Write a worker that was killed a while ago."""
        seen = timezone.now() - 2 * MINUTE
        old_worker().objects.create(id=name, first_seen=seen - DAY, last_seen=seen)
        return name

    def recorded(self) -> list[str]:
        recorder = MigrationRecorder(connection).migration_qs.filter(app="dbtasks")
        return sorted(recorder.values_list("name", flat=True))

    def tables(self) -> list[str]:
        with connection.cursor() as cursor:
            names = connection.introspection.table_names(cursor)
        return sorted(name for name in names if name.startswith("dbtasks_"))


OURS = ["dbtasks_periodictask", "dbtasks_scheduledtask", "dbtasks_worker"]


def result_of(id: Any) -> Any:
    return task_backends["default"].get_result(str(id))


class CarriedRowsTests(SwitchTestCase):
    """What each version has stored goes on here."""

    def rows(self) -> dict[str, UUID]:
        """Write rows of each kind; return their ids."""
        at = timezone.now() - DAY
        begun = {"started_at": at + MINUTE, "worker_ids": ["web-1"]}
        ended = begun | {"finished_at": at + 2 * MINUTE}
        failed = {"exception_path": "builtins.ValueError", "traceback": f"Traceback\n{TEXT}"}
        return {
            "waiting": self.make(args=[1], kwargs={"b": 2}, queue="mail", priority=-7),
            "text": self.make(task_path="tests.tasks.gone", args=[{TEXT: [None, 1.5e300, TEXT]}]),
            "later": self.make(run_after=timezone.now() + DAY),
            "overdue": self.make(run_after=at),
            "running": self.make(status="RUNNING", **begun),
            "successful": self.make(status="SUCCESSFUL", return_value={"a": [TEXT]}, **ended),
            "nothing": self.make(status="SUCCESSFUL", **ended),
            "failed": self.make(status="FAILED", **failed, **ended),
            "other": self.make(backend="unknown"),
        }

    def check(self, ids: dict[str, UUID], before: dict[UUID, Any]) -> None:
        """Compare each row with what django-dbtasks had stored."""
        same = ("task_path", "backend", "args", "kwargs", "enqueued_at", "run_after", "started_at")
        for name, id in ids.items():
            row, old = ScheduledTask.objects.get(pk=id), before[id]
            with self.subTest(name):
                for column in (*same, "finished_at", "return_value"):
                    self.assertEqual(getattr(old, column), getattr(row, column), column)
                self.assertEqual(old.queue, row.queue_name)
                self.assertEqual(old.worker_ids, row.worker_ids or [])
                self.assertEqual(len(old.worker_ids), row.attempt)
                self.assertEqual("READY" if name == "running" else old.status, row.status)
                self.assertEqual(int(name == "running"), row.lost)
                self.assertEqual(getattr(old, "delete_after", None), row.delete_after)

    def test_each_version_s_rows_are_carried_over(self):
        """Arguments, results, errors, worker ids and times; what ran starts again."""
        for version in VERSIONS:
            with self.subTest(version):
                self.reset(version)
                ids = self.rows()
                if version != "0.3.1":
                    finished = self.Task.objects.filter(status="SUCCESSFUL")
                    finished.update(delete_after=timezone.now() + DAY)
                before = {row.pk: row for row in self.Task.objects.all()}
                self.migrate()

                self.check(ids, before)
                self.assertEqual(["0001_queue"], self.recorded())
                self.assertEqual(OURS, self.tables())

    def test_results_can_be_had_by_their_old_ids(self):
        """As django-dbtasks has returned them, and the error of what was lost."""
        ids = self.rows()
        self.migrate()
        failed, running = result_of(ids["failed"]), result_of(ids["running"])

        self.assertEqual({"a": [TEXT]}, result_of(ids["successful"]).return_value)
        self.assertEqual("builtins.ValueError", failed.errors[0].exception_class_path)
        self.assertEqual(f"Traceback\n{TEXT}", failed.errors[0].traceback)
        self.assertEqual(["web-1"], failed.worker_ids)
        self.assertEqual("dbtasks.exceptions.WorkerLost", running.errors[0].exception_class_path)
        self.assertIn("It was web-1.", running.errors[0].traceback)

    def test_what_waits_runs_and_what_is_later_waits_on(self):
        """Once each, and enqueue() works."""
        ids = self.rows()
        self.migrate()
        new = add.enqueue(3, 4)
        process_tasks()

        self.assertEqual(7, result_of(new.id).return_value)
        for name in ("waiting", "overdue", "running"):
            self.assertEqual(3, result_of(ids[name]).return_value, name)
        self.assertEqual("READY", result_of(ids["later"]).status)
        self.assertEqual(["web-1"], result_of(ids["running"]).worker_ids[:1])
        self.assertEqual(2, len(result_of(ids["running"]).worker_ids))

    def test_many_rows_are_moved_in_batches(self):
        """None is left out or doubled, also where a batch ends."""
        count = 2 * switching.BATCH + 1
        at = timezone.now()
        ids = {uuid4() for _ in range(count)}
        self.Task.objects.bulk_create(self.Task(id=id, enqueued_at=at) for id in ids)
        with patch.object(switching, "BATCH_CHARS", 1000):
            self.migrate()

        self.assertEqual(ids, set(ScheduledTask.objects.values_list("pk", flat=True)))


class OrderTests(SwitchTestCase):
    """In which order what was carried over runs."""

    def test_carried_rows_run_before_newer_ones_of_their_priority(self):
        """Although their ids are random; and after those of the next priority."""
        carried = [self.make(priority=priority) for priority in (5, 4, 0, 0)]
        timed = [self.make(id=uuid7(), priority=0)]
        self.migrate()
        new = {priority: make_task(priority=priority) for priority in (0, 4, 5, 6)}
        order = [UUID(str(claim.id)) for claim in store.claim(DB, "default", "w1", 100)]

        self.assertEqual([new[6], carried[0], new[5], carried[1], new[4]], order[:5])
        self.assertEqual(set(carried[2:]), set(order[5:7]))
        self.assertEqual([*timed, new[0]], order[7:])

    def test_the_row_of_a_tick_is_not_fired_once_more(self):
        """The waiting row of a schedule is the run of its next tick."""
        tick = timezone.now().replace(microsecond=0) + DAY
        id = self.make(run_after=tick, periodic=True)
        twin = self.make(run_after=tick, periodic=True)
        done = self.make(run_after=tick, periodic=True, status="SUCCESSFUL", finished_at=tick)
        self.migrate()
        rows = ScheduledTask.objects.in_bulk()

        self.assertEqual({"tests.tasks.add"}, {row.schedule_key for row in rows.values()})
        self.assertCountEqual([tick, None], [rows[id].tick, rows[twin].tick])
        self.assertIsNone(rows[done].tick)
        self.assertEqual([], self.fire(tick))

    def fire(self, tick: Any) -> list[Any]:
        """Fire the tick of add's schedule; return what was written."""
        schedule = PeriodicTask.objects.create(
            backend="default", key="tests.tasks.add", origin="settings", next_tick=tick
        )
        row = task_backends["default"].prepare(add, [1, 2], {})[0]
        row = row._replace(id=store.pk_text(DB, row.id))
        fired = periodic.fire(DB, schedule, [periodic.Tick(tick, row)], tick + DAY)
        return fired.ticks


class RefusalTests(SwitchTestCase):
    """The migration changes nothing as long as it could do harm."""

    def refused(self) -> str:
        before = self.tables()
        with self.assertRaises(CommandError) as caught:
            self.migrate()

        self.assertEqual(before, self.tables())
        self.assertEqual(list(VERSIONS["0.5.0"][0]), self.recorded())
        self.assertEqual(1, self.Task.objects.count())
        return str(caught.exception)

    def test_an_old_runner_that_is_alive(self):
        """Its name is said; when it has been silent for a minute, the migration runs."""
        id, name = self.make(), self.lost_runner("web-1")
        alive = old_worker().objects.filter(pk=name)
        alive.update(last_seen=timezone.now() - timedelta(seconds=50))

        self.assertIn("A runner of django-dbtasks was seen", message := self.refused())
        self.assertIn("web-1 (5", message)
        alive.update(last_seen=timezone.now() - timedelta(seconds=61))
        self.migrate()
        self.assertEqual("READY", result_of(id).status)

    def test_another_table_s_foreign_key(self):
        """Neither its rows nor the constraint is lost."""
        id = self.make()
        kind = connection.data_types["UUIDField"] % {"max_length": 32}
        with connection.cursor() as cursor:
            cursor.execute(
                f"CREATE TABLE switch_order (id integer PRIMARY KEY, task_id {kind} NOT NULL, "
                "CONSTRAINT switch_fk FOREIGN KEY (task_id) REFERENCES dbtasks_scheduledtask (id))"
            )

        self.assertIn("switch_order has a foreign key to dbtasks_sch", self.refused())
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE switch_order")
        self.migrate()
        self.assertEqual("READY", result_of(id).status)

    def test_a_path_that_is_too_long(self):
        """It is said what to delete."""
        id = self.make(task_path="tests." * 50)

        self.assertIn("1 rows of django-dbtasks have a task_path of more", self.refused())
        self.Task.objects.filter(pk=id).delete()
        self.migrate()


class KilledTests(SwitchTestCase):
    """The migration is killed, at every write that it makes, and run again."""

    ROWS = 4

    def kill(self, number: int) -> list[str]:
        """Run the migration until before its write of that number; return the writes it made."""
        with killed_before(number) as made:
            try:
                self.migrate()
            except (Killed, TransactionManagementError):  # the latter from SQLite's schema editor
                drop(connections["default"])
                return made
        return []

    def prepare(self) -> dict[UUID, str]:
        """Write rows; return their statuses after the migration, by their ids."""
        self.reset("0.5.0")
        name = self.lost_runner()
        ids = [self.make() for _ in range(self.ROWS - 1)]
        running = {"status": "RUNNING", "worker_id": name, "worker_ids": [name]}
        return dict.fromkeys([*ids, self.make(**running)], "READY")

    def check(self, expected: dict[UUID, str]) -> None:
        self.migrate()
        rows = ScheduledTask.objects.in_bulk()
        self.assertEqual(expected, {id: row.status for id, row in rows.items()})
        self.assertEqual([0] * (self.ROWS - 1) + [1], sorted(row.lost for row in rows.values()))
        self.assertEqual(OURS, self.tables())
        self.assertEqual(["0001_queue"], self.recorded())
        for model in (ScheduledTask, PeriodicTask, Worker):
            with connection.cursor() as cursor:
                there = connection.introspection.get_constraints(cursor, model._meta.db_table)
            wanted = {each.name for each in (*model._meta.indexes, *model._meta.constraints)}
            self.assertLessEqual(wanted, set(there))

    def test_nothing_is_lost_or_doubled_wherever_it_is_killed(self):
        """Each row is there once, each index too. Small batches, so that there are some."""
        # Where DDL is rolled back, one point is like another.
        step = 1 if connection.vendor == "mysql" else 7
        number = 0
        with patch.object(switching, "BATCH", 3):
            while True:
                expected = self.prepare()
                made = self.kill(number)
                with self.subTest(number=number, after=made[-1:]):
                    self.check(expected)
                if not made and number:
                    break
                number += step

        self.assertGreater(number, 12)

    def test_killed_again_and_again(self):
        """Each run comes a little further than the one before."""
        expected = self.prepare()
        with patch.object(switching, "BATCH", 1):
            for number in range(0, 40, 5):
                self.kill(number)
            self.check(expected)

    def test_a_task_that_ran_meanwhile_is_not_moved_again(self):
        """A runner that was started too early has run and purged what was moved already."""
        if connection.vendor != "mysql":
            self.skipTest("the interrupted migration is rolled back")
        expected = self.prepare()
        with patch.object(switching, "BATCH", 2):
            self.assertTrue(any(self.moved(number) for number in range(60)))
        moved = set(ScheduledTask.objects.values_list("pk", flat=True))
        ScheduledTask.objects.all()._raw_delete("default")
        self.migrate()

        self.assertEqual(
            set(expected) - moved, set(ScheduledTask.objects.values_list("pk", flat=True))
        )

    def moved(self, number: int) -> bool:
        """Kill the migration there; return whether it has moved some rows."""
        self.kill(number)
        there = "dbtasks_scheduledtask" in self.tables()
        return there and "queue" not in self.columns() and ScheduledTask.objects.exists()

    def columns(self) -> set[str]:
        return switching.columns(connection, "dbtasks_scheduledtask")


class TablesTests(SwitchTestCase):
    """Tables that are in the way, and the way back."""

    def test_a_table_that_is_not_ours_is_left_alone(self):
        """The migration says which, and touches nothing in it."""
        self.clear()
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE dbtasks_periodictask (id integer PRIMARY KEY)")
        with self.assertRaisesMessage(CommandError, "The table dbtasks_periodictask exists, but"):
            self.migrate()
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE dbtasks_periodictask")

    def test_tables_without_a_record_are_taken(self):
        """A dump was restored without Django's own table: nothing is lost."""
        self.migrate()
        id = make_task()
        MigrationRecorder(connection).migration_qs.filter(app="dbtasks").delete()
        self.migrate()

        self.assertEqual("READY", result_of(id).status)

    def test_the_app_can_be_removed(self):
        """migrate dbtasks zero leaves nothing behind, so the old package can be installed again."""
        self.make()
        self.migrate()
        call_command("migrate", "dbtasks", "zero", verbosity=0)

        self.assertEqual(([], []), (self.tables(), self.recorded()))


class NamesTests(SimpleTestCase):
    """Both packages have the same app label, so a name means one migration."""

    def test_no_migration_has_a_name_that_django_dbtasks_has_used(self):
        """Django would think that ours was applied."""
        loader = MigrationLoader(None)
        ours = {name for app, name in loader.disk_migrations if app == "dbtasks"}

        self.assertIn("0001_queue", ours)
        self.assertEqual(set(), ours & set(switching.OLD_MIGRATIONS))
        self.assertEqual(VERSIONS["0.5.0"][0], switching.OLD_MIGRATIONS)


class DistributionTests(SimpleTestCase):
    """Both distributions own the folder dbtasks."""

    def test_both_installed_is_an_error(self):
        """It says how to come out of it."""
        with patch("importlib.metadata.distribution") as find:
            [error] = check_distributions()

        find.assert_called_once_with("django-dbtasks")
        self.assertEqual("dbtasks.E020", error.id)
        self.assertIn("--force-reinstall", error.hint)

    def test_ours_alone_is_none(self):
        """As on this machine."""
        with patch("importlib.metadata.distribution", side_effect=PackageNotFoundError):
            self.assertEqual([], check_distributions())
