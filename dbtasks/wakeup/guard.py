"""What stands between a push service and those who enqueue.

Owns the time that sending may take, the threads in which it happens, and the rest after failures.
Never lets a service hold up its caller for three seconds, and never logs what a service answered.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from ..push import Hint, NotSent, Push

logger = logging.getLogger("dbtasks.push")

# Seconds for one call of send(), and for all calls of one commit.
CALL_TIMEOUT = 2.0
COMMIT_TIMEOUT = 2.8
TOO_SLOW = "the service is too slow"
NO_ANSWER = f"no answer within {CALL_TIMEOUT:g} seconds"
# Calls at the same time for one backend.
MAX_THREADS = 8
# Seconds without a hint after which a thread ends, and with it the client that it may have.
IDLE = 60.0
# Nothing is sent for REST seconds after this many failures in a row, and after each further one.
MAX_FAILURES = 3
REST = 30.0
# A failure that took longer than SLOW seconds has kept a caller waiting, and nothing is sent for
# SLOW_REST seconds. That is short, because a service may have to start.
SLOW = 1.0
SLOW_REST = 5.0
# Seconds between two warnings about one backend.
WARNING_INTERVAL = 60.0

Call = tuple[Hint, ...]


def commit_end() -> float:
    """Return when the time for the hints of a commit that is made now is over."""
    return time.monotonic() + COMMIT_TIMEOUT


class Threads:
    """Up to MAX_THREADS daemon threads, made when they are needed, that run what is submitted."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: deque[Callable[[], None]] = deque()
        self._count = self._idle = 0
        # When each call that has not returned began, also if it was given up.
        self.began: dict[object, float] = {}

    @property
    def is_stuck(self) -> bool:
        """Whether every thread is in a call that has taken too long."""
        latest = time.monotonic() - CALL_TIMEOUT
        began = list(self.began.copy().values())
        return len(began) >= MAX_THREADS and max(began) <= latest

    def submit(self, job: Callable[[], None]) -> None:
        """Run the job as soon as a thread is free. Raise RuntimeError if none can be started."""
        with self._changed:
            if len(self._jobs) >= self._idle and self._count < MAX_THREADS:
                threading.Thread(target=self._run, name="dbtasks-push", daemon=True).start()
                self._count += 1
                self._idle += 1
            self._jobs.append(job)
            self._changed.notify()

    def withdraw(self, job: Callable[[], None]) -> None:
        """Forget that job, however often it was submitted, where it has not begun."""
        with self._changed:
            self._jobs = deque(other for other in self._jobs if other != job)

    def _run(self) -> None:
        while True:
            with self._changed:
                has_job = self._changed.wait_for(lambda: bool(self._jobs), IDLE)
                self._idle -= 1
                if not has_job:
                    self._count -= 1
                    return
                job = self._jobs.popleft()
            job()
            del job
            with self._changed:
                self._idle += 1


class Breaker:
    """Counts failures in a row, and says when to leave the service alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._open_until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether nothing may be sent now."""
        return time.monotonic() < self._open_until

    @property
    def rest(self) -> float:
        """The seconds for which nothing may be sent."""
        return max(0.0, self._open_until - time.monotonic())

    def note(self, is_sent: bool, took: float = 0.0) -> None:
        """Count a call that has ended after `took` seconds. Can be called from any thread."""
        with self._lock:
            self._failures = 0 if is_sent else self._failures + 1
            if self._failures >= MAX_FAILURES:
                self._open_until = time.monotonic() + REST
            elif not is_sent and took > SLOW:
                self._open_until = time.monotonic() + SLOW_REST


class Round:
    """The calls of one commit. Each lane makes one call after the other, in a thread."""

    def __init__(
        self, push: Push, calls: Iterable[Call], breaker: Breaker, threads: Threads
    ) -> None:
        self._push, self._breaker, self._threads = push, breaker, threads
        self._changed = threading.Condition()
        self._calls = deque(calls)
        self._lanes = 0
        # When each running call began, on the monotonic clock.
        self._running: dict[object, float] = {}
        self._has_begun = self._is_over = False
        self.sent = 0
        # Why the last call failed, in words without secrets.
        self.why = ""

    def run(self, end: float) -> None:
        """Make the calls; return when all have ended, or at `end` on the monotonic clock.

        No call begins after that, and one that still runs does not count as sent. If none could
        begin, because all threads are in other calls, that is a failure of the service.
        """
        start = time.monotonic()
        for _ in range(min(MAX_THREADS, len(self._calls))):
            try:
                self._threads.submit(self._lane)
            except RuntimeError as error:  # this process ends, or has no room for a thread
                self.why = in_words(error)
                break
            with self._changed:
                self._lanes += 1
        with self._changed:
            try:
                while self._lanes > 0 and (left := self._drop_late(end)) > 0:
                    self._changed.wait(left)
            finally:
                self._is_over = True
                if self._running or self._calls:
                    self.why = self.why or TOO_SLOW
                self._running.clear()
                self._threads.withdraw(self._lane)
            if self._lanes > 0 and not (self._has_begun or self._breaker.is_open):
                self._breaker.note(is_sent=False, took=time.monotonic() - start)

    def _drop_late(self, end: float) -> float:
        """Give up calls that take too long; return the seconds until the next one does."""
        now = time.monotonic()
        for call, began in self._running.copy().items():
            if began + CALL_TIMEOUT <= now:
                self._fail(call, NO_ANSWER)
                self._lanes -= 1
        if not self._lanes or (self._breaker.is_open and not self._running):
            return 0
        return min([end, *(began + CALL_TIMEOUT for began in self._running.copy().values())]) - now

    def _fail(self, call: object, why: str) -> None:
        took = time.monotonic() - self._running.pop(call)
        self.why = why
        self._breaker.note(is_sent=False, took=took)

    def _lane(self) -> None:
        while (begun := self._begin()) is not None:
            call, hints = begun
            why = None
            try:
                self._push.send(hints)
            except BaseException as error:  # whatever a client library raises
                why = in_words(error)
            finally:
                self._threads.began.pop(call, None)
            if not self._end(call, hints, why):
                return
        with self._changed:
            self._lanes -= 1
            self._changed.notify()

    def _begin(self) -> tuple[object, Call] | None:
        with self._changed:
            if self._is_over or self._breaker.is_open or not self._calls:
                return None
            call = object()
            self._running[call] = self._threads.began[call] = time.monotonic()
            self._has_begun = True
            self._changed.notify()
            return call, self._calls.popleft()

    def _end(self, call: object, hints: Call, why: str | None) -> bool:
        """Note how the call ended; return False if it was given up meanwhile."""
        with self._changed:
            if call not in self._running:
                return False
            if why is not None:
                self._fail(call, why)
                return True
            del self._running[call]
            self.sent += len(hints)
            self._breaker.note(is_sent=True)
            return True


class Sender:
    """Sends the hints of one backend in this process."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._threads, self._breaker = Threads(), Breaker()
        self._lock = threading.Lock()
        self._unsent, self._why = 0, ""
        self._warned_at = -WARNING_INTERVAL
        self._told_why: set[str] = set()

    def send(self, push: Push, calls: list[Call], end: float | None = None) -> int:
        """Pass each call to the service; return how many hints were sent.

        `end` is when the time of the commit is over, on the monotonic clock.
        """
        total = sum(map(len, calls))
        end = commit_end() if end is None else end
        if self._breaker.is_open:
            self._warn(total)
            return 0
        if self._threads.is_stuck or end <= time.monotonic():
            self._warn(total, NO_ANSWER if self._threads.is_stuck else TOO_SLOW)
            return 0
        current = Round(push, calls, self._breaker, self._threads)
        current.run(end)
        logger.debug("Sent %d of %d hints of %r", current.sent, total, self._backend)
        self._warn(total - current.sent, current.why)
        return current.sent

    def _warn(self, unsent: int, why: str = "") -> None:
        """Add to the hints that were not sent, and log their number once a minute."""
        with self._lock:
            self._unsent += unsent
            self._why = why if unsent and why else self._why
            now = time.monotonic()
            if not self._unsent or now < self._warned_at + WARNING_INTERVAL:
                return
            count, self._unsent, self._warned_at = self._unsent, 0, now
        logger.warning(
            "%d %s of %r could not be sent: %s. A sweep finds the rows.",
            count,
            "hint" if count == 1 else "hints",
            self._backend,
            self._why,
        )

    def explain(self, level: int, why: str) -> None:
        """Log once why this process sends no hints."""
        with self._lock:
            if why in self._told_why:
                return
            self._told_why.add(why)
        logger.log(level, "Hints of %r are not sent: %s", self._backend, why)


# By process and backend: a forked child has neither the threads nor the locks of its parent.
_senders: dict[tuple[int, str], Sender] = {}


def sender_of(backend: str) -> Sender:
    """Return the sender of that backend in this process."""
    key = (os.getpid(), backend)
    return _senders.get(key) or _senders.setdefault(key, Sender(backend))


def in_words(error: BaseException) -> str:
    """Return what may be logged of the error: the text of many contains a header or a URL."""
    name, words = type(error).__name__, ""
    if isinstance(error, NotSent):
        return str(error).rstrip(".")
    if isinstance(error, OSError):
        words = error.strerror if isinstance(error.strerror, str) else ""
    return f"{name}: {words}" if words else name
