"""Wall clocks that step, by Debian's faketime, while the monotonic one goes on."""

import os
from pathlib import Path
from unittest import skipUnless

from dbtasks.models import ScheduledTask, Worker

from ..support.waiting import until
from .storm import StormTestCase, size

LIBRARY = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
# The library breaks sleeping until a moment of the monotonic clock, which is how Python sleeps.
SLEEP = "import select, time; time.sleep = lambda seconds: select.select([], [], [], seconds)"

# The clock of a SQLite database is that of whoever asks, and finished rows end by it.
RETAIN = "1000d"


@skipUnless(LIBRARY or "CI" in os.environ, "needs libfaketime from 'apt-get install faketime'")
class ClockTests(StormTestCase):
    """A runner whose clock steps by hours, and one that watches it."""

    def wait_for_beats(self) -> None:
        """Block until each runner has beaten twice more, and so has seen the other's beat."""
        for name, beat in Worker.objects.values_list("worker_id", "beat"):
            beats = Worker.objects.filter(worker_id=name, beat__gt=beat + 1)
            until(beats.exists, f"The next beats of {name}")

    def test_no_step_is_taken_for_silence(self) -> None:
        """No clock of a runner's machine takes part in what is decided."""
        self.assertIsNotNone(LIBRARY, "faketime is needed here")
        clock = self.folder / "clock"
        clock.write_text("+0")
        (self.folder / "sitecustomize.py").write_text(SLEEP)
        stepping = self.ready_runner(
            *("-w", 4),
            TEST_RETAIN=RETAIN,
            PYTHONPATH=str(self.folder),
            LD_PRELOAD=str(LIBRARY),
            FAKETIME_TIMESTAMP_FILE=str(clock),
            FAKETIME_NO_CACHE="1",
            FAKETIME_DONT_FAKE_MONOTONIC="1",
            DONT_FAKE_MONOTONIC="1",
        )
        watching = self.ready_runner("-w", 4, TEST_RETAIN=RETAIN)
        self.load(size(200, 2000), 0.1)
        for step in ("+3h", "-5h", "+30d", "-1d", "+0") * size(1, 4):
            clock.write_text(step)
            self.wait_for_beats()
        self.wait_for_end()

        self.verdict("steps of a runner's clock by hours and days", doubles=0)
        self.assertEqual(0, ScheduledTask.objects.exclude(attempt=1, lost=0).count())
        # By the clocks of those who ran them the tasks are hours apart.
        moments = [entry.at for entries in self.ledger.entries().values() for entry in entries]
        self.assertGreater(max(moments) - min(moments), 3600)
        for runner in (stepping, watching):
            self.assertNotIn("registers again", runner.said)
            self.assertNotIn("is lost", runner.said)
