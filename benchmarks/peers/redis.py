"""What the peers on Redis share: rates by the length of the queue at two moments.

Owns that clock. Never flushes a database: only a peer's own keys are deleted.
"""

import time
from functools import cached_property
from typing import Any

from .peer import URL, Drained, Peer

# Calls sent at once while a backlog is filled.
PIPELINE = 1000


class RedisPeer(Peer):
    """A peer whose tasks are messages, gone when a worker took them."""

    server = "redis"
    clock = "length of its queue at two moments of Redis' clock"
    queue = ""
    """The list that holds the messages."""
    keys: tuple[str, ...] = ()
    """Patterns of all its keys."""
    filled = 0

    @cached_property
    def client(self) -> Any:
        """Return a connection of the measuring side, apart from the peer's own."""
        import redis

        return redis.Redis.from_url(URL)

    def clear(self) -> None:
        for pattern in self.keys:
            for key in self.client.scan_iter(pattern):
                self.client.delete(key)

    def close(self) -> None:
        self.clear()

    def fill(self, count: int) -> None:
        self.message()  # The first one may go through the queue.
        self.filled = count
        for start in range(0, count, PIPELINE):
            messages = [self.message() for _ in range(min(PIPELINE, count - start))]
            self.client.lpush(self.queue, *messages)

    def message(self) -> bytes:
        """Return a message with an id of its own."""
        raise NotImplementedError

    def look(self) -> tuple[float, int]:
        """Return Redis' time, and how many messages have been worked off by then."""
        pipe = self.client.pipeline(transaction=True)
        pipe.time()
        self.count(pipe)
        (seconds, micros), *lengths = pipe.execute()
        return seconds + micros / 1e6, self.filled - sum(lengths)

    def count(self, pipe: Any) -> None:
        """Ask for the numbers of messages that have not been worked off."""
        pipe.llen(self.queue)

    def finished(self) -> int:
        return self.look()[1]

    def watch(self, window: float, patience: float) -> Drained:
        began, before = self.await_first(patience)
        while True:
            time.sleep(0.02)
            now, done = self.look()
            if now - began >= window or done == self.filled:
                return Drained(done - before, now - began)

    def await_first(self, patience: float) -> tuple[float, int]:
        """Return the first look that finds a message gone."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            look = self.look()
            if look[1]:
                return look
            time.sleep(0.02)
        raise TimeoutError(f"no task was taken in {patience:.0f} s")
