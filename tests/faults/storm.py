"""What the storms share: runners, a load, and a verdict by the ledger.

``FAULTS=full`` makes them as large as the promises are; without it they are small enough for every
run of the tests. The seed of all chance is printed; ``FAULTS_SEED`` sets it.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from django.test import tag

from dbtasks.models import ScheduledTask, Worker

from ..support.processes import Child, ProcessTestCase, database_url
from ..support.rows import vendor
from ..support.waiting import until
from .ledger import VARIABLE, Entry, Ledger
from .tasks import work

IS_FULL = os.environ.get("FAULTS") == "full"
SEED = int(os.environ.get("FAULTS_SEED") or random.SystemRandom().randrange(10**6))
# Seconds of silence after which a runner is declared lost, here.
TIMEOUT = 3.0


def size(quick: int, full: int) -> int:
    """Return one of the two numbers."""
    return full if IS_FULL else quick


@tag("faults")
class StormTestCase(ProcessTestCase):
    """Starts runners that write a ledger, and judges what they did."""

    # The ledger is in the second one.
    databases = {"default", "other"}

    def setUp(self) -> None:
        super().setUp()
        self.chance = random.Random(f"{SEED} {self.id()}")
        # Apart from the queue's database, which is what the storms are about.
        self.ledger = Ledger(database_url("other"))
        self.ledger.make()
        self.addCleanup(self.ledger.close)
        self.began = time.monotonic()
        self.runners: list[Child] = []
        # Claims that were in hand when somebody was killed.
        self.in_flight = 0
        self.kills = 0
        # Tasks that were enqueued: so many rows there must be.
        self.enqueued = 0

    def runner(self, *arguments: Any, **environment: str) -> Child:
        """Start a runner."""
        environment = {
            VARIABLE: self.ledger.url,
            "TEST_WORKER_TIMEOUT": str(TIMEOUT),
        } | environment
        child = self.start("taskrunner", *arguments, **environment)
        self.runners.append(child)
        return child

    def ready_runner(self, *arguments: Any, **environment: str) -> Child:
        """Start a runner; return it when it claims."""
        child = self.runner(*arguments, **environment)
        child.wait_for("Stop with Ctrl-C")
        return child

    def load(self, count: int, seconds: float) -> None:
        """Enqueue so many tasks that take so long each."""
        work.enqueue_many([((seconds,), {})] * count)
        self.enqueued += count

    def finished(self) -> int:
        """Return how many tasks have ended."""
        return ScheduledTask.objects.filter(status__in=("SUCCESSFUL", "FAILED")).count()

    def wait_for_end(self, seconds: float = size(120, 600)) -> None:
        """Block until every task has ended."""
        left = ScheduledTask.objects.filter(status__in=("READY", "RUNNING"))
        try:
            until(lambda: not left.exists(), "The end of all tasks", seconds)
        except AssertionError as error:
            rows = ScheduledTask.objects.exclude(status="SUCCESSFUL").values()[:3]
            raise AssertionError(f"{error} {list(rows)}; {self.said()}") from None

    def pause(self, least: float, most: float | None = None) -> None:
        """Let time pass: nothing is waited for; so long a fault lasts, or the next one is off."""
        time.sleep(self.chance.uniform(least, least if most is None else most))

    def kill(self, pid: int) -> None:
        """Kill a runner's process, wherever it is, and count what it had in hand."""
        os.kill(pid, signal.SIGSTOP)
        # Of a process that stands still nothing more comes, and nobody misses it yet.
        self.in_flight += self.in_hand(pid)
        os.kill(pid, signal.SIGKILL)
        self.kills += 1

    def in_hand(self, pid: int) -> int:
        """Return how many rows are RUNNING in the name of that process."""
        names = Worker.objects.filter(pid=pid).values_list("worker_id", flat=True)
        return ScheduledTask.objects.filter(status="RUNNING", worker_id__in=list(names)).count()

    def said(self) -> str:
        """Return the last words of all runners."""
        return "\n".join(child.said[-2000:] for child in self.runners)

    def verdict(self, what: str, *, doubles: int | None = None, failed: int = 0) -> None:
        """Assert that nothing is lost, doubled beyond what was in flight, or written too late."""
        rows = {str(row.pk): row for row in ScheduledTask.objects.all()}
        ledger = self.ledger.entries()
        starts = sum(e.what == "start" for entries in ledger.values() for e in entries)
        again = starts - len(ledger)
        blamed = [id for id, row in rows.items() if row.status == "FAILED"]
        lost = [id for id, row in rows.items() if id not in blamed and not ended(ledger[id])]
        running = sum(row.status == "RUNNING" for row in rows.values())
        seconds = time.monotonic() - self.began
        print(
            f"\n{vendor()}: {what}: {len(rows):,} tasks, {self.kills} kills, {starts:,} starts, "
            f"{again} doubles of {self.in_flight} in flight, {len(lost)} lost, {running} RUNNING, "
            f"{len(blamed)} FAILED, {seconds:.0f} s, seed {SEED}",
            file=sys.stderr,
        )
        self.assertEqual((self.enqueued, [], 0), (len(rows), lost, running))
        self.assertEqual({"SUCCESSFUL"}, {row.status for row in rows.values()} - {"FAILED"})
        self.assertLessEqual(again, self.in_flight if doubles is None else doubles)
        for id in blamed:
            # Only a row that was lost three times, the last time alone, may have failed.
            self.assertEqual(3, rows[id].lost, rows[id].errors)
        self.assertLessEqual(len(blamed), max(failed, self.kills // 10))
        for id, row in rows.items():
            self.judge(row, ledger[id])

    def judge(self, row: ScheduledTask, entries: list[Entry]) -> None:
        """Assert that what the row says is what the ledger shows."""
        attempts = sorted(entry.attempt for entry in entries if entry.what == "start")
        # Two starts under one number would be two claims of one fence.
        self.assertEqual(sorted(set(attempts)), attempts, row.pk)
        self.assertEqual(row.attempt, len(row.worker_ids or []), row.pk)
        if row.status == "SUCCESSFUL":
            self.assertEqual((row.attempt, row.attempt), (row.return_value, attempts[-1]), row.pk)


def ended(entries: list[Entry]) -> bool:
    """Tell whether an attempt came to its end."""
    return any(entry.what == "end" for entry in entries)


def children(pid: int) -> list[int]:
    """Return the processes that this one has started."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(word) for text in texts for word in text.split()]
