"""Runners that are killed, frozen, or restarted."""

import os
import signal
import threading
import time
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any
from unittest import mock

from django.db import OperationalError, connections, transaction
from django.tasks import task_backends
from django.test import TransactionTestCase

from dbtasks import rescue, store
from dbtasks.liveness import beat, heartbeat
from dbtasks.liveness.beat import alive
from dbtasks.liveness.identity import host_key
from dbtasks.models import ScheduledTask, Worker
from dbtasks.runner import Runner
from dbtasks.store import workers
from dbtasks.store.unit import DIALECTS
from dbtasks.testing import RunnerTestCase
from dbtasks.wakeup.watchers import Listener

from ..support import tasks
from ..support.gates import GateMixin
from ..support.processes import Child, ProcessTestCase, database_url, freeze
from ..support.proxy import Proxy
from ..support.rows import DB, make_claim, make_task, release, row, vendor
from ..support.waiting import until
from ..support.workers import register
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
        until((self.folder / "started").exists, "The task")
        killed.kill()
        (self.folder / "go").touch()
        self.runner()
        until(lambda: result.refresh() or result.is_finished, "The result")

        self.assertEqual("SUCCESSFUL", result.status)
        self.assertEqual(2, result.attempts)
        self.assertEqual("dbtasks.exceptions.WorkerLost", result.errors[0].exception_class_path)

    def test_a_drain_includes_what_a_killed_runner_held(self):
        """It checks for lost runners before it finds the queue empty."""
        result = wait_for_file.enqueue(str(self.folder))
        killed = self.runner()
        until((self.folder / "started").exists, "The task")
        killed.kill()
        (self.folder / "go").touch()
        child = self.start("taskrunner", "--drain", "-w", 1)

        self.assertEqual(0, child.end(), child.stderr)
        result.refresh()
        self.assertEqual("SUCCESSFUL", result.status)

    def test_a_killed_runner_is_missed_at_once_on_its_machine(self):
        """Seconds, not the time after which silence tells: its neighbour checks its process."""
        result = wait_for_file.enqueue(str(self.folder))
        killed = self.runner(timeout=600)
        until((self.folder / "started").exists, "The task")
        neighbour = self.runner(timeout=600)
        until(lambda: Worker.objects.filter(beat__gt=0).count() == 2, "Its first beat")
        # It waits 120 s or longer before the next one.
        add.enqueue(1, 2).wait(30)
        killed.kill()
        began = time.monotonic()
        neighbour.wait_for("was rescued")
        seconds = time.monotonic() - began
        (self.folder / "go").touch()

        self.assertEqual("SUCCESSFUL", result.wait(30).status)
        self.assertLess(seconds, 3)

    def test_a_frozen_runner_is_declared_lost_and_fenced_off(self):
        """Its tasks go to another; when it wakes, its outcome is dropped and it registers again."""
        result = wait_for_file.enqueue(str(self.folder))
        frozen = self.runner(timeout=2)
        until((self.folder / "started").exists, "The task")
        freeze(frozen.process.pid)
        self.addCleanup(frozen.signal, signal.SIGCONT)
        other = self.runner(timeout=2)
        until(lambda: result.refresh() or result.attempts == 2, "The second start")
        (self.folder / "go").touch()
        until(lambda: result.refresh() or result.is_finished, "The result")
        frozen.signal(signal.SIGCONT)
        frozen.wait_for("registers again")
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


class InlineTests(ProcessTestCase):
    """Tasks that are run without a runner."""

    def run_killed(self, code: str) -> ScheduledTask:
        """Kill a process in the middle of the task that the code runs; return the row."""
        killed = self.start("shell", "-v", 0, "-c", code)
        until((self.folder / "started").exists, "The task")
        self.assertEqual(1, Worker.objects.count())
        killed.kill()
        (self.folder / "go").touch()
        self.assertTrue(ScheduledTask.objects.running().exists())
        self.start("taskrunner", "-w", 1)
        task = ScheduledTask.objects.get()
        until(lambda: task.refresh_from_db() or task.is_finished, "The result")
        return task

    def test_a_killed_process_one_is_missed(self):
        """Its row is rescued by the next runner."""
        wait_for_file.enqueue(str(self.folder))
        task = self.run_killed("import dbtasks; dbtasks.process_one()")

        self.assertEqual(("SUCCESSFUL", 2, 1), (task.status, task.attempt, task.lost))

    def test_a_killed_immediate_task_is_missed(self):
        """So is that of a process that ran it inside enqueue()."""
        task = self.run_killed(
            "from dbtasks.testing import immediate\n"
            "from tests.tasks import wait_for_file\n"
            f"with immediate(): wait_for_file.enqueue({str(self.folder)!r})"
        )

        self.assertEqual(("SUCCESSFUL", 2, 1), (task.status, task.attempt, task.lost))

    def test_one_beats_as_long_as_it_runs(self):
        """A long task is not taken for a lost one; nobody is left behind."""
        with alive(DB, "me", "default", timeout=0.1) as is_known:
            self.assertTrue(is_known)
            until(lambda: Worker.objects.get().beat > 2, "The third beat")

        self.assertFalse(Worker.objects.exists())

    def test_its_beats_come_on_time(self):
        """Others count on that: they watch it for little more than the time between two."""
        with mock.patch.object(beat, "time", mock.Mock(monotonic=lambda: now)):
            now = 100.0
            one = beat.Beat(DB, register("me"), 1.5, None)
            now += 1.0
            self.assertEqual(0.5, one.round())
            now += 0.5
            self.assertEqual(1.0, one.round())

        self.assertEqual(1, Worker.objects.get().beat)

    def test_one_that_left_a_row_running_is_missed(self):
        """When the database went away under its outcome, the name stays behind."""
        with alive(DB, "me", "default", timeout=20):
            make_claim("me")

        self.assertEqual("me", Worker.objects.get().pk)

    def test_inside_a_transaction_nobody_is_missed(self):
        """What is rolled back with the process needs no rescue."""
        with transaction.atomic(), alive(DB, "me", "default", timeout=20) as is_known:
            self.assertFalse(is_known)
            self.assertFalse(Worker.objects.exists())


class LostReplyTests(ProcessTestCase):
    """The database does as it was asked, and its answer never comes."""

    def test_the_claim_is_requeued_and_run(self):
        """Nobody knows that the rows were claimed, save the database."""
        if vendor() == "sqlite":
            self.skipTest("SQLite has no network; the next test is about it")
        proxy = Proxy(database_url())
        self.addCleanup(proxy.close)
        proxy.lose = [b"SET status = 'RUNNING'"] + [b"COMMIT"] * (vendor() == "mysql")
        results = add.enqueue_many([((n, n), {}) for n in range(2)])
        runner = self.start(
            "taskrunner", "-w", 2, "-v", 2, TEST_DATABASE=proxy.url, TEST_WORKER_TIMEOUT="2"
        )
        self.assertTrue(proxy.lost.wait(30))
        runner.wait_for("claims never arrived")
        ended = [result.wait(30) for result in results]

        self.assertEqual([0, 2], [result.return_value for result in ended])
        self.assertEqual([1, 1], [result.attempts for result in ended])

    def test_so_it_is_in_the_same_process(self):
        """The statement was done, and an error came all the same."""
        sql = DIALECTS[vendor()]
        claim, failures = sql.claim, iter([OperationalError("away")])

        def answer_lost(connection: Any, change: Any) -> Any:
            rows = claim(connection, change)
            if rows and (error := next(failures, None)):
                raise error
            return rows

        result = add.enqueue(1, 2)
        backend = task_backends["default"]
        config = replace(backend.config, worker_timeout=1.0)
        with (
            mock.patch.object(sql, "claim", answer_lost),
            mock.patch.object(type(backend), "config", config),
        ):
            runner = Runner(workers=1)
            thread = threading.Thread(target=runner.run)
            thread.start()
            try:
                result.wait(20)
            finally:
                runner.stop()
                thread.join(20)

        self.assertEqual((3, 1), (result.return_value, result.attempts))


class EvictedTests(GateMixin, RunnerTestCase):
    """A runner that finds that others have declared it lost."""

    workers = 1

    def test_what_it_runs_is_asked_to_stop(self):
        """Others may have started it again; the runner goes on in another name."""
        old = self.runner.worker_id
        tasks.heed.enqueue()
        tasks.Gate.entered.acquire(timeout=10)
        pool = self.runner._run._pool
        [attempt] = pool._held
        with self.assertLogs("dbtasks.runner", "WARNING") as logs:
            until(lambda: workers.declare_lost(DB, old, Worker.objects.get(pk=old).beat))
            self.runner._run._heartbeat._beat()
            until(lambda: attempt not in pool._held)

        self.assertIn("registers again", logs.output[0])
        self.assertNotEqual(old, self.runner.worker_id)


class HeartbeatTests(TransactionTestCase):
    """Judging by beats alone."""

    def setUp(self) -> None:
        self.now = 1000.0
        self.enterContext(mock.patch.object(heartbeat, "clock", lambda: self.now))
        backend = task_backends["default"]
        self.heartbeat = heartbeat.Heartbeat(
            DB,
            "me",
            "default",
            20.0,
            on_lost=partial(rescue.rescue, backend),
            release_orphans=partial(rescue.release_orphans, backend),
            on_evicted=mock.Mock(),
            poll_now=mock.Mock(),
            held_claims=lambda: self.held,
        )
        self.held: Any = set()

    def watch(self, seconds: float) -> str:
        """Let that much time pass, check, and return the state of the other worker."""
        self.now += seconds
        self.heartbeat._watch()
        return Worker.objects.get(pk="other").state

    def test_a_silent_worker_is_declared_lost_after_its_time(self):
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

    def test_what_somebody_else_declared_lost_is_rescued(self):
        """Whoever declared the worker lost may have ended before it rescued the rows."""
        register("other")
        id = make_task()
        store.claim(DB, "default", "other", 1)
        workers.declare_lost(DB, "other", 0)
        self.watch(0)

        self.assertEqual("READY", row(id).status)

    def test_one_that_is_lost_already_is_not_declared_lost_again(self):
        """Its process is gone, and that is no news."""
        register("other", host_key=host_key(), pid=2**22 + 1, pid_started=1)
        workers.declare_lost(DB, "other", 0)
        with mock.patch.object(workers, "declare_lost") as declare_lost:
            self.watch(0)

        declare_lost.assert_not_called()

    def test_a_suspended_machine_declares_nobody_lost(self):
        """After an hour of sleep all have been silent, the observer among them."""
        register("other")
        self.watch(5)

        self.assertEqual("live", self.watch(3600))

    def test_a_process_that_is_gone_is_known_at_once_on_its_machine(self):
        """And only there: a pid says nothing of another machine or container."""
        register("other", host_key="elsewhere", pid=2**22 + 1, pid_started=1)
        self.assertEqual("live", self.watch(1))
        Worker.objects.filter(pk="other").update(host_key=host_key())

        self.assertEqual("lost", self.watch(1))

    def test_virtual_machines_of_lambda_are_not_told_apart(self):
        """They may look like one host with other processes, so only the beat counts there."""
        host_key.cache_clear()
        self.addCleanup(host_key.cache_clear)
        with mock.patch.dict(os.environ, {"AWS_LAMBDA_FUNCTION_NAME": "tasks"}):
            self.assertEqual("", host_key())
            register("other", host_key=host_key(), pid=2**22 + 1, pid_started=1)

            self.assertEqual("live", self.watch(1))

    def test_a_worker_that_is_missed_is_declared_lost_at_once(self):
        """Whoever started its process knows that it has ended."""
        register("other")
        self.assertEqual("live", self.watch(0))
        self.heartbeat.declare_lost("other")

        self.assertEqual("lost", self.watch(0))

    def session(self, name: str) -> Any:
        """Return a session of PostgreSQL's that shows the worker to be there."""
        if vendor() != "postgresql":
            self.skipTest("only PostgreSQL's sessions can be seen")
        wrapper: Any = connections[DB]
        params = wrapper.get_connection_params() | {"autocommit": True}
        connection = wrapper.Database.connect(**params)
        self.addCleanup(connection.close)
        Listener(DB, "default", mock.Mock())._show(connection, name)
        return connection

    def test_a_session_that_is_gone_shortens_the_wait(self):
        """PostgreSQL can tell, from machine to machine, though not for certain."""
        register("other")
        session = self.session("other")
        self.assertEqual("live", self.watch(5))
        session.close()
        until(lambda: not workers.sessions(DB)[1])
        states = [self.watch(1) for _ in range(7)]

        self.assertEqual(["live"] * 6 + ["lost"], states)

    def test_a_worker_that_beats_without_a_session_is_alive(self):
        """The session may have broken, and nothing else."""
        register("other")
        session = self.session("other")
        self.watch(5)
        session.close()
        until(lambda: not workers.sessions(DB)[1])
        for _ in range(10):
            self.watch(5)
            workers.beat(DB, "other")

        self.assertEqual("live", self.watch(1))

    def test_a_restart_of_the_server_says_nothing(self):
        """It ends the sessions of all, and all of them live."""
        register("other")
        self.session("other")
        self.watch(5)
        started, _ = workers.sessions(DB)
        later = (started + timedelta(seconds=1), set())
        with mock.patch.object(workers, "sessions", lambda db: later):
            states = [self.watch(5) for _ in range(4)]

        self.assertEqual(["live"] * 3 + ["lost"], states)

    def test_a_worker_that_never_had_a_session_has_all_its_time(self):
        """Behind a pooler there is none."""
        register("other")

        self.assertEqual(["live"] * 4, [self.watch(5) for _ in range(4)])

    def reconcile(self, times: int) -> str:
        """Let it check so often what is in its name; return the status of the only row."""
        for _ in range(times * heartbeat.RECONCILE_BEATS):
            self.heartbeat._reconcile()
        return ScheduledTask.objects.get().status

    def test_a_claim_that_never_arrived_is_requeued(self):
        """After two checks, as if it had not been: no start is counted, nobody is blamed."""
        make_claim("me")
        self.assertEqual("RUNNING", self.reconcile(1))
        self.assertEqual("READY", self.reconcile(1))

        task = ScheduledTask.objects.get()
        self.assertEqual((0, 0, 1, None), (task.attempt, task.lost, task.fence, task.worker_id))

    def test_a_claim_in_hand_is_kept(self):
        """In the pool, or on its way to the database; nothing is said while one is coming in."""
        claim = make_claim("me")
        for self.held in ({(claim.id, claim.fence)}, None):
            self.assertEqual("RUNNING", self.reconcile(4))

    def test_a_claim_of_another_is_kept(self):
        """A worker knows only of its own."""
        make_claim("other")

        self.assertEqual("RUNNING", self.reconcile(4))

    def test_two_checks_must_see_the_same_claim(self):
        """A row that was claimed again in between is another claim."""
        claim = make_claim("me")
        self.reconcile(1)
        release([claim])
        store.claim(DB, "default", "me", 1)

        self.assertEqual("RUNNING", self.reconcile(1))
        self.assertEqual("READY", self.reconcile(1))

    def test_a_worker_that_cannot_beat_is_not_trusted(self):
        """The runner stops starting tasks before others can declare it lost."""
        self.heartbeat._beat()
        self.now += 14
        self.assertTrue(self.heartbeat.is_trusted)
        self.now += 2

        self.assertFalse(self.heartbeat.is_trusted)

    def test_a_worker_that_beats_again_says_so(self):
        """The runner polls at once, not at its next poll."""
        self.heartbeat._beat()
        self.heartbeat._poll_now.assert_not_called()
        self.now += 16
        self.heartbeat._beat()

        self.heartbeat._poll_now.assert_called_once()
        self.assertTrue(self.heartbeat.is_trusted)

    def test_a_worker_that_was_declared_lost_says_so(self):
        """Since then it was given nothing, whatever hints there were."""
        workers.declare_lost(DB, "me", 0)
        with self.assertLogs("dbtasks.runner", "WARNING"):
            self.heartbeat._beat()

        self.heartbeat._on_evicted.assert_called_once()
        self.heartbeat._poll_now.assert_called_once()
