"""Run in a peer's own environment: do what the tool asks, one JSON line for each answer.

    python -P -m peers.child NAME

Owns the peer's side of the protocol. Never starts a worker: that is the tool's part.
"""

import json
import os
import random
import socket
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

from . import body, load
from .peer import Peer

# Seconds after which a call that did not begin is given up.
PATIENCE = 30.0


class Child:
    """The methods named by the tool; each returns what is sent back."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.door.bind(os.environ["BENCH_SOCKET"])

    def prepare(self) -> dict[str, str]:
        """Create what the peer needs; return the versions that count."""
        self.peer.prepare()
        return {name: found for name in self.packages() if (found := version(name))}

    def packages(self) -> tuple[str, ...]:
        return (self.peer.name, "django") if self.peer.django else (self.peer.name,)

    def fill(self, count: int) -> None:
        """Leave a backlog of that many calls."""
        self.peer.clear()
        self.peer.fill(count)

    def clear(self) -> None:
        """Delete all calls."""
        self.peer.clear()

    def watch(self, window: float, patience: float) -> tuple[int, float]:
        """Return the tasks finished in the window, and the seconds between first and last end."""
        drained = self.peer.watch(window, patience)
        return drained.tasks, drained.seconds

    def witness(self, count: int, seconds: float) -> int:
        """Return how many calls began within that time, out of a backlog of `count`."""
        began = 0
        deadline = time.monotonic() + seconds
        while began < count and self.next_call(deadline - time.monotonic()):
            began += 1
        return began

    def finished(self) -> int:
        """Return how many calls the peer says it finished."""
        return self.peer.finished()

    def one_by_one(self, seconds: float) -> tuple[int, float]:
        """Enqueue for so many seconds; return how many calls that were, and the seconds."""
        self.peer.enqueue()
        count = 0
        began = time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds:
            self.peer.enqueue()
            count += 1
        return count, spent

    def bulk(self, count: int) -> float | None:
        """Return the seconds that `count` calls took at once, or None if there is no way."""
        try:
            self.peer.enqueue_many(1)
        except NotImplementedError:
            return None
        began = time.perf_counter()
        self.peer.enqueue_many(count)
        return time.perf_counter() - began

    def latency(self, seconds: float, interval: float) -> list[float]:
        """Return the milliseconds from the call to the task's first line, for as many as fit."""
        self.sample(0)
        waits = []
        until = time.monotonic() + seconds
        while time.monotonic() < until or not waits:
            time.sleep(random.uniform(0.02, interval))
            waits.append(self.sample(len(waits) + 1) * 1000)
        return waits

    def sample(self, number: int) -> float:
        """Return the seconds from one call to its first line."""
        called = time.time()
        self.peer.enqueue(number)
        while found := self.next_call(PATIENCE):
            if found[0] == number:
                return found[1] - called
        raise TimeoutError(f"a call did not begin within {PATIENCE:.0f} s")

    def next_call(self, seconds: float) -> tuple[int, float] | None:
        """Return the number and the time of the next call that begins, or None if none does."""
        self.door.settimeout(max(seconds, 0.001))
        try:
            return body.read(self.door.recv(64))
        except TimeoutError:
            return None

    def close(self) -> None:
        """Clean up."""
        self.peer.close()


def version(name: str) -> str:
    """Return the version that is installed, or nothing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def main() -> None:
    """Answer until the tool closes its end."""
    # What packages print goes to the log; the answers have the real stdout to themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    child = Child(load(sys.argv[1]))
    for line in sys.stdin:
        name, arguments = json.loads(line)
        answers.write(json.dumps(answer(getattr(child, name), arguments)) + "\n")


def answer(method: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what the method returns, or why it could not."""
    try:
        return {"value": method(**arguments)}
    except Exception as error:  # Whatever a peer's package raises is a row of the table.
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
