"""``Post``: a push to any service that takes a URL and calls it later.

Owns the request that passes a hint to the service. Settings import it, so it opens nothing and
imports no models. Never shows a header or a body: they hold the service's token.
"""

import http.client
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from math import ceil
from typing import Any
from urllib.parse import quote, urlsplit

from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured

from ...exceptions import DurationError
from ...push import Hint, NotSent, Push, sign
from ...schedule.duration import Duration
from ..shown import shown
from .mount import target
from .origin import check_origin, is_loopback, no_origin

NAMES = ("target", "id", "queue", "signature", "delay", "not_before")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class Post(Push):
    """Passes each hint to a service by one POST to `url`.

    In `url`, `headers` and `body` these are filled in: ``{target}``, the URL that the service has
    to call; ``{id}`` of the row; ``{queue}``; ``{signature}``, the value of the header
    X-DBTasks-Hint of that call; ``{delay}``, seconds until the row is due; ``{not_before}``, that
    time in seconds since 1970. A header, or a field of a `body` that is a dict, is left out if a
    value in it is not known: a row that is due now has no delay, a drain hint no id. In the URL
    that value is empty, and values are quoted, except a target in the path. A dict is sent as JSON.
    In a text nothing is escaped, so use a dict for JSON.

    `at` is the address of this site, by default the environment variable DBTASKS_URL. If it has a
    path, that is where the endpoints are mounted. `timeout` is in seconds. `longest` says how far
    ahead the service can hold a hint, `bulk` and `late` are those of Push.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | str | None = None,
        at: str | None = None,
        timeout: float = 2.0,
        *,
        longest: timedelta | float | str | None = None,
        bulk: int | None = 50,
        late: float = 120.0,
    ) -> None:
        self._url, self._headers, self._body = url, dict(headers or {}), body
        self._at, self._timeout = at, timeout
        try:
            self.longest = None if longest is None else Duration(longest)
        except DurationError as error:
            raise ImproperlyConfigured(f"Post(longest=…): {error}") from None
        self.bulk, self.late = bulk, late
        texts = list(_texts([url, self._headers, body]))
        for text in texts:
            _check_names(text)
        _check_url(url)
        self._needs_target = any("{target}" in text for text in texts)

    @property
    def needs_endpoints(self) -> bool:
        """Whether its hints come to endpoints() in the URLs of this project."""
        return not urlsplit(self._origin or "").path.strip("/")

    @property
    def _origin(self) -> str | None:
        return self._at or os.environ.get("DBTASKS_URL") or None

    def send(self, hints: Sequence[Hint]) -> None:
        """Pass each hint to the service; raise NotSent if it does not take one."""
        for hint in hints:
            self._send(self._values(hint))

    def _send(self, values: dict[str, str]) -> None:
        parts = urlsplit(_fill_url(self._url, values))
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        connection = kind(parts.hostname or "", parts.port, timeout=self._timeout)
        headers = _fill(self._headers, values)
        content: bytes | None = None
        if isinstance(self._body, str):
            content = _PLACEHOLDER.sub(lambda m: values.get(m[1], ""), self._body).encode()
        elif self._body is not None:
            content = json.dumps(_fill(self._body, values)).encode()
            headers.setdefault("Content-Type", "application/json")
        try:
            place = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
            connection.request("POST", place, content or b"", headers)
            status = connection.getresponse().status
        finally:
            connection.close()
        if not 200 <= status < 300:
            raise NotSent(f"{shown(self._url)} answered {status}")

    def _values(self, hint: Hint) -> dict[str, str]:
        """Return what is known of the hint, by name."""
        values = {"queue": hint.queue_name, "signature": sign(hint.backend, hint.id)}
        if self._needs_target:
            if self._origin is None:
                raise NotSent(
                    "the address of this site is not known: set Post(at=…) or DBTASKS_URL"
                )
            values["target"] = target(hint, self._origin)
        if hint.id is not None:
            values["id"] = hint.id
        if hint.run_after is not None:
            left = (hint.run_after - datetime.now(UTC)).total_seconds()
            # Rounded up: a hint that comes too early has to be sent on.
            values |= {"delay": str(max(0, ceil(left)))}
            values |= {"not_before": str(ceil(hint.run_after.timestamp()))}
        return values

    def check(self, alias: str) -> Iterator[CheckMessage]:
        """Yield what is wrong with the URLs of the service and of this site."""
        parts = urlsplit(self._url.replace("{target}", ""))
        if parts.scheme != "https" and not is_loopback(parts.hostname):
            yield Error(
                f"The push of TASKS[{alias!r}] sends its token to a URL that is not https.",
                hint="Write Post('https://…').",
                id="dbtasks.E024",
            )
        if self._origin is not None:
            yield from check_origin(alias, self._origin)

    def check_deployment(self, alias: str) -> Iterator[CheckMessage]:
        """Yield a warning if the address of this site is needed and not known."""
        if self._origin is None and self._needs_target:
            yield no_origin(alias, "Post(at=…)")

    def __repr__(self) -> str:
        return f"Post({shown(self._url)!r})"


def _texts(value: Any) -> Iterator[str]:
    """Yield each text in the value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _check_url(url: str) -> None:
    """Raise ImproperlyConfigured, without the URL in it, unless a service may have that URL."""
    try:
        parts = urlsplit(_PLACEHOLDER.sub("0", url))
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ImproperlyConfigured("Post(url) must be the URL of a service: 'https://…'.")


def _check_names(text: str) -> None:
    """Raise ImproperlyConfigured if the text has a placeholder that is not known."""
    for name in _PLACEHOLDER.findall(text):
        if name not in NAMES:
            near = get_close_matches(name, NAMES, 1)
            choice = f"Did you mean {{{near[0]}}}?" if near else f"Use one of {', '.join(NAMES)}."
            raise ImproperlyConfigured(f"Post() has no value {{{name}}}. {choice}")


def _fill(value: Any, values: Mapping[str, str]) -> Any:
    """Return the value with its texts filled in, without fields whose value is not known."""
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda match: values[match[1]], value)
    if isinstance(value, Mapping):
        items = value.items()
        return {name: _fill(each, values) for name, each in items if _is_known(each, values)}
    if isinstance(value, list | tuple):
        return [_fill(each, values) for each in value if _is_known(each, values)]
    return value


def _is_known(value: Any, values: Mapping[str, str]) -> bool:
    return not isinstance(value, str) or set(_PLACEHOLDER.findall(value)) <= values.keys()


def _fill_url(url: str, values: Mapping[str, str]) -> str:
    """Return the URL filled in. Values are quoted, except a target in the path."""
    start, mark, query = url.partition("?")
    quoted = {name: quote(value, safe="") for name, value in values.items()}
    in_path = quoted | {"target": values.get("target", "")}
    return (
        _PLACEHOLDER.sub(lambda match: in_path.get(match[1], ""), start)
        + mark
        + _PLACEHOLDER.sub(lambda match: quoted.get(match[1], ""), query)
    )
