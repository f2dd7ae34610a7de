"""Threads of a runner that cannot go on."""

import asyncio
import errno
import logging
import threading
from typing import Any
from unittest import mock

from django.db import connections, transaction
from django.test import TransactionTestCase, override_settings

from dbtasks.events import STALLED
from dbtasks.models import ScheduledTask, Worker
from dbtasks.runner import Runner
from dbtasks.runner.outcome_writer import OutcomeWriter
from dbtasks.runner.slots import Slots
from dbtasks.store import workers

from ..support import tasks
from ..support.backends import backend
from ..support.gates import GateMixin
from ..support.processes import ProcessTestCase
from ..support.rows import DB, make_claim, row, vendor
from ..support.waiting import until
from ..support.workers import register
from ..tasks import add, halt_loop


class StandstillTests(GateMixin, TransactionTestCase):
    """In this process, with a short worker_timeout."""

    def setUp(self) -> None:
        super().setUp()
        for name in ("dbtasks", "dbtasks.runner"):
            logger = logging.getLogger(name)
            self.addCleanup(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL + 1)
        self.enterContext(override_settings(TASKS=backend(OPTIONS={"worker_timeout": 2})))
        self.go_on = threading.Event()
        self.addCleanup(self.go_on.set)

    def begin(self) -> Runner:
        """Start a runner in a thread; return it once it is ready."""
        runner = Runner(workers=1, grace=1.0)
        thread = threading.Thread(target=runner.run, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 30)
        self.addCleanup(runner.stop)
        self.assertTrue(runner.ready.wait(30))
        return runner

    def test_a_runner_of_which_a_thread_stands_still_beats_no_more(self):
        """It ends, if it can, and others rescue its rows."""
        attempt, is_first = OutcomeWriter._try, [True]

        def halt(writer: OutcomeWriter, *args: Any) -> Any:
            if is_first:
                is_first.pop()
                self.go_on.wait(30)
            return attempt(writer, *args)

        with mock.patch.object(OutcomeWriter, "_try", halt):
            halted, stalled = self.begin(), []
            halted.events.subscribe(STALLED, stalled.append)
            result = add.enqueue(1, 2)
            until(halted.finished.is_set, "The end of the runner")
            [worker] = Worker.objects.all()
            self.assertEqual((["dbtasks-outcomes"], True), (stalled, halted.exhausted))
            self.assertEqual(("RUNNING", "live"), (row(result.id).status, worker.state))
            self.begin()
            result.wait(30)

        self.assertEqual(("SUCCESSFUL", 2), (result.status, result.attempts))

    def test_a_locked_row_of_a_lost_worker_does_not_hold_up_the_beat(self):
        """The row is rescued when the lock is gone."""
        if vendor() == "sqlite":
            self.skipTest("SQLite locks the whole file")
        register("gone")
        claim = make_claim("gone")
        with transaction.atomic():
            list(ScheduledTask.objects.select_for_update())
            workers_lost = threading.Thread(target=self.lose)
            workers_lost.start()
            workers_lost.join(10)
            runner = self.begin()
            own = Worker.objects.filter(worker_id=runner.worker_id)
            until(lambda: own.filter(beat__gte=6).exists(), "Six beats", 8)
            self.assertEqual("RUNNING", row(claim.id).status)
        until(lambda: row(claim.id).status == "SUCCESSFUL", "The rescue")

    def lose(self) -> None:
        workers.declare_lost(DB, "gone", 0)
        connections.close_all()

    def test_a_loop_that_cannot_be_made_ends_the_attempt_in_words(self):
        """The thread lives on, and so does the next coroutine."""
        error = OSError(errno.EMFILE, "Too many open files")
        with mock.patch.object(asyncio, "new_event_loop", side_effect=error):
            self.begin()
            failed = tasks.acarry.enqueue(False).wait(30)
        plain, other = add.enqueue(1, 2).wait(30), tasks.acarry.enqueue(False).wait(30)

        self.assertEqual(["FAILED", "SUCCESSFUL"], [failed.status, plain.status])
        self.assertIn("Too many open files", failed.errors[0].traceback)
        self.assertEqual("SUCCESSFUL", other.status)

    def test_an_abandoned_task_ends_although_no_thread_can_be_started(self):
        """Without the thread that would replace its own, the runner stops."""
        replace = Slots.replace

        def without_threads(slots: Slots, attempt: Any) -> Any:
            if (threads := replace(slots, attempt)) is not None:
                threads[1].start = mock.Mock(side_effect=RuntimeError("can't start new thread"))
                slots._new = lambda *_: threads[1]
            return threads

        with mock.patch.object(Slots, "replace", without_threads):
            runner = self.begin()
            result = tasks.refuse.using(timeout=0.1).enqueue().wait(30)
            until(runner.finished.is_set, "The end of the runner")

        self.assertEqual("FAILED", result.status)
        self.assertIn("TaskTimeout", result.errors[0].exception_class_path)
        self.assertTrue(runner.exhausted)


class ExitTests(ProcessTestCase):
    """The command."""

    def test_a_process_of_which_the_loop_stands_still_ends(self):
        """Although its main thread cannot do it; the exit code asks for a new one."""
        halt_loop.enqueue()
        child = self.start("taskrunner", "-w", 1, TEST_WORKER_TIMEOUT="2")

        self.assertEqual(6, child.end())
