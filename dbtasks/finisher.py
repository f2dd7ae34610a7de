"""The one thread that settles what attempts have come to.

Owns outcomes from the end of an attempt until the database has them: gathering, group commit and
patience. Never drops one, and never decides what it says.
"""

import json
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from django.db import InterfaceError, OperationalError, connections, reset_queries

from . import payload, store
from .execute import Attempt
from .models import FAILED, READY
from .patience import DEADLINE, MOST, Within, prompt
from .store import BATCH, Claim, Outcome

logger = logging.getLogger("dbtasks.runner")

Ended = tuple[Attempt, Outcome]

# Seconds between tries while the database cannot be reached: the first, and the longest. It is at
# full speed again so soon after the database is.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
# Tries after which a database that answers, but not to this, is asked in a smaller way.
PATIENCE = 3


class Finisher:
    """Writes outcomes in batches: whatever has gathered while the last batch was written.

    So one outcome on an idle runner is written at once, and many under load share a commit.
    `settled` is called after each batch, in this thread, with what was written, and `eased` once
    that is no longer in the backlog.
    """

    def __init__(
        self,
        db: str,
        settled: Callable[[Sequence[Ended]], None],
        eased: Callable[[], None],
    ) -> None:
        self._db, self._settled, self._eased = db, settled, eased
        self._queue: SimpleQueue[Ended | None] = SimpleQueue()
        # Attempts whose outcome is not settled yet, and those whose outcome never will be.
        self._unsettled: set[Attempt] = set()
        self._given_up: list[Attempt] = []
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._work, name="dbtasks-finisher", daemon=True)
        self._thread.start()

    def put(self, attempt: Attempt, outcome: Outcome) -> None:
        """Settle the outcome soon. Any thread may call it."""
        self._unsettled.add(attempt)
        self._queue.put((attempt, outcome))

    @property
    def backlog(self) -> int:
        """How many outcomes were put and are not yet settled."""
        return len(self._unsettled)

    @property
    def claims(self) -> list[Claim]:
        """The claims whose outcome is not in the database. Any thread may ask."""
        return [attempt.claim for attempt in (*tuple(self._unsettled), *self._given_up)]

    def stop(self, timeout: float) -> bool:
        """Settle what is left, at most for `timeout` seconds; return whether all of it was."""
        self._queue.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            # No more tries: rows that are left RUNNING are given back when the runner is missed.
            self._hurry.set()
            self._thread.join(1.0)
        return not self.backlog and not self._given_up

    def _work(self) -> None:
        with prompt(self._db):
            self._settle_all()

    def _settle_all(self) -> None:
        try:
            last = False
            while not last and (first := self._queue.get()) is not None:
                batch, last = self._gather(first)
                written = self._write(batch)
                try:
                    self._settled(written)
                except Exception:  # whatever a reporter raises: the rows are written, we go on
                    logger.exception("%d settled outcomes could not be reported", len(written))
                self._unsettled.difference_update(attempt for attempt, _ in batch)
                self._eased()
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
                with Within(connections[self._db], DEADLINE * min(tries + 1, MOST)):
                    return settle(self._db, batch)
            except (OperationalError, InterfaceError) as error:
                tries += 1
                if tries > PATIENCE and self._is_too_large(error, batch):
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

    def _is_too_large(self, error: Exception, batch: list[Ended]) -> bool:
        """Tell whether the statement, not the database, is what fails.

        MySQL drops the connection of who sends more than max_allowed_packet, as if it were away.
        Only the size tells the one from the other: it may have been away, and be back just now.
        """
        connection = connections[self._db]
        if (
            connection.vendor != "mysql"
            or not error.args
            or error.args[0] not in (1153, 2006, 2013)
        ):
            return False
        connection.close()
        with (
            suppress(OperationalError, InterfaceError),
            Within(connection),
            connection.cursor() as cursor,
        ):
            cursor.execute("SELECT @@max_allowed_packet")
            return sum(_weight(outcome) for _, outcome in batch) > int(cursor.fetchone()[0])
        return False

    def _give_up(self, batch: list[Ended]) -> list[Ended]:
        logger.error("%d outcomes could not be stored", len(batch))
        self._given_up += [attempt for attempt, _ in batch]
        return []


def _weight(outcome: Outcome) -> int:
    """Return the bytes that the outcome may take in a statement, at most: quoted, and again."""
    texts = (outcome.errors, outcome.worker_ids, outcome.return_value)
    return 1000 + sum(2 * len(json.dumps(text)) for text in texts)


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
