"""What docs/switching.md says to users of django-database-task: the names on our side exist."""

import inspect
import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.core.management import load_command_class
from django.test import Client, SimpleTestCase, TransactionTestCase, override_settings
from django.urls import path
from django.utils import timezone

import dbtasks
from dbtasks.backend import DatabaseBackend
from dbtasks.contrib.aws import SQS
from dbtasks.contrib.cloudtasks import OIDC, CloudTasks
from dbtasks.contrib.http import Bearer, Post, StandardWebhook, endpoints
from dbtasks.models import ScheduledTask

from ..support.processes import ROOT
from ..tasks import add

PAGE = (ROOT / "docs" / "switching.md").read_text()
PART = PAGE.split("\n## From django-database-task\n")[1].split("\n## ")[0]
TOKEN = "a-token-of-more-than-thirty-two-characters"
OBJECTS: list[Callable[..., Any]] = [
    *(endpoints, Bearer, StandardWebhook, Post, OIDC, CloudTasks, SQS),
    *(dbtasks.process_tasks, dbtasks.run_task, dbtasks.sweep),
]


def cells(part: str = PART) -> list[tuple[str, str]]:
    """Return both columns of each row."""
    rows = re.findall(r"^\| (.+) \| (.+) \|$", part, re.MULTILINE)
    return [row for row in rows if row[0] != "django-database-task" and not row[0].startswith("-")]


def codes() -> list[str]:
    """Return what our column says in the font of code."""
    return re.findall("`([^`]+)`", " ".join(right for _, right in cells()))


class NamesTests(SimpleTestCase):
    """Names, flags and arguments."""

    def test_each_row_has_an_answer(self):
        """No cell is empty, and there are as many rows as the package has names."""
        self.assertGreater(len(cells()), 60)
        for left, right in cells():
            self.assertTrue(left.strip() and right.strip(), (left, right))

    def test_flags(self):
        """Each flag is one of the commands that the page sends people to."""
        known: set[str] = set()
        for name in ("taskrunner", "purgetasks"):
            parser = load_command_class("dbtasks", name).create_parser("manage.py", name)
            known |= set(parser._option_string_actions)
        named = {flag for code in codes() for flag in re.findall(r"(?<!\w)--?[a-z][\w-]*", code)}

        self.assertEqual(set(), named - known)

    def test_arguments(self):
        """Each ``name=`` is an argument of something that the page names, or an option."""
        known = {name for each in OBJECTS for name in inspect.signature(each).parameters}
        known |= set(inspect.signature(dbtasks.Task).parameters)
        named = {name for code in codes() for name in re.findall(r"\b([a-z_]+)=", code)}

        self.assertEqual(set(), named - known)
        self.assertGreater(len(named), 10)

    def test_functions_and_options(self):
        """What is called exists."""
        known = {each.__name__ for each in OBJECTS} | set(dbtasks.__all__)
        known |= {name for name, _ in inspect.getmembers(dbtasks.TaskContext)} | {"path"}
        known |= {"runner", "cleanup", "enqueue", "Runner", "run", "stop"}
        called = {
            name.rpartition(".")[2] for code in codes() for name in re.findall(r"([\w.]+)\(", code)
        }
        fields = DatabaseBackend("default", {"OPTIONS": {}}).config.__dataclass_fields__

        self.assertEqual(set(), called - known)
        self.assertLessEqual({"push", "retain"}, set(fields))


class RequestsTests(TransactionTestCase):
    """The endpoints, as the page describes them."""

    def setUp(self):
        urls = [path("tasks/", endpoints(auth=[Bearer(TOKEN)]))]
        self.enterContext(override_settings(ROOT_URLCONF=tuple(urls)))

    def send(self, method, where, **body):
        answer = Client().generic(
            method,
            f"/tasks/{where}",
            json.dumps(body) if body else b"",
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        return answer.status_code, json.loads(answer.content)

    def test_status_has_the_names_of_the_page(self):
        """Those that are put in place of theirs."""
        [right] = [right for left, right in cells() if left == "`GET status/`"]
        status, answer = self.send("GET", "status/")

        self.assertEqual(200, status)
        self.assertLessEqual(set(re.findall("`([^`]+)`", right)), set(answer))

    def test_one_row_at_a_time(self):
        """``run-one/`` is ``run/`` with a limit, and a queue may be named."""
        results = [add.enqueue(1, n) for n in range(2)]

        status, answer = self.send("POST", "run/", max_tasks=1, queue="default", max_seconds=5)

        self.assertEqual((200, 1, True), (status, answer["ran"], answer["due_left"]))
        self.assertEqual(results[0].id, answer["results"][0]["id"])

    def test_one_certain_row(self):
        """``execute/`` is ``run/<uuid>/``; a FAILED row runs again if that is asked for."""
        result = add.enqueue(1, "a")
        status, answer = self.send("POST", f"run/{result.id}/")
        self.assertEqual((200, "FAILED"), (status, answer["status"]))

        again = self.send("POST", f"run/{result.id}/")[1]
        retried = self.send("POST", f"run/{result.id}/", allow_retry=True)[1]

        self.assertEqual((False, "finished"), (again["ran"], again["why"]))
        self.assertEqual((True, 2), (retried["ran"], retried["attempt"]))

    def test_a_row_that_is_gone(self):
        """It is answered 200."""
        status, answer = self.send("POST", "run/00000000-0000-7000-8000-000000000000/")

        self.assertEqual((200, False, "unknown"), (status, answer["ran"], answer["why"]))

    def test_purge(self):
        """By age and status, or dry."""
        result = add.enqueue(1, 2)
        dbtasks.process_tasks()
        ScheduledTask.objects.update(finished_at=timezone.now() - timedelta(days=2))
        chosen = {"older_than": "1d", "status": ["SUCCESSFUL"]}

        dry = self.send("POST", "purge/", **chosen, dry_run=True)
        done = self.send("POST", "purge/", **chosen)

        self.assertEqual((200, {"would_delete": 1}), dry)
        self.assertEqual((200, 1), (done[0], done[1]["deleted"]))
        self.assertFalse(ScheduledTask.objects.filter(pk=result.id).exists())

    def test_a_request_cannot_choose_the_backend(self):
        """The parameter that chose it is refused."""
        self.assertEqual(400, self.send("POST", "run/", backend_name="other")[0])
