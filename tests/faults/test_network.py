"""A network between runner and database that cuts, delays, swallows, and loses replies."""

from ..support.processes import database_url
from ..support.proxy import Proxy
from ..support.rows import vendor
from ..support.waiting import until
from .storm import StormTestCase, size


class NetworkTests(StormTestCase):
    """One runner behind a bad network, and one that has none before it."""

    def setUp(self) -> None:
        super().setUp()
        if vendor() == "sqlite":
            self.skipTest("SQLite has no network")
        self.proxy = Proxy(database_url())
        self.addCleanup(self.proxy.close)

    def test_nothing_is_lost_or_stale(self) -> None:
        """What was done and not acknowledged is not done again; who was declared lost is fenced."""
        self.behind = self.ready_runner("-w", 4, TEST_DATABASE=self.proxy.url)
        beside = self.ready_runner("-w", 2)
        faults = [self.cut, self.delay, self.swallow, self.lose_claim, self.lose_outcome]
        for _ in range(size(1, 5)):
            for fault in self.chance.sample(faults, len(faults)):
                self.load(100, 0.03)
                fault()
                before = self.finished()
                self.load(50, 0.03)
                until(lambda n=before: self.finished() > n + 10, "Some work")
        self.wait_for_end()

        self.verdict("a network that fails in five ways")
        self.assertEqual([None, None], [r.process.poll() for r in (self.behind, beside)])

    def cut(self) -> None:
        self.proxy.cut()

    def delay(self) -> None:
        self.proxy.delay = 0.2
        self.pause(2)
        self.proxy.delay = 0.0

    def swallow(self) -> None:
        self.proxy.is_hole.set()
        # What had reached the server is done by then.
        self.pause(0.3)
        # Others start these again if the hole lasts longer than the timeout.
        self.in_flight += self.in_hand(self.behind.process.pid)
        self.pause(self.chance.choice([1, 5]))
        self.proxy.is_hole.clear()
        self.proxy.cut()

    def lose_claim(self) -> None:
        """The rows are RUNNING, and their runner is not told which."""
        self.lose(b"fence = fence + 1")

    def lose_outcome(self) -> None:
        """The outcomes are stored, and their runner is not told so."""
        self.lose(b"SUCCESSFUL")

    def lose(self, text: bytes) -> None:
        self.proxy.lost.clear()
        self.proxy.lose = [text]
        # The proxy may be idle for as long as everything is done elsewhere.
        self.proxy.lost.wait(3)
        self.proxy.lose = []
