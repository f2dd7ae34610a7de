"""Builders that tests of all kinds share."""

from typing import Any


def backend(**params: Any) -> dict[str, Any]:
    """Return TASKS with one backend of ours."""
    return {"default": {"BACKEND": "dbtasks.backend.DatabaseBackend", **params}}
