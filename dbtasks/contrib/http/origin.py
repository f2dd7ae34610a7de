"""The address of the site, as a service sees it.

Owns the checks of it. Never connects to it.
"""

import ipaddress
from collections.abc import Iterator
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning
from django.http.request import validate_host

from ..shown import HIDDEN, shown


def is_loopback(host: str | None) -> bool:
    """Return whether that host is this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def no_origin(alias: str, argument: str) -> CheckMessage:
    """Return the warning that a push does not know the address of the site."""
    return Warning(
        f"The push of TASKS[{alias!r}] does not know the address of this site, so it sends no "
        "hints.",
        hint=f"Set {argument} or the environment variable DBTASKS_URL.",
        id="dbtasks.W025",
    )


def check_origin(alias: str, url: str) -> Iterator[CheckMessage]:
    """Yield what keeps hints of that backend, which a service sends to `url`, from arriving."""
    where, place = f"The push of TASKS[{alias!r}]", shown(url)
    try:
        parts = urlsplit(url)
        host, is_valid = parts.hostname, parts.port != 0
    except ValueError:
        host, is_valid = None, False
    is_plain = is_valid and parts.scheme == "http"
    if not host or not is_valid or parts.scheme not in ("http", "https"):
        yield Error(
            f"{where} sends hints to {place!r}, which is not a valid URL.",
            hint="Use the address of the site, such as 'https://shop.example'.",
            id="dbtasks.E024",
        )
        return
    if is_plain and not is_loopback(host):
        yield Error(
            f"{where} sends hints to {place!r}, which is not encrypted.",
            hint="Use https.",
            id="dbtasks.E024",
        )
    # With DEBUG and no hosts Django allows those of this machine.
    allowed = settings.ALLOWED_HOSTS or [".localhost", "127.0.0.1", "[::1]"] * settings.DEBUG
    name = f"[{host}]" if ":" in host else host
    if not validate_host(name, allowed):
        name = HIDDEN if place == HIDDEN else name
        yield Warning(
            f"{where} sends hints to the host {name!r}, which is not in ALLOWED_HOSTS: the site "
            "refuses each of them.",
            hint=f"Add {name!r} to ALLOWED_HOSTS.",
            id="dbtasks.W024",
        )
    if is_plain and settings.SECURE_SSL_REDIRECT:
        yield Warning(
            f"{where} sends hints to {place!r}, and SECURE_SSL_REDIRECT redirects each of them.",
            hint="Use https.",
            id="dbtasks.W024",
        )
