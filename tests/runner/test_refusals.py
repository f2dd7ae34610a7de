"""A database that answers and refuses to write."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import SkipTest, mock

from django.db import DataError, InternalError, OperationalError, ProgrammingError, connections
from django.test import TransactionTestCase

from dbtasks import store
from dbtasks.db.service import Pauses
from dbtasks.models import TABLE, ScheduledTask, Worker
from dbtasks.runner import Runner
from dbtasks.runner.outcome_writer import OutcomeWriter

from ..support import tasks
from ..support.gates import GateMixin
from ..support.rows import DB, row, vendor
from ..support.servers import kill_connections
from ..support.waiting import until
from ..tasks import add


def execute(sql: str) -> None:
    """Run a statement."""
    with connections[DB].cursor() as cursor:
        cursor.execute(sql)


@contextmanager
def renamed() -> Iterator[None]:
    """Let the table have another name, as in a migration."""
    execute(f"ALTER TABLE {TABLE} RENAME TO {TABLE}_away")
    try:
        yield
    finally:
        execute(f"ALTER TABLE {TABLE}_away RENAME TO {TABLE}")


@contextmanager
def read_only() -> Iterator[None]:
    """Let the server be what a demoted primary is: every session can only read."""
    name = connections[DB].settings_dict["NAME"]
    execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    kill_connections()
    try:
        yield
    finally:
        # Sessions that began as such stay read-only until they end.
        execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')


@contextmanager
def demoted(**_: Any) -> Iterator[None]:
    """Turn the sessions that are open read-only, for good; new ones can write."""
    # The runner's threads share the settings of this process, but not the sessions.
    is_old, stale = threading.Event(), set()
    settle = store.settle

    def refuse(db: str, outcomes: Any) -> Any:
        raw = connections[db].connection
        if not is_old.is_set() or raw in stale:
            stale.add(raw)
            is_old.set()
            connections[db].cursor().execute("SET default_transaction_read_only = on")
        return settle(db, outcomes)

    with mock.patch.object(store, "settle", refuse):
        yield


class RefusalTests(GateMixin, TransactionTestCase):
    """Outcomes that the database does not take are written later, and as they are."""

    def setUp(self) -> None:
        super().setUp()
        quick = mock.patch("dbtasks.runner.outcome_writer.Pauses", partial(Pauses, longest=0.1))
        quick.start()
        self.addCleanup(quick.stop)
        logger = logging.getLogger("dbtasks")
        self.addCleanup(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
        self.tries = 0

    def begin(self, **options: Any) -> Runner:
        """Start a runner in a thread; return it once it is ready."""
        runner = Runner(workers=2, **options)
        thread = threading.Thread(target=runner.run)
        thread.start()
        self.addCleanup(thread.join, 30)
        self.addCleanup(runner.stop)
        runner.ready.wait(30)
        return runner

    def count_tries(self) -> None:
        """Count how often the outcomes are tried."""
        attempt = OutcomeWriter._try

        def counted(writer: OutcomeWriter, *args: Any) -> Any:
            self.tries += 1
            return attempt(writer, *args)

        counting = mock.patch.object(OutcomeWriter, "_try", counted)
        counting.start()
        self.addCleanup(counting.stop)

    def run_through(self, fault: Callable[[], Any], tries: int = 8) -> None:
        """Assert that tasks that end during the fault are SUCCESSFUL after it."""
        self.begin()
        results = [tasks.wait_at_gate.enqueue() for _ in range(2)]
        for _ in results:
            self.assertTrue(tasks.Gate.entered.acquire(timeout=30))
        self.count_tries()
        with fault():
            tasks.Gate.opened.set()
            until(lambda: self.tries >= tries, "The tries")
        later = add.enqueue(1, 2)
        for result in [*results, later]:
            result.wait(30)
            self.assertEqual(("SUCCESSFUL", 1, []), (result.status, result.attempts, result.errors))

    def test_a_table_that_is_away_for_a_moment(self):
        """ProgrammingError, or OperationalError on SQLite."""
        self.run_through(renamed)

    def test_a_server_that_only_reads_for_a_moment(self):
        """A failover: 25006 is an InternalError."""
        if vendor() != "postgresql":
            raise SkipTest("the setting is PostgreSQL's")
        self.run_through(read_only)

    def test_rights_that_are_revoked_for_a_moment(self):
        """42501 is a ProgrammingError; so are others that are not the outcome's fault."""
        self.run_through(partial(self.refusing, ProgrammingError("permission denied")))

    def test_a_session_in_a_failed_transaction(self):
        """25P02 is an InternalError."""
        self.run_through(partial(self.refusing, InternalError("current transaction is aborted")))

    def test_an_error_that_nobody_knows(self):
        """Whatever it is: it says nothing about the outcome."""
        self.run_through(partial(self.refusing, MemoryError()))

    def test_a_session_that_stays_on_a_demoted_server_is_left(self):
        """The next try has a new session."""
        if vendor() != "postgresql":
            raise SkipTest("the setting is PostgreSQL's")
        self.run_through(demoted, tries=2)

    @contextmanager
    def refusing(self, error: Exception) -> Iterator[None]:
        """Let every write of outcomes fail with the error."""
        with mock.patch.object(store, "settle", side_effect=error):
            yield

    def test_one_outcome_that_cannot_be_written_holds_up_no_other(self):
        """The others are written meanwhile, and that one as it is when it can be."""
        settle, bad, away = store.settle, set(), threading.Event()
        away.set()

        def refuse(db: str, outcomes: Any) -> Any:
            if away.is_set() and bad & {str(outcome.id) for outcome in outcomes}:
                raise OperationalError("not this one")
            return settle(db, outcomes)

        first = add.enqueue(0, 0)
        bad |= {str(store.pk_text(DB, row(first.id).pk))}
        with mock.patch.object(store, "settle", refuse):
            self.begin()
            others = add.enqueue_many([((n, 0), {}) for n in range(20)])
            for result in others:
                self.assertEqual("SUCCESSFUL", result.wait(30).status)
            first.refresh()
            self.assertEqual("RUNNING", first.status)
            # Also while nothing else is to be written.
            self.count_tries()
            until(lambda: self.tries > 3, "More tries")
            away.clear()
            self.assertEqual(("SUCCESSFUL", 0), (first.wait(30).status, first.return_value))

    def test_a_connection_that_cannot_be_made_is_not_blamed_on_the_outcome(self):
        """ValueError in a receiver of connection_created, or in a wrong setting."""
        attempt = OutcomeWriter._try
        errors = iter([ValueError("in connecting")] * 5)

        def fail(self: OutcomeWriter, *args: Any) -> Any:
            connection: Any = connections[DB]
            connection.close()
            with mock.patch.object(
                connection, "connect", side_effect=next(errors, None), wraps=connection.connect
            ):
                return attempt(self, *args)

        result = add.enqueue(1, 2)
        with mock.patch.object(OutcomeWriter, "_try", fail):
            self.begin()
            self.assertEqual(("SUCCESSFUL", 3), (result.wait(30).status, result.return_value))

    def test_data_that_are_refused_end_the_row(self):
        """That row is FAILED, and the others of its batch are as they were."""
        settle, bad = store.settle, set()

        def refuse(db: str, outcomes: Any) -> Any:
            if any(str(outcome.id) in bad and outcome.return_value for outcome in outcomes):
                raise DataError("not such a value")
            return settle(db, outcomes)

        results = add.enqueue_many([((n, 0), {}) for n in range(10)])
        bad |= {str(store.pk_text(DB, row(results[3].id).pk))}
        with mock.patch.object(store, "settle", refuse):
            Runner(workers=2, drain=True).run()
        for result in results:
            result.refresh()

        self.assertEqual({results[3].id}, {r.id for r in results if r.status == "FAILED"})
        self.assertIn("refused", results[3].errors[0].traceback)

    def test_a_refusal_that_cannot_be_written_either_leaves_the_outcome_as_it_is(self):
        """The second error is of another kind, and the first may have been wrong."""
        settle = store.settle
        errors = iter([DataError("no"), ProgrammingError("no table")])

        def refuse(db: str, outcomes: Any) -> Any:
            if error := next(errors, None):
                raise error
            return settle(db, outcomes)

        result = add.enqueue(1, 2)
        with mock.patch.object(store, "settle", refuse):
            Runner(workers=1, drain=True).run()
        result.refresh()

        self.assertEqual(("SUCCESSFUL", 3), (result.status, result.return_value))

    def test_a_stop_that_cannot_write_leaves_its_rows_to_others(self):
        """It says which they are; another runner gets them when the worker is silent."""
        runner = self.begin(grace=0.2)
        result = tasks.wait_at_gate.enqueue()
        self.assertTrue(tasks.Gate.entered.acquire(timeout=30))
        self.count_tries()
        logging.getLogger("dbtasks").setLevel(logging.ERROR)
        with self.assertLogs("dbtasks.runner", "ERROR") as logs, renamed():
            tasks.Gate.opened.set()
            until(lambda: self.tries >= 3, "The tries")
            runner.stop()
            self.assertTrue(runner.finished.wait(30))
        [worker] = Worker.objects.all()
        said = [line for line in logs.output if "stay RUNNING" in line]

        self.assertIn(str(row(result.id).pk).replace("-", ""), said[0].replace("-", ""))
        self.assertEqual(("live", "RUNNING"), (worker.state, row(result.id).status))

        another = self.begin()
        another.declare_lost(worker.worker_id)
        self.assertEqual(("SUCCESSFUL", 2), (result.wait(30).status, result.attempts))
        self.assertEqual(0, ScheduledTask.objects.running().count())
