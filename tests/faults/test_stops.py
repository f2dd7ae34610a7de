"""Processes that stand still, and processes that are asked to end."""

import signal

from dbtasks.models import ScheduledTask, Worker

from ..support.processes import Child, freeze
from ..support.waiting import until
from .storm import StormTestCase, size


class FrozenTests(StormTestCase):
    """A runner that stands still until others have declared it lost, in the middle of its tasks."""

    def test_nothing_stale_is_written(self) -> None:
        """It wakes up, drops what it had, and goes on under a new name."""
        self.load(size(100, 1000), 0.1)
        frozen, other = self.ready_runner("-w", 4), self.ready_runner("-w", 4)
        for _ in range(size(1, 4)):
            self.freeze_in_mid_task(frozen)
        self.wait_for_end()

        # A row that stood still with its runner three times may have been to blame: what is
        # requeued is the oldest, and so the first to be claimed by the one that is stopped next.
        self.verdict("SIGSTOP beyond the timeout, SIGCONT", failed=size(0, 1))
        self.assertIn("registers again", frozen.said)
        self.assertNotIn("registers again", other.said)

    def freeze_in_mid_task(self, runner: Child) -> None:
        """Stop it while it runs something, and let it go on when that is somebody else's."""
        names = Worker.objects.filter(pid=runner.process.pid).values_list("worker_id", flat=True)
        mine = ScheduledTask.objects.filter(status="RUNNING", worker_id__in=names)
        if not self.is_busy():
            self.load(50, 0.1)
        until(mine.exists, "A running task")
        self.pause(0, 0.1)
        freeze(runner.process.pid)
        held = list(mine.values_list("pk", "fence"))
        self.in_flight += len(held)
        until(
            lambda: (
                not any(
                    ScheduledTask.objects.filter(pk=pk, fence=fence, status="RUNNING").exists()
                    for pk, fence in held
                )
            ),
            "The rescue",
        )
        said = runner.said.count("registers again")
        runner.signal(signal.SIGCONT)
        until(lambda: runner.said.count("registers again") > said, "The new name")

    def is_busy(self) -> bool:
        return ScheduledTask.objects.filter(status="READY").count() > 20


class DeployTests(StormTestCase):
    """One runner after the other is asked to end, and replaced, under load."""

    def test_nothing_is_lost_or_doubled(self) -> None:
        """Each finishes what it has begun, and requeues the rest."""
        self.load(size(300, 4000), 0.05)
        runners = [self.ready_runner("-w", 4, "--grace", 20) for _ in range(2)]
        ended: list[Child] = []
        for _ in range(size(3, 15)):
            self.pause(0, 0.3)
            old = runners.pop(0)
            old.signal(signal.SIGTERM)
            ended.append(old)
            runners.append(self.ready_runner("-w", 4, "--grace", 20))
        self.wait_for_end()

        self.assertEqual({0}, {child.end() for child in ended})
        self.verdict(f"SIGTERM to {len(ended)} runners, one after the other", doubles=0)
        self.assertEqual(0, ScheduledTask.objects.exclude(attempt=1).count())
