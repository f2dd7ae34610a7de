"""A runner whose beat thread cannot run."""

from .storm import TIMEOUT, StormTestCase
from .tasks import starve


class StarvedTests(StormTestCase):
    """A task that holds the interpreter, in C, for longer than anybody waits for a beat."""

    def test_it_is_declared_lost_and_writes_nothing_stale(self) -> None:
        """Another runs the task; the first one finds out, drops its outcome and registers again."""
        runners = [self.ready_runner("-w", 1) for _ in range(2)]
        starve.enqueue(TIMEOUT * 4)
        self.enqueued = 1
        self.wait_for_end()
        [entries] = self.ledger.entries().values()
        starts = [entry.pid for entry in entries if entry.what == "start"]
        [starved] = [runner for runner in runners if runner.process.pid == starts[0]]
        starved.wait_for("registers again")
        starved.wait_for("was dropped")

        self.verdict("a beat thread without the interpreter", doubles=1)
        self.assertEqual({runner.process.pid for runner in runners}, set(starts))
