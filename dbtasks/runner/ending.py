"""How a runner ends.

Owns the order in which its parts stop, and what becomes of rows that it still holds. Never decides
when a runner ends.
"""

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from django.db import Error, connections

from ..db.connections import discard_all
from ..db.service import Activity, Service
from ..db.timeouts import call_timeout
from ..liveness.heartbeat import Heartbeat
from ..store import workers
from .outcome_writer import OutcomeWriter
from .pool import Pool
from .rounds import Rounds


class Ending:
    """Ends a runner within `grace` seconds, or at once if `aborting` is set."""

    def __init__(
        self,
        parts: tuple[Heartbeat, Pool, Rounds, OutcomeWriter],
        services: Iterable[Service],
        db: str,
        grace: float,
        aborting: threading.Event,
        wakeup: threading.Event,
        activity: Activity,
    ) -> None:
        self._db, self._aborting, self._wakeup = db, aborting, wakeup
        self._deadline = time.monotonic() + grace
        self._heartbeat, self._pool, self._rounds, self._writer = parts
        self._services, self._activity = list(services), activity
        # Attempts that were released.
        self.released = 0

    def run(self) -> None:
        """Requeue rows that have not started, wait for the others, settle them, end all threads.

        Each step is taken, whatever the steps before it raise.
        """
        error: BaseException | None = None
        steps: list[Callable[[], Any]] = [
            # Schedulers first: nothing new is to come.
            *[service.ask_to_stop for service in self._services],
            self._release,
            self._pool.stop,
            self._settle,
            *[partial(service.stop, 1.0) for service in self._services],
            lambda: self._pool.join(1.0 if not self.released else 0.0),
            discard_all,
        ]
        for step in steps:
            try:
                self._activity.step()
                step()
            except BaseException as found:  # the next step matters more
                error = error or found
        self._activity.rest()
        if error is not None:
            raise error

    def _release(self) -> None:
        """Requeue what has not started, and release what has not ended in time."""
        try:
            self._rounds.requeue(self._pool.withdraw())
            self._pool.ask_to_stop()
            self._wait_until_idle()
        finally:
            for attempt, outcome in self._pool.release():
                self.released += 1
                self._writer.put(attempt, outcome)

    def _wait_until_idle(self) -> None:
        while not self._pool.idle and not self._aborting.is_set():
            if (left := self._deadline - time.monotonic()) <= 0:
                return
            self._activity.step()
            self._wakeup.wait(min(left, 0.05))
            self._wakeup.clear()

    def _settle(self) -> None:
        """Write what is left. If that fails, the worker is kept, so that others rescue its rows."""
        # At least a second: writing the outcomes matters more than a quick exit.
        left = 0.0 if self._aborting.is_set() else self._deadline - time.monotonic()
        # The writer is watched itself.
        self._activity.rest()
        try:
            is_settled = self._writer.finish(max(1.0, left))
        finally:
            # No beat after this, whatever happens: others must be able to rescue.
            self._heartbeat.stop(1.0)
        if is_settled:
            with suppress(Error), call_timeout(connections[self._db]):
                workers.leave(self._db, self._pool.context.worker_id)
