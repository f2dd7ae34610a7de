"""The plans that keep a claim as cheap with a million rows as with none."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

from django.db import connections
from django.test import TransactionTestCase
from django.utils import timezone

from dbtasks import stats, store
from dbtasks.base.queues import AllBut
from dbtasks.models import ScheduledTask
from dbtasks.store import due, workers
from dbtasks.store.dialects import mysql, postgresql
from dbtasks.store.dialects.postgresql import PIN
from dbtasks.store.due import due_rows
from dbtasks.store.rows import Change

from ..support.rows import DB, outcome, vendor
from ..support.workers import register

TABLE = ScheduledTask._meta.db_table


@contextmanager
def plans() -> Iterator[list[str]]:
    """Collect the plan of each statement on our table, asked for just before it runs."""
    found: list[str] = []

    def explain(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if TABLE in sql and not sql.startswith("INSERT"):
            found.append(plan(sql, params[0] if many else params))
        return execute(sql, params, many, context)

    with connections[DB].execute_wrapper(explain):
        yield found


def plan(sql: str, params: Any) -> str:
    """Return the database's plan as text."""
    words = {
        "postgresql": "EXPLAIN ",
        "sqlite": "EXPLAIN QUERY PLAN ",
        "mysql": "EXPLAIN FORMAT=JSON ",
    }
    _, pinned, rest = sql.rpartition(f"{PIN}; ")
    rest = rest.removeprefix(mysql.NO_WAIT)
    with connections[DB].cursor() as cursor:
        if vendor() == "mysql" and not connections[DB].mysql_is_mariadb:
            # The later format does not show the plan of an UPDATE of one table.
            cursor.cursor.execute("SET SESSION explain_json_format_version = 1")
        cursor.cursor.execute(pinned + words[vendor()] + rest, params)
        if pinned:
            cursor.nextset()
        rows = cursor.fetchall()
    if vendor() == "mysql":
        # The table of parameters is read whole, of course.
        text = json.dumps(json.loads(rows[0][0])).replace('"using_filesort": false', "")
        return text.replace('"table_name": "v", "access_type": "ALL"', "")
    return "\n".join(str(row[-1]) for row in rows)


SCANS = {
    "postgresql": f"Seq Scan on {TABLE}",
    "sqlite": f"SCAN {TABLE}",
    "mysql": '"access_type": "ALL"',
}
PRIMARY = {
    "postgresql": f"{TABLE}_pkey",
    "sqlite": f"SEARCH {TABLE} USING INDEX sqlite_autoindex",
    "mysql": '"key": "PRIMARY"',
}
SORTS = {"postgresql": "Sort", "sqlite": "TEMP B-TREE", "mysql": "filesort"}


class PlanTests(TransactionTestCase):
    """Every hot statement stays on its index, whatever the statistics say."""

    def fill(self, count: int = 4000) -> None:
        """Write due, future, finished and foreign rows, so many of each."""
        now = timezone.now()
        values = [{}, {"run_after": now + timedelta(days=1)}, {"queue_name": "x", "priority": 9}]
        values += [{"backend": "other", "priority": 9}, {"task_path": "finished"}]
        values += [{"task_path": "quarantined"}]
        rows = []
        for row in values:
            base = store.NewTask(
                None, "a.b", "default", "default", 0, "[]", "{}", None, None, now, None
            )._replace(**row)
            rows += [base._replace(id=store.pk_text(DB, _id())) for _ in range(count)]
        store.enqueue(DB, rows)
        finished = ScheduledTask.objects.filter(task_path="finished")
        finished.update(status="SUCCESSFUL", finished_at=now, delete_after=now)
        ScheduledTask.objects.filter(task_path="quarantined").update(hold="quarantined", lost=2)

    def statistics(self, kind: str) -> None:
        """Fill the table with statistics that are fresh, or of an empty table, or of none."""
        analyze = {"mysql": f"ANALYZE TABLE {TABLE}"}.get(vendor(), f"ANALYZE {TABLE}")
        with connections[DB].cursor() as cursor:
            if kind == "stale":
                cursor.execute(analyze)
            self.fill()
            if kind == "fresh":
                cursor.execute(analyze)
            cursor.fetchall() if cursor.description else None

    def check(self, found: list[str]) -> None:
        """Fail if a plan reads the whole table or sorts."""
        self.assertTrue(found)
        for text in found:
            self.assertNotIn(SCANS[vendor()], text)
            self.assertNotIn(SORTS[vendor()], text)

    def test_hot_statements_use_their_index_and_never_sort(self):
        """Claim, settle, peek, promote and purge: fresh, stale and missing statistics."""
        for kind in ("none", "stale", "fresh"):
            ScheduledTask.objects.all()._raw_delete(DB)
            self.statistics(kind)
            for name, run in self.statements().items():
                with self.subTest(f"{name}, {kind} statistics"), plans() as found:
                    run()
                    self.check(found)
                    if name.startswith("settle"):
                        self.check_key(found)

    def check_key(self, found: list[str]) -> None:
        """Fail if a plan reads another index of our table than the primary key."""
        for text in found:
            self.assertIn(PRIMARY[vendor()], text)
            self.assertNotRegex(text, "dbtasks_(due|held|running|expired|failed)")

    def statements(self) -> dict[str, Any]:
        """Return what a runner does all the time."""
        claims: list[store.Claim] = []
        workers.leave(DB, "w1")
        register("w1")

        def claim(queues: Any = None) -> list[store.Claim]:
            return store.claim(DB, "default", "w1", 500, queues, registered=True)

        def settle(count: int, wait: bool) -> None:
            ended = [outcome(claims.pop()) for _ in range(count)]
            written = store.settle(DB, ended, wait=wait)
            self.assertEqual({one.id for one in ended}, written)

        return {
            "claim": lambda: claims.extend([*claim(), *claim()]),
            "claim of a queue": lambda: claim(["default"]),
            "claim of all but a queue": lambda: claim(AllBut(["x"])),
            "claim of a quarantined row": lambda: store.claim_quarantined(
                DB, "default", "w1", registered=True
            ),
            "cancel requests": lambda: store.cancel_requests(DB, "w1"),
            **{
                f"settle {count}, {wait=}": partial(settle, count, wait)
                for count in (1, 2, 9, 100)
                for wait in (True, False)
            },
            "settle 500": lambda: settle(500, False),
            "peek": lambda: store.peek(DB, "default"),
            "peek at a queue": lambda: store.peek(DB, "default", ["none"]),
            "peek at all but a queue": lambda: store.peek(DB, "default", AllBut(["x"])),
            "rows that wait": lambda: store.waiting(DB, "default"),
            "promote": lambda: store.promote(DB, "default"),
            "purge": lambda: store.purge(DB, "default"),
        }

    def test_counts_for_people_use_an_index(self):
        """Finished rows are not read, however many there are."""
        self.fill(5)
        now = timezone.now()
        # Written as they are: a row that was due leaves an entry in the index for a while.
        values = {"task_path": "a.b", "backend": "default", "queue_name": "default", "priority": 0}
        values |= {"args": "[]", "kwargs": "{}", "status": "SUCCESSFUL", "enqueued_at": now}
        ScheduledTask.objects.bulk_create(ScheduledTask(id=_id(), **values) for _ in range(5000))
        with connections[DB].cursor() as cursor:
            cursor.execute(f"ANALYZE {'TABLE ' if vendor() == 'mysql' else ''}{TABLE}")
            cursor.fetchall() if cursor.description else None

        with plans() as found:
            whole, part = (stats.summary(DB, "default", queue) for queue in (None, "x"))

        self.assertEqual((15, 5, 5), (whole.due, part.due, whole.scheduled))
        self.assertGreater(len(found), 10)
        for text in found:
            # An index that holds only a few of the rows may be read whole.
            text = text.replace(f"SCAN {TABLE} USING", "")
            self.assertNotIn(
                SCANS[vendor()], text.replace('"<derived2>", "access_type": "ALL"', "")
            )

    def test_excluded_queues_are_not_read(self):
        """Among thousands of rows a few index entries say which queues have some."""
        self.statistics("fresh")
        before = self.rows_read()
        self.assertEqual(["default"], due.named(DB, "default", AllBut(["x"])))
        if before is not None:
            self.assertLess(self.rows_read() - before, 20)

    def rows_read(self) -> Any:
        """Return how many rows this session has read, if the database counts that."""
        if vendor() != "mysql":
            return None
        with connections[DB].cursor() as cursor:
            cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
            return sum(int(count) for _, count in cursor.fetchall())

    def empty_claim(self) -> Change:
        """Return the claim of a backend that has no rows."""
        verb = f"UPDATE {TABLE} SET fence = fence + 1"
        return Change(verb, (), due_rows("nobody", None), "priority DESC, id", 500)

    def test_an_empty_poll_reads_one_page_of_an_index(self):
        """Rows that are not due cost an empty claim nothing."""
        if vendor() != "postgresql":
            self.skipTest("only PostgreSQL tells how many pages a statement read")
        self.statistics("fresh")
        sql = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "
        with connections[DB].cursor() as cursor:
            cursor.execute(f"VACUUM {TABLE}")

        def explain(execute: Any, text: str, params: Any, many: bool, context: Any) -> Any:
            return execute(text.replace(f"{PIN}; ", f"{PIN}; {sql}"), params, many, context)

        with connections[DB].execute_wrapper(explain):
            [[[plan]]] = postgresql._pinned(
                connections[DB], *postgresql._statement(self.empty_claim(), "RETURNING 1")
            )
        read = plan["Plan"]["Shared Hit Blocks"]

        self.assertLess(read, 10)


def _id() -> Any:
    from dbtasks.calls import uuid7

    return uuid7()
