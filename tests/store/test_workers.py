"""Workers and the rescue: who may take what from whom."""

from datetime import timedelta
from typing import Any
from unittest import mock

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.test import TestCase

from dbtasks import store
from dbtasks.models import ScheduledTask, Worker
from dbtasks.rescue import release_orphans
from dbtasks.rescue import rescue as rescue_rows
from dbtasks.store import workers
from dbtasks.store.unit import BATCH

from ..support.rows import DB, KeepsADay, ids, make_task, outcome, row, vendor
from ..support.workers import claim, register


def rescue(may_retry: bool = True) -> list[Any]:
    """Rescue what lost workers held; return the ids."""
    found = rescue_rows(KeepsADay(may_retry))
    return [task.pk for task in found]


class OldServerTests(TestCase):
    """A server on which a claim would lock every row that is due."""

    def test_mariadb_without_descending_indexes_is_refused(self):
        """In a sentence that says which version serves."""
        if vendor() != "mysql" or not connections[DB].mysql_is_mariadb:
            self.skipTest("such versions are MariaDB's")
        with (
            mock.patch.dict(vars(connections[DB]), mysql_version=(10, 6, 22)),
            self.assertRaisesMessage(ImproperlyConfigured, "MariaDB 10.6.22"),
        ):
            register("w1")


class WorkerTests(TestCase):
    """register, beat, declare_lost, leave"""

    def test_only_live_workers_beat(self):
        """A worker that was declared lost, or never known, is told so."""
        register("w1")

        self.assertTrue(workers.beat(DB, "w1"))
        self.assertFalse(workers.beat(DB, "w2"))
        workers.declare_lost(DB, "w1", 1)
        self.assertFalse(workers.beat(DB, "w1"))

    def test_a_worker_that_beat_meanwhile_is_not_declared_lost(self):
        """The verdict holds at the moment it is written, or not at all."""
        register("w1")
        workers.beat(DB, "w1")

        self.assertFalse(workers.declare_lost(DB, "w1", 0))
        self.assertTrue(workers.declare_lost(DB, "w1", 1))
        self.assertFalse(workers.declare_lost(DB, "w1", 1))

    def test_a_worker_that_was_declared_lost_claims_nothing(self):
        """What it took would be taken from it at once."""
        make_task()
        workers.declare_lost(DB, register("w1"), 0)

        self.assertEqual([], store.claim(DB, "default", "w1", 10, registered=True))
        self.assertEqual([], store.claim(DB, "default", "w1", 10, ["default"], registered=True))
        self.assertEqual(1, len(store.claim(DB, "default", register("w2"), 10, registered=True)))

    def test_one_sees_the_others(self):
        """Those that live and those that are lost: neither itself nor one that has left."""
        for name in ("me", "live", "lost", "gone"):
            register(name)
        workers.declare_lost(DB, "lost", 0)
        workers.leave(DB, "gone")

        others = {other.pk: other.state for other in workers.others(DB, "me", "default")}
        self.assertEqual({"live": "live", "lost": "lost"}, others)

    def test_one_sees_workers_of_its_own_backend(self):
        """Each backend's runners look after their own."""
        workers.register(DB, "elsewhere", "other", "", 1, 1)

        self.assertEqual([], workers.others(DB, "me", "default"))
        self.assertEqual(1, len(workers.others(DB, "me", "other")))


class DisownTests(TestCase):
    """RUNNING, and unknown to the worker in whose name it is → READY"""

    def setUp(self):
        self.id = make_task()
        register("w1")
        self.claim = claim("w1")

    def release_orphans(self, fence: int = 0) -> int:
        """Disown the claim, or one of another fence; return how many stood."""
        claims = {(self.claim.id, fence or self.claim.fence)}
        return release_orphans(KeepsADay(), claims)

    def test_a_worker_knows_what_runs_in_its_name(self):
        """Its own rows, by their fences."""
        make_task()
        claim(register("w2"))

        self.assertEqual({(self.claim.id, self.claim.fence)}, workers.running(DB, "w1"))

    def test_it_is_as_if_it_had_not_been_claimed(self):
        """No start is counted, nobody is blamed; the fence goes on."""
        self.assertEqual(1, self.release_orphans())
        task = row(self.id)

        self.assertEqual(("READY", "", None), (task.status, task.hold, task.worker_id))
        self.assertEqual((0, 0, 1), (task.attempt, task.lost, task.fence))
        self.assertEqual((None, None, None), (task.started_at, task.errors, task.worker_ids))

    def test_a_claim_that_moved_on_is_left_alone(self):
        """Another fence is another claim; what has ended has ended."""
        self.assertEqual(0, self.release_orphans(fence=7))
        store.settle(DB, [outcome(self.claim)])

        self.assertEqual(0, self.release_orphans())
        self.assertEqual("SUCCESSFUL", row(self.id).status)

    def test_a_row_that_was_to_be_cancelled_is(self):
        """Nobody else will see to it."""
        store.request_cancel(DB, [self.id])

        self.assertEqual(1, self.release_orphans())
        task = row(self.id)
        self.assertEqual(("FAILED", 0), (task.status, task.attempt))
        self.assertEqual("dbtasks.exceptions.TaskCancelled", task.errors[-1][0])
        self.assertEqual(timedelta(days=1), task.delete_after - task.finished_at)

    def test_a_worker_that_holds_a_row_is_not_forgotten(self):
        """It is missed, and its row requeued."""
        workers.leave(DB, "w1")
        self.assertTrue(Worker.objects.filter(pk="w1").exists())
        self.release_orphans()
        workers.leave(DB, "w1")

        self.assertFalse(Worker.objects.filter(pk="w1").exists())


class RescueTests(TestCase):
    """RUNNING under a lost worker → READY, or FAILED"""

    def setUp(self):
        self.id = make_task()
        register("w1")
        register("w2")

    def test_rows_of_lost_workers_are_ready_again(self):
        """The lost start is counted and told; the fence goes on."""
        claim("w1")
        self.assertEqual([], rescue())
        workers.declare_lost(DB, "w1", 0)

        self.assertEqual([self.id], rescue())
        task = row(self.id)
        self.assertEqual(("READY", "", None), (task.status, task.hold, task.worker_id))
        self.assertEqual((1, 1, 1, ["w1"]), (task.attempt, task.lost, task.fence, task.worker_ids))
        self.assertEqual("dbtasks.exceptions.WorkerLost", task.errors[0][0])

    def test_rows_of_live_workers_are_left_alone(self):
        """Nobody takes a row from a worker that beats, nor from one that was never registered."""
        claim("w1")
        make_task()
        [other] = store.claim(DB, "default", "inline", 1)
        workers.declare_lost(DB, "w2", 0)

        self.assertEqual([], rescue())
        self.assertEqual("RUNNING", row(self.id).status)
        self.assertEqual("RUNNING", row(other.id).status)

    def test_a_row_that_ended_is_left_alone(self):
        """An outcome that came in time stands."""
        taken = claim("w1")
        workers.declare_lost(DB, "w1", 0)
        store.settle(DB, [outcome(taken)])

        self.assertEqual([], rescue())
        self.assertEqual("SUCCESSFUL", row(self.id).status)

    def test_the_outcome_of_a_lost_worker_is_dropped(self):
        """Fencing: once requeued, the row belongs to its next run."""
        stale = claim("w1")
        workers.declare_lost(DB, "w1", 0)
        rescue()
        self.assertEqual(set(), store.settle(DB, [outcome(stale)]))
        fresh = claim("w2")

        self.assertEqual(set(), store.settle(DB, [outcome(stale)]))
        self.assertEqual([self.id], ids([fresh]))
        self.assertEqual({fresh.id}, store.settle(DB, [outcome(fresh)]))

    def test_rows_of_other_backends_are_left_to_theirs(self):
        """Their runners know what becomes of them."""
        workers.register(DB, "elsewhere", "other", "", 1, 1)
        make_task(backend="other")
        [other] = store.claim(DB, "other", "elsewhere", 1, registered=True)
        workers.declare_lost(DB, "elsewhere", 0)

        self.assertEqual([], rescue())
        self.assertEqual("RUNNING", row(other.id).status)

    def test_a_name_on_a_row_that_ended_keeps_nobody_remembered(self):
        """A lost worker holds what is RUNNING, and nothing else."""
        ScheduledTask.objects.filter(pk=self.id).update(status="FAILED", worker_id="w1")
        workers.declare_lost(DB, "w1", 0)
        Worker.objects.filter(pk="w1").update(beat_at=store.now(DB) - timedelta(days=2))

        self.assertEqual([], rescue())
        self.assertFalse(Worker.objects.filter(pk="w1").exists())

    def test_a_row_that_was_cancelled_ends(self):
        """It does not start again, and says both."""
        claim("w1")
        store.request_cancel(DB, [self.id])
        workers.declare_lost(DB, "w1", 0)

        self.assertEqual([self.id], rescue())
        task = row(self.id)
        self.assertEqual(
            ("FAILED", False, ["w1"]), (task.status, task.cancel_requested, task.worker_ids)
        )
        self.assertEqual("dbtasks.exceptions.TaskCancelled", task.errors[0][0])
        self.assertIn("w1", task.errors[0][1])
        self.assertEqual(timedelta(days=1), task.delete_after - task.finished_at)

    def test_a_row_that_may_not_be_retried_fails(self):
        """on_lost="fail": at most once."""
        claim("w1")
        workers.declare_lost(DB, "w1", 0)

        self.assertEqual([self.id], rescue(may_retry=False))
        task = row(self.id)
        self.assertEqual(("FAILED", 1, 1), (task.status, task.lost, task.attempt))
        self.assertEqual("dbtasks.exceptions.WorkerLost", task.errors[0][0])
        self.assertEqual(timedelta(days=1), task.delete_after - task.finished_at)

    def test_a_third_loss_is_the_last(self):
        """A task that kills its runner does not do so for ever."""
        for n in range(3):
            claim(register(f"victim{n}"), alone=n == 2)
            workers.declare_lost(DB, f"victim{n}", 0)
            rescue()
        task = row(self.id)

        self.assertEqual(("FAILED", 3, 3), (task.status, task.lost, task.attempt))
        self.assertEqual(timedelta(days=1), task.delete_after - task.finished_at)
        self.assertEqual(3, len(task.errors))

    def test_a_lost_worker_is_not_forgotten_while_it_holds_rows(self):
        """However long ago it was lost, and however many rows it held."""
        for _ in range(BATCH):
            make_task()
        store.claim(DB, "default", "w1", BATCH, registered=True)
        store.claim(DB, "default", "w1", BATCH, registered=True)
        workers.declare_lost(DB, "w1", 0)
        Worker.objects.filter(pk="w1").update(beat_at=store.now(DB) - timedelta(days=2))
        found = [rescue() for _ in range(3)]

        self.assertEqual([BATCH, 1, 0], [len(ids) for ids in found])
        self.assertFalse(Worker.objects.filter(pk="w1").exists())

    def test_a_lost_worker_is_remembered_for_a_day(self):
        """Should it wake, it finds that it was declared lost; later nobody cares."""
        workers.declare_lost(DB, "w1", 0)
        rescue()
        self.assertTrue(Worker.objects.filter(pk="w1").exists())
        Worker.objects.filter(pk="w1").update(beat_at=store.now(DB) - timedelta(days=2))
        rescue()

        self.assertFalse(Worker.objects.filter(pk="w1").exists())
