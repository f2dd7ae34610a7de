"""One life of a runner, from its registration to its end.

Owns what starts first, the loop of rounds, and how it stops. Never runs task code or SQL itself:
the pool runs tasks, the store runs SQL.
"""

import logging
import threading
import time
from functools import partial
from typing import Any

from django.db import connections

from .. import rescue, wakeup
from ..backend import check_backend
from ..base import registry
from ..db.service import Activity, Pauses, pause_after
from ..db.timeouts import CALL_TIMEOUT, MAX_FACTOR, bounded_connect, call_timeout
from ..events import CLAIMED, JOINED, STALLED, Events
from ..liveness.heartbeat import Heartbeat
from ..liveness.identity import make_worker_id
from ..options.runner import RunnerOptions
from .ending import Ending
from .fetcher import Fetcher
from .guard import Guard
from .outcome_writer import OutcomeWriter
from .pool import Pool
from .purger import Purger
from .rescuer import Rescuer
from .rounds import Rounds
from .scheduler import Scheduler
from .tally import Tally

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
        self._options, self._events = options, events
        self._stopping, self._aborting = stopping, aborting
        # Attempts that were released when the grace was over.
        self.released = 0
        self.exhausted = False
        self._wakeup = threading.Event()
        self._backend = backend = check_backend(options.backend)
        self._db = backend.database
        registry.discover(backend.config.task_modules)
        self._schedulers = [Scheduler(backend)] if options.init_periodic else []
        self._activity = Activity()
        self._rescuer = Rescuer(backend, events, self.poll_now)
        self._heartbeat = self._new_heartbeat()
        self.tally = Tally(self._db, backend.alias, events, settled, self.poll_now)
        self._writer = OutcomeWriter(self._db, self.tally.count, self._on_backlog_written)
        self._pool = self._new_pool()
        self._fetcher = self._new_fetcher()
        self._rounds = self._new_rounds()
        self._purger = Purger(self._db, backend.alias)
        # A drain does not wait for rows of other processes.
        self._watchers = [] if options.drain else wakeup.watchers_of(self._db, backend.alias, self)
        self._guard = self._new_guard()
        self._heartbeat.stands_still = self._guard.check_all

    def _new_heartbeat(self) -> Heartbeat:
        return Heartbeat(
            self._db,
            make_worker_id(self._options.worker_id),
            self._backend.alias,
            self._backend.config.worker_timeout,
            on_lost=self._rescuer.ask,
            release_orphans=partial(rescue.release_orphans, self._backend),
            on_evicted=self._register_again,
            poll_now=self.poll_now,
            held_claims=self._held_claims,
            drains=self._options.drain,
        )

    def _new_pool(self) -> Pool:
        return Pool(
            self._backend.context(self._heartbeat.worker_id),
            self._options,
            self._events,
            on_outcome=self._writer.put,
            on_capacity=self._wake_loop,
            on_exhausted=self._on_exhausted,
        )

    def _new_fetcher(self) -> Fetcher:
        return Fetcher(
            self._backend,
            self._pool,
            queues=self._options.served,
            loop_delay=self._options.loop_delay,
            hears_others=self._hears_others,
            on_claimed=partial(self._events.publish, CLAIMED),
        )

    def _new_rounds(self) -> Rounds:
        return Rounds(
            self._db,
            self._options,
            self._stopping,
            fetcher=self._fetcher,
            heartbeat=self._heartbeat,
            pool=self._pool,
            rescuer=self._rescuer,
            writer=self._writer,
        )

    def _new_guard(self) -> Guard:
        others = (*self._watchers, *self._schedulers)
        return Guard(
            self._backend.config.worker_timeout,
            heartbeat=self._heartbeat,
            pool=self._pool,
            activity=self._activity,
            services=[self._writer, self._purger, self._rescuer, *others],
            on_stalled=self._on_stalled,
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
        self._pool.start()
        services = (self._heartbeat, self._rescuer, self._writer, self._purger, *self._watchers)
        for service in services:
            service.start()
        self._guard.begin()
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
                self._activity.step()
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
                self._rest(timeout)

    def _rest(self, seconds: float) -> None:
        """Wait until woken or the time is over, and see meanwhile that the heartbeat goes on."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._activity.step()
            if self._wakeup.wait(min(left, self._guard.interval)):
                return
            self._guard.check_heartbeat()

    # Called in other threads

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

    def _on_stalled(self, name: str) -> None:
        """Stop, if that is still possible, because a thread stands still."""
        self.exhausted = True
        self._aborting.set()
        self._stopping.set()
        self._wake_loop()
        self._events.publish(STALLED, name)

    def _register_again(self) -> None:
        """Register under a new worker id, because others have declared this worker lost.

        Running tasks are asked to stop. If a row has moved on, the fence makes the store drop its
        outcome. Runs in the heartbeat's thread.
        """
        # First, because tasks claimed under the new id are not to stop.
        self._pool.ask_to_stop()
        worker_id = make_worker_id(self._options.worker_id)
        self._heartbeat.register(worker_id)
        self._events.publish(JOINED, worker_id)
        self._pool.context = self._backend.context(worker_id)

    # Stopping

    def _end(self) -> None:
        wakeup.unregister(self._backend.alias, self)
        events, grace = (self._aborting, self._wakeup), self._options.grace
        ending = Ending(
            (self._heartbeat, self._pool, self._rounds, self._writer),
            (*self._schedulers, self._rescuer, self._purger, *self._watchers),
            self._db,
            grace,
            *events,
            self._activity,
        )
        try:
            ending.run()
        finally:
            self.released = ending.released
