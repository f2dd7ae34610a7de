"""Hints to a service that sends them back by HTTP or as an event, so that no runner has to wait.

Owns what a hint is, its signature, and the base class of services. Never sends anything by itself,
and imports neither models nor a client library, because settings import this.
"""

import math
import os
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, NamedTuple

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.signing import Signer
from django.utils.crypto import constant_time_compare

# Variables that hosts set in the processes of a site: Google Cloud, AWS, Heroku, Render, Fly,
# Vercel, Azure, Kubernetes.
PLATFORMS = (
    "K_SERVICE",
    "CLOUD_RUN_JOB",
    "GAE_ENV",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_EXECUTION_ENV",
    "DYNO",
    "RENDER",
    "FLY_APP_NAME",
    "VERCEL",
    "WEBSITE_INSTANCE_ID",
    "KUBERNETES_SERVICE_HOST",
)
# The header that carries the signature of a hint.
HEADER = "X-DBTasks-Hint"
_SALT = "dbtasks.hint"


class Hint(NamedTuple):
    """Says that a row is due, or will be. It carries no argument, no result and no task path."""

    # The canonical text of the row's UUID, in lower case with hyphens. None is a drain hint: run
    # what is due. By HTTP that is what is due in all queues of the backend.
    id: str | None
    backend: str
    # The queue of the row, or of the rows for which a drain hint is sent.
    queue_name: str
    # How often the row has been started.
    attempt: int = 0
    # When the row will be due, aware; None is now.
    run_after: datetime | None = None
    # Above 0 for a further hint about a row that is due for long: 1, 2, 3 … as its delay doubles.
    again: int = 0


class NotSent(Exception):
    """Raise it in send() with a sentence that may be logged: it must not contain a secret.

    Of every other exception only the class is logged.
    """


class Push:
    """A service that takes hints. Subclass it, define send(), and set OPTIONS["push"].

    An object is made in settings, so making it must open nothing and import no client library.
    """

    # How far ahead the service can hold a hint; None is any time. From a day on, a hint for a later
    # row is sent for that time, and sent on from there. Below a day it is not sent.
    longest: timedelta | None = None
    # Rows of one commit above which drain hints are sent instead of one for each row; None is no
    # limit.
    bulk: int | None = 50
    # Seconds after which a row that is due gets another hint by a sweep.
    late: float = 120.0
    # The most hints that one call of send() takes.
    batch: int = 1
    # Seconds that the service waits until a task has ended, for a check; None is unknown.
    deadline: float | None = None
    # The module that send() needs, and the extra of dbtasks that installs it.
    package: ClassVar[str] = ""
    extra: ClassVar[str] = ""

    @property
    def needs_endpoints(self) -> bool:
        """Whether hints come to the URLs of this project, so that endpoints() must be mounted."""
        return True

    def send(self, hints: Sequence[Hint]) -> None:
        """Pass up to `batch` hints to the service, in one call.

        Runs in a thread of its own, several at the same time. It may raise: the hints then count as
        not sent, and a sweep finds their rows. Runs after the commit, for at most two seconds.
        """
        raise NotImplementedError(f"{type(self).__name__} must define send().")

    def is_at_home(self) -> bool:
        """Return whether this process runs where hints are meant to be sent.

        That is where DEBUG is off, and the environment has DBTASKS_URL or a variable of a known
        host, such as DYNO or KUBERNETES_SERVICE_HOST. Is not asked if DBTASKS_PUSH is set.
        """
        names = ("DBTASKS_URL", *PLATFORMS)
        return not settings.DEBUG and any(os.environ.get(name) for name in names)

    def check(self, alias: str) -> Iterator[CheckMessage]:
        """Yield what is wrong with this object as the push of that backend. Connects to nothing."""
        yield from ()

    def check_deployment(self, alias: str) -> Iterator[CheckMessage]:
        """Yield what is missing where hints are sent, for ``manage.py check --deploy``."""
        yield from ()


def check_attributes(where: str, push: Any) -> Iterator[CheckMessage]:
    """Yield an error for each attribute with which no hint could be sent."""
    late, longest = push.late, push.longest
    for name, is_valid, wanted in (
        ("bulk", push.bulk is None or _is_count(push.bulk), "a whole number above 0, or None"),
        ("batch", _is_count(push.batch), "a whole number above 0"),
        ("late", type(late) in (int, float) and 0 < late < math.inf, "seconds above 0"),
        ("longest", longest is None or isinstance(longest, timedelta), "a timedelta, or None"),
    ):
        if not is_valid:
            yield Error(
                f"{where}: {name!r} must be {wanted}, not {getattr(push, name)!r}.",
                hint=f"Set it in {type(push).__name__}.",
                id="dbtasks.E024",
            )


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def sign(backend: str, id: str | None) -> str:
    """Return the value of HEADER for a hint about that row, or for a drain hint if `id` is None.

    It allows to run the row when it is due, and nothing else, so it never expires.
    """
    return _signature(settings.SECRET_KEY, backend, id)


def is_signed(backend: str, id: str | None, signature: str) -> bool:
    """Return whether that is the signature of the hint, by SECRET_KEY or one of its fallbacks.

    Takes the same time for each wrong signature. Raises nothing, whatever the signature is.
    """
    given = signature.encode(errors="replace")
    keys = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    found = [constant_time_compare(_signature(key, backend, id), given) for key in keys]
    return any(found)


def _signature(key: str | bytes, backend: str, id: str | None) -> str:
    signer = Signer(key=key, salt=_SALT, fallback_keys=[])
    return signer.signature(f"{backend}:{id or 'run'}")
