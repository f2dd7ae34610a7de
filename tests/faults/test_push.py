"""No runner: web processes that are killed, a service that mislays hints, and a sweep now and then.

What the promises of the runners are for those, these are for hints: each row comes to an end.
"""

import sys
from typing import Any

from dbtasks.models import ScheduledTask

from ..support.processes import Child
from ..support.rows import vendor
from ..support.sites import free_port
from .ledger import VARIABLE, Entry
from .push_service import PushService
from .pushed import FAILURES, STUMBLES
from .storm import SEED, TIMEOUT, StormTestCase, ended, size

# Seconds between two sweeps.
INTERVAL = 2


class PushTests(StormTestCase):
    """A site of several processes, each on a host of its own."""

    def setUp(self) -> None:
        super().setUp()
        self.ports = [free_port() for _ in range(size(2, 4))]
        self.service = self.enterContext(
            PushService(self.ports, self.chance, lose=0.2, double=0.2, delay=1.5)
        )

    # Rows of one commit above which hints say no more than that something is due; 0: never.
    bulk = 0

    def shell(self, code: str) -> Child:
        """Start a process of the site that runs the code."""
        return self.start(
            *("shell", "-v", 0, "-c", f"from tests.faults.pushed import *; {code}"),
            **{
                VARIABLE: self.ledger.url,
                "DJANGO_SETTINGS_MODULE": "tests.faults.pushed_settings",
                "TEST_WORKER_TIMEOUT": str(TIMEOUT),
                "FAULTS_SERVICE": self.service.url,
                "FAULTS_BULK": str(self.bulk),
                "DBTASKS_PUSH": "on",
            },
        )

    def web(self, port: int) -> Child:
        """Start a web process; return it when it serves."""
        child = self.shell(f"serve('host-{port}', {port})")
        self.runners.append(child)
        child.wait_for("Serving")
        return child

    def test_every_row_comes_to_an_end(self) -> None:
        """Whatever is killed, lost, doubled or late; and nothing is run more often than needed."""
        self.storm("a hint for each row")

    def test_so_does_each_of_many(self) -> None:
        """The same, where one hint is for many rows of a commit."""
        self.bulk = 20
        self.storm("a hint for many rows")

    def storm(self, what: str) -> None:
        """Enqueue, kill, and wait for the end of it all."""
        count, seconds = size(40, 1500), size(3, 90)
        webs = {port: self.web(port) for port in self.ports}
        sweeper = self.shell(f"sweep_every({INTERVAL})")
        self.runners.append(sweeper)
        sweeper.wait_for("Sweeping")
        enqueuer = self.shell(f"enqueue('{SEED}', {count}, {seconds})")
        while enqueuer.process.poll() is None:
            self.pause(0.3, 1.5)
            port = self.chance.choice(self.ports)
            self.kill(webs[port].process.pid)
            self.pause(0.1, 0.5)
            webs[port] = self.web(port)
        self.assertEqual(0, enqueuer.end(), enqueuer.said)
        self.enqueued = count
        self.wait_for_end()

        self.verdict(f"web processes, {what}")

    def verdict(self, what: str, *, doubles: int | None = None, failed: int = 0) -> None:
        rows = list(ScheduledTask.objects.all())
        ledger = self.ledger.entries()
        starts = sum(e.what == "start" for entries in ledger.values() for e in entries)
        exhausted = [row for row in rows if row.lost == 3]
        print(
            f"\n{vendor()}: {what}: {len(rows):,} tasks, {self.kills} kills, {starts:,} starts, "
            f"{sum(row.lost for row in rows)} lost with a process, {len(exhausted)} for the third "
            f"time; {dict(self.service.happened)}; seed {SEED}",
            file=sys.stderr,
        )
        self.assertEqual(self.enqueued, len(rows))
        for row in rows:
            with self.subTest(row=str(row.pk), task=row.task_path):
                self.judge(row, ledger[str(row.pk)])
        # Only a row that was lost three times, the last time alone, may have failed for that.
        self.assertLessEqual(len(exhausted), max(1, self.kills // 10))
        refused = {status for status in self.service.happened if status in ("400", "401", "500")}
        self.assertEqual(set(), refused)

    def judge(self, row: ScheduledTask, entries: list[Entry]) -> None:
        kind = row.task_path.rpartition(".")[2]
        attempts = [entry.attempt for entry in entries if entry.what == "start"]
        why = f"{row.errors} {entries}"
        # One claim, one start at most.
        self.assertEqual(sorted(set(attempts)), sorted(attempts), why)
        self.assertLessEqual(len(attempts), row.attempt, why)
        snoozes = 1 if kind == "doze" else 0
        needed = row.failures + snoozes + row.lost + row.releases + (row.status == "SUCCESSFUL")
        self.assertLessEqual(row.attempt, needed, why)
        if row.lost == 3:
            return
        expected: dict[str, Any] = {"fail": "FAILED"}
        self.assertEqual(expected.get(kind, "SUCCESSFUL"), row.status, why)
        if row.status == "SUCCESSFUL":
            self.assertTrue(ended(entries), why)
            self.assertLessEqual(row.failures, STUMBLES if kind == "stumble" else 0, why)
            self.assertEqual(row.attempt, row.return_value, why)
        else:
            self.assertEqual(FAILURES, row.failures, why)
