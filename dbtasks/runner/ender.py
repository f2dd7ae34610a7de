"""How attempts that do not end by themselves are ended.

Owns the interrupt of a thread or a coroutine, and its replacement if that does not help. Never
decides when: the deadlines do.
"""

import logging
import threading
from collections.abc import Callable
from functools import partial

from django.db import connections

from ..db.connections import discard_all, leave_for_next
from ..db.statements import remember_connections
from ..execution.attempt import Attempt
from ..execution.deadlines import interrupt
from ..execution.running import abandon
from ..store import Outcome
from .abandoned import Abandoned
from .event_loops import Loops
from .slots import Slots

logger = logging.getLogger("dbtasks.runner")


class Ender:
    """Interrupts and abandons attempts of one pool.

    `on_settled` is called with the stand-in of an abandoned attempt, the attempt, and the outcome.
    """

    def __init__(
        self,
        slots: Slots,
        loops: Loops,
        abandoned: Abandoned,
        on_settled: Callable[[Attempt, Attempt, Outcome], None],
    ) -> None:
        self._slots, self._loops, self._abandoned = slots, loops, abandoned
        self._on_settled = on_settled
        # Before the threads of the pool start.
        remember_connections()

    def interrupt(self, attempt: Attempt) -> bool:
        """Interrupt the attempt, or return True if that must wait."""
        is_coroutine = attempt in self._loops
        return interrupt(attempt, partial(self._loops.cancel, attempt) if is_coroutine else None)

    def abandon(self, attempt: Attempt) -> bool:
        """Stop waiting for an interrupted attempt: replace its thread or loop.

        Return False if it has ended.
        """
        thread = self._successor(attempt)
        if thread is None:
            return False
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads; Slots.revive() will say so
            self.settle(attempt)
        logger.error(
            "%s %s does not end; it is abandoned", attempt.claim.task_path, attempt.claim.id
        )
        return True

    def _successor(self, attempt: Attempt) -> threading.Thread | None:
        """Return a new thread that settles the attempt, not yet started; None if it has ended."""
        if attempt not in self._loops:
            if (threads := self._slots.replace(attempt)) is None:
                return None
            old, new = threads
            self._abandoned.add(old)
            return new
        if not attempt.close():
            return None
        self._loops.abandon(attempt)
        name, call = "dbtasks-stand-in", self._settle_coroutine
        return threading.Thread(target=call, args=(attempt,), name=name, daemon=True)

    def _settle_coroutine(self, attempt: Attempt) -> None:
        """Settle an abandoned coroutine, in a thread of its own."""
        try:
            self.settle(attempt)
        finally:
            connections.close_all()

    def settle(self, attempt: Attempt) -> None:
        """Settle an abandoned attempt through its stand-in."""
        stand_in = attempt
        try:
            stand_in, outcome = abandon(attempt)
        except BaseException as error:  # whatever it is, the row must not stay RUNNING
            outcome = stand_in.broken(error)
        try:
            leave_for_next(attempt.claim.task_path, attempt.context.options.keep_connections)
        except BaseException:  # the outcome stands
            discard_all()
        self._on_settled(stand_in, attempt, outcome)
