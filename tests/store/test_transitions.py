"""What each transition of the store does, and what its guard keeps it from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from unittest import skipIf, skipUnless
from uuid import UUID, uuid4

from django.db import DatabaseError, IntegrityError, connections, transaction
from django.test import TestCase, TransactionTestCase
from django.utils import timezone

from dbtasks import store
from dbtasks.base.queues import AllBut
from dbtasks.models import TABLE, Hold, ScheduledTask
from dbtasks.store.dialects import postgresql
from dbtasks.store.unit import BATCH

from ..support.rows import DB, ids, make_claim, make_task, outcome, release, row, vendor


class EnqueueTests(TestCase):
    """∅ → READY"""

    def test_a_row_is_ready_and_due(self):
        """What is enqueued may be claimed at once."""
        task = row(make_task(priority=5, queue_name="mail"))

        self.assertEqual(
            ("READY", "", 5, "mail"), (task.status, task.hold, task.priority, task.queue_name)
        )
        self.assertEqual((0, 0, [1, 2], {}), (task.fence, task.attempt, task.args, task.kwargs))

    def test_a_run_after_to_come_holds_the_row(self):
        """The claim never has to look at times."""
        later = row(make_task(run_after=timezone.now() + timedelta(hours=1)))
        past = row(make_task(run_after=timezone.now() - timedelta(hours=1)))

        self.assertEqual((Hold.SCHEDULED, Hold.NONE), (later.hold, past.hold))

    def test_large_rows_are_split_too(self):
        """More text than one statement carries is written all the same."""
        text = f'["{"x" * 250_000}"]'
        now = timezone.now()
        values = ("a.b", "default", "q", 0, text, "{}", None, None, now, None)
        store.enqueue(DB, [store.NewTask(store.pk_text(DB, uuid4()), *values) for _ in range(100)])

        self.assertEqual(100, ScheduledTask.objects.count())

    def test_many_rows_are_all_or_none(self):
        """A failure in the last batch leaves nothing of the first."""
        good = [
            store.NewTask(
                store.pk_text(DB, uuid4()),
                "a.b",
                "default",
                "q",
                0,
                "[]",
                "{}",
                None,
                None,
                timezone.now(),
                None,
            )
            for _ in range(BATCH)
        ]
        with self.assertRaises(IntegrityError), transaction.atomic(DB):
            store.enqueue(DB, [*good, good[0]])

        self.assertEqual(0, ScheduledTask.objects.count())


@skipUnless(
    vendor() == "postgresql" and postgresql._takes_several(connections[DB]),
    "only PostgreSQL takes a hint with the rows, with psycopg 3 that binds values itself",
)
@skipIf(connections[DB].settings_dict["DISABLE_SERVER_SIDE_CURSORS"], "nobody hears by a pooler")
class HintTests(TransactionTestCase):
    """A NOTIFY in one message with the INSERT, and what of the two may fail."""

    def enqueue(self, id: UUID, word: str = "default", count: int = 1) -> bool:
        """Enqueue a row of that id, and others, with a hint."""
        ids = [id, *(uuid4() for _ in range(count - 1))]
        values = ("a.b", "default", "q", 0, "[]", "{}", None, None, timezone.now(), None)
        rows = [store.NewTask(store.pk_text(DB, id), *values) for id in ids]
        return store.enqueue(DB, rows, ("dbtasks", word))

    def is_usable(self) -> bool:
        """Tell whether the connection does what it should, outside of a transaction."""
        with connections[DB].cursor() as cursor:
            cursor.execute("SELECT pg_current_xact_id_if_assigned()")
            return connections[DB].get_autocommit() and cursor.fetchone() == (None,)

    def test_goes_with_the_rows(self):
        """One row or many: they are committed when the hint is heard."""
        with listening() as heard:
            for count in (1, 3):
                self.assertTrue(self.enqueue(uuid4(), f"word {count}", count))
                self.assertEqual(f"word {count}", heard())

        self.assertEqual(4, ScheduledTask.objects.count())
        self.assertTrue(self.is_usable())

    def test_is_not_sent_in_a_transaction_of_the_caller(self):
        """There the rows are not committed, and NOTIFY would hold others back."""
        with transaction.atomic(DB):
            self.assertFalse(self.enqueue(uuid4()))
            transaction.set_rollback(True, DB)

        self.assertEqual(0, ScheduledTask.objects.count())

    def test_a_hint_that_fails_fails_nothing_else(self):
        """The row is committed by then, and the caller is not told otherwise."""
        self.assertFalse(self.enqueue(id := uuid4(), "more than NOTIFY takes" * 1000))

        self.assertEqual("READY", row(id).status)
        self.assertTrue(self.is_usable())

    def test_a_row_that_fails_leaves_no_transaction_behind(self):
        """The connection is as usable as after any other failed statement."""
        self.enqueue(id := uuid4())
        with listening() as heard:
            with self.assertRaises(IntegrityError):
                self.enqueue(id, "too early")
            self.assertTrue(self.is_usable())
            self.enqueue(uuid4(), "now")

            self.assertEqual("now", heard())

    def test_a_commit_that_fails_is_not_taken_for_the_hint(self):
        """Constraints of the project may be checked as late as that."""
        with connections[DB].cursor() as cursor:
            cursor.execute(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'not today'; END $$; "
                f"CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON {TABLE} DEFERRABLE "
                "INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()"
            )
        try:
            with self.assertRaisesMessage(DatabaseError, "not today"):
                self.enqueue(uuid4())
            self.assertTrue(self.is_usable())
        finally:
            with connections[DB].cursor() as cursor:
                cursor.execute("DROP FUNCTION refuse CASCADE")

        self.assertEqual(0, ScheduledTask.objects.count())


@contextmanager
def listening() -> Iterator[Callable[[], str]]:
    """Listen as another process; yield what returns the next word."""
    wrapper = connections[DB]
    with wrapper.Database.connect(**wrapper.get_connection_params(), autocommit=True) as other:
        other.execute("LISTEN dbtasks")
        yield lambda: next(note.payload for note in other.notifies(timeout=10, stop_after=1))


class ClaimTests(TestCase):
    """due → RUNNING"""

    def test_takes_higher_priority_first_then_older(self):
        """Order is priority descending, then age."""
        first, second, urgent = make_task(), make_task(), make_task(priority=9)

        claims = store.claim(DB, "default", "w1", 10)

        self.assertEqual([urgent, first, second], ids(claims))

    def test_marks_the_row_and_raises_the_fence(self):
        """A claim is RUNNING, owned, counted and fenced before any code runs."""
        id = make_task()
        [claim] = store.claim(DB, "default", "w1", 10)
        task = row(id)

        self.assertEqual(
            ("RUNNING", "w1", 1, 1), (task.status, task.worker_id, task.fence, task.attempt)
        )
        self.assertEqual((1, 1, "[1,2]"), (claim.fence, claim.attempt, claim.args))
        # MySQL reads its clock once for each of the two statements.
        self.assertLess(abs(task.last_attempted_at - claim.claimed_at), timedelta(seconds=1))

    def test_takes_no_more_than_asked(self):
        """The limit holds."""
        for _ in range(5):
            make_task()

        self.assertEqual(2, len(store.claim(DB, "default", "w1", 2)))
        self.assertEqual(3, len(store.claim(DB, "default", "w1", 10)))
        self.assertEqual([], store.claim(DB, "default", "w1", 10))

    def test_takes_only_its_backend_and_queues(self):
        """Rows of others are none of a runner's business."""
        make_task(backend="other")
        make_task(queue_name="mail")
        mine = make_task(queue_name="bulk")

        self.assertEqual([mine], ids(store.claim(DB, "default", "w1", 10, ["bulk", "none"])))

    def test_merges_queues_by_priority(self):
        """With several queues the order is the same as with one."""
        low = make_task(queue_name="a")
        mid = make_task(queue_name="b", priority=1)
        top = make_task(queue_name="a", priority=2)

        self.assertEqual([top, mid], ids(store.claim(DB, "default", "w1", 2, ["a", "b"])))
        self.assertEqual([low], ids(store.claim(DB, "default", "w1", 2, ["a", "b"])))

    def test_takes_all_but_some_queues(self):
        """Whatever the others are called, in their order; new ones count as they come."""
        other = AllBut(["mail", "none"])
        make_task(queue_name="mail", priority=9)
        make_task(queue_name="zzz", backend="other")
        self.assertEqual([], store.claim(DB, "default", "w1", 9, other))
        self.assertFalse(store.peek(DB, "default", other).due)

        low, mid = make_task(queue_name="zzz"), make_task(queue_name="a", priority=1)
        top = make_task(queue_name="default", priority=2)
        self.assertTrue(store.peek(DB, "default", other).due)
        self.assertEqual([top, mid], ids(store.claim(DB, "default", "w1", 2, other)))
        self.assertEqual([low], ids(store.claim(DB, "default", "w1", 2, other)))

    def test_takes_quarantined_rows_of_all_but_some_queues(self):
        """These rows run alone, and their queues are excluded alike."""
        rows = [make_task(queue_name=name) for name in ("mail", "other")]
        ScheduledTask.objects.filter(pk__in=rows).update(hold="quarantined", lost=2)

        found = store.claim_quarantined(DB, "default", "w1", AllBut(["mail"]))
        self.assertEqual(rows[1:], ids([found]))
        peek = store.peek(DB, "default", AllBut(["mail"]))
        self.assertEqual((False, False), (peek.due, peek.quarantined))

    def test_passes_over_held_and_finished_rows(self):
        """Only due rows are claimed."""
        make_task(run_after=timezone.now() + timedelta(hours=1))
        store.settle(DB, [outcome(make_claim())])
        make_claim()

        self.assertEqual([], store.claim(DB, "default", "w2", 10))


class SettleTests(TestCase):
    """RUNNING → SUCCESSFUL, FAILED, READY"""

    def settle(self, ended: store.Outcome) -> set[Any]:
        return store.settle(DB, [ended])

    def test_writes_every_column_of_the_outcome(self):
        """What the attempt came to is what the row says."""
        claim = make_claim()
        self.settle(outcome(claim, "FAILED", failures=1, errors='[["a.B","text"]]'))
        task = row(claim.id)

        self.assertEqual(
            ("FAILED", None, [["a.B", "text"]], ["w1"]),
            (task.status, task.worker_id, task.errors, task.worker_ids),
        )
        self.assertEqual(timedelta(seconds=1), task.finished_at - task.started_at)

    def test_an_older_fence_writes_nothing(self):
        """A worker that was declared lost cannot touch a later run."""
        stale = make_claim("w1")
        release([stale])
        [fresh] = store.claim(DB, "default", "w2", 1)

        self.assertEqual(set(), self.settle(outcome(stale)))
        self.assertEqual(("RUNNING", "w2"), (row(stale.id).status, row(stale.id).worker_id))
        self.assertEqual({fresh.id}, self.settle(outcome(fresh)))

    def test_a_row_that_is_not_running_is_left_alone(self):
        """An outcome that comes twice changes nothing the second time."""
        claim = make_claim()
        self.settle(outcome(claim))
        self.settle(outcome(claim, "FAILED"))

        self.assertEqual("SUCCESSFUL", row(claim.id).status)

    def test_one_stale_outcome_does_not_keep_the_others(self):
        """A batch writes those that still stand and names them."""
        good, stale, last = make_claim(), make_claim(), make_claim()
        store.settle(DB, [outcome(stale, "FAILED")])

        written = store.settle(DB, [outcome(good), outcome(stale), outcome(last)])

        self.assertEqual({good.id, last.id}, written)
        self.assertEqual("FAILED", row(stale.id).status)

    def test_ready_again_may_be_held(self):
        """A retry that waits is READY and scheduled."""
        claim = make_claim()
        self.settle(outcome(claim, "READY", run_after=claim.claimed_at + timedelta(hours=1)))

        self.assertEqual(("READY", "scheduled"), (row(claim.id).status, row(claim.id).hold))

    def test_an_outcome_that_was_stored_before_counts_as_stored(self):
        """The reply to the first write was lost; what others have made of the row is not ours."""
        claim = make_claim()
        ended, others = outcome(claim, "FAILED", failures=1), outcome(claim, "FAILED", lost=1)

        self.assertEqual({claim.id}, self.settle(ended))
        self.assertEqual({claim.id}, self.settle(ended))
        self.assertEqual(set(), self.settle(others))

    def test_large_batches_are_split(self):
        """More outcomes than one statement carries are all written."""
        with_text = [
            outcome(make_claim(), return_value='"' + "x" * 2_000_000 + '"') for _ in range(3)
        ]

        self.assertEqual(3, len(store.settle(DB, with_text)))


class SettleTogetherTests(SettleTests):
    """The same beside another row: that is another statement."""

    def settle(self, ended: store.Outcome) -> set[Any]:
        beside = make_claim()
        written = store.settle(DB, [ended, outcome(beside)])
        self.assertIn(beside.id, written)
        return written - {beside.id}


class ReleaseTests(TestCase):
    """RUNNING, not started → READY"""

    def test_takes_back_the_start_but_not_the_fence(self):
        """A row that never started has no attempt, and can be claimed again."""
        claim = make_claim()
        self.assertEqual(1, release([claim]))
        task = row(claim.id)

        self.assertEqual(
            ("READY", 0, 1, None), (task.status, task.attempt, task.fence, task.worker_id)
        )
        self.assertEqual([], task.worker_ids or [])

    def test_a_row_that_moved_on_is_left_alone(self):
        """A late release requeues nothing."""
        claim = make_claim()
        store.settle(DB, [outcome(claim)])

        self.assertEqual(0, release([claim]))
        self.assertEqual("SUCCESSFUL", row(claim.id).status)


class PromoteTests(TestCase):
    """held → due"""

    def test_lifts_the_hold_of_what_has_come_due(self):
        """A row becomes due when its run_after comes, not before."""
        soon = make_task(run_after=store.now(DB) + timedelta(hours=1))
        later = make_task(run_after=store.now(DB) + timedelta(hours=2))
        ScheduledTask.objects.filter(pk=soon).update(run_after=store.now(DB) - timedelta(seconds=1))

        self.assertEqual([soon], ids(store.promote(DB, "default")))
        self.assertEqual(("", "scheduled"), (row(soon).hold, row(later).hold))

    def test_leaves_other_backends_alone(self):
        """Each runner promotes its own."""
        id = make_task(backend="other", run_after=store.now(DB) + timedelta(hours=1))
        ScheduledTask.objects.update(run_after=store.now(DB) - timedelta(seconds=1))

        self.assertEqual([], store.promote(DB, "default"))
        self.assertEqual("scheduled", row(id).hold)

    def test_a_peek_tells_what_is_due_and_what_comes_next(self):
        """One query says whether to claim and how long to sleep."""
        self.assertEqual(store.QueuePeek(False, False, None), store.peek(DB, "default"))

        make_task(run_after=store.now(DB) + timedelta(seconds=60))
        peek = store.peek(DB, "default")
        self.assertFalse(peek.due)
        self.assertAlmostEqual(60, peek.next_due, delta=5)

        make_task(queue_name="mail")
        self.assertTrue(store.peek(DB, "default").due)
        self.assertTrue(store.peek(DB, "default", ["a", "mail"]).due)
        self.assertFalse(store.peek(DB, "default", ["a", "b"]).due)


class QuarantinedTests(TestCase):
    """Rows with which two runners were lost: due, but claimed alone."""

    def setUp(self):
        self.claim = make_claim()

    def requeue(self, lost, **values):
        store.settle(DB, [outcome(self.claim, "READY", lost=lost, **values)])
        return row(self.claim.id).hold

    def test_the_second_loss_quarantines_a_row(self):
        """The first may be anybody's fault, and costs the row nothing."""
        self.assertEqual("", self.requeue(1))
        [self.claim] = store.claim(DB, "default", "w1", 10)

        self.assertEqual("quarantined", self.requeue(2))

    def test_quarantined_rows_are_claimed_alone(self):
        """The ordinary claim does not see them, and one at a time is taken."""
        others = [make_claim(), make_claim(queue_name="mail")]
        store.settle(DB, [outcome(c, "READY", lost=2) for c in (self.claim, *others)])

        self.assertEqual([], store.claim(DB, "default", "w1", 10))
        make_task(run_after=store.now(DB) + timedelta(hours=1))
        self.assertIsNone(store.claim_quarantined(DB, "other", "w1"))
        self.assertIsNone(store.claim_quarantined(DB, "default", "w1", registered=True))
        mail = store.claim_quarantined(DB, "default", "w1", ["mail"])
        self.assertEqual("mail", mail.queue_name)
        found = [store.claim_quarantined(DB, "default", "w1") for _ in range(3)]
        self.assertEqual(2, sum(claim is not None for claim in found))
        self.assertEqual([3, 3], [claim.fence + 1 for claim in found if claim])

    def test_a_quarantined_row_stays_so_whatever_comes_between(self):
        """Released, retried later, or hurried by hand."""
        self.requeue(2)
        self.claim = store.claim_quarantined(DB, "default", "w1")
        release([self.claim])
        self.assertEqual("quarantined", row(self.claim.id).hold)
        for hurry in (False, True):
            self.claim = store.claim_quarantined(DB, "default", "w1")
            later = store.now(DB) + timedelta(hours=1)
            self.assertEqual("scheduled", self.requeue(2, run_after=later))
            if hurry:
                store.run_now(DB, [self.claim.id])
            else:
                ScheduledTask.objects.update(run_after=store.now(DB))
                store.promote(DB, "default")
            self.assertEqual("quarantined", row(self.claim.id).hold)

    def test_a_peek_sees_quarantined_rows(self):
        """A runner that serves their queue knows of them, another does not."""
        self.requeue(2)

        self.assertEqual(store.QueuePeek(False, True, None), store.peek(DB, "default"))
        self.assertTrue(store.peek(DB, "default", ["default"]).quarantined)
        self.assertFalse(store.peek(DB, "default", ["mail"]).quarantined)

    def test_people_may_run_or_acquit_a_quarantined_row(self):
        """By its id at once; a retry by hand begins its counts anew."""
        self.requeue(2)
        self.claim = store.claim_one(DB, "default", "w1", self.claim.id)
        store.settle(DB, [outcome(self.claim, "FAILED", lost=3)])
        store.retry(DB, [self.claim.id])

        self.assertEqual(("", 0), (row(self.claim.id).hold, row(self.claim.id).lost))


class ByHandTests(TestCase):
    """What people do, in any state: only the right state moves."""

    def setUp(self):
        self.due = make_task()
        self.held = make_task(run_after=timezone.now() + timedelta(hours=1))
        self.running = make_claim().id
        self.successful, self.failed = make_claim().id, make_claim().id
        for id, status in ((self.successful, "SUCCESSFUL"), (self.failed, "FAILED")):
            ScheduledTask.objects.filter(pk=id).update(
                status=status, worker_id=None, finished_at=timezone.now(), errors=[["a.B", "x"]]
            )
        self.all = [self.due, self.held, self.running, self.successful, self.failed]

    def states(self):
        return [row(id).status for id in self.all]

    def test_retry_moves_failed_rows_only(self):
        """Retry is for what failed; errors and fence stay."""
        self.assertEqual(1, store.retry(DB, self.all))
        self.assertEqual(["READY", "READY", "RUNNING", "SUCCESSFUL", "READY"], self.states())
        again = row(self.failed)
        self.assertEqual((1, None, [["a.B", "x"]]), (again.fence, again.finished_at, again.errors))

    def test_run_now_moves_scheduled_rows_only(self):
        """Run now is for what waits for its time."""
        self.assertEqual(1, store.run_now(DB, self.all))
        self.assertEqual(("", None), (row(self.held).hold, row(self.held).run_after))

    def test_cancel_moves_rows_that_have_not_started_only(self):
        """A cancelled row is FAILED and says why; a running one is left alone."""
        self.assertEqual(2, store.cancel(DB, self.all, lambda row: timedelta(days=1)))
        self.assertEqual(["FAILED", "FAILED", "RUNNING", "SUCCESSFUL", "FAILED"], self.states())
        cancelled = row(self.due)
        self.assertEqual("dbtasks.exceptions.TaskCancelled", cancelled.errors[0][0])
        self.assertEqual(timedelta(days=1), cancelled.delete_after - cancelled.finished_at)
        self.assertEqual([], store.claim(DB, "default", "w2", 10))


class PurgeTests(TestCase):
    """finished → deleted"""

    def finished(self, status="SUCCESSFUL", age=timedelta(0), expired=None, **values):
        claim = make_claim(**values)
        ended = store.now(DB) - age
        after = None if expired is None else store.now(DB) - expired
        store.settle(DB, [outcome(claim, status, finished_at=ended, delete_after=after)])
        return claim.id

    def test_deletes_what_has_expired_only(self):
        """Rows go when their retention is over; unfinished ones never."""
        self.finished(expired=timedelta(seconds=1))
        kept = [self.finished(expired=timedelta(hours=-1)), self.finished(), make_task()]

        self.assertEqual(1, store.purge(DB, "default"))
        self.assertEqual(len(kept), ScheduledTask.objects.count())

    def test_never_deletes_a_row_that_runs_again(self):
        """A retried row is not purged, whatever it said before."""
        id = self.finished("FAILED", expired=timedelta(seconds=1))
        store.retry(DB, [id])

        self.assertEqual(0, store.purge(DB, "default"))

    def test_deletes_in_batches_of_bounded_size(self):
        """One statement deletes no more than its batch."""
        for _ in range(5):
            self.finished(age=timedelta(days=2))

        deleted = list(store.purge_older(DB, timedelta(days=1), batch=2))

        self.assertEqual([2, 2, 1], deleted)

    def test_older_than_counts_from_the_end_and_by_status(self):
        """What ended later, or otherwise, stays."""
        make_task()
        old = self.finished("FAILED", age=timedelta(days=2))
        self.finished(age=timedelta(days=2))
        self.finished("FAILED")

        found = store.older(DB, timedelta(days=1), statuses=["FAILED"])

        self.assertEqual([row(old).pk], [task.pk for task in found])
