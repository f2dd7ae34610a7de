"""Runners that are killed, frozen, or restarted."""

import signal
from unittest import mock

from django.test import TransactionTestCase

from dbtasks import liveness
from dbtasks.models import ScheduledTask, Worker
from dbtasks.store import workers

from ..doors.processes import Child, ProcessTestCase, wait_until
from ..store.base import DB
from ..store.test_workers import register
from ..tasks import add, die, die_among, stay, wait_for_file


class KilledTests(ProcessTestCase):
    """Real processes, real signals."""

    def runner(self, timeout: int = 20, threads: int = 1) -> Child:
        child = self.started(timeout, threads)
        child.wait_for("Stop with Ctrl-C")
        return child

    def started(self, timeout: int = 20, threads: int = 1) -> Child:
        return self.start("taskrunner", "-w", threads, "-v", 2, TEST_WORKER_TIMEOUT=str(timeout))

    def test_a_killed_runner_s_task_is_run_by_another(self):
        """kill -9 loses nothing; on the same machine the next runner sees it at once."""
        result = wait_for_file.enqueue(str(self.folder))
        killed = self.runner()
        wait_until((self.folder / "started").exists, "The task")
        killed.kill()
        (self.folder / "go").touch()
        self.runner()
        wait_until(lambda: result.refresh() or result.is_finished, "The result")

        self.assertEqual("SUCCESSFUL", result.status)
        self.assertEqual(2, result.attempts)
        self.assertEqual("dbtasks.exceptions.WorkerLost", result.errors[0].exception_class_path)

    def test_a_drain_includes_what_a_killed_runner_held(self):
        """It looks for lost runners before it finds the queue empty."""
        result = wait_for_file.enqueue(str(self.folder))
        killed = self.runner()
        wait_until((self.folder / "started").exists, "The task")
        killed.kill()
        (self.folder / "go").touch()
        child = self.start("taskrunner", "--drain", "-w", 1)

        self.assertEqual(0, child.end(), child.stderr)
        result.refresh()
        self.assertEqual("SUCCESSFUL", result.status)

    def test_a_frozen_runner_is_given_up_and_fenced_off(self):
        """Its tasks go to another; when it wakes, its outcome is dropped and it joins anew."""
        result = wait_for_file.enqueue(str(self.folder))
        frozen = self.runner(timeout=2)
        wait_until((self.folder / "started").exists, "The task")
        frozen.signal(signal.SIGSTOP)
        self.addCleanup(frozen.signal, signal.SIGCONT)
        other = self.runner(timeout=2)
        wait_until(lambda: result.refresh() or result.attempts == 2, "The second start")
        (self.folder / "go").touch()
        wait_until(lambda: result.refresh() or result.is_finished, "The result")
        frozen.signal(signal.SIGCONT)
        frozen.wait_for("joins anew")
        frozen.wait_for("was dropped")
        other.signal(signal.SIGTERM)
        other.end()
        again = add.enqueue(1, 2).wait(30)

        self.assertEqual(2, result.attempts)
        self.assertNotIn(again.worker_ids[0], result.worker_ids)

    def test_a_task_that_kills_its_runner_is_failed_at_last(self):
        """Three runners die of it, no more; what is due meanwhile is not lost."""
        poison = die.enqueue()
        for _ in range(3):
            # It may be dead before it has said a word.
            self.started().process.wait(30)
        other = add.enqueue(1, 2)
        self.runner()
        other.wait(30)
        poison.wait(30)

        self.assertEqual("FAILED", poison.status)
        self.assertEqual(3, poison.attempts)

    def test_the_neighbours_of_a_poison_are_not_blamed(self):
        """Three deaths name the guilty one; those that ran beside it twice end as they should."""
        poison = die_among.enqueue(str(self.folder), 3)
        neighbours = [stay.enqueue(str(self.folder), name) for name in "abc"]
        for _ in range(2):
            self.started(threads=4).process.wait(30)
            for started in self.folder.glob("started-*"):
                started.rename(self.folder / f"was-{started.name}")
        (self.folder / "go").touch()
        for name in "abc":
            (self.folder / f"started-{name}").touch()
        deaths = 2
        while not poison.is_finished:
            process = self.started(threads=4).process
            while process.poll() is None and not poison.is_finished:
                poison.refresh()
            deaths += process.poll() is not None
        self.runner()

        self.assertEqual(["a", "b", "c"], [n.wait(30).return_value for n in neighbours])
        self.assertEqual(("FAILED", 3, 3), (poison.status, poison.attempts, deaths))

    def test_a_runner_that_stops_is_forgotten(self):
        """Nobody is missed who has said goodbye."""
        child = self.runner()
        self.assertEqual(1, Worker.objects.count())
        child.signal(signal.SIGTERM)
        child.end()

        self.assertEqual(0, Worker.objects.count())
        self.assertFalse(ScheduledTask.objects.running().exists())


class HeartTests(TransactionTestCase):
    """Judging by beats alone."""

    def setUp(self) -> None:
        self.now = 1000.0
        self.enterContext(mock.patch.object(liveness, "clock", lambda: self.now))
        self.heart = liveness.Heart(
            DB, "me", "default", 20.0, lambda row: None, lambda row: True, mock.Mock(), mock.Mock()
        )

    def watch(self, seconds: float) -> str:
        """Let that much time pass, look, and return the state of the other worker."""
        self.now += seconds
        self.heart._watch()
        return Worker.objects.get(pk="other").state

    def test_a_silent_worker_is_given_up_after_its_time(self):
        """Not before the time is over, by this process's own count."""
        register("other")
        states = [self.watch(5) for _ in range(5)]

        self.assertEqual(["live"] * 4 + ["lost"], states)

    def test_a_worker_that_beats_is_alive(self):
        """However slowly: one beat in the time is enough."""
        register("other")
        for _ in range(10):
            self.watch(5)
            self.watch(5)
            workers.beat(DB, "other")

        self.assertEqual("live", self.watch(5))

    def test_a_suspended_machine_gives_up_nobody(self):
        """After an hour of sleep all have been silent, the observer among them."""
        register("other")
        self.watch(5)

        self.assertEqual("live", self.watch(3600))

    def test_a_process_that_is_gone_is_known_at_once_on_its_machine(self):
        """And only there: a pid says nothing of another machine or container."""
        register("other", place="elsewhere", pid=2**22 + 1, pid_started=1)
        self.assertEqual("live", self.watch(1))
        Worker.objects.filter(pk="other").update(place=liveness.place())

        self.assertEqual("lost", self.watch(1))

    def test_a_worker_that_is_missed_is_given_up_at_once(self):
        """Whoever started its process knows that it has ended."""
        register("other")
        self.assertEqual("live", self.watch(0))
        self.heart.miss("other")

        self.assertEqual("lost", self.watch(0))

    def test_a_heart_that_cannot_beat_is_not_trusted(self):
        """The runner stops starting tasks before others can give it up."""
        self.heart._beat()
        self.now += 14
        self.assertTrue(self.heart.is_trusted)
        self.now += 2

        self.assertFalse(self.heart.is_trusted)
