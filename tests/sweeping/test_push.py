"""Sweeps of a backend with a push: the service runs the rows."""

from datetime import timedelta
from typing import Any
from unittest import mock

from django.test import TransactionTestCase

import dbtasks
from dbtasks import store
from dbtasks.door import Door
from dbtasks.liveness.identity import host_key
from dbtasks.models import ScheduledTask
from dbtasks.sweeping import run_due, sweep_through

from .. import tasks
from ..support.hints import Recorder, sending, with_push
from ..support.rows import DB, make_task
from ..support.workers import register


class PushTests(TransactionTestCase):
    """Late rows get a hint."""

    def setUp(self) -> None:
        self.push = Recorder(late=60.0)
        self.enterContext(with_push(self.push))

    def age(self, id: Any, seconds: float) -> str:
        """Let the row have been due for so long; return its id as hints have it."""
        at = store.now(DB) - timedelta(seconds=seconds)
        ScheduledTask.objects.filter(pk=id).update(enqueued_at=at)
        return str(id)

    def test_late_rows_are_hinted_and_not_run(self) -> None:
        """Rows that are not late have their first hint on its way."""
        late, fresh = make_task(), make_task()
        self.age(late, 90)
        with sending():
            swept = dbtasks.sweep()

        self.assertEqual((0, 1, True), (swept.ran, swept.hinted, swept.is_due_left))
        self.assertEqual([(str(late), 1)], [(hint.id, hint.again) for hint in self.push.taken()])
        self.assertEqual(2, ScheduledTask.objects.filter(status="READY").count())
        del fresh

    def test_rows_are_run_if_the_service_does_not_take_their_hints(self) -> None:
        """It is down; the sweep does the work until it is back."""
        late, fresh = make_task(), make_task()
        self.age(late, 90)
        with (
            sending(),
            mock.patch.object(self.push, "send", side_effect=OSError),
            self.assertLogs("dbtasks.push", "WARNING"),
        ):
            swept = dbtasks.sweep()

        self.assertEqual((2, 0, False), (swept.succeeded, swept.hinted, swept.is_due_left))
        self.assertEqual(2, ScheduledTask.objects.filter(pk__in=(late, fresh)).count())

    def test_rows_are_not_run_if_the_service_takes_some_of_their_hints(self) -> None:
        """It may limit how many come at once, and how many run at once."""
        for _ in range(2):
            self.age(make_task(), 90)
        with (
            sending(),
            mock.patch.object(self.push, "send", side_effect=[None, OSError]),
            self.assertLogs("dbtasks.push", "WARNING"),
        ):
            swept = dbtasks.sweep()

        self.assertEqual((0, 1, True), (swept.ran, swept.hinted, swept.is_due_left))

    def test_rows_whose_time_has_come_get_the_hint_that_the_service_could_not_hold(self) -> None:
        """It holds hints for ten minutes at most, so none was sent when the row was written."""
        self.push.longest = timedelta(minutes=10)
        with sending():
            id = tasks.add.using(run_after=store.now(DB) + timedelta(hours=1)).enqueue(1, 2).id
            before = self.push.taken()
            past = store.now(DB) - timedelta(seconds=1)
            ScheduledTask.objects.filter(pk=id).update(run_after=past)
            dbtasks.sweep()

        self.assertEqual([], before)
        self.assertEqual([id], [hint.id for hint in self.push.taken()])

    def test_where_nothing_is_sent_rows_are_run(self) -> None:
        """On a laptop, or in the tests of a project, nobody else would."""
        make_task()
        swept = dbtasks.sweep()

        self.assertEqual((1, 0), (swept.succeeded, swept.hinted))
        self.assertEqual([], self.push.taken())

    def test_a_drain_runs_rows_all_the_same(self) -> None:
        """That is what its hint asks for."""
        make_task()
        with sending():
            self.assertEqual(1, run_due(Door()).succeeded)

    def test_a_rescued_row_gets_its_hint(self) -> None:
        """From the rescue itself."""
        make_task()
        register("lost", host_key=host_key(), pid=2**22 + 1)
        store.claim(DB, "default", "lost", 1, registered=True)
        with sending():
            swept = sweep_through(Door())

        self.assertEqual((1, 0), (swept.rescued, swept.ran))
        self.assertEqual(1, len(self.push.taken()))
