"""The threads in which attempts run, and the way of coroutines to their loop.

Owns concurrency: how many attempts run at once, what replaces a thread that does not come back, and
stopping. Never touches the database: claims come in, outcomes go out through a callback.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Any

from django.db import connections

from ..db.connections import leave_clean
from ..events import STARTED, Events
from ..exceptions import TaskReleased
from ..execution.attempt import Attempt, WorkerContext
from ..execution.running import abandon, arun, run
from ..store import Claim, Outcome
from .deadlines import Deadlines
from .event_loops import Loops
from .prefetch import Prefetch

logger = logging.getLogger("dbtasks.runner")

# Coroutines at once. A sleeping one costs some kilobytes, and a connection if it uses the ORM.
MAX_COROUTINES = 1000
# Seconds after which an idle thread connects anew.
MAX_IDLE = 10.0
# A runner is exhausted with as many abandoned threads as it has threads, and at least with so many:
# a few do no harm.
MIN_ABANDONED = 4


class Pool:
    """Runs attempts in `threads` threads, coroutines on one event loop.

    `on_outcome` is called with each attempt and its outcome, in the thread that ran it;
    `on_capacity` whenever there may be room for more; `on_exhausted` when too many threads hang in
    abandoned tasks.
    """

    def __init__(
        self,
        context: WorkerContext,
        threads: int,
        events: Events,
        *,
        on_outcome: Callable[[Attempt, Outcome], None],
        on_capacity: Callable[[], None],
        on_exhausted: Callable[[], None],
    ) -> None:
        self.context, self.threads, self._events = context, threads, events
        self._on_outcome, self._on_capacity = on_outcome, on_capacity
        self._on_exhausted = on_exhausted
        self._prefetch = Prefetch(threads)
        self._waiting: SimpleQueue[Attempt | None] = SimpleQueue()
        # Every attempt from its submission to its end: one that a thread has just taken off the
        # queue is not lost from sight.
        self._held: set[Attempt] = set()
        self._loops = Loops(self._run_coroutine)
        self._deadlines = Deadlines(self._interrupt, self._abandon)
        # When a connection of this process was last found broken, on the monotonic clock.
        self._broken = 0.0
        self._replacing = threading.Lock()
        # Threads whose place others have taken.
        self._abandoned: list[threading.Thread] = []
        self._threads = [
            threading.Thread(target=self._work, name=f"dbtasks-{n}", daemon=True)
            for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def running(self) -> int:
        """How many attempts have started and not ended."""
        return max(0, len(self._held) - self._waiting.qsize())

    @property
    def waiting(self) -> int:
        """How many claimed rows have not started."""
        return self._waiting.qsize()

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not self._held

    @property
    def abandoned_threads(self) -> int:
        """How many threads, loops and coroutines were abandoned and have not come back."""
        return sum(thread.is_alive() for thread in self._abandoned) + self._loops.abandoned

    @property
    def claims(self) -> list[Claim]:
        """The claims of all attempts that have not ended. Any thread may ask."""
        return [attempt.claim for attempt in tuple(self._held)]

    def room(self) -> int:
        """Return how many more rows to claim now; 0 while enough wait."""
        if len(self._loops) >= MAX_COROUTINES:
            return 0
        return self._prefetch.room(self.running - len(self._loops), self._waiting.qsize())

    def submit(self, claims: Iterable[Claim]) -> None:
        """Run the claimed rows, in their order."""
        self._prefetch.was_taken(time.monotonic())
        for claim in claims:
            attempt = Attempt(self.context, claim)
            self._held.add(attempt)
            self._waiting.put(attempt)

    def overdue(self) -> list[Attempt]:
        """Take back and return the waiting rows if no thread has come for one for too long.

        Some neighbour takes longer than tasks did before; another runner may be free.
        """
        if self._waiting.empty() or not self._prefetch.is_overdue():
            return []
        return self.withdraw()

    def distrust(self) -> None:
        """Let each thread connect anew before its next task: the database was away."""
        self._broken = time.monotonic()

    def withdraw(self) -> list[Attempt]:
        """Take back and return the attempts that have not started."""
        attempts: list[Attempt] = []
        while True:
            try:
                attempt = self._waiting.get_nowait()
            except Empty:
                return attempts
            if attempt is not None:
                attempts.append(attempt)

    def let_go(self, attempts: Iterable[Attempt]) -> None:
        """Forget attempts that were withdrawn; somebody else looks after them now."""
        self._held.difference_update(attempts)

    def cancel(self, claims: Iterable[tuple[Any, int]]) -> None:
        """End the attempts of those claims, each named by the row's id and its fence."""
        if wanted := set(claims):
            for attempt in tuple(self._held):
                if (attempt.claim.id, attempt.claim.fence) in wanted:
                    self._deadlines.cancel(attempt)

    def ask_to_stop(self) -> None:
        """Let running tasks that ask know that the runner stops, or was declared lost."""
        for attempt in tuple(self._held):
            attempt.ask(TaskReleased())

    def release(self) -> list[tuple[Attempt, Outcome]]:
        """Return running attempts with the outcome of a release; their own comes too late."""
        released = [attempt for attempt in tuple(self._held) if attempt.close()]
        self.let_go(released)
        return [(attempt, attempt.release()) for attempt in released]

    def stop(self) -> None:
        """Let the threads and the loops end once they have nothing to do."""
        self._deadlines.stop()
        for _ in self._threads:
            self._waiting.put(None)
        self._loops.stop()

    def join(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the threads to end; return whether they have."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self, left: Attempt | None = None) -> None:
        """Run attempts until told to end. The thread keeps its connections between tasks.

        First it ends the attempt that was `left` by the thread that it replaces.
        """
        try:
            if left is not None:
                self._end_abandoned(left)
            ended = time.monotonic()
            while (attempt := self._waiting.get()) is not None:
                began = time.monotonic()
                self._prefetch.was_taken(began)
                if ended < max(self._broken, began - MAX_IDLE):
                    connections.close_all()
                if attempt.is_async:
                    self._loops.start(attempt)
                elif not self._complete(attempt):
                    return
                ended = time.monotonic()
                self._prefetch.was_run(ended - began)
                if self._prefetch.is_low(self._waiting.qsize()):
                    self._on_capacity()
        finally:
            connections.close_all()

    def _complete(self, attempt: Attempt) -> bool:
        """Run the attempt; return False if another thread has taken the place of this one."""
        self._begin(attempt)
        if self._end(attempt, self._run(attempt)):
            return True
        with self._replacing:
            return threading.current_thread() in self._threads

    def _run(self, attempt: Attempt) -> Outcome:
        try:
            outcome = run(attempt)
            leave_clean(attempt.claim.task_path, keep=True)
        except BaseException as error:  # what run() does not expect; the thread must live on
            return attempt.broken(error)
        return outcome

    def _end(self, attempt: Attempt, outcome: Outcome) -> bool:
        """Pass the outcome on; return False if the attempt was abandoned or released meanwhile."""
        self._deadlines.forget(attempt)
        if attempt.error is not None:
            # Its text is in the outcome. Its frames refer to all that the task had, and to the
            # attempt.
            attempt.error.__traceback__ = None
        if not attempt.close():
            return False
        self._on_outcome(attempt, outcome)
        # Only now, so that the attempt is somewhere at every moment.
        self._held.discard(attempt)
        return True

    def _begin(self, attempt: Attempt) -> None:
        attempt.begin()
        self._deadlines.watch(attempt)
        self._events.publish(STARTED, attempt)

    async def _run_coroutine(self, attempt: Attempt) -> None:
        self._begin(attempt)
        try:
            outcome = await arun(attempt)
        except BaseException as error:  # what arun() does not expect; the row must not stay RUNNING
            outcome = attempt.broken(error)
        self._end(attempt, outcome)
        # Only now, so that an attempt which is abandoned is known as a coroutine's.
        self._loops.forget(attempt)
        self._on_capacity()

    # Ending what does not end

    def _interrupt(self, attempt: Attempt) -> None:
        if attempt in self._loops:
            self._loops.cancel(attempt)
        else:
            attempt.call.interrupt()

    def _abandon(self, attempt: Attempt) -> None:
        """Wait no longer for an attempt that was interrupted: its thread or loop is replaced."""
        thread = self._successor(attempt)
        if thread is None:
            return
        logger.error(
            "%s %s does not end; it is abandoned", attempt.claim.task_path, attempt.claim.id
        )
        thread.start()
        if self.abandoned_threads >= max(MIN_ABANDONED, self.threads):
            self._on_exhausted()

    def _successor(self, attempt: Attempt) -> threading.Thread | None:
        """Return the thread, not yet started, that settles the attempt; None if it has ended."""
        # Held by a thread that comes back just now, while it asks whether it has been replaced.
        with self._replacing:
            if not attempt.close():
                return None
            if attempt in self._loops:
                self._loops.abandon(attempt)
                return threading.Thread(target=self._settle_coroutine, args=(attempt,), daemon=True)
            [old] = [thread for thread in self._threads if thread.ident == attempt.thread]
            new = threading.Thread(target=self._work, args=(attempt,), name=old.name, daemon=True)
            self._threads[self._threads.index(old)] = new
            self._abandoned = [thread for thread in self._abandoned if thread.is_alive()] + [old]
            return new

    def _settle_coroutine(self, attempt: Attempt) -> None:
        """Settle an abandoned coroutine. The thread's whole life."""
        try:
            self._end_abandoned(attempt)
        finally:
            connections.close_all()

    def _end_abandoned(self, attempt: Attempt) -> None:
        """Settle an abandoned attempt through its stand-in."""
        stand_in = attempt
        try:
            stand_in, outcome = abandon(attempt)
            leave_clean(attempt.claim.task_path, keep=True)
        except BaseException as error:  # as for any other attempt
            outcome = stand_in.broken(error)
        self._on_outcome(stand_in, outcome)
        self._held.discard(attempt)
        self._on_capacity()
