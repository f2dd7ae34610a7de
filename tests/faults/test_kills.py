"""kill -9, at random moments, under load."""

import time

from ..support.processes import Child
from ..support.rows import vendor
from ..support.waiting import until
from .storm import StormTestCase, children, size


class KillTests(StormTestCase):
    """Runners that have no time for anything."""

    def test_killed_runners_lose_nothing(self) -> None:
        """Others, and those that come after, do what the dead have left."""
        count = 2 if vendor() == "sqlite" else size(2, 4)
        kills = size(4, 24)
        self.load(size(400, 6000), 0.05)
        alive = [self.ready_runner("-w", 4) for _ in range(count)]
        for _ in range(kills):
            self.pause(0.05, 0.4)
            victim = self.chance.choice(alive)
            self.kill(victim.process.pid)
            victim.process.wait()
            alive.remove(victim)
            alive.append(self.replaced(alive))
        self.wait_for_end()

        self.verdict(f"kill -9 of {count} runners")

    def replaced(self, alive: list[Child]) -> Child:
        """Start a runner; wait for it unless others run."""
        child = self.runner("-w", 4)
        if len(alive) < 2:
            child.wait_for("Stop with Ctrl-C")
        return child

    def test_killed_processes_of_a_supervisor_lose_nothing(self) -> None:
        """It starts another at once, and the row goes on within three seconds."""
        self.load(size(200, 3000), 0.05)
        supervisor = self.ready_runner("--processes", 2, "-w", 4)
        pid = supervisor.process.pid
        for _ in range(size(2, 10)):
            before = self.finished()
            until(lambda n=before: self.finished() > n, "Some work")
            self.pause(0.05, 0.4)
            self.kill(self.chance.choice(children(pid)))
            began = time.monotonic()
            until(lambda: len(children(pid)) == 2, "Another process")
            self.assertLess(time.monotonic() - began, 35)
        self.wait_for_end()

        self.verdict("kill -9 of processes of a supervisor")
