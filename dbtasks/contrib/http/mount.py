"""``endpoints()``, which a project puts into its URLs, and the URLs that lead there.

Owns paths and names. Never answers a request. Settings import it, so the views are imported when
the URLs are made.
"""

import contextvars
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.urls import Resolver404, include, path, re_path, resolve, reverse, set_script_prefix

from ...mounted import MOUNT, mounted
from ...push import Hint
from .auth import Auth
from .config import Mount, read_auth, read_concurrency, read_seconds
from .gate import Gate

_UUID = "(?P<id>[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12})"


def endpoints(
    auth: Sequence[Auth],
    *,
    backend: str = "default",
    max_seconds: float = 25.0,
    concurrency: int = 4,
    interval: float = 60.0,
    deadline: float | None = None,
    allow_get: bool = False,
    namespace: str = "dbtasks",
) -> Any:
    """Return the URLs that run the tasks of one backend, as include() returns them.

    A request has to have one of the credentials in `auth`. `max_seconds` says until when a request
    starts tasks, `concurrency` how many requests of this process run tasks at the same time,
    `interval` how often somebody asks for a sweep, `deadline` after how many seconds the server
    gives up a request: ten seconds before that, a running task is asked to end. `allow_get` lets
    GET sweep and purge. Mount again, with another `namespace`, for another backend or other
    credentials. Raise ImproperlyConfigured if an argument is not valid.
    """
    from .views import ENDPOINTS, view_of

    if backend not in settings.TASKS:
        raise ImproperlyConfigured(f"endpoints(backend={backend!r}): TASKS has no such alias.")
    mount = Mount(
        backend=backend,
        auth=read_auth(auth),
        max_seconds=read_seconds("max_seconds", max_seconds, 1),
        interval=read_seconds("interval", interval, 1),
        deadline=None if deadline is None else read_seconds("deadline", deadline, 15),
        allow_get=bool(allow_get),
        gate=Gate(read_concurrency(concurrency)),
    )
    patterns: list[Any] = []
    for name, endpoint in ENDPOINTS.items():
        patterns += _paths(name, view_of(mount, endpoint))
    return include((patterns, "dbtasks"), namespace=namespace)


def _paths(name: str, view: Any) -> list[Any]:
    """Return the paths of one view: with the slash, and without, where a redirect loses a POST."""
    if name == "run-one":
        return [re_path(f"^run/{_UUID}/$", view, name=name), re_path(f"^run/{_UUID}$", view)]
    return [path(f"{name}/", view, name=name), path(name, view)]


def target(hint: Hint, origin: str) -> str:
    """Return the URL to which the hint is to be sent: a POST, with its signature in HEADER.

    `origin` is the address of the site. If it has a path, that is where the endpoints are mounted.
    Otherwise they are looked up in ROOT_URLCONF. Raise ImproperlyConfigured if the endpoints of the
    hint's backend are not mounted.
    """
    place = "run/" if hint.id is None else f"run/{hint.id}/"
    if urlsplit(origin).path.strip("/"):
        return f"{origin.rstrip('/')}/{place}"
    # In a context of its own: the request that enqueues may have a language in its URLs.
    return origin.rstrip("/") + contextvars.Context().run(_mount_path, hint.backend) + place


def _mount_path(backend: str) -> str:
    """Return the path at which the endpoints of the backend are mounted."""
    prefix = settings.FORCE_SCRIPT_NAME or "/"
    set_script_prefix(prefix)
    for each in mounted():
        if each.mount.backend != backend:
            continue
        found = reverse(f"{each.namespace}run", urlconf=settings.ROOT_URLCONF)
        if _leads_to(found.removeprefix(prefix.rstrip("/")), each.mount):
            return found.removesuffix("run/")
        raise ImproperlyConfigured(
            f"The endpoints of the backend {backend!r} share the namespace {each.namespace[:-1]!r} "
            "with others. Mount them with endpoints(namespace=…)."
        )
    raise ImproperlyConfigured(
        f"The endpoints of the backend {backend!r} are not mounted in ROOT_URLCONF."
    )


def _leads_to(url: str, mount: Mount) -> bool:
    try:
        view = resolve(url, settings.ROOT_URLCONF).func
    except Resolver404:
        return False
    return getattr(view, MOUNT, None) is mount
