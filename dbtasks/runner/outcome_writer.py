"""The one thread that settles outcomes.

Owns outcomes from the end of an attempt until they are in the database: batches, group commit and
retries. Never drops one that can be stored, and never decides what it says.
"""

import logging
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from django.db import connections, reset_queries

from .. import store
from ..db.connections import discard
from ..db.service import Pauses, Service, pause_after
from ..db.timeouts import CALL_TIMEOUT, MAX_FACTOR, bounded_connect, call_timeout
from ..execution.attempt import Attempt
from ..execution.settling import Ended, settle_unlocked, unstorable
from ..store import Claim, Outcome
from ..store.unit import BATCH, Refused, refusals

logger = logging.getLogger("dbtasks.runner")

# A batch too large for MySQL looks like a lost connection. It is split after this many tries.
WHOLE_TRIES = 3
# The most rows that are named in a line of the log.
MAX_NAMED = 20


class _Aside:
    """An outcome that could not be written while others could: its row is locked, for example."""

    __slots__ = ("at", "outcome", "pauses")

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        # When it is tried again, on the monotonic clock.
        self.at = 0.0
        self.pauses = Pauses()


class OutcomeWriter(Service):
    """Writes outcomes in batches: those that have arrived while the last batch was written.

    So one outcome on an idle runner is written at once, and many under load share a commit. After
    each batch `on_settled` is called in this thread with the outcomes that were written, and then
    `on_backlog_written`, when they have left the backlog.

    Whatever error the database raises, an outcome is tried again until it is written or the runner
    stops. Only if the error says that its data are invalid, the row is FAILED instead.
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
        # Attempts whose outcome is not settled yet, with that.
        self._unsettled: dict[Attempt, Outcome] = {}
        # Attempts whose outcome is settled and not announced yet.
        self._settled: list[Attempt] = []
        # Outcomes that could not be written while others could.
        self._aside: dict[Attempt, _Aside] = {}
        # True once finish() has ended the queue.
        self._is_ending = False

    def put(self, attempt: Attempt, outcome: Outcome) -> None:
        """Queue the outcome to be settled. Can be called from any thread."""
        self._unsettled[attempt] = outcome
        self._queue.put((attempt, outcome))

    @property
    def backlog(self) -> int:
        """How many outcomes were put and are not yet settled."""
        return len(self._unsettled)

    @property
    def claims(self) -> list[Claim]:
        """The claims whose outcome is not in the database. Can be read from any thread."""
        return [attempt.claim for attempt in self._unsettled.copy()]

    def finish(self, timeout: float) -> bool:
        """Settle what is left, for up to `timeout` seconds; return whether all was written."""
        self._queue.put(None)
        if self.is_alive:
            self._thread.join(timeout)
        # No more tries. Rows that stay RUNNING are rescued when the worker is declared lost.
        self.stop(1.0)
        if left := self.claims:
            logger.error(
                "%d outcomes could not be written. Their rows stay RUNNING until another runner "
                "rescues them: %s",
                len(left),
                _named(left),
            )
        return not left

    def work(self) -> None:
        with bounded_connect(self._db):
            self._recover()
            while not self._stopping.is_set():
                batch = self._next_batch()
                self.activity.step()
                written = self._write(batch) if batch else []
                self._announce(written + self._write_aside())
                if self._is_ending and not self._aside and self._queue.empty():
                    return

    def _recover(self) -> None:
        """Queue again what an earlier thread had in hand when something was raised in it."""
        self._announce([])
        queued = set()
        for attempt, outcome in self._gather([], len(self._unsettled) + 1):
            queued.add(attempt)
            self._queue.put((attempt, outcome))
        for attempt, outcome in self._unsettled.copy().items():
            if attempt not in queued and attempt not in self._aside:
                self._queue.put((attempt, outcome))

    def _next_batch(self) -> list[Ended]:
        """Return the waiting outcomes, if any; wait until there are some, or one aside is due."""
        self.activity.rest()
        if self._is_ending:
            if not self._queue.empty():
                return self._gather([])
            self._stopping.wait(self._until_aside() or 0)
            return []
        try:
            first = self._queue.get(timeout=self._until_aside())
        except Empty:
            return []
        self.activity.step()
        if first is None:
            self._is_ending = True
            return []
        return self._gather([first])

    def _gather(self, batch: list[Ended], most: int = BATCH) -> list[Ended]:
        """Return the batch with the waiting outcomes added, as many as one statement may have."""
        while len(batch) < most:
            try:
                ended = self._queue.get_nowait()
            except Empty:
                break
            if ended is None:
                self._is_ending = True
            elif ended[0] in self._unsettled:
                batch.append(ended)
        return batch

    def _announce(self, written: list[Ended]) -> None:
        try:
            # It may notify other processes.
            with call_timeout(connections[self._db]):
                self._on_settled(written)
        except Exception:  # whatever it raises: the rows are written, the thread goes on
            logger.exception("%d settled outcomes could not be announced", len(written))
        # Only now, so that nobody finds the runner idle before the outcomes are counted.
        for attempt in self._settled:
            self._unsettled.pop(attempt, None)
        self._settled.clear()
        self._on_backlog_written()
        reset_queries()

    def _write(self, batch: list[Ended]) -> list[Ended]:
        """Write the batch; return the outcomes whose claim still stood.

        After an error the batch is tried again, with what has arrived meanwhile. If that does not
        help, it is tried in turn with a single outcome. If that one is written, the database is not
        at fault, and those that still fail are set aside.
        """
        pauses, tries, written = Pauses(), 0, []
        while batch and not self._stopping.is_set():
            is_probe = len(batch) > 1 and tries >= WHOLE_TRIES and tries % 2 == 1
            part = batch[:1] if is_probe else batch
            try:
                written += self._try(part, tries)
            except Exception as error:  # whatever the database raises; it will be back
                tries += 1
                if tries > WHOLE_TRIES and _is_too_large(self._db, error, part):
                    return written + self._write_apart(batch, error)
                pause_after(error, self._db, pauses.next(), self._stopping)
                batch = self._gather(batch[1:] + part if is_probe else batch)
                continue
            if is_probe:
                return written + self._write_rest(batch[1:])
            return written
        return written

    def _write_rest(self, batch: list[Ended]) -> list[Ended]:
        """Write what is left of a batch of which one outcome was written."""
        try:
            return self._try(batch)
        except Exception as error:  # the database is there, so it is one of these
            return self._write_apart(batch, error)

    def _write_apart(self, batch: list[Ended], error: Exception) -> list[Ended]:
        """Write each outcome in a statement of its own, and set aside those that fail."""
        written: list[Ended] = []
        for one in batch:
            try:
                written += self._try([one])
            except Exception as found:  # as above
                if _is_too_large(self._db, found, [one]):
                    written += self._write_plain(one)
                else:
                    self._set_aside(one, found)
        return written

    def _try(self, batch: list[Ended], tries: int = 0) -> list[Ended]:
        """Write the batch, once; return the outcomes whose claim still stood.

        If the data of one outcome are refused, that row is FAILED and the others are written. If
        another transaction has locked a row, its outcome is set aside.
        """
        self.activity.step()
        connection = connections[self._db]
        try:
            with call_timeout(connection, CALL_TIMEOUT * min(tries + 1, MAX_FACTOR)):
                # An error in connecting is never due to the data.
                connection.ensure_connection()
                with refusals(self._db):
                    written, locked = settle_unlocked(self._db, batch)
        except Refused:
            if len(batch) == 1:
                return self._write_plain(batch[0])
            return [ended for one in batch for ended in self._write([one])]
        self._note_settled(batch, locked)
        return written

    def _write_plain(self, ended: Ended) -> list[Ended]:
        """Write FAILED for an outcome that the database refuses, so that its row can end."""
        try:
            with call_timeout(connections[self._db]):
                written, locked = settle_unlocked(self._db, [unstorable(*ended)])
        except Exception as error:  # whatever it is, the outcome itself is tried again
            self._set_aside(ended, error)
            return []
        self._note_settled([ended], locked)
        return written

    def _note_settled(self, batch: list[Ended], locked: list[Ended]) -> None:
        """Note that the outcomes are settled, but for those of locked rows."""
        for ended in locked:
            self._set_aside(ended)
        waiting = {attempt for attempt, _ in locked}
        for attempt, _ in batch:
            if attempt not in waiting:
                self._aside.pop(attempt, None)
                self._settled.append(attempt)

    # Outcomes that cannot be written while others can

    def _set_aside(self, ended: Ended, error: Exception | None = None) -> None:
        """Try the outcome again later, and apart from the others. Without error, it is locked."""
        attempt, outcome = ended
        aside = self._aside.setdefault(attempt, _Aside(outcome))
        aside.at = time.monotonic() + (pause := aside.pauses.next())
        if error is None:
            logger.debug("%s %s is locked", attempt.claim.task_path, outcome.id)
            return
        discard(connections[self._db])
        logger.error(
            "The outcome of %s %s cannot be written, next try in %.1f s: %s",
            attempt.claim.task_path,
            outcome.id,
            pause,
            error,
        )

    def _until_aside(self) -> float | None:
        """Return the seconds until an outcome that was set aside is due; None if there is none."""
        if not self._aside:
            return None
        return max(0.0, min(aside.at for aside in self._aside.values()) - time.monotonic())

    def _write_aside(self) -> list[Ended]:
        """Try the outcomes that were set aside and are due again, until one fails."""
        written: list[Ended] = []
        now = time.monotonic()
        due = [(key, aside.outcome) for key, aside in self._aside.items() if aside.at <= now]
        for ended in due:
            try:
                written += self._try([ended])
            except Exception as error:  # as in _write_apart()
                self._set_aside(ended, error)
                break
        return written


def _named(claims: list[Claim]) -> str:
    """Return the names of the first claims, for a line of the log."""
    names = [f"{claim.task_path} {claim.id}" for claim in claims[:MAX_NAMED]]
    return ", ".join(names + ["…"] * (len(claims) > MAX_NAMED))


def _is_too_large(db: str, error: Exception, batch: list[Ended]) -> bool:
    """Return whether the error, maybe a lost connection, is one that will come each time."""
    with call_timeout(connections[db]):
        return store.is_too_large(db, error, [outcome for _, outcome in batch])
