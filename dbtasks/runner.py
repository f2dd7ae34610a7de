"""``Runner``: the loop that claims due rows and hands them to threads.

Owns the order of things from start to stop. Never runs task code, nor SQL of its own: the pool
does the one, the store the other.
"""

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from django.db import Error, connections, reset_queries
from django.tasks import DEFAULT_TASK_QUEUE_NAME, TaskContext, TaskResult, task_backends

from . import registry, store, wakeup
from .backend import DatabaseBackend, make_worker_id
from .exceptions import RunnerError
from .execute import Attempt
from .finisher import FIRST_PAUSE, LONGEST_PAUSE, Ended, Finisher, pause_after
from .liveness import Heart, whereabouts
from .maintenance import Maintenance
from .models import FAILED, READY, SUCCESSFUL
from .patience import DEADLINE, MOST, Within, prompt
from .pool import PREFETCH_SECONDS, Pool
from .quarantine import Quarantine
from .store import workers
from .task import task
from .ticker import Ticker

logger = logging.getLogger("dbtasks.runner")

# Outcomes that may wait for the database before claiming pauses: more would only be more to lose.
MAX_BACKLOG = 1000
# Polls are so many times rarer while hints arrive.
HINTED = 5
# Seconds between two polls right after work was found, where no hints arrive; a part of the time
# since then later on.
SHORTEST_DELAY, DELAY_GROWTH = 0.1, 1 / 30
# Seconds between two looks, while tasks run, whether one of them was cancelled.
CANCEL_INTERVAL = 1.0
# Part of the time that looks at the whole index may take while rows are claimed, and the seconds
# after which there is one in any case.
WHOLE_SHARE, WHOLE_INTERVAL = 0.1, 1.0
# Seconds between a claim that was not filled and the next: that would find little, and meanwhile
# keep the interpreter from the thread that starts a row (measured 0.3 ms to its first line).
BREATH = 0.001
# Seconds of a claim that has read much to find little.
SLOW_CLAIM = 0.01


class Runner:
    """Claims due rows of one backend and runs them in `workers` threads.

    `queues` limits it to those queues; `loop_delay` is the longest idle wait between two looks at
    the database, in seconds; without `init_periodic` it fires no schedules; `grace` is how long
    running tasks may take after stop(). With `drain` it stops when nothing is due or running, with
    `max_tasks` after so many tasks; and in any case, `worn_out`, when too many threads hang in
    tasks that were written off. `report` is called with each settled batch, in the finisher's
    thread; `joined` with each worker id that this runner takes, before it claims in that name.
    """

    def __init__(
        self,
        workers: int = 4,
        worker_id: str | None = None,
        backend: str = "default",
        loop_delay: float = 1.0,
        init_periodic: bool = True,
        queues: Iterable[str] | None = None,
        *,
        grace: float = 30.0,
        drain: bool = False,
        max_tasks: int | None = None,
        report: Callable[[Sequence[Ended]], None] | None = None,
        joined: Callable[[str], None] | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers!r}.")
        if loop_delay <= 0:
            raise ValueError(f"loop_delay must be above 0 seconds, not {loop_delay!r}.")
        if isinstance(queues, str):
            raise ValueError(f"queues must be a list of names, not {queues!r}; None serves all.")
        self.workers, self.loop_delay, self.grace = workers, loop_delay, grace
        self.queues = None if queues is None else tuple(dict.fromkeys(queues))
        if self.queues == ():
            raise ValueError("queues is empty: name at least one, or None to serve all.")
        self.backend, self.init_periodic = backend, init_periodic
        self.name = worker_id
        self.worker_id = make_worker_id(worker_id)
        self.drain, self.max_tasks = drain, max_tasks
        # Set once run() is about to claim; set when run() has ended.
        self.ready, self.finished = threading.Event(), threading.Event()
        # How many attempts were settled, and failed, since run() began; how many were given up.
        self.done = self.failed = self.abandoned = 0
        # Whether it has stopped because too many threads hang in tasks that were written off.
        self.worn_out = False
        self._report, self._joined = report, joined
        self._stopping, self._aborting = threading.Event(), threading.Event()
        self._bell = threading.Event()
        # When to look at the queue next, and when work was last found, on the monotonic clock.
        self._look_at = self._found = 0.0
        # When to look once more after a hint, on the same clock.
        self._again_at = math.inf
        # Whether a claim is on its way from the database to the pool.
        self._claiming = False
        # Whether nothing is claimed because too many outcomes wait.
        self._is_full = False
        self._quarantine = Quarantine()
        self._settled = threading.Condition()
        self._pool: Pool | None = None
        self._finisher: Finisher | None = None
        self._ticker: Ticker | None = None

    # Called from any thread

    def stop(self) -> None:
        """Ask run() to claim no more, finish what runs within `grace`, and return.

        Asked again, it waits for nothing: running tasks are given back to be started again.
        Asked before run(), that returns as soon as it is called.
        """
        if self._stopping.is_set():
            self._aborting.set()
        self._stopping.set()
        self._bell.set()

    def wake(self, again: float = 0.0) -> None:
        """Look for work at once, and once more after `again` seconds if that is not 0."""
        self._likely = True
        if again:
            # Of its own, so that no look before it takes its place; the last one asked for counts,
            # because each of the others has had a claim since.
            self._again_at = time.monotonic() + again
        self._ring()

    def miss(self, worker_id: str) -> None:
        """Give back at once what that worker held: its process has ended. Once this is ready."""
        self._heart.miss(worker_id)

    def glance(self) -> None:
        """Look whether there is work: something was written, by whomever."""
        self._look_at = 0.0
        self._ring()

    @property
    def running(self) -> int:
        """How many attempts have started and not ended."""
        return 0 if self._pool is None else self._pool.running

    @property
    def stuck(self) -> int:
        """How many threads and coroutines were written off and have not come back."""
        return 0 if self._pool is None else self._pool.stuck

    def wait(self, timeout: float | None = None) -> bool:
        """Block until nothing is due, running or unsettled; return False if that took too long."""
        return self._wait(self._is_idle, timeout)

    def wait_for(self, result: TaskResult, timeout: float | None = None) -> TaskResult:
        """Block until that task has finished, wherever it runs; return its result, refreshed.

        Raise TimeoutError if it has not after `timeout` seconds.
        """

        def ended() -> bool:
            result.refresh()
            return result.is_finished

        if not self._wait(ended, timeout):
            raise TimeoutError(f"Task {result.id} is {result.status} after {timeout} seconds.")
        return result

    def _wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._settled:
            while not condition():
                left = 0.05 if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return False
                self._settled.wait(min(left, 0.05))
        return True

    def _is_idle(self) -> bool:
        if self._pool is None:
            return False
        # In the order in which a row passes: it is seen in one of the places, or it is settled.
        look = self._look()
        return not (look.due or look.suspect) and not self._claiming and self._is_empty()

    def _is_empty(self) -> bool:
        pool, finisher = self._pool, self._finisher
        return (pool is None or pool.idle) and (finisher is None or not finisher.backlog)

    # The loop

    def run(self) -> None:
        """Run tasks until stop(), in this thread; may be called again once it has ended.

        Raise ImproperlyConfigured or RunnerError if it cannot start.
        """
        self._begin()
        try:
            with prompt(self._db):
                self._loop()
        finally:
            self._end()

    def _begin(self) -> None:
        backend = check_backend(self.backend)
        self._db = backend.database
        self.worker_id = make_worker_id(self.name)
        self.finished.clear()
        self.done = self.failed = self.abandoned = 0
        self.worn_out = False
        self._claimed, self._likely = 0, True
        self._look_at, self._again_at = 0.0, math.inf
        # When to ask next whether something was cancelled.
        self._hear_at = 0.0
        # The last row claimed, and when to look again at what is older than it.
        self._beyond: store.Claim | None = None
        self._whole_at = 0.0
        self._quarantine = Quarantine()
        registry.discover()
        self._ticker = Ticker(backend) if self.init_periodic else None
        self._service = backend
        self._heart = Heart(
            self._db,
            self.worker_id,
            self.backend,
            backend.config.worker_timeout,
            backend.retain_failed,
            backend.may_retry_lost,
            lost=self._join_anew,
            look=self.glance,
            held=self._held,
        )
        self._heart.start()
        self._finisher = Finisher(self._db, self._on_settled, self._on_eased)
        self._pool = Pool(
            backend.job(self.worker_id),
            self.workers,
            self._finisher.put,
            self._ring,
            self._wear_out,
        )
        self._maintenance = Maintenance(self._db, self.backend)
        wakeup.listen(self.backend, self)
        self._watcher = None if self.drain else wakeup.watch(self._db, self.backend, self)
        self._tell_joined(self.worker_id)
        if self._ticker is not None:
            if self.drain:
                self._ticker.catch_up()
            else:
                self._ticker.start()
        self.ready.set()

    def _loop(self) -> None:
        assert self._pool is not None
        pause, tries = FIRST_PAUSE, 1
        while not self._stopping.is_set():
            try:
                self._bell.clear()
                with Within(connections[self._db], DEADLINE * tries):
                    timeout = self._tick()
                pause, tries = FIRST_PAUSE, 1
            except Exception as error:  # whatever the database raises: it comes back, so do we
                self._pool.distrust()
                # What was asked of the database is still to be done.
                self._likely, self._look_at = True, 0.0
                if not pause_after(error, self._db, pause, self._stopping):
                    return
                pause, timeout = min(pause * 2, LONGEST_PAUSE), 0
                tries = min(tries + 1, MOST)
            if timeout:
                self._bell.wait(timeout)

    def _tick(self) -> float:
        """Do what there is to do; return the seconds to sleep, unless woken."""
        assert self._pool is not None
        # With DEBUG a connection would remember thousands of statements.
        reset_queries()
        if (now := time.monotonic()) >= min(self._look_at, self._again_at):
            # Before the look: a glance that is asked for during it must not be forgotten.
            self._look_at = math.inf
            if now >= self._again_at:
                self._again_at = math.inf
            wait = self._promote()
            self._look_at = min(self._look_at, time.monotonic() + wait)
        until_heard = self._hear()
        room = self._room()
        if room and self._quarantine.has_turn(self._is_empty()):
            self._quarantine.enter(self._claim_suspect())
            return 0
        is_closed = self._quarantine.is_closed()
        if room and self._likely and not is_closed:
            # Before the claim: a row that is committed after it must be looked for again.
            self._likely = False
            if self._claim(room):
                self._likely = True
                return 0
        elif late := self._withdraw():
            self._give_back(late)
            self._likely = True
        if self._is_over():
            self._stopping.set()
            return 0
        until_look = max(0.0, min(self._look_at, self._again_at) - time.monotonic())
        until_look = min(until_heard, until_look)
        is_watching = is_closed or self._pool.waiting
        return min(until_look, PREFETCH_SECONDS / 2) if is_watching else until_look

    def _hear(self) -> float:
        """Pass on what was cancelled; return the seconds until the next look, if anything runs."""
        assert self._pool is not None
        if self._pool.idle:
            return math.inf
        now = time.monotonic()
        if now >= self._hear_at:
            self._hear_at = now + CANCEL_INTERVAL
            self._pool.cancel(store.cancel_requests(self._db, self.worker_id))
        return self._hear_at - now

    def _wear_out(self) -> None:
        """Stop: what still hangs may hold locks and memory. Runs in the pool's thread for that."""
        if not self._stopping.is_set():
            self.worn_out = True
            # Before it is said: who reads that may count on it.
            self._stopping.set()
            logger.error("%d threads hang in tasks that were written off; stopping", self.stuck)
            self._ring()

    def _withdraw(self) -> list[Attempt]:
        """Take back claimed rows that this runner should not start, or not soon."""
        assert self._pool is not None
        return self._pool.overdue() if self._heart.is_trusted else self._pool.withdraw()

    def _join_anew(self) -> None:
        """Go on as a new worker: others have given this one up. Runs in the heart's thread.

        What runs is asked to stop; if the row has moved on, the fence drops the outcome.
        """
        assert self._pool is not None
        # Before the new name is used: what is claimed in that may run.
        self._pool.warn()
        worker_id = make_worker_id(self.name)
        workers.register(self._db, worker_id, self.backend, *whereabouts())
        self._tell_joined(worker_id)
        self._pool.job = self._service.job(worker_id)
        self.worker_id = self._heart.worker_id = worker_id

    def _tell_joined(self, worker_id: str) -> None:
        if self._joined is not None:
            self._joined(worker_id)

    def _held(self) -> set[tuple[Any, int]] | None:
        """Return key and fence of all claims in hand, None while one is on its way. Any thread."""
        if self._claiming or self._pool is None or self._finisher is None:
            return None
        # In the order in which a row passes.
        return {
            (claim.id, claim.fence)
            for part in (self._pool, self._finisher)
            for claim in part.claims
        }

    def _room(self) -> int:
        assert self._pool is not None and self._finisher is not None
        # Before the look: a batch that is settled during it must ring.
        self._is_full = True
        self._is_full = self._finisher.backlog > MAX_BACKLOG
        if self._is_full or not self._heart.is_trusted:
            return 0
        room = self._pool.room()
        return room if self.max_tasks is None else min(room, self.max_tasks - self._claimed)

    def _claim(self, limit: int) -> bool:
        """Claim up to so many rows and hand them to the pool; return whether more may be due."""
        assert self._pool is not None
        began = time.monotonic()
        beyond = self._beyond if began < self._whole_at else None
        self._claiming = True
        try:
            claims = store.claim(
                self._db,
                self.backend,
                self.worker_id,
                limit,
                self.queues,
                registered=True,
                beyond=beyond,
            )
            logger.debug("Claimed %d of at most %d rows", len(claims), limit)
            self._submit(claims)
        finally:
            self._claiming = False
        now = time.monotonic()
        if claims:
            self._found, self._beyond = now, claims[-1]
            # What was planned while there was nothing to do is too late now.
            self._look_at = min(self._look_at, now + self._delay())
        self._whole_at = self._whole_after(now, now - began, beyond is None, limit - len(claims))
        if 0 < len(claims) < limit:
            time.sleep(BREATH)
        return bool(claims) or beyond is not None

    def _whole_after(self, now: float, spent: float, was_whole: bool, missing: int) -> float:
        """Return when to claim from the head of the index again, past all its dead entries.

        After 300,000 rows a claim took 2.5 ms from the head, 0.9 ms beyond them; with none, 1 ms
        more beyond, for the larger statement.
        """
        if missing:
            # Before it is said that nothing is due; if that takes long, not again until something
            # new is.
            return math.inf if was_whole and spent > SLOW_CLAIM else 0.0
        return now + spent / WHOLE_SHARE if was_whole else min(self._whole_at, now + WHOLE_INTERVAL)

    def _claim_suspect(self) -> bool:
        """Claim a row that must run alone and hand it to the pool; return whether there was one."""
        self._claiming = True
        try:
            claim = store.claim_suspect(
                self._db, self.backend, self.worker_id, self.queues, registered=True
            )
            if claim is not None:
                logger.info(
                    "%s %s starts alone: two runners were lost with it", claim.task_path, claim.id
                )
                self._submit([claim])
                self._found = time.monotonic()
        finally:
            self._claiming = False
        return claim is not None

    def _submit(self, claims: list[store.Claim]) -> None:
        assert self._pool is not None
        self._pool.submit(claims)
        self._claimed += len(claims)

    def _promote(self) -> float:
        """Make due what has come due; return the seconds until the next look."""
        look = self._look()
        if look.next_due is not None and look.next_due <= 0:
            store.promote(self._db, self.backend)
            self._likely = True
            return 0
        if look.due:
            self._likely = True
        self._quarantine.due = look.suspect or self._quarantine.occupied
        delay = self._delay()
        return delay if look.next_due is None else min(delay, look.next_due)

    def _delay(self) -> float:
        """Return the seconds to the next look: rare where hints arrive, frequent after work."""
        now, delay = time.monotonic(), self.loop_delay
        if self._watcher is not None and self._watcher.is_healthy:
            delay *= HINTED
        else:
            delay = min(delay, max(SHORTEST_DELAY, (now - self._found) * DELAY_GROWTH))
        # Jitter keeps runners that started together from polling together.
        return delay * random.uniform(0.75, 1.0)

    def _look(self) -> store.Look:
        look = store.look(self._db, self.backend, self.queues)
        logger.debug("Looked: due %s, next in %s s", look.due, look.next_due)
        return look

    def _is_over(self) -> bool:
        if not self._is_empty():
            return False
        if self.max_tasks is not None and self._claimed >= self.max_tasks:
            return True
        # What a lost runner held is due as soon as the heart has looked.
        is_hopeful = self._likely or self._quarantine.due or not self._look_at
        return self.drain and not is_hopeful and self._heart.has_looked

    def _ring(self) -> None:
        # Reading the flag costs a tenth of setting it, and a busy loop is rung all the time.
        if not self._bell.is_set():
            self._bell.set()

    def _on_settled(self, batch: Sequence[Ended]) -> None:
        """Count and tell. Runs in the finisher's thread."""
        statuses = [outcome.status for _, outcome in batch]
        if READY in statuses:
            # Whoever is free may start it now, or has to know when it will be due.
            self.glance()
            wakeup.notify(self._db, self.backend)
            # Of what was given back before it started there is nothing to tell.
            batch = [(a, outcome) for a, outcome in batch if outcome.attempt == a.claim.attempt]
        self.failed += (failed := statuses.count(FAILED))
        self.done += statuses.count(SUCCESSFUL) + failed
        if self._report is not None:
            self._report(batch)
        with self._settled:
            self._settled.notify_all()

    def _on_eased(self) -> None:
        """Let the loop see that fewer outcomes wait, if it may wait for that. As above."""
        is_ending = self._stopping.is_set() or self.drain or self.max_tasks is not None
        if is_ending or self._is_full or self._quarantine.due:
            self._ring()

    # Stopping

    def _end(self) -> None:
        """Give back what has not started, wait for what has, settle it, and leave no thread."""
        assert self._pool is not None and self._finisher is not None
        wakeup.forget(self.backend, self)
        if self._ticker is not None:
            self._ticker.stop(1.0)
        deadline = time.monotonic() + self.grace
        try:
            self._give_back(self._pool.withdraw())
            self._pool.warn()
            while not self._pool.idle and not self._aborting.is_set():
                if (left := deadline - time.monotonic()) <= 0:
                    break
                self._bell.wait(min(left, 0.05))
                self._bell.clear()
            for attempt, outcome in self._pool.abandon():
                self.abandoned += 1
                self._finisher.put(attempt, outcome)
        finally:
            self._pool.stop()
            # At least a moment: an outcome in hand is worth more than a quick exit.
            left = 0.0 if self._aborting.is_set() else deadline - time.monotonic()
            is_settled = self._finisher.stop(max(1.0, left))
            self._maintenance.stop(1.0)
            self._leave(is_settled)
            if self._watcher is not None:
                self._watcher.stop(1.0)
            self._pool.join(1.0 if not self.abandoned else 0.0)
            connections.close_all()
            self._stopping.clear()
            self._aborting.clear()
            self.ready.clear()
            self.finished.set()

    def _leave(self, is_settled: bool) -> None:
        """Stop beating; be forgotten, or be missed if some rows are still in this worker's name."""
        self._heart.stop(1.0)
        if is_settled:
            with suppress(Error), Within(connections[self._db]):
                workers.leave(self._db, self.worker_id)

    def _give_back(self, attempts: list[Attempt]) -> None:
        """Let others start what this runner has not; the finisher sees to it, however long."""
        assert self._pool is not None and self._finisher is not None
        for attempt in attempts:
            self._finisher.put(attempt, store.unstarted(self._db, attempt.claim))
        self._pool.let_go(attempts)
        self._claimed -= len(attempts)


def check_backend(alias: str) -> DatabaseBackend:
    """Return the backend of that alias; raise RunnerError if no runner can serve it.

    Raise ImproperlyConfigured if its options are wrong.
    """
    if alias not in task_backends.settings:
        known = ", ".join(map(repr, task_backends.settings))
        raise RunnerError(f"There is no backend {alias!r} in TASKS. Choose one of {known}.")
    backend = task_backends[alias]
    if not isinstance(backend, DatabaseBackend):
        raise RunnerError(
            f"TASKS[{alias!r}] uses {type(backend).__name__}; a runner serves DatabaseBackend only."
        )
    if backend.config.immediate:
        raise RunnerError(f"TASKS[{alias!r}] is immediate: its tasks run inside enqueue().")
    return backend


def _home() -> dict[str, Any]:
    """Return backend and queue of our own task: the first of ours, and a queue it allows."""
    for alias in task_backends:
        backend = task_backends[alias]
        if isinstance(backend, DatabaseBackend):
            allowed = sorted(backend.queues) or [DEFAULT_TASK_QUEUE_NAME]
            usual = DEFAULT_TASK_QUEUE_NAME in allowed
            return {
                "backend": alias,
                "queue_name": DEFAULT_TASK_QUEUE_NAME if usual else allowed[0],
            }
    return {}


@task(takes_context=True, **_home())
def cleanup(context: TaskContext, seconds: float) -> int:
    """Delete rows of its backend that finished more than `seconds` ago; return how many."""
    alias = context.task_result.backend
    backend: Any = task_backends[alias]
    db = backend.database
    return sum(store.purge_older(db, timedelta(seconds=seconds), backend=alias))
