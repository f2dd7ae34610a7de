"""What a peer is: how it is installed, how its worker is started, and what it can be asked.

Owns the shape of an adapter. Never imports a peer's package outside of a method: the tool reads
the attributes in its own Python, and only the peer's Python calls the methods.
"""

import os
from dataclasses import dataclass, field
from typing import Any

# Where the peer keeps its tasks; set by the tool for the peer's own processes, and only there.
URL = os.environ.get("BENCH_URL", "")


@dataclass(frozen=True)
class Setting:
    """One way to start a worker."""

    command: tuple[str, ...]
    """A script of the peer's environment, and its arguments."""
    why: str
    """Why these arguments: one line for the reader of the table."""
    processes: int = 1
    """How many workers of this command run at once."""
    interval: float = 0.2
    """Seconds between two looks of an idle worker, over which measured calls are spread."""
    django: dict[str, Any] = field(default_factory=dict)
    """Django settings that differ."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables of its processes."""


@dataclass(frozen=True)
class Drained:
    """What a worker finished while it was watched."""

    tasks: int
    seconds: float


class Peer:
    """A peer; one object for the tool, and one in the peer's own process."""

    name = ""
    server = "postgresql"
    """Or "redis": which URL it gets."""
    requirements: tuple[str, ...] = ()
    """What is installed in its environment; the first is the peer. Empty: our own environment."""
    default: Setting
    best: Setting
    django: dict[str, Any] = {}
    """Its Django settings, if it is a backend of Django's tasks."""
    clock = "timestamps of its rows"
    """Where the rate of a drain comes from."""

    def prepare(self) -> None:
        """Create what it needs on an empty server."""
        raise NotImplementedError

    def clear(self) -> None:
        """Delete all tasks."""
        raise NotImplementedError

    def fill(self, count: int) -> None:
        """Leave a backlog of exactly `count` calls, the server's statistics up to date."""
        raise NotImplementedError

    def enqueue(self, number: int = 0) -> None:
        """Enqueue one call by the peer's own API."""
        raise NotImplementedError

    def enqueue_many(self, count: int) -> None:
        """Enqueue `count` calls at once; raise NotImplementedError if the peer has no way."""
        raise NotImplementedError

    def watch(self, window: float, patience: float) -> Drained:
        """Return what was finished in `window` seconds from the first end on, or until all were.

        Raise TimeoutError if nothing was finished in `patience` seconds.
        """
        raise NotImplementedError

    def finished(self) -> int:
        """Return how many calls have been finished since `fill`."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave the server as it was found, where that is not the tool's part."""
