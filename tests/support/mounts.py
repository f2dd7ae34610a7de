"""Mounts of endpoints() for tests, and requests to them."""

import json
import logging
from types import ModuleType
from typing import Any

from django.http import HttpResponse
from django.test import Client, override_settings
from django.urls import include, path

from dbtasks.contrib.http import Bearer, endpoints

# Tests that refuse requests on purpose print nothing.
logging.getLogger("dbtasks.http").addHandler(logging.NullHandler())

TOKEN = "token-of-the-tests-with-many-characters"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ID = "0192d3a4-0000-7000-8000-00000000abcd"


def urls(*patterns: Any) -> ModuleType:
    """Return a URLconf with those patterns."""
    module = ModuleType("urls_of_a_test")
    module.urlpatterns = list(patterns)  # type: ignore[attr-defined]
    return module


def mounted(*patterns: Any, **arguments: Any) -> Any:
    """Return override_settings with those URLs; without any, with endpoints() below tasks/."""
    if not patterns:
        arguments.setdefault("auth", [Bearer(TOKEN)])
        patterns = (path("tasks/", endpoints(**arguments)),)
    return override_settings(ROOT_URLCONF=urls(*patterns))


def inside(prefix: str, name: str, *patterns: Any) -> Any:
    """Return a path that includes those patterns in a namespace of that name."""
    return path(prefix, include((list(patterns), name)))


def post(url: str, body: Any = None, headers: dict[str, str] = BEARER, **extra: Any) -> Any:
    """Return the response to a POST of that body: bytes, or what is sent as JSON."""
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    client = Client(enforce_csrf_checks=True)
    return client.generic(
        "POST", f"/tasks/{url}", raw, "application/json", headers=headers, **extra
    )


def get(url: str, headers: dict[str, str] = BEARER, **query: Any) -> Any:
    """Return the response to a GET."""
    return Client().get(f"/tasks/{url}", query, headers=headers)


def error_of(response: HttpResponse) -> str:
    """Return the sentence of an answer that is an error."""
    [(name, sentence)] = json.loads(response.content).items()
    assert name == "error", name
    return str(sentence)
