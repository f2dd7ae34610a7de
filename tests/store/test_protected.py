"""Rows that a foreign key of the project protects."""

from datetime import timedelta
from typing import Any

from django.db import connections
from django.test import TransactionTestCase

from dbtasks import store
from dbtasks.models import TABLE, ScheduledTask
from dbtasks.runner.purger import Purger

from ..support.rows import DB, make_claim, outcome, row

DAY = timedelta(days=1)


class ProtectedTests(TransactionTestCase):
    """What deletes rows passes over them."""

    def setUp(self) -> None:
        self.create("")
        self.addCleanup(self.execute, "DROP TABLE note")

    def create(self, action: str) -> None:
        """Make a table that points to rows, with what happens to it when a row is deleted."""
        connection = connections[DB]
        kind = ScheduledTask._meta.pk.rel_db_type(connection)
        collation = ScheduledTask._meta.pk.db_parameters(connection).get("collation")
        kind += f" COLLATE {collation}" if collation and connection.vendor == "mysql" else ""
        deferred = connection.ops.deferrable_sql()
        with connection.cursor() as cursor:
            cursor.execute(
                f"CREATE TABLE note (task_id {kind} NOT NULL, "
                f"FOREIGN KEY (task_id) REFERENCES {TABLE} (id){action}{deferred})"
            )

    def execute(self, sql: str, *params: Any) -> None:
        with connections[DB].cursor() as cursor:
            cursor.execute(sql, params)

    def finished(self, *, protected: bool = False) -> Any:
        """Return the id of a row that ended long ago, and whose retention is over."""
        claim, past = make_claim(), store.now(DB) - 2 * DAY
        store.settle(DB, [outcome(claim, finished_at=past, delete_after=past)])
        if protected:
            self.execute("INSERT INTO note VALUES (%s)", claim.id)
        return claim.id

    def ids(self) -> list[Any]:
        pks = ScheduledTask.objects.order_by("pk").values_list("pk", flat=True)
        return [store.pk_text(DB, pk) for pk in pks]

    def test_the_purge_passes_over_them(self):
        """It deletes the others, says so, and comes back a day later."""
        kept = [self.finished(protected=True) for _ in range(3)]
        for _ in range(4):
            self.finished()
        told: list[int] = []

        self.assertEqual(4, store.purge(DB, "default", told.append))
        self.assertEqual((kept, [3]), (self.ids(), told))
        self.assertGreater(row(kept[0]).delete_after, store.now(DB) + DAY / 2)
        self.assertEqual(0, store.purge(DB, "default", told.append))
        self.assertEqual([3], told)

    def test_a_foreign_key_with_an_action_of_the_database_protects_nothing(self):
        """As the documentation recommends it."""
        self.execute("DROP TABLE note")
        self.create(" ON DELETE CASCADE")
        self.finished(protected=True)

        self.assertEqual(1, store.purge(DB, "default", self.fail))
        self.assertEqual([], self.ids())

    def test_a_purger_says_it_once(self):
        """Not once a minute."""
        purger = Purger(DB, "default")
        with self.assertLogs("dbtasks.runner", "WARNING") as logs:
            for _ in range(2):
                self.finished(protected=True)
                purger._purge()

        self.assertEqual(1, len(logs.output))

    def test_a_purge_by_age_passes_over_them(self):
        """It walks on to the next rows."""
        kept = self.finished(protected=True)
        for _ in range(4):
            self.finished()

        self.assertEqual(4, sum(store.purge_older(DB, DAY, batch=2)))
        self.assertEqual([kept], self.ids())

    def test_a_manual_delete_passes_over_them(self):
        """Whoever deletes a list of rows is told how many there were."""
        ids = [self.finished(protected=n == 1) for n in range(4)]

        self.assertEqual(3, store.delete(DB, ids))
        self.assertEqual([ids[1]], self.ids())
