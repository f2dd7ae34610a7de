"""Tokens that Google signs for a service account, as Cloud Scheduler and Cloud Tasks send them.

Owns which of them vouch for a request. Never logs or shows a token.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest

from ..http.auth import Unavailable, refused
from ..http.origin import is_loopback
from ..shown import shown
from .certificates import Certificates, NoCertificates

ISSUERS = ("https://accounts.google.com", "accounts.google.com")
# Seconds by which clocks may differ at most.
MAX_LEEWAY = 300
CERTS = "https://www.googleapis.com/oauth2/v1/certs"


class OIDC:
    """Vouches for requests with a token that Google signed: for this audience, of these accounts.

    `audience` and `emails` are a text or a list of texts each, and both are needed: whoever has any
    service account can have a token made for any audience. Clocks may differ by `leeway` seconds.
    The certificates are fetched from `certs` at the first token, and kept as long as Google says.

    On a private Cloud Run service Google removes the signature before the request arrives, so no
    token can be verified there. Use ``Bearer(token, header="X-DBTasks-Token")``.
    """

    allows_get = True

    def __init__(
        self,
        audience: str | Sequence[str],
        emails: str | Sequence[str],
        *,
        issuer: str | Sequence[str] = ISSUERS,
        certs: str = CERTS,
        leeway: float = 10.0,
    ) -> None:
        self.audience = _texts("audience", audience)
        self.emails = _texts("emails", emails)
        self._issuers = _texts("issuer", issuer)
        self._certificates, self._leeway = Certificates(_safe_url(certs)), _seconds(leeway)

    def __call__(self, request: HttpRequest, scope: str) -> str | None:
        """Return who vouches; None for a token that does not. Raise Unavailable if none can tell.

        Receives each scope.
        """
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or token.count(".") != 2:
            return None
        # Imported here, because settings import this module where google-auth may be missing.
        from . import google

        try:
            claims = google.verify(token, self._certificates, self.audience, self._leeway)
        except google.NotValid as error:
            return refused(request, str(error))
        except NoCertificates as error:
            raise Unavailable(str(error)) from error
        if claims.get("iss") not in self._issuers:
            return refused(request, "wrong issuer")
        email = claims.get("email")
        if email not in self.emails:
            return refused(request, "wrong email")
        if claims.get("email_verified") is not True:
            return refused(request, "email is not verified")
        return f"oidc:{email}"

    def check(self) -> Iterator[CheckMessage]:
        """Yield an error if google-auth is missing. Does not import it."""
        if find_spec("google") is None or find_spec("google.auth") is None:
            yield Error(
                "OIDC() needs the package 'google-auth', which is not installed.",
                hint="Run: pip install 'dbtasks[cloudtasks]'",
                id="dbtasks.E022",
            )

    def __repr__(self) -> str:
        return f"OIDC({list(self.audience)!r}, {list(self.emails)!r})"


def _safe_url(url: Any) -> str:
    """Return the URL; raise ImproperlyConfigured if others could change what it answers."""
    parts = urlsplit(url if isinstance(url, str) else "")
    if parts.hostname and (parts.scheme == "https" or is_loopback(parts.hostname)):
        return str(url)
    raise ImproperlyConfigured(f"OIDC(certs={shown(url)!r}) is not valid. Use an https URL.")


def _seconds(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= MAX_LEEWAY:
        raise ImproperlyConfigured(
            f"OIDC(leeway={value!r}) is not valid. Use seconds from 0 to {MAX_LEEWAY}."
        )
    return float(value)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """Return the texts; raise ImproperlyConfigured if there are none, or one is empty."""
    found = (value,) if isinstance(value, str) else tuple(value or ())
    if not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise ImproperlyConfigured(
            f"OIDC() needs {name}: a text, or a list of texts, none of them empty. What is not "
            "given would not be checked."
        )
    return found
