"""Which tasks runners find, and what is said of the others."""

import json
from typing import Any

from django.test import SimpleTestCase

from ..support.projects import run_in_project

TASK = """
from dbtasks import periodic, task

@periodic("1h")
@task
def run(): pass
"""
# A project whose settings lie in a package, with modules inside of it, beside it and elsewhere.
PROJECT = {
    "../mysite/__init__.py": "",
    "../mysite/settings.py": """
from settings import *
ROOT_URLCONF = "mysite.urls"
TASKS["default"]["OPTIONS"] = {"task_modules": ["mysite.jobs", "lib.listed"]}
""",
    # Views import two modules of tasks before anything else does.
    "../mysite/urls.py": "import mysite.reports, mysite.linked\nurlpatterns = []",
    "../mysite/reports.py": TASK,
    "../mysite/linked.py": TASK,
    "../mysite/tasks.py": TASK,
    "../mysite/jobs.py": TASK,
    "../beside.py": TASK,
    "tasks.py": "from mysite import linked",
}
BEGIN = """
import json, os, pathlib, sys, tempfile
os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
# A folder that is on the path, but not below the project's.
elsewhere = tempfile.mkdtemp()
sys.path.append(elsewhere)
pathlib.Path(elsewhere, "lib").mkdir()
for name, text in (("__init__", ""), ("listed", TASK), ("other", TASK)):
    pathlib.Path(elsewhere, "lib", f"{name}.py").write_text(text)
import django
django.setup()
from django.core.management import call_command
from django.tasks.exceptions import InvalidTask
from dbtasks.base import registry
"""


class ProjectTests(SimpleTestCase):
    """A user's project, in a process of its own."""

    maxDiff = None

    def answer(self, code: str) -> Any:
        """Run the code in the project; return what it prints, from JSON."""
        done = run_in_project(PROJECT, "-c", f"TASK = {TASK!r}\n{BEGIN}\n{code}")
        self.assertEqual(0, done.returncode, done.stderr)
        return json.loads(done.stdout)

    def test_what_a_runner_imports_and_what_it_may_import(self):
        """At its start the modules of tasks, with their schedules; for a row the project's own."""
        known, found = self.answer("""
from dbtasks import firing
from dbtasks.backend import our_backends
[backend] = our_backends()
registry.discover(backend.config.task_modules)
known = sorted(firing.entries_of(backend))
found = {}
for module in ("shop.tasks", "mysite.reports", "beside", "lib.listed", "lib.other", "manage"):
    try:
        found[module] = registry.find(f"{module}.run", ["lib.listed"]).module_path
    except Exception as error:
        found[module] = str(error)
print(json.dumps([known, found]))
""")

        self.assertEqual(
            ["lib.listed.run", "mysite.jobs.run", "mysite.linked.run", "mysite.tasks.run"], known
        )
        for module in ("mysite.reports", "beside", "lib.listed"):
            self.assertEqual(f"{module}.run", found[module])
        for module in ("shop.tasks", "lib.other", "manage"):
            self.assertIn("is not a task that may be run. A task is", found[module])

    def test_what_no_runner_knows_is_said_by_enqueue_and_check(self):
        """A task that none will run, and a schedule that none fires, though this process has it."""
        answers, warned, count = self.answer("""
import mysite.urls, beside, lib.listed, lib.other, dbtasks
from dbtasks.checks import check_backends
from dbtasks.models import ScheduledTask

@dbtasks.task
def script(): pass

warned = {message.id: [] for message in check_backends()}
for message in check_backends():
    warned[message.id].append(message.msg)
call_command("migrate", verbosity=0)
answers = {}
for task in (beside.run, lib.listed.run, lib.other.run, script):
    for call in (task.enqueue, lambda: task.enqueue_many([([], {})])):
        try:
            call()
            answers[task.module_path] = "enqueued"
        except InvalidTask as error:
            answers[task.module_path] = str(error)
print(json.dumps([answers, warned, ScheduledTask.objects.count()]))
""")

        self.assertEqual("enqueued", answers["beside.run"])
        self.assertEqual("enqueued", answers["lib.listed.run"])
        self.assertEqual(4, count)
        for path in ("lib.other.run", "__main__.script"):
            self.assertIn(f"'{path}' is a task that no runner will run. A task is", answers[path])
            self.assertTrue(any(path in said for said in warned["dbtasks.W009"]), warned)
        self.assertEqual(2, len(warned["dbtasks.W009"]))
        # The module of the view; not the one that an app's tasks import as well.
        silent = {said.split("'")[1] for said in warned["dbtasks.W011"]}
        self.assertEqual({"mysite.reports.run", "beside.run", "lib.other.run"}, silent)
