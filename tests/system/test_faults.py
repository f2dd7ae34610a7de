"""``python -m tests.faults``: each storm can be run alone."""

from pathlib import Path

from django.test import SimpleTestCase
from django.test.runner import DiscoverRunner

from tests import faults
from tests.faults.storm import StormTestCase


class FaultsTests(SimpleTestCase):
    """What the whole suite makes by the way must not be missing when one storm runs."""

    def test_each_storm_declares_the_database_of_the_ledger(self) -> None:
        """Otherwise a server does not know it."""
        runner = DiscoverRunner(verbosity=0)
        for path in Path(faults.__file__).parent.glob("test_*.py"):
            suite = runner.build_suite([f"tests.faults.{path.stem}"])
            for test in suite:
                with self.subTest(test.id()):
                    # The others keep no ledger, or keep it themselves.
                    wanted = (
                        {"default", "other"} if isinstance(test, StormTestCase) else {"default"}
                    )
                    self.assertLessEqual(wanted, set(runner.get_databases([test])))
