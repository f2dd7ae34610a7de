"""One life of a runner, from its registration to its end.

Owns what starts first, the loop of rounds, and how it stops. Never runs task code or SQL itself:
the pool runs tasks, the store runs SQL.
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
    """One life of a runner, with all of its parts.

    `stopping` asks it to end, and `aborting` to end without waiting for running tasks. `settled` is
    notified after each batch of outcomes. Raise ImproperlyConfigured or RunnerError if the runner
    cannot start.
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
        # Attempts that ended for good, those of them that failed, and attempts released after the
        # grace.
        self.done = self.failed = self.released = 0
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
        # A drain does not wait for rows of other processes.
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
        """The runner's name among workers; it changes when the runner was declared lost."""
        return self._pool.context.worker_id

    @property
    def running(self) -> int:
        """How many attempts have started and not ended."""
        return self._pool.running

    @property
    def abandoned_threads(self) -> int:
        """How many abandoned threads and coroutines have not ended."""
        return self._pool.abandoned_threads

    def wake(self, recheck_after: float = 0.0) -> None:
        """Claim now, and again after `recheck_after` seconds unless that is 0."""
        self._fetcher.wake(recheck_after)
        self._wake_loop()

    def poll_now(self) -> None:
        """Poll the queue now, because some process has written to the database."""
        self._fetcher.poll_now()
        self._wake_loop()

    def declare_lost(self, worker_id: str) -> None:
        """Rescue that worker's rows at once, because its process has ended."""
        self._heartbeat.declare_lost(worker_id)

    def notice_stop(self) -> None:
        """Wake the loop, because `stopping` was set."""
        self._wakeup.set()

    def is_idle(self) -> bool:
        """Return whether nothing is due, running or unsettled."""
        # In the order in which a row moves on, so that none is missed while it moves.
        found = self._fetcher.peek()
        return (
            not (found.due or found.quarantined or self._fetcher.is_claiming)
            and self._rounds.is_empty
        )

    def _hears_others(self) -> bool:
        """Return whether wake-ups of other processes arrive."""
        return any(watcher.is_healthy for watcher in self._watchers)

    def _held_claims(self) -> set[tuple[Any, int]] | None:
        """Return id and fence of every claim of this process; None while a claim is on its way."""
        if self._fetcher.is_claiming:
            return None
        # The pool first, because rows move from the pool to the writer.
        return {(c.id, c.fence) for part in (self._pool, self._writer) for c in part.claims}

    def _wake_loop(self) -> None:
        # Reading the flag costs a tenth of setting it, and a busy loop is woken all the time.
        if not self._wakeup.is_set():
            self._wakeup.set()

    # The loop

    def live(self, ready: threading.Event) -> None:
        """Run tasks in this thread until asked to stop; set `ready` just before the first claim."""
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
            except Exception as error:  # whatever the database raises; it will be back
                self._pool.distrust()
                self._fetcher.retry()
                if not pause_after(error, self._db, pauses.next(), self._stopping):
                    return
                factor, timeout = min(factor + 1, MAX_FACTOR), 0
            if timeout:
                self._wakeup.wait(timeout)

    # Called in other threads

    def _on_settled(self, batch: Sequence[Ended]) -> None:
        """Count and publish the settled outcomes. Runs in the writer's thread."""
        statuses = [outcome.status for _, outcome in batch]
        if READY in statuses:
            # A free runner may start it now, or must know when it will be due.
            self.poll_now()
            wakeup.became_due(self._db, self._backend.alias, due_places(batch))
            # Rows that never started are not published.
            batch = [one for one in batch if one[1].attempt == one[0].claim.attempt]
        self.failed += (failed := statuses.count(FAILED))
        self.done += statuses.count(SUCCESSFUL) + failed
        self._events.publish(ENDED, batch)
        with self._settled:
            self._settled.notify_all()

    def _on_backlog_written(self) -> None:
        """Wake the loop if it may be waiting for a smaller backlog. Runs in the writer's thread."""
        if self._rounds.waits_for_writer:
            self._wake_loop()

    def _on_exhausted(self) -> None:
        """Stop, because abandoned tasks may hold locks and memory. In the deadlines' thread."""
        if not self._stopping.is_set():
            self.exhausted = True
            # Before it is logged, so that a reader of the log can rely on it.
            self._stopping.set()
            count = self.abandoned_threads
            logger.error("%d threads hang in abandoned tasks; the runner stops", count)
            self._wake_loop()

    def _rescue(self) -> list[ScheduledTask]:
        """Settle some rows of lost workers, and return them. Runs in the heartbeat's thread."""
        rows = rescue.rescue(self._backend)
        if rows:
            self._events.publish(RESCUED, rows)
        return rows

    def _register_again(self) -> None:
        """Register under a new worker id, because others have declared this worker lost.

        Running tasks are asked to stop. If a row has moved on, the fence makes the store drop its
        outcome. Runs in the heartbeat's thread.
        """
        # First, because tasks claimed under the new id are not to stop.
        self._pool.ask_to_stop()
        worker_id = make_worker_id(self._options.worker_id)
        workers.register(self._db, worker_id, self._backend.alias, *process_identity())
        self._events.publish(JOINED, worker_id)
        self._pool.context = self._backend.context(worker_id)
        self._heartbeat.worker_id = worker_id

    # Stopping

    def _end(self) -> None:
        """Requeue rows that have not started, wait for the others, settle them, end all threads."""
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
            # At least a second: writing the outcomes matters more than a quick exit.
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
        """Stop the heartbeat and delete the worker.

        With unsettled rows in its name the worker is kept, so that others declare it lost.
        """
        self._heartbeat.stop(1.0)
        if is_settled:
            with suppress(Error), call_timeout(connections[self._db]):
                workers.leave(self._db, self.worker_id)
