"""The door: what happens between a request and its answer.

Owns the order of method, size, credential, parameters, slot and work, and the code of each answer.
Never says to the sender why a credential was not accepted.
"""

import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.contrib.auth.decorators import login_not_required
from django.db import InterfaceError, OperationalError, connections, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt

from ...db.isolation import InTransaction
from ...door import Crowded
from ...exceptions import RunnerError
from ...mounted import MOUNT
from ...wakeup import push_of
from . import body, journal
from .auth import BACKEND, ROW, Auth, Signed, StandardWebhook, Unavailable, refusals, refused
from .config import Mount
from .gate import Full
from .work import ENDPOINTS, Call, Endpoint, NotAllowed

__all__ = ["ENDPOINTS", "view_of"]

# Seconds after which a sender that was turned away may come again.
AFTER_OUTAGE, AFTER_CROWD, AFTER_MISTAKE = 10, 5, 60
_NOT_AUTHORIZED = "not authorized"
_signed = Signed()


class _Refused(Exception):
    """The request ends here, with that answer."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers


def view_of(mount: Mount, endpoint: Endpoint) -> Callable[..., HttpResponse]:
    """Return the view of one endpoint, as Django's middleware has to leave it alone."""

    def view(request: HttpRequest, id: str | None = None) -> HttpResponse:
        return _answer(mount, endpoint, request, None if id is None else UUID(id))

    decorated: Any = login_not_required(csrf_exempt(never_cache(view)))
    # Inside a transaction nothing can be claimed. Without an alias only "default" would be exempt.
    for alias in connections:
        decorated = transaction.non_atomic_requests(using=alias)(decorated)
    setattr(decorated, MOUNT, mount)
    return decorated  # type: ignore[no-any-return]


def _answer(
    mount: Mount, endpoint: Endpoint, request: HttpRequest, id: UUID | None
) -> HttpResponse:
    started = time.monotonic()
    methods = _methods(mount, endpoint)
    if request.method not in methods:
        return HttpResponseNotAllowed(methods)
    try:
        who, answer = _work(mount, endpoint, request, id, started)
    except _Refused as error:
        response: HttpResponse = JsonResponse({"error": error.sentence}, status=error.status)
        for name, value in error.headers.items():
            response[name.replace("_", "-")] = value
        if error.status != 400:
            # It is in our log, once a minute. Django would log each one.
            response._has_been_logged = True  # type: ignore[attr-defined]
        return response
    journal.answered(endpoint.scope, mount.backend, who, time.monotonic() - started, answer)
    return JsonResponse(answer)


def _methods(mount: Mount, endpoint: Endpoint) -> list[str]:
    if endpoint.method == "GET":
        return ["GET", "HEAD"]
    return ["GET", "POST"] if endpoint.has_get and mount.allow_get else ["POST"]


def _work(
    mount: Mount, endpoint: Endpoint, request: HttpRequest, id: UUID | None, started: float
) -> tuple[str, dict[str, Any]]:
    """Return who vouched for the request, and the answer; raise _Refused if there is none."""

    def turn_away(why: str) -> None:
        address = str(request.META.get("REMOTE_ADDR", ""))
        journal.turned_away(endpoint.scope, mount.backend, why, address)

    try:
        _check_size(request)
        auth, who = _vouched(mount, endpoint, request, id)
        given = _given(mount, endpoint, request, auth)
        call = Call(mount, isinstance(auth, Signed), given, id, started)
        if not endpoint.runs_tasks:
            return who, endpoint.work(call)
        with mount.gate.slot():
            return who, endpoint.work(call)
    except body.Invalid as error:
        raise _Refused(400, str(error)) from None
    except _Refused as error:
        turn_away(str(error))
        raise
    except NotAllowed as error:
        turn_away(str(error))
        raise _Refused(401, _NOT_AUTHORIZED, WWW_Authenticate="Bearer") from None
    except Unavailable as error:
        turn_away(str(error))
        raise _Refused(503, "not available now", Retry_After=str(AFTER_CROWD)) from None
    except (Full, Crowded):
        turn_away("all slots are taken")
        raise _Refused(503, "too many requests run tasks", Retry_After=str(AFTER_CROWD)) from None
    except (RunnerError, InTransaction) as error:
        # An answer 500 would be sent again at once, by most services.
        turn_away(f"the site must be changed: {error}")
        raise _Refused(503, "this site cannot run tasks", Retry_After=str(AFTER_MISTAKE)) from None
    except (OperationalError, InterfaceError) as error:
        turn_away(f"the database is away ({type(error).__name__})")
        raise _Refused(503, "not available now", Retry_After=str(AFTER_OUTAGE)) from None


def _check_size(request: HttpRequest) -> None:
    """Raise _Refused if the body is too long, before it is read, or its length is unknown."""
    length = request.META.get("CONTENT_LENGTH") or ""
    if not length and request.META.get("HTTP_TRANSFER_ENCODING"):
        # Django reads no body without a length, and parameters would be lost in silence.
        raise _Refused(411, "The request must have a Content-Length.")
    if not length:
        # HTTP/2 has bodies of unknown length. The view reads from here what was read.
        request._body = request.read(body.MAX_BODY + 1)
    is_number = length.isascii() and length.isdigit()
    if (is_number and int(length[:20]) > body.MAX_BODY) or len(request.body) > body.MAX_BODY:
        raise _Refused(413, f"The body must not have more than {body.MAX_BODY:,} bytes.")


def _vouched(
    mount: Mount, endpoint: Endpoint, request: HttpRequest, id: UUID | None
) -> tuple[Auth, str]:
    """Return the first credential that vouches for the request, and who it is."""
    request.META[BACKEND], request.META[ROW] = mount.backend, None if id is None else str(id)
    for auth in _credentials(mount):
        # A GET is also what a browser sends for a link, with the cookies of its user.
        is_odd = request.method == "GET" and endpoint.method == "POST"
        if is_odd and not getattr(auth, "allows_get", False):
            refused(request, "a credential that does not allow GET")
        elif who := auth(request, endpoint.scope):
            return auth, who
    raise NotAllowed(refusals(request))


def _credentials(mount: Mount) -> tuple[Auth, ...]:
    # Hints first: theirs is the only credential that has to be known from the others.
    return mount.auth if push_of(mount.backend) is None else (_signed, *mount.auth)


def _given(mount: Mount, endpoint: Endpoint, request: HttpRequest, auth: Auth) -> dict[str, Any]:
    """Return the parameters, of the query for GET, else of the body; raise Invalid."""
    kinds = endpoint.kinds(mount)
    if request.method != "POST":
        return body.read_query(dict(request.GET.lists()), kinds)
    if request.GET:
        raise body.Invalid("Parameters must be in the body, as a JSON object, not in the URL.")
    given = body.parse_object(request.body)
    if isinstance(auth, StandardWebhook):
        # It was compared with the URL.
        given.pop("type", None)
    return body.read(given, kinds)
