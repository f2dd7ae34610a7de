"""The guard of a runner's threads.

Owns who watches whom: the heartbeat watches all other threads, and the runner's own loop watches
the heartbeat. Never decides what a thread does.
"""

import logging
import threading
from collections.abc import Callable, Iterable

from ..db.service import Activity, Service
from ..liveness.beat import BEATS
from ..liveness.heartbeat import Heartbeat
from .pool import Pool
from .watch import Part, Watch

logger = logging.getLogger("dbtasks.runner")

# A runner that could not even replace a thread is treated as one whose thread stands still.
NO_THREAD = "A thread that cannot be replaced"


class LoopPart:
    """The runner's own loop, in the thread that called run()."""

    name = "The loop of the runner"

    def __init__(self, activity: Activity) -> None:
        self.activity, self.ident = activity, 0

    def revive(self) -> bool:
        """Return False: when this thread ends, the runner ends."""
        return False


class PoolPart:
    """The threads of the pool, which are watched by what they do."""

    name, ident = "A thread that runs tasks", 0

    def __init__(self, pool: Pool) -> None:
        self.activity, self.revive = Activity(), pool.revive


class Guard:
    """Replaces threads that have died, and reports one that stands still for `timeout` seconds.

    `on_stalled` is called once, with the name of that thread.
    """

    def __init__(
        self,
        timeout: float,
        *,
        heartbeat: Heartbeat,
        pool: Pool,
        activity: Activity,
        services: Iterable[Service],
        on_stalled: Callable[[str], None],
    ) -> None:
        # Seconds between two checks of the heartbeat.
        self.interval = timeout / BEATS
        self._on_stalled, self._is_stalled = on_stalled, False
        self._loop = LoopPart(activity)
        parts: list[Part] = [self._loop, PoolPart(pool), pool.deadlines, *services]
        longest = self.interval * 1.2
        self._others = Watch(parts, timeout, longest, pool.stacks)
        self._heartbeat = Watch([heartbeat], timeout, longest)

    def begin(self) -> None:
        """Note that the loop runs in this thread."""
        self._loop.ident = threading.get_ident()

    def check_all(self) -> str | None:
        """Return the name of a thread that stands still, or None. In the heartbeat's thread."""
        return self._check(self._others)

    def check_heartbeat(self) -> None:
        """See that the heartbeat goes on. In the loop's thread."""
        self._check(self._heartbeat)

    def _check(self, watch: Watch) -> str | None:
        try:
            name = watch.find()
        except RuntimeError:  # the system starts no more threads
            name = NO_THREAD
        if name is not None and not self._is_stalled:
            self._is_stalled = True
            # First, because a log may be what the thread waits for.
            self._on_stalled(name)
            logger.critical("%s stands still; the runner stops", name)
        return name
