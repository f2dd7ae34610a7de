"""Where the URLs of the project lead to dbtasks.

Owns the walk through the URLconf. Never imports what is mounted: views of ours have an attribute.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from django.conf import settings
from django.urls import URLPattern, URLResolver, get_resolver

# The attribute of a view that holds what it was mounted with.
MOUNT = "dbtasks_mount"


class Mounted(NamedTuple):
    """One mount, and what the names of its URLs begin with, such as ``"dbtasks:"``."""

    mount: Any
    namespace: str


def mounted() -> list[Mounted]:
    """Return the mounts in ROOT_URLCONF, in its order. Imports the project's URLs."""
    if not getattr(settings, "ROOT_URLCONF", None):
        return []
    found: dict[tuple[int, str], Mounted] = {}
    for each in _walk(get_resolver(settings.ROOT_URLCONF), ""):
        found.setdefault((id(each.mount), each.namespace), each)
    return list(found.values())


def _walk(resolver: URLResolver, namespace: str) -> Iterator[Mounted]:
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLPattern):
            mount = getattr(pattern.callback, MOUNT, None)
            if mount is not None:
                yield Mounted(mount, namespace)
        else:
            own = f"{pattern.namespace}:" if pattern.namespace else ""
            yield from _walk(pattern, namespace + own)
