"""The threads in which attempts run.

Owns concurrency: how many attempts run at once, the replacement of threads that do not end, and
stopping. Passes coroutines to their loop. Never touches the database: claims come in, outcomes go
out through a callback.
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

# Coroutines that run at once. A sleeping one costs some kilobytes, and a connection if it uses the
# ORM.
MAX_COROUTINES = 1000
# A thread that was idle for longer than this, in seconds, reconnects before its next task.
MAX_IDLE = 10.0
# A runner is exhausted when as many threads are abandoned as it has, but at least this many.
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
        # Every attempt from its submission to its end, also while a thread takes it off the queue.
        self._held: set[Attempt] = set()
        self._loops = Loops(self._run_coroutine)
        self._deadlines = Deadlines(self._interrupt, self._abandon)
        # When a connection of this process was last found broken, on the monotonic clock.
        self._broken = 0.0
        self._replacing = threading.Lock()
        # Threads that were replaced because they hang in an abandoned task.
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
        """How many abandoned threads, loops and coroutines have not ended."""
        return sum(thread.is_alive() for thread in self._abandoned) + self._loops.abandoned

    @property
    def claims(self) -> list[Claim]:
        """The claims of all attempts that have not ended. Can be read from any thread."""
        return [attempt.claim for attempt in tuple(self._held)]

    def room(self) -> int:
        """Return how many more rows to claim now; 0 while enough wait."""
        if len(self._loops) >= MAX_COROUTINES:
            return 0
        return self._prefetch.room(self.running - len(self._loops), self._waiting.qsize())

    def submit(self, claims: Iterable[Claim]) -> None:
        """Queue the claimed rows, in their order, for the next free threads."""
        self._prefetch.was_taken(time.monotonic())
        for claim in claims:
            attempt = Attempt(self.context, claim)
            self._held.add(attempt)
            self._waiting.put(attempt)

    def overdue(self) -> list[Attempt]:
        """Take back and return the waiting rows if no thread has taken one for too long.

        A running task then takes longer than tasks did before, and another runner may be free.
        """
        if self._waiting.empty() or not self._prefetch.is_overdue():
            return []
        return self.withdraw()

    def distrust(self) -> None:
        """Make each thread reconnect before its next task, because the database was away."""
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
        """Forget attempts that the caller settles."""
        self._held.difference_update(attempts)

    def cancel(self, claims: Iterable[tuple[Any, int]]) -> None:
        """End the attempts of those claims, each given as id and fence."""
        if wanted := set(claims):
            for attempt in tuple(self._held):
                if (attempt.claim.id, attempt.claim.fence) in wanted:
                    self._deadlines.cancel(attempt)

    def ask_to_stop(self) -> None:
        """Ask running tasks to stop: the runner stops, or was declared lost."""
        for attempt in tuple(self._held):
            attempt.ask(TaskReleased())

    def release(self) -> list[tuple[Attempt, Outcome]]:
        """Return the running attempts, each with the outcome of a release.

        An outcome that such an attempt has later is dropped.
        """
        released = [attempt for attempt in tuple(self._held) if attempt.close()]
        self.let_go(released)
        return [(attempt, attempt.release()) for attempt in released]

    def stop(self) -> None:
        """Let the threads end when they have nothing to do, and cancel what runs on the loops."""
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
        """Run attempts until stop(). The thread keeps its connections between tasks.

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
        """Run the attempt; return False if this thread has been replaced."""
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
            # The outcome has its text. Its frames refer to everything the task had, and to the
            # attempt.
            attempt.error.__traceback__ = None
        if not attempt.close():
            return False
        self._on_outcome(attempt, outcome)
        # Only now, so that either the writer or the pool knows the attempt at every moment.
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
        # Only now, because an attempt that is abandoned must still be known as a coroutine.
        self._loops.forget(attempt)
        self._on_capacity()

    # Attempts that do not end

    def _interrupt(self, attempt: Attempt) -> None:
        if attempt in self._loops:
            self._loops.cancel(attempt)
        else:
            attempt.call.interrupt()

    def _abandon(self, attempt: Attempt) -> None:
        """Stop waiting for an interrupted attempt: replace its thread or loop."""
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
        """Return a new thread that settles the attempt, not yet started; None if it has ended."""
        # A thread whose attempt ends just now holds this lock while it asks whether it was
        # replaced.
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
        """Settle an abandoned coroutine, in a thread of its own."""
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
        except BaseException as error:  # as in _run()
            outcome = stand_in.broken(error)
        self._on_outcome(stand_in, outcome)
        self._held.discard(attempt)
        self._on_capacity()
