"""Tasks that wait for other tasks."""

import dbtasks
from dbtasks.store import workers
from dbtasks.testing import RunnerTestCase

from ..support import tasks
from ..support.rows import DB, statuses
from ..support.waiting import until


class WaitingTests(RunnerTestCase):
    """One thread, in which a task waits for another one."""

    workers = 1
    max_wait = 30.0

    def test_a_task_that_waits_for_another(self):
        """It is run all the same, and so are its own children."""
        result = tasks.wait_for_child.enqueue(3)

        self.assertEqual(3, self.runner.wait_for(result).return_value)
        self.assertEqual({"SUCCESSFUL": 4}, statuses())
        until(lambda: len(workers.others(DB, "", "default")) == 1, "The end of the other workers")

    def test_many_tasks_that_wait(self):
        """Whatever the order in which they come."""
        results = [tasks.wait_for_child.enqueue(1) for _ in range(4)]
        for result in results:
            self.assertEqual(1, self.runner.wait_for(result).return_value)

    def test_coroutines(self):
        """As in threads."""
        result = tasks.await_child.enqueue(2)

        self.assertEqual(2, self.runner.wait_for(result).return_value)

    def test_a_task_of_another_queue_is_left_to_its_runner(self):
        """This process may not be the one for it."""
        self.runner.close()
        self.runner = self.start_runner(queues=["default"])
        result = tasks.wait_for_child.enqueue(1, "mail", 1.5)
        self.runner.wait_for(result)

        self.assertEqual("FAILED", result.status)
        self.assertEqual("builtins.TimeoutError", result.errors[0].exception_class_path)
        self.assertEqual({"FAILED": 1, "READY": 1}, statuses())


class InlineTests(RunnerTestCase):
    """Without a runner."""

    def test_process_one(self):
        """Nobody else would run the other task."""
        self.runner.close()
        tasks.wait_for_child.enqueue(2)

        self.assertEqual(2, dbtasks.process_one().return_value)
