"""What all runners in other servers share: their configuration, and that there is one."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

from django.core.exceptions import ImproperlyConfigured
from django.test import SimpleTestCase

from dbtasks.contrib.embedded import configured, is_wanted, lock_path, only_one
from dbtasks.exceptions import RunnerError
from dbtasks.options.runner import FLAGS, default_workers

# Prints whether the lock of the file in its argument is free.
TRY = """
import fcntl, sys
with open(sys.argv[1], "r+") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print("taken")
    else:
        print("free")
"""


class ConfigurationTests(SimpleTestCase):
    """What the environment says."""

    def setUp(self) -> None:
        self.environ = self.enterContext(mock.patch.dict(os.environ))
        for flag in FLAGS.values():
            os.environ.pop(flag.variable or "", None)

    def test_without_variables_it_is_like_the_command(self):
        """The number of threads is the one that taskrunner takes."""
        self.assertEqual({"workers": default_workers()}, configured())

    def test_the_environment_wins(self):
        """A variable counts more than the argument in the code."""
        os.environ |= {
            "DBTASKS_WORKERS": "3",
            "DBTASKS_QUEUES": "mail, default",
            "DBTASKS_EXCLUDE_QUEUES": "bulk,slow",
            "DBTASKS_PERIODIC": "off",
            "DBTASKS_GRACE": "1m",
        }

        self.assertEqual(
            {
                "workers": 3,
                "queues": ["mail", "default"],
                "exclude_queues": ["bulk", "slow"],
                "init_periodic": False,
                "grace": 60.0,
                "backend": "other",
            },
            configured(workers=1, backend="other"),
        )

    def test_wrong_values_are_named(self):
        """The sentence has the variable, the value, and what is allowed."""
        for name, value, text in (
            ("DBTASKS_WORKERS", "0", "Use a whole number from 1 to 1,000."),
            ("DBTASKS_PERIODIC", "never", "'never' is not valid. Use 'on' or 'off'."),
            ("DBTASKS_DELAY", "x", "'x' is not a valid delay."),
        ):
            with (
                self.subTest(name),
                mock.patch.dict(os.environ, {name: value}),
                self.assertRaisesMessage(ImproperlyConfigured, text) as caught,
            ):
                configured()
            self.assertIn(f"{name} in the environment", str(caught.exception))

    def test_the_embedded_runner_can_be_turned_off(self):
        """DBTASKS_RUNNER says whether there is one at all."""
        for value, wanted in {"": True, "1": True, "on": True, "off": False, "0": False}.items():
            with mock.patch.dict(os.environ, {"DBTASKS_RUNNER": value}):
                self.assertEqual(wanted, is_wanted(), value)


class LockTests(SimpleTestCase):
    """One at a time."""

    def setUp(self) -> None:
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.path = Path(folder, "lock")

    def elsewhere(self) -> str:
        """Return what another process says."""
        done = subprocess.run(
            [sys.executable, "-c", TRY, self.path], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def test_another_process_waits_its_turn(self):
        """Who has it excludes other processes, until the end."""
        with only_one(self.path) as is_ours:
            self.assertTrue(is_ours)
            self.assertEqual("taken", self.elsewhere())
        self.assertEqual("free", self.elsewhere())

    def test_the_same_process_does_not_have_it_twice(self):
        """A second one in the process is refused, and takes nothing from the first."""
        with only_one(self.path):
            with only_one(self.path) as is_ours:
                self.assertFalse(is_ours)
            self.assertEqual("taken", self.elsewhere())

    def test_a_link_is_not_followed(self):
        """In a folder where others may write, no other file is opened in its place."""
        self.path.symlink_to(self.path.with_name("victim"))

        with (
            self.assertRaisesMessage(RunnerError, "Set DBTASKS_LOCK to a file"),
            only_one(self.path),
        ):
            pass
        self.assertFalse(self.path.with_name("victim").exists())

    def test_the_name_of_the_lock(self):
        """Each backend of a project has its own; DBTASKS_LOCK is another."""
        with mock.patch.dict(os.environ, {"DBTASKS_LOCK": ""}):
            names = {lock_path("default").name, lock_path("default").name, lock_path("mail").name}
        self.assertEqual(2, len(names))
        with mock.patch.dict(os.environ, {"DBTASKS_LOCK": str(self.path)}):
            self.assertEqual(self.path, lock_path("default"))
