"""Helpers for the tests of projects that use dbtasks.

Owns the names that tests import. Never needed by a running project, and never waits by a clock that
tests may patch.

Read in this order: run, assertions, runner.
"""

from .assertions import (
    TaskTestMixin,
    assertEnqueued,
    assertEnqueuedCount,
    assertNotEnqueued,
    enqueued,
)
from .run import Ran, immediate, run_tasks
from .runner import RunnerTestCase, TestingRunner

__all__ = [
    "Ran",
    "RunnerTestCase",
    "TaskTestMixin",
    "TestingRunner",
    "assertEnqueued",
    "assertEnqueuedCount",
    "assertNotEnqueued",
    "enqueued",
    "immediate",
    "run_tasks",
]
