"""The threads in which attempts run, and the way of coroutines to their loop.

Owns concurrency: how many run at once, how many claimed ones wait, who takes the place of a
thread that does not come back, and stopping. Never touches the database: claims come in, outcomes
go out through a callback.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Any

from django.db import connections

from .deadline import Deadlines
from .exceptions import TaskAbandoned
from .execute import Attempt, Job, leave_clean
from .loops import Loops
from .store import Claim, Outcome

logger = logging.getLogger("dbtasks.runner")

# Seconds of work that may wait claimed in this process: enough to hide a claim's round trip,
# little enough that other runners get long tasks.
PREFETCH_SECONDS = 0.1
# Rows that may wait, however short the tasks.
MAX_PREFETCH = 500
# Coroutines at once. A sleeping one costs some kilobytes, and a connection if it uses the ORM.
MAX_COROUTINES = 1000
# Seconds after which a thread that was idle trusts its old connections no more.
MAX_IDLE = 10.0
# Threads written off, and not come back, with which a process has seen its best days: as many as
# it has, and no fewer than this, for a single one harms nobody.
MIN_STUCK = 4


class Pool:
    """Runs attempts in `threads` threads, coroutines on one event loop.

    `done` is called with each attempt's claim and outcome, in the thread that ran it; `hungry`
    whenever there may be room for more; `worn_out` when too many threads were written off.
    """

    def __init__(
        self,
        job: Job,
        threads: int,
        done: Callable[[Attempt, Outcome], None],
        hungry: Callable[[], None],
        worn_out: Callable[[], None],
    ) -> None:
        self.job, self.threads = job, threads
        self._done, self._hungry, self._worn_out = done, hungry, worn_out
        self._waiting: SimpleQueue[Attempt | None] = SimpleQueue()
        # Every attempt from its submission to its end: one that a thread has just taken off the
        # queue is not lost from sight.
        self._held: set[Attempt] = set()
        self._loops = Loops(self._accompany)
        self._deadlines = Deadlines(self._interrupt, self._write_off)
        # Moving average of the seconds a thread spends on a task. Starts high: nothing is
        # prefetched before tasks have shown that they are short. Racing threads only blur it.
        self._average = PREFETCH_SECONDS
        # When a thread last took a row, on the monotonic clock.
        self._taken = 0.0
        # When a connection of this process was last found broken, on the monotonic clock.
        self._broken = 0.0
        # How many may wait when more are wanted.
        self._low = 0
        self._replacing = threading.Lock()
        # Threads whose place others have taken.
        self._stuck: list[threading.Thread] = []
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
    def stuck(self) -> int:
        """How many threads, loops and coroutines were written off and have not come back."""
        return sum(thread.is_alive() for thread in self._stuck) + self._loops.stuck

    @property
    def claims(self) -> list[Claim]:
        """The claims of all attempts that have not ended. Any thread may ask."""
        return [attempt.claim for attempt in tuple(self._held)]

    def room(self) -> int:
        """Return how many more rows to claim now; 0 while enough wait."""
        if len(self._loops) >= MAX_COROUTINES:
            return 0
        idle = self.threads - (self.running - len(self._loops))
        # One more row a thread than its task in hand, if that is worth having.
        stock = int(self.threads * (PREFETCH_SECONDS / self._average - 1))
        stock = max(0, min(stock, MAX_PREFETCH))
        # A small claim costs as much as a large one: wait until half of the stock is used up.
        self._low = stock // 2
        waiting = self._waiting.qsize()
        return max(0, idle + stock - waiting) if waiting <= self._low else 0

    def submit(self, claims: Iterable[Claim]) -> None:
        """Run the claimed rows, in their order."""
        self._taken = time.monotonic()
        for claim in claims:
            attempt = Attempt(self.job, claim)
            self._held.add(attempt)
            self._waiting.put(attempt)

    def overdue(self) -> list[Attempt]:
        """Take back and return the waiting rows if no thread has come for one for too long.

        Some neighbour takes longer than tasks did before; another runner may be free.
        """
        if self._waiting.empty() or time.monotonic() - self._taken < PREFETCH_SECONDS:
            return []
        self._average = max(self._average, PREFETCH_SECONDS)
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

    def warn(self) -> None:
        """Let running tasks that ask know that the runner stops, or was given up."""
        for attempt in tuple(self._held):
            attempt.ask(TaskAbandoned())

    def abandon(self) -> list[tuple[Attempt, Outcome]]:
        """Return the outcomes with which running attempts are given up; theirs comes too late."""
        given_up = [attempt for attempt in tuple(self._held) if attempt.close()]
        self.let_go(given_up)
        return [(attempt, attempt.abandon()) for attempt in given_up]

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

        First it brings to its end the attempt that was `left` by the thread whose place it takes.
        """
        try:
            if left is not None:
                self._give_up(left)
            ended = time.monotonic()
            while (attempt := self._waiting.get()) is not None:
                self._taken = began = time.monotonic()
                if ended < max(self._broken, began - MAX_IDLE):
                    connections.close_all()
                if attempt.is_async:
                    self._loops.start(attempt)
                elif not self._complete(attempt):
                    return
                ended = time.monotonic()
                self._average += (ended - began - self._average) / 16
                if self._waiting.qsize() <= self._low:
                    self._hungry()
        finally:
            connections.close_all()

    def _complete(self, attempt: Attempt) -> bool:
        """Run the attempt; return False if another thread has taken the place of this one."""
        attempt.begin()
        self._deadlines.watch(attempt)
        if self._end(attempt, self._run(attempt)):
            return True
        with self._replacing:
            return threading.current_thread() in self._threads

    def _run(self, attempt: Attempt) -> Outcome:
        try:
            outcome = attempt.run()
            leave_clean(attempt.claim.task_path, keep=True)
        except BaseException as error:  # what run() does not expect; the thread must live on
            return attempt.broken(error)
        return outcome

    def _end(self, attempt: Attempt, outcome: Outcome) -> bool:
        """Pass the outcome on; return False if the attempt was given up meanwhile."""
        self._deadlines.forget(attempt)
        if attempt.error is not None:
            # Its text is in the outcome. Its frames have all that the task had, and the attempt.
            attempt.error.__traceback__ = None
        if not attempt.close():
            return False
        self._done(attempt, outcome)
        # Only now, so that the attempt is somewhere at every moment.
        self._held.discard(attempt)
        return True

    async def _accompany(self, attempt: Attempt) -> None:
        attempt.begin()
        self._deadlines.watch(attempt)
        try:
            outcome = await attempt.arun()
        except BaseException as error:  # what arun() does not expect; the row must not stay RUNNING
            outcome = attempt.broken(error)
        self._end(attempt, outcome)
        # Only now, so that an attempt which is written off is known as a coroutine's.
        self._loops.forget(attempt)
        self._hungry()

    # Ending what does not end

    def _interrupt(self, attempt: Attempt) -> None:
        if attempt in self._loops:
            self._loops.tell(attempt)
        else:
            attempt.call.interrupt()

    def _write_off(self, attempt: Attempt) -> None:
        """Wait no longer for an attempt that was interrupted: its thread or loop is replaced."""
        thread = self._successor(attempt)
        if thread is None:
            return
        logger.error(
            "%s %s does not end; it is written off", attempt.claim.task_path, attempt.claim.id
        )
        thread.start()
        if self.stuck >= max(MIN_STUCK, self.threads):
            self._worn_out()

    def _successor(self, attempt: Attempt) -> threading.Thread | None:
        """Return the thread, not yet started, that settles the attempt; None if it has ended."""
        # Held by a thread that comes back just now, while it asks whether it has been replaced.
        with self._replacing:
            if not attempt.close():
                return None
            if attempt in self._loops:
                self._loops.write_off(attempt)
                return threading.Thread(target=self._bury, args=(attempt,), daemon=True)
            [old] = [thread for thread in self._threads if thread.ident == attempt.thread]
            new = threading.Thread(target=self._work, args=(attempt,), name=old.name, daemon=True)
            self._threads[self._threads.index(old)] = new
            self._stuck = [thread for thread in self._stuck if thread.is_alive()] + [old]
            return new

    def _bury(self, attempt: Attempt) -> None:
        """Settle a coroutine that was written off. The thread's whole life."""
        try:
            self._give_up(attempt)
        finally:
            connections.close_all()

    def _give_up(self, attempt: Attempt) -> None:
        """Settle an attempt that was written off, in its stead."""
        twin = attempt
        try:
            twin, outcome = attempt.write_off()
            leave_clean(attempt.claim.task_path, keep=True)
        except BaseException as error:  # as for any other attempt
            outcome = twin.broken(error)
        self._done(twin, outcome)
        self._held.discard(attempt)
        self._hungry()
