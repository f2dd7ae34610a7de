"""Two transitions of one row at once come to what one of the two orders would have come to."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

from django.db import connections, transaction
from django.test import TransactionTestCase

from dbtasks import store
from dbtasks.execution.outcomes import not_started
from dbtasks.models import ScheduledTask, Worker
from dbtasks.rescue import rescue
from dbtasks.store import workers

from ..support.rows import DB, KeepsADay, make_task, outcome, vendor

DAY = timedelta(days=1)


class Subject(NamedTuple):
    """The row, and the claim that some hold in hand: of a run, or of one that has ended."""

    id: Any
    claim: store.Claim | None


def due() -> Subject:
    return Subject(make_task(), None)


def held() -> Subject:
    """A row whose run_after has come, and that nobody has promoted yet."""
    id = make_task(run_after=store.now(DB) + DAY)
    ScheduledTask.objects.filter(pk=id).update(run_after=store.now(DB) - DAY)
    return Subject(id, None)


def running() -> Subject:
    """A row that runs under a worker that was declared lost, and still has its claim."""
    workers.register(DB, "w1", "default", "", 1, 1)
    id = make_task()
    [claim] = store.claim(DB, "default", "w1", 1, registered=True)
    workers.declare_lost(DB, "w1", 0)
    return Subject(id, claim)


def successful() -> Subject:
    return _ended("SUCCESSFUL")


def failed() -> Subject:
    return _ended("FAILED")


def _ended(status: str) -> Subject:
    """A row that has ended, long enough ago to be deleted by whatever deletes."""
    subject = running()
    past = store.now(DB) - 2 * DAY
    store.settle(DB, [outcome(subject.claim, status, finished_at=past, delete_after=past)])
    return subject


def settle(status: str, wait: bool) -> Callable[[Subject], Any]:
    def act(subject: Subject) -> Any:
        past = subject.claim.claimed_at - 2 * DAY
        ends = {"finished_at": past, "delete_after": past} if status != "READY" else {}
        return store.settle(DB, [outcome(subject.claim, status, **ends)], wait=wait)

    return act


STATES = (due, held, running, successful, failed)
ACTS: dict[str, Callable[[Subject], Any]] = {
    "claim": lambda s: store.claim(DB, "default", "w2", 1, registered=True),
    "settle ok": settle("SUCCESSFUL", True),
    "settle again": settle("READY", True),
    "settle free ok": settle("SUCCESSFUL", False),
    "released": lambda s: store.settle(DB, [not_started(DB, s.claim)]),
    "rescue": lambda s: rescue(KeepsADay()),
    "cancel": lambda s: store.cancel(DB, [s.id], lambda row: DAY),
    "retry": lambda s: store.retry(DB, [s.id]),
    "run_now": lambda s: store.run_now(DB, [s.id]),
    "promote": lambda s: store.promote(DB, "default"),
    "purge": lambda s: store.purge(DB, "default"),
    "delete": lambda s: store.delete(DB, [s.id]),
    "purge_older": lambda s: list(store.purge_older(DB, DAY)),
}
# These take no row that another transaction holds, be it for a write that changes nothing, as
# InnoDB may: the row is there for the next of them.
PASSES_OVER = ("claim", "promote", "purge", "settle free ok", "released", "rescue")
NEEDS_CLAIM = ("settle ok", "settle again", "settle free ok", "released")


def possible(state: Callable[[], Subject]) -> list[str]:
    return [name for name in ACTS if name not in NEEDS_CLAIM or state not in (due, held)]


def stands(subject: Subject) -> Any:
    """Return the row as it stands, times aside; None if it is gone."""
    row = ScheduledTask.objects.using(DB).filter(pk=subject.id).first()
    if row is None:
        return None
    counts = (row.fence, row.attempt, row.failures, row.lost)
    texts = (len(row.errors or []), len(row.worker_ids or []), row.return_value)
    return (row.status, row.hold, row.worker_id, *counts, *texts, row.delete_after is None)


class Beside:
    """A transition in a thread, with a connection of its own."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self._act = act
        self._begun = threading.Event()
        self.session: Any = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self._begun.wait(10)

    def _run(self) -> None:
        try:
            self.session = session()
            self._begun.set()
            self._act()
        except BaseException as error:  # the test shows it
            self.error = error
        finally:
            self._begun.set()
            connections.close_all()

    def wait_or_end(self) -> None:
        """Return once the database shows that it waits for a lock, or when it has ended."""
        deadline = time.monotonic() + 10
        while self.thread.is_alive() and not waits(self.session):
            assert time.monotonic() < deadline, "it neither waits nor ends"
            self.thread.join(0.002)

    def end(self) -> None:
        """Return when it has ended; raise what it raised."""
        self.thread.join(30)
        assert not self.thread.is_alive(), "it waits for ever"
        if self.error is not None:
            raise self.error


def session() -> Any:
    """Return what the database calls this connection."""
    with connections[DB].cursor() as cursor:
        if vendor() == "sqlite":
            cursor.execute("SELECT 1")
            return None
        function = {"postgresql": "pg_backend_pid()", "mysql": "CONNECTION_ID()"}[vendor()]
        cursor.execute(f"SELECT {function}")
        return cursor.fetchone()[0]


def waits(number: Any) -> bool:
    """Tell whether that session waits for a lock."""
    with connections[DB].cursor() as cursor:
        if vendor() == "postgresql":
            # Not pg_stat_activity, which is remembered to the end of the transaction.
            cursor.execute("SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted", [number])
            return cursor.fetchone() is not None
        # Not information_schema.innodb_trx, which is not renewed while it is asked all the time.
        cursor.execute("SHOW ENGINE INNODB STATUS")
        transactions = cursor.fetchone()[2].split("---TRANSACTION")
    return any("LOCK WAIT" in text and f"thread id {number}," in text for text in transactions)


class InterleavingTests(TransactionTestCase):
    """Each pair of transitions, in each state of the row that both can be tried in."""

    def prepared(self, state: Callable[[], Subject]) -> Subject:
        for model in (ScheduledTask, Worker):
            model.objects.all()._raw_delete(DB)
        workers.register(DB, "w2", "default", "", 1, 1)
        return state()

    def in_order(self, state: Callable[[], Subject], *names: str) -> Any:
        subject = self.prepared(state)
        for name in names:
            ACTS[name](subject)
        return stands(subject)

    def at_once(self, state: Callable[[], Subject], first: str, second: str) -> Any:
        """The second begins while the first is not committed."""
        subject = self.prepared(state)
        with transaction.atomic(DB):
            ACTS[first](subject)
            beside = Beside(lambda: ACTS[second](subject))
            # A file has one writer: there the second waits in any case, and nothing shows it.
            if vendor() != "sqlite":
                beside.wait_or_end()
        beside.end()
        return stands(subject)

    def check(self, state: Callable[[], Subject]) -> None:
        for first in possible(state):
            for second in possible(state):
                with self.subTest(state=state.__name__, first=first, second=second):
                    orders = [
                        self.in_order(state, first, second),
                        self.in_order(state, second, first),
                    ]
                    if second in PASSES_OVER:
                        orders.append(self.in_order(state, first))
                    self.assertIn(self.at_once(state, first, second), orders)

    def test_interleavings_of_a_due_row(self):
        """No update is lost, and no deadlock surfaces."""
        self.check(due)

    def test_interleavings_of_a_held_row(self):
        """No update is lost, and no deadlock surfaces."""
        self.check(held)

    def test_interleavings_of_a_running_row(self):
        """No update is lost, and no deadlock surfaces; the claim is that of a lost worker."""
        self.check(running)

    def test_interleavings_of_a_successful_row(self):
        """No update is lost, and no deadlock surfaces; a stale claim is still in hand."""
        self.check(successful)

    def test_interleavings_of_a_failed_row(self):
        """No update is lost, and no deadlock surfaces; a stale claim is still in hand."""
        self.check(failed)
