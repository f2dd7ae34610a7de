"""Who may use which endpoint: the credentials of a request.

Owns the classes that vouch for a request. Never accepts a session or another cookie: the views have
no protection against cross-site requests. Imported by settings, so it imports no models. Never
shows a secret in a repr or a log.
"""

import base64
import hashlib
import hmac
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

from django.core.checks import CheckMessage, Warning
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest

from ...push import HEADER, is_signed
from . import body

# Receives the request and the scope: "sweep", "run", "run-one", "status" or "purge". Returns who
# vouches, for the log, or None if this is not its own. An object may set `allows_get` to True, if
# no browser sends its credential by itself, and may have a method check(), which yields messages.
Auth = Callable[[HttpRequest, str], str | None]

# Where the views tell in request.META which backend and which row a request is about.
BACKEND, ROW = "dbtasks.backend", "dbtasks.row"
_REFUSALS = "dbtasks.refusals"

# Characters that make a token hard to guess.
MIN_TOKEN = 32
# Bytes of a webhook's secret, by its specification.
MIN_SECRET = 24
# The most signatures of one webhook that are compared.
MAX_SIGNATURES = 10
_VISIBLE = re.compile(r"[!-~]+")
_DIGITS = re.compile(r"[0-9]{1,12}")


class Unavailable(Exception):
    """An Auth raises it when it cannot tell now; the sender is asked to come again.

    The message is for the log only.
    """


def refused(request: HttpRequest, why: str) -> str | None:
    """Note for the log why a credential was not accepted; return None, as the Auth then does.

    `why` must hold nothing of the request.
    """
    request.META.setdefault(_REFUSALS, []).append(why)
    return None


def refusals(request: HttpRequest) -> str:
    """Return why nobody vouched for the request."""
    return ", ".join(request.META.get(_REFUSALS, [])) or "no credential"


class Signed:
    """Vouches for hints: requests to run a row, or what is due, with the signature of dbtasks.

    It is added by itself if the backend has a push.
    """

    allows_get = False

    def __call__(self, request: HttpRequest, scope: str) -> str | None:
        signature = request.headers.get(HEADER)
        if signature is None or scope not in {"run", "run-one"}:
            return None
        row = request.META.get(ROW) if scope == "run-one" else None
        if is_signed(request.META[BACKEND], row, signature):
            return "hint"
        return refused(request, "wrong signature of a hint")

    def __repr__(self) -> str:
        return "Signed()"


class Bearer:
    """Vouches for requests with one of the tokens, as ``Authorization: Bearer …``.

    Give two tokens while you replace one by the other. Another `header` holds nothing but the
    token.
    """

    allows_get = True

    def __init__(self, *tokens: str, header: str = "Authorization") -> None:
        if not tokens:
            raise ImproperlyConfigured("Bearer() needs a token.")
        for token in tokens:
            if not _is_token(token):
                raise ImproperlyConfigured(
                    "A token of Bearer() must be a text of visible ASCII characters without "
                    "spaces. Make one with: python -c 'import secrets; "
                    "print(secrets.token_urlsafe(32))'"
                )
        self._tokens = [token.encode() for token in tokens]
        self._header = header

    def __call__(self, request: HttpRequest, scope: str) -> str | None:
        value = request.headers.get(self._header)
        if value is None:
            return None
        if self._header.lower() == "authorization":
            scheme, _, value = value.partition(" ")
            if scheme.lower() != "bearer":
                return None
        given = value.encode(errors="replace")
        # A list, so that all tokens are compared.
        matches = [hmac.compare_digest(token, given) for token in self._tokens]
        if any(matches):
            return "bearer"
        return refused(request, "wrong token")

    def check(self) -> Iterator[CheckMessage]:
        """Yield a warning if a token is short."""
        if any(len(token) < MIN_TOKEN for token in self._tokens):
            yield Warning(
                f"A token of Bearer() is shorter than {MIN_TOKEN} characters, so it may be "
                "guessed.",
                hint="Make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
                id="dbtasks.W022",
            )

    def __repr__(self) -> str:
        return f"Bearer({len(self._tokens)} tokens, header={self._header!r})"


def _is_token(value: Any) -> bool:
    return isinstance(value, str) and bool(_VISIBLE.fullmatch(value))


class AppEngineCron:
    """Vouches for sweeps and purges by the cron of App Engine, and only there.

    App Engine removes the header ``X-Appengine-Cron`` from requests of anybody else, except those
    of the project's administrators.
    """

    allows_get = True

    def __call__(self, request: HttpRequest, scope: str) -> str | None:
        sent = request.headers.get("X-Appengine-Cron")
        if sent is None or scope not in {"sweep", "purge"}:
            return None
        if not (os.environ.get("GAE_ENV") or os.environ.get("GAE_SERVICE")):
            return refused(request, "cron of App Engine, which this is not")
        return "app engine cron" if sent == "true" else None

    def __repr__(self) -> str:
        return "AppEngineCron()"


class StandardWebhook:
    """Vouches for webhooks signed as https://www.standardwebhooks.com says.

    A secret is ``whsec_`` and base64; give two while you replace one by the other. `tolerance` is
    how many seconds the clocks may differ. Method and path are not signed, so the body has to have
    a ``type``: ``dbtasks.sweep``, ``dbtasks.run`` or ``dbtasks.purge``, as the URL.
    """

    allows_get = False

    def __init__(self, *secrets: str, tolerance: float = 300.0) -> None:
        if not secrets:
            raise ImproperlyConfigured("StandardWebhook() needs a secret.")
        self._keys = [_key(secret) for secret in secrets]
        self._tolerance = tolerance

    def __call__(self, request: HttpRequest, scope: str) -> str | None:
        names = ("webhook-id", "webhook-timestamp", "webhook-signature")
        id, at, signatures = (request.headers.get(name) for name in names)
        if id is None or at is None or signatures is None:
            return None
        if not _DIGITS.fullmatch(at) or abs(time.time() - int(at)) > self._tolerance:
            return refused(request, "time of a webhook too far from now")
        if not self._is_signed(id, at, request.body, signatures):
            return refused(request, "wrong signature of a webhook")
        try:
            type = body.parse_object(request.body).get("type")
        except body.Invalid:
            type = None
        if type == f"dbtasks.{scope}" and scope in {"sweep", "run", "purge"}:
            return "webhook"
        return refused(request, "type of a webhook that is not that of the URL")

    def _is_signed(self, id: str, at: str, payload: bytes, signatures: str) -> bool:
        given = signatures.split(" ")
        if len(given) > MAX_SIGNATURES:
            return False
        right = [_signature(key, id, at, payload) for key in self._keys]
        matches = [
            hmac.compare_digest(one.encode(), each.encode(errors="replace"))
            for one in right
            for each in given
        ]
        return any(matches)

    def sign(
        self, payload: bytes | str, *, id: str | None = None, at: int | None = None
    ) -> dict[str, str]:
        """Return the headers that sign the body with the first secret, for a sender of your own.

        `at` is the time in seconds since 1970, by default now.
        """
        id = id or f"msg_{uuid4().hex}"
        when = str(int(time.time()) if at is None else at)
        raw = payload.encode() if isinstance(payload, str) else payload
        return {
            "webhook-id": id,
            "webhook-timestamp": when,
            "webhook-signature": _signature(self._keys[0], id, when, raw),
        }

    def __repr__(self) -> str:
        return f"StandardWebhook({len(self._keys)} secrets, tolerance={self._tolerance!r})"


def _key(secret: Any) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (AttributeError, ValueError):
        key = b""
    if len(key) < MIN_SECRET:
        raise ImproperlyConfigured(
            "A secret of StandardWebhook() must be 'whsec_' and then base64 of at least "
            f"{MIN_SECRET} bytes."
        )
    return key


def _signature(key: bytes, id: str, at: str, payload: bytes) -> str:
    content = f"{id}.{at}.".encode(errors="replace") + payload
    digest = hmac.new(key, content, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"
