"""Post: any service that takes a URL and calls it later."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock

from django.core.exceptions import ImproperlyConfigured
from django.test import SimpleTestCase, TransactionTestCase
from django.utils import timezone

from dbtasks.contrib.http import Post
from dbtasks.models import ScheduledTask
from dbtasks.push import HEADER, Hint, NotSent, sign

from ... import tasks
from ...support.hints import sending, with_push
from ...support.mounts import ID, mounted, post
from ...support.waiting import until

SITE = "https://shop.example"
TARGET = f"{SITE}/tasks/run/{ID}/"
ROW, DRAIN = Hint(ID, "default", "mail"), Hint(None, "default", "mail")


class Service(ThreadingHTTPServer):
    """Takes requests and keeps them in `taken`, as (path, headers, body)."""

    code = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.taken: list[tuple[str, Any, bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.server.taken.append((self.path, self.headers, self.rfile.read(length)))
        self.send_response(self.server.code)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def service() -> Iterator[Service]:
    """Serve in a thread while the block runs."""
    with Service() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class PostTests(SimpleTestCase):
    """What is sent."""

    def setUp(self) -> None:
        self.enterContext(mounted())
        self.service = self.enterContext(service())

    def send(self, hint: Hint, url: str = "/{target}", **arguments: Any) -> Any:
        """Send the hint; return path, headers and body of the one request."""
        Post(self.service.url + url, at=SITE, **arguments).send([hint])
        [request] = self.service.taken
        self.service.taken.clear()
        return request

    def test_a_hint_is_one_request(self):
        """URL, headers and body are filled in."""
        at = datetime.now(UTC) + timedelta(minutes=5)
        path, headers, body = self.send(
            ROW._replace(run_after=at),
            headers={
                "Upstash-Forward-X-DBTasks-Hint": "{signature}",
                "Upstash-Not-Before": "{not_before}",
                "Upstash-Delay": "{delay}s",
                "X-Queue": "q-{queue}",
                "Authorization": "Bearer t",
            },
        )

        self.assertEqual((f"/{TARGET}", b""), (path, body))
        self.assertEqual(sign("default", ID), headers["Upstash-Forward-X-DBTasks-Hint"])
        self.assertLess(0, int(headers["Upstash-Not-Before"]) - at.timestamp() + 1e-6)
        self.assertIn(headers["Upstash-Delay"], ("299s", "300s"))
        self.assertEqual(("q-mail", "Bearer t"), (headers["X-Queue"], headers["Authorization"]))
        self.assertEqual("0", headers["Content-Length"])

    def test_what_is_not_known_is_left_out(self):
        """A row that is due now has no time, and a drain no id."""
        names = {"At": "{not_before}", "In": "{delay}", "Id": "{id}", "Sign": "{signature}"}
        _, headers, body = self.send(DRAIN, headers=names, body=names | {"x": [1, "{id}"], "n": 2})

        self.assertEqual(sign("default", None), headers["Sign"])
        self.assertEqual({"Sign"}, set(headers) & set(names))
        expected = {"Sign": sign("default", None), "x": [1], "n": 2}
        self.assertEqual(expected, json.loads(body))
        self.assertEqual("application/json", headers["Content-Type"])

    def test_bodies(self):
        """A dict is JSON, with its own types; a text is sent as it is."""
        deep = {"request": {"url": "{target}", "retries": 3, "list": ["{id}"]}, "ok": True}
        _, _, body = self.send(ROW, "/", body=deep)
        expected = {"request": {"url": TARGET, "retries": 3, "list": [ID]}, "ok": True}
        self.assertEqual(expected, json.loads(body))

        headers = {"Content-Type": "text/plain"}
        _, sent, body = self.send(ROW, "/", body="{queue} {delay}|{ }é", headers=headers)
        self.assertEqual(("mail |{ }é", "text/plain"), (body.decode(), sent["Content-Type"]))

    def test_what_is_in_a_query_is_quoted(self):
        """In the path the target is not, as QStash wants it."""
        path, _, _ = self.send(ROW, "/publish?url={target}&delay={delay}")

        self.assertEqual(
            f"/publish?url={TARGET.replace(':', '%3A').replace('/', '%2F')}&delay=", path
        )

    def test_names_of_queues_in_a_path_are_quoted(self):
        """A space or a slash changes nothing but the one part of the path."""
        path, _, _ = self.send(ROW._replace(queue_name="a b/ü?#"), "/q/{queue}/{target}")

        self.assertEqual(f"/q/a%20b%2F%C3%BC%3F%23/{TARGET}", path)

    def test_drains_go_to_run(self):
        """The target of a drain hint."""
        self.assertEqual(f"/{SITE}/tasks/run/", self.send(DRAIN)[0])

    def test_only_2xx_is_sent(self):
        """A redirect is not followed, an error is not hidden; no answer is shown."""
        for code in (200, 201, 202, 204):
            self.service.code = code
            self.send(ROW)
        for code in (301, 307, 400, 401, 429, 500, 503):
            self.service.code = code
            with self.assertRaisesMessage(NotSent, f"{self.service.url} answered {code}"):
                self.send(ROW)
            self.service.taken.clear()

    def test_the_address_of_the_site(self):
        """`at`, or the environment variable; without both nothing is sent if it is needed."""
        push = Post(self.service.url + "/{target}")
        with mock.patch.dict(os.environ, DBTASKS_URL="https://other.example/t/"):
            push.send([ROW])
        self.assertEqual(f"/https://other.example/t/run/{ID}/", self.service.taken.pop()[0])
        with mock.patch.dict(os.environ, DBTASKS_URL=""):
            with self.assertRaisesMessage(NotSent, "DBTASKS_URL"):
                push.send([ROW])
            Post(self.service.url + "/{id}").send([ROW])
        self.assertEqual(f"/{ID}", self.service.taken.pop()[0])

    def test_whether_endpoints_are_needed(self):
        """Not if the site is another service, at a path of its own."""
        needs = [
            Post("https://s.example", at=at).needs_endpoints for at in (SITE, f"{SITE}/t/", None)
        ]

        self.assertEqual([True, False, True], needs)

    def test_no_line_break_reaches_a_header(self):
        """A queue's name cannot add headers."""
        with self.assertRaises(ValueError):
            self.send(ROW._replace(queue_name="a\r\nX: y"), headers={"Q": "{queue}"})

    def test_a_service_that_never_answers(self):
        """The timeout ends the call."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            push = Post(f"http://127.0.0.1:{silent.getsockname()[1]}/", at=SITE, timeout=0.05)
            with self.assertRaises(TimeoutError):
                push.send([ROW])


class ArgumentTests(SimpleTestCase):
    """Post(…)"""

    def test_a_value_that_does_not_exist(self):
        """It is named, wherever it is, with the nearest one."""
        for arguments in (
            {"url": "https://s.example/{targett}"},
            {"url": "https://s.example", "headers": {"A": "{targett}"}},
            {"url": "https://s.example", "body": {"a": [{"b": "{targett}"}]}},
            {"url": "https://s.example", "body": "{targett}"},
        ):
            with self.assertRaisesMessage(ImproperlyConfigured, "Did you mean {target}?"):
                Post(**arguments)  # type: ignore[arg-type]

    def test_urls_that_are_none(self):
        """They are refused in settings; the message holds no key."""
        for url in ("", "s.example/key", "ftp://s.example", "https://", "{target}", "https://[::1"):
            with self.assertRaises(ImproperlyConfigured) as raised:
                Post(url)
            self.assertNotIn("key", str(raised.exception))

    def test_limits(self):
        """`longest` is a duration; the others are those of Push."""
        push = Post("https://s.example", longest="7d", bulk=None, late=60)

        self.assertEqual((timedelta(days=7), None, 60), (push.longest, push.bulk, push.late))
        with self.assertRaises(ImproperlyConfigured):
            Post("https://s.example", longest="soon")

    def test_the_repr_hides_secrets(self):
        """Neither headers nor the path are shown."""
        push = Post("https://s.example/key-abc?k=abc", headers={"Authorization": "Bearer abc"})

        self.assertEqual("Post('https://s.example')", repr(push))
        for url in ("https://secret#n@s.example", "https://secret:1/x@s.example"):
            self.assertEqual("Post('…')", repr(Post(url)))


class RoundTripTests(TransactionTestCase):
    """From enqueue() to the row's end."""

    def test_a_service_that_calls_back(self):
        """What it was given is all that it needs."""
        tasks.ran.clear()
        with service() as there:
            push = Post(there.url + "/{target}", {"Forward": "{signature}"}, at=SITE)
            with mounted(), with_push(push), sending():
                tasks.remember.enqueue(1)
                tasks.remember.using(run_after=timezone.now() + timedelta(hours=1)).enqueue(2)
                until(lambda: len(there.taken) == 2)
                for path, headers, _ in there.taken.copy():
                    url = path.removeprefix(f"/{SITE}/tasks/")
                    response = post(url, headers={HEADER: headers["Forward"]})
                    self.assertEqual(200, response.status_code)
                # The second one came too early, and was sent on.
                self.assertEqual(3, len(there.taken))

        self.assertEqual([1], tasks.ran)
        statuses = ScheduledTask.objects.order_by("id").values_list("status", flat=True)
        self.assertEqual(["SUCCESSFUL", "READY"], list(statuses))
