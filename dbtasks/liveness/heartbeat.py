"""The heartbeat of a runner.

Owns its beat, the decision that another worker is lost, and when the rows of lost workers are
rescued. Never compares the clocks of two machines: a worker is lost when its beat has not changed
for `worker_timeout` seconds, counted by this process.
"""

import logging
import random
from collections.abc import Callable, Iterable
from typing import Any

from django.db import connections

from ..db.service import OUTAGE, Pauses, RoundService
from ..db.timeouts import BEAT_TIMEOUT, bounded_connect, call_timeout
from ..models import Worker
from ..store import workers
from ..store.workers import session_key
from .beat import BEATS, RECHECK_INTERVAL, clock
from .identity import host_key, is_gone, process_identity
from .silence import SilentWorkers

logger = logging.getLogger("dbtasks.runner")

# Seconds until a worker that was reported as ended, and is still registered, is checked again.
MISSED_RECHECK = 0.5
# Share of the timeout after which a silent worker is lost if its PostgreSQL session is gone. It is
# longer than the time between two beats, because a session may break while the worker lives.
HINTED_SHARE = 0.35
# Beats between two checks of the rows RUNNING in the worker's own name.
RECONCILE_BEATS = 3
# Share of the timeout after which a runner that cannot beat starts nothing more.
TRUSTED_SHARE = 0.75

# Returns the claims of this process, as id and fence; None while a claim is on its way.
HeldClaims = Callable[[], set[tuple[Any, int]] | None]


def _nobody() -> str | None:
    """Return that no thread stands still."""
    return None


class Heartbeat(RoundService):
    """Beats for one worker, watches the others, and has the rows of lost ones rescued.

    It has a thread and a connection of its own, so that neither a busy pool nor a long purge stops
    it. `on_evicted` is called, in this thread, when others have declared this worker lost,
    `poll_now` when there may be rows to claim, and `on_lost` when there may be rows to rescue.
    `release_orphans` requeues claims that never reached this worker. `stands_still` names a thread
    of this runner that does not go on, if there is one: then it beats no more, and others rescue.
    With `drains`, workers that look lost are watched for a short time only, because this process
    ends soon.
    """

    # True while a thread of this runner stands still.
    _is_mute = False

    def __init__(
        self,
        db: str,
        worker_id: str,
        backend: str,
        timeout: float,
        *,
        on_lost: Callable[[], None],
        release_orphans: Callable[[Iterable[tuple[Any, int]]], int],
        on_evicted: Callable[[], None],
        poll_now: Callable[[], None],
        held_claims: HeldClaims,
        drains: bool = False,
    ) -> None:
        self._recheck = min(RECHECK_INTERVAL, timeout / BEATS / 2)
        super().__init__("heartbeat", Pauses(self._recheck, self._recheck), db)
        self._timeout = timeout
        self._backend = backend
        self._on_lost, self._release_orphans = on_lost, release_orphans
        self._on_evicted, self._poll_now = on_evicted, poll_now
        self._held_claims, self.stands_still = held_claims, _nobody
        # Claims in this worker's name that it did not know at the last check, and beats so far.
        self._strays: set[tuple[Any, int]] = set()
        self._beats = 0
        self._next_beat = 0.0
        # Workers whose process has ended.
        self._missed: set[str] = set()
        # True until rows of workers that were lost before this runner began are rescued.
        self.is_undecided = True
        self._silent = SilentWorkers(db, backend, timeout) if drains else None
        # By worker id: its last beat, and the seconds for which that has not changed.
        self._seen: dict[str, tuple[int, float]] = {}
        # The live workers of this host, at the last check.
        self._neighbours: list[Worker] = []
        # By worker id: when the server started on which its session was seen.
        self._sessions: dict[str, Any] = {}
        # True while the session of a live worker is gone.
        self._is_alarmed = False
        self._watched_at = self._beat_at = clock()
        self.register(worker_id)

    def register(self, worker_id: str) -> None:
        """Register as live under that id, in the thread that calls this."""
        with bounded_connect(self._db), call_timeout(connections[self._db]):
            workers.register(self._db, worker_id, self._backend, *process_identity())
        self.worker_id = worker_id

    @property
    def is_trusted(self) -> bool:
        """Whether nobody can have declared this worker lost yet."""
        return not self._is_mute and clock() - self._beat_at < self._timeout * TRUSTED_SHARE

    def declare_lost(self, worker_id: str) -> None:
        """Declare that worker lost at once: its process has ended. Callable from any thread."""
        self._missed.add(worker_id)
        self._wakeup.set()

    def round(self) -> float:
        self._is_mute = self.stands_still() is not None
        if self._is_mute:
            return self._recheck
        if clock() >= self._next_beat:
            # The first beat is immediate: a process that was killed and started again rescues its
            # rows.
            self._next_beat = clock() + self._timeout / BEATS * random.uniform(0.8, 1.0)
            self._beat()
            self._watch()
            self._reconcile()
        elif (
            self._missed or self._is_alarmed or self._silent or any(map(is_gone, self._neighbours))
        ):
            self._watch()
        soon = MISSED_RECHECK if self._missed else self._recheck
        return max(0.0, min(soon, self._next_beat - clock()))

    def failed(self, error: Exception) -> None:
        logger.warning("The heartbeat failed: %s", error, extra=OUTAGE)
        # The database may be back long before the next beat would be due.
        self._next_beat = clock() + self._recheck

    def _beat(self) -> None:
        began, was_trusted = clock(), self.is_trusted
        with call_timeout(connections[self._db], BEAT_TIMEOUT):
            is_known = workers.beat(self._db, self.worker_id)
        if is_known:
            self._beat_at = began
        else:
            logger.warning("Worker %s was declared lost; it registers again", self.worker_id)
            self._on_evicted()
            self._beat_at = clock()
        if not (was_trusted and is_known):
            # The worker has claimed nothing while it was, or might have been, declared lost.
            self._poll_now()

    def _watch(self) -> None:
        """Check the other workers, and rescue the rows of those that are lost."""
        now, missed = clock(), self._missed.copy()
        # If more time has passed, this machine may have slept: the others were not silent.
        passed = min(now - self._watched_at, self._timeout / BEATS * 1.2)
        self._watched_at = now
        seen = {}
        with call_timeout(connections[self._db], BEAT_TIMEOUT):
            known = workers.others(self._db, self.worker_id, self._backend)
            others = [other for other in known if other.state == Worker.State.LIVE]
            without_session = self._lost_sessions(others)
        self._neighbours = [other for other in others if other.host_key == host_key()]
        self._is_alarmed = bool(without_session)
        is_any_lost = len(known) > len(others)
        for other in others:
            beat, silent = self._seen.get(other.worker_id, (None, 0.0))
            silent = silent + passed if beat == other.beat else 0.0
            seen[other.worker_id] = (other.beat, silent)
            share = HINTED_SHARE if other.worker_id in without_session else 1
            is_silent = silent >= self._timeout * share
            if is_silent or other.worker_id in missed or is_gone(other):
                is_any_lost |= self._declare_lost(other)
        self._seen = seen
        # Those still listed were declared lost just now, or had a beat on its way.
        self._missed.difference_update(missed - seen.keys())
        if self._silent is not None:
            with call_timeout(connections[self._db]):
                is_any_lost |= self._silent.check(self.worker_id)
        if is_any_lost:
            self._on_lost()
        # Only now, because the end of a drain must not come between a decision and the rescue.
        if self.is_undecided and not self._silent:
            self.is_undecided = False
            self._poll_now()

    def _lost_sessions(self, others: list[Worker]) -> set[str]:
        """Return the ids of those that had a PostgreSQL session and have none now.

        A restart of the server ends all sessions, so only sessions seen since then count.
        """
        found = workers.sessions(self._db) if others else None
        if found is None:
            return set()
        started, keys = found
        names = {other.worker_id for other in others}
        there = {name for name in names if session_key(name) in keys}
        before = {name for name, at in self._sessions.items() if at == started}
        self._sessions = dict.fromkeys((before | there) & names, started)
        return (before & names) - there

    def _reconcile(self) -> None:
        """Release rows RUNNING in this worker's name that it does not know, at every third beat.

        The reply to their claim was lost. Two checks in a row must have found them.
        """
        self._beats += 1
        if self._beats % RECONCILE_BEATS:
            return
        # In this order: a row claimed after the query is not in it, and one claimed before is held,
        # settled, or still on its way.
        with call_timeout(connections[self._db], BEAT_TIMEOUT):
            running = workers.running(self._db, self.worker_id)
        held = self._held_claims()
        if held is None:
            return
        strays = running - held
        if found := self._strays & strays:
            with call_timeout(connections[self._db]):
                count = self._release_orphans(found)
            logger.warning("%d claims never arrived; they are requeued", count)
            self._poll_now()
        self._strays = strays - found

    def _declare_lost(self, other: Worker) -> bool:
        """Declare that worker lost unless its beat has changed; return whether that was done."""
        with call_timeout(connections[self._db]):
            is_lost = workers.declare_lost(self._db, other.worker_id, other.beat)
        if is_lost:
            logger.warning("Worker %s is lost; its tasks are requeued", other.worker_id)
        return is_lost
