"""Hints that there may be work.

Owns which runners of this process enqueue() wakes. Never the truth: a hint that is lost only
costs the time until the next poll.
"""

from collections import defaultdict
from typing import Protocol
from weakref import WeakSet


class Sleeper(Protocol):
    """What can be woken, from any thread."""

    def wake(self) -> None:
        """Look for work at once."""


_sleepers: dict[str, WeakSet[Sleeper]] = defaultdict(WeakSet)


def listen(backend: str, sleeper: Sleeper) -> None:
    """Wake the sleeper whenever this process has enqueued a task of that backend."""
    _sleepers[backend].add(sleeper)


def forget(backend: str, sleeper: Sleeper) -> None:
    """Wake the sleeper no more."""
    _sleepers[backend].discard(sleeper)


def notify(backend: str) -> None:
    """Tell this process's runners of the backend that rows were committed."""
    if sleepers := _sleepers.get(backend):
        for sleeper in tuple(sleepers):
            sleeper.wake()
