"""When a hint is sent, about what, and when none is."""

import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock
from uuid import UUID

from django.conf import settings
from django.core import checks
from django.db import transaction
from django.tasks import task_backends
from django.test import SimpleTestCase, TestCase, TransactionTestCase, override_settings
from django.utils import timezone

import dbtasks
from dbtasks import firing, operations, rescue, store, wakeup
from dbtasks.checks import check_backends
from dbtasks.contrib.aws import SQS
from dbtasks.contrib.cloudtasks import CloudTasks
from dbtasks.contrib.http import Post
from dbtasks.models import PeriodicTask, ScheduledTask
from dbtasks.push import Hint, Push, is_signed, sign
from dbtasks.runner.scheduler import Scheduler
from dbtasks.store import importing, workers
from dbtasks.testing import RunnerTestCase
from dbtasks.wakeup import hints

from .. import tasks as plain_tasks
from ..support import tasks
from ..support.backends import backend
from ..support.hints import Recorder, sending, with_push
from ..support.rows import DB, make_claim, make_task
from ..support.waiting import until

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@contextmanager
def recorded(**options: Any) -> Iterator[Recorder]:
    """Let the default backend have a Recorder, and send hints."""
    recorder = options.pop("push", None) or Recorder()
    with with_push(recorder, **options), sending():
        yield recorder


class PushTestCase(TransactionTestCase):
    """Hints are sent, and `self.push` keeps them."""

    push_attributes: dict[str, Any] = {}
    options: dict[str, Any] = {}

    def setUp(self) -> None:
        push = Recorder(**self.push_attributes)
        self.push = self.enterContext(recorded(push=push, **self.options))

    def expect(self, *wanted: Any) -> None:
        """Fail unless there is one hint for each of these results, rows or ids, and no other."""
        ids = [getattr(one, "id", one) for one in wanted]
        self.assertEqual(sorted(map(str, ids)), sorted(hint.id or "" for hint in self.push.taken()))

    def backdate(self, **times: timedelta) -> None:
        """Let these columns of all rows be so long ago, by the database's clock."""
        at = store.now(DB)
        ScheduledTask.objects.update(**{name: at - by for name, by in times.items()})


class EnqueueTests(PushTestCase):
    """enqueue(), enqueue_many(), ticks."""

    def test_enqueue_sends_one_hint(self):
        """It names the row, its backend and its queue, and nothing else."""
        result = plain_tasks.add.using(queue_name="mail", priority=3).enqueue(1, 2)

        self.assertEqual([Hint(result.id, "default", "mail")], self.push.hints)

    def test_a_row_for_later_is_hinted_for_then(self):
        """With the instant at which it will be due."""
        at = timezone.now() + HOUR
        result = plain_tasks.add.using(run_after=at).enqueue(1, 2)

        self.assertEqual([Hint(result.id, "default", "default", 0, at)], self.push.hints)

    def test_a_row_whose_time_has_come_is_hinted_for_now(self):
        """Its run_after is in the past."""
        plain_tasks.add.using(run_after=timezone.now() - HOUR).enqueue(1, 2)

        self.assertIsNone(self.push.hints[0].run_after)

    def test_enqueue_many_sends_one_for_each(self):
        """Up to the limit of `bulk`."""
        results = plain_tasks.add.enqueue_many([([n, 1], {}) for n in range(50)])

        self.expect(*results)

    def test_a_tick_sends_one(self):
        """And so does a schedule that is run by hand."""
        specs = {"tests.tasks.noop_task": "1h"}
        with recorded(periodic=specs) as self.push:
            own = task_backends["default"]
            scheduler = Scheduler(own)
            scheduler.catch_up()
            self.assertEqual([], self.push.taken())
            PeriodicTask.objects.update(next_tick=store.now(DB) - timedelta(seconds=1))
            scheduler.catch_up()
            self.expect(ScheduledTask.objects.get().pk)
            ScheduledTask.objects.all()._raw_delete(DB)
            self.assertTrue(firing.run_now(own, PeriodicTask.objects.get()))

            self.expect(ScheduledTask.objects.get().pk)


class CommitTests(PushTestCase):
    """After the right commit, or not at all."""

    databases = {"default", "other"}

    def test_nothing_before_the_commit(self):
        """Whoever answers the hint must see the row."""
        with transaction.atomic():
            result = plain_tasks.add.enqueue(1, 2)
            self.assertEqual([], self.push.hints)

        self.expect(result)

    def test_a_rollback_sends_nothing(self):
        """Neither now nor after the next commit."""
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            plain_tasks.add.enqueue(1, 2)
            raise ZeroDivisionError
        with transaction.atomic():
            result = plain_tasks.add.enqueue(1, 2)

        self.expect(result)

    def test_a_savepoint_that_is_rolled_back_sends_nothing(self):
        """What was enqueued before, in other savepoints and after it is hinted."""
        kept = []
        with transaction.atomic():
            kept.append(plain_tasks.add.enqueue(1, 2))
            for fails in (False, True, False, True):
                with self.subTest(fails), transaction.atomic():
                    result = plain_tasks.add.enqueue(3, 4)
                    plain_tasks.add.enqueue(5, 6) if fails else kept.append(result)
                    if fails:
                        transaction.set_rollback(True)
            kept.append(plain_tasks.add.enqueue(7, 8))

        self.expect(*kept)

    def test_many_calls_in_one_transaction_are_one_commit(self):
        """More than `bulk` of them send drain hints, however they were enqueued."""
        with transaction.atomic():
            for n in range(120):
                plain_tasks.add.enqueue(n, 1)

        self.assertEqual([Hint(None, "default", "default")] * 3, self.push.hints)

    def test_two_backends_in_one_transaction(self):
        """Each sends its own hints to its own service."""
        other = Recorder()
        [second] = backend(OPTIONS={"push": other}).values()
        with override_settings(TASKS=settings.TASKS | {"other": second}):
            mail = plain_tasks.add.using(backend="other")
            with transaction.atomic():
                first = [plain_tasks.add.enqueue(1, 2), plain_tasks.add.enqueue(1, 2)]
                theirs = mail.enqueue(1, 2)
                first.append(plain_tasks.add.enqueue(1, 2))

        self.expect(*first)
        self.assertEqual([Hint(theirs.id, "other", "default")], other.hints)

    def test_a_queue_in_another_database(self):
        """The commit of that database counts."""
        with recorded(database="other") as self.push:
            with transaction.atomic():
                first = plain_tasks.add.enqueue(1, 2)
                self.expect(first)
            with transaction.atomic("other"):
                second = plain_tasks.add.enqueue(1, 2)
                with transaction.atomic():
                    pass
                self.expect()
            self.expect(second)

    def test_enqueue_on_commit(self):
        """The row is written after the caller's commit, and then hinted."""
        with recorded(database="other", enqueue_on_commit=True) as self.push:
            with transaction.atomic():
                result = plain_tasks.add.enqueue(1, 2)
                self.expect()
            self.expect(result)
            with self.assertRaises(ZeroDivisionError), transaction.atomic():
                plain_tasks.add.enqueue(1, 2)
                raise ZeroDivisionError
            self.expect()

    def test_an_enqueue_in_a_callback_of_the_commit(self):
        """Is a commit of its own."""
        with transaction.atomic():
            first = plain_tasks.add.enqueue(1, 2)
            transaction.on_commit(lambda: found.append(plain_tasks.add.enqueue(3, 4)))
            found: list[Any] = []

        self.expect(first, *found)


class TestCaseTests(TestCase):
    """Inside the transaction of a TestCase."""

    def test_nothing_is_sent_unless_callbacks_are_run(self):
        """captureOnCommitCallbacks() runs them, those of its block alone."""
        with recorded() as push:
            plain_tasks.add.enqueue(1, 2)
            self.assertEqual([], push.hints)
            with self.captureOnCommitCallbacks(execute=True) as callbacks:
                first, second = plain_tasks.add.enqueue(1, 2), plain_tasks.add.enqueue(3, 4)

            self.assertEqual(2, len(callbacks))
            self.assertEqual([first.id, second.id], [hint.id for hint in push.hints])


class ReadyAgainTests(PushTestCase):
    """Attempts that end READY, inline."""

    def run_one(self, task: Any, *args: Any) -> tuple[Any, Hint]:
        """Run the task once; return its row and the hint that follows."""
        task.enqueue(*args)
        self.push.taken()
        before = timezone.now()
        dbtasks.process_one()
        [hint] = self.push.taken()
        row = ScheduledTask.objects.get()
        self.assertEqual((str(row.pk), "default", "default"), hint[:3])
        self.assertEqual(0, hint.again)
        if hint.run_after is not None:
            self.assertEqual(row.run_after, hint.run_after)
            self.assertGreater(hint.run_after, before)
        return row, hint

    def test_a_retry(self):
        """For the time after its backoff."""
        row, hint = self.run_one(tasks.fail_times.using(max_attempts=2, backoff=60), 1)

        self.assertEqual(("READY", 1), (row.status, hint.attempt))
        self.assertAlmostEqual(60, (hint.run_after - timezone.now()).total_seconds(), delta=15)

    def test_a_retry_at_once(self):
        """For now."""
        _, hint = self.run_one(tasks.fail_times.using(max_attempts=2, backoff=0), 1)

        self.assertIsNone(hint.run_after)

    def test_retry_and_snooze_that_were_raised(self):
        """For the time that the task asked for."""
        for what in ("retry", "snooze"):
            with self.subTest(what):
                ScheduledTask.objects.all()._raw_delete(DB)
                _, hint = self.run_one(tasks.ask.using(max_attempts=5), what)
                self.assertEqual(1, hint.attempt)

    def test_ctrl_c(self):
        """The row is released, and due at once."""
        plain_tasks.failing_task_keyboard_interrupt.enqueue()
        self.push.taken()
        with self.assertRaises(KeyboardInterrupt):
            dbtasks.process_one()

        self.assertEqual([None], [hint.run_after for hint in self.push.hints])
        self.expect(ScheduledTask.objects.get().pk)

    def test_what_has_finished_sends_nothing(self):
        """Successful or failed for good."""
        plain_tasks.add.enqueue(1, 2)
        plain_tasks.failing_task_value_error.enqueue()
        self.push.taken()
        self.assertEqual(2, len(dbtasks.process_tasks()))

        self.expect()


class RunnerTests(RunnerTestCase):
    """Attempts that end READY, in a runner."""

    def setUp(self) -> None:
        self.push = self.enterContext(recorded())
        super().setUp()

    def test_a_retry_snooze_and_release(self):
        """Each sends a hint, as inline."""
        for task, args in (
            (tasks.fail_times.using(max_attempts=2, backoff=3600), (1,)),
            (tasks.ask.using(max_attempts=5), ("snooze",)),
        ):
            result = task.enqueue(*args)
            until(lambda result=result: self.count(result) >= 2)

    def test_what_is_released_at_the_end(self):
        """The runner stops while the task runs; another process can go on at once."""
        result = tasks.heed.using(max_attempts=2).enqueue()
        until(lambda: ScheduledTask.objects.filter(status="RUNNING").exists())
        before = self.count(result)
        self.runner.close()

        row = ScheduledTask.objects.get()
        self.assertEqual(int(row.status == "READY"), self.count(result) - before)

    def count(self, result: Any) -> int:
        return Counter(hint.id for hint in list(self.push.hints))[result.id]


class RescueTests(PushTestCase):
    """Rows of lost workers."""

    def test_rescued_and_orphaned_rows_are_hinted_for_now(self):
        """A row that fails is not."""
        own = task_backends["default"]
        workers.register(DB, "w1", "default", "", 1, 1)
        claim = make_claim("w1")
        self.assertEqual(1, rescue.release_orphans(own, [(claim.id, claim.fence)]))
        id = UUID(str(claim.id))
        self.assertEqual([Hint(str(id), "default", "default", 0)], self.push.taken())
        for lost in (1, 2, 3):
            workers.register(DB, f"w{lost}x", "default", "", 1, 1)
            ScheduledTask.objects.update(hold="")
            store.claim_one(DB, "default", f"w{lost}x", id)
            workers.declare_lost(DB, f"w{lost}x", 0)
            self.assertEqual(1, len(rescue.rescue(own)))
            wanted = [Hint(str(id), "default", "default", lost)] if lost < 3 else []
            self.assertEqual(wanted, self.push.taken())


class OperationTests(PushTestCase):
    """By hand."""

    def test_retry_of_a_result(self):
        """A FAILED row is due at once, with the attempts that it had."""
        result = plain_tasks.failing_task_value_error.enqueue()
        dbtasks.process_one()
        self.push.taken()
        result.refresh()
        self.assertTrue(result.retry())

        self.assertEqual([Hint(result.id, "default", "default", 1)], self.push.taken())

    def test_run_now_and_retry_of_many_rows(self):
        """As the admin does it: hints for rows that are READY then, after the commit."""
        ids = [make_task(run_after=store.now(DB) + HOUR) for _ in range(2)]
        done = make_task()
        ScheduledTask.objects.filter(pk=done).update(status="SUCCESSFUL")
        rows = list(ScheduledTask.objects.all())
        with transaction.atomic():
            self.assertEqual(2, operations.RUN_NOW.apply(DB, rows, lambda row: None))
            self.expect()
        self.expect(*ids)
        ScheduledTask.objects.filter(pk__in=ids).update(status="FAILED")
        self.assertEqual(2, operations.RETRY.apply(DB, rows, lambda row: None))

        self.expect(*ids)

    def test_cancel_and_purge_send_nothing(self):
        """The hint that was sent finds nothing to do."""
        result = plain_tasks.add.enqueue(1, 2)
        self.push.taken()
        self.assertTrue(result.cancel())
        ScheduledTask.objects.update(delete_after=store.now(DB) - DAY)
        self.assertEqual(1, store.purge(DB, "default"))

        self.expect()

    def test_import(self):
        """What waits in the table of another package is hinted, also for later."""
        at = store.now(DB) + HOUR
        place = store.Place("default", 0, str(UUID(int=1)))
        later = store.Place("mail", 0, str(UUID(int=2)), at, 4)
        batch = importing.Imported(2, [place, later], [], None)
        task_backends["default"].rows_due(batch.places)

        self.assertEqual(
            [
                Hint(str(UUID(int=1)), "default", "default"),
                Hint(str(UUID(int=2)), "default", "mail", 4, at),
            ],
            self.push.hints,
        )


class NoneTests(TransactionTestCase):
    """Where there is no hint at all."""

    def test_immediate(self):
        """The task has run already. A check says that the two do not go together."""
        with recorded(immediate=True) as push:
            self.assertIsNone(wakeup.push_of("default"))
            plain_tasks.add.enqueue(1, 2)
            ScheduledTask.objects.update(status="FAILED")
            operations.RETRY.apply(DB, ScheduledTask.objects.all(), lambda row: None)

            self.assertEqual([], push.hints)

    def test_without_a_push_nothing_is_read_or_made(self):
        """Not even the list of rows, and no further statement."""
        self.assertIsNone(wakeup.push_of("default"))
        self.assertIsNone(wakeup.push_of("no such backend"))

        def places() -> Iterator[Any]:
            self.fail("somebody wanted the rows")
            yield

        with mock.patch.object(hints, "tell") as tell:
            wakeup.became_due(DB, "default", places())
            with self.assertNumQueries(0):
                wakeup.announce(DB, "default", places(), is_notified=True)
                operations._places(DB, "default", [ScheduledTask(queue_name="x", priority=0)])

        tell.assert_not_called()


class LongestTests(PushTestCase):
    """How far ahead a service can hold a hint."""

    push_attributes = {"longest": timedelta(minutes=15)}

    def promote(self) -> None:
        """Do what a runner or a sweep does when a scheduled row has come due."""
        self.backdate(run_after=timedelta(seconds=1))
        places = store.promote(DB, "default")
        self.assertEqual(1, len(places))
        wakeup.became_due(DB, "default", places, only_here=True)

    def test_less_than_a_day(self):
        """A row for later than that is not hinted now, but when it is promoted."""
        plain_tasks.add.using(run_after=timedelta(minutes=10)).enqueue(1, 2)
        self.assertEqual(1, len(self.push.taken()))
        ScheduledTask.objects.all()._raw_delete(DB)
        result = plain_tasks.add.using(run_after=timedelta(minutes=16)).enqueue(1, 2)
        self.expect()
        self.promote()

        self.assertEqual([Hint(result.id, "default", "default")], self.push.hints)

    def test_a_day_or_more(self):
        """A row for later is hinted for the latest time; the door sends the hint on from there."""
        with recorded(push=Recorder(longest=30 * DAY)) as self.push:
            result = plain_tasks.add.using(run_after=40 * DAY).enqueue(1, 2)
            [hint] = self.push.taken()
            self.assertEqual(result.id, hint.id)
            ahead = hint.run_after - timezone.now()
            self.assertTrue(30 * DAY - HOUR < ahead <= 30 * DAY, ahead)
            self.promote()

            self.expect()

    def test_no_limit(self):
        """Sent for its own time, and not again when it is promoted."""
        with recorded() as self.push:
            plain_tasks.add.using(run_after=400 * DAY).enqueue(1, 2)
            [hint] = self.push.taken()
            self.assertEqual(ScheduledTask.objects.get().run_after, hint.run_after)
            self.promote()

            self.expect()

    def test_naive_times(self):
        """With USE_TZ=False a time is one of TIME_ZONE, in summer and in winter."""
        with override_settings(USE_TZ=False, TIME_ZONE="America/New_York"):
            for naive, utc in (
                (datetime(2090, 7, 1, 12), datetime(2090, 7, 1, 16, tzinfo=UTC)),
                (datetime(2090, 1, 1, 12), datetime(2090, 1, 1, 17, tzinfo=UTC)),
            ):
                push = Recorder()
                place = store.Place("default", 0, UUID(int=1), naive)
                hints.tell_places(push, "default", [place])
                hints.tell(push, [Hint("x", "default", "default", run_after=naive)])
                self.assertEqual([utc, utc], [hint.run_after for hint in push.hints])


class WrongTests(TransactionTestCase):
    """A push with attributes of wrong types, where nobody ran the checks."""

    def test_nothing_is_raised(self):
        """After the commit, or in a sweep."""
        for attributes, _ in OptionTests.wrong:
            push = Recorder(**attributes)
            with (
                self.subTest(attributes),
                with_push(push),
                sending(),
                self.assertLogs("dbtasks.push", "DEBUG"),
            ):
                for at in (None, timezone.now() + HOUR):
                    plain_tasks.add.using(run_after=at).enqueue(1, 2)
                ScheduledTask.objects.update(enqueued_at=store.now(DB) - HOUR)
                wakeup.tell_late(DB, "default", push)

    def test_a_sweep_runs_the_rows(self):
        """It cannot send hints for them."""
        push = Recorder(batch="10")
        with with_push(push), sending(), self.assertLogs("dbtasks.push", "WARNING") as logs:
            result = plain_tasks.add.enqueue(1, 2)
            plain_tasks.add.enqueue(1, 2)
            ScheduledTask.objects.update(enqueued_at=store.now(DB) - HOUR)
            self.assertEqual(2, dbtasks.sweep().ran)
        result.refresh()
        self.assertEqual(3, result.return_value)
        [said] = logs.output
        self.assertIn("the push is not valid, TypeError. Run manage.py check.", said)


class BulkTests(PushTestCase):
    """More rows in one commit than `bulk`."""

    def test_ten_thousand_rows(self):
        """Are 16 hints at most, and so 16 calls."""
        plain_tasks.add.enqueue_many([([n, 1], {}) for n in range(10_000)])

        self.assertEqual([Hint(None, "default", "default")] * 16, self.push.hints)
        self.assertEqual([1] * 16, self.push.calls)

    def test_each_queue_has_its_own(self):
        """One for 50 rows of it, or for what is left."""
        mail = plain_tasks.add.using(queue_name="mail")
        calls = [([n, 1], {}) for n in range(101)]
        with transaction.atomic():
            plain_tasks.add.enqueue_many(calls)
            mail.enqueue(1, 2)

        counts = Counter((hint.id, hint.queue_name) for hint in self.push.hints)
        self.assertEqual({(None, "default"): 3, (None, "mail"): 1}, counts)

    def test_rows_for_later(self):
        """Have drain hints for when they are due: each for the last row of its share.

        And a moment more, because a drain does not wait for rows as a hint for one of them does.
        """
        start = timezone.now() + HOUR
        times = [start + timedelta(seconds=n) for n in range(100)]
        with transaction.atomic():
            for at in reversed(times):
                plain_tasks.add.using(run_after=at).enqueue(1, 2)
            plain_tasks.add.enqueue(1, 2)

        ends = [times[n] + hints.DRAIN_MARGIN for n in (49, 99)]
        wanted = [Hint(None, "default", "default", run_after=at) for at in ends]
        self.assertCountEqual([Hint(None, "default", "default"), *wanted], self.push.hints)

    def test_rows_of_many_savepoints(self):
        """Count together: 50 hints for 50 rows, then one for each further 50, 16 at most."""
        for rows, drains in ((50, 0), (51, 1), (100, 1), (101, 2), (900, 16)):
            with self.subTest(rows):
                with transaction.atomic():
                    for n in range(rows):
                        with transaction.atomic():
                            plain_tasks.add.enqueue(n, 1)
                found = Counter(hint.id is None for hint in self.push.taken())
                self.assertEqual((50, drains), (found[False], found[True]))

    def test_savepoints_that_were_rolled_back_do_not_count(self):
        """Nor do rows for later lose the hint of their own."""
        at = timezone.now() + HOUR
        with transaction.atomic():
            for n in range(100):
                with transaction.atomic():
                    plain_tasks.add.enqueue(n, 1)
                    transaction.set_rollback(n % 2 == 0)
            with transaction.atomic():
                later = plain_tasks.add.using(run_after=at).enqueue(1, 2)

        *first, last = self.push.taken()
        self.assertEqual(50, len({hint.id for hint in first} - {None}))
        self.assertEqual((later.id, at), (last.id, last.run_after))

    def test_no_bulk(self):
        """One hint for each row, for queues whose rate limit is the point."""
        with recorded(push=Recorder(bulk=None, batch=10)) as self.push:
            results = plain_tasks.add.enqueue_many([([n, 1], {}) for n in range(155)])

            self.assertEqual([5] + [10] * 15, sorted(self.push.calls))
            self.expect(*results)


class LateTests(PushTestCase):
    """Rows that stay due: the hint was lost, or the service is slow."""

    def late(self, **minutes: float) -> list[Hint]:
        """Return the hints of a sweep when these columns are so many minutes ago."""
        self.backdate(**{name: timedelta(minutes=each) for name, each in minutes.items()})
        count = wakeup.tell_late(DB, "default", self.push)
        found = self.push.taken()
        self.assertEqual(len(found), count)
        return found

    def test_again_counts_doublings(self):
        """So that each name of a row is given once: after 2, 4, 8 … minutes."""
        id = make_task()
        for minutes, again in ((1.9, 0), (2.1, 1), (3.9, 1), (4.1, 2), (8.1, 3), (2**14, 14)):
            wanted = [Hint(str(id), "default", "default", 0, None, again)] if again else []
            with self.subTest(minutes):
                self.assertEqual(wanted, self.late(enqueued_at=minutes))

    def test_late_begins_when_the_row_was_due(self):
        """Not when it was enqueued."""
        make_task()
        self.assertEqual([], self.late(enqueued_at=60, run_after=1))
        self.assertEqual(1, len(self.late(enqueued_at=60, run_after=3)))
        self.assertEqual([], self.late(enqueued_at=60, run_after=60, last_attempted_at=1))

    def test_at_most_a_hundred(self):
        """The first ones in the order of claims."""
        for n in range(150):
            make_task(priority=n % 2)
        found = self.late(enqueued_at=5)

        claims = store.claim(DB, "default", "w1", 100)
        self.assertEqual({str(UUID(str(c.id))) for c in claims}, {hint.id for hint in found})

    def test_quarantined_rows_as_well(self):
        """Nobody else would find them; rows for later, running ones and finished ones are left."""
        id = make_task()
        ScheduledTask.objects.update(hold="quarantined", lost=2, attempt=2)
        make_task(run_after=store.now(DB) + HOUR)
        make_claim()
        ended = make_task()
        ScheduledTask.objects.filter(pk=ended).update(status="FAILED")
        make_task(backend="other")

        found = self.late(enqueued_at=5)
        self.assertEqual([Hint(str(id), "default", "default", 2, None, 2)], found)

    def test_one_statement_for_each_kind_and_none_if_nothing_is_sent(self):
        """A sweep where hints are off reads nothing."""
        make_task()
        self.backdate(enqueued_at=HOUR)
        with mock.patch.dict(os.environ, DBTASKS_PUSH="off"), self.assertNumQueries(0):
            self.assertEqual(0, wakeup.tell_late(DB, "default", self.push))

    def test_late_is_an_attribute(self):
        """Of the push, in seconds."""
        make_task()
        self.push.late = 3600
        self.assertEqual([], self.late(enqueued_at=59))
        self.assertEqual([1], [hint.again for hint in self.late(enqueued_at=61)])


class WhetherTests(SimpleTestCase):
    """Whether a process sends hints at all."""

    hint = [Hint(str(UUID(int=1)), "default", "default")]

    def test_never_in_tests(self):
        """Whatever the environment says, and without a look at the platform."""
        push = Recorder()
        push.is_at_home = lambda: self.fail("asked")  # type: ignore[method-assign]
        for value in ("on", "off", ""):
            with mock.patch.dict(os.environ, DBTASKS_PUSH=value):
                self.assertEqual(0, hints.tell(push, self.hint))

        self.assertEqual([], push.hints)

    def test_the_environment_decides(self):
        """Over what the push says of the place."""
        for value, at_home, sent in (
            ("on", False, 1),
            ("ON ", False, 1),
            ("", True, 1),
            ("", False, 0),
            ("yes", True, 0),
        ):
            push = Recorder()
            push.is_at_home = lambda at_home=at_home: at_home  # type: ignore[method-assign]
            with (
                self.subTest(value),
                sending(),
                mock.patch.dict(os.environ, DBTASKS_PUSH=value),
                self.assertLogs("dbtasks.push", "DEBUG"),
            ):
                self.assertEqual(sent, hints.tell(push, self.hint))

    def test_it_is_said_once(self):
        """At INFO if the process is not at home, at WARNING if the variable is not valid."""
        for value, level, words in (
            ("", "INFO", "DBTASKS_PUSH=on sends them"),
            ("1", "WARNING", "DBTASKS_PUSH must be 'on' or 'off'."),
        ):
            push = Recorder()
            push.is_at_home = lambda: False  # type: ignore[method-assign]
            with (
                self.subTest(value),
                sending(),
                mock.patch.dict(os.environ, DBTASKS_PUSH=value),
                self.assertLogs("dbtasks.push", "DEBUG") as logs,
            ):
                for _ in range(3):
                    hints.tell(push, self.hint)
            [record] = logs.records
            self.assertEqual(level, record.levelname)
            self.assertIn(words, record.getMessage())

    def test_is_at_home_that_raises(self):
        """Nothing is sent, and nobody fails."""
        push = Recorder()
        push.is_at_home = lambda: 1 / 0  # type: ignore[method-assign,return-value]
        with (
            sending(),
            mock.patch.dict(os.environ, DBTASKS_PUSH=""),
            self.assertLogs("dbtasks.push", "WARNING") as logs,
        ):
            self.assertEqual(0, hints.tell(push, self.hint))
        self.assertIn("is_at_home() raised ZeroDivisionError", logs.output[0])

    def test_home_is_where_the_environment_says_so(self):
        """For a class that does not say otherwise; production settings on a laptop do not."""
        for environment, is_home in (
            ({}, False),
            ({"DBTASKS_URL": ""}, False),
            ({"DBTASKS_URL": "https://www.example.com"}, True),
            ({"FLY_APP_NAME": "shop"}, True),
            ({"VERCEL": "1"}, True),
        ):
            with self.subTest(environment), mock.patch.dict(os.environ, environment, clear=True):
                for push in (Push(), Post("https://relay.example.com/")):
                    with override_settings(DEBUG=False):
                        self.assertIs(is_home, push.is_at_home())
                    with override_settings(DEBUG=True):
                        self.assertIs(False, push.is_at_home())

    def test_a_process_that_is_no_test(self):
        """setup_test_environment() decides, and whether Django's test module is loaded does not."""
        code = (
            "import os, sys; os.environ['DJANGO_SETTINGS_MODULE'] = 'tests.settings'\n"
            "import django; django.setup()\n"
            "from dbtasks.push import Hint, Push\n"
            "from dbtasks.wakeup import hints\n"
            "class Mine(Push):\n"
            "    def send(self, hints): sent.append(1)\n"
            "sent, one = [], [Hint('x', 'default', 'default')]\n"
            "hints.tell(Mine(), one); print(len(sent), 'django.test' in sys.modules)\n"
            "from django.test.utils import setup_test_environment, teardown_test_environment\n"
            "hints.tell(Mine(), one); print(len(sent))\n"
            "setup_test_environment(); hints.tell(Mine(), one); print(len(sent))\n"
            "teardown_test_environment(); hints.tell(Mine(), one); print(len(sent))\n"
        )
        environment = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment | {"DBTASKS_PUSH": "on"},
            capture_output=True,
            text=True,
            timeout=60,
        )

        self.assertEqual(["1 False", "2", "2", "3"], done.stdout.splitlines(), done.stderr)


class SignatureTests(SimpleTestCase):
    """X-DBTasks-Hint"""

    ids = (str(UUID(int=7)), None)

    def test_it_is_of_one_row_of_one_backend(self):
        """Or of a drain of that backend."""
        for id in self.ids:
            signature = sign("default", id)
            self.assertTrue(is_signed("default", id, signature))
            for other in ("other", "default:", ""):
                self.assertFalse(is_signed(other, id, signature))
        self.assertFalse(is_signed("default", None, sign("default", self.ids[0])))
        self.assertFalse(is_signed("default", str(UUID(int=8)), sign("default", self.ids[0])))

    def test_whatever_comes(self):
        """False, and no exception."""
        right = sign("default", None)
        for wrong in ("", " ", right + " ", right[:-1], "é", "\udc80", "x" * 1_000_000, "\0"):
            self.assertFalse(is_signed("default", None, wrong))

    def test_keys_that_rotate(self):
        """A hint may wait for weeks; a key that is gone is not accepted."""
        with override_settings(SECRET_KEY="old"):
            signature = sign("default", None)
        with override_settings(SECRET_KEY="new", SECRET_KEY_FALLBACKS=["older", "old"]):
            self.assertTrue(is_signed("default", None, signature))
            self.assertNotEqual(signature, sign("default", None))
        with override_settings(SECRET_KEY="new", SECRET_KEY_FALLBACKS=[]):
            self.assertFalse(is_signed("default", None, signature))


class OptionTests(SimpleTestCase):
    """OPTIONS["push"] and its checks."""

    def found(self, push: Any, **options: Any) -> list[checks.CheckMessage]:
        with override_settings(TASKS=backend(OPTIONS={"push": push} | options)):
            return [*task_backends["default"].check(), *check_backends()]

    def test_what_is_a_push(self):
        """An object, or None."""
        for push in (Recorder(), None):
            with override_settings(TASKS=backend(OPTIONS={"push": push})):
                self.assertIs(push, task_backends["default"].config.push)
                self.assertIs(push, wakeup.push_of("default"))
            self.assertEqual([], self.found(push))

    def test_what_is_not(self):
        """A class, a path, a URL with a secret, which is not repeated."""
        for push, words in (
            (Recorder, "Recorder is a class. Use an object: Recorder(…)."),
            ("https://token@host", "a value of type str is not a push."),
            (5, "a value of type int is not a push."),
        ):
            [message] = self.found(push)
            self.assertEqual("dbtasks.E002", message.id)
            self.assertIn(f"TASKS['default']['OPTIONS']['push']: {words}", message.msg)
            with override_settings(TASKS=backend(OPTIONS={"push": push})):
                self.assertIsNone(wakeup.push_of("default"))
        with override_settings(TASKS=backend(OPTIONS=["push"])):
            self.assertIsNone(wakeup.push_of("default"))

    def test_immediate(self):
        """E021"""
        [message] = self.found(Recorder(), immediate=True)
        self.assertEqual("dbtasks.E021", message.id)

    def test_a_package_that_is_missing(self):
        """E022 names the extra, and imports nothing."""
        for package in ("no_such_package", "no_such_package.inner"):
            [message] = self.found(Recorder(package=package, extra="cloudtasks"))
            self.assertEqual("dbtasks.E022", message.id)
            self.assertIn("pip install 'dbtasks[cloudtasks]'", message.hint)
        self.assertEqual([], self.found(Recorder(package="xml.sax.expatreader")))

    def test_a_timeout_beyond_the_deadline(self):
        """W021, for the option and for each task with a longer one."""
        found = self.found(Recorder(deadline=3000), timeout=3001)
        self.assertEqual(["dbtasks.W021"], [message.id for message in found])
        self.assertIn("['timeout'] is 3001 seconds", found[0].msg)
        own = plain_tasks.add.using(timeout="2h")
        with mock.patch("dbtasks.checks.registry.registered", return_value=[own]):
            [message] = self.found(Recorder(deadline=3600))
            self.assertIn("'tests.tasks.add' is 7200 seconds", message.msg)
            self.assertEqual([], self.found(Recorder(deadline=7200)))
            self.assertEqual([], self.found(Recorder()))
        endless = plain_tasks.add.using(timeout=math.inf)
        with mock.patch("dbtasks.checks.registry.registered", return_value=[endless]):
            self.assertEqual([], self.found(Recorder(deadline=3600)))

    def test_the_push_checks_itself(self):
        """With the alias of its backend."""

        class Picky(Recorder):
            def check(self, alias: str) -> Iterator[checks.CheckMessage]:
                yield checks.Error(f"wrong for {alias}", id="x.E1")

        self.assertEqual(["wrong for default"], [message.msg for message in self.found(Picky())])

    # Attributes of wrong types, and what must be said of them.
    wrong = (
        ({"bulk": "50"}, "'bulk' must be a whole number above 0, or None, not '50'."),
        ({"bulk": True}, "'bulk' must be a whole number above 0, or None, not True."),
        ({"late": "2m"}, "'late' must be seconds above 0, not '2m'."),
        ({"longest": 900}, "'longest' must be a timedelta, or None, not 900."),
        ({"batch": "10"}, "'batch' must be a whole number above 0, not '10'."),
    )

    def test_wrong_attributes(self):
        """E024 in each class, also in those that define check()."""
        pushes: tuple[Push, ...] = (
            Recorder(),
            CloudTasks(),
            Post("https://relay.example.com/"),
            SQS("https://sqs.eu-west-1.amazonaws.com/1/a"),
        )
        for push in pushes:
            self.enterContext(mock.patch.object(push, "package", "", create=True))
            for attributes, words in self.wrong:
                with self.subTest(push), mock.patch.multiple(push, create=True, **attributes):
                    [message] = self.found(push)
                    self.assertEqual("dbtasks.E024", message.id)
                    self.assertIn(words, message.msg)

    def test_its_repr_tells_nothing(self):
        """It may hold a token."""
        self.assertNotIn("secret", repr(Recorder(token="secret")))
