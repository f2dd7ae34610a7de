"""Test cases whose tasks wait, or hang, until the test lets them go."""

import logging
import os
import threading
from typing import Any

from dbtasks.testing import RunnerTestCase

from . import tasks
from .waiting import until


class GateMixin:
    """Closes the gate that tasks.wait_at_gate waits at."""

    def setUp(self) -> None:
        tasks.Gate.opened.clear()
        tasks.Gate.entered = threading.Semaphore(0)
        self.addCleanup(tasks.Gate.opened.set)
        super().setUp()


class SlowTestCase(GateMixin, RunnerTestCase):
    """A runner with one thread, and tasks that hang until the test ends."""

    workers = 1

    def setUp(self) -> None:
        tasks.remembered.clear()
        tasks.Gate.pipe = os.pipe()
        self.addCleanup(os.close, tasks.Gate.pipe[0])
        self.is_shut = True
        self.addCleanup(self.let_go)
        for name in ("dbtasks.runner", "django.tasks"):
            logger = logging.getLogger(name)
            self.addCleanup(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        super().setUp()

    def let_go(self) -> None:
        """Let tasks that hang come back; return once none is left."""
        tasks.Gate.opened.set()
        if self.is_shut:
            os.close(tasks.Gate.pipe[1])
        self.is_shut = False
        until(lambda: self.runner.abandoned_threads == 0)

    def run_to_end(self, task: Any, *args: Any) -> Any:
        return self.runner.wait_for(task.enqueue(*args), 10)

    def errors(self, result: Any) -> list[str]:
        return [error.exception_class_path for error in result.errors]
