"""``manage.py demo``: the main job on real files, on the database of the tests."""

import hashlib
import os
import signal
from importlib import import_module
from typing import Any
from unittest import mock

from django.core.management import CommandError
from django.test import SimpleTestCase, override_settings

from dbtasks.base import registry
from dbtasks.models import ScheduledTask

from ..support.backends import backend
from ..support.processes import Child, ProcessTestCase, database_url


class DemoTests(ProcessTestCase):
    """From files to a table, whatever comes between."""

    def demo(self, *arguments: Any, **environment: str) -> Child:
        """Start the demo on the folder of the test."""
        settings = {"DJANGO_SETTINGS_MODULE": "demo.settings"}
        return self.start("demo", self.folder, *arguments, **(settings | environment))

    def make_files(self, count: int) -> None:
        """Write so many small files."""
        for n in range(count):
            (self.folder / f"{n}.txt").write_text(f"{n}\n")

    def values(self) -> dict[str, Any]:
        """Return what was measured, by file."""
        rows = ScheduledTask.objects.values_list("args", "return_value")
        return {args[0]: value for args, value in rows}

    def test_measures_every_file(self):
        """Each file has a row with size, SHA-256, lines and words, or with its error."""
        odd = os.fsdecode(b"odd \xff\x1b[31m")
        for name, content in (
            ("text", b"one two\nthree"),
            ("binary", b"\x89PNG\0\n"),
            ("empty", b""),
            (odd, b"x\n"),
        ):
            (self.folder / name).write_bytes(content)
        (self.folder / "broken").symlink_to("nowhere")
        os.mkfifo(self.folder / "pipe")

        child = self.demo()

        self.assertEqual(0, child.end(), child.said)
        values = self.values()
        digest = hashlib.sha256(b"one two\nthree").hexdigest()
        self.assertEqual({"size": 13, "sha256": digest, "lines": 2, "words": 3}, values.pop("text"))
        self.assertEqual((6, None), (values["binary"]["size"], values.pop("binary")["lines"]))
        self.assertEqual((0, 0), (values["empty"]["lines"], values.pop("empty")["words"]))
        self.assertIsNone(values.pop("broken"))
        self.assertEqual([1], [value["words"] for value in values.values()])

    def test_shows_a_table(self):
        """The end shows throughput, slowest files, failures, and where to look further."""
        (self.folder / "text").write_text("a\n")
        (self.folder / "bro\x1bken").symlink_to("nowhere")

        child = self.demo()

        self.assertEqual(0, child.end(), child.said)
        for text in (
            "2 files in ",
            " files/s, ",
            "In all: 1 file measured, 1 failed",
            "Slowest files",
            "Failed files (1)",
            "FileNotFoundError: [Errno 2] No such file or directory",
            "uv run manage.py serve -k",
        ):
            self.assertIn(text, child.stdout)
        self.assertNotIn("\x1b", child.said)

    def test_goes_on_where_it_stopped(self):
        """Stopped while it enqueues and while it runs, it measures each file once in the end."""
        self.make_files(3000)
        child = self.demo()
        child.wait_for("3,000 files in ")
        child.signal(signal.SIGINT)
        self.assertEqual(130, child.end(), child.said)
        self.assertIn("Start the same command again to go on.", child.stdout)

        child = self.demo()
        child.wait_for("Drains the queue; stop with Ctrl-C")
        child.signal(signal.SIGINT)
        self.assertEqual(130, child.end(), child.said)
        self.assertFalse(ScheduledTask.objects.running().exists())

        child = self.demo()
        self.assertEqual(0, child.end(), child.said)
        self.assertEqual(3000, len(self.values()))
        self.assertEqual(3000, ScheduledTask.objects.successful().count())

    def test_a_new_run_of_the_demo(self):
        """Once all files of a run are done, the next start measures all of them again."""
        self.make_files(3)

        for count in (3, 6):
            child = self.demo()

            self.assertEqual(0, child.end(), child.said)
            self.assertIn("3 files in ", child.stdout)
            self.assertEqual(count, ScheduledTask.objects.successful().count())

    def test_the_demo_on_another_database(self):
        """--database has the command, and its runner, use the database of that URL."""
        self.make_files(3)

        child = self.demo("--database", database_url(), DBTASKS_DATABASE="")

        self.assertEqual(0, child.end(), child.said)
        self.assertEqual(3, ScheduledTask.objects.successful().count())

    def test_the_demo_refuses_wrong_values(self):
        """No folder, no files, no database: one sentence, exit code 1."""
        for arguments, sentence in (
            ([], "has no files."),
            (["--database", "nonsense"], "--database names no database."),
            (["--database", f"sqlite:///{self.folder}/no/x"], "cannot be reached"),
        ):
            with self.subTest(arguments):
                child = self.demo(*arguments)

                self.assertEqual(1, child.end())
                self.assertIn(sentence, child.stderr)
                self.assertNotIn("Traceback", child.stderr)


class PartsTests(SimpleTestCase):
    """The demo's parts, in this process."""

    def setUp(self) -> None:
        settings = override_settings(TASKS=backend(QUEUES=["default", "demo"]))
        settings.enable()
        self.addCleanup(settings.disable)
        # Other tests must not find the demo's tasks, which no runner of theirs would run.
        self.enterContext(mock.patch.dict(registry._tasks))

    def test_words_across_blocks(self):
        """However a text is cut into blocks, its lines and words are the same."""
        tasks = import_module("demo.tasks")
        text = b"one two\n three\nfour"
        for cut in range(1, len(text)):
            value = tasks._measure([text[:cut], text[cut:]])

            self.assertEqual((3, 4), (value["lines"], value["words"]), cut)

    def test_names_of_parts(self):
        """Every name a file can have becomes text and comes back."""
        tasks = import_module("demo.tasks")
        for name in (b"plain", "ü".encode(), b"\xff\xfe", b"quoted:%41", b"a\nb"):
            text = tasks.as_text(os.fsdecode(name))

            text.encode()
            self.assertEqual(os.fsdecode(name), tasks.as_name(text))

    def test_a_driver_that_is_missing(self):
        """Without its driver, a database is refused with the command that brings it."""
        demo = import_module("demo.management.commands.demo")
        with (
            mock.patch.object(demo, "find_spec", return_value=None),
            self.assertRaisesMessage(CommandError, "uv run --extra mysql manage.py demo"),
        ):
            demo.use_database("mysql://root@127.0.0.1/nowhere")
