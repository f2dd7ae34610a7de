"""What needs google-auth: sessions with Google's credentials, and the tokens that Google signs.

Owns the time that google-auth may take, and the words for what it raises. Never imported by
settings, but at the first hint or the first token.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import google.auth
import requests
from google.auth import jwt
from google.auth.exceptions import GoogleAuthError, RefreshError, TransportError
from google.auth.transport.requests import AuthorizedSession, Request

from ...push import NotSent
from .certificates import Certificates

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
# Seconds to connect in. What is left of a hint's time is for the answer.
CONNECT_TIMEOUT = 1.0
# Seconds after which an idle connection is not used again: the processor may have been taken away
# meanwhile, and the other end may have closed it.
MAX_IDLE = 30.0


class OneTry(Request):
    """The requests that google-auth makes for a token: each is tried once, until `ends`.

    Left alone it asks up to five times, for up to two minutes each.
    """

    ends = 0.0

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        left = self.ends - time.monotonic()
        if left <= 0:
            raise RefreshError("There was no time left to ask for a token.")
        try:
            answer = super().__call__(  # type: ignore[no-untyped-call]
                url, method, body, headers, timeout=left, **kwargs
            )
        except TransportError as error:
            # Those that retry do so for a TransportError only.
            raise RefreshError(*error.args) from error
        if answer.status >= 500:
            raise RefreshError(f"Asked for a token, Google answered {answer.status}.")
        return answer


class Session:
    """A connection with credentials, for one thread at a time. Made at the first hint."""

    def __init__(self, credentials: Any, seconds: float) -> None:
        self._seconds = seconds
        self._tokens = OneTry()
        self._tokens.ends = time.monotonic() + seconds
        if credentials is None:
            try:
                credentials, _ = google.auth.default(scopes=SCOPES, request=self._tokens)
            except GoogleAuthError as error:
                raise NotSent(
                    f"this process has no credentials for Google Cloud ({_name(error)}). Run it "
                    "under a service account"
                ) from error
        self._http = AuthorizedSession(credentials, auth_request=self._tokens)
        self._used_at = time.monotonic()

    def post(self, url: str, body: Any) -> tuple[int, str]:
        """Return the status and the message of Google's answer; raise NotSent if there is none."""
        now = time.monotonic()
        if now - self._used_at > MAX_IDLE:
            self._http.close()
        self._tokens.ends = now + self._seconds
        try:
            answer = self._http.request(
                "POST",
                url,
                json=body,
                timeout=(min(CONNECT_TIMEOUT, self._seconds), self._seconds),
                max_allowed_time=self._seconds + CONNECT_TIMEOUT,
                allow_redirects=False,
            )
        except GoogleAuthError as error:
            raise NotSent(f"no token for Google Cloud could be had ({_name(error)})") from error
        except requests.RequestException as error:
            raise NotSent(f"Cloud Tasks does not answer ({_name(error)})") from error
        self._used_at = time.monotonic()
        return answer.status_code, _message(answer)


def _name(error: Exception) -> str:
    """Return what may be logged of the error: its text may contain a URL or a header."""
    return type(error).__name__


def _message(answer: requests.Response) -> str:
    """Return what Google says about an error; "" if it says nothing."""
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, TypeError, KeyError):
        return ""


class Sessions:
    """The sessions of one process that no thread uses at the moment.

    Threads that send hints may be short-lived, so sessions are not bound to them. A forked process
    makes its own.
    """

    def __init__(self, credentials: Any, seconds: float) -> None:
        self._credentials, self._seconds = credentials, seconds
        self._free: tuple[int, list[Session]] = (os.getpid(), [])

    @contextmanager
    def borrow(self) -> Iterator[Session]:
        """Lend a session to this thread; one more is made if all are lent."""
        pid, free = self._free
        if pid != os.getpid():
            free = []
            self._free = (os.getpid(), free)
        try:
            session = free.pop()
        except IndexError:
            session = Session(self._credentials, self._seconds)
        try:
            yield session
        finally:
            free.append(session)


class NotValid(Exception):
    """Raised for a token that vouches for nobody; says why, without anything of the token."""


# How google-auth's sentences begin, and ours.
_REASONS = {
    "Token has wrong audience": "wrong audience",
    "Token expired": "the token has expired",
    "Token used too early": "the token is not valid yet",
    "Could not verify": "wrong signature",
    "Certificate for key id": "signed with an unknown key",
}
# What Google puts in the place of the signature before a request reaches a private service.
REMOVED = ".SIGNATURE_REMOVED_BY_GOOGLE"


def verify(
    token: str, certificates: Certificates, audience: Sequence[str], leeway: float
) -> Mapping[str, Any]:
    """Return the claims of a token that Google has signed for one of these audiences.

    Raise NotValid for any other token, NoCertificates if it cannot be told. The caller checks who
    the token is for.
    """
    if token.endswith(REMOVED):
        raise NotValid(
            "Google removed the signature, because the service is private; use Signed, or Bearer "
            "with a header of its own"
        )
    try:
        header = jwt.decode_header(token)
        key = header.get("kid")
        if header.get("alg") != "RS256" or not isinstance(key, str | None):
            raise NotValid("not a token of Google")
        certs = certificates.get(key)
        # None and an empty list of audiences would not be checked.
        claims: Mapping[str, Any] = jwt.decode(
            token, certs=certs, audience=list(audience), clock_skew_in_seconds=leeway
        )
        return claims
    except (ValueError, TypeError, KeyError, RecursionError, GoogleAuthError) as error:
        # The sentences themselves contain parts of the token.
        text = str(error)
        for beginning, reason in _REASONS.items():
            if text.startswith(beginning):
                raise NotValid(reason) from None
        raise NotValid("not a valid token") from None
