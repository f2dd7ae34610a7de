"""Tokens that Google signs: which of them vouch for a request."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.test import RequestFactory, SimpleTestCase

from dbtasks.contrib.cloudtasks import OIDC, certificates
from dbtasks.contrib.http.auth import Unavailable, refusals
from tests.support.loopback import Answer, Loopback
from tests.support.tokens import AUDIENCE, EMAIL, Keys, Signer, needs_google, unsigned

SCOPES = ("sweep", "run", "run-one", "status", "purge")


def request_with(authorization: str | None) -> HttpRequest:
    headers = {} if authorization is None else {"Authorization": authorization}
    return RequestFactory().post("/tasks/sweep/", headers=headers)


@needs_google
class TokenTestCase(SimpleTestCase):
    """A server with certificates, the key that they belong to, and OIDC() that trusts it."""

    signer: Signer

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.signer = Signer()

    def setUp(self) -> None:
        self.keys = Keys(self.signer)
        self.server = Loopback(self.keys)
        self.enterContext(self.server)
        self.oidc = self.make()

    def make(self, audience: Any = AUDIENCE, emails: Any = EMAIL, **options: Any) -> OIDC:
        return OIDC(audience, emails, **{"certs": self.server.origin} | options)

    def who(self, token: str, oidc: OIDC | None = None) -> str | None:
        return (oidc or self.oidc)(request_with(f"Bearer {token}"), "sweep")

    def assert_refused(self, token: str, why: str, oidc: OIDC | None = None) -> None:
        request = request_with(f"Bearer {token}")

        self.assertIsNone((oidc or self.oidc)(request, "sweep"))
        self.assertEqual(why, refusals(request))


class TokenTests(TokenTestCase):
    """The table of what is accepted."""

    def test_google_vouches_for_the_account(self):
        """For each endpoint."""
        token = self.signer.token()

        for scope in SCOPES:
            self.assertEqual(f"oidc:{EMAIL}", self.oidc(request_with(f"Bearer {token}"), scope))

    def test_lists(self):
        """Several audiences and accounts may be given."""
        oidc = self.make(["https://old.example", AUDIENCE], ["x@y.example", EMAIL])

        self.assertEqual(f"oidc:{EMAIL}", self.who(self.signer.token(), oidc))

    def test_somebody_elses_account(self):
        """The audience is chosen by whoever has a token made."""
        token = self.signer.token(email="mallory@other.iam.gserviceaccount.com")

        self.assert_refused(token, "wrong email")
        self.assert_refused(self.signer.token(email=None), "wrong email")
        self.assert_refused(self.signer.token(email=[EMAIL]), "wrong email")

    def test_an_email_that_is_not_verified(self):
        """Nothing but True counts."""
        for value in (False, None, "true", 1):
            self.assert_refused(self.signer.token(email_verified=value), "email is not verified")

    def test_another_issuer(self):
        """Google has two names; others have none."""
        self.assertIsNotNone(self.who(self.signer.token(iss="accounts.google.com")))
        for issuer in ("https://evil.example", "https://accounts.google.com/", None, ""):
            self.assert_refused(self.signer.token(iss=issuer), "wrong issuer")

    def test_another_audience(self):
        """Also with a slash more, as a list, empty or missing."""
        for audience in (f"{AUDIENCE}/", "https://evil.example", "", None, [AUDIENCE]):
            self.assert_refused(self.signer.token(aud=audience), "wrong audience")

    def test_no_key_id(self):
        """Each certificate is tried."""
        self.assertIsNotNone(self.who(self.signer.token({"kid": None})))

    def test_clocks_that_differ(self):
        """By ten seconds, or as many as leeway says."""
        now = int(time.time())
        ahead = self.signer.token(iat=now + 5)

        self.assertIsNotNone(self.who(ahead))
        self.assert_refused(ahead, "the token is not valid yet", self.make(leeway=0))
        self.assertIsNotNone(self.who(self.signer.token(exp=now - 5)))
        self.assert_refused(self.signer.token(iat=now + 60), "the token is not valid yet")

    def test_an_expired_token(self):
        """An hour after it was made, say."""
        now = int(time.time())
        token = self.signer.token(iat=now - 3660, exp=now - 60)

        self.assert_refused(token, "the token has expired")

    def test_no_times(self):
        """A token that never expires is not one of Google's."""
        self.assert_refused(self.signer.token(exp=None), "not a valid token")
        self.assert_refused(self.signer.token(iat=None), "not a valid token")

    def test_other_algorithms(self):
        """No token chooses how it is verified."""
        import jwt

        claims = {"aud": AUDIENCE, "email": EMAIL, "email_verified": True, "iat": 1, "exp": 2**40}
        forged = jwt.encode(claims, "x" * 32, algorithm="HS256", headers={"kid": "key-1"})

        for token in (
            forged,
            unsigned({"alg": "none", "kid": "key-1"}, claims),
            unsigned({"kid": "key-1"}, claims),
            unsigned({"alg": ["RS256"], "kid": "key-1"}, claims),
            unsigned({"alg": "ES256", "kid": "key-1"}, claims, "AAAA"),
            unsigned({"alg": "RS256", "kid": ["key-1"]}, claims, "AAAA"),
            unsigned({"alg": "RS256", "kid": {"a": 1}}, claims, "AAAA"),
        ):
            self.assert_refused(token, "not a token of Google")

    def test_a_key_of_somebody_else(self):
        """With Google's id or another one."""
        self.assert_refused(Signer().token(), "wrong signature")
        self.assert_refused(Signer("key-9").token(), "signed with an unknown key")

    def test_a_changed_token(self):
        """Other claims under the same signature."""
        head, _, signature = self.signer.token().split(".")
        _, claims, _ = self.signer.token(email="admin@shop.example").split(".")

        self.assert_refused(f"{head}.{claims}.{signature}", "wrong signature")

    def test_a_removed_signature(self):
        """A private Cloud Run service cannot verify any token, and the log says so."""
        token = self.signer.token().rpartition(".")[0] + ".SIGNATURE_REMOVED_BY_GOOGLE"
        request = request_with(f"Bearer {token}")

        self.assertIsNone(self.oidc(request, "sweep"))
        self.assertIn("Google removed the signature", refusals(request))

    def test_garbage(self):
        """No text makes an exception."""
        deep = b"[" * 10_000
        for token in (
            "..",
            "a.b.c",
            "é.é.é",
            "\ud800.x.x",
            unsigned([], {}),
            unsigned("x", {}),
            unsigned(deep, {}),
            unsigned({"alg": "RS256"}, deep, "AAAA"),
            unsigned({"alg": "RS256"}, [], "AAAA"),
            unsigned({"alg": "RS256", "kid": "key-1"}, {"aud": AUDIENCE}, "!"),
            unsigned(b"\xff\xfe", b"\x00"),
            unsigned(b'{"alg": "RS256", "kid": ' + b"9" * 5_000 + b"}", {}),
        ):
            with self.subTest(token[:30]):
                request = request_with(f"Bearer {token}")
                self.assertIsNone(self.oidc(request, "sweep"))
                self.assertNotIn(token, refusals(request))

    def test_what_is_no_token_is_left_to_others(self):
        """Nothing is noted, and no certificate is fetched."""
        for value in (None, "", "Bearer", "Bearer ", "Bearer abc", "Basic a.b.c", "bearer"):
            request = request_with(value)
            self.assertIsNone(self.oidc(request, "sweep"))
            self.assertEqual("no credential", refusals(request))
        self.assertEqual([], self.server.received)

    def test_the_scheme_in_any_case(self):
        """As RFC 9110 says."""
        for scheme in ("bearer", "BEARER"):
            request = request_with(f"{scheme} {self.signer.token()}")
            self.assertIsNotNone(self.oidc(request, "run"))

    def test_what_is_not_given_is_refused_at_once(self):
        """Otherwise it would not be checked."""
        for audience, emails in (
            (None, EMAIL),
            ("", EMAIL),
            ([], EMAIL),
            ([AUDIENCE, ""], EMAIL),
            ([None], EMAIL),
            (AUDIENCE, None),
            (AUDIENCE, ""),
            (AUDIENCE, []),
            (AUDIENCE, [" "]),
        ):
            with self.subTest(audience=audience, emails=emails):
                self.assertRaises(ImproperlyConfigured, OIDC, audience, emails)

    def test_other_arguments_that_are_not_valid(self):
        """Certificates that others could replace; clocks that differ by any time."""
        for options in (
            {"certs": "http://certs.example"},
            {"certs": None},
            {"certs": "certs"},
            {"leeway": -1},
            {"leeway": 301},
            {"leeway": "10"},
            {"leeway": True},
            {"leeway": float("nan")},
            {"issuer": []},
        ):
            with self.subTest(**options):
                self.assertRaises(ImproperlyConfigured, self.make, **options)


class CertificateTests(TokenTestCase):
    """When they are fetched, and what happens if they cannot be."""

    def setUp(self) -> None:
        super().setUp()
        self.patch = mock.patch.object(certificates, "time", time)
        self.patch.start()
        self.addCleanup(lambda: self.patch.stop())

    def later(self, seconds: float) -> None:
        """Set the clock of certificates to so many seconds from now."""
        clock = mock.Mock(monotonic=lambda: time.monotonic() + seconds)
        self.patch.stop()
        self.patch = mock.patch.object(certificates, "time", clock)
        self.patch.start()

    def fetches(self) -> int:
        return len(self.server.received)

    def test_they_are_fetched_once(self):
        """Not when OIDC() is made, and not for every token."""
        self.assertEqual(0, self.fetches())
        for _ in range(20):
            self.assertIsNotNone(self.who(self.signer.token()))

        self.assertEqual(1, self.fetches())

    def test_they_are_kept_for_as_long_as_the_answer_says(self):
        """But at least for five minutes, and at most for a day."""
        for max_age, good, outdated in ((3600, 3500, 3700), (0, 290, 310), (10**8, 86_000, 87_000)):
            with self.subTest(max_age):
                self.keys.max_age = max_age
                oidc, before = self.make(), self.fetches()
                self.who(self.signer.token(), oidc)
                self.later(good)
                self.who(self.signer.token(), oidc)
                self.assertEqual(1, self.fetches() - before)
                self.later(outdated)
                self.who(self.signer.token(), oidc)
                self.assertEqual(2, self.fetches() - before)
                self.later(0)

    def test_google_changes_its_keys(self):
        """An unknown key makes us ask again, but at most once a minute."""
        new = Signer("key-2")
        self.who(self.signer.token())
        self.keys.signers = [self.signer, new]

        self.assert_refused(new.token(), "signed with an unknown key")
        self.assertEqual(1, self.fetches())
        self.later(61)
        self.assertIsNotNone(self.who(new.token()))
        self.assertIsNotNone(self.who(self.signer.token()))
        for number in range(20):
            forged = self.signer.token({"kid": f"forged-{number}"})
            self.assert_refused(forged, "signed with an unknown key")
        self.assertEqual(2, self.fetches())

    def test_an_outage_later(self):
        """The old certificates stay, and Google is asked once a minute."""
        self.who(self.signer.token())
        self.keys.is_down = True
        self.later(4000)

        for _ in range(5):
            self.assertIsNotNone(self.who(self.signer.token()))
        self.assertEqual(2, self.fetches())

    def test_an_outage_at_first(self):
        """It cannot be told who vouches: 503, not 401. The next try is after five seconds."""
        self.keys.is_down = True
        for _ in range(5):
            self.assertRaises(Unavailable, self.who, self.signer.token())
        self.assertEqual(1, self.fetches())
        self.keys.is_down = False
        self.later(6)

        self.assertIsNotNone(self.who(self.signer.token()))

    def test_answers_that_are_no_certificates(self):
        """They count as an outage."""
        for body in (b"", b"<html>", b"[]", b"{}", b'{"key-1": 3}', b"\xff"):
            self.server.answer = lambda request, body=body: Answer(200, body)
            with self.subTest(body):
                self.assertRaises(Unavailable, self.who, self.signer.token(), self.make())

    def test_a_certificate_that_is_none(self):
        """The token is refused."""
        self.server.answer = lambda request: Answer(200, b'{"key-1": "x"}')

        self.assert_refused(self.signer.token(), "not a valid token")

    def test_a_server_that_hangs(self):
        """Two seconds, in one thread; the others wait for it and do not ask again."""
        self.server.is_hanging = True
        started = time.monotonic()

        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(self.who, self.signer.token()) for _ in range(8)]
            errors = [type(call.exception()) for call in calls]
        seconds = time.monotonic() - started

        self.assertEqual([Unavailable] * 8, errors)
        self.assertEqual(1, self.fetches())
        self.assertLess(seconds, 3.5)

    def test_a_server_that_is_not_there(self):
        """Refused connections are an outage too."""
        oidc = self.make(certs="http://127.0.0.1:1")

        self.assertRaises(Unavailable, self.who, self.signer.token(), oidc)

    def test_while_one_thread_asks_others_use_what_is_known(self):
        """They do not wait for Google: a token of a known key is told at once."""
        self.who(self.signer.token())
        known = self.oidc._certificates
        self.later(4000)
        with known._lock, mock.patch.object(known, "_lock", wraps=known._lock) as lock:
            self.assertEqual(f"oidc:{EMAIL}", self.who(self.signer.token()))
            lock.acquire.assert_called_once_with(timeout=0.0)
        self.assertEqual(1, self.fetches())

    def test_an_unknown_key_while_one_thread_asks_for_too_long(self):
        """The token is refused; only without any certificate nobody can tell."""
        self.who(self.signer.token())
        self.later(4000)
        self.enterContext(mock.patch.object(certificates, "TIMEOUT", 0.01))
        with self.oidc._certificates._lock:
            self.assert_refused(Signer("key-2").token(), "signed with an unknown key")
        new = self.make()
        with new._certificates._lock:
            self.assertRaises(Unavailable, self.who, self.signer.token(), new)

    def test_many_threads_fetch_once(self):
        """Those that come first wait for the one that asks."""
        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(self.who, self.signer.token()) for _ in range(8)]
            found: list[Any] = [call.result() for call in calls]

        self.assertEqual([f"oidc:{EMAIL}"] * 8, found)
        self.assertEqual(1, self.fetches())


class ReprTests(SimpleTestCase):
    """What is shown of it."""

    def test_an_address_that_is_not_valid(self):
        """The error shows nothing that may be a password."""
        for url in ("user:secret@host", "http://:secret/x@host", "http://u:secret@host"):
            with self.assertRaises(ImproperlyConfigured) as raised:
                OIDC(AUDIENCE, EMAIL, certs=url)
            self.assertNotIn("secret", str(raised.exception))

    def test_repr(self):
        """Whom it trusts; it has no secret."""
        shown: Callable[[object], str] = repr

        self.assertEqual(f"OIDC([{AUDIENCE!r}], [{EMAIL!r}])", shown(OIDC(AUDIENCE, EMAIL)))
