"""Database servers that crash, and sessions that are ended, under load."""

import time
from typing import Any

from django.db import connection

from ..support.processes import Child
from ..support.rows import vendor
from ..support.servers import MariaDB, Postgres
from ..support.waiting import until
from .ledger import VARIABLE
from .storm import SEED, StormTestCase, size

ROWS = "dbtasks_scheduledtask"


class CrashTests(StormTestCase):
    """A server of the test's own crashes, several times; the ledger is on another one."""

    def setUp(self) -> None:
        super().setUp()
        if vendor() == "sqlite":
            self.skipTest("SQLite has no server")
        self.server: Any = Postgres() if vendor() == "postgresql" else MariaDB()
        self.addCleanup(self.server.close)

    def command(self, *arguments: Any) -> Child:
        environment = {"TEST_DATABASE": self.server.url, VARIABLE: self.ledger.url}
        return self.start(*arguments, **environment)

    def count(self, status: str) -> int:
        sql = f"SELECT COUNT(*) FROM {ROWS} WHERE status = '{status}'"
        return int(self.server.fetch(sql)[0][0])

    def test_nothing_is_lost_and_work_goes_on_at_once(self) -> None:
        """No runner ends, each task runs once, and outcomes come within seconds of the server."""
        total, crashes = size(600, 6000), size(2, 8)
        self.assertEqual(0, self.command("migrate", "-v", 0).end())
        code = (
            f"from tests.faults.tasks import work; work.enqueue_many([((0.02,), {{}})] * {total})"
        )
        self.assertEqual(0, self.command("shell", "-v", 0, "-c", code).end())
        runners = [self.command("taskrunner", "-w", 4) for _ in range(2)]
        slowest = 0.0
        for n in range(crashes):
            goal = (n + 1) * total // (crashes + 1) // 2
            until(lambda goal=goal: self.count("SUCCESSFUL") > goal, "Outcomes")
            self.server.restart()
            began, before = time.monotonic(), self.count("SUCCESSFUL")
            # More than what was in hand: claims and outcomes flow.
            until(lambda n=before: self.count("SUCCESSFUL") > n + 40, "New outcomes")
            slowest = max(slowest, time.monotonic() - began)
        until(lambda: self.count("SUCCESSFUL") == total, "The last outcome")
        starts = self.server.fetch(f"SELECT DISTINCT attempt, lost FROM {ROWS}")
        ledger = self.ledger.entries()
        notes = sum(len(entries) for entries in ledger.values())
        print(
            f"\n{vendor()}: {crashes} crashes of the server: {total:,} tasks, {notes:,} entries, "
            f"40 outcomes {slowest:.1f} s after it was back at the latest, seed {SEED}"
        )

        self.assertEqual((total, 2 * total), (len(ledger), notes))
        self.assertEqual([(1, 0)], [tuple(row) for row in starts])
        self.assertLess(slowest, 5)
        self.assertEqual([None, None], [runner.process.poll() for runner in runners])


class SessionTests(StormTestCase):
    """Somebody ends sessions of the database, one after the other."""

    def test_nothing_is_lost(self) -> None:
        """A task whose own session was ended fails by its own doing; here none has one."""
        if vendor() == "sqlite":
            self.skipTest("SQLite has no sessions")
        self.load(size(300, 5000), 0.02)
        runners = [self.ready_runner("-w", 4) for _ in range(2)]
        ended = 0
        for _ in range(size(10, 100)):
            ended += self.end_a_session()
            self.pause(0, 0.1)
        self.wait_for_end()

        self.verdict(f"{ended} sessions ended", doubles=0)
        self.assertEqual([None, None], [runner.process.poll() for runner in runners])
        self.assertGreater(ended, 0)

    def end_a_session(self) -> bool:
        """End a session of the queue's database that is not the test's; the ledger has its own."""
        sql = {
            "postgresql": "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            "AND datname = current_database() AND backend_type = 'client backend' ORDER BY pid",
            "mysql": "SELECT id FROM information_schema.processlist "
            "WHERE id <> connection_id() AND db = database() AND command <> 'Killed' ORDER BY id",
        }
        with connection.cursor() as cursor:
            cursor.execute(sql[vendor()])
            if not (found := [id for (id,) in cursor.fetchall()]):
                return False
            end = "SELECT pg_terminate_backend(%s)" if vendor() == "postgresql" else "KILL %s"
            cursor.execute(end, [self.chance.choice(found)])
        return True
