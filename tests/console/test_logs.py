"""The log output of commands."""

import logging
from io import StringIO
from unittest import mock

from django.test import SimpleTestCase

from dbtasks.console import logs
from dbtasks.console.terminal import Terminal
from dbtasks.db.service import OUTAGE


class OutageTests(SimpleTestCase):
    """A database that is away, such as one whose disk is full."""

    def said(self, verbosity: int = 1) -> list[str]:
        """Return the lines about an outage of five minutes, which three threads notice."""
        out = StringIO()
        clock = self.enterContext(mock.patch.object(logs.time, "monotonic", return_value=0.0))
        logger = logging.getLogger("dbtasks.runner")
        with logs.log_output(Terminal(out), verbosity):
            for clock.return_value in range(300):
                logger.warning("The heartbeat failed: %s", "full", extra=OUTAGE)
                logger.error("The database failed: %s", "full", extra=OUTAGE)
                if clock.return_value == 150:
                    logger.warning("A task failed")
                    logger.warning("A task failed")
        return out.getvalue().splitlines()

    def test_it_is_said_once_a_minute(self) -> None:
        """By each thread; everything else is said whenever it happens."""
        lines = self.said()

        self.assertEqual(5, sum("heartbeat" in line for line in lines))
        self.assertEqual(5, sum("database" in line for line in lines))
        self.assertEqual(2, sum("A task failed" in line for line in lines))

    def test_who_asks_for_more_sees_each_try(self) -> None:
        """With -v 2."""
        self.assertEqual(602, len(self.said(verbosity=2)))
