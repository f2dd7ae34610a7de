"""What a call costs that finds nothing to do."""

from datetime import timedelta
from typing import Any
from unittest import mock

from django.db import connection
from django.test import TransactionTestCase
from django.test.utils import CaptureQueriesContext

import dbtasks
from dbtasks import store
from dbtasks.door import Door
from dbtasks.exceptions import TaskNotDue
from dbtasks.hinted import run_hinted
from dbtasks.store import workers

from .. import tasks
from ..support.rows import DB
from ..support.workers import register

HOUR = timedelta(hours=1)
# The most statements of a call for a row that may not run.
MOST = 3


class DuplicateTests(TransactionTestCase):
    """A duplicate costs less than a run: nobody registers for it."""

    def assert_cheap(self, call: Any) -> None:
        # Without the log, which is cleared when nothing runs as well.
        with (
            mock.patch.object(workers, "register") as register,
            CaptureQueriesContext(connection) as statements,
        ):
            call()

        register.assert_not_called()
        said = [statement["sql"] for statement in statements]
        self.assertGreater(len(said), 0)
        self.assertLessEqual(len(said), MOST, said)

    def rows(self) -> dict[str, str]:
        """Return the ids of rows that may not run, by what they are."""
        finished, running = tasks.add.enqueue(1, 2), tasks.add.enqueue(1, 2)
        later = tasks.add.using(run_after=store.now(DB) + HOUR).enqueue(1, 2)
        dbtasks.run_task(finished.id)
        register("elsewhere")
        store.claim(DB, "default", "elsewhere", 1, registered=True)
        return {"finished": finished.id, "running": running.id, "not due": later.id}

    def test_run_task_of_a_row_that_may_not_run(self) -> None:
        """It looks before it registers as a worker."""
        for what, id in self.rows().items():
            with self.subTest(what):
                self.assert_cheap(lambda id=id: self.assertRaises(TaskNotDue, dbtasks.run_task, id))

    def test_a_hint_for_such_a_row(self) -> None:
        """It says which it is."""
        for what, id in self.rows().items():
            with self.subTest(what):
                self.assert_cheap(
                    lambda id=id, what=what: self.assertEqual(
                        what, run_hinted(Door(), "default", id).why
                    )
                )

    def test_a_sweep_that_finds_nothing(self) -> None:
        """Two looks at workers and ticks, three at rows, one at what is expired."""
        dbtasks.sweep()
        with CaptureQueriesContext(connection) as statements:
            dbtasks.sweep()

        said = [statement["sql"] for statement in statements if "SAVEPOINT" not in statement["sql"]]
        self.assertLessEqual(len(said), 8, said)
