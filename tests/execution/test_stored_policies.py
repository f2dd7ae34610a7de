"""Policies that stand in the row."""

import json
import math

from django.db import connection
from django.tasks import default_task_backend
from django.test import SimpleTestCase, TransactionTestCase, override_settings

import dbtasks
from dbtasks import rescue, store
from dbtasks.base import registry
from dbtasks.base.stored import policy_text
from dbtasks.execution.attempt import Attempt
from dbtasks.execution.running import run
from dbtasks.models import TABLE
from dbtasks.store import workers

from ..support import tasks
from ..support.backends import backend
from ..support.rows import DB, make_claim, make_task, row
from ..support.workers import register

# Policies that this version does not understand, and whether the row starts again after a loss.
UNREADABLE = {
    '{"on_lost":"ask"}': False,
    '{"on_lost":7}': False,
    "[1]": False,
    "not JSON": False,
    "": False,
    '{"retain":"P7D"}': True,
    '{"backoff":{"kind":"fibonacci"}}': True,
    '{"colour":"red"}': True,
}


class LaterVersionTests(TransactionTestCase):
    """A later version of dbtasks has written the policy, or somebody has damaged the row."""

    def lose_all(self) -> None:
        store.claim(DB, "default", register("victim"), 100)
        workers.declare_lost(DB, "victim", 0)
        rescue.rescue(default_task_backend)

    def test_a_lost_row_does_not_keep_the_others_from_their_rescue(self):
        """It ends, in words, if nothing tells that it may start again."""
        ids = {policy: make_task(policy=policy) for policy in UNREADABLE}
        plain = make_task()
        self.lose_all()

        self.assertEqual("READY", row(plain).status)
        for policy, starts_again in UNREADABLE.items():
            found = row(ids[policy])
            self.assertEqual("READY" if starts_again else "FAILED", found.status, policy)
            path, text = found.errors[-1]
            self.assertEqual("dbtasks.exceptions.WorkerLost", path)
            if not starts_again:
                self.assertIn("cannot be read", text)
                self.assertIn("not started again", text)

    def test_damaged_texts_of_a_lost_row(self):
        """Of any column."""
        for column in ("args", "kwargs", "meta", "errors", "worker_ids"):
            id = make_task()
            with connection.cursor() as cursor:
                cursor.execute(
                    f"UPDATE {TABLE} SET {column} = %s WHERE id = %s",
                    ["{broken", store.pk_text(DB, id)],
                )
        self.lose_all()

        self.assertEqual({"READY"}, {each.status for each in type(row(id)).objects.all()})

    def test_its_result_can_be_read_and_it_can_be_cancelled(self):
        """Without its policies."""
        for policy in UNREADABLE:
            id = make_task(policy=policy)
            self.assertEqual("READY", default_task_backend.get_result(str(id)).status)
            self.assertTrue(default_task_backend.cancel(str(id)), policy)
            self.assertEqual("FAILED", row(id).status)


class StoredTests(SimpleTestCase):
    """What a row stores."""

    def test_what_decides_without_the_task_is_always_stored(self):
        """The other policies only if they differ from the declaration."""
        own = dbtasks.task(max_attempts=3, timeout=5, on_lost="fail", retain="1h")
        task = own(tasks.add.func)
        registry._tasks[task.module_path] = task
        self.addCleanup(registry._tasks.__setitem__, task.module_path, tasks.add)
        kept = {"on_lost": "fail", "retain": 3600.0}

        self.assertEqual(kept, json.loads(policy_text(task)))
        self.assertIs(policy_text(task), policy_text(task))
        self.assertEqual(kept | {"timeout": 9.0}, json.loads(policy_text(task.using(timeout=9))))
        self.assertEqual(kept, json.loads(policy_text(task.using(priority=3))))

    def test_a_task_without_such_policies_stores_nothing(self):
        """Nor does a copy that differs in other things."""
        self.assertIsNone(policy_text(tasks.add))
        self.assertIsNone(policy_text(tasks.add.using(priority=3)))


class LiftedTests(TransactionTestCase):
    """A limit of the decorator or of OPTIONS, and a call that has none."""

    LIMITED = {"timeout": 5, "retain": "1h"}

    @override_settings(TASKS=backend(OPTIONS=LIMITED))
    def test_none_lifts_the_limit_of_the_options(self):
        """In the thread that enqueues, in the row, and in the process that runs it."""
        result = tasks.add.using(timeout=None, retain=None).enqueue(1, 2)
        self.assertEqual({"timeout": None, "retain": None}, row(result.id).policy)
        claim = store.claim_one(DB, "default", "w1", row(result.id).pk)
        attempt = Attempt(default_task_backend.context("w1"), claim)
        attempt.begin()
        attempt.find()
        self.assertIsNone(attempt.timeout)
        self.assertIsNone(run(attempt).delete_after)
        self.assertEqual(result.task, default_task_backend.get_result(result.id).task)

        other = Attempt(default_task_backend.context("w1"), make_claim())
        self.assertIsNotNone(other.find())
        self.assertEqual(5.0, other.timeout)

    @override_settings(TASKS=backend(OPTIONS=LIMITED))
    def test_none_lifts_the_limit_of_the_decorator(self):
        """Cancelled rows are kept for ever, too."""
        result = tasks.decorated.using(timeout=None, retain=None).enqueue()
        self.assertEqual(math.inf, result.task.timeout)
        self.assertTrue(result.cancel())
        self.assertIsNone(row(result.id).delete_after)

    def test_the_decorator_lifts_the_limit_of_the_options(self):
        """With None, or with math.inf where Django's own decorator is used."""
        known = registry._tasks[tasks.add.module_path]
        self.addCleanup(registry._tasks.__setitem__, tasks.add.module_path, known)
        self.assertEqual(math.inf, dbtasks.task(timeout=None)(tasks.add.func).timeout)
        self.assertEqual(math.inf, tasks.add.using(timeout=math.inf).timeout)
        self.assertIsNone(dbtasks.task(tasks.add.func).timeout)
        self.assertIsNone(tasks.add.using(priority=1).timeout)
