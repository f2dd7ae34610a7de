"""Hints as tasks of Cloud Tasks: what is sent, and what each answer means."""

import os
import socket
import threading
import time
import warnings
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

from django.core.checks import CheckMessage
from django.test import SimpleTestCase, override_settings, tag
from django.utils import timezone

from dbtasks import checks
from dbtasks.contrib.cloudtasks import CloudTasks, environment
from dbtasks.contrib.http import Post
from dbtasks.push import HEADER, Hint, NotSent, is_signed
from dbtasks.wakeup import guard
from dbtasks.wakeup.hints import tell
from tests.support.backends import backend
from tests.support.cloudtasks import NO_QUEUE, CloudTasksService
from tests.support.hints import sending
from tests.support.loopback import Answer, Loopback
from tests.support.tokens import EMAIL, needs_google

ID = "019a8b1e-7c00-7abc-9def-0123456789ab"
SITE = "https://shop.example/tasks/"


def hint(**values: Any) -> Hint:
    return Hint(**{"id": ID, "backend": "default", "queue_name": "default"} | values)


@needs_google
class PushTestCase(SimpleTestCase):
    """A service that delivers nothing, and a push that sends to it without credentials."""

    def setUp(self) -> None:
        self.service = self.enterContext(CloudTasksService(concurrency=0))
        self.push = self.make()

    def make(self, **options: Any) -> CloudTasks:
        from google.auth.credentials import AnonymousCredentials

        return CloudTasks(
            **{
                "project": "shop",
                "location": "europe-west1",
                "url": SITE,
                "endpoint": self.service.endpoint,
                "credentials": AnonymousCredentials(),
            }
            | options
        )

    def sent(self, *hints: Hint, **options: Any) -> Any:
        """Send the hints; return the last task, as Google's own type."""
        self.make(**options).send(hints or [hint()])
        self.assertEqual([], self.service.faults)
        return self.service.tasks[-1]


class TaskTests(PushTestCase):
    """What a task consists of. Google's own types have parsed it."""

    def test_a_hint_that_is_due(self):
        """A signed POST to the row's URL, and nothing about the task itself."""
        task = self.sent()

        self.assertEqual(f"{SITE}run/{ID}/", task.http_request.url)
        self.assertEqual("POST", task.http_request.http_method.name)
        self.assertEqual([HEADER], list(task.http_request.headers))
        self.assertTrue(is_signed("default", ID, task.http_request.headers[HEADER]))
        self.assertEqual(b"", task.http_request.body)
        self.assertEqual(timedelta(seconds=600), task.dispatch_deadline)
        self.assertFalse(task.schedule_time)
        self.assertFalse(task.retry_config)
        self.assertNotIn("oidc_token", task.http_request)
        path = "/v2/projects/shop/locations/europe-west1/queues/default/tasks"
        self.assertEqual([path], [request.path for request in self.service.requests])
        self.assertNotIn("authorization", self.service.requests[0].headers)

    def test_a_drain_hint(self):
        """It goes to the URL that runs what is due."""
        task = self.sent(hint(id=None))

        self.assertEqual(f"{SITE}run/", task.http_request.url)
        self.assertTrue(is_signed("default", None, task.http_request.headers[HEADER]))

    def test_several_hints(self):
        """Each is a task."""
        self.push.send([hint(), hint(id=None)])

        self.assertEqual(2, len(self.service.tasks))

    def test_a_service_account(self):
        """The task carries a token for the origin of the URL."""
        token = self.sent(service_account=EMAIL).http_request.oidc_token

        self.assertEqual(EMAIL, token.service_account_email)
        self.assertEqual("https://shop.example", token.audience)
        task = self.sent(service_account=EMAIL, audience="https://a.example")
        self.assertEqual("https://a.example", task.http_request.oidc_token.audience)
        self.assertIn(HEADER, task.http_request.headers)

    def test_a_hint_for_later(self):
        """Its time is exact, whatever its zone is."""
        at = datetime(2026, 12, 1, 12, 0, 0, 123456, tzinfo=timezone.get_fixed_timezone(90))

        self.assertEqual(at, self.sent(hint(run_after=at)).schedule_time)

    @override_settings(USE_TZ=False, TIME_ZONE="Europe/Berlin")
    def test_a_naive_time_in_a_zone_with_summer_time(self):
        """It is one of TIME_ZONE, in winter as in summer."""
        year = timezone.now().year + 1
        with (
            mock.patch.object(CloudTasks, "longest", None),
            mock.patch("tests.support.cloudtasks.timedelta", lambda days: timedelta(days=9999)),
            sending(),
        ):
            for month, hour in ((1, 11), (7, 10)):
                naive = datetime(year, month, 15, 12)  # in Berlin
                tell(self.push, [hint(run_after=naive)])
                expected = datetime(year, month, 15, hour, tzinfo=UTC)
                self.assertEqual(expected, self.service.tasks[-1].schedule_time)

    def test_a_hint_that_is_too_far_ahead(self):
        """It is sent for the latest time that the service takes; the endpoint sends it on."""
        with sending():
            count = tell(self.push, [hint(run_after=timezone.now() + timedelta(days=90))])

        self.assertEqual((1, []), (count, self.service.faults))
        ahead = self.service.tasks[0].schedule_time - timezone.now()
        self.assertTrue(timedelta(days=29, hours=22) < ahead <= timedelta(days=29, hours=23))

    def test_a_late_hint_has_a_name(self):
        """The random half of the id first, so that names do not begin with the time."""
        task = self.sent(hint(again=3, attempt=2))

        self.assertTrue(task.name.endswith("/queues/default/tasks/9def0123456789ab-2-3"))

    def test_a_late_hint_that_is_there_already(self):
        """It counts as sent; the next one has another name."""
        with sending():
            for again in (1, 1, 1, 2):
                self.assertEqual(1, tell(self.push, [hint(again=again)]))

        self.assertEqual(2, len(self.service.tasks))
        self.assertEqual(4, len(self.service.requests))

    def test_other_hints_have_none(self):
        """Not even a drain hint that is repeated."""
        for each in (hint(), hint(attempt=3), hint(id=None, again=1)):
            self.push.send([each])
        for request in self.service.requests:
            self.assertNotIn(b'"name"', request.body)

    def test_queues(self):
        """A template, one name, or a dict."""
        for queue, expected in (
            ("{queue}", "mail"),
            ("shop-{queue}-1", "shop-mail-1"),
            ("all", "all"),
            ({"mail": "letters"}, "letters"),
        ):
            self.push = self.make(queue=queue)
            self.push.send([hint(queue_name="mail")])
            self.assertIn(f"/queues/{expected}/tasks", self.service.requests[-1].path)

    def test_queues_that_cannot_be(self):
        """Nothing is sent."""
        for queue, name in (("{queue}", "mail_1"), ({}, "mail"), ("{queue}", "x" * 101)):
            with self.assertRaisesMessage(NotSent, "Names consist of up to 100 letters"):
                self.make(queue=queue).send([hint(queue_name=name)])
        self.assertEqual([], self.service.requests)

    def test_deadline_and_retry(self):
        """As given."""
        task = self.sent(deadline=1800, retry={"maxAttempts": 5, "minBackoff": "1s"})

        self.assertEqual(timedelta(seconds=1800), task.dispatch_deadline)
        self.assertEqual(5, task.retry_config.max_attempts)

    def test_the_fake_refuses_what_google_refuses(self):
        """Otherwise these tests would say nothing."""
        for options in ({"deadline": 5}, {"retry": {"maxAttempt": 5}}):
            with self.assertRaises(NotSent), self.assertLogs("dbtasks.push", "ERROR"):
                self.make(**options).send([hint()])
        with self.assertRaises(NotSent), self.assertLogs("dbtasks.push", "ERROR"):
            self.push.send([hint(run_after=timezone.now() + timedelta(days=31))])
        self.assertEqual(3, len(self.service.faults))

    def test_repr(self):
        """It has neither credentials nor accounts."""
        push = self.make(service_account=EMAIL)

        self.assertEqual("CloudTasks(queue='{queue}', url='https://shop.example')", repr(push))
        for url in ("https://u:secret@x.example", "https://:secret/x@x.example", "u:secret@x"):
            self.assertNotIn("secret", repr(CloudTasks(url=url)))


class AnswerTests(PushTestCase):
    """What we do about each answer."""

    def refused(self, status: int, message: str = "no") -> list[str]:
        """Send a hint that is answered so; return what is logged as an error."""
        self.service.answers.append((status, message))
        with self.assertLogs("dbtasks.push", "DEBUG") as logs, sending():
            self.assertEqual(0, tell(self.push, [hint()]))
        return [one.getMessage() for one in logs.records if one.levelname == "ERROR"]

    def test_no_such_queue(self):
        """The error has the line that makes it."""
        self.service.queues = {"other"}
        with self.assertLogs("dbtasks.push", "WARNING") as logs, sending():
            self.assertEqual(0, tell(self.push, [hint()]))

        error, warning = logs.records
        self.assertEqual("ERROR", error.levelname)
        self.assertIn(
            "gcloud tasks queues create default --location europe-west1 --project shop",
            error.getMessage(),
        )
        self.assertIn(NO_QUEUE, error.getMessage())
        self.assertIn("Cloud Tasks answered 404", warning.getMessage())

    def test_no_permission(self):
        """Both roles are named, and the account."""
        self.push = self.make(service_account=EMAIL)
        (error,) = self.refused(403, "The principal lacks IAM permission.")

        self.assertIn("roles/cloudtasks.enqueuer", error)
        self.assertIn("iam.serviceAccounts.actAs", error)
        self.assertIn(EMAIL, error)
        self.assertIn("The principal lacks IAM permission.", error)

    def test_a_malformed_task(self):
        """Google's sentence is in the log, as one line."""
        (error,) = self.refused(400, "Wrong\nfield.")

        self.assertIn(r"Wrong\nfield.", error)

    def test_an_error_is_logged_once_a_minute(self):
        """For each queue and status."""
        errors = [self.refused(404) for _ in range(3)]
        self.assertEqual([1, 0, 0], list(map(len, errors)))
        self.assertEqual(1, len(self.refused(403)))
        later = time.monotonic() + 61
        clock = mock.Mock(monotonic=lambda: later)
        with mock.patch("dbtasks.contrib.http.journal.time", clock):
            self.assertEqual(1, len(self.refused(404)))

    def test_what_time_heals(self):
        """A warning, of which the guard makes one a minute; redirects are not followed."""
        for status in (429, 500, 502, 503, 504, 302):
            self.assertEqual([], self.refused(status), status)

    def test_three_failures_in_a_row(self):
        """The fourth call is not made. The sweep finds the rows."""
        self.service.answers.extend([(503, "busy")] * 3)
        # On a busy machine a failure may be slow, which would be enough by itself.
        self.enterContext(mock.patch.object(guard, "SLOW", 60.0))
        with sending(), self.assertLogs("dbtasks.push", "WARNING"):
            for _ in range(3):
                tell(self.push, [hint()])
            started = time.perf_counter()
            self.assertEqual(0, tell(self.push, [hint()]))
            seconds = time.perf_counter() - started

        self.assertEqual(3, len(self.service.requests))
        self.assertLess(seconds, 0.1)


class OutageTests(PushTestCase):
    """A service that cannot be reached holds nobody up for three seconds."""

    def assert_not_sent(self, **options: Any) -> None:
        push = self.make(**options)
        started = time.monotonic()
        with sending(), self.assertLogs("dbtasks.push", "WARNING"):
            self.assertEqual(0, tell(push, [hint()]))
        self.assertLess(time.monotonic() - started, 3)

    def test_it_never_answers(self):
        """The connection is accepted."""
        self.service.is_hanging = True
        self.assert_not_sent()

    def test_send_itself_takes_two_seconds(self):
        """Whatever the guard does: the thread does not stay busy."""
        self.service.is_hanging = True
        started = time.monotonic()

        with self.assertRaisesMessage(NotSent, "does not answer (ReadTimeout)"):
            self.push.send([hint()])
        self.assertLess(time.monotonic() - started, 3)

    def test_it_refuses_connections(self):
        """Nobody listens."""
        self.assert_not_sent(endpoint="http://127.0.0.1:1")

    def test_it_resets_connections(self):
        """In the middle of a request."""
        listener = self.enterContext(socket.create_server(("127.0.0.1", 0)))

        def reset() -> None:
            connection, _ = listener.accept()
            linger = b"\x01\0\0\0\0\0\0\0"
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.close()

        thread = threading.Thread(target=reset)
        thread.start()
        self.assert_not_sent(endpoint=f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()

    def test_it_speaks_no_tls(self):
        """Where https is expected."""
        self.assert_not_sent(endpoint=self.service.endpoint.replace("http:", "https:"))

    def test_its_name_is_not_known(self):
        """By DNS."""
        self.assert_not_sent(endpoint="http://tasks.invalid")

    def test_no_token_can_be_had(self):
        """The server of tokens fails, hangs, or has no permission."""
        for answer in (Answer(503), Answer(403), None, "refused"):
            server = self.enterContext(Loopback(lambda request, answer=answer: answer))
            server.is_hanging = answer is None
            started = time.monotonic()
            url = "http://127.0.0.1:1" if answer == "refused" else server.origin
            credentials = fetched(url)
            with self.assertRaisesMessage(NotSent, "no token"):
                self.make(credentials=credentials).send([hint()])
            self.assertLess(time.monotonic() - started, 2.5)
            self.assertEqual(1, credentials.tries)
        self.assertEqual([], self.service.requests)

    def test_no_credentials(self):
        """A sentence says so; the service is not asked."""
        from google.auth import exceptions

        error = exceptions.DefaultCredentialsError("secret path")
        with (
            mock.patch("google.auth.default", side_effect=error),
            self.assertRaisesMessage(NotSent, "has no credentials") as caught,
        ):
            self.make(credentials=None).send([hint()])

        self.assertNotIn("secret", str(caught.exception))
        self.assertEqual([], self.service.requests)


def fetched(url: str) -> Any:
    """Return credentials whose token comes from that URL, as that of a service account does."""
    from google.auth import credentials, exceptions

    class Credentials(credentials.Credentials):
        tries = 0

        def refresh(self, request: Any) -> None:
            # As google.auth.compute_engine and google.oauth2 do: again and again.
            for _ in range(5):
                self.tries += 1
                try:
                    answer = request(url=url, method="GET", timeout=120)
                    if answer.status < 500:
                        break
                except exceptions.TransportError:
                    continue
            if answer.status != 200:
                raise exceptions.RefreshError("no")
            self.token, self.expiry = answer.data.decode(), None

    return Credentials()


class SessionTests(PushTestCase):
    """Credentials and connections."""

    def setUp(self) -> None:
        super().setUp()
        self.tokens = iter(f"token-{number}" for number in range(100))
        answer = lambda request: Answer(200, next(self.tokens).encode())  # noqa: E731
        self.token_server = self.enterContext(Loopback(answer))

    def authorizations(self) -> list[str | None]:
        return [request.headers.get("authorization") for request in self.service.requests]

    def test_hints_carry_the_token(self):
        """One token for many hints."""
        push = self.make(credentials=fetched(self.token_server.origin))
        for _ in range(3):
            push.send([hint()])

        self.assertEqual(["Bearer token-0"] * 3, self.authorizations())

    def test_a_token_that_is_not_accepted_any_more(self):
        """A new one is fetched, and the hint is sent."""
        push = self.make(credentials=fetched(self.token_server.origin))
        self.service.answers.append((401, "expired"))
        push.send([hint()])

        self.assertEqual(["Bearer token-0", "Bearer token-1"], self.authorizations())
        self.assertEqual(1, len(self.service.tasks))

    def test_credentials_are_found_at_the_first_hint(self):
        """Once, for the right scope, without a second wait."""
        from google.auth.credentials import AnonymousCredentials

        found = mock.Mock(return_value=(AnonymousCredentials(), "other"))
        with mock.patch("google.auth.default", found):
            push = self.make(credentials=None)
            list(push.check("default"))
            repr(push)
            found.assert_not_called()
            push.send([hint()])
            push.send([hint()])

        found.assert_called_once()
        self.assertEqual(
            ("https://www.googleapis.com/auth/cloud-platform",), found.call_args.kwargs["scopes"]
        )

    def test_a_connection_is_used_again(self):
        """Also by another thread."""
        for _ in range(4):
            thread = threading.Thread(target=self.push.send, args=([hint()],))
            thread.start()
            thread.join()

        self.assertEqual((4, 1), (len(self.service.tasks), self.service.connections))

    def test_a_connection_that_was_idle_is_not_used(self):
        """The processor may have been taken away meanwhile."""
        self.push.send([hint()])
        later = time.monotonic() + 31
        with mock.patch("dbtasks.contrib.cloudtasks.google.time") as clock:
            clock.monotonic = lambda: later
            self.push.send([hint()])

        self.assertEqual((2, 2), (len(self.service.tasks), self.service.connections))

    @tag("processes")
    def test_a_forked_process_has_its_own_connection(self):
        """As with a server that loads the application before it forks."""
        self.push.send([hint()])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            status = 1
            try:
                self.push.send([hint(id=None)])
                status = 0
            finally:
                os._exit(status)
        self.assertEqual(0, os.waitpid(pid, 0)[1])
        self.push.send([hint()])

        self.assertEqual(3, len(self.service.tasks))
        self.assertEqual(2, self.service.connections)


class HomeTests(SimpleTestCase):
    """Whether this process sends hints at all."""

    def at_home(self, push: CloudTasks | None = None, **variables: str) -> bool:
        names = (*environment.VARIABLES, "DBTASKS_URL")
        kept = {name: value for name, value in os.environ.items() if name not in names}
        with mock.patch.dict(os.environ, kept | variables, clear=True):
            return (push or CloudTasks()).is_at_home()

    def test_cloud_run(self):
        """Its URL can be found."""
        self.assertTrue(self.at_home(K_SERVICE="shop"))

    def test_elsewhere_on_google_cloud(self):
        """The URL must be given."""
        for name in ("GAE_ENV", "CLOUD_RUN_JOB"):
            self.assertFalse(self.at_home(**{name: "x"}))
            self.assertTrue(self.at_home(**{name: "x"}, DBTASKS_URL=SITE))
            self.assertTrue(self.at_home(CloudTasks(url=SITE), **{name: "x"}))

    def test_anywhere_else(self):
        """A laptop with production settings sends nothing."""
        self.assertFalse(self.at_home())
        self.assertFalse(self.at_home(CloudTasks(url=SITE), DBTASKS_URL=SITE))

    @needs_google
    def test_a_test_suite_sends_nothing(self):
        """Not even on Google Cloud."""
        with CloudTasksService() as service, mock.patch.dict(os.environ, K_SERVICE="shop"):
            push = CloudTasks(project="p", location="l", url=SITE, endpoint=service.endpoint)
            self.assertEqual(0, tell(push, [hint()]))
            self.assertEqual([], service.requests)


@override_settings(ALLOWED_HOSTS=["shop.example", "127.0.0.1", "localhost", "::1"])
class CheckTests(SimpleTestCase):
    """What manage.py check says about it."""

    def said(self, **options: Any) -> list[CheckMessage]:
        return list(CloudTasks(**{"url": SITE} | options).check("default"))

    def ids(self, **options: Any) -> list[str | None]:
        return [message.id for message in self.said(**options)]

    def test_a_valid_push(self):
        """Nothing, also without a URL."""
        self.assertEqual([], self.ids())
        self.assertEqual([], self.ids(url=None))

    def test_deadline(self):
        """What the service can wait for."""
        for deadline in (15, 600, 1800, 15.5):
            self.assertEqual([], self.ids(deadline=deadline))
        for deadline in (14, 1801, 0, -1, True, None, "600", float("nan")):
            with self.subTest(deadline):
                self.assertEqual(["dbtasks.E024"], self.ids(deadline=deadline))
        options = {"push": CloudTasks(url=SITE, deadline="600"), "timeout": 60}  # type: ignore[arg-type]
        with self.settings(TASKS=with_queues(["default"], **options)):
            self.assertIn("dbtasks.E024", [one.id for one in checks.check_backends()])

    def test_url(self):
        """https, or this machine."""
        for url in ("https://shop.example", "http://127.0.0.1:8000", "http://localhost/x/"):
            self.assertEqual([], self.ids(url=url))
        for url in ("http://shop.example", "ftp://shop.example", "shop.example", "https://"):
            with self.subTest(url):
                self.assertEqual(["dbtasks.E024"], self.ids(url=url))
        with mock.patch.dict(os.environ, DBTASKS_URL="http://shop.example"):
            self.assertEqual(["dbtasks.E024"], self.ids(url=None))

    def test_hosts(self):
        """A host that Django refuses answers 400 to each hint."""
        self.assertEqual(["dbtasks.W024"], self.ids(url="https://other.example"))

    def test_no_address_of_the_site(self):
        """It is needed where hints are sent, so only check --deploy asks for it."""
        with mock.patch.dict(os.environ):
            for name in (*environment.VARIABLES, "DBTASKS_URL"):
                os.environ.pop(name, None)
            for push in (CloudTasks(), Post("https://a.example/?to={target}")):
                self.assertEqual([], list(push.check("default")))
                (message,) = push.check_deployment("default")
                self.assertEqual("dbtasks.W025", message.id)
                os.environ["DBTASKS_URL"] = SITE
                self.assertEqual([], list(push.check_deployment("default")))
                del os.environ["DBTASKS_URL"]
            os.environ["K_SERVICE"] = "shop"
            self.assertEqual([], list(CloudTasks().check_deployment("default")))

    def test_names_of_queues(self):
        """Those that the service cannot have."""
        with self.settings(TASKS=with_queues(["default", "mail_1"])):
            (message,) = self.said()
            self.assertEqual("dbtasks.E024", message.id)
            self.assertIn("'mail_1'", message.msg)
            mapped = {"default": "default", "mail_1": "mail-1"}
            self.assertEqual([], self.ids(queue=mapped))
            self.assertEqual(["dbtasks.E024"], self.ids(queue={"default": "default"}))
            self.assertEqual([], self.ids(queue="everything"))
        with self.settings(TASKS=with_queues(["default", "x" * 90])):
            self.assertEqual(["dbtasks.E024"], self.ids(queue="longer-name-{queue}"))


def with_queues(names: list[str], **options: Any) -> dict[str, Any]:
    return backend(QUEUES=names, OPTIONS=options)
