"""What endpoints() was called with.

Owns which arguments are valid, and the checks of a mount. Never reads settings: a request cannot
change what the code says.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.checks import CheckMessage, Warning
from django.core.exceptions import ImproperlyConfigured

from .auth import Auth
from .gate import Gate

# The longest that an HTTP request may be meant to take, in seconds: a day.
LONGEST = 86_400.0
MAX_CONCURRENCY = 1000


@dataclass(frozen=True, eq=False)
class Mount:
    """What the endpoints of one call of endpoints() may do. Times are in seconds."""

    backend: str
    auth: tuple[Auth, ...]
    # When the last task of a request may start.
    max_seconds: float
    # How often a sweep is asked for.
    interval: float
    # How long a request may take; None is unknown.
    deadline: float | None
    allow_get: bool
    gate: Gate

    def check(self) -> Iterator[CheckMessage]:
        """Yield what is doubtful about the credentials and the methods."""
        for auth in self.auth:
            check = getattr(auth, "check", None)
            if check is not None:
                yield from check()
        if self.allow_get:
            yield Warning(
                f"endpoints() of the backend {self.backend!r} has allow_get=True: a GET, which "
                "browsers and caches may repeat, runs and deletes tasks.",
                hint="Use it only for a scheduler that cannot send POST, and silence this check "
                "then with SILENCED_SYSTEM_CHECKS.",
                id="dbtasks.W023",
            )


def read_auth(auth: Any) -> tuple[Auth, ...]:
    """Return the credentials; raise ImproperlyConfigured if there is none, or one is not valid."""
    if not isinstance(auth, Sequence) or isinstance(auth, str) or not auth:
        raise ImproperlyConfigured(
            "endpoints() needs a list of credentials, such as [Bearer(token)]. Without any, "
            "everybody could run tasks."
        )
    for each in auth:
        if isinstance(each, type) or not callable(each):
            raise ImproperlyConfigured(
                f"A {type(each).__name__} is not a valid credential for endpoints(). Use objects "
                "such as Bearer(token), or functions (request, scope)."
            )
    return tuple(auth)


def read_seconds(name: str, value: Any, least: float) -> float:
    """Return the number of seconds; raise ImproperlyConfigured if it is not valid."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= LONGEST:
        raise ImproperlyConfigured(
            f"endpoints({name}={value!r}) is not valid. Use seconds from {least:g} to {LONGEST:,g}."
        )
    return float(value)


def read_concurrency(value: Any) -> int:
    """Return the number of slots; raise ImproperlyConfigured if it is not valid."""
    if type(value) is not int or not 1 <= value <= MAX_CONCURRENCY:
        raise ImproperlyConfigured(
            f"endpoints(concurrency={value!r}) is not valid. Use an integer from 1 to "
            f"{MAX_CONCURRENCY:,}."
        )
    return value
