"""When quarantined rows have the process for themselves."""

from unittest import mock

from django.test import SimpleTestCase

from dbtasks.runner import quarantine
from dbtasks.runner.quarantine import Quarantine


class QuarantineTests(SimpleTestCase):
    """Whose turn it is."""

    def setUp(self) -> None:
        self.now = 1000.0
        clock = mock.patch.object(quarantine.time, "monotonic", lambda: self.now)
        self.enterContext(clock)
        self.quarantine = Quarantine()

    def closed_for(self, seconds: float) -> list[int]:
        """Let that time pass in steps of a tenth; return how long it was closed, each time."""
        spells = [0]
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            if self.quarantine.is_closed():
                spells[-1] += 1
            elif spells[-1]:
                spells.append(0)
        return [round(spell / 10) for spell in spells if spell]

    def test_the_quarantine_is_open_without_quarantined_rows(self):
        """An idle runner has no reason to wait."""
        self.assertFalse(self.quarantine.has_turn(is_idle=True))
        self.assertFalse(self.quarantine.is_closed())

    def test_a_quarantined_row_waits_until_the_process_is_idle(self):
        """Nothing else is claimed before it, nor while it runs."""
        self.quarantine.due = True
        self.assertFalse(self.quarantine.has_turn(is_idle=False))
        self.assertTrue(self.quarantine.is_closed())
        self.assertTrue(self.quarantine.has_turn(is_idle=True))
        self.quarantine.enter(True)

        self.assertEqual([3600], self.closed_for(3600))
        self.assertFalse(self.quarantine.has_turn(is_idle=False))

    def test_the_quarantine_opens_when_no_quarantined_row_is_left(self):
        """Perhaps another runner has taken it."""
        self.quarantine.due = True
        self.assertTrue(self.quarantine.is_closed())
        self.quarantine.enter(False)

        self.assertFalse(self.quarantine.is_closed())

    def test_long_tasks_are_not_waited_for_all_the_time(self):
        """A tenth of the time at most is lost, and longer waits come in the end."""
        self.quarantine.due = True

        self.assertEqual([1, 2, 4, 8], self.closed_for(10 + 20 + 40 + 80))
