"""What is decided about a row in a process that has not imported the module of its task."""

import json
import sys
from datetime import timedelta
from typing import Any

from django.tasks import default_task_backend

from dbtasks import rescue, store
from dbtasks.models import ScheduledTask
from dbtasks.store import workers

from ..support.processes import ProcessTestCase
from ..support.rows import DB, row
from ..support.workers import register

MODULE = "tests.support.unimported"
# Enqueues one row of each line below, and prints their ids.
ENQUEUE = f"""
import json, django
django.setup()
from django.tasks import default_task_backend
from dbtasks import Periodic, firing
from dbtasks.schedule.periodic import read
from dbtasks.store import periodic
import {MODULE} as tasks

def tick(task, **values):
    [entry] = read({{task.module_path: Periodic("1h", **values)}}).values()
    new, result = firing.make(default_task_backend, entry)
    from dbtasks import store
    store.enqueue("default", [new])
    return result

made = {{
    "declared": tasks.once_brief.enqueue(),
    "at most once": tasks.once.enqueue(),
    "short-lived": tasks.brief.enqueue(),
    "of a call": tasks.plain.using(on_lost="fail", retain="3h").enqueue(),
    "in bulk": tasks.once_brief.enqueue_many([([], {{}})])[0],
    "call over task": tasks.once_brief.using(on_lost="retry", retain="5h").enqueue(),
    "of a schedule": tick(tasks.once, retain="3h"),
    "plain": tasks.plain.enqueue(),
}}
print(json.dumps({{name: result.id for name, result in made.items()}}))
"""
HOUR = timedelta(hours=1)
# What the settings of the tests say.
WEEK = timedelta(days=7)
# Row: its status after its worker was lost, and how long it is kept once it has FAILED.
DECIDED = {
    "declared": ("FAILED", 3 * HOUR),
    "at most once": ("FAILED", WEEK),
    "short-lived": ("READY", 3 * HOUR),
    "of a call": ("FAILED", 3 * HOUR),
    "in bulk": ("FAILED", 3 * HOUR),
    "call over task": ("READY", 5 * HOUR),
    "of a schedule": ("FAILED", 3 * HOUR),
    "plain": ("READY", WEEK),
}


class OtherImportsTests(ProcessTestCase):
    """This process never imports the module."""

    def setUp(self) -> None:
        super().setUp()
        child = self.start(program=(sys.executable, "-c", ENQUEUE))
        self.assertEqual(0, child.end(), child.said)
        self.ids: dict[str, Any] = json.loads(child.stdout)
        self.assertEqual(set(DECIDED), set(self.ids))

    def tearDown(self) -> None:
        self.assertNotIn(MODULE, sys.modules)
        super().tearDown()

    def stays(self, name: str) -> timedelta:
        found = row(self.ids[name])
        self.assertEqual("FAILED", found.status)
        return found.delete_after - found.finished_at

    def test_a_row_whose_worker_was_lost(self):
        """on_lost and retain of the task hold, and those of the call."""
        claims = store.claim(DB, "default", register("victim"), 100)
        self.assertEqual(len(DECIDED), len(claims))
        workers.declare_lost(DB, "victim", 0)
        rescue.rescue(default_task_backend)
        statuses = {name: row(id).status for name, id in self.ids.items()}

        self.assertEqual({name: status for name, (status, _) in DECIDED.items()}, statuses)
        for name, (status, stay) in DECIDED.items():
            if status == "FAILED":
                self.assertEqual(stay, self.stays(name), name)

    def test_a_row_that_is_cancelled_while_it_waits(self):
        """retain holds."""
        for name, (_, stay) in DECIDED.items():
            self.assertTrue(default_task_backend.cancel(self.ids[name]))
            self.assertEqual(stay, self.stays(name), name)

    def test_a_row_that_is_cancelled_and_then_lost(self):
        """retain holds."""
        store.claim(DB, "default", register("victim"), 100)
        for id in self.ids.values():
            default_task_backend.cancel(id)
        workers.declare_lost(DB, "victim", 0)
        rescue.rescue(default_task_backend)

        for name, (_, stay) in DECIDED.items():
            self.assertEqual(stay, self.stays(name), name)

    def test_a_row_that_never_reached_its_worker_and_was_cancelled(self):
        """retain holds."""
        claims = store.claim(DB, "default", register("owner"), 100)
        for id in self.ids.values():
            default_task_backend.cancel(id)
        rescue.release_orphans(default_task_backend, [(c.id, c.fence) for c in claims])

        for name, (_, stay) in DECIDED.items():
            self.assertEqual(stay, self.stays(name), name)

    def test_a_task_without_these_policies_stores_nothing(self):
        """So that it costs nothing."""
        self.assertIsNone(ScheduledTask.objects.get(pk=self.ids["plain"]).policy)
