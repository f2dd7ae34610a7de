"""A thread that uses the database.

Owns its life: start, rounds, pauses after an error, and closing its connections at the end. Never
knows what a round does.
"""

import logging
import threading
from abc import ABC, abstractmethod

from django.db import connections

from .connections import discard, discard_all
from .timeouts import bounded_connect

logger = logging.getLogger("dbtasks.runner")

# Marks a log record that comes again at each try while the database is away. Commands show such a
# record once a minute.
OUTAGE_MARK = "dbtasks_outage"
OUTAGE = {OUTAGE_MARK: True}
# Seconds after which a service whose work has failed begins again.
REVIVAL_PAUSE = 0.2


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


class Activity:
    """Whether a thread goes on. Other threads read it, as runners read each other's beat."""

    __slots__ = ("is_resting", "steps")

    def __init__(self) -> None:
        self.steps = 0
        # True while the thread waits until there is something to do.
        self.is_resting = True

    def step(self) -> None:
        """Note that the thread goes on."""
        self.steps += 1
        self.is_resting = False

    def rest(self) -> None:
        """Note that the thread has nothing to do."""
        self.is_resting = True


class Service(ABC):
    """A daemon thread that works until it is stopped, then closes its connections.

    Whatever is raised in it, it works on. `activity` shows others whether it does.
    """

    def __init__(self, name: str) -> None:
        self.name = f"dbtasks-{name}"
        self.activity = Activity()
        self._stopping = threading.Event()
        # True when the work has ended as it should.
        self._is_over = False
        self._thread = self._new_thread()

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._live, name=self.name, daemon=True)

    def start(self) -> None:
        """Start the thread; return at once."""
        # Here, because the thread may hang before it does anything.
        self.activity.step()
        self._thread.start()

    def revive(self) -> bool:
        """Start another thread if the last one has died; return whether it had.

        Raise RuntimeError if the system cannot start one.
        """
        has_died = not self._thread.is_alive() and self._thread.ident is not None
        if not has_died or self._is_over or self._stopping.is_set():
            return False
        thread = self._new_thread()
        self.activity.step()
        thread.start()
        self._thread = thread
        return True

    @property
    def ident(self) -> int:
        """The id of its thread; 0 if it has not started."""
        return self._thread.ident or 0

    def ask_to_stop(self) -> None:
        """Ask the thread to end; return at once."""
        self._stopping.set()

    def stop(self, timeout: float) -> None:
        """Ask the thread to end, and wait at most `timeout` seconds for it."""
        self.ask_to_stop()
        if self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def is_alive(self) -> bool:
        """Whether the thread has started and not ended."""
        return self._thread.is_alive()

    def _live(self) -> None:
        try:
            while not self._is_over:
                try:
                    self.work()
                    self._is_over = True
                except BaseException:  # whatever it is, the rows of others depend on this thread
                    discard_all()
                    if self._stopping.wait(REVIVAL_PAUSE):
                        return
                    logger.exception("%s failed; it goes on", self.name)
        finally:
            self.activity.rest()
            connections.close_all()

    @abstractmethod
    def work(self) -> None:
        """Work until `_stopping` is set. The thread ends when this returns."""


class RoundService(Service):
    """A service that works in rounds. An error ends a round, never the thread.

    Connecting to the database `db` is limited.
    """

    def __init__(self, name: str, pauses: Pauses, db: str) -> None:
        super().__init__(name)
        self._db = db
        self._pauses = pauses
        # Set to begin the next round at once.
        self._wakeup = threading.Event()

    def ask_to_stop(self) -> None:
        super().ask_to_stop()
        self._wakeup.set()

    def work(self) -> None:
        with bounded_connect(self._db):
            wait = self.first_wait()
            while not self._pause(wait):
                try:
                    wait = self.round()
                    self._pauses.reset()
                except Exception as error:  # whatever the database raises; it will be back
                    discard_all()
                    self.failed(error)
                    wait = self._pauses.next()

    def _pause(self, seconds: float) -> bool:
        """Wait until woken or the time is over; return whether the thread must end."""
        if seconds > 0:
            self.activity.rest()
            self._wakeup.wait(seconds)
        self.activity.step()
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
    text = "The database failed, next try in %.1f s: %s"
    logger.error(text, seconds, error, extra=OUTAGE)
    discard(connections[db])
    return not stop.wait(seconds)
