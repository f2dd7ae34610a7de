"""Whether all threads of a runner go on.

Owns the decision that one of them has died or stands still. Never ends the process: the runner
stops beating, so that others rescue its rows, and its owner is told.
"""

import logging
import sys
import time
from _thread import get_ident
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any, Protocol

from ..db import timeouts
from ..db.service import Activity
from ..execution import announcing, running
from ..execution.attempt import Attempt
from ..execution.interrupt import Interruptible
from .pool import LOOP, Pool

logger = logging.getLogger("dbtasks.runner")

# Where code of the project runs, which may take as long as it likes: the task's function, imports
# of its module, and receivers of signals.
_FOREIGN: set[CodeType] = {
    function.__code__
    for function in (
        Interruptible.run,
        running._inside,
        announcing.announce,
        announcing.aannounce,
        Attempt.find,
        Attempt.failed,
    )
}


class Part(Protocol):
    """A thread that can be watched."""

    name: str
    activity: Activity

    @property
    def ident(self) -> int:
        """The id of its thread; 0 if it has not started."""

    def revive(self) -> bool:
        """Replace the thread if it has died; return whether it had."""


class Watch:
    """Watches the threads of one runner, from a thread that is watched in turn.

    A thread stands still if it works, takes no step for `timeout` seconds of this object's own
    count, and does not wait for the database in a call that ends by itself. `stacks` returns
    the id of each thread in which tasks run, with the attempt that it has in hand or LOOP; these
    stand still only in code of dbtasks.
    """

    def __init__(
        self,
        parts: Iterable[Part],
        timeout: float,
        longest: float,
        stacks: Callable[[], Iterable[tuple[int, Any]]] = tuple,
    ) -> None:
        self._parts, self._timeout, self._longest = list(parts), timeout, longest
        self._stacks = stacks
        # By thread: what it did at the last check, and for how many seconds it has done that.
        self._seen: dict[Any, tuple[Any, float]] = {}
        self._checked_at = time.monotonic()

    def find(self) -> str | None:
        """Replace threads that have died; return the name of one that stands still, or None."""
        now = time.monotonic()
        # If more time has passed, this process may have stood still as a whole.
        passed = min(now - self._checked_at, self._longest)
        self._checked_at = now
        seen: dict[Any, tuple[Any, float]] = {}
        found = None
        for key, name, state in [*self._busy_parts(), *self._busy_stacks()]:
            before, seconds = self._seen.get(key, (None, 0.0))
            seconds = seconds + passed if before == state else 0.0
            seen[key] = state, seconds
            if seconds >= self._timeout:
                found = name
        self._seen = seen
        return found

    def _busy_parts(self) -> Iterable[tuple[Any, str, Any]]:
        for part in self._parts:
            if part.revive():
                logger.error("%s had died; another thread takes its place", part.name)
            activity = part.activity
            if not activity.is_resting and not timeouts.is_calling(part.ident):
                yield id(part), part.name, activity.steps

    def _busy_stacks(self) -> Iterable[tuple[Any, str, Any]]:
        frames = sys._current_frames()
        # This function's own frame would be a cycle, which keeps all that the others have in hand.
        del frames[get_ident()]
        for ident, attempt in self._stacks():
            # The attempt of an event loop stands in its stack only.
            if (frame := frames.get(ident)) is not None and attempt is not None:
                found = _own_work(frame, None if attempt is LOOP else attempt)
                if found is not None:
                    claim = found.claim
                    yield ident, "A thread that runs tasks", (claim.id, claim.fence)


def _own_work(frame: Any, attempt: Attempt | None) -> Attempt | None:
    """Return the attempt that dbtasks' own code handles in that stack; None if it does not."""
    while frame is not None:
        if frame.f_code in _FOREIGN:
            return None
        if frame.f_code is Pool._run_coroutine.__code__:
            # Not asked of frames that live for long: they would keep what they are asked for.
            found: Attempt = frame.f_locals["attempt"]
            return found
        frame = frame.f_back
    return attempt
