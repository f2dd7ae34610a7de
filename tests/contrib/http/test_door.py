"""What happens between a request and its answer: method, size, middleware, outages, logs."""

import logging
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from django.db import InterfaceError, OperationalError, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory, TransactionTestCase, override_settings
from django.urls import include, path
from django.utils import timezone, translation

from dbtasks.contrib.http import Bearer, body, endpoints, journal, views
from dbtasks.models import ScheduledTask
from dbtasks.push import HEADER, sign

from ... import tasks
from ...support.hints import Recorder, with_push
from ...support.mounts import BEARER, ID, TOKEN, error_of, get, mounted, post, urls

AUTH = [Bearer(TOKEN)]
SESSION = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
POSTS = ("sweep/", "run/", f"run/{ID}/", "purge/")


DATABASE = "dbtasks.backend.DatabaseBackend"


def atomic_middleware(get_response: Any) -> Any:
    """Do the rest of each request in a transaction."""
    return transaction.atomic(get_response)


class DoorTestCase(TransactionTestCase):
    """The default backend's endpoints are mounted at /tasks/."""

    databases = {"default", "other"}

    def setUp(self) -> None:
        self.enterContext(mounted())
        tasks.ran.clear()

    def assert_works(self) -> None:
        """Fail unless a hint runs its row, and a sweep what is due."""
        one, two = (tasks.remember.enqueue(n) for n in (1, 2))
        hint = {HEADER: sign("default", one.id)}
        with with_push(Recorder()):
            first = post(f"run/{one.id}/", headers=hint)
        self.assertEqual((200, True), (first.status_code, first.json()["ran"]), first.content)
        second = post("sweep/")
        self.assertEqual((200, 1), (second.status_code, second.json()["ran"]), second.content)
        self.assertEqual([1, 2], tasks.ran)
        self.assertEqual("SUCCESSFUL", two._backend.get_result(two.id).status)


class MethodTests(DoorTestCase):
    """405 and 404"""

    def test_methods(self):
        """Each URL says which it takes; it is not run."""
        tasks.remember.enqueue("must not run")
        for url in POSTS:
            for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
                response = Client().generic(method, f"/tasks/{url}", headers=BEARER)
                self.assertEqual((405, "POST"), (response.status_code, response["allow"]), url)
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            response = Client().generic(method, "/tasks/status/", headers=BEARER)
            self.assertEqual((405, "GET, HEAD"), (response.status_code, response["allow"]))
        self.assertEqual(b"", Client().head("/tasks/status/", headers=BEARER).content)
        self.assertEqual([], tasks.ran)

    def test_allow_get(self):
        """Sweep and purge, and nothing else."""
        with mounted(auth=AUTH, allow_get=True):
            tasks.remember.enqueue(1)
            self.assertEqual(1, get("sweep/").json()["ran"])
            self.assertEqual({"deleted": 0, "left": False}, get("purge/").json())
            self.assertEqual(200, post("sweep/").status_code)
            for url in ("run/", f"run/{ID}/"):
                self.assertEqual(405, get(url).status_code)
            response = Client().put("/tasks/sweep/", headers=BEARER)
            self.assertEqual((405, "GET, POST"), (response.status_code, response["allow"]))

    def test_what_is_no_uuid(self):
        """404, also for one that Python would read."""
        for id in (
            "x",
            "1",
            ID[:-1],
            f"{ID}0",
            f"urn:uuid:{ID}",
            f"{{{ID}}}",
            ID.replace("0", "g"),
        ):
            self.assertEqual(404, post(f"run/{id}/").status_code, id)
        self.assertEqual(404, post("nothing/").status_code)

    def test_without_the_slash(self):
        """A redirect would lose the POST, so there is none."""
        for url in POSTS:
            self.assertEqual(200, post(url.rstrip("/")).status_code, url)
        self.assertEqual(200, get("status").status_code)


class SizeTests(DoorTestCase):
    """413 and 411"""

    def answer(self, **environ: Any) -> HttpResponse:
        """Return the answer to a request whose body must not be read."""

        class Unreadable:
            def read(self, *_: Any) -> bytes:
                raise AssertionError("The body was read.")

        environ = {"HTTP_AUTHORIZATION": f"Bearer {TOKEN}"} | environ
        request = RequestFactory().generic("POST", "/tasks/sweep/", **environ)
        request._stream = Unreadable()  # type: ignore[attr-defined]
        view = views.view_of(self.mount(), views.ENDPOINTS["sweep"])
        return view(request)

    def mount(self) -> Any:
        from dbtasks.mounted import mounted as mounts

        return mounts()[0].mount

    def test_a_long_body_is_not_read(self):
        """Its Content-Length is enough; a credential does not matter."""
        for length in ("16385", "1000000000000", "9" * 30):
            for environ in ({}, {"HTTP_AUTHORIZATION": ""}):
                response = self.answer(CONTENT_LENGTH=length, **environ)
                self.assertEqual(413, response.status_code)
        self.assertEqual("The body must not have more than 16,384 bytes.", error_of(response))

    def test_the_longest_body(self):
        """16 KiB are allowed."""
        blanks = b" " * (body.MAX_BODY - 2)

        self.assertEqual(200, post("sweep/", blanks + b"{}").status_code)
        self.assertEqual(413, post("sweep/", blanks + b" {}").status_code)

    def test_a_body_in_chunks(self):
        """Django does not read it, so its parameters would be lost: 411."""
        response = self.answer(CONTENT_LENGTH="", HTTP_TRANSFER_ENCODING="chunked")

        self.assertEqual(411, response.status_code)
        self.assertEqual("The request must have a Content-Length.", error_of(response))

    def test_a_body_of_unknown_length(self):
        """As HTTP/2 has it: no more than the limit is read."""

        class Endless:
            taken = 0

            def read(self, size: int) -> bytes:
                self.taken += size
                return b" " * size

        endless = Endless()
        for stream, code in ((endless, 413), (mock.Mock(read=lambda size: b"{}"), 200)):
            environ = {"HTTP_AUTHORIZATION": f"Bearer {TOKEN}", "CONTENT_LENGTH": ""}
            request = RequestFactory().generic("POST", "/tasks/sweep/", **environ)
            request._stream = stream  # type: ignore[attr-defined]
            response = views.view_of(self.mount(), views.ENDPOINTS["sweep"])(request)
            self.assertEqual(code, response.status_code)
        self.assertLess(endless.taken, 20_000)


class MiddlewareTests(DoorTestCase):
    """Four decorators, each of them needed."""

    def test_login_required_middleware(self):
        """Without login_not_required: a redirect, which a service may follow and count as done."""
        chain = [*SESSION, "django.contrib.auth.middleware.LoginRequiredMiddleware"]
        with override_settings(MIDDLEWARE=chain):
            self.assert_works()

    def test_csrf_middleware(self):
        """Without csrf_exempt: 403."""
        with override_settings(MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"]):
            self.assert_works()

    def atomic(self, *aliases: str) -> None:
        """Switch ATOMIC_REQUESTS on in those databases, for the test."""
        for alias in aliases:
            settings = connections[alias].settings_dict
            self.enterContext(mock.patch.dict(settings, ATOMIC_REQUESTS=True))
            # The handler of requests reads the other one.
            self.enterContext(mock.patch.dict(connections.settings[alias], ATOMIC_REQUESTS=True))

    def test_atomic_requests(self):
        """Without non_atomic_requests: nothing can be claimed."""
        self.atomic("default")
        self.assert_works()

    def test_atomic_requests_of_a_second_database(self):
        """Without an alias the decorator covers "default" only."""
        self.atomic("other")
        self.assert_works()

    def test_atomic_requests_are_in_force_elsewhere(self):
        """So these tests would see a transaction."""
        self.atomic("other")

        def look(request: HttpRequest) -> HttpResponse:
            return HttpResponse(str(connections["other"].in_atomic_block))

        with mounted(path("", look)):
            self.assertEqual(b"True", Client().get("/").content)

    @override_settings(
        MIDDLEWARE=[
            "django.middleware.cache.UpdateCacheMiddleware",
            "django.middleware.gzip.GZipMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.http.ConditionalGetMiddleware",
            "django.middleware.cache.FetchFromCacheMiddleware",
        ],
        CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
    )
    def test_caches(self):
        """Without never_cache: the answer of a sweep that never happened."""
        with mounted(auth=AUTH, allow_get=True):
            for n in range(2):
                tasks.remember.enqueue(n)
                answer = get("sweep/", BEARER | {"Accept-Encoding": "gzip"})
                self.assertEqual(1, answer.json()["ran"])
                self.assertEqual(0, get("status/").json()["due"])
                tasks.remember.enqueue(n)
                self.assertEqual(1, get("status/").json()["due"])
                get("sweep/", max_tasks="5")
            self.assert_works_once_more()

    def assert_works_once_more(self) -> None:
        tasks.ran.clear()
        self.assert_works()

    def test_the_request_does_not_reach_the_task(self):
        """Neither its language nor its time zone."""

        def localized(handler: Any) -> Any:
            def middleware(request: HttpRequest) -> Any:
                with translation.override("de"), timezone.override("Asia/Tokyo"):
                    return handler(request)

            return middleware

        tasks.remember_context.enqueue()
        with (
            mock.patch.object(views, "localized", localized, create=True),
            override_settings(MIDDLEWARE=["dbtasks.contrib.http.views.localized"]),
        ):
            post("run/")

        self.assertEqual([("en-us", "UTC")], tasks.ran)

    def test_what_a_task_leaves_behind(self):
        """It exits, breaks a connection, leaves a transaction open: 200, and the next one works."""
        for task in (
            tasks.failing_task_system_exit,
            tasks.failing_task_keyboard_interrupt,
            tasks.leave_open,
            tasks.break_sql,
            tasks.close_connection,
            tasks.set_language,
        ):
            with self.subTest(task.module_path):
                result = task.enqueue()
                response = post(f"run/{result.id}/")
                self.assertEqual((200, True), (response.status_code, response.json()["ran"]))
                tasks.ran.clear()
                self.assert_works()
                self.assertEqual("en-us", translation.get_language())


class OutageTests(DoorTestCase):
    """503: the only answers after which a sender should come again."""

    def test_the_database_is_away(self):
        """In ten seconds; the log says so once."""
        for error in (OperationalError("secret-address refused"), InterfaceError("closed")):
            for url, name in (("sweep/", "sweep_through"), ("run/", "run_due")):
                with (
                    mock.patch(f"dbtasks.contrib.http.work.{name}", side_effect=error),
                    mock.patch("dbtasks.contrib.http.journal._journal.is_new", return_value=True),
                    self.assertLogs("dbtasks.http") as logs,
                ):
                    response = post(url)
                self.assertEqual((503, "10"), (response.status_code, response["retry-after"]))
                self.assertEqual("not available now", error_of(response))
                self.assertIn(f"the database is away ({type(error).__name__})", logs.output[0])
                self.assertNotIn("secret", str(logs.output))

    def test_a_real_database_that_is_away(self):
        """Each endpoint, if the connection cannot be made."""
        result = tasks.add.enqueue(1, 2)
        connection = connections["default"]
        connection.close()
        with mock.patch.object(connection, "connect", side_effect=OperationalError("away")):
            codes = [post(url).status_code for url in (*POSTS, f"run/{result.id}/")]
            codes.append(get("status/").status_code)

        self.assertEqual([503] * 6, codes)
        self.assertEqual("READY", ScheduledTask.objects.get().status)

    def test_a_backend_that_cannot_run(self):
        """503, and one line that says what to change: a service that gets 500 comes back."""
        tasks_of = {
            "immediate": {"BACKEND": DATABASE, "OPTIONS": {"immediate": True}},
            "ImmediateBackend": {"BACKEND": "django.tasks.backends.immediate.ImmediateBackend"},
        }
        for word, backend in tasks_of.items():
            with override_settings(TASKS={"default": backend}), mounted():
                self.assert_cannot_run(rf"TASKS\['default'\].*{word}", *POSTS)
                self.assertEqual(503, get("status/").status_code)

    def test_a_middleware_that_opens_a_transaction(self):
        """The same: nothing can be claimed in it."""
        row = tasks.remember.enqueue(1)
        here = f"{__name__}.atomic_middleware"
        with override_settings(MIDDLEWARE=[here]):
            self.assert_cannot_run(r"outside of atomic\(\)", "sweep/", "run/", f"run/{row.id}/")
        self.assertEqual([], tasks.ran)

    def assert_cannot_run(self, why: str, *urls: str) -> None:
        """Fail unless each answer is 503, and the log says why."""
        for url in urls:
            with (
                self.subTest(url),
                mock.patch.object(journal, "_journal", journal.Journal()),
                self.assertLogs("dbtasks.http", "WARNING") as logs,
            ):
                for _ in range(2):
                    response = post(url)
                    self.assertEqual((503, "60"), (response.status_code, response["Retry-After"]))
                    self.assertEqual("this site cannot run tasks", error_of(response))
                self.assertEqual(1, len(logs.output))
                self.assertRegex(logs.output[0], why)
                self.assertNotIn("Traceback", logs.output[0])

    def test_other_errors_are_raised(self):
        """Django answers and reports them; they are no reason to come again in ten seconds."""
        with (
            mock.patch("dbtasks.contrib.http.work.sweep_through", side_effect=ZeroDivisionError),
            self.assertRaises(ZeroDivisionError),
        ):
            post("sweep/")


class SecretTests(DoorTestCase):
    """No answer and no log has anything of a task."""

    def test_answers_hold_no_content(self):
        """No argument, result, error, traceback; nothing of another backend."""
        secret = "secret-of-a-task"
        tasks.fail.enqueue(secret)
        good = tasks.echo.enqueue(secret)
        with self.assertLogs(level=logging.INFO) as logs:
            answers = [post(f"run/{good.id}/"), post("run/"), post("sweep/"), get("status/")]
            answers += [post(f"run/{good.id}/"), post("purge/", {"dry_run": True})]

        for answer in answers:
            self.assertEqual(200, answer.status_code)
            for word in (b"secret", b"Traceback", b"ValueError", b"other", b"host"):
                self.assertNotIn(word, answer.content)
        ours = [r for r in logs.records if r.name == "dbtasks.http"]
        self.assertEqual(6, len(ours))
        self.assertNotIn("secret", str([vars(record) for record in ours]))


class LogTests(DoorTestCase):
    """A line for each request, at INFO."""

    def test_the_line_says_who_and_what(self):
        """And has the counts as fields."""
        tasks.remember.enqueue(1)
        with self.assertLogs("dbtasks.http", "INFO") as logs:
            post("sweep/")
            post(f"run/{ID}/")

        sweep, one = logs.records
        self.assertRegex(
            sweep.getMessage(), r"^sweep of default by bearer in \d+\.\d\d s: ran 1, succeeded 1, "
        )
        fields = ("http.answered", "sweep", "default", "bearer", 1)
        self.assertEqual(fields, (sweep.event, sweep.endpoint, sweep.backend, sweep.who, sweep.ran))
        self.assertIn("why unknown", one.getMessage())


class SeveralMountsTests(DoorTestCase):
    """One mount is one backend, with its own credentials."""

    def test_a_token_of_one_backend_opens_no_other(self):
        """And no parameter chooses the backend."""
        other = {"BACKEND": "dbtasks.backend.DatabaseBackend"}
        backends = {"default": other, "second": other}
        with override_settings(TASKS=backends):
            second = endpoints(auth=[Bearer("second" + TOKEN)], backend="second", namespace="b")
            first = endpoints(auth=AUTH)
            with override_settings(
                ROOT_URLCONF=urls(path("tasks/", first), path("second/", second))
            ):
                tasks.remember.enqueue("default")
                tasks.remember.using(backend="second").enqueue("second")
                codes = [
                    Client().post("/second/run/", headers=BEARER).status_code,
                    post("run/", headers={"Authorization": f"Bearer second{TOKEN}"}).status_code,
                    post("run/?backend_name=second").status_code,
                    post("run/", {"backend": "second"}).status_code,
                ]
                self.assertEqual([401, 401, 400, 400], codes)
                self.assertEqual([], tasks.ran)
                post("run/")
                self.assertEqual(["default"], tasks.ran)
                self.assertEqual("default", get("status/").json()["backend"])


class DeadlineTests(DoorTestCase):
    """endpoints(deadline=…)"""

    def test_a_task_is_asked_to_end_before_the_server_gives_up(self):
        """It is requeued, and goes on in the next request."""
        with (
            mounted(auth=AUTH, deadline=15.0),
            mock.patch("dbtasks.execution.bounds.RELEASE_BEFORE", 14.5),
        ):
            result = tasks.until_asked.enqueue()
            answer = post(f"run/{result.id}/").json()

        self.assertEqual((True, "READY"), (answer["ran"], answer["status"]))


class TimeoutTests(DoorTestCase):
    """A task's own timeout."""

    def test_a_task_is_interrupted_at_its_timeout(self):
        """Nobody else would end it: there is no runner."""
        folder = self.enterContext(TemporaryDirectory())
        result = tasks.wait_for_file.using(timeout=0.2).enqueue(folder, 25)

        answer = post(f"run/{result.id}/").json()

        self.assertEqual((True, "FAILED"), (answer["ran"], answer["status"]))
        self.assertLess(answer["seconds"], 20)


class NamespaceTests(DoorTestCase):
    """include() as Django's own."""

    def test_names_of_the_urls(self):
        """They can be reversed."""
        from django.urls import reverse

        self.assertEqual("/tasks/sweep/", reverse("dbtasks:sweep"))
        self.assertEqual(f"/tasks/run/{ID}/", reverse("dbtasks:run-one", args=[ID]))
        nested = path("api/", include(([path("t/", endpoints(auth=AUTH))], "api")))
        with mounted(nested):
            self.assertEqual("/api/t/status/", reverse("api:dbtasks:status"))
