"""The one thread that settles what attempts have come to.

Owns outcomes from the end of an attempt until the database has them: gathering, group commit and
patience. Never drops one, and never decides what it says.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from django.db import InterfaceError, OperationalError, connections, reset_queries

from . import payload, store
from .execute import Attempt
from .models import FAILED, READY
from .store import BATCH, Outcome

logger = logging.getLogger("dbtasks.runner")

Ended = tuple[Attempt, Outcome]

# Seconds between tries while the database cannot be reached: the first, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
# Tries after which a database that answers, but not to this, is asked in a smaller way.
PATIENCE = 3


class Finisher:
    """Writes outcomes in batches: whatever has gathered while the last batch was written.

    So one outcome on an idle runner is written at once, and many under load share a commit.
    `settled` is called after each batch, in this thread, with what was written.
    """

    def __init__(self, db: str, settled: Callable[[Sequence[Ended]], None]) -> None:
        self._db, self._settled = db, settled
        self._queue: SimpleQueue[Ended | None] = SimpleQueue()
        # Outcomes put and not yet settled.
        self.backlog = 0
        self._counting = threading.Lock()
        # Whether some of them never reached the database.
        self._gave_up = False
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._work, name="dbtasks-finisher", daemon=True)
        self._thread.start()

    def put(self, attempt: Attempt, outcome: Outcome) -> None:
        """Settle the outcome soon. Any thread may call it."""
        with self._counting:
            self.backlog += 1
        self._queue.put((attempt, outcome))

    def stop(self, timeout: float) -> bool:
        """Settle what is left, at most for `timeout` seconds; return whether all of it was."""
        self._queue.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            # No more tries: rows that are left RUNNING are given back when the runner is missed.
            self._hurry.set()
            self._thread.join(1.0)
        return not self.backlog and not self._gave_up

    def _work(self) -> None:
        try:
            last = False
            while not last and (first := self._queue.get()) is not None:
                batch, last = self._gather(first)
                written = self._write(batch)
                try:
                    self._settled(written)
                except Exception:  # whatever a reporter raises: the rows are written, we go on
                    logger.exception("%d settled outcomes could not be reported", len(written))
                with self._counting:
                    self.backlog -= len(batch)
                reset_queries()
        finally:
            connections.close_all()

    def _gather(self, first: Ended) -> tuple[list[Ended], bool]:
        """Return what waits, and whether the end was among it."""
        batch = [first]
        while len(batch) < BATCH:
            try:
                ended = self._queue.get_nowait()
            except Empty:
                break
            if ended is None:
                return batch, True
            batch.append(ended)
        return batch, False

    def _write(self, batch: list[Ended]) -> list[Ended]:
        """Write the batch, as often as it takes; return those whose claim still stood."""
        pause, is_plain, tries = FIRST_PAUSE, False, 0
        while True:
            try:
                return settle(self._db, batch)
            except (OperationalError, InterfaceError) as error:
                tries += 1
                if tries > PATIENCE and self._is_too_large(error):
                    if len(batch) > 1:
                        return [ended for one in batch for ended in self._write([one])]
                    batch, tries = [unstorable(*batch[0])], 0
                    continue
                if not pause_after(error, self._db, pause, self._hurry):
                    return self._give_up(batch)
                pause = min(pause * 2, LONGEST_PAUSE)
            except Exception:
                # The data of one of them. It must not keep the others, nor stay RUNNING itself.
                if len(batch) > 1:
                    return [ended for one in batch for ended in self._write([one])]
                if is_plain:
                    logger.exception("Not even a plain outcome can be stored")
                    return self._give_up(batch)
                batch, is_plain = [unstorable(*batch[0])], True

    def _is_too_large(self, error: Exception) -> bool:
        """Tell whether the statement, not the database, is what fails.

        MySQL drops the connection of who sends more than max_allowed_packet, as if it were away.
        """
        connection = connections[self._db]
        if (
            connection.vendor != "mysql"
            or not error.args
            or error.args[0] not in (1153, 2006, 2013)
        ):
            return False
        connection.close()
        with suppress(OperationalError, InterfaceError):
            connection.ensure_connection()
            return bool(connection.is_usable())
        return False

    def _give_up(self, batch: list[Ended]) -> list[Ended]:
        logger.error("%d outcomes could not be stored", len(batch))
        self._gave_up = True
        return []


def settle(db: str, batch: list[Ended]) -> list[Ended]:
    """Write the outcomes; return those whose claim still stood, as written; log the others.

    A row that was to be READY again, but was cancelled while it ran, ends as cancelled.
    """
    written = store.settle(db, [outcome for _, outcome in batch])
    if len(written) == len(batch):
        return batch
    ended = [one for one in batch if one[1].id in written]
    left = [one for one in batch if one[1].id not in written]
    if back := [one for one in left if one[1].status == READY]:
        cancelled = [(attempt, attempt.cancelled(outcome)) for attempt, outcome in back]
        written = store.settle(db, [outcome for _, outcome in cancelled])
        ended += [one for one in cancelled if one[1].id in written]
        left = [one for one in left if one[1].id not in written]
    for attempt, outcome in left:
        logger.warning(
            "%s %s moved on, or was stored before; this outcome (%s) was dropped",
            attempt.claim.task_path,
            outcome.id,
            outcome.status,
        )
    return ended


def pause_after(error: Exception, db: str, seconds: float, stop: threading.Event) -> bool:
    """Log the error, drop the connection, and wait; return False if told to stop meanwhile."""
    logger.error("The database failed, trying again in %.1f s: %s", seconds, error)
    connections[db].close()
    return not stop.wait(seconds)


def unstorable(attempt: Attempt, outcome: Outcome) -> Ended:
    """Return the outcome in words that any database takes."""
    logger.error("The outcome of %s %s cannot be stored", attempt.claim.task_path, outcome.id)
    error = ("builtins.ValueError", "The database refused the task's result or error text.")
    return attempt, outcome._replace(status=FAILED, return_value=None, errors=payload.text([error]))
