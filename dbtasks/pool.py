"""The threads and the event loop in which attempts run.

Owns concurrency: how many run at once, how many claimed ones wait, and stopping. Never touches
the database: claims come in, outcomes go out through a callback.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue

from django.db import connections

from .execute import Attempt, Job, leave_clean
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


class Pool:
    """Runs attempts in `threads` threads, coroutines on one event loop.

    `done` is called with each attempt's claim and outcome, in the thread that ran it; `hungry`
    whenever there may be room for more.
    """

    def __init__(
        self,
        job: Job,
        threads: int,
        done: Callable[[Attempt, Outcome], None],
        hungry: Callable[[], None],
    ) -> None:
        self.job, self.threads = job, threads
        self._done, self._hungry = done, hungry
        self._waiting: SimpleQueue[Attempt | None] = SimpleQueue()
        # Every attempt from its submission to its end: one that a thread has just taken off the
        # queue is not lost from sight.
        self._held: set[Attempt] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_lock = threading.Lock()
        self._stopped = False
        self._coroutines: set[asyncio.Task[None]] = set()
        # Moving average of the seconds a thread spends on a task. Starts high: nothing is
        # prefetched before tasks have shown that they are short. Racing threads only blur it.
        self._average = PREFETCH_SECONDS
        # When a thread last took a row, on the monotonic clock.
        self._taken = 0.0
        # When a connection of this process was last found broken, on the monotonic clock.
        self._broken = 0.0
        # How many may wait when more are wanted.
        self._low = 0
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
    def claims(self) -> list[Claim]:
        """The claims of all attempts that have not ended. Any thread may ask."""
        return [attempt.claim for attempt in tuple(self._held)]

    def room(self) -> int:
        """Return how many more rows to claim now; 0 while enough wait."""
        if len(self._coroutines) >= MAX_COROUTINES:
            return 0
        idle = self.threads - (self.running - len(self._coroutines))
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

    def abandon(self) -> list[tuple[Attempt, Outcome]]:
        """Return the outcomes with which running attempts are given up; theirs comes too late."""
        given_up = [attempt for attempt in tuple(self._held) if attempt.close()]
        return [(attempt, attempt.abandon()) for attempt in given_up]

    def stop(self) -> None:
        """Let the threads and the loop end once they have nothing to do."""
        for _ in self._threads:
            self._waiting.put(None)
        self._stopped = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._cancel)

    def join(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the threads to end; return whether they have."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        """Run attempts until told to end. The thread keeps its connections between tasks."""
        try:
            ended = time.monotonic()
            while (attempt := self._waiting.get()) is not None:
                self._taken = began = time.monotonic()
                if ended < max(self._broken, began - MAX_IDLE):
                    connections.close_all()
                if attempt.is_async:
                    self._start(attempt)
                else:
                    self._end(attempt, self._run(attempt))
                ended = time.monotonic()
                self._average += (ended - began - self._average) / 16
                if self._waiting.qsize() <= self._low:
                    self._hungry()
        finally:
            connections.close_all()

    def _run(self, attempt: Attempt) -> Outcome:
        try:
            outcome = attempt.run()
            leave_clean(attempt.claim.task_path, keep=True)
        except BaseException as error:  # what run() does not expect; the thread must live on
            return attempt.broken(error)
        return outcome

    def _end(self, attempt: Attempt, outcome: Outcome) -> None:
        """Pass the outcome on, unless the attempt was given up meanwhile."""
        if attempt.close():
            self._done(attempt, outcome)
        # Only now, so that the attempt is somewhere at every moment.
        self._held.discard(attempt)

    def _start(self, attempt: Attempt) -> None:
        """Run the attempt's coroutine on the event loop, which starts with the first one."""
        with self._loop_lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(
                    target=self._live, args=(self._loop,), name="dbtasks-loop", daemon=True
                ).start()
        self._loop.call_soon_threadsafe(self._spawn, attempt)

    def _cancel(self) -> None:
        """Cancel the coroutines that were given up, and stop the loop once they have heard."""
        assert self._loop is not None
        for task in tuple(self._coroutines):
            task.cancel()
        self._loop.call_later(0.1 if self._coroutines else 0, self._loop.stop)

    def _spawn(self, attempt: Attempt) -> None:
        assert self._loop is not None
        task = self._loop.create_task(self._accompany(attempt))
        # The loop itself keeps only a weak reference.
        self._coroutines.add(task)
        task.add_done_callback(self._coroutines.discard)

    async def _accompany(self, attempt: Attempt) -> None:
        try:
            outcome = await attempt.arun()
        except BaseException as error:  # what arun() does not expect; the row must not stay RUNNING
            outcome = attempt.broken(error)
        self._end(attempt, outcome)
        self._hungry()

    def _live(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the event loop until the pool stops, then close it. The thread's whole life."""
        while not self._stopped:
            try:
                loop.run_forever()
            except BaseException:  # asyncio lets sys.exit() in a coroutine's child end the loop
                logger.exception("A task broke the event loop; it goes on")
        loop.close()
