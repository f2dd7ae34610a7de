"""Windows and macOS, as far as Linux can show them: what Python lacks there is taken away.

CI runs the suite on the real ones.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import TestCase, skipUnless

from django.test import tag

from dbtasks.models import ScheduledTask, Worker

from ..support import tasks
from ..support.processes import ROOT, Child, ProcessTestCase
from ..support.waiting import until

SUPPORT = ROOT / "tests" / "support"
# A console of Windows: not all that Unicode has can be printed.
WINDOWS = {"PYTHONPATH": f"{SUPPORT / 'windows'}{os.pathsep}{ROOT}", "PYTHONIOENCODING": "cp1252"}
MACOS = {"PYTHONPATH": f"{SUPPORT / 'macos'}{os.pathsep}{ROOT}"}

# Imports all of the package, and uses what needs no process of its own.
EVERYTHING = """
import asyncio, pkgutil, sys
from importlib import import_module

import django
django.setup()
import dbtasks

for module in pkgutil.walk_packages(dbtasks.__path__, "dbtasks."):
    if "migrations" not in module.name:
        import_module(module.name)

from django.core.management import CommandError, call_command
from dbtasks.contrib.asgi import with_runner
from dbtasks.liveness.identity import host_key
from dbtasks.testing import run_tasks
from tests.support import tasks

call_command("migrate", verbosity=0)
results = [tasks.add.enqueue(1, n) for n in range(5)]
assert dbtasks.process_one().return_value == 1
assert dbtasks.run_task(results[1].id).return_value == 2
assert len(dbtasks.process_tasks(max_tasks=1)) == 1
run_tasks()
assert {result.status for result in results if result.refresh() is None} == {"SUCCESSFUL"}
tasks.add.enqueue(2, 3)
call_command("taskrunner", "--drain", "-w", "2")
assert not dbtasks.pending_count()
print("HOST", repr(host_key()))

for line in (["taskrunner", "--processes", "2"], ["taskrunner", "--reload"], ["serve"]):
    if sys.platform == "win32":
        try:
            call_command(*line)
        except CommandError as error:
            print("REFUSED", error)

async def startup():
    sent = []

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        sent.append(message)

    await with_runner(None)({"type": "lifespan"}, receive, send)
    return sent

if sys.platform == "win32":
    print("ASGI", asyncio.run(startup()))
"""


@tag("processes")
@skipUnless(sys.platform == "linux", "the systems are simulated on Linux")
class EverythingTests(TestCase):
    """A project on SQLite."""

    def run_everything(self, system: dict[str, str]) -> str:
        """Return what the script prints there."""
        with tempfile.TemporaryDirectory() as folder:
            environment = {
                "DJANGO_SETTINGS_MODULE": "demo.settings",
                "DBTASKS_DATABASE": f"sqlite:///{folder}/db.sqlite3",
            }
            script = Path(folder, "everything.py")
            script.write_text(EVERYTHING)
            run = subprocess.run(
                [sys.executable, script],
                env=os.environ | environment | system,
                capture_output=True,
                text=True,
                timeout=120,
            )
        self.assertEqual(0, run.returncode, run.stdout + run.stderr)
        return run.stdout

    def test_windows(self):
        """Everything can be imported and run; what needs POSIX says so in a sentence."""
        out = self.run_everything(WINDOWS)

        self.assertIn("HOST ''", out)
        refused = [line for line in out.splitlines() if line.startswith("REFUSED")]
        self.assertEqual(3, len(refused), out)
        for line in refused:
            self.assertIn("needs a POSIX system" if "serve" in line else "need a POSIX", line)
        self.assertIn("lifespan.startup.failed", out)
        self.assertIn("A runner inside a web server needs a POSIX system", out)

    def test_macos(self):
        """Everything can be imported and run; the host is known by its boot."""
        out = self.run_everything(MACOS)

        self.assertIn("9A1E6B4C-0D5F-4E7A-8B7E-2F3C6D9A1B52", out)


@skipUnless(sys.platform == "linux", "the systems are simulated on Linux")
class RunnerTests(ProcessTestCase):
    """A taskrunner, on the test's database."""

    def runner(self, system: dict[str, str]) -> Child:
        """Start a runner there that has run a task."""
        child = self.start("taskrunner", "-w", "2", **system)
        child.wait_for("Stop with")
        result = tasks.add.enqueue(1, 2)
        until(lambda: result.refresh() is None and result.is_finished, child.said)
        self.assertEqual("SUCCESSFUL", result.status)
        return child

    def test_windows(self):
        """Threads run tasks, and both Ctrl-C and Ctrl-Break stop the runner."""
        for number, name in ((signal.SIGINT, "SIGINT"), (signal.SIGUSR2, "SIGUSR2")):
            with self.subTest(name):
                child = self.runner(WINDOWS)
                child.signal(number)

                self.assertEqual(0, child.end(), child.said)
                self.assertIn(f"{name}: stopping", child.stderr)
                self.assertNotIn("Traceback", child.said)
                self.assertFalse(Worker.objects.exists())

    def test_macos(self):
        """Also processes under a supervisor."""
        child = self.start("taskrunner", "-w", "1", "--processes", "2", **MACOS)
        until(lambda: Worker.objects.count() == 2, child.said)
        result = tasks.add.enqueue(1, 2)
        until(lambda: result.refresh() is None and result.is_finished, child.said)
        child.signal(signal.SIGTERM)

        self.assertEqual(0, child.end(), child.said)
        self.assertNotIn("Traceback", child.said)

    def test_macos_knows_that_a_neighbour_was_killed(self):
        """Long before its worker timeout, by its pid."""
        one = self.start("taskrunner", "-w", "1", TEST_WORKER_TIMEOUT="600", **MACOS)
        one.wait_for("Stop with")
        result = tasks.wait_at_gate.enqueue()
        until(lambda: ScheduledTask.objects.filter(status="RUNNING").exists(), one.said)
        two = self.start("taskrunner", "-w", "1", TEST_WORKER_TIMEOUT="600", **MACOS)
        two.wait_for("Stop with")
        one.kill()

        two.wait_for("is lost")
        until(lambda: (result.refresh(), ScheduledTask.objects.get(pk=result.id).attempt)[1] == 2)
