"""What keeps a write from a row that moved between the read and the write."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from unittest import mock

from django.db import IntegrityError, OperationalError, connections, transaction
from django.test import TestCase, TransactionTestCase

from dbtasks import store
from dbtasks.base.queues import AllBut
from dbtasks.models import ScheduledTask
from dbtasks.rescue import release_orphans, rescue
from dbtasks.store import operations, workers
from dbtasks.store.unit import DIALECTS, unit_of_work

from ..support.locks import locked
from ..support.rows import (
    DB,
    KeepsADay,
    ids,
    make_claim,
    make_task,
    outcome,
    release,
    row,
    vendor,
)
from ..support.workers import register


class GuardTests(TestCase):
    """Each condition of a write, alone."""

    def change(self, id: Any, **values: Any) -> None:
        ScheduledTask.objects.filter(pk=id).update(**values)

    def test_claim_one_takes_its_backend_s_rows_only(self):
        """An id says nothing of whose row it is."""
        id = make_task(backend="other")

        self.assertIsNone(store.claim_one(DB, "default", "w1", id))
        self.assertEqual("READY", row(id).status)

    def test_claim_takes_its_backend_s_rows_only(self):
        """Of all queues or of some: another backend's rows are none of a runner's business."""
        make_task(backend="other")

        self.assertEqual([], store.claim(DB, "default", "w1", 10))
        self.assertEqual([], store.claim(DB, "default", "w1", 10, ["default"]))

    def test_claim_one_takes_no_row_that_runs_or_has_ended(self):
        """Whoever comes second with the same id gets nothing."""
        claim = make_claim()
        self.assertIsNone(store.claim_one(DB, "default", "w2", row(claim.id).pk))
        store.settle(DB, [outcome(claim)])

        self.assertIsNone(store.claim_one(DB, "default", "w2", row(claim.id).pk))

    def test_only_rows_that_wait_for_their_time_are_promoted_or_run_now(self):
        """Neither what runs inside enqueue() nor what is past waiting, whatever else they say."""
        past = store.now(DB) - timedelta(days=1)
        immediate, running, ended = make_task(), make_claim().id, make_claim().id
        self.change(immediate, hold="immediate", run_after=past)
        self.change(running, hold="scheduled", run_after=past)
        self.change(ended, hold="scheduled", run_after=past, status="SUCCESSFUL")

        self.assertEqual([], store.promote(DB, "default"))
        self.assertEqual(0, store.run_now(DB, [immediate, running, ended]))
        self.assertEqual("immediate", row(immediate).hold)

    def test_a_stale_outcome_is_not_told_as_written(self):
        """The row says the same, but of a later claim."""
        stale = make_claim()
        release([stale])
        fresh = store.claim_one(DB, "default", "w2", row(stale.id).pk)
        store.settle(DB, [outcome(fresh)])

        self.assertEqual(set(), store.settle(DB, [outcome(stale)]))
        beside = make_claim()
        self.assertEqual({beside.id}, store.settle(DB, [outcome(stale), outcome(beside)]))

    def test_a_row_to_be_cancelled_does_not_stand_for_ready(self):
        """However often it is tried, it would not be written."""
        claim, stale = make_claim(), make_claim()
        store.request_cancel(DB, [claim.id])
        again = [outcome(claim, "READY"), outcome(stale, fence=stale.fence + 1)]

        self.assertEqual(set(), store.standing(DB, again))
        self.assertEqual({claim.id}, store.standing(DB, [outcome(claim, "FAILED")]))

    def test_purge_leaves_other_backends_alone(self):
        """Each runner purges its own."""
        past = store.now(DB) - timedelta(days=1)
        claim = make_claim(backend="other")
        store.settle(DB, [outcome(claim, delete_after=past)])

        self.assertEqual(0, store.purge(DB, "default"))
        self.assertEqual(1, store.purge(DB, "other"))

    def test_purge_older_never_takes_what_is_not_finished(self):
        """Whatever it is asked for, and whatever the row says of its end."""
        self.change(make_claim().id, finished_at=store.now(DB) - timedelta(days=2))

        found = store.purge_older(DB, timedelta(days=1), statuses=["RUNNING"])
        self.assertEqual([], list(found))

    def test_cancel_asks_only_for_rows_that_wait(self):
        """How long a row stays is asked of none that is not cancelled."""
        retain = mock.Mock(return_value=None)
        store.cancel(DB, [make_claim().id], retain)

        retain.assert_not_called()

    def test_a_row_that_is_not_finished_is_never_purged(self):
        """Whatever its delete_after says."""
        past = store.now(DB) - timedelta(days=1)
        due, running = make_task(), make_claim().id
        for id in (due, running):
            self.change(id, delete_after=past)

        self.assertEqual(0, store.purge(DB, "default"))
        self.assertEqual(0, store.delete(DB, [due, running], expired=True))
        self.assertEqual(0, store.delete(DB, [due, running]))

    def test_delete_of_expired_rows_asks_the_clock(self):
        """A row whose retention is not over stays."""
        claim = make_claim()
        store.settle(DB, [outcome(claim, delete_after=store.now(DB) + timedelta(days=1))])

        self.assertEqual(0, store.delete(DB, [claim.id], expired=True))
        self.assertEqual(1, store.delete(DB, [claim.id]))

    def test_nothing_is_done_to_no_rows(self):
        """Whoever chose none has changed none."""
        make_task()

        self.assertEqual(0, store.delete(DB, []))
        self.assertEqual(0, store.delete(DB, [], expired=True))
        self.assertEqual(0, store.retry(DB, []))
        self.assertEqual(0, store.run_now(DB, []))
        self.assertEqual(0, store.cancel(DB, [], lambda row: None))

    def test_a_row_that_is_retried_meanwhile_outlives_purge_older(self):
        """Between the read of a batch and its delete somebody may have wanted a row again."""
        past = store.now(DB) - timedelta(days=2)
        kept, gone = make_claim(), make_claim()
        store.settle(DB, [outcome(claim, "FAILED", finished_at=past) for claim in (kept, gone)])

        def late(db: str, work: Any) -> Any:
            with mock.patch.object(operations, "unit_of_work", unit_of_work):
                store.retry(DB, [kept.id])
            return unit_of_work(db, work)

        with mock.patch.object(operations, "unit_of_work", late):
            self.assertEqual([1], list(store.purge_older(DB, timedelta(days=1))))
        self.assertEqual("READY", row(kept.id).status)

    def test_cancel_leaves_a_row_that_is_claimed_meanwhile(self):
        """Between the read of the row and the write a runner may have taken it."""
        id = make_task()

        def taken(task: ScheduledTask) -> None:
            store.claim_one(DB, "default", "w1", task.pk)

        self.assertEqual(0, store.cancel(DB, [id], taken))
        self.assertEqual(("RUNNING", "w1"), (row(id).status, row(id).worker_id))

    def test_cancel_leaves_a_row_that_has_run_meanwhile(self):
        """READY again, but another fence: it is not the row that was read."""
        id = make_task()

        def ran(task: ScheduledTask) -> None:
            claim = store.claim_one(DB, "default", "w1", task.pk)
            store.settle(DB, [outcome(claim, "READY")])

        self.assertEqual(0, store.cancel(DB, [id], ran))
        self.assertEqual("READY", row(id).status)

    def test_cancel_leaves_a_row_that_is_cancelled_meanwhile(self):
        """Two people, one click each: one error in the row."""
        id = make_task()

        def cancelled(task: ScheduledTask) -> None:
            store.cancel(DB, [task.pk], lambda row: None)

        self.assertEqual(0, store.cancel(DB, [id], cancelled))
        self.assertEqual(1, len(row(id).errors))

    def test_only_running_rows_are_asked_to_end(self):
        """Others are cancelled, or have nothing left to cancel."""
        due, running, done = make_task(), make_claim(), make_claim()
        store.settle(DB, [outcome(done)])

        self.assertEqual(1, store.request_cancel(DB, [due, running.id, done.id]))
        self.assertEqual(1, store.request_cancel(DB, [running.id]))
        self.assertFalse(row(due).cancel_requested or row(done.id).cancel_requested)

    def test_a_worker_hears_of_its_own_rows_only(self):
        """Each with the fence of the claim that is meant."""
        mine, other = make_claim("w1"), make_claim("w2")
        make_claim("w1")
        store.request_cancel(DB, [mine.id, other.id])

        self.assertEqual([(mine.id, mine.fence)], store.cancel_requests(DB, "w1"))
        store.settle(DB, [outcome(mine)])
        self.assertEqual([], store.cancel_requests(DB, "w1"))

    def test_a_row_to_be_cancelled_is_not_ready_again(self):
        """Whatever the reason; beside it others are settled, and its own end is taken."""
        asked, other = make_claim(), make_claim()
        store.request_cancel(DB, [asked.id])
        later = store.now(DB) + timedelta(hours=1)
        written = store.settle(
            DB, [outcome(asked, "READY", run_after=later), outcome(other, "READY")]
        )

        self.assertEqual({other.id}, written)
        self.assertEqual(0, release([asked]))
        self.assertEqual(("RUNNING", "w1"), (row(asked.id).status, row(asked.id).worker_id))
        for status in ("FAILED", "SUCCESSFUL"):
            self.change(asked.id, status="RUNNING", cancel_requested=True)
            self.assertEqual({asked.id}, store.settle(DB, [outcome(asked, status)]))
            self.assertEqual(
                (status, False), (row(asked.id).status, row(asked.id).cancel_requested)
            )

    def test_retry_begins_anew(self):
        """Counts that limit attempts, and the time to be deleted, are forgotten."""
        claim = make_claim()
        later = store.now(DB) + timedelta(days=1)
        counts = {"failures": 3, "lost": 2, "releases": 4}
        store.settle(DB, [outcome(claim, "FAILED", **counts, delete_after=later)])
        self.change(claim.id, cancel_requested=True)
        store.retry(DB, [claim.id])
        again = row(claim.id)

        self.assertEqual((0, 0, 0), (again.failures, again.lost, again.releases))
        self.assertFalse(again.cancel_requested)
        self.assertEqual((None, None), (again.delete_after, again.finished_at))

    def test_two_rows_never_hold_one_tick(self):
        """The database itself forbids it."""
        values = {"schedule_key": "nightly", "tick": store.now(DB)}
        self.change(make_task(), **values)
        with self.assertRaises(IntegrityError), transaction.atomic(DB):
            self.change(make_task(), **values)


class UnitTests(TransactionTestCase):
    """unit_of_work()"""

    def test_a_unit_that_is_rolled_back_is_run_again(self):
        """A deadlock is the database's way to ask for another try."""
        sql = DIALECTS[vendor()]
        claim = make_claim()
        settle, failures = sql.settle, iter([OperationalError("deadlock")] * 3)

        def sometimes(*args: Any) -> Any:
            if error := next(failures, None):
                raise error
            return settle(*args)

        with (
            mock.patch.object(sql, "is_transient", return_value=True),
            mock.patch.object(sql, "settle", sometimes),
        ):
            self.assertEqual({claim.id}, store.settle(DB, [outcome(claim)]))

    def test_a_unit_is_not_tried_for_ever(self):
        """Each try may have waited for a lock as long as the server allows."""
        sql = DIALECTS[vendor()]
        with (
            mock.patch.object(sql, "settle", side_effect=OperationalError("lock")) as settle,
            mock.patch.object(sql, "is_transient", return_value=True),
            mock.patch("dbtasks.store.unit.TRY_SECONDS", -1),
            self.assertRaisesMessage(OperationalError, "lock"),
        ):
            store.settle(DB, [outcome(make_claim())])
        self.assertEqual(1, settle.call_count)

    def test_other_errors_are_not_tried_again(self):
        """What another try would not mend reaches the caller at once."""
        sql = DIALECTS[vendor()]
        with (
            mock.patch.object(sql, "settle", side_effect=OperationalError("no")) as settle,
            mock.patch.object(sql, "is_transient", return_value=False),
            self.assertRaisesMessage(OperationalError, "no"),
        ):
            store.settle(DB, [outcome(make_claim())])
        self.assertEqual(1, settle.call_count)


class LockTests(TransactionTestCase):
    """Rows that another transaction holds."""

    def setUp(self) -> None:
        if vendor() == "sqlite":
            self.skipTest("SQLite locks the file, not rows")

    def hold(self, id: Any) -> None:
        """Lock the row in a transaction of its own until the test ends."""
        self.enterContext(locked(id))

    def at_once(self, work: Callable[[], Any]) -> Any:
        """Return what the work returns in a thread, which must not wait for a lock."""
        found: list[Any] = []

        def run() -> None:
            try:
                found.append(work())
            finally:
                connections.close_all()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(4)
        self.assertFalse(thread.is_alive(), "it waits for a locked row")
        return found[0]

    def claim(self, queues: Any = None) -> list[Any]:
        return self.at_once(lambda: ids(store.claim(DB, "default", "w1", 10, queues)))

    def settle(self, *ended: store.Outcome) -> set[Any]:
        return self.at_once(lambda: store.settle(DB, ended))

    def test_outcomes_pass_over_a_locked_row(self):
        """The others are written, and the locked one is known from one that has moved on."""
        locked, free, gone = make_claim(), make_claim(), make_claim()
        release([gone])
        self.hold(locked.id)
        ended = [outcome(claim) for claim in (locked, free, gone)]

        self.assertEqual({free.id}, self.settle(*ended))
        self.assertEqual(("RUNNING", "SUCCESSFUL"), (row(locked.id).status, row(free.id).status))
        self.assertEqual({locked.id}, store.standing(DB, ended))

    def test_a_single_outcome_passes_over_a_locked_row(self):
        """That is another statement."""
        locked = make_claim()
        self.hold(locked.id)
        ended = outcome(locked)

        self.assertEqual(set(), self.settle(ended))
        self.assertEqual({locked.id}, store.standing(DB, [ended]))

    def test_a_rescue_passes_over_a_locked_row(self):
        """The other rows of the lost worker are rescued."""
        register("w1")
        locked, free = make_claim("w1"), make_claim("w1")
        workers.declare_lost(DB, "w1", 0)
        self.hold(locked.id)

        [rescued] = self.at_once(lambda: rescue(KeepsADay()))
        self.assertEqual(("RUNNING", "READY"), (row(locked.id).status, row(free.id).status))
        self.assertEqual(free.id, store.pk_text(DB, rescued.pk))

    def test_orphans_pass_over_a_locked_row(self):
        """The other claims that never arrived are requeued."""
        locked, free = make_claim(), make_claim()
        self.hold(locked.id)
        claims = [(claim.id, claim.fence) for claim in (locked, free)]

        self.assertEqual(1, self.at_once(lambda: release_orphans(KeepsADay(), claims)))
        self.assertEqual(("RUNNING", "READY"), (row(locked.id).status, row(free.id).status))

    def test_a_claim_passes_over_a_locked_row(self):
        """It takes the next one, at once."""
        first, second = make_task(priority=9), make_task()
        self.hold(first)

        self.assertEqual([second], self.claim())

    def test_a_claim_of_a_queue_passes_over_a_locked_row(self):
        """With queues named as well."""
        first, second = make_task(priority=9), make_task()
        self.hold(first)

        self.assertEqual([second], self.claim(["default"]))

    def test_a_claim_of_all_but_a_queue_passes_over_a_locked_row(self):
        """With queues excluded as well."""
        first, second = make_task(priority=9), make_task()
        make_task(queue_name="mail")
        self.hold(first)

        self.assertEqual([second], self.claim(AllBut(["mail"])))
