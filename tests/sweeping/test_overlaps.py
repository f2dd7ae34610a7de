"""Sweeps that overlap: with each other, with runners and with hints."""

from collections import Counter
from pathlib import Path

from django.test import TransactionTestCase

import dbtasks
from dbtasks.door import Door
from dbtasks.hinted import run_hinted
from dbtasks.models import ScheduledTask, Worker

from ..support.processes import ProcessTestCase
from ..support.rows import make_task
from ..support.together import together
from ..tasks import write_line


class ThreadTests(TransactionTestCase):
    """In one process."""

    def test_each_row_starts_once(self) -> None:
        """However many sweeps and hints want it."""
        ids = [make_task() for _ in range(20)]

        def work(number: int) -> int:
            if number < 3:
                return dbtasks.sweep().ran
            return sum(run_hinted(Door(), "default", id).ran for id in ids)

        ran = together(5, work)

        self.assertEqual(20, sum(ran))
        rows = ScheduledTask.objects.values_list("status", "attempt")
        self.assertEqual({("SUCCESSFUL", 1): 20}, dict(Counter(rows)))
        self.assertFalse(Worker.objects.exists())


class ProcessTests(ProcessTestCase):
    """In several."""

    def test_each_row_starts_once(self) -> None:
        """Two sweeps and a drain take what they get."""
        lines = Path(self.folder, "lines")
        for number in range(60):
            write_line.enqueue(str(lines), str(number))
        commands = [("dbtasks", "sweep"), ("dbtasks", "sweep"), ("taskrunner", "--drain")]
        children = [self.start(*command) for command in commands]

        self.assertEqual([0, 0, 0], [child.end() for child in children])
        self.assertEqual({str(n) for n in range(60)}, set(lines.read_text().split()))
        self.assertEqual(60, len(lines.read_text().split()))
