"""What a runner publishes, and which rows wake-ups name."""

import threading
from datetime import timedelta
from typing import Any
from unittest import mock

from django.db import transaction
from django.tasks import task_backends
from django.test import TransactionTestCase

import dbtasks
from dbtasks import metrics, store, wakeup
from dbtasks.events import CLAIMED, ENDED, JOINED, RESCUED, STARTED, Events
from dbtasks.models import ScheduledTask
from dbtasks.rescue import release_orphans, rescue
from dbtasks.store import workers
from dbtasks.testing import RunnerTestCase, run_tasks

from .. import tasks as plain_tasks
from ..support import tasks
from ..support.rows import DB, KeepsADay, make_claim, make_task
from ..support.waiting import until


class EventsTests(RunnerTestCase):
    """claimed, started, ended, joined, rescued"""

    queues = ["default"]

    def hear(self, kind: str) -> tuple[list[Any], threading.Event]:
        """Return what comes with events of that kind, and when the first has come."""
        heard, came = [], threading.Event()
        self.runner.events.subscribe(kind, lambda value: (heard.append(value), came.set()))
        return heard, came

    def test_a_task_is_told_from_claim_to_end(self):
        """Each step once, with the row that it is about."""
        claimed, _ = self.hear(CLAIMED)
        started, _ = self.hear(STARTED)
        ended, came = self.hear(ENDED)
        result = plain_tasks.add.enqueue(1, 2)
        self.runner.wait_for(result)
        self.assertTrue(came.wait(5))

        [[claim]], [attempt], [[(settled, outcome)]] = claimed, started, ended
        self.assertIs(claim, attempt.claim)
        self.assertIs(attempt, settled)
        self.assertEqual(("SUCCESSFUL", "3"), (outcome.status, outcome.return_value))

    def test_a_retry_is_an_end_too(self):
        """Whoever counts attempts sees both."""
        ended, _ = self.hear(ENDED)
        self.runner.wait_for(tasks.fail_times.using(max_attempts=2, backoff=0.01).enqueue(1))

        # The row is written before the event is published.
        until(lambda: sum(map(len, ended)) == 2)
        statuses = [outcome.status for batch in ended for _, outcome in batch]
        self.assertEqual(["READY", "SUCCESSFUL"], statuses)

    def test_metrics_measure_each_attempt(self):
        """Without a receiver nothing is computed; with one, latencies, durations and outcomes."""
        with mock.patch.object(metrics, "_measured") as measured:
            self.runner.wait_for(plain_tasks.add.enqueue(1, 2))
            self.runner.wait()
        measured.assert_not_called()

        found: list[metrics.Measured] = []

        def measure(attempts: list[metrics.Measured], **kwargs: Any) -> None:
            found.extend(attempts)

        metrics.attempts_ended.connect(measure)
        self.addCleanup(metrics.attempts_ended.disconnect, measure)
        late = tasks.fail_times.using(max_attempts=2, backoff=0.01, run_after=timedelta(0))
        self.runner.wait_for(late.enqueue(1))
        # The row is written before the signal is sent.
        until(lambda: len(found) == 2)

        first, last = found
        self.assertEqual(("RETRIED", 1, None), (first.outcome, first.attempt, first.duration))
        self.assertIsInstance(first.exception, ValueError)
        self.assertEqual(("SUCCESSFUL", 2), (last.outcome, last.attempt))
        self.assertEqual(("default", 0, "default"), (last.queue_name, last.priority, last.backend))
        self.assertIsNone(last.exception)
        for value in (last.claim_latency, last.start_latency, last.duration):
            self.assertTrue(0 <= value < 10, value)

    def test_a_rescue_names_the_rows(self):
        """As they were under the lost worker."""
        rescued, came = self.hear(RESCUED)
        workers.register(DB, "gone", "default", "", 1, 1)
        id = make_task(queue_name="nobody")
        store.claim_one(DB, "default", "gone", id)
        workers.declare_lost(DB, "gone", 0)
        self.runner.declare_lost("somebody")
        self.assertTrue(came.wait(10))

        self.assertEqual(
            [[(id, "gone")]], [[(r.pk, r.worker_id) for r in rows] for rows in rescued]
        )

    def test_a_worker_says_its_name_before_it_claims(self):
        """A supervisor has to know it in time."""
        joined: list[str] = []
        runner = dbtasks.testing.TestingRunner(10)
        runner.events.subscribe(JOINED, joined.append)
        runner.start()
        self.addCleanup(runner.close)

        self.assertEqual([runner.worker_id], joined)

    def test_a_receiver_that_raises_stops_nobody(self):
        """It is logged; the others hear of it, and the runner goes on."""
        self.runner.events.subscribe(ENDED, lambda batch: 1 / 0)
        ended, _ = self.hear(ENDED)
        with self.assertLogs("dbtasks.runner", "ERROR") as logs:
            self.runner.wait_for(plain_tasks.add.enqueue(1, 2))
            self.runner.wait_for(plain_tasks.add.enqueue(3, 4))
            until(lambda: sum(map(len, ended)) == 2)

            # Rows are written before it is said.
            until(lambda: sum(map(len, ended)) == 2)

        self.assertIn("A receiver of the event 'ended' raised", logs.output[0])

    def test_a_kind_that_does_not_exist(self):
        """Is refused with a sentence."""
        with self.assertRaisesMessage(ValueError, "'endet' is not a valid event. Use one of"):
            Events().subscribe("endet", print)


class DueTests(TransactionTestCase):
    """Whoever makes rows due names them, through one function."""

    def setUp(self) -> None:
        self.told: list[tuple[str, list[Any]]] = []
        wakeup.rows_due.connect(self.hear)
        self.addCleanup(wakeup.rows_due.disconnect, self.hear)

    def hear(self, backend: str, places: tuple[store.Place, ...], **kwargs: Any) -> None:
        names = [(p.queue_name, p.priority, str(p.id).replace("-", "")) for p in places]
        self.told.append((backend, names))

    def expect(self, *places: tuple[str, int, Any]) -> None:
        """The last wake-up named those rows, each as queue, priority and id."""
        wanted = [(queue, priority, str(id).replace("-", "")) for queue, priority, id in places]
        self.assertEqual(("default", wanted), self.told[-1])

    def test_enqueue_names_what_became_due(self):
        """After the commit, and rows that are due."""
        with transaction.atomic():
            result = plain_tasks.add.using(queue_name="mail", priority=7).enqueue(1, 2)
            self.assertEqual([], self.told)
        self.expect(("mail", 7, result.id))
        plain_tasks.add.using(run_after=timedelta(hours=1)).enqueue(1, 2)
        self.expect()

    def test_enqueue_many_names_what_became_due(self):
        """One wake-up names all."""
        results = plain_tasks.add.enqueue_many([([1, 2], {}), ([3, 4], {})])

        self.expect(*(("default", 0, result.id) for result in results))

    def test_retry_and_run_now_name_what_became_due(self):
        """By hand."""
        claim = make_claim()
        result = task_backends["default"].get_result(str(claim.id))
        store.settle(DB, [])
        ScheduledTask.objects.update(status="FAILED")
        self.assertTrue(result.retry())

        self.expect(("default", 0, claim.id))

    def test_promote_names_what_became_due(self):
        """What has come due in time."""
        id = make_task(run_after=store.now(DB) + timedelta(hours=1), queue_name="mail")
        ScheduledTask.objects.update(run_after=store.now(DB) - timedelta(seconds=1))
        self.assertEqual(1, run_tasks(queue="mail").total)

        self.assertIn(
            ("default", [("mail", 0, str(id).replace("-", ""))]),
            self.told,
        )

    def test_rescue_and_orphans_name_what_became_due(self):
        """What lost workers held, and what never arrived."""
        workers.register(DB, "w1", "default", "", 1, 1)
        claim = make_claim("w1")
        self.assertEqual(1, release_orphans(KeepsADay(), [(claim.id, claim.fence)]))
        self.expect(("default", 0, claim.id))
        self.told.clear()
        store.claim_one(DB, "default", "w1", claim.id)
        workers.declare_lost(DB, "w1", 0)
        self.assertEqual(1, len(rescue(KeepsADay())))

        self.expect(("default", 0, claim.id))


class ReleaseTests(RunnerTestCase):
    """What a runner releases is named too."""

    def test_a_retry_that_is_due_at_once(self):
        """The runner says it to itself and to all others."""
        told: list[Any] = []

        def hear(places: Any, **kwargs: Any) -> None:
            told.extend(str(place.id).replace("-", "") for place in places)

        wakeup.rows_due.connect(hear)
        self.addCleanup(wakeup.rows_due.disconnect, hear)
        result = tasks.fail_times.using(max_attempts=2, backoff=0).enqueue(1)
        told.clear()
        self.runner.wait_for(result)

        until(lambda: result.id.replace("-", "") in told)


class MetaTests(TransactionTestCase):
    """What is attached to a call is stored with it."""

    def test_it_is_written_and_read_back(self):
        """By the result, and by the task itself."""
        result = tasks.give_meta.using(meta={"trace": "00-af", "tags": ["a", 1]}).enqueue()
        [task] = ScheduledTask.objects.all()
        run_tasks()
        result.refresh()

        self.assertEqual({"trace": "00-af", "tags": ["a", 1]}, task.meta)
        self.assertEqual(task.meta, result.return_value)
        self.assertEqual(task.meta, tasks.give_meta.get_result(result.id).task.meta)

    def test_a_call_without_has_none(self):
        """The column is NULL."""
        plain_tasks.add.enqueue(1, 2)

        self.assertIsNone(ScheduledTask.objects.get().meta)

    def test_what_is_not_json_is_refused(self):
        """Before a row is written, with the place in the sentence."""
        with self.assertRaisesMessage(TypeError, "meta['when']"):
            plain_tasks.add.using(meta={"when": object()}).enqueue(1, 2)

        self.assertEqual(0, ScheduledTask.objects.count())
