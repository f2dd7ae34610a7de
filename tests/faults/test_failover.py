"""A server that hands over to a node that cannot be written to yet, under load."""

import signal
from typing import Any
from urllib.parse import urlsplit

from django.db import ConnectionHandler, connections

from dbtasks.models import ScheduledTask
from demo.databases import database

from ..support.processes import Child
from ..support.rows import DB, vendor
from ..support.servers import MariaDB, Postgres
from ..support.waiting import until
from .storm import StormTestCase, size


class FailoverTests(StormTestCase):
    """A server of the test's own: for some seconds each new session may only read, for ever."""

    def setUp(self) -> None:
        super().setUp()
        if vendor() == "sqlite":
            self.skipTest("SQLite has no nodes")
        self.server: Any = Postgres() if vendor() == "postgresql" else MariaDB()
        self.addCleanup(self.server.close)
        self.environment = {"TEST_DATABASE": self.server.url}
        self.assertEqual(0, self.start("migrate", "-v", 0, **self.environment).end())
        # The test's own session, which is spared and was there before, takes the usual one's place.
        usual, session = connections[DB], ConnectionHandler({DB: database(self.server.url)})[DB]
        connections[DB] = session
        self.addCleanup(setattr, connections._connections, DB, usual)  # type: ignore[attr-defined]
        self.addCleanup(session.close)
        self.execute("SELECT 1")

    def execute(self, sql: str) -> list[Any]:
        with connections[DB].cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []

    def ready_runner(self, *arguments: Any, **environment: str) -> Child:
        return super().ready_runner(*arguments, **(self.environment | environment))

    def demote(self) -> None:
        """Let all sessions end, and new ones be read-only from their start to their end."""
        if vendor() == "postgresql":
            name = urlsplit(self.server.url).path.strip("/")
            self.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            self.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
            return
        self.execute("SET GLOBAL tx_read_only = 1")
        for (id,) in self.execute(
            "SELECT id FROM information_schema.processlist WHERE id <> connection_id() "
            "AND db = database() AND command <> 'Killed'"
        ):
            self.execute(f"KILL {id}")

    def promote(self) -> None:
        """Let new sessions write again. Those that are there stay on the node that cannot."""
        if vendor() == "postgresql":
            name = urlsplit(self.server.url).path.strip("/")
            self.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        else:
            self.execute("SET GLOBAL tx_read_only = 0")

    def test_nothing_is_lost_or_doubled(self) -> None:
        """Outcomes wait until they can be written, and no session is kept that cannot write."""
        failovers = size(2, 12)
        runners = [self.ready_runner("-w", 4) for _ in range(2)]
        for n in range(failovers):
            self.load(size(150, 400), 0.02)
            before = self.finished()
            until(lambda n=before: self.finished() > n + 20, "Some work")
            self.demote()
            # Once for longer than a runner may be silent.
            self.pause(4.0) if n == 1 else self.pause(0.3, 3.0)
            self.promote()
        self.load(40, 0.02)
        self.wait_for_end()
        self.assertEqual([None, None], [runner.process.poll() for runner in runners])
        for runner in runners:
            runner.signal(signal.SIGTERM)

        self.assertEqual([0, 0], [runner.end() for runner in runners], self.said())
        self.verdict(f"{failovers} failovers", doubles=0)
        self.assertEqual(0, ScheduledTask.objects.exclude(attempt=1).count())
