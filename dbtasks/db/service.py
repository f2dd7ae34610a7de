"""A thread that uses the database.

Owns its life: start, rounds, pauses after an error, and closing its connections at the end. Never
knows what a round does.
"""

import logging
import threading
from abc import ABC, abstractmethod

from django.db import connections

logger = logging.getLogger("dbtasks.runner")


class Pauses:
    """The seconds to wait between two tries: each time twice as long, up to `longest`."""

    def __init__(self, first: float = 0.1, longest: float = 2.0) -> None:
        self.first, self.longest = first, longest
        self._next = first

    def next(self) -> float:
        """Return the next pause."""
        pause, self._next = self._next, min(self._next * 2, self.longest)
        return pause

    def reset(self) -> None:
        """Start again with the first pause, because the last try has succeeded."""
        self._next = self.first


class Service(ABC):
    """A daemon thread that works until it is stopped, then closes its connections."""

    def __init__(self, name: str) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"dbtasks-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread; return at once."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Ask the thread to end, and wait at most `timeout` seconds for it."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def is_alive(self) -> bool:
        """Whether the thread has started and not ended."""
        return self._thread.is_alive()

    def _live(self) -> None:
        try:
            self.work()
        finally:
            connections.close_all()

    @abstractmethod
    def work(self) -> None:
        """Work until `_stopping` is set. The thread ends when this returns."""


class RoundService(Service):
    """A service that works in rounds. An error ends a round, never the thread."""

    def __init__(self, name: str, pauses: Pauses) -> None:
        super().__init__(name)
        self._pauses = pauses
        # Set to begin the next round at once.
        self._wakeup = threading.Event()

    def stop(self, timeout: float) -> None:
        self._stopping.set()
        self._wakeup.set()
        super().stop(timeout)

    def work(self) -> None:
        wait = self.first_wait()
        while not self._pause(wait):
            try:
                wait = self.round()
                self._pauses.reset()
            except Exception as error:  # whatever the database raises; it will be back
                self.failed(error)
                connections.close_all()
                wait = self._pauses.next()

    def _pause(self, seconds: float) -> bool:
        """Wait until woken or the time is over; return whether the thread must end."""
        if seconds > 0:
            self._wakeup.wait(seconds)
        self._wakeup.clear()
        return self._stopping.is_set()

    def first_wait(self) -> float:
        """Return the seconds before the first round."""
        return 0.0

    @abstractmethod
    def round(self) -> float:
        """Do what is due; return the seconds until the next round."""

    @abstractmethod
    def failed(self, error: Exception) -> None:
        """Log the error that ended a round."""


def pause_after(error: Exception, db: str, seconds: float, stop: threading.Event) -> bool:
    """Log the error, close the connection and wait; return False if `stop` is set meanwhile."""
    logger.error("The database failed, next try in %.1f s: %s", seconds, error)
    connections[db].close()
    return not stop.wait(seconds)
