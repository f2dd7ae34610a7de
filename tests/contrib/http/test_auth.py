"""Who may do what: each credential, and everything that is none."""

import base64
import json
import logging
import os
import time
from typing import Any
from unittest import mock

from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.test import Client, SimpleTestCase, TestCase

from dbtasks.contrib.http import (
    AppEngineCron,
    Bearer,
    Signed,
    StandardWebhook,
    Unavailable,
    endpoints,
    journal,
    refused,
)
from dbtasks.push import HEADER, sign

from ...support.mounts import BEARER, ID, TOKEN, error_of, get, mounted, post

SECRET = "whsec_" + base64.b64encode(b"secret of the tests, 24 bytes or more").decode()
OTHER = "whsec_" + base64.b64encode(b"another one, which is not configured").decode()
EVERYTHING = ("sweep/", "run/", f"run/{ID}/", "purge/")


class AuthTestCase(TestCase):
    """Asks endpoints that have nothing to do."""

    def setUp(self) -> None:
        self.enterContext(mock.patch.object(journal, "_journal", journal.Journal()))

    def code(self, url: str, headers: dict[str, str], body: Any = None) -> int:
        return int(post(url, body, headers).status_code)

    def assert_refused(self, url: str, headers: dict[str, str], body: Any = None) -> None:
        """Fail unless the answer is 401 and tells nothing."""
        response = post(url, body, headers)
        self.assertEqual((401, "Bearer"), (response.status_code, response["www-authenticate"]))
        self.assertEqual("not authorized", error_of(response))


class BearerTests(AuthTestCase):
    """Bearer(*tokens, header=…)"""

    def setUp(self) -> None:
        super().setUp()
        self.enterContext(mounted(auth=[Bearer(TOKEN, "old" + TOKEN)]))

    def test_the_token_opens_everything(self):
        """The new one and the old one; the scheme in any case."""
        for value in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER old{TOKEN}"):
            for url in EVERYTHING[2:]:
                self.assertEqual(200, self.code(url, {"Authorization": value}), value)
            self.assertEqual(200, get("status/", {"Authorization": value}).status_code)

    def test_what_is_not_the_token(self):
        """All of it is 401."""
        for value in (
            *("", "Bearer", "Bearer ", "Bearer é", f"Bearer  {TOKEN}", f"Bearer {TOKEN} ", TOKEN),
            *(f"Bearer {TOKEN}é", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}"),
            *(
                f"Bearer {TOKEN},Bearer {TOKEN}",
                f"Bearer\t{TOKEN}",
                f"Bearer{TOKEN}",
                "Bearer \ud800",
            ),
            *(f"Bearer {TOKEN.upper()}", "Bearer " + "x" * 1_000_000, f"Bearer x, Bearer {TOKEN}"),
        ):
            with self.subTest(value[:80]):
                for url in EVERYTHING:
                    self.assert_refused(url, {"Authorization": value})
                self.assertEqual(401, get("status/", {"Authorization": value}).status_code)
        self.assert_refused("sweep/", {})

    def test_another_header(self):
        """It holds the token alone."""
        with mounted(auth=[Bearer(TOKEN, header="X-DBTasks-Token")]):
            self.assertEqual(200, self.code(f"run/{ID}/", {"X-DBTasks-Token": TOKEN}))
            self.assert_refused(f"run/{ID}/", {"X-DBTasks-Token": f"Bearer {TOKEN}"})
            self.assert_refused(f"run/{ID}/", BEARER)

    def test_tokens_that_are_none(self):
        """A variable that is not set must not open anything; the message holds no token."""
        for tokens in ([], [""], [None], ["two words"], ["é" * 40], ["x\n"], [b"bytes" * 8], [7]):
            with self.subTest(tokens), self.assertRaises(ImproperlyConfigured) as raised:
                Bearer(*tokens)
            self.assertNotIn("two words", str(raised.exception))

    def test_nothing_shows_a_secret(self):
        """Neither repr."""
        shown = f"{Bearer(TOKEN)!r} {StandardWebhook(SECRET)!r} {Signed()!r} {AppEngineCron()!r}"

        self.assertNotIn(TOKEN, shown)
        self.assertNotIn(SECRET[6:], shown)


class SessionTests(AuthTestCase):
    """A cookie is no credential."""

    def test_the_session_of_a_superuser_opens_nothing(self):
        """The views have no protection against requests from other sites."""
        client = Client()
        client.force_login(User.objects.create_superuser("root"))
        with mounted():
            for url in EVERYTHING:
                self.assertEqual(401, client.post(f"/tasks/{url}").status_code)
            self.assertEqual(401, client.get("/tasks/status/").status_code)


class SignedTests(AuthTestCase):
    """Signed() by name, without a push."""

    def test_it_opens_a_row_and_drains(self):
        """And nothing else."""
        row, drain = ({HEADER: sign("default", id)} for id in (ID, None))
        with mounted(auth=[Signed()]):
            self.assertEqual(200, self.code(f"run/{ID}/", row))
            self.assertEqual(200, self.code(f"run/{ID.upper()}/", row))
            self.assertEqual(200, self.code("run/", drain))
            for url in ("sweep/", "purge/", "run/"):
                self.assert_refused(url, row)
            for url in ("sweep/", "purge/", f"run/{ID}/"):
                self.assert_refused(url, drain)
            self.assertEqual(401, get("status/", drain).status_code)


class AppEngineCronTests(AuthTestCase):
    """AppEngineCron()"""

    CRON = {"X-Appengine-Cron": "true"}

    def setUp(self) -> None:
        super().setUp()
        self.enterContext(mounted(auth=[AppEngineCron()], allow_get=True))

    def test_only_on_app_engine(self):
        """Elsewhere nobody removes the header from requests of strangers."""
        self.assert_refused("sweep/", self.CRON)
        for name in ("GAE_ENV", "GAE_SERVICE"):
            with mock.patch.dict(os.environ, {name: "standard"}):
                self.assertEqual(200, get("purge/", self.CRON, dry_run="true").status_code)
                self.assertEqual(200, self.code("purge/", self.CRON, {"dry_run": True}))
        with mock.patch.dict(os.environ, {"GAE_ENV": ""}):
            self.assert_refused("sweep/", self.CRON)

    def test_sweeps_and_purges_only(self):
        """Rows are not its business, and nor is another value."""
        with mock.patch.dict(os.environ, GAE_ENV="standard"):
            for url in ("run/", f"run/{ID}/"):
                self.assert_refused(url, self.CRON)
            self.assertEqual(401, get("status/", self.CRON).status_code)
            for value in ("1", "True", "", "false"):
                self.assert_refused("purge/", {"X-Appengine-Cron": value})


class StandardWebhookTests(AuthTestCase):
    """StandardWebhook(*secrets, tolerance=…)"""

    BODY = json.dumps({"type": "dbtasks.purge", "dry_run": True}).encode()

    def setUp(self) -> None:
        super().setUp()
        self.hook = StandardWebhook(SECRET)
        self.enterContext(mounted(auth=[StandardWebhook(OTHER, SECRET)]))

    def test_a_signed_body(self):
        """It is read without its type."""
        response = post("purge/", self.BODY, self.hook.sign(self.BODY))

        self.assertEqual({"would_delete": 0}, response.json())

    def test_the_example_of_the_specification(self):
        """Others sign as we do."""
        hook = StandardWebhook("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        signed = hook.sign('{"test": 2432232314}', id="msg_p5jXN8AQM9LWM0D4loKWxJek", at=1614265330)

        self.assertEqual(
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", signed["webhook-signature"]
        )

    def test_any_of_several_signatures(self):
        """A sender that replaces its secret sends two; other versions are skipped."""
        signed = self.hook.sign(self.BODY)
        for more in ("v1a,xyz {}", "{} v1,AAAA", "v1, {} v2,é"):
            signature = more.format(signed["webhook-signature"])
            headers = signed | {"webhook-signature": signature}
            self.assertEqual(200, self.code("purge/", headers, self.BODY), more)

    def test_what_is_not_signed(self):
        """All of it is 401."""
        signed = self.hook.sign(self.BODY)
        right = signed["webhook-signature"]
        for changed in (
            *({"webhook-signature": text} for text in ("", "v1", "v1,", "v1a,x", right[3:])),
            *({"webhook-signature": text} for text in (f"v1a,{right[3:]}", right[:-4], "é")),
            {"webhook-signature": " ".join([right] * 200)},
            {"webhook-signature": right.replace("v1", "v2")},
            *({"webhook-timestamp": text} for text in ("nan", "", "inf", "1e9", "-1", "0", "٣")),
            {"webhook-timestamp": str(int(time.time()) + 1)},
            {"webhook-timestamp": signed["webhook-timestamp"] + ".0"},
            {"webhook-timestamp": "9" * 5000},
            {"webhook-id": "other"},
            {"webhook-id": ""},
        ):
            with self.subTest(str(changed)[:80]):
                self.assert_refused("purge/", signed | changed, self.BODY)
        for name in signed:
            self.assert_refused("purge/", {k: v for k, v in signed.items() if k != name}, self.BODY)
        self.assert_refused("purge/", signed, self.BODY + b" ")
        self.assert_refused(
            "purge/", StandardWebhook(OTHER[:-4] + "AAAA").sign(self.BODY), self.BODY
        )

    def test_old_and_future_messages(self):
        """The clocks may differ by the tolerance."""
        now = int(time.time())
        for seconds, code in ((-290, 200), (290, 200), (-310, 401), (310, 401)):
            headers = self.hook.sign(self.BODY, at=now + seconds)
            self.assertEqual(code, self.code("purge/", headers, self.BODY), seconds)

    def test_the_type_is_that_of_the_url(self):
        """Method and path are not signed: a message for one endpoint opens no other."""
        for type, url in (
            *(("dbtasks.sweep", url) for url in ("run/", "purge/", f"run/{ID}/")),
            *(("dbtasks.run", url) for url in ("sweep/", "purge/", f"run/{ID}/")),
            *(
                (type, "purge/")
                for type in ("purge", "dbtasks.purge.x", 1, None, ["dbtasks.purge"])
            ),
            ("dbtasks.run-one", f"run/{ID}/"),
            ("dbtasks.status", "purge/"),
        ):
            with self.subTest(f"{type} {url}"):
                body = json.dumps({"type": type}).encode()
                self.assert_refused(url, self.hook.sign(body), body)
        for body in (b"", b"[]", b"{}", b"not json", b"\xff"):
            self.assert_refused("purge/", self.hook.sign(body), body)

    def test_secrets_that_are_none(self):
        """Short, no base64, or not there; the message holds none of them."""
        for secrets in (
            [],
            [""],
            [None],
            ["whsec_"],
            ["whsec_short=="],
            ["whsec_äöü"],
            [SECRET, "x"],
        ):
            with self.subTest(secrets), self.assertRaises(ImproperlyConfigured) as raised:
                StandardWebhook(*secrets)
            self.assertNotIn("short==", str(raised.exception))


class OwnAuthTests(AuthTestCase):
    """Any function of request and scope."""

    def test_the_first_that_vouches_wins(self):
        """Each is asked for the scope of the URL; None is "not mine"."""
        asked = []

        def mine(request: HttpRequest, scope: str) -> str | None:
            asked.append(scope)
            return "me" if request.headers.get("X-Mine") == "yes" else None

        with mounted(auth=[Bearer(TOKEN), mine]), self.assertLogs("dbtasks.http", "INFO") as logs:
            self.assertEqual(200, self.code(f"run/{ID}/", {"X-Mine": "yes"}))
            self.assertEqual(200, get("status/", {"X-Mine": "yes"}).status_code)
            self.assertEqual(200, self.code(f"run/{ID}/", BEARER))
            self.assert_refused("purge/", {})

        self.assertEqual(["run-one", "status", "purge"], asked)
        self.assertEqual(["me", "me", "bearer"], [r.who for r in logs.records[:3]])

    def test_it_may_not_know_now(self):
        """The sender is asked to come again, and is not told why."""

        def away(request: HttpRequest, scope: str) -> str | None:
            raise Unavailable("the certificates cannot be fetched")

        with mounted(auth=[away]), self.assertLogs("dbtasks.http", "WARNING") as logs:
            response = post("sweep/", headers={})

        self.assertEqual((503, "5"), (response.status_code, response["retry-after"]))
        self.assertEqual("not available now", error_of(response))
        self.assertIn("the certificates cannot be fetched", logs.output[0])

    def test_get_needs_a_credential_that_no_browser_sends(self):
        """A function that might read a cookie is not asked for a GET that changes something."""

        def anybody(request: HttpRequest, scope: str) -> str | None:
            return "anybody"

        with mounted(auth=[anybody], allow_get=True):
            self.assertEqual(401, get("purge/", {}, dry_run="true").status_code)
            self.assertEqual(401, get("sweep/", {}).status_code)
            self.assertEqual(200, get("status/", {}).status_code)
            self.assertEqual(200, self.code("purge/", {}, {"dry_run": True}))
        with mounted(auth=[Signed(), StandardWebhook(SECRET), Bearer(TOKEN)], allow_get=True):
            headers = StandardWebhook(SECRET).sign(b"") | {HEADER: sign("default", None)}
            self.assertEqual(401, get("purge/", headers, dry_run="true").status_code)
            self.assertEqual(200, get("purge/", BEARER, dry_run="true").status_code)


class RefusalLogTests(AuthTestCase):
    """The log says why, the answer does not."""

    def refused(self, count: int = 1, headers: dict[str, str] | None = None, **extra: Any) -> None:
        for _ in range(count):
            post("sweep/", headers=headers or {}, **extra)

    def test_one_line_a_minute(self):
        """For each reason and address, however often."""
        clock = mock.Mock(return_value=1000.0)
        self.enterContext(mock.patch.object(journal.time, "monotonic", clock))
        wrong = {"Authorization": "Bearer wrong-token-of-somebody"}
        with mounted(), self.assertLogs(level="DEBUG") as logs:
            self.refused(500)
            self.refused(500, wrong)
            self.refused(10, REMOTE_ADDR="10.0.0.7")
            clock.return_value += 59
            self.refused(10)
            clock.return_value += 2
            self.refused(10)

        said = [f"{r.name} {r.levelname} {r.getMessage()}" for r in logs.records]
        start = "dbtasks.http WARNING sweep of default from"
        usual = f"{start} 127.0.0.1 was turned away: no credential"
        expected = [usual, usual.replace("no credential", "wrong token")]
        expected += [usual.replace("127.0.0.1", "10.0.0.7"), usual]
        self.assertEqual(expected, said)
        self.assertEqual("http.refused", logs.records[0].event)

    def test_a_flood_from_many_addresses(self):
        """It fills neither the log nor the memory."""
        book = journal.Journal()

        new = sum(book.is_new("wrong token", str(n)) for n in range(5000))

        self.assertEqual(journal.MAX_LINES, new)
        self.assertEqual(journal.MAX_LINES, len(book._said))

    def test_reasons(self):
        """What a class of one's own notes is in the line."""

        def mine(request: HttpRequest, scope: str) -> str | None:
            return refused(request, "wrong phase of the moon")

        with mounted(auth=[Bearer(TOKEN), mine]), self.assertLogs("dbtasks.http") as logs:
            self.refused(headers={"Authorization": "Bearer x"})

        self.assertIn("turned away: wrong token, wrong phase of the moon", logs.output[0])

    def test_no_line_has_a_secret(self):
        """Neither right nor wrong ones."""
        hook = StandardWebhook(SECRET)
        signature = sign("default", ID)
        signed = hook.sign(b"{}", id="msg_secret")
        with mounted(auth=[Bearer(TOKEN), hook]), self.assertLogs(level=logging.DEBUG) as logs:
            for url in EVERYTHING:
                post(url, headers={"Authorization": "Bearer wrong-secret"})
                post(url, headers={HEADER: signature})
                post(url, b"{}", signed)
                post(url, {"secret": TOKEN})
                post(f"{url}?token=wrong-secret", headers={})
            post(f"run/{ID}/")

        text = "\n".join(logs.output) + "".join(str(vars(record)) for record in logs.records)
        text = text.replace("?token=wrong-secret", "")
        for secret in (TOKEN, "wrong-secret", signature, SECRET[6:], signed["webhook-signature"]):
            self.assertNotIn(secret, text)


class EmptyAuthTests(SimpleTestCase):
    """Denied by default."""

    def test_no_credential_is_an_error_at_import(self):
        """An empty list never opens anything."""
        for auth in ([], (), None, "", "token", Bearer, Bearer(TOKEN), [None], [Bearer], ["x"], {}):
            with self.subTest(repr(auth)), self.assertRaises(ImproperlyConfigured):
                endpoints(auth=auth)  # type: ignore[arg-type]
        with self.assertRaises(TypeError):
            endpoints()  # type: ignore[call-arg]
