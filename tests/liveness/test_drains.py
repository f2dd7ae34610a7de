"""Drains that are killed, and drains that find what they left, where no runner lives."""

from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from django.db import transaction
from django.test import TransactionTestCase, override_settings

import dbtasks
from dbtasks import store
from dbtasks.liveness import silence
from dbtasks.liveness.identity import host_key
from dbtasks.models import ScheduledTask, Worker
from dbtasks.store import workers

from ..support.backends import backend
from ..support.processes import Child, ProcessTestCase
from ..support.rows import DB, make_task, row
from ..support.waiting import until
from ..support.workers import register
from ..tasks import wait_for_file

HOUR = timedelta(hours=1)
# Seconds. A third of it is waited for.
TIMEOUT = 6.0


class KilledDrainTests(ProcessTestCase):
    """Two processes of another machine run a task each; one of them is killed."""

    def drain(self, name: str) -> tuple[Child, Any]:
        """Start a drain that runs one task; return it with the row when that runs."""
        folder = self.folder / name
        folder.mkdir()
        result = wait_for_file.enqueue(str(folder))
        code = "import dbtasks; dbtasks.process_tasks()"
        child = self.start("shell", "-v", 0, "-c", code, TEST_WORKER_TIMEOUT=str(TIMEOUT))
        started = folder / "started"
        until(lambda: started.exists() or child.process.poll() is not None, "The task")
        self.assertTrue(started.exists(), child.said)
        return child, ScheduledTask.objects.get(pk=result.id)

    def kill_one_of_two(self) -> tuple[Child, Any, Any]:
        """Return the drain that lives, its row, and the row of the one that was killed long ago."""
        killed, lost = self.drain("killed")
        alive, kept = self.drain("alive")
        killed.kill()
        # Nobody here can see whether their processes are there.
        Worker.objects.update(host_key="elsewhere")
        Worker.objects.filter(pk=lost.worker_id).update(beat_at=store.now(DB) - HOUR)
        Path(self.folder, "killed", "go").touch()
        return alive, kept, lost

    def assert_rescued(self, alive: Child, kept: Any, lost: Any) -> None:
        lost.refresh_from_db()
        self.assertEqual(("SUCCESSFUL", 2, 1), (lost.status, lost.attempt, lost.lost))
        self.assertEqual("RUNNING", row(kept.pk).status)
        Path(self.folder, "alive", "go").touch()
        self.assertEqual(0, alive.end())
        kept.refresh_from_db()
        self.assertEqual(("SUCCESSFUL", 1, 0), (kept.status, kept.attempt, kept.lost))
        self.assertEqual(["lost"], list(Worker.objects.values_list("state", flat=True)))

    def test_process_tasks_rescues_the_row_of_the_killed_one(self) -> None:
        """It runs the row to its end, and leaves the other alone."""
        alive, kept, lost = self.kill_one_of_two()

        with override_settings(TASKS=backend(OPTIONS={"worker_timeout": TIMEOUT})):
            results = dbtasks.process_tasks()

        self.assertEqual([str(lost.pk)], [result.id for result in results])
        self.assert_rescued(alive, kept, lost)

    def test_the_command_rescues_the_row_of_the_killed_one(self) -> None:
        """So does taskrunner --drain, which does not end before."""
        alive, kept, lost = self.kill_one_of_two()
        child = self.start("taskrunner", "--drain", "-w", 1, TEST_WORKER_TIMEOUT=str(TIMEOUT))

        self.assertEqual(0, child.end(), child.said)
        self.assert_rescued(alive, kept, lost)


class SilentWorkersTests(TransactionTestCase):
    """Both witnesses must agree."""

    def setUp(self) -> None:
        self.now = 1000.0
        clock = mock.Mock(monotonic=lambda: self.now)
        self.enterContext(mock.patch.object(silence, "time", clock))
        self.silent = silence.SilentWorkers(DB, "default", 20.0)
        register("other")

    def look(self, seconds: float) -> str:
        """Let so much time pass, look, and return the state of the other worker."""
        self.now += seconds
        self.silent.check("me")
        return Worker.objects.get(pk="other").state

    def set_back(self) -> None:
        """Let the last beat be an hour old, by the database's clock."""
        Worker.objects.update(beat_at=store.now(DB) - HOUR)

    def test_a_worker_that_is_silent_for_both_is_lost(self) -> None:
        """After a little more than the time between two beats."""
        self.set_back()
        states = [self.look(1) for _ in range(8)]

        self.assertEqual(["live"] * 7 + ["lost"], states)
        self.assertFalse(self.silent)

    def test_a_worker_whose_last_beat_is_fresh_is_not_silent(self) -> None:
        """However long nobody sees another one."""
        states = {self.look(1) for _ in range(30)}

        self.assertEqual({"live"}, states)
        self.assertFalse(self.silent)

    def test_a_worker_that_beats_is_alive_whatever_the_clock_says(self) -> None:
        """The database's clock may have leapt."""
        for _ in range(10):
            self.set_back()
            self.look(1)
            self.look(1)
            self.look(1)
            self.assertTrue(self.silent)
            workers.beat(DB, "other")

        self.assertEqual("live", self.look(1))
        self.assertFalse(self.silent)

    def test_a_machine_that_stood_still_declares_nobody_lost(self) -> None:
        """Nobody else on it could beat meanwhile."""
        self.set_back()
        self.look(1)

        self.assertEqual("live", self.look(3600))

    def test_a_process_that_is_gone_is_lost_at_once(self) -> None:
        """On the same host no beat is needed to see that."""
        Worker.objects.update(host_key=host_key(), pid=2**22 + 1)

        self.assertEqual("lost", self.look(0))

    def test_rows_of_workers_that_others_declared_lost_are_to_rescue(self) -> None:
        """Whoever declared them lost may have ended before the rescue."""
        self.assertFalse(self.silent.check("me"))
        workers.declare_lost(DB, "other", 0)

        self.assertTrue(self.silent.check("me"))

    def test_process_tasks_looks_once_its_own_work_is_done(self) -> None:
        """Not before, not for one task, and not inside the transaction of a TestCase."""
        make_task()
        make_task()
        with mock.patch.object(silence.SilentWorkers, "check", return_value=False) as check:
            dbtasks.process_tasks(max_tasks=1)
            dbtasks.process_one()
            dbtasks.process_one()
            check.assert_not_called()
            dbtasks.process_tasks()
            check.assert_called_once()
            with transaction.atomic():
                transaction.get_connection().atomic_blocks[-1]._from_testcase = True
                dbtasks.process_tasks()
            check.assert_called_once()
