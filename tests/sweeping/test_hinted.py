"""What becomes of a hint, by the state of its row."""

import time
from datetime import timedelta
from uuid import uuid4

from django.test import TransactionTestCase

import dbtasks
from dbtasks import store
from dbtasks.door import Door
from dbtasks.hinted import HintRun, run_hinted
from dbtasks.models import ScheduledTask, Worker

from .. import tasks
from ..support.rows import DB

DOOR = Door(interrupts=True, fresh_context=True)


def hinted(id: object, **how: bool) -> HintRun:
    """Pass a hint for that row to the default backend."""
    return run_hinted(DOOR, "default", str(id), **how)


class HintedTests(TransactionTestCase):
    """The table of states."""

    def test_a_due_row_runs(self) -> None:
        """The result comes back, and nothing of the worker is left."""
        enqueued = tasks.add.enqueue(1, 2)

        ended = hinted(enqueued.id)

        assert ended.result is not None
        self.assertEqual((True, enqueued.id, None, None), ended[:4])
        self.assertEqual((3, 1), (ended.result.return_value, ended.attempt))
        self.assertFalse(Worker.objects.exists())

    def test_a_task_that_fails_has_run(self) -> None:
        """Its error is in the result, and nothing is raised."""
        ended = hinted(tasks.fail.enqueue().id)

        assert ended.result is not None
        self.assertEqual((True, "FAILED"), (ended.ran, ended.result.status.value))

    def test_a_row_that_is_due_later_is_left(self) -> None:
        """The answer says until when."""
        due = store.now(DB) + timedelta(hours=1)
        enqueued = tasks.add.using(run_after=due).enqueue(1, 2)

        self.assertEqual((False, enqueued.id, "not due", due, None, 0), hinted(enqueued.id)[:6])

    def test_a_row_that_is_due_soon_is_waited_for(self) -> None:
        """The clock of the service may be ahead."""
        due = store.now(DB) + timedelta(seconds=1.5)
        enqueued = tasks.add.using(run_after=due).enqueue(1, 2)

        self.assertTrue(hinted(enqueued.id).ran)
        self.assertGreater(ScheduledTask.objects.get().started_at, due)

    def test_a_row_is_not_waited_for_beyond_the_deadline(self) -> None:
        """It would be asked to end at once. A row that is due runs all the same."""
        due = store.now(DB) + timedelta(seconds=8)
        enqueued = tasks.add.using(run_after=due).enqueue(1, 2)
        door = Door(deadline=time.monotonic() + 12)

        self.assertEqual((False, "not due"), run_hinted(door, "default", enqueued.id)[:3:2])
        ScheduledTask.objects.update(run_after=store.now(DB) - timedelta(seconds=1))
        self.assertTrue(run_hinted(door, "default", enqueued.id).ran)

    def test_a_finished_row_is_left(self) -> None:
        """A FAILED one as well, unless a person asks for it."""
        enqueued = tasks.fail.enqueue()
        dbtasks.process_one()

        self.assertEqual((False, enqueued.id, "finished"), hinted(enqueued.id)[:3])
        self.assertEqual(2, hinted(enqueued.id, allow_retry=True).attempt)

    def test_an_unknown_or_malformed_id_is_unknown(self) -> None:
        """It may have been purged, or rolled back."""
        for id in (uuid4(), "x"):
            self.assertEqual((False, str(id), "unknown"), hinted(id)[:3])
