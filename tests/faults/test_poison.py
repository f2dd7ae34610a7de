"""Tasks that kill the process they run in."""

from dbtasks.models import ScheduledTask

from .storm import StormTestCase, size
from .tasks import crash, leave


class PoisonTests(StormTestCase):
    """os._exit, and a segmentation fault."""

    def test_three_deaths_and_no_more(self) -> None:
        """The row is FAILED, with a sentence; those that ran beside it are not blamed."""
        poison = [task.enqueue() for task in (leave, crash) for _ in range(size(1, 3))]
        self.load(size(60, 600), 0.02)
        self.enqueued += len(poison)
        self.kills = 3 * len(poison)
        # What the other thread had in hand, and outcomes that were not yet stored.
        self.in_flight = self.kills * 6
        self.ready_runner("--processes", 2, "-w", 2)
        self.wait_for_end(240)

        self.verdict("tasks that end their process", failed=len(poison))
        failed = ScheduledTask.objects.filter(status="FAILED")
        self.assertEqual({task.id for task in poison}, {str(row.pk) for row in failed})
        for row in failed:
            kind, text = row.errors[-1]
            self.assertEqual("dbtasks.exceptions.WorkerLost", kind)
            self.assertIn("lost", text)
            self.assertEqual((3, 3), (row.lost, row.attempt))
