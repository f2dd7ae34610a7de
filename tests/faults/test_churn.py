"""Many processes and threads that want the same rows: no deadlock, no lock is anybody's problem."""

import json
import re

from dbtasks.models import ScheduledTask

from ..support.processes import Child
from ..support.rows import vendor
from .storm import SEED, StormTestCase, size

# MySQL's deadlock, lock timeout and changed record; SQLite's and PostgreSQL's words for theirs.
SURFACED = re.compile(r"\((1213|1205|1020),|deadlock|lock wait timeout|is locked", re.IGNORECASE)


class ChurnTests(StormTestCase):
    """Runners, and processes that enqueue, cancel, retry and purge, all at once."""

    def test_no_lock_surfaces(self) -> None:
        """Neither in what runners say, nor in errors of rows, nor where tasks are enqueued."""
        processes, threads = size(2, 4), size(4, 8)
        count = size(400, 100_000 // processes)
        runners = [self.ready_runner("-w", threads) for _ in range(processes)]
        crews = [self.crew(number, threads, count) for number in range(processes)]
        self.assertEqual([0] * processes, [self.ended(crew) for crew in crews])
        self.wait_for_end(600)
        for runner in runners:
            runner.signal(15)
        self.assertEqual({0}, {runner.end() for runner in runners})
        rows = ScheduledTask.objects.count()
        print(
            f"\n{vendor()}: {2 * processes} processes of {threads} threads: "
            f"{processes * count:,} tasks, {rows:,} rows left after purges, seed {SEED}"
        )

        self.assertEqual([[]] * processes, [json.loads(crew.stdout) for crew in crews])
        for runner in runners:
            self.assertIsNone(SURFACED.search(runner.stderr), runner.stderr[-3000:])
        errors = ScheduledTask.objects.exclude(errors=None).values_list("errors", flat=True)
        kinds = {entry[0] for error in errors for entry in error}
        self.assertLessEqual(
            kinds, {"builtins.ValueError", "dbtasks.exceptions.TaskCancelled"}, kinds
        )
        self.assertLessEqual(rows, processes * count)

    def crew(self, number: int, threads: int, count: int) -> Child:
        code = f"from tests.faults.churn import churn; churn({number}, {threads}, {count})"
        return self.start("shell", "-v", 0, "-c", code, FAULTS_SEED=str(SEED))

    def ended(self, crew: Child) -> int:
        crew.process.wait(900)
        return crew.end()
