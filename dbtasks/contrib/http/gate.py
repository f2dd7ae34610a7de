"""How many requests of this process run tasks at the same time.

Owns the slots of each mount, and the turn of a row that must run alone. Never runs a task, and
never knows a request.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Seconds that a request waits for a slot.
SLOT_TIMEOUT = 1.0


class Full(Exception):
    """No slot became free in time, or other tasks did not end in time."""


class _Crowd:
    """The requests of this process that run tasks, whatever their gate."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        # How many there are, and how many of them wait until they are alone.
        self.present = self.waiting = 0
        # Whether one of them runs a row alone.
        self.is_alone = False


# A row that runs alone is alone in the process, not only among the requests of one mount.
_crowd = _Crowd()


class Gate:
    """Lets a number of requests run tasks at the same time."""

    def __init__(self, slots: int) -> None:
        self._slots, self._taken = slots, 0

    @contextmanager
    def slot(self, wait: float = SLOT_TIMEOUT) -> Iterator[None]:
        """Hold a slot while the block runs; raise Full if none is free for `wait` seconds.

        No slot is given while a row runs alone, or waits for that.
        """
        with _crowd.changed:
            if not _crowd.changed.wait_for(self._is_open, wait):
                raise Full
            self._taken += 1
            _crowd.present += 1
        try:
            yield
        finally:
            with _crowd.changed:
                self._taken -= 1
                _crowd.present -= 1
                _crowd.changed.notify_all()

    def _is_open(self) -> bool:
        return self._taken < self._slots and not (_crowd.waiting or _crowd.is_alone)


@contextmanager
def alone(wait: float) -> Iterator[None]:
    """Run the block while all other requests that run tasks are gone, or wait for the same.

    The caller holds a slot. Raise Full if the others do not leave for `wait` seconds.
    """
    with _crowd.changed:
        _crowd.waiting += 1
        try:
            if not _crowd.changed.wait_for(_can_be_alone, wait):
                raise Full
            _crowd.is_alone = True
        finally:
            _crowd.waiting -= 1
            _crowd.changed.notify_all()
    try:
        yield
    finally:
        with _crowd.changed:
            _crowd.is_alone = False
            _crowd.changed.notify_all()


def _can_be_alone() -> bool:
    return not _crowd.is_alone and _crowd.present == _crowd.waiting
