"""The one thread that settles outcomes.

Owns outcomes from the end of an attempt until they are in the database: batches, group commit and
retries. Never drops one that can be stored, and never decides what it says.
"""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from django.db import InterfaceError, OperationalError, connections, reset_queries

from ..db.service import Pauses, Service, pause_after
from ..db.timeouts import CALL_TIMEOUT, MAX_FACTOR, bounded_connect, call_timeout
from ..execution.attempt import Attempt
from ..execution.settling import Ended, settle, unstorable
from ..store import Claim, Outcome
from ..store.unit import BATCH

logger = logging.getLogger("dbtasks.runner")

# A batch too large for MySQL looks like a lost connection. It is split after this many tries.
WHOLE_TRIES = 3


class OutcomeWriter(Service):
    """Writes outcomes in batches: those that have arrived while the last batch was written.

    So one outcome on an idle runner is written at once, and many under load share a commit. After
    each batch `on_settled` is called in this thread with the outcomes that were written, and then
    `on_backlog_written`, when they have left the backlog.
    """

    def __init__(
        self,
        db: str,
        on_settled: Callable[[Sequence[Ended]], None],
        on_backlog_written: Callable[[], None],
    ) -> None:
        super().__init__("outcomes")
        self._db = db
        self._on_settled, self._on_backlog_written = on_settled, on_backlog_written
        self._queue: SimpleQueue[Ended | None] = SimpleQueue()
        # Attempts whose outcome is not settled yet, and those whose outcome could not be stored.
        self._unsettled: set[Attempt] = set()
        self._given_up: list[Attempt] = []

    def put(self, attempt: Attempt, outcome: Outcome) -> None:
        """Queue the outcome to be settled. Can be called from any thread."""
        self._unsettled.add(attempt)
        self._queue.put((attempt, outcome))

    @property
    def backlog(self) -> int:
        """How many outcomes were put and are not yet settled."""
        return len(self._unsettled)

    @property
    def claims(self) -> list[Claim]:
        """The claims whose outcome is not in the database. Can be read from any thread."""
        return [attempt.claim for attempt in (*tuple(self._unsettled), *self._given_up)]

    def finish(self, timeout: float) -> bool:
        """Settle what is left, for up to `timeout` seconds; return whether all was written."""
        self._queue.put(None)
        if self.is_alive:
            self._thread.join(timeout)
        # No more tries. Rows that stay RUNNING are rescued when the worker is declared lost.
        self.stop(1.0)
        return not self.backlog and not self._given_up

    def work(self) -> None:
        with bounded_connect(self._db):
            last = False
            while not last and (first := self._queue.get()) is not None:
                batch, last = self._gather(first)
                written = self._write(batch)
                try:
                    self._on_settled(written)
                except Exception:  # whatever it raises: the rows are written, the thread goes on
                    logger.exception("%d settled outcomes could not be announced", len(written))
                self._unsettled.difference_update(attempt for attempt, _ in batch)
                self._on_backlog_written()
                reset_queries()

    def _gather(self, first: Ended) -> tuple[list[Ended], bool]:
        """Return the waiting outcomes, and whether finish() has ended the queue."""
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
        """Write the batch, with retries; return the outcomes whose claim still stood."""
        pauses, is_plain, tries = Pauses(), False, 0
        while True:
            try:
                with call_timeout(connections[self._db], CALL_TIMEOUT * min(tries + 1, MAX_FACTOR)):
                    return settle(self._db, batch)
            except (OperationalError, InterfaceError) as error:
                tries += 1
                if tries > WHOLE_TRIES and self._is_too_large(error, batch):
                    if len(batch) > 1:
                        return [ended for one in batch for ended in self._write([one])]
                    batch, tries = [unstorable(*batch[0])], 0
                    continue
                if not pause_after(error, self._db, pauses.next(), self._stopping):
                    return self._give_up(batch)
            except Exception:
                # One outcome holds data that the database refuses. The others must be written, and
                # the row of that one must not stay RUNNING.
                if len(batch) > 1:
                    return [ended for one in batch for ended in self._write([one])]
                if is_plain:
                    logger.exception("Not even a plain outcome can be stored")
                    return self._give_up(batch)
                batch, is_plain = [unstorable(*batch[0])], True

    def _is_too_large(self, error: Exception, batch: list[Ended]) -> bool:
        """Return whether the statement is too large for MySQL.

        MySQL drops a connection that sends more than max_allowed_packet, as if the server were
        down. Only the size tells the two apart, because a server that was down may be back by now.
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
            call_timeout(connection),
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
    """Return how many bytes the outcome may take in a statement at most, quoted twice."""
    texts = (outcome.errors, outcome.worker_ids, outcome.return_value)
    return 1000 + sum(2 * len(json.dumps(text)) for text in texts)
