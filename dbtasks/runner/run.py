"""One life of a runner, from its registration to its end.

Owns the order of things: what starts first, what each round does, and how it stops. Never runs task
code nor SQL of its own: the pool does the one, the store the other.
"""

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from django.db import Error, connections

from .. import rescue, wakeup
from ..backend import check_backend
from ..base import registry
from ..base.result import FAILED, READY, SUCCESSFUL
from ..db.service import Pauses, pause_after
from ..db.timeouts import CALL_TIMEOUT, MAX_FACTOR, bounded_connect, call_timeout
from ..events import CLAIMED, ENDED, JOINED, RESCUED, Events
from ..execution.settling import Ended, due_places
from ..liveness.heartbeat import Heartbeat
from ..liveness.identity import make_worker_id, process_identity
from ..models import ScheduledTask
from ..options.runner import RunnerOptions
from ..store import workers
from .fetcher import Fetcher
from .outcome_writer import OutcomeWriter
from .pool import Pool
from .purger import Purger
from .rounds import Rounds
from .scheduler import Scheduler

logger = logging.getLogger("dbtasks.runner")


class Run:
    """One life of a runner. Everything that it consists of is there once it is made.

    `stopping` and `aborting` ask it to end; `settled` is notified after each batch of outcomes.
    Raise ImproperlyConfigured or RunnerError if it cannot start.
    """

    def __init__(
        self,
        options: RunnerOptions,
        events: Events,
        stopping: threading.Event,
        aborting: threading.Event,
        settled: threading.Condition,
    ) -> None:
        self._options, self._events, self._settled = options, events, settled
        self._stopping, self._aborting = stopping, aborting
        # How many attempts were settled, failed, and released at the end of the grace.
        self.done = self.failed = self.released = 0
        # Whether it stops because too many threads hang in abandoned tasks.
        self.exhausted = False
        self._wakeup = threading.Event()
        self._backend = backend = check_backend(options.backend)
        self._db = backend.database
        registry.discover()
        self._schedulers = [Scheduler(backend)] if options.init_periodic else []
        self._heartbeat = self._new_heartbeat()
        self._writer = OutcomeWriter(self._db, self._on_settled, self._on_backlog_written)
        self._pool = self._new_pool()
        self._fetcher = self._new_fetcher()
        self._rounds = Rounds(
            self._db,
            options,
            stopping,
            fetcher=self._fetcher,
            heartbeat=self._heartbeat,
            pool=self._pool,
            writer=self._writer,
        )
        self._purger = Purger(self._db, backend.alias)
        # A drain waits for nobody. Elsewhere there is one, if the database can have it.
        self._watchers = [] if options.drain else wakeup.watchers_of(self._db, backend.alias, self)

    def _new_heartbeat(self) -> Heartbeat:
        return Heartbeat(
            self._db,
            make_worker_id(self._options.worker_id),
            self._backend.alias,
            self._backend.config.worker_timeout,
            rescue=self._rescue,
            release_orphans=partial(rescue.release_orphans, self._backend),
            on_evicted=self._register_again,
            poll_now=self.poll_now,
            held_claims=self._held_claims,
        )

    def _new_pool(self) -> Pool:
        return Pool(
            self._backend.context(self._heartbeat.worker_id),
            self._options.workers,
            self._events,
            on_outcome=self._writer.put,
            on_capacity=self._wake_loop,
            on_exhausted=self._on_exhausted,
        )

    def _new_fetcher(self) -> Fetcher:
        return Fetcher(
            self._backend,
            self._pool,
            queues=self._options.queues,
            loop_delay=self._options.loop_delay,
            hears_others=self._hears_others,
            on_claimed=partial(self._events.publish, CLAIMED),
        )

    # Called from any thread

    @property
    def worker_id(self) -> str:
        """Its name among workers; a new one when it was declared lost."""
        return self._pool.context.worker_id

    @property
    def running(self) -> int:
        """How many attempts have started and not ended."""
        return self._pool.running

    @property
    def abandoned_threads(self) -> int:
        """How many abandoned threads and coroutines have not come back."""
        return self._pool.abandoned_threads

    def wake(self, recheck_after: float = 0.0) -> None:
        """Claim now, and once more after so many seconds if that is not 0."""
        self._fetcher.wake(recheck_after)
        self._wake_loop()

    def poll_now(self) -> None:
        """Look at the queue now: some process has written to the database."""
        self._fetcher.poll_now()
        self._wake_loop()

    def declare_lost(self, worker_id: str) -> None:
        """Rescue at once what that worker held: its process has ended."""
        self._heartbeat.declare_lost(worker_id)

    def notice_stop(self) -> None:
        """Let the loop see that it was asked to stop."""
        self._wakeup.set()

    def is_idle(self) -> bool:
        """Tell whether nothing is due, running or unsettled."""
        # In the order in which a row passes: it is seen in one of the places, or it is settled.
        found = self._fetcher.peek()
        return (
            not (found.due or found.quarantined or self._fetcher.is_claiming)
            and self._rounds.is_empty
        )

    def _hears_others(self) -> bool:
        """Tell whether wake-ups of other processes arrive."""
        return any(watcher.is_healthy for watcher in self._watchers)

    def _held_claims(self) -> set[tuple[Any, int]] | None:
        """Return id and fence of all claims in hand, None while one is on its way."""
        if self._fetcher.is_claiming:
            return None
        # In the order in which a row passes.
        return {(c.id, c.fence) for part in (self._pool, self._writer) for c in part.claims}

    def _wake_loop(self) -> None:
        # Reading the flag costs a tenth of setting it, and a busy loop is woken all the time.
        if not self._wakeup.is_set():
            self._wakeup.set()

    # The loop

    def live(self, ready: threading.Event) -> None:
        """Run tasks until asked to stop, in this thread; set `ready` once it claims."""
        try:
            self._start()
            ready.set()
            with bounded_connect(self._db):
                self._loop()
        finally:
            self._end()

    def _start(self) -> None:
        for service in (self._heartbeat, self._writer, self._purger, *self._watchers):
            service.start()
        wakeup.register(self._backend.alias, self)
        self._events.publish(JOINED, self.worker_id)
        for scheduler in self._schedulers:
            if self._options.drain:
                scheduler.catch_up()
            else:
                scheduler.start()

    def _loop(self) -> None:
        pauses, factor = Pauses(), 1
        while not self._stopping.is_set():
            try:
                self._wakeup.clear()
                with call_timeout(connections[self._db], CALL_TIMEOUT * factor):
                    timeout = self._rounds.round()
                pauses.reset()
                factor = 1
            except Exception as error:  # whatever the database raises: it comes back, so do we
                self._pool.distrust()
                self._fetcher.retry()
                if not pause_after(error, self._db, pauses.next(), self._stopping):
                    return
                factor, timeout = min(factor + 1, MAX_FACTOR), 0
            if timeout:
                self._wakeup.wait(timeout)

    # In the threads of others

    def _on_settled(self, batch: Sequence[Ended]) -> None:
        """Count and tell. Runs in the writer's thread."""
        statuses = [outcome.status for _, outcome in batch]
        if READY in statuses:
            # Whoever is free may start it now, or has to know when it will be due.
            self.poll_now()
            wakeup.became_due(self._db, self._backend.alias, due_places(batch))
            # Nothing is told of rows that were never started.
            batch = [one for one in batch if one[1].attempt == one[0].claim.attempt]
        self.failed += (failed := statuses.count(FAILED))
        self.done += statuses.count(SUCCESSFUL) + failed
        self._events.publish(ENDED, batch)
        with self._settled:
            self._settled.notify_all()

    def _on_backlog_written(self) -> None:
        """Wake the loop if it may wait for fewer outcomes. Runs in the writer's thread."""
        if self._rounds.waits_for_writer:
            self._wake_loop()

    def _on_exhausted(self) -> None:
        """Stop: abandoned tasks may hold locks and memory. Runs in the thread of the pool."""
        if not self._stopping.is_set():
            self.exhausted = True
            # Before it is logged: whoever reads that may count on it.
            self._stopping.set()
            count = self.abandoned_threads
            logger.error("%d threads hang in abandoned tasks; the runner stops", count)
            self._wake_loop()

    def _rescue(self) -> list[ScheduledTask]:
        """Settle rows of lost workers. Runs in the heartbeat's thread."""
        rows = rescue.rescue(self._backend)
        if rows:
            self._events.publish(RESCUED, rows)
        return rows

    def _register_again(self) -> None:
        """Go on as a new worker: others have declared this one lost. In the heartbeat's thread.

        Running tasks are asked to stop. If a row has moved on, the fence drops the outcome.
        """
        # Before the new name is used: what is claimed in that may run.
        self._pool.ask_to_stop()
        worker_id = make_worker_id(self._options.worker_id)
        workers.register(self._db, worker_id, self._backend.alias, *process_identity())
        self._events.publish(JOINED, worker_id)
        self._pool.context = self._backend.context(worker_id)
        self._heartbeat.worker_id = worker_id

    # Stopping

    def _end(self) -> None:
        """Requeue what has not started, wait for what has, settle it, and leave no thread."""
        wakeup.unregister(self._backend.alias, self)
        for scheduler in self._schedulers:
            scheduler.stop(1.0)
        deadline = time.monotonic() + self._options.grace
        try:
            self._rounds.requeue(self._pool.withdraw())
            self._pool.ask_to_stop()
            self._wait_until_idle(deadline)
            for attempt, outcome in self._pool.release():
                self.released += 1
                self._writer.put(attempt, outcome)
        finally:
            self._pool.stop()
            # At least a second: an outcome in hand is worth more than a quick exit.
            left = 0.0 if self._aborting.is_set() else deadline - time.monotonic()
            is_settled = self._writer.finish(max(1.0, left))
            self._purger.stop(1.0)
            self._leave(is_settled)
            for watcher in self._watchers:
                watcher.stop(1.0)
            self._pool.join(1.0 if not self.released else 0.0)
            connections.close_all()

    def _wait_until_idle(self, deadline: float) -> None:
        while not self._pool.idle and not self._aborting.is_set():
            if (left := deadline - time.monotonic()) <= 0:
                return
            self._wakeup.wait(min(left, 0.05))
            self._wakeup.clear()

    def _leave(self, is_settled: bool) -> None:
        """Stop beating, and be forgotten; with rows still in its name, be missed instead."""
        self._heartbeat.stop(1.0)
        if is_settled:
            with suppress(Error), call_timeout(connections[self._db]):
                workers.leave(self._db, self.worker_id)
