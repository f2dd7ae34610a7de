"""``manage.py purgetasks``."""

from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any
from unittest import mock

from django.core.management import CommandError, call_command
from django.test import TransactionTestCase, override_settings

from dbtasks import store
from dbtasks.models import ScheduledTask

from ..support.backends import backend
from ..support.rows import make_claim, make_task, outcome


def make_finished(age: timedelta, status: str = "SUCCESSFUL", **values: Any) -> Any:
    """Return the id of a row that finished so long ago."""
    claim = make_claim(**values)
    ended = store.now("default") - age
    store.settle("default", [outcome(claim, status, finished_at=ended)])
    return claim.id


def purgetasks(*arguments: Any) -> str:
    """Call the command; return what it prints."""
    out = StringIO()
    call_command("purgetasks", *map(str, arguments), stdout=out, stderr=StringIO())
    return out.getvalue()


class PurgeTests(TransactionTestCase):
    """Which rows go, and what is said of it."""

    def test_deletes_what_finished_longer_ago(self):
        """Rows that ended before the age go; younger and unfinished ones stay."""
        make_finished(timedelta(days=8))
        make_finished(timedelta(days=8), "FAILED")
        make_finished(timedelta(days=6))
        make_task()
        make_claim()

        self.assertEqual(
            "Deleted 2 tasks that ended more than 1w ago.\n", purgetasks("--older-than", "7d")
        )

        left = sorted(ScheduledTask.objects.values_list("status", flat=True))
        self.assertEqual(["READY", "RUNNING", "SUCCESSFUL"], left)

    def test_purges_by_status(self):
        """--status takes one or both, repeated or joined by commas."""
        for flags, count in (
            (["--status", "failed"], 1),
            (["--status", "SUCCESSFUL,FAILED"], 2),
            (["--status", "SUCCESSFUL", "--status", "FAILED"], 2),
        ):
            with self.subTest(flags):
                ScheduledTask.objects.all().delete()
                make_finished(timedelta(hours=2))
                make_finished(timedelta(hours=2), "FAILED")

                self.assertIn(f"Deleted {count} task", purgetasks("--older-than", "3600", *flags))

                self.assertEqual(2 - count, ScheduledTask.objects.count())

    def test_a_dry_run_deletes_nothing(self):
        """--dry-run counts and deletes nothing."""
        make_finished(timedelta(hours=2))

        said = purgetasks("--older-than", "1h", "--dry-run")

        self.assertEqual("Would delete 1 task that ended more than 1h ago.\n", said)
        self.assertEqual(1, ScheduledTask.objects.count())

    def test_purges_in_batches(self):
        """Whatever the batch size, all of them go."""
        for size in (1, 3, 10_000):
            with self.subTest(size):
                for _ in range(7):
                    make_finished(timedelta(hours=2))

                self.assertIn(
                    "Deleted 7 tasks", purgetasks("--older-than=1h", "--batch-size", size)
                )

    def test_purges_one_backend_or_all(self):
        """All backends of ours are purged, or the one that is named; foreign rows stay."""
        two = {**backend(), "second": backend()["default"], "third": backend()["default"]}
        with override_settings(TASKS=two):
            for alias in two:
                make_finished(timedelta(hours=2), backend=alias)
            make_finished(timedelta(hours=2), backend="gone")

            self.assertIn("Deleted 1 task", purgetasks("--older-than=1h", "--backend", "second"))
            self.assertIn("Deleted 2 tasks", purgetasks("--older-than=1h"))

        self.assertEqual("gone", ScheduledTask.objects.get().backend)

    def test_an_age_of_zero_is_every_finished_task(self):
        """Those that ended in this instant, or by a clock that is ahead, go as well."""
        for age in ("0", "0s"):
            with self.subTest(age):
                make_finished(timedelta())
                make_finished(-timedelta(minutes=1), "FAILED")
                if not ScheduledTask.objects.filter(status="READY"):
                    make_task()

                self.assertEqual(
                    "Would delete 2 finished tasks.\n",
                    purgetasks("--older-than", age, "--dry-run"),
                )
                self.assertEqual("Deleted 2 finished tasks.\n", purgetasks("--older-than", age))

                self.assertEqual("READY", ScheduledTask.objects.get().status)

    def test_purges_by_queue_and_task(self):
        """--queue and --task may be repeated, or joined by commas; both together limit further."""
        rows = [(queue, path) for queue in ("a", "b", "c") for path in ("x.one", "x.two")]
        for flags, left in {
            ("-q", "a"): 4,
            ("--queue", "a,b"): 2,
            ("-q", "a", "-q", "b"): 2,
            ("--task", "x.one"): 3,
            ("--task", "x.one,x.two"): 0,
            ("-q", "a", "--task", "x.one"): 5,
            ("--task", "x"): 6,
        }.items():
            with self.subTest(flags):
                ScheduledTask.objects.all().delete()
                for queue, path in rows:
                    make_finished(timedelta(hours=2), queue_name=queue, task_path=path)

                purgetasks("--older-than=1h", *flags)

                self.assertEqual(left, ScheduledTask.objects.count())

    def test_an_interrupted_purge_says_so(self):
        """Ctrl-C between two batches says how many went, and ends without a traceback."""

        def batches(*args: Any, **kwargs: Any) -> Iterator[int]:
            yield 500
            raise KeyboardInterrupt

        out = StringIO()
        with (
            mock.patch.object(store, "purge_older", batches),
            self.assertRaises(SystemExit) as left,
        ):
            call_command("purgetasks", "--older-than=1h", stdout=out)

        self.assertEqual(130, left.exception.code)
        self.assertEqual(
            "Interrupted. Deleted 500 tasks that ended more than 1h ago.\n", out.getvalue()
        )

    def test_purges_silently(self):
        """-v 0 deletes without a word."""
        make_finished(timedelta(hours=2))

        self.assertEqual("", purgetasks("--older-than=1h", "-v", 0))
        self.assertFalse(ScheduledTask.objects.exists())

    def test_wrong_purges_are_refused(self):
        """A wrong value is named, with what is allowed, and nothing is deleted."""
        make_finished(timedelta(days=2000))
        for flags, allowed in (
            ([], "the following arguments are required: --older-than"),
            (["--older-than", "long"], "Use seconds, a timedelta, or text such as '90s'"),
            (["--older-than=-1"], "is not a duration above zero"),
            (["--older-than", "nan"], "is not a duration above zero"),
            (["--older-than=1d", "--status", "READY"], "Use SUCCESSFUL or FAILED."),
            (["--older-than=1d", "--batch-size", "0"], "from 1 to 10,000"),
            (["--older-than=1d", "--batch-size", "10001"], "from 1 to 10,000"),
            (["--older-than=1d", "--backend", "nope"], "Choose from: 'default'."),
        ):
            with self.subTest(flags), self.assertRaises(CommandError) as caught:
                purgetasks(*flags)
            self.assertIn(allowed, str(caught.exception))
        self.assertEqual(1, ScheduledTask.objects.count())
