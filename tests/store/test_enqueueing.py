"""Rows that are enqueued while connections are lost, or transactions cannot be serialized."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

from django.db import Error, OperationalError, connections, transaction
from django.test import TransactionTestCase

from dbtasks import store
from dbtasks.calls import uuid7
from dbtasks.models import TABLE, ScheduledTask
from dbtasks.store.unit import DIALECTS
from tests.tasks import add

from ..support.locks import locked
from ..support.rows import DB, make_claim, make_task, outcome, vendor
from ..support.servers import kill_connections
from ..support.together import together


@contextmanager
def losing(after: bool, times: int = 1, beginning: str = "INSERT") -> Iterator[None]:
    """Lose the connection just before or after the first statements that begin so."""
    left = [None] * times

    def execute(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        is_meant = TABLE in sql and sql.removeprefix("BEGIN; ").startswith(beginning)
        if not (is_meant and left):
            return execute(sql, params, many, context)
        left.pop()
        if after:
            execute(sql, params, many, context)
        connections[DB].connection.close()
        raise OperationalError("the connection is lost")

    with connections[DB].execute_wrapper(execute):
        yield


class LostConnectionTests(TransactionTestCase):
    """enqueue() outside of a transaction tells what is in the database."""

    def setUp(self) -> None:
        if vendor() == "sqlite":
            self.skipTest("a file has no connection to lose")

    def count(self) -> int:
        with suppress(Error):
            connections[DB].close()
        return ScheduledTask.objects.count()

    def test_a_row_whose_connection_is_lost_is_written_once(self):
        """Be it lost before the commit or after it, with one row or many."""
        for after in (False, True):
            with self.subTest(after=after), losing(after):
                result = add.enqueue(1, 2)
                self.assertEqual("READY", add.get_result(result.id).status)
            with self.subTest(after=after, rows=3), losing(after):
                add.enqueue_many([((n, 0), {}) for n in range(3)])

        self.assertEqual(8, self.count())

    def test_an_error_names_the_row_if_nobody_knows(self):
        """Whoever enqueues again might double it."""
        with losing(True, 2), losing(False, 9, "SELECT"), self.assertRaises(OperationalError) as at:
            add.enqueue(1, 2)

        self.assertEqual(1, self.count())
        self.assertIn(store.pk_text(DB, ScheduledTask.objects.get().pk), str(at.exception))

    def test_in_a_transaction_the_error_is_the_caller_s(self):
        """All of the transaction is lost, so nothing is tried again."""
        with self.assertRaises(Error), transaction.atomic(DB), losing(False):
            add.enqueue(1, 2)

        self.assertEqual(0, self.count())

    def test_connections_that_are_ended_at_random(self):
        """What was returned is there, and what was refused is not."""
        seed = random.randrange(10**6)
        print(f"seed {seed}", end=" ")
        chance, done, unsure = random.Random(seed), threading.Event(), []

        def kill() -> None:
            while not done.wait(chance.random() * 0.01):
                # A connection may be gone before it is killed.
                with suppress(Error):
                    kill_connections()
            connections.close_all()

        def enqueue(number: int) -> list[str]:
            made = []
            for _ in range(60):
                try:
                    made.append(add.enqueue(1, 2).id)
                except Error as error:
                    if "may have been" in str(error):
                        unsure.append(error)
                    connections[DB].close()
            return made

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        try:
            made = [id for ids in together(3, enqueue) if ids for id in ids]
        finally:
            done.set()
            killer.join(30)
        connections[DB].close()
        there = {str(id) for id in ScheduledTask.objects.values_list("pk", flat=True)}

        self.assertLessEqual(set(made), there)
        self.assertLessEqual(len(there) - len(made), len(unsure))
        self.assertGreater(len(made), 0)


class RetryTests(TransactionTestCase):
    """A unit that the database rolls back is run again, enqueue() too."""

    def test_a_transaction_that_cannot_be_serialized_is_run_again(self):
        """Nothing was written, so nobody has to know."""
        sql = DIALECTS[vendor()]
        insert, failures = sql.insert, iter([OperationalError("not serializable")] * 3)

        def sometimes(*args: Any) -> Any:
            if error := next(failures, None):
                raise error
            return insert(*args)

        with (
            mock.patch.object(sql, "is_transient", return_value=True),
            mock.patch.object(sql, "insert", sometimes),
        ):
            make_task()
        self.assertEqual(1, ScheduledTask.objects.count())

    def test_serializable_by_default(self):
        """Enqueues, claims and outcomes of several connections at once."""
        if vendor() != "postgresql":
            self.skipTest("a default of PostgreSQL's sessions")

        def work(number: int) -> int:
            count = 0
            with connections[DB].cursor() as cursor:
                cursor.execute("SET default_transaction_isolation = 'serializable'")
            for _ in range(40):
                add.enqueue(1, 2)
                claims = store.claim(DB, "default", f"w{number}", 3)
                count += len(store.settle(DB, [outcome(claim) for claim in claims]))
            return count

        counts = together(4, work)

        self.assertNotIn(None, counts)
        self.assertEqual(160, ScheduledTask.objects.count())
        self.assertEqual(sum(counts), ScheduledTask.objects.successful().count())


class LockOrderTests(TransactionTestCase):
    """Outcomes beside a project's bulk update of the same rows."""

    def test_outcomes_never_deadlock_with_a_bulk_update(self):
        """Neither of both fails, whatever the order of the outcomes is."""
        if vendor() == "sqlite":
            self.skipTest("SQLite locks the file, not rows")
        errors: list[Error] = []
        for _ in range(5):
            claims = [make_claim() for _ in range(60)]
            random.shuffle(claims)

            def work(number: int, claims: list[store.Claim] = claims) -> None:
                ended = [outcome(claim) for claim in claims]
                try:
                    if number:
                        ScheduledTask.objects.running().update(cancel_requested=True)
                    while left := [one for one in ended if one.id in store.standing(DB, ended)]:
                        store.settle(DB, left)
                except Error as error:
                    errors.append(error)

            together(2, work)
            self.assertFalse(ScheduledTask.objects.running().exists())

        self.assertEqual([], errors)


class ManyQueuesTests(TransactionTestCase):
    """A runner of any number of queues."""

    def test_hundreds_of_queues_are_served(self):
        """SQLite limits the arguments of a function, and the parts of a UNION."""
        names = [f"queue{n}" for n in range(700)]
        for count in (130, 700):
            make_task(queue_name=names[count - 1])
            with self.subTest(count):
                self.assertFalse(store.peek(DB, "default", names[: count - 1]).due)
                self.assertTrue(store.peek(DB, "default", names[:count]).due)
                [claim] = store.claim(DB, "default", "w1", 10, names[:count])
                self.assertEqual(names[count - 1], claim.queue_name)


class LockedScheduleTests(TransactionTestCase):
    """Scheduled rows that have come due and are locked."""

    def test_a_locked_row_is_not_promoted(self):
        """The others are, and nothing waits."""
        ids = [make_task(id=uuid7(), run_after=store.now(DB)) for _ in range(2)]
        ScheduledTask.objects.update(hold="scheduled")
        with locked(ids[0]):
            places = store.promote(DB, "default")

        self.assertEqual([store.pk_text(DB, ids[1])], [str(place.id) for place in places])
