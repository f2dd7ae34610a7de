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

    def has_turn(self, is_idle: bool, has_quarantined: bool = False) -> bool:
        return self.quarantine.has_turn(is_idle, lambda: has_quarantined)

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
        self.assertFalse(self.has_turn(is_idle=True))
        self.assertFalse(self.quarantine.is_closed())

    def test_a_quarantined_row_waits_until_the_process_is_idle(self):
        """Nothing else is claimed before it, nor while it runs."""
        self.quarantine.due = True
        self.assertFalse(self.has_turn(is_idle=False))
        self.assertTrue(self.quarantine.is_closed())
        self.assertTrue(self.has_turn(is_idle=True))
        self.quarantine.enter(True, is_alone=True)

        self.assertEqual([3600], self.closed_for(3600))
        self.assertFalse(self.has_turn(is_idle=False))

    def test_the_quarantine_opens_when_no_quarantined_row_is_left(self):
        """Perhaps another runner has taken it."""
        self.quarantine.due = True
        self.assertTrue(self.quarantine.is_closed())
        self.quarantine.enter(False, is_alone=True)

        self.assertFalse(self.quarantine.is_closed())

    def test_long_tasks_are_not_waited_for_all_the_time(self):
        """A tenth of the time at most is lost, two seconds at once."""
        self.quarantine.due = True

        self.assertEqual([1, 2, 2, 2], self.closed_for(10 + 20 + 20 + 20))

    def test_a_quarantined_row_runs_beside_a_task_that_does_not_end(self):
        """After five waits in vain; only one does at a time."""
        self.quarantine.due = True
        self.closed_for(10 + 20 + 20 + 20 + 1.5)
        self.assertFalse(self.has_turn(is_idle=False))
        self.closed_for(1)
        self.assertFalse(self.has_turn(is_idle=False, has_quarantined=True))
        self.assertTrue(self.has_turn(is_idle=False))
        self.quarantine.enter(True, is_alone=False)

        self.assertFalse(self.has_turn(is_idle=False))
        self.assertEqual([1, 2], self.closed_for(20))
