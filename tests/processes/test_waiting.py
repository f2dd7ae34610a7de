"""Runners that start before their database."""

import os
import signal
from unittest import mock

from django.test import SimpleTestCase

from dbtasks.processes import waiting
from demo.databases import sqlite_url

from ..support.processes import Child, ProcessTestCase


class WaitingTests(ProcessTestCase):
    """A database that is not migrated yet stands for all that is not ready."""

    def begin(self, *arguments: str, **environment: str) -> Child:
        """Start a command on a database of its own."""
        url = sqlite_url(self.folder / "late.sqlite3")
        return self.start(*arguments, TEST_DATABASE=url, DBTASKS_DATABASE=url, **environment)

    def test_a_runner_waits_for_its_tables(self):
        """As long as it is told; then it runs as if they had always been there."""
        child = self.begin("taskrunner", "--wait", "5m")
        child.wait_for("Waiting up to 5m for the database: The database 'default' lacks the table")
        self.assertEqual(0, self.begin("migrate", "-v", "0").end())
        child.wait_for("Stop with Ctrl-C")
        child.signal(signal.SIGTERM)

        self.assertEqual(0, child.end(), child.said)
        self.assertEqual(1, child.said.count("Waiting"))

    def test_the_wait_can_be_stopped(self):
        """Under a supervisor, here supervisord, a runner waits by itself."""
        child = self.begin("taskrunner", SUPERVISOR_ENABLED="1")
        child.wait_for("Waiting up to 60.0 s")
        child.signal(signal.SIGTERM)

        self.assertEqual(0, child.end(), child.said)
        self.assertNotIn("Traceback", child.said)

    def test_who_watches_is_told_at_once(self):
        """Without the flag and without a supervisor; and when the time is over."""
        for flags in ([], ["--wait", "0.1"], ["--processes", "2"]):
            with self.subTest(flags):
                child = self.begin("taskrunner", *flags)

                self.assertEqual(1, child.end(), child.said)
                self.assertIn("Run 'manage.py migrate' first.", child.said.splitlines()[-1])


class SupervisedTests(SimpleTestCase):
    """Who is under a supervisor."""

    def test_by_variables_and_parents(self):
        """Nobody who looks at a terminal is."""
        for environment, parent, isatty, seconds in (
            ({}, 77, False, 0),
            ({"INVOCATION_ID": "x"}, 77, False, 60),
            ({"SUPERVISOR_ENABLED": "1"}, 77, False, 60),
            ({}, 1, False, 60),
            ({"INVOCATION_ID": "x"}, 1, True, 0),
        ):
            stderr = mock.Mock(**{"isatty.return_value": isatty})
            with (
                self.subTest(environment, parent=parent),
                mock.patch.dict(os.environ, environment),
                mock.patch.object(waiting.os, "getppid", return_value=parent),
                mock.patch.object(waiting.sys, "stderr", stderr),
            ):
                self.assertEqual(seconds, waiting.default_wait())
