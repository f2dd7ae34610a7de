"""``manage.py taskrunner --reload``: new code runs in new processes, and no task is lost by it."""

import signal
from pathlib import Path
from typing import Any

from django.core.management import CommandError, call_command
from django.test import tag

from dbtasks import wakeup
from dbtasks.models import ScheduledTask

from ..support.processes import Child, ProcessTestCase
from ..support.rows import make_task, row
from ..support.waiting import until

SETTINGS = """
from tests import settings

globals().update({name: getattr(settings, name) for name in dir(settings) if name.isupper()})
INSTALLED_APPS = [*settings.INSTALLED_APPS, "shop"]
"""
TASKS = """
import time
from pathlib import Path

from django.tasks import task
from django.template.loader import render_to_string

from shop.prices import PRICE


@task
def price():
    return PRICE


@task
def letter():
    return render_to_string("letter.txt")


@task
def wait(folder):
    Path(folder, "started").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.01)
    return PRICE
"""


@tag("site")
class ReloadTests(ProcessTestCase):
    """A project whose files are edited while its runner runs."""

    def setUp(self) -> None:
        super().setUp()
        self.shop = self.folder / "shop"
        (self.shop / "templates").mkdir(parents=True)
        (self.folder / "reload_settings.py").write_text(SETTINGS)
        (self.shop / "__init__.py").touch()
        (self.shop / "tasks.py").write_text(TASKS)
        self.letter = self.shop / "templates" / "letter.txt"
        self.letter.write_text("Dear 0")
        self.prices = self.shop / "prices.py"
        self.prices.write_text("PRICE = 0\n")

    def start_runner(self, *arguments: Any) -> Child:
        """Start the project's runner; return it when it can take tasks."""
        runner = self.start(
            *("taskrunner", "--reload", "-w", 2, *arguments),
            DJANGO_SETTINGS_MODULE="reload_settings",
            PYTHONPATH=str(self.folder),
            PYTHONDONTWRITEBYTECODE="1",
        )
        runner.wait_for("started, pid")
        return runner

    def edit(self, path: Path, text: str, runner: Child) -> None:
        """Save that text, and wait until the runner has seen it."""
        seen = runner.said.count("has changed; the new code takes over")
        path.write_text(text)
        until(
            lambda: runner.said.count("has changed; the new code takes over") > seen, f"{path.name}"
        )

    def enqueue(self, name: str, args: str = "[]") -> Any:
        """Enqueue a call of that task of the project; return the row's id."""
        id = make_task(task_path=f"shop.tasks.{name}", args=args)
        wakeup.became_due("default", "default")
        return id

    def value_of(self, name: str) -> Any:
        """Return what a call of that task returns, once it has ended."""
        id = self.enqueue(name)
        until(lambda: row(id).is_finished, name)
        self.assertEqual("SUCCESSFUL", row(id).status, row(id).errors)
        return row(id).return_value

    def test_the_next_task_runs_the_new_code(self):
        """A helper, the tasks, a template: each edit counts for the next task, every time."""
        runner = self.start_runner()
        self.assertEqual([0, "Dear 0"], [self.value_of("price"), self.value_of("letter")])

        for number in (1, 2, 3):
            self.edit(self.prices, f"PRICE = {number}\n", runner)
            self.assertEqual(number, self.value_of("price"))
        self.edit(self.letter, "Dear 1", runner)
        self.assertEqual("Dear 1", self.value_of("letter"))
        self.edit(self.shop / "tasks.py", TASKS.replace("return PRICE", "return -PRICE"), runner)
        self.assertEqual(-3, self.value_of("price"))
        runner.signal(signal.SIGTERM)

        self.assertEqual(0, runner.end(), runner.said)

    def test_a_mistake_is_shown_and_heals(self):
        """The runner waits for the next change, and nothing that was enqueued is lost."""
        runner = self.start_runner()
        self.edit(self.prices, "PRICE = (\n", runner)
        runner.wait_for("SyntaxError")
        runner.wait_for("it starts again when a file changes")
        id = self.enqueue("price")
        self.edit(self.prices, "PRICE = 7\n", runner)

        until(lambda: row(id).is_finished, "The task")
        self.assertEqual(7, row(id).return_value)

    def test_a_running_task_may_finish(self):
        """Within the grace a task ends by the code that it began with."""
        runner = self.start_runner()
        id = self.enqueue("wait", f'["{self.folder}"]')
        until((self.folder / "started").exists, "The task")
        self.edit(self.prices, "PRICE = 8\n", runner)
        (self.folder / "go").touch()

        until(lambda: row(id).is_finished, "The task")
        self.assertEqual((0, 1), (row(id).return_value, row(id).attempt))
        self.assertEqual(8, self.value_of("price"))

    def test_a_task_that_takes_longer_is_requeued(self):
        """Once the grace is over it starts again, by the new code."""
        runner = self.start_runner("--grace", "0.2")
        id = self.enqueue("wait", f'["{self.folder}"]')
        until((self.folder / "started").exists, "The task")
        self.edit(self.prices, "PRICE = 9\n", runner)
        until(lambda: row(id).attempt == 2, "The second start")
        (self.folder / "go").touch()

        until(lambda: row(id).is_finished, "The task")
        self.assertEqual(("SUCCESSFUL", 9), (row(id).status, row(id).return_value))
        self.assertEqual(1, ScheduledTask.objects.count())

    def test_does_not_go_with_what_ends(self):
        """One sentence says what to leave out."""
        runner = self.start("taskrunner", "--reload", "--drain")

        self.assertEqual(1, runner.end())
        self.assertIn("Leave out --drain and --max-tasks, or --reload", runner.stderr)
        with self.assertRaisesMessage(CommandError, "call_command() has none"):
            call_command("taskrunner", "--reload", stdout=None)
