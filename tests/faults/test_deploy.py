"""Old and new code side by side, each with a task that the other does not know."""

import signal

from ..support.processes import Child
from .storm import StormTestCase, size
from .tasks import introduced, retired, work


class ReleaseTests(StormTestCase):
    """Releases that are rolled out, back, and out again, one runner after the other."""

    def of_release(self, name: str) -> Child:
        return self.ready_runner("-w", 4, "--grace", 20, FAULTS_RELEASE=name)

    def enqueue(self, count: int) -> None:
        """Enqueue rows that all know, and rows that only one of the releases knows."""
        for task in (work, introduced, retired):
            task.enqueue_many([((0.02,), {})] * count)
            self.enqueued += count

    def test_no_release_destroys_the_rows_of_another(self) -> None:
        """A row whose task is unknown waits for a runner that knows it, and loses nothing."""
        runners = [self.of_release("old") for _ in range(2)]
        rounds = size(1, 6)
        for n in range(rounds):
            self.enqueue(size(20, 200))
            for _ in runners:
                self.pause(0.1, 0.5)
                old = runners.pop(0)
                old.signal(signal.SIGTERM)
                runners.append(self.of_release("old" if n % 2 else "new"))
                self.assertEqual(0, old.end(), old.said)
        # Whatever was rolled out last, somebody still runs the other.
        runners.append(self.of_release("new" if rounds % 2 == 0 else "old"))
        self.wait_for_end()

        self.verdict(f"{rounds} rollouts of another release", doubles=0)
