"""Databases and networks that go away under a runner."""

import socket
import threading
import time
from datetime import timedelta
from functools import partial
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

from django.db import OperationalError, connection, connections, transaction
from django.test import TransactionTestCase

from dbtasks import store
from dbtasks.db import timeouts
from dbtasks.db.service import Pauses
from dbtasks.db.timeouts import bounded_connect, call_timeout
from dbtasks.models import ScheduledTask, Worker
from dbtasks.runner import Runner
from dbtasks.testing import RunnerTestCase

from ..support.gates import GateMixin
from ..support.locks import locked
from ..support.processes import Child, ProcessTestCase, database_url
from ..support.proxy import Proxy
from ..support.rows import row, vendor
from ..support.servers import Postgres
from ..support.tasks import Gate, nap, wait_at_gate
from ..support.waiting import until
from ..tasks import add, wait_for_file


class TimeoutTests(TransactionTestCase):
    """Calls that end."""

    def setUp(self) -> None:
        sleep = {"postgresql": "SELECT pg_sleep(60)", "mysql": "SELECT SLEEP(60)"}
        if vendor() not in sleep:
            self.skipTest("SQLite waits for nobody but its file")
        self.sleep = sleep[vendor()]
        self.addCleanup(connection.close)

    def ask(self, sql: str, seconds: float) -> None:
        with call_timeout(connections["default"], seconds), connection.cursor() as cursor:
            cursor.execute(sql)

    def test_a_call_that_takes_too_long_is_an_error_in_its_thread(self):
        """Soon after its time, and with a new connection all is well."""
        began = time.monotonic()
        with self.assertRaises(OperationalError):
            self.ask(self.sleep, 0.5)
        seconds = time.monotonic() - began
        connection.close()
        self.ask("SELECT 1", 10)

        self.assertGreater(seconds, 0.5)
        self.assertLess(seconds, 5)

    def test_a_call_in_time_is_left_alone(self):
        """So is what comes after it, however long."""
        self.ask("SELECT 1", 0.3)
        with connection.cursor() as cursor:
            cursor.execute(self.sleep.replace("60", "1"))
            self.assertEqual(1, len(cursor.fetchall()))

    def test_a_lock_is_not_waited_for_for_long(self):
        """Whatever a project runs when it connects."""
        if vendor() != "mysql":
            self.skipTest("other databases end a statement when it is cancelled")
        options = connection.settings_dict["OPTIONS"] | {"init_command": "SET @project = 1"}
        with mock.patch.dict(connection.settings_dict, OPTIONS=options):
            connection.close()
            with (
                bounded_connect("default"),
                call_timeout(connection),
                connection.cursor() as cursor,
            ):
                cursor.execute("SELECT @project, @@innodb_lock_wait_timeout")
                self.assertEqual((1, 5), tuple(map(int, cursor.fetchone())))
        connection.close()

    def test_connecting_has_an_end_too(self):
        """A server that accepts and says nothing is left after seconds; settings are put back."""
        deaf = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(deaf.close)
        connection.close()
        settings = connection.settings_dict
        own = settings | {"HOST": "127.0.0.1", "PORT": str(deaf.getsockname()[1])}
        began = time.monotonic()
        with mock.patch.object(connection, "settings_dict", own):
            with self.assertRaises(OperationalError), bounded_connect("default"):
                connection.ensure_connection()
            self.assertIs(own, connection.settings_dict)

        self.assertLess(time.monotonic() - began, 10)

    def test_own_connections_do_not_come_from_a_pool(self):
        """Which may be exhausted, or wait 30 seconds for a server that does not answer."""
        if vendor() != "postgresql" or not hasattr(connection.Database, "pq"):
            self.skipTest("only psycopg 3 has a pool")
        if "pool" in connection.settings_dict["OPTIONS"]:
            self.skipTest("this test has a pool of its own")
        connection.close()
        settings = connection.settings_dict
        pool = {"min_size": 1, "max_size": 1, "timeout": 0.1}
        own = settings | {"OPTIONS": settings["OPTIONS"] | {"pool": pool}}
        with mock.patch.object(connection, "settings_dict", own):
            connection.pool.open()
            with connection.pool.connection():
                with bounded_connect("default"):
                    self.ask("SELECT 1", 5)
                with self.assertRaises(OperationalError):
                    connection.ensure_connection()
            self.ask("SELECT 1", 5)
            connection.close()
            connection.close_pool()

    def test_a_network_that_swallows_a_part_of_the_connecting_is_given_up(self):
        """Whichever of the words before the first statement it is that gets no answer."""
        if vendor() == "postgresql" and not hasattr(connection.Database, "pq"):
            self.skipTest("psycopg 2 asks and waits before it shows its connection")
        proxy = Proxy(database_url())
        self.addCleanup(proxy.close)
        parts = urlsplit(proxy.url)
        own = connection.settings_dict | {"HOST": parts.hostname, "PORT": str(parts.port)}
        replies = 0
        with (
            mock.patch.object(timeouts, "CONNECT_TIMEOUT", 1),
            mock.patch.object(timeouts, "CALL_TIMEOUT", 1),
        ):
            while True:
                proxy.most_replies = replies
                connection.close()
                began = time.monotonic()
                try:
                    with (
                        mock.patch.object(connection, "settings_dict", own),
                        bounded_connect("default"),
                    ):
                        self.ask("SELECT 1", 0.5)
                    break
                except OperationalError:
                    self.assertLess(time.monotonic() - began, 10, f"after {replies} replies")
                replies += 1

        self.assertGreater(replies, 1)


class HoleTests(ProcessTestCase):
    """A network that swallows everything and says nothing."""

    def setUp(self) -> None:
        super().setUp()
        if vendor() == "sqlite":
            self.skipTest("SQLite has no network")
        self.proxy = Proxy(database_url())
        self.addCleanup(self.proxy.close)

    def begin(self, timeout: int, url: str) -> Child:
        """Start a runner, return it once it runs the only task there is."""
        child = self.start(
            "taskrunner", "-w", 1, "-v", 2, TEST_DATABASE=url, TEST_WORKER_TIMEOUT=str(timeout)
        )
        until((self.folder / "started").exists, "The task")
        return child

    def test_an_outcome_in_hand_is_stored_when_the_network_is_back(self):
        """Every call ends, the runner starts nothing meanwhile, and is soon at work again."""
        result = wait_for_file.enqueue(str(self.folder))
        runner = self.begin(60, self.proxy.url)
        self.proxy.is_hole.set()
        (self.folder / "go").touch()
        runner.wait_for("has not answered in time")
        runner.wait_for("The database failed")
        self.assertEqual("RUNNING", row(result.id).status)
        later = add.enqueue(1, 2)
        self.proxy.is_hole.clear()
        began = time.monotonic()
        result.wait(30)
        later.wait(30)
        seconds = time.monotonic() - began

        self.assertEqual(("SUCCESSFUL", 1), (result.status, result.attempts))
        self.assertEqual(3, later.return_value)
        self.assertLess(seconds, 8)

    def test_a_runner_that_was_cut_off_registers_anew(self):
        """Others have run its task meanwhile; it drops its own outcome, and says so."""
        result = wait_for_file.enqueue(str(self.folder))
        cut_off = self.begin(2, self.proxy.url)
        self.proxy.is_hole.set()
        self.begin(2, database_url())
        until(lambda: result.refresh() or result.attempts == 2, "The second start")
        (self.folder / "go").touch()
        result.wait(30)
        self.proxy.is_hole.clear()
        cut_off.wait_for("registers again")
        cut_off.wait_for("was dropped")

        self.assertEqual(("SUCCESSFUL", 2), (result.status, row(result.id).attempt))
        until(lambda: Worker.objects.filter(state="live").count() == 2, "The new name")


class RestartTests(ProcessTestCase):
    """A server that is gone and comes back."""

    def setUp(self) -> None:
        super().setUp()
        if vendor() != "postgresql":
            self.skipTest("the server of this test is PostgreSQL")
        self.server = Postgres()
        self.addCleanup(self.server.close)

    def command(self, *arguments: Any) -> Child:
        return self.start(*arguments, TEST_DATABASE=self.server.url)

    def count(self, status: str) -> int:
        sql = f"SELECT COUNT(*) FROM dbtasks_scheduledtask WHERE status = '{status}'"
        return int(self.server.fetch(sql)[0][0])

    def test_nothing_is_lost_by_a_restart_and_work_goes_on_at_once(self):
        """No process ends, each task starts once, and outcomes come within five seconds."""
        total = 3000
        self.assertEqual(0, self.command("migrate", "-v", 0).end())
        calls = f"[((0.01,), {{}})] * {total}"
        code = f"from tests.tasks import rest; rest.enqueue_many({calls})"
        self.assertEqual(0, self.command("shell", "-v", 0, "-c", code).end())
        runner = self.command("taskrunner", "-w", 4)
        until(lambda: self.count("SUCCESSFUL") > 300, "The first outcomes")
        self.server.restart()
        began, before = time.monotonic(), self.count("SUCCESSFUL")
        # What was in hand, and as much again: claims and outcomes flow.
        until(lambda: self.count("SUCCESSFUL") > before + 200, "New outcomes")
        seconds = time.monotonic() - began
        until(lambda: self.count("SUCCESSFUL") == total, "The last outcome")
        starts = self.server.fetch("SELECT DISTINCT attempt, lost FROM dbtasks_scheduledtask")

        self.assertLess(seconds, 5)
        self.assertEqual([(1, 0)], starts)
        self.assertIsNone(runner.process.poll())


class LockTests(ProcessTestCase):
    """Somebody holds what the runner needs."""

    def test_locked_rows_are_waited_for(self):
        """The runner lives, and the outcome is stored when the lock is gone."""
        result = wait_for_file.enqueue(str(self.folder))
        # Writers wait for the lock of a SQLite file: here not for 20 seconds, but they try again.
        runner = self.start("taskrunner", "-w", 1, "-v", 2, TEST_SQLITE_TIMEOUT="0.1")
        until((self.folder / "started").exists, "The task")
        with transaction.atomic():
            list(ScheduledTask.objects.select_for_update())
            list(Worker.objects.select_for_update())
            (self.folder / "go").touch()
            if vendor() != "sqlite":
                runner.wait_for("has not answered in time")
            runner.wait_for("The heartbeat failed")
            result.refresh()
            self.assertEqual("RUNNING", result.status)
        result.wait(30)
        later = add.enqueue(1, 2).wait(30)

        self.assertEqual(("SUCCESSFUL", 1), (result.status, result.attempts))
        self.assertEqual(3, later.return_value)
        self.assertIsNone(runner.process.poll())

    def test_a_locked_table_is_waited_for(self):
        """So is a migration that takes its time."""
        if vendor() != "postgresql":
            self.skipTest("the statement is PostgreSQL's")
        result = wait_for_file.enqueue(str(self.folder))
        runner = self.start("taskrunner", "-w", 1, "-v", 2)
        until((self.folder / "started").exists, "The task")
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("LOCK TABLE dbtasks_scheduledtask, dbtasks_worker")
            (self.folder / "go").touch()
            runner.wait_for("has not answered in time")
            runner.wait_for("The database failed")

        self.assertEqual(("SUCCESSFUL", 1), (result.wait(30).status, result.attempts))


class LockedRowTests(GateMixin, RunnerTestCase):
    """A row that a transaction of the project holds while its task ends."""

    def setUp(self) -> None:
        if vendor() == "sqlite":
            self.skipTest("SQLite locks the file, not rows")
        super().setUp()

    def test_a_locked_row_holds_up_no_other_outcome(self):
        """Its own outcome is written when the transaction has ended."""
        result = wait_at_gate.enqueue()
        self.assertTrue(Gate.entered.acquire(timeout=10))
        with locked(result.id):
            Gate.opened.set()
            others = [self.runner.wait_for(add.enqueue(1, n), 4) for n in range(3)]
            result.refresh()
            self.assertEqual("RUNNING", result.status)
        self.runner.wait_for(result, 10)

        self.assertEqual(["SUCCESSFUL"] * 4, [one.status for one in (*others, result)])

    def test_a_locked_row_that_is_due_does_not_keep_the_loop_busy(self):
        """Its promotion is tried again after a pause, and other tasks run meanwhile."""
        result = add.using(run_after=timedelta(seconds=0.5)).enqueue(1, 2)
        with locked(result.id), mock.patch.object(store, "promote", wraps=store.promote) as promote:
            self.runner.wait_for(nap.enqueue(2), 10)
            self.assertLess(promote.call_count, 40)
        self.runner.wait_for(result, 10)

        self.assertEqual(3, result.return_value)
        self.assertGreater(promote.call_count, 0)


class BacklogTests(TransactionTestCase):
    """Outcomes that the database does not take."""

    def test_a_database_that_comes_back_is_not_blamed_on_the_outcome(self):
        """MySQL says the same to those whose words are too many; size tells which it was."""
        settle, failures = store.settle, iter([OperationalError(2013, "Lost connection")] * 6)

        def sometimes(db: str, outcomes: Any, **how: Any) -> Any:
            if error := next(failures, None):
                raise error
            return settle(db, outcomes, **how)

        result = add.enqueue(1, 2)
        with (
            mock.patch.object(store, "settle", sometimes),
            mock.patch("dbtasks.runner.outcome_writer.Pauses", partial(Pauses, longest=0.1)),
        ):
            Runner(workers=1, drain=True).run()
        result.refresh()

        self.assertEqual((3, 1), (result.return_value, result.attempts))

    def test_claims_go_on_as_soon_as_fewer_outcomes_wait(self):
        """Not at the next poll, which is a long time off where hints arrive."""
        stored, settle = threading.Event(), store.settle

        def late(db: str, outcomes: Any, **how: Any) -> Any:
            stored.wait(30)
            return settle(db, outcomes, **how)

        add.enqueue_many([((n, 0), {}) for n in range(200)])
        runner = Runner(workers=2, loop_delay=300)
        with (
            mock.patch("dbtasks.runner.rounds.MAX_BACKLOG", 10),
            mock.patch.object(store, "settle", late),
        ):
            thread = threading.Thread(target=runner.run)
            thread.start()
            try:
                until(lambda: runner._run and runner._run._writer.backlog > 10)
                until(lambda: runner._run._pool.idle and not runner._run._wakeup.is_set())
                stored.set()
                until(lambda: ScheduledTask.objects.finished().count() == 200)
            finally:
                stored.set()
                runner.stop()
                thread.join()

    def test_claims_stop_while_too_many_outcomes_wait(self):
        """More work would only be more to lose; all of it is stored in the end."""
        away, settle = threading.Event(), store.settle
        away.set()

        def refuse(db: str, outcomes: Any, **how: Any) -> Any:
            if away.is_set():
                raise OperationalError("away")
            return settle(db, outcomes, **how)

        results = add.enqueue_many([((n, 0), {}) for n in range(200)])
        runner = Runner(workers=2)
        with (
            mock.patch("dbtasks.runner.rounds.MAX_BACKLOG", 10),
            mock.patch.object(store, "settle", refuse),
        ):
            thread = threading.Thread(target=runner.run)
            thread.start()
            try:
                until(lambda: runner._run and runner._run._writer.backlog > 10)
                # A claim may have been on its way.
                until(lambda: not runner._run._fetcher.is_claiming and runner._run._pool.idle)
                held = runner._run._writer.backlog
                runner._run.wake()
                until(lambda: not runner._run._wakeup.is_set())
                self.assertEqual(held, ScheduledTask.objects.running().count())
                self.assertEqual(200 - held, ScheduledTask.objects.due().count())
                away.clear()
                ended = [result.wait(30) for result in results]
            finally:
                away.clear()
                runner.stop()
                thread.join(30)

        self.assertLess(held, 200)
        self.assertEqual({("SUCCESSFUL", 1)}, {(r.status, r.attempts) for r in ended})
