"""What sweeps and hints do about workers that are lost, and about those that only look so."""

import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import UUID

from django.db import connections
from django.test import TestCase, TransactionTestCase, override_settings

import dbtasks
from dbtasks import store, sweeping
from dbtasks.door import Door
from dbtasks.hinted import run_hinted
from dbtasks.liveness.identity import host_key
from dbtasks.models import ScheduledTask, Worker
from dbtasks.store import workers
from dbtasks.sweeping import run_due, sweep_through

from ..support.backends import backend
from ..support.processes import Child, ProcessTestCase, freeze
from ..support.rows import DB, make_task, row
from ..support.tasks import pause
from ..support.waiting import until
from ..support.workers import register
from ..tasks import wait_for_file

HOUR = timedelta(hours=1)
# Seconds. A beat comes every 1.5 s, and a silent worker is watched for 1.9 s.
TIMEOUT = 6.0
short = override_settings(TASKS=backend(OPTIONS={"worker_timeout": TIMEOUT}))


class KilledTests(ProcessTestCase):
    """A process is killed in the middle of a task."""

    def killed(self) -> Any:
        """Return the row of a process that was killed while it ran that."""
        child, id = self.running()
        child.kill()
        Path(self.folder, "go").touch()
        return id

    def running(self, timeout: float = TIMEOUT) -> tuple[Child, Any]:
        """Start a process that sweeps; return it when it runs the only row, and that."""
        result = wait_for_file.enqueue(str(self.folder))
        child = self.start("dbtasks", "sweep", TEST_WORKER_TIMEOUT=str(timeout))
        child_runs = Path(self.folder, "started").exists
        until(lambda: child_runs() or child.process.poll() is not None, "The task")
        self.assertTrue(child_runs(), child.said)
        return child, ScheduledTask.objects.get(pk=result.id).pk

    def leave_host(self) -> None:
        """Let the worker be of another machine, whose processes nobody here can see."""
        Worker.objects.update(host_key="elsewhere")

    def test_a_process_of_this_machine_is_seen_to_be_gone(self) -> None:
        """At once: no witness is needed."""
        id = self.killed()
        with short:
            swept = dbtasks.sweep(max_seconds=0.5)

        self.assertEqual((1, 1), (swept.rescued, swept.succeeded))
        self.assertEqual(("SUCCESSFUL", 2, 1), (row(id).status, row(id).attempt, row(id).lost))

    def test_a_process_of_another_machine_is_rescued_by_one_sweep(self) -> None:
        """Of another process, after its timeout; the first sweep waits for the second witness."""
        id = self.killed()
        self.leave_host()
        until(self.is_silent, "Silence")
        child = self.start("dbtasks", "sweep", "--json", TEST_WORKER_TIMEOUT=str(TIMEOUT))

        self.assertEqual(0, child.end(), child.said)
        self.assertIn('"rescued": 1', child.stdout)
        self.assertEqual(("SUCCESSFUL", 2, 1), (row(id).status, row(id).attempt, row(id).lost))

    def test_a_hint_for_its_row_rescues_it(self) -> None:
        """It heals without a sweep if the service retries."""
        id = self.killed()
        self.leave_host()
        with short:
            early = run_hinted(Door(), "default", id)
            until(self.is_silent, "Silence")
            late = run_hinted(Door(), "default", id)

        self.assertEqual((False, "running"), (early.ran, early.why))
        self.assertEqual((True, 2), (late.ran, late.attempt))

    def is_silent(self) -> bool:
        return bool((store.now(DB) - Worker.objects.get().beat_at).total_seconds() >= TIMEOUT)

    def test_a_process_that_lives_keeps_its_row(self) -> None:
        """Though its last beat seems to be an hour old, because a clock leapt."""
        child, id = self.running(20.0)
        self.leave_host()
        Worker.objects.update(beat_at=store.now(DB) - HOUR)
        swept = dbtasks.sweep()
        Path(self.folder, "go").touch()

        self.assertEqual(0, swept.rescued)
        self.assertEqual(0, child.end(), child.said)
        self.assertEqual(("SUCCESSFUL", 1, 0), (row(id).status, row(id).attempt, row(id).lost))

    def test_a_process_that_stands_still_is_fenced_off(self) -> None:
        """Its outcome comes too late, and is dropped."""
        child, id = self.running()
        freeze(child.process.pid)
        Path(self.folder, "go").touch()
        until(self.is_silent, "Silence")
        with short:
            swept = dbtasks.sweep()
        child.signal(signal.SIGCONT)

        self.assertEqual((1, 1), (swept.rescued, swept.succeeded))
        self.assertEqual(0, child.end(), child.said)
        self.assertIn("has moved on; its outcome SUCCESSFUL was dropped", child.stderr)
        self.assertEqual(("SUCCESSFUL", 2, 1), (row(id).status, row(id).attempt, row(id).lost))

    def test_sigterm_requeues_the_row(self) -> None:
        """As a runner does, and the exit code is the same."""
        child, id = self.running()
        child.process.terminate()

        self.assertEqual(5, child.end(), child.said)
        self.assertIn("Interrupted.", child.stderr)
        self.assertEqual(("READY", 1), (row(id).status, row(id).releases))
        self.assertFalse(Worker.objects.exists())


class BudgetTests(TransactionTestCase):
    """How long a sweep watches."""

    def setUp(self) -> None:
        make_task()
        register("elsewhere", host_key="")
        [self.claim] = store.claim(DB, "default", "elsewhere", 1, registered=True)
        self.fall_silent()
        self.enterContext(short)

    def fall_silent(self) -> None:
        Worker.objects.update(beat_at=store.now(DB) - HOUR)

    def test_the_watch_outlasts_the_budget(self) -> None:
        """The next sweep would begin anew, and so on for ever. But nothing starts any more."""
        swept = dbtasks.sweep(max_seconds=0.01)

        self.assertEqual((1, 0, True), (swept.rescued, swept.ran, swept.is_due_left))
        self.assertEqual("lost", Worker.objects.get(pk="elsewhere").state)

    def test_long_tasks_do_not_keep_a_sweep_from_the_rescue(self) -> None:
        """Between them a sweep looks too rarely."""
        pause.enqueue(2.5)
        swept = dbtasks.sweep(max_seconds=2)

        self.assertEqual((1, 1, True), (swept.rescued, swept.ran, swept.is_due_left))

    def test_the_watch_ends_before_the_deadline(self) -> None:
        """The caller gets its answer."""
        swept = sweep_through(Door(deadline=time.monotonic() + 3.1))

        self.assertEqual(0, swept.rescued)
        self.assertEqual("live", Worker.objects.get(pk="elsewhere").state)

    def test_a_hint_does_not_watch_beyond_the_deadline(self) -> None:
        """It answers that the row is running; a sweep has more time."""
        hinted = run_hinted(Door(deadline=time.monotonic() + 10.1), "default", self.claim.id)

        self.assertEqual((False, "running"), (hinted.ran, hinted.why))
        self.assertEqual("live", Worker.objects.get(pk="elsewhere").state)

    def test_process_tasks_has_a_budget_too(self) -> None:
        """It waits for nobody beyond that."""
        self.assertEqual([], dbtasks.process_tasks(max_seconds=0.5))

    def test_nobody_is_waited_for_if_nobody_is_silent(self) -> None:
        """A worker that beats costs no time."""
        workers.beat(DB, "elsewhere")
        # Of this module only: other threads sleep as they like.
        with mock.patch.object(sweeping, "time", wraps=time) as clock:
            dbtasks.sweep()

        clock.sleep.assert_not_called()

    def test_the_watch_overlaps_with_tasks(self) -> None:
        """And what was rescued runs in the same sweep."""
        for _ in range(8):
            pause.enqueue(0.5)
        swept = dbtasks.sweep(max_seconds=20)

        self.assertEqual((1, 9), (swept.rescued, swept.succeeded))
        self.assertNotEqual(UUID(swept.results[-1].id), UUID(str(self.claim.id)))

    def test_max_tasks_does_not_keep_a_sweep_from_the_rescue(self) -> None:
        """Otherwise a backlog would. The row itself is for the next sweep."""
        make_task()
        swept = dbtasks.sweep(max_tasks=1)

        self.assertEqual((1, 1, True), (swept.ran, swept.rescued, swept.is_due_left))

    def test_a_worker_that_beats_in_time_is_left(self) -> None:
        """The second witness speaks for it."""

        def beat() -> None:
            # Silent by the clock all the time.
            while not over.wait(0.5):
                workers.beat(DB, "elsewhere")
                self.fall_silent()
            connections.close_all()

        over = threading.Event()
        thread = threading.Thread(target=beat)
        thread.start()
        try:
            swept = dbtasks.sweep(max_seconds=4)
            hinted = run_hinted(Door(), "default", self.claim.id)
            self.assertLess(hinted.seconds, 10)
        finally:
            over.set()
            thread.join()

        self.assertEqual((0, "running"), (swept.rescued, hinted.why))
        self.assertEqual("live", Worker.objects.get(pk="elsewhere").state)

    def test_run_due_does_nothing_but_run(self) -> None:
        """Neither does it rescue, nor wait."""
        make_task()
        Worker.objects.update(host_key=host_key(), pid=2**22 + 1)
        swept = run_due(Door(), "default")

        self.assertEqual((1, 0), (swept.ran, swept.rescued))


class InTestCaseTests(TestCase):
    """Inside of the transaction of a project's test."""

    def test_nobody_is_waited_for(self) -> None:
        """No other worker can be seen to beat."""
        id = make_task()
        register("elsewhere")
        store.claim(DB, "default", "elsewhere", 1, registered=True)
        Worker.objects.update(beat_at=store.now(DB) - HOUR)

        self.assertLess(dbtasks.sweep().seconds, 5)
        self.assertEqual("running", run_hinted(Door(), "default", id).why)
