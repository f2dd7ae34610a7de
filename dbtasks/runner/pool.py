"""The threads in which attempts run.

Owns concurrency: how many attempts run at once, the replacement of threads that do not end, and
stopping. Passes coroutines to their loop. Never touches the database: claims come in, outcomes go
out through a callback.
"""

import logging
import time
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Any

from django.db import connections

from ..db.connections import discard_all, leave_for_next
from ..db.full_servers import wait_in_this_thread
from ..events import STARTED, Events
from ..exceptions import TaskReleased
from ..execution.attempt import Attempt, WorkerContext
from ..execution.deadlines import Deadlines
from ..execution.running import arun, run
from ..options.runner import RunnerOptions, default_coroutines
from ..store import Claim, Outcome
from .abandoned import Abandoned
from .ender import Ender
from .event_loops import Loops
from .room import Room
from .slots import Slots

logger = logging.getLogger("dbtasks.runner")

# Stands for the attempts of an event loop.
LOOP = object()
# A thread that was idle for longer than this, in seconds, reconnects before its next task.
MAX_IDLE = 10.0


class Pool:
    """Runs attempts in threads, and coroutines on one event loop.

    `on_outcome` is called with each attempt and its outcome, in the thread that ran it;
    `on_capacity` whenever there may be room for more; `on_exhausted` when too many threads hang in
    abandoned tasks.
    """

    def __init__(
        self,
        context: WorkerContext,
        options: RunnerOptions,
        events: Events,
        *,
        on_outcome: Callable[[Attempt, Outcome], None],
        on_capacity: Callable[[], None],
        on_exhausted: Callable[[], None],
    ) -> None:
        threads = options.workers
        coroutines = options.coroutines or default_coroutines(threads, context.db)
        self.context, self._events = context, events
        self._on_outcome, self._on_capacity = on_outcome, on_capacity
        self._waiting: SimpleQueue[Attempt | None] = SimpleQueue()
        # Every attempt from its submission to its end, also while a thread takes it off the queue.
        self._held: set[Attempt] = set()
        self._loops = Loops(self._run_coroutine, coroutines)
        self._room = Room(threads, coroutines, self._loops)
        self._abandoned = Abandoned(self._loops, threads, coroutines, on_exhausted)
        # When a connection of this process was last found broken, on the monotonic clock.
        self._broken = 0.0
        self.slots = Slots(threads, self._live)
        self._ender = Ender(self.slots, self._loops, self._abandoned, self._settle)
        ender, check = self._ender, self._abandoned.check
        self.deadlines = Deadlines(ender.interrupt, ender.abandon, check)

    def start(self) -> None:
        """Start the threads; raise RuntimeError if the system has no more."""
        self.slots.start()

    def stacks(self) -> list[tuple[int, Any]]:
        """Return the id of each thread, with its attempt or LOOP."""
        return [*self.slots.stacks(), *((ident, LOOP) for ident in self._loops.idents)]

    def revive(self) -> bool:
        """Replace threads that have died; return whether there were any.

        Raise RuntimeError if the system has no more.
        """
        return self.slots.revive(self._recover)

    @property
    def running(self) -> int:
        """How many attempts have started and not ended."""
        return max(0, len(self._held) - self.waiting)

    @property
    def waiting(self) -> int:
        """How many claimed rows wait for a thread, or for their turn on the event loop."""
        return self._waiting.qsize() + self._loops.waiting

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not self._held

    @property
    def abandoned_threads(self) -> int:
        """How many abandoned threads, loops and coroutines have not ended."""
        return sum(self._abandoned.count())

    @property
    def claims(self) -> list[Claim]:
        """The claims of all attempts that have not ended. Can be read from any thread."""
        return [attempt.claim for attempt in self._held.copy()]

    def room(self) -> int:
        """Return how many more rows to claim now; 0 while enough wait."""
        return self._room.left(len(self._held), self._waiting.qsize())

    def submit(self, claims: Iterable[Claim]) -> None:
        """Queue the claimed rows, in their order, for the next free threads."""
        self._room.threads.was_taken(time.monotonic())
        for claim in claims:
            attempt = Attempt(self.context, claim)
            self._held.add(attempt)
            self._waiting.put(attempt)

    def overdue(self) -> list[Attempt]:
        """Take back and return rows that wait too long.

        Running tasks then take longer than tasks did before, and another runner may be free.
        """
        late = self._take_back() if self._room.is_overdue(self._waiting.qsize()) else []
        return late + self._room.overdue_coroutines()

    def distrust(self) -> None:
        """Make each thread reconnect before its next task, because the database was away."""
        self._broken = time.monotonic()

    def withdraw(self) -> list[Attempt]:
        """Take back and return the attempts that have not started."""
        return self._take_back() + self._loops.withdraw()

    def _take_back(self) -> list[Attempt]:
        """Take back and return the attempts that no thread has taken."""
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
            for attempt in self._held.copy():
                if (attempt.claim.id, attempt.claim.fence) in wanted:
                    self.deadlines.cancel(attempt)

    def ask_to_stop(self) -> None:
        """Ask running tasks to stop: the runner stops, or was declared lost."""
        for attempt in self._held.copy():
            attempt.ask(TaskReleased())

    def release(self) -> list[tuple[Attempt, Outcome]]:
        """Return the running attempts, each with the outcome of a release.

        An outcome that such an attempt has later is dropped.
        """
        released = [attempt for attempt in self._held.copy() if attempt.close()]
        self.let_go(released)
        return [(attempt, attempt.release()) for attempt in released]

    def stop(self) -> None:
        """Let the threads end when they have nothing to do, and cancel what runs on the loops."""
        self.slots.is_stopping = True
        self.deadlines.stop()
        for _ in range(len(self.slots)):
            self._waiting.put(None)
        self._loops.stop()

    def join(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the threads to end; return whether they have."""
        return self.slots.join(timeout)

    def _live(self, number: int, left: Attempt | None) -> None:
        """Run attempts until stop(). The thread keeps its connections between tasks.

        First it ends the attempt that was `left` by the thread that it replaces. Whatever is
        raised, the attempt in hand ends, and the thread works on.
        """
        try:
            wait_in_this_thread()
            if left is not None:
                self._ender.settle(left)
            while True:
                try:
                    self._work(number)
                    return
                except BaseException as error:  # whatever it is, rows depend on this thread
                    if not self.slots.is_current(number):
                        return
                    self._recover(number, error)
                    discard_all()
        finally:
            connections.close_all()

    def _work(self, number: int) -> None:
        ended = time.monotonic()
        while (attempt := self._waiting.get()) is not None:
            self.slots.in_hand[number] = attempt, None
            began = time.monotonic()
            self._room.threads.was_taken(began)
            if ended < max(self._broken, began - MAX_IDLE):
                connections.close_all()
            if attempt.is_async:
                self._loops.start(attempt)
            elif not self._complete(attempt, number):
                return
            self.slots.in_hand[number] = None
            ended = time.monotonic()
            self._room.threads.was_run(ended - began)
            if self._room.threads.is_low(self._waiting.qsize()):
                self._on_capacity()

    def _complete(self, attempt: Attempt, number: int) -> bool:
        """Run the attempt; return False if this thread has been replaced."""
        self._begin(attempt)
        outcome = self._run(attempt)
        self.slots.in_hand[number] = attempt, outcome
        return self._end(attempt, outcome) or self.slots.is_current(number)

    def _run(self, attempt: Attempt) -> Outcome:
        try:
            outcome = run(attempt)
        except BaseException as error:  # what run() does not expect; the thread must live on
            outcome = attempt.broken(error)
        try:
            leave_for_next(attempt.claim.task_path, self.context.options.keep_connections)
        except BaseException:  # what the task returned stands
            discard_all()
            logger.exception("The connections of a thread could not be left clean")
        return outcome

    def _recover(self, number: int, error: BaseException) -> None:
        """Settle the attempt that a thread had in hand when the error was raised."""
        if (in_hand := self.slots.in_hand[number]) is not None:
            self.slots.in_hand[number] = None
            if not self._loops.has(in_hand[0]):
                self._end_broken(*in_hand, error)

    def _end_broken(self, attempt: Attempt, outcome: Outcome | None, error: BaseException) -> None:
        """Settle an attempt in whose handling the error was raised, if it is not settled yet.

        If the task has ended before that, its outcome stands.
        """
        self.deadlines.forget(attempt)
        if attempt in self._held:
            attempt.close()
            self._on_outcome(attempt, outcome or attempt.broken(error))
            self._held.discard(attempt)

    def _end(self, attempt: Attempt, outcome: Outcome) -> bool:
        """Pass the outcome on; return False if the attempt was abandoned or released meanwhile."""
        self.deadlines.forget(attempt)
        if attempt.error is not None:
            # The outcome has its text. Its frames refer to everything the task had.
            attempt.error.__traceback__ = None
        if not attempt.close():
            return False
        self._on_outcome(attempt, outcome)
        # Only now, so that either the writer or the pool knows the attempt at every moment.
        self._held.discard(attempt)
        return True

    def _begin(self, attempt: Attempt) -> None:
        attempt.begin()
        self.deadlines.watch(attempt)
        self._events.publish(STARTED, attempt)

    async def _run_coroutine(self, attempt: Attempt) -> None:
        outcome = None
        try:
            self._begin(attempt)
            self._room.coroutines.was_taken(attempt.started)
            try:
                outcome = await arun(attempt)
            except BaseException as error:  # what arun() does not expect
                outcome = attempt.broken(error)
            self._end(attempt, outcome)
        except BaseException as error:  # whatever it is, the row must not stay RUNNING
            self._end_broken(attempt, outcome, error)
        finally:
            # Only now, because an attempt that is abandoned must still be known as a coroutine.
            self._loops.forget(attempt)
        self._room.coroutines.was_run(time.monotonic() - attempt.started)
        self._on_capacity()

    def _settle(self, stand_in: Attempt, attempt: Attempt, outcome: Outcome) -> None:
        """Pass on the outcome of an attempt that was abandoned."""
        try:
            self._on_outcome(stand_in, outcome)
        except BaseException:  # once more, because nobody else would settle it
            self._on_outcome(stand_in, outcome)
        self._held.discard(attempt)
        self._on_capacity()
