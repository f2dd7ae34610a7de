"""The demo's page, without a browser."""

import uuid
from datetime import timedelta
from html.parser import HTMLParser
from importlib import import_module
from typing import Any

from django.test import Client, TestCase, override_settings
from django.urls import reverse

from dbtasks.models import ScheduledTask
from dbtasks.testing import TaskTestMixin

from ..support.backends import backend

demo = import_module("demo.settings")
NAMES = ("INSTALLED_APPS", "MIDDLEWARE", "ROOT_URLCONF", "SECURE_CSP", "TEMPLATES")


class Inline(HTMLParser):
    """Collects what a strict Content-Security-Policy forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        if tag == "style" or (tag == "script" and "src" not in names):
            self.found.append(tag)
        self.found += [name for name in names if name == "style" or name.startswith("on")]


@override_settings(
    TASKS=backend(QUEUES=["default", "demo"]), **{name: getattr(demo, name) for name in NAMES}
)
class PageTests(TaskTestMixin, TestCase):
    """Enqueue, watch, cancel, retry."""

    def enqueue(self, kind: str = "quick", text: str = "Ada", count: int = 1, **more: Any) -> Any:
        """Return the answer to the form."""
        return self.client.post("/", {"kind": kind, "text": text, "count": count}, **more)

    def test_the_form_enqueues_and_the_page_shows_the_result(self):
        """Without a script: a form, a redirect, and the page again."""
        self.assertRedirects(self.enqueue(), "/")
        self.assertContains(self.client.get("/"), "waiting for")

        self.run_tasks()

        response = self.client.get("/")
        self.assertContains(response, "Hello, Ada!")
        self.assertContains(response, '<dd data-count="done">1</dd>', html=True)

    def test_the_script_is_answered_in_json(self):
        """A POST that asks for JSON returns what the page shows, the newest first."""
        response = self.enqueue(count=3, headers={"Accept": "application/json"})

        self.assertEqual(3, response.json()["counts"]["waiting"])
        texts = [line["text"] for line in response.json()["lines"]]
        self.assertEqual(["Ada 3", "Ada 2", "Ada 1"], texts)
        self.assertEqual(response.json()["counts"], self.client.get("/state.json").json()["counts"])

    def test_a_failing_task_is_shown_with_its_error(self):
        """Error and attempts stand on the page while it waits, and when it has failed."""
        self.enterContext(self.assertLogs("dbtasks"))
        self.enqueue("failing")
        self.run_tasks(reraise=False)
        [line] = self.client.get("/state.json").json()["lines"]
        self.assertEqual("Tried again soon", line["label"])
        self.assertEqual("RuntimeError: Ada stumbled.", line["detail"])

        self.run_tasks(reraise=False, until=timedelta(minutes=1))

        [line] = self.client.get("/state.json").json()["lines"]
        self.assertEqual(
            ("failed", "Failed", True), (line["state"], line["label"], line["can_retry"])
        )
        self.assertIn("attempt 3 of 3", line["timing"])

    def test_wrong_input_is_refused(self):
        """Unknown kinds, and numbers and texts out of bounds, enqueue nothing."""
        for values in (
            {"kind": "os.system"},
            {"count": 51},
            {"count": 0},
            {"text": ""},
            {"text": "x" * 41},
        ):
            with self.subTest(values):
                self.assertEqual(400, self.enqueue(**values).status_code)
        json = {"Accept": "application/json"}
        self.assertEqual(1, len(self.enqueue("nothing", headers=json).json()["errors"]))
        self.assertEqual(0, ScheduledTask.objects.count())

    def test_a_long_queue_takes_no_more(self):
        """Visitors cannot fill the table."""
        for _ in range(20):
            self.enqueue(count=50)

        response = self.enqueue(headers={"Accept": "application/json"})

        self.assertEqual(400, response.status_code)
        self.assertIn("1,000 tasks wait already", response.json()["errors"][0])

    def test_cancel_and_retry(self):
        """Each is a POST for one of the page's own rows."""
        self.enqueue()
        [line] = self.client.get("/state.json").json()["lines"]
        self.assertTrue(line["can_cancel"])

        self.client.post(reverse("cancel", args=[line["id"]]))
        [line] = self.client.get("/state.json").json()["lines"]
        self.assertEqual("Cancelled", line["label"])

        self.client.post(reverse("retry", args=[line["id"]]))
        [line] = self.client.get("/state.json").json()["lines"]
        self.assertEqual("Waiting", line["label"])

    def test_other_rows_are_left_alone(self):
        """The page neither shows nor changes rows of other tasks, and forgives old ids."""
        self.enqueue()
        row = ScheduledTask.objects.get()
        ScheduledTask.objects.update(task_path="tests.tasks.add")

        for name in ("cancel", "retry"):
            for id in (row.pk, uuid.uuid4()):
                response = self.client.post(reverse(name, args=[id]))
                self.assertRedirects(response, "/")
        self.assertEqual([], self.client.get("/state.json").json()["lines"])
        self.assertEqual("READY", ScheduledTask.objects.get().status)

    def test_changes_need_a_token(self):
        """A POST from elsewhere is refused, and GET changes nothing."""
        self.enqueue()
        [line] = self.client.get("/state.json").json()["lines"]
        strict = Client(enforce_csrf_checks=True)
        data = {"kind": "quick", "text": "Ada", "count": 1}
        for path in (
            "/",
            reverse("cancel", args=[line["id"]]),
            reverse("retry", args=[line["id"]]),
        ):
            self.assertEqual(403, strict.post(path, data).status_code)
        self.assertEqual(405, self.client.get(reverse("cancel", args=[line["id"]])).status_code)
        self.assertEqual(405, self.client.post("/state.json").status_code)
        self.assertEqual(1, ScheduledTask.objects.count())

    def test_what_visitors_write_is_text(self):
        """Markup in a name is shown, not obeyed."""
        self.enqueue(text="<script>alert(1)</script>")
        self.run_tasks()

        response = self.client.get("/")

        self.assertNotContains(response, "<script>alert")
        self.assertContains(response, "Hello, &lt;script&gt;alert(1)&lt;/script&gt;!")

    def test_the_policy_is_strict_and_the_page_keeps_to_it(self):
        """No script or style stands in the page, and no other site may frame it."""
        self.enqueue()
        response = self.client.get("/")
        policy = response.headers["Content-Security-Policy"]
        for part in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"):
            self.assertIn(part, policy)
        self.assertNotIn("unsafe", policy)
        parser = Inline()
        parser.feed(response.content.decode())
        self.assertEqual([], parser.found)

    def test_without_a_runner_it_says_how_to_start_one(self):
        """The notice is there until a runner is."""
        notice = 'id="no-runner">No runner is there'
        self.assertContains(self.client.get("/"), notice)
